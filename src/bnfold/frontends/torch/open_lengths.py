"""Which axes have other lengths in another reading, and what lies along them all the same.

Along such an axis all entries are stored alike, or what is stored comes again after some entries,
as where a batch of images and their heads share an axis: see `axes.periods`. That is followed
through ops that move whole axes and through reshapes; what other ops make of it has a period that
is not known, and before anything else moves its parts, they are stored alike (`Lifter.emit`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bnfold.core.axes import UNKNOWN, periods
from bnfold.frontends.torch.moved_axes import RESHAPING, places_of
from bnfold.frontends.torch.ops import functional, op_name
from bnfold.frontends.torch.recording import Event, Value, values

Axes = dict[int, int]
"""Axes of which something is asked, those that have other lengths elsewhere among them, each with
its period; of what is alike that is 1."""


def joined(first: Mapping[int, int], second: Mapping[int, int]) -> Axes:
    """The axes of both; where they do not agree on a period, all entries are to be alike."""
    return {
        axis: each.pop() if len(each) == 1 else 1
        for axis in sorted({*first, *second})
        for each in ({known[axis] for known in (first, second) if axis in known},)
    }


@dataclass(slots=True)
class OpenLengths:
    """What is known of the values of one reading, beside another one."""

    roots: Mapping[int, int]
    """Per number of a value that only lies otherwise in memory, the value that it is."""
    known: dict[int, Axes] = field(default_factory=dict)
    """Per value number."""

    def of(self, event: Event, twin: Event | None) -> Iterator[tuple[int, Axes]]:
        """The outputs with such axes, by their places; the events have to come in their order.

        An event without a twin is a pad, a cut or a pooling that the other reading does not have.
        """
        for place, made in enumerate(event.outputs):
            other = made if twin is None else twin.outputs[place]
            if made is None or other is None or len(made.shape) != len(other.shape):
                continue
            if twin is None:
                axes = dict.fromkeys(
                    range(len(made.shape)) if self._repeats(event) else (), UNKNOWN
                )
            else:
                axes = self._periods(event, twin, _differing(made.shape, other.shape))
            if axes:
                self.known[made.number] = axes
                yield place, axes

    def _periods(self, event: Event, twin: Event, opened: set[int]) -> Axes:
        places = places_of(event)
        source, other = (either.args[0] if either.args else None for either in (event, twin))
        if places is None or not isinstance(source, Value) or not isinstance(other, Value):
            return dict.fromkeys(opened, UNKNOWN if self._repeats(event) else 1)
        if len(source.shape) != len(other.shape):
            return dict.fromkeys(opened, 1)
        known = self._known(source)
        repeats = {a: known.get(a, 1) for a in _differing(source.shape, other.shape)}
        if functional(op_name(event.target)) in RESHAPING:
            # An axis of one entry may belong to any other; if it has more here, that says where.
            said = [e for e in (event, twin) if not _is_one_long(e, repeats, opened)]
            first, *others = [_reshaped(e, repeats, opened) for e in said or (event, twin)]
            return joined(first, others[0]) if others else first
        moved = {place: repeats.get(axis, 1) for axis, place in enumerate(places)}
        return {axis: moved.get(axis, 1) for axis in opened}

    def _repeats(self, event: Event) -> bool:
        """Whether something that the event takes may not be alike along such an axis."""
        sources = values(event.args, event.kwargs)
        return any(period != 1 for value in sources for period in self._known(value).values())

    def _known(self, value: Value) -> Axes:
        return self.known.get(self.roots.get(value.number, value.number), {})


def _is_one_long(event: Event, repeats: Axes, opened: set[int]) -> bool:
    source, made = event.args[0], event.outputs[0]
    assert isinstance(source, Value) and made is not None
    lengths = [source.shape[axis] for axis in repeats] + [made.shape[axis] for axis in opened]
    return 1 in lengths


def _reshaped(event: Event, repeats: Axes, opened: set[int]) -> Axes:
    source, made = event.args[0], event.outputs[0]
    assert isinstance(source, Value) and made is not None
    return periods(source.shape, made.shape, repeats, opened)


def _differing(shape: Sequence[int], other: Sequence[int]) -> set[int]:
    """The axes of another length."""
    return {axis for axis, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b}
