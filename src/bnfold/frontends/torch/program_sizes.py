"""Other sizes for the inputs of an exported program, where it leaves sizes open.

What a program declares of the shape of its inputs is a symbol per open axis, or an expression of
such (2*s0), and a range for each. An expression of one symbol is linear in it, as torch.export has
it of dims derived from others: the example's length says what the symbol was, also where no axis is
the symbol itself. The size that a program was analysed on is left for the nearest other one in the
range: one more, or one less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

_STEPS = (1, -1, 2, -2, 4, -4, 8, 16, 32)
"""How far from the example's; a stride of the network may want more than one."""

Shapes = list[tuple[int, ...]]
"""One per tensor among the inputs."""


def other_sizes(
    program: ExportedProgram, leaves: list[Any]
) -> Iterator[dict[int, tuple[int, ...]]]:
    """New shapes for the tensors among the inputs, by their position; the nearest first.

    `leaves` are the example inputs. Not every choice has to be one that the program takes.
    """
    opened = open_sizes(program, [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)])
    if opened is None:
        return
    for step in _STEPS:
        shapes = opened.shapes_with(_so_far(step))
        if shapes is not None:
            yield dict(enumerate(shapes))


def _so_far(step: int) -> Callable[[int, int], tuple[int, int]]:
    """The two sizes at this distance, the one in its direction first."""
    return lambda size, axis: (size + step, size - step)


@dataclass(frozen=True, slots=True, eq=False)
class OpenSizes:
    """The sizes of its inputs that a program leaves open."""

    program: ExportedProgram
    declared: list[tuple[Any, ...]]
    """The shapes of the tensors among the inputs: a number or an expression per axis."""
    example: Shapes
    sizes: dict[Any, int]
    """What each symbol is in the example."""
    axes: dict[Any, int]
    """Along which axis each symbol was found."""

    def shapes_with(self, wanted: Callable[[int, int], Iterable[int]]) -> Shapes | None:
        """The shapes where each symbol is the first that it may be of those wanted for it.

        A symbol that may be none of them stays what it is; None where that holds for all.
        `wanted` is asked with what the symbol is in the example, and with its axis.
        """
        moved = dict(self.sizes)
        for symbol, size in self.sizes.items():
            choices = wanted(size, self.axes[symbol])
            fitting = (one for one in choices if self._are_allowed({**self.sizes, symbol: one}))
            moved[symbol] = next(fitting, size)
        if moved == self.sizes or not self._are_allowed(moved):
            return None
        return self._shapes(moved)

    def _shapes(self, sizes: dict[Any, int]) -> Shapes:
        return [
            tuple(
                _length(expression, sizes, length)
                for expression, length in zip(declared, shape, strict=True)
            )
            for declared, shape in zip(self.declared, self.example, strict=True)
        ]

    def _are_allowed(self, sizes: dict[Any, int]) -> bool:
        """Whether all that has a range is in it; no axis may be empty."""
        if any(length < 1 for shape in self._shapes(sizes) for length in shape):
            return False
        return all(
            bool(allowed.lower <= expression.subs(sizes) <= allowed.upper)
            for expression, allowed in self.program.range_constraints.items()
            if expression.free_symbols <= sizes.keys()
        )


def open_sizes(program: ExportedProgram, example: Shapes) -> OpenSizes | None:
    """What a program leaves open; None where it has other inputs than those of the example."""
    declared = _declared(program)
    if [len(shape) for shape in declared] != [len(shape) for shape in example]:
        return None
    lengths = [
        (expression, length, axis)
        for shape, own in zip(declared, example, strict=True)
        for axis, (expression, length) in enumerate(zip(shape, own, strict=True))
        if not isinstance(expression, int)
    ]
    sizes: dict[Any, int] = {}
    axes: dict[Any, int] = {}
    # Symbols first: an expression may be of several of them and another one.
    for expression, length, axis in sorted(lengths, key=lambda one: len(one[0].free_symbols)):
        unknown = expression.free_symbols - sizes.keys()
        if len(unknown) != 1:
            continue
        symbol = next(iter(unknown))
        root = _root(expression.subs(sizes), symbol, length)
        if root is not None:
            sizes[symbol], axes[symbol] = root, axis
    return OpenSizes(program, declared, example, sizes, axes)


def _root(expression: Any, symbol: Any, length: int) -> int | None:
    """For which value of its only symbol an expression is this long, if it is linear in it."""
    start, next_one = (expression.subs({symbol: value}) for value in (0, 1))
    if not (start.is_Integer and next_one.is_Integer) or start == next_one:
        return None
    root = (length - start) / (next_one - start)
    return int(root) if root.is_Integer and expression.subs({symbol: root}) == length else None


def _declared(program: ExportedProgram) -> list[tuple[Any, ...]]:
    """What the program says of the shape of each tensor among its inputs."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    values = (
        nodes[spec.arg.name].meta.get("val")
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT
    )
    return [
        tuple(_expression(size) for size in value.shape)
        for value in values
        if isinstance(value, torch.Tensor)
    ]


def _expression(size: Any) -> Any:
    """A number, or what it is computed from."""
    if not isinstance(size, SymInt):
        return int(size)
    expression = size.node.expr
    return expression if expression.free_symbols else int(expression)


def _length(expression: Any, sizes: dict[Any, int], length: int) -> int:
    """The length of an axis where the symbols are these; the example's where one is not known."""
    if isinstance(expression, int):
        return length
    found = expression.subs(sizes)
    return length if found.free_symbols else int(found)
