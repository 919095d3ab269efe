"""Another size that an exported program takes, where it leaves some of its sizes open.

What the program says of its inputs is a symbol per open axis, or an expression of such (2*s0), and
a range for each symbol. The size that it was analysed on is left for the nearest other one in the
range: one more, or one less.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

_STEPS = (1, -1, 2, -2, 4, -4, 8, 16, 32)
"""How far from the example's; a stride of the network may want more than one."""


def other_sizes(
    program: ExportedProgram, leaves: list[Any]
) -> Iterator[dict[int, tuple[int, ...]]]:
    """New shapes for the tensors among the inputs, by their position; the nearest first.

    `leaves` are the example inputs. Not every choice has to be one that the program takes.
    """
    declared = _declared(program)
    if len(declared) != len(leaves):
        return
    sizes: dict[Any, int] = {}
    for shape, leaf in zip(declared, leaves, strict=True):
        if shape is not None and isinstance(leaf, Tensor):
            for length, size in zip(shape, leaf.shape, strict=True):
                if isinstance(length, SymInt) and length.node.expr.is_symbol:
                    sizes.setdefault(length.node.expr, int(size))
    for step in _STEPS:
        moved = {symbol: size + step for symbol, size in sizes.items()}
        if sizes and all(_is_allowed(program, symbol, size) for symbol, size in moved.items()):
            shapes = [shape for shape in declared if shape is not None]
            yield {
                position: tuple(_length(length, moved) for length in shape)
                for position, shape in enumerate(shapes)
            }


def _declared(program: ExportedProgram) -> list[Any]:
    """What the program says of the shape of each input; None for what is no tensor."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    values = [
        nodes[spec.arg.name].meta.get("val")
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT
    ]
    return [tuple(value.shape) if isinstance(value, torch.Tensor) else None for value in values]


def _is_allowed(program: ExportedProgram, symbol: Any, size: int) -> bool:
    allowed = program.range_constraints.get(symbol)
    return size > 0 and (allowed is None or bool(allowed.lower <= size <= allowed.upper))


def _length(length: Any, sizes: dict[Any, int]) -> int:
    """The length of an axis once the symbols have these values."""
    return int(length.node.expr.subs(sizes)) if isinstance(length, SymInt) else int(length)
