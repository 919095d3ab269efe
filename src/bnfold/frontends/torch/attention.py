"""Attention: a product with weights that sum to 1 along what is summed is a weighted mean.

    A = softmax(...)      z[i, c] = sum_j A[i, j] * v[j, c]      sum_j A[i, j] = 1

So what is stored of `v` may be rescaled, alike for all `j`; the weights are read as they are. Where
the weights may sum to 0 as well (a row that is masked from end to end), the shift has to be 0.

The weights are traced back from the product to their softmax, through ops that move them. None but
those in the table is passed: a mask behind the softmax, or a dropout that drops, ends the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bnfold.core import graph as g
from bnfold.frontends.torch.compare_readings import moved_axis
from bnfold.frontends.torch.lifter import Lifter, first_value, is_floating
from bnfold.frontends.torch.moved_axes import places_of
from bnfold.frontends.torch.ops import Arguments, functional, op_name
from bnfold.frontends.torch.recording import Event, Value


def emit_product(lifter: Lifter, event: Event) -> bool:
    """A product of two matrices, or batches of them, one of which is such weights."""
    left, right, *_ = [*Arguments(event).bound.values(), None, None]
    made = event.outputs[0]
    if not (isinstance(left, Value) and isinstance(right, Value) and made is not None):
        return False
    rank = len(made.shape)
    if rank < 2 or not len(left.shape) == len(right.shape) == rank:
        return False
    for weights, along, averaged, axis in (
        (left, rank - 1, right, rank - 2),
        (right, rank - 2, left, rank - 1),
    ):
        sums = _sums_to_one(lifter, weights)
        if sums is not None and sums.axis == along:
            return _emit(lifter, event, [weights], averaged, axis, may_be_masked=sums.or_to_zero)
    return False


def emit_attention(lifter: Lifter, event: Event) -> bool:
    """The whole of it in one op: query, key, value, and perhaps a mask."""
    a = Arguments(event)
    read = [
        part for name in ("query", "key", "attn_mask") if isinstance(part := a.get(name), Value)
    ]
    value, dropped = a["value"], a.number("dropout_p")
    if not isinstance(value, Value) or dropped or a.get("enable_gqa"):
        return False
    masked = a.get("attn_mask") is not None
    return _emit(lifter, event, read, value, len(value.shape) - 2, may_be_masked=masked)


def _emit(
    lifter: Lifter,
    event: Event,
    read: Sequence[Value],
    averaged: Value,
    axis: int,
    *,
    may_be_masked: bool,
) -> bool:
    made = event.outputs[0]
    if made is None or not is_floating(averaged):
        return False
    rests = [[*value.shape[:axis], *value.shape[axis + 1 :]] for value in (averaged, made)]
    if rests[0] != rests[1]:
        return False  # one matrix for a whole batch
    lifter.graph.pin(event.name, [lifter.tensor(value) for value in read])
    role = g.Mean((axis,), counts_zeros=may_be_masked)
    lifter.emit(event, role, [lifter.tensor(averaged)], outputs=event.outputs[:1])
    return True


# ------------------------------------------------------------------- weights that sum to 1


class _Sums(NamedTuple):
    """Numbers that sum to 1."""

    axis: int
    or_to_zero: bool
    """Or to 0, which is what is left of a row that is masked from end to end."""


def _sums_to_one(lifter: Lifter, weights: Value) -> _Sums | None:
    """Along which axis the numbers sum to 1, for all that is known."""
    moves: list[Event] = []
    while (event := _maker(lifter, weights)) is not None:
        name = functional(op_name(event.target))
        source = first_value(event)
        if source is None:
            return None
        if name in _SOFTMAX:
            start = Arguments(event).whole("dim") % max(1, len(source.shape))
            axis = _moved(lifter, start, moves)
            safe = name == "_safe_softmax" and _may_be_masked(lifter, source)
            return None if axis is None else _Sums(axis, safe)
        moves.append(event)
        weights = source
    return None


def _moved(lifter: Lifter, axis: int, moves: Sequence[Event]) -> int | None:
    """Where the axis lies in the end, if it is said of all sizes; the last move comes first."""
    for event in reversed(moves):
        places = places_of(event)
        place = None if places is None else places[axis]
        if place is None or moved_axis(axis) in lifter.open.get(event.number, ()):
            return None
        axis = place
    return axis


def _may_be_masked(lifter: Lifter, scores: Value) -> bool:
    """Whether the scores may be anything but a product of query and key."""
    while (event := _maker(lifter, scores)) is not None:
        name = functional(op_name(event.target))
        source = first_value(event)
        if name in ("bmm", "mm", "matmul"):
            return False
        numbers = not any(isinstance(argument, Value) for argument in event.args[1:])
        is_scaled = name in ("mul", "div") and numbers
        if source is None or not (is_scaled or places_of(event) is not None):
            return True
        scores = source
    return True


def _maker(lifter: Lifter, value: Value) -> Event | None:
    """The event that made a value, unless it is another one in other runs, or wrote in place."""
    event = lifter.makers.get(value.number)
    if event is None or event.written is not None:
        return None
    names = lifter.open.get(event.number, frozenset())
    others = {name for name in names - _SIZES if not name.startswith("axis ")}
    return None if others or (names and lifter.is_program) else event


_SIZES = frozenset({"size", "shape"})
"""What a module may give otherwise on other sizes: see `moved_axis`."""
_SOFTMAX = frozenset({"softmax", "_softmax", "_safe_softmax"})
