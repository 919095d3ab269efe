"""Where an op that only moves values lays the axes of its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bnfold.core.axes import after_expand, after_reshape
from bnfold.frontends.torch.ops import Arguments, UnfitError, functional, op_name
from bnfold.frontends.torch.recording import Event, Value

Places = tuple[int | None, ...]
"""Per axis of the input, its place in the output; None where it is cut, merged or repeated."""
Shape = Sequence[int]

RESHAPING = frozenset(("view", "_unsafe_view", "reshape", "_reshape_alias"))
"""One op in code, several in a recording."""


def places_of(event: Event) -> Places | None:
    """The places; None for an op that may do anything else."""
    name = functional(op_name(event.target))
    moved, source = _MOVES.get(name), event.args[0] if event.args else None
    made = event.outputs[0] if event.outputs else None
    if moved is None or made is None or not isinstance(source, Value):
        return None
    try:
        return moved(event, source.shape, made.shape)
    except UnfitError:
        return None


def _stays(event: Event, before: Shape, after: Shape) -> Places:
    return tuple(range(len(before)))


def _reshaped(event: Event, before: Shape, after: Shape) -> Places:
    return after_reshape(before, after)


def _expanded(event: Event, before: Shape, after: Shape) -> Places:
    return after_expand(before, after)


def _exchanged(event: Event, before: Shape, after: Shape) -> Places:
    a, places = Arguments(event), list(range(len(before)))
    first, second = (a.whole(name) % len(places) for name in ("dim0", "dim1"))
    places[first], places[second] = second, first
    return tuple(places)


def _permuted(event: Event, before: Shape, after: Shape) -> Places:
    order = [axis % len(before) for axis in Arguments(event).wholes("dims")]
    return tuple(order.index(axis) for axis in range(len(before)))


def _dropped(event: Event, before: Shape, after: Shape) -> Places | None:
    return None if Arguments(event)["train"] else _stays(event, before, after)


_MOVES: dict[str, Callable[[Event, Shape, Shape], Places | None]] = {
    **dict.fromkeys(("clone", "contiguous", "detach", "alias", "_to_copy", "to"), _stays),
    **dict.fromkeys((*RESHAPING, "unsqueeze", "squeeze"), _reshaped),
    "expand": _expanded,
    "transpose": _exchanged,
    "permute": _permuted,
    "dropout": _dropped,
}
