"""What an exported program computes from the sizes of its inputs, and nothing may be built on.

With dynamic shapes a number in the graph may be a node: `sym_size`, arithmetic on it, `item`. In
the run that is analysed it has one value, in other runs it has others; so has a constant tensor
that is made with one (`full`, `arange`), or drawn at random. Such an argument is called open. Where
it only says how values are arranged or resized it does no harm.

The sizes themselves are open, too: an axis of which the program says that it may have any length.
Where a view mixes channels with such an axis, which channel an element belongs to depends on the
length, so the channels along it are all stored alike (`Lifter.emit`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import SymBool, SymFloat, SymInt, Tensor, fx

from bnfold.frontends.torch.ops import aten_name, node_of
from bnfold.frontends.torch.recording import Event

EVERY = "every"
"""Stands for all arguments of an op that was taken apart."""


def open_nodes(
    graph: fx.Graph, inputs: Collection[str], factories: Collection[str]
) -> set[fx.Node]:
    """The nodes that are open numbers, or constant tensors made with one.

    `inputs` are the names of the placeholders that the user fills, `factories` the ops that look at
    the shape of their argument alone.
    """
    opened: set[fx.Node] = set()
    values: set[fx.Node] = set()
    for node in graph.nodes:
        sources = node.all_input_nodes
        if _is_number(node):
            opened.add(node)
        elif _is_given(node, inputs) or (
            any(source in values for source in sources) and not _is_one_of(node, factories)
        ):
            values.add(node)
        elif _is_random(node) or any(source in opened for source in sources):
            opened.add(node)
            if _writes(node):
                opened.update(sources)
    return opened


def open_arguments(event: Event, opened: Collection[fx.Node]) -> frozenset[str]:
    """The names of the event's arguments that are open, or have something open in them."""
    node = event.call.node
    if node is None or not any(source in opened for source in node.all_input_nodes):
        return frozenset()
    if event.target is not node.target or not isinstance(node.target, torch._ops.OpOverload):
        return frozenset({EVERY})
    names = [argument.name for argument in node.target._schema.arguments]
    given = [*zip(names, node.args, strict=False), *node.kwargs.items()]
    return frozenset(
        name
        for name, argument in given
        if _has_open(argument, opened) and not _is_one_matrix(argument, opened)
    )


def _is_one_matrix(argument: fx.node.Argument, opened: Collection[fx.Node]) -> bool:
    """Whether it is one matrix in every run, and only how often it is repeated is open."""
    node = argument
    while isinstance(node, fx.Node) and aten_name(node.target) in _OF_MATRICES:
        source = node.args[0]
        made, given = (
            part.meta.get("val") if isinstance(part, fx.Node) else None for part in (node, source)
        )
        if not isinstance(made, Tensor) or not isinstance(given, Tensor) or given.ndim < 2:
            return False
        if any(isinstance(size, SymInt) for size in (*made.shape[-2:], *given.shape[-2:])):
            return False
        is_turned = aten_name(node.target) in _TURNS
        if given.ndim > 2 if is_turned else made.shape[-2:] != given.shape[-2:]:
            return False
        node = source
    return isinstance(node, fx.Node) and node.op == "placeholder" and node not in opened


_TURNS = ("permute", "t", "transpose")
_OF_MATRICES = (*_TURNS, "expand", "view", "_unsafe_view", "unsqueeze")


def open_axes(event: Event, output: int) -> tuple[int, ...]:
    """The axes of one of the event's outputs that have other lengths in other runs."""
    node = node_of(event)
    if node is None:
        return ()
    declared = node.meta.get("val")
    made = list(declared) if isinstance(declared, tuple | list) else [declared]
    shapes = [tensor.shape for tensor in made if isinstance(tensor, Tensor)]
    if output >= len(shapes):
        return ()
    return tuple(axis for axis, size in enumerate(shapes[output]) if isinstance(size, SymInt))


def open_axes_of_written(event: Event, shape: Sequence[int]) -> Collection[int]:
    """Those of a tensor of this shape, of which the event's node wrote to a part.

    That part is a view of it, so it is one of the nodes that the written one comes from; where none
    fits, any axis may be open.
    """
    node: fx.node.Argument = event.call.node
    if node is None:
        return ()
    while isinstance(node, fx.Node):
        declared = node.meta.get("val")
        if isinstance(declared, Tensor) and _may_be(declared.shape, shape):
            return [axis for axis, size in enumerate(declared.shape) if isinstance(size, SymInt)]
        node = node.args[0] if node.args else None
    return range(len(shape))


def _may_be(declared: Sequence[int | SymInt], shape: Sequence[int]) -> bool:
    """Whether these sizes were those in the run."""
    hints = [size.node.hint if isinstance(size, SymInt) else size for size in declared]
    return len(hints) == len(shape) and all(
        hint in (None, size) for hint, size in zip(hints, shape, strict=True)
    )


def is_part_of_open_size(event: Event) -> bool:
    """Whether the event is a part of a node whose tensors have open axes: nothing says which."""
    node = event.call.node
    if node is None or node_of(event) is not None:
        return False
    declared = (part.meta.get("val") for part in (node, *node.all_input_nodes))
    return any(
        isinstance(size, SymInt)
        for tensor in declared
        if isinstance(tensor, Tensor)
        for size in tensor.shape
    )


def _has_open(argument: fx.node.Argument, opened: Collection[fx.Node]) -> bool:
    seen: list[fx.Node] = []
    fx.map_arg(argument, seen.append)
    return any(node in opened for node in seen)


def _is_given(node: fx.Node, inputs: Collection[str]) -> bool:
    return node.op == "placeholder" and node.name in inputs


def _is_random(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags


def _writes(node: fx.Node) -> bool:
    """Whether it changes what it is given."""
    return not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable


def _is_one_of(node: fx.Node, names: Collection[str]) -> bool:
    return aten_name(node.target) in names


def _is_number(node: fx.Node) -> bool:
    if "val" in node.meta:
        return isinstance(node.meta["val"], SymInt | SymFloat | SymBool)
    # Without metadata, whatever makes no tensor: Python's operators, sym_size, item.
    if isinstance(node.target, torch._ops.OpOverload):
        returned = node.target._schema.returns
        return not any("Tensor" in str(result.type) for result in returned)
    return node.op == "call_function" and not any(
        isinstance(source.meta.get("val"), Tensor | tuple | list) for source in node.all_input_nodes
    )
