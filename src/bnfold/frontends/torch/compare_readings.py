"""Two readings of a module on inputs of different sizes, side by side.

They are alike if they are the same ops on the same values, in the same order, up to

    layout     clone, contiguous and their like: how memory is laid out depends on the size, too
    rests      pads, cuts, pools and resizings that one of the two alone makes (`if h % 2: pad`).
               Whatever law holds for such an op, it also holds for none at all

What differs then (numbers, constants, lengths of axes, whether an op is there) is noted in one of
the two, and nothing is built on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from bnfold.frontends.torch.lift_picks import adds_to_zeros
from bnfold.frontends.torch.moved_axes import RESHAPING, places_of
from bnfold.frontends.torch.open_lengths import OpenLengths, joined
from bnfold.frontends.torch.ops import functional, op_name
from bnfold.frontends.torch.recording import Const, Event, Recording, Value, leaves_of, values
from bnfold.frontends.torch.tensor_facts import is_equal

_LAYOUT = frozenset(("clone", "contiguous", "alias", "detach"))

_OPTIONAL: dict[str, frozenset[str]] = {
    "constant_pad_nd": frozenset({"pad"}),
    "slice": frozenset({"start", "end"}),
    "narrow": frozenset({"start", "length"}),
    **{
        f"{name}{rank}d{suffix}": frozenset({"kernel_size"})
        for rank in (1, 2, 3)
        for name, suffix in (
            *(("max_pool", ""), ("max_pool", "_with_indices"), ("avg_pool", "")),
            *(("adaptive_avg_pool", ""), ("_adaptive_avg_pool", ""), ("upsample_nearest", "")),
            *(("_upsample_nearest_exact", ""), ("upsample_linear", ""), ("upsample_bilinear", "")),
            *(("upsample_trilinear", ""), ("upsample_bicubic", "")),
            *(("reflection_pad", ""), ("replication_pad", "")),
        )
    },
}
"""Ops whose laws hold for a value that is left as it is as well, and what is open of them then."""


@dataclass(slots=True)
class Pairing:
    """Which event of one reading is which of the other."""

    pairs: list[tuple[Event, Event]] = field(default_factory=list)
    unpaired: tuple[list[Event], list[Event]] = field(default_factory=lambda: ([], []))
    """Events that only one of the two has."""

    @property
    def is_emptier(self) -> bool:
        """Whether the first has nothing where the second has something: it shows less."""
        return any(
            made is not None and other is not None and 0 in made.shape and 0 not in other.shape
            for event, twin in self.pairs
            for made, other in zip(event.outputs, twin.outputs, strict=False)
        )


def pair(first: Recording, second: Recording) -> Pairing | None:
    """How the two correspond; None where they are not alike."""
    pairing, match = Pairing(), _Match()
    steps = [
        _steps(reading, roots) for reading, roots in zip((first, second), match.roots, strict=True)
    ]
    if not match.all(_values(first.inputs), _values(second.inputs)):
        return None
    positions = [0, 0]
    while any(position < len(events) for position, events in zip(positions, steps, strict=True)):
        nexts = [
            events[i] if i < len(events) else None
            for events, i in zip(steps, positions, strict=True)
        ]
        if match.events(*nexts):
            pairing.pairs.append((steps[0][positions[0]], steps[1][positions[1]]))
            positions = [position + 1 for position in positions]
            continue
        side = next((side for side, event in enumerate(nexts) if _is_optional(event)), None)
        if side is None:
            return None
        event = steps[side][positions[side]]
        pairing.unpaired[side].append(event)
        match.skip(event, side)
        positions[side] += 1
    if not match.all(_values(first.outputs), _values(second.outputs)):
        return None
    return pairing


def note_differences(recording: Recording, pairing: Pairing, *, side: int) -> None:
    """Call open what differs from the other reading; `side` says which of the two this one is."""
    roots: dict[int, int] = {}
    _steps(recording, roots)
    lengths = OpenLengths(roots)
    both = {pair[side].number: (pair[side], pair[1 - side]) for pair in pairing.pairs}
    alone = {event.number: (event, None) for event in pairing.unpaired[side]}
    for _, (event, twin) in sorted((both | alone).items()):
        names = (
            _OPTIONAL[functional(op_name(event.target))] if twin is None else _other(event, twin)
        )
        if names:
            _open(recording, event, names)
        for place, axes in lengths.of(event, twin):
            known = recording.open_axes.get((event.number, place), {})
            recording.open_axes[event.number, place] = joined(known, axes)


def _other(event: Event, twin: Event) -> frozenset[str]:
    """What differs between an event and its twin."""
    names = frozenset(name for name, a, b in _arguments(event, twin) if _differs(a, b))
    if adds_to_zeros(event) and adds_to_zeros(twin):
        names -= {"self"}  # as many as there is room for
    if not names:
        return names
    lie = zip(places_of(event) or (), places_of(twin) or (), strict=False)
    return names | {moved_axis(axis) for axis, (a, b) in enumerate(lie) if a != b}


def moved_axis(axis: int) -> str:
    """What is noted among an op's open arguments if this axis lies elsewhere on other sizes."""
    return f"axis {axis}"


def _open(recording: Recording, event: Event, names: frozenset[str]) -> None:
    known = recording.open_arguments.get(event.number, frozenset())
    recording.open_arguments[event.number] = known | names


def _values(named: Sequence[tuple[Value, str]]) -> list[Value]:
    return [value for value, _ in named]


def _steps(recording: Recording, roots: dict[int, int]) -> list[Event]:
    """The events without those that only lay out memory anew; these make what they are given."""
    steps = []
    for event in recording.events:
        made = event.outputs[0] if event.outputs else None
        source = event.args[0] if event.args else None
        if isinstance(source, Value) and made is not None and _lays_out(event, source, made):
            roots[made.number] = roots.get(source.number, source.number)
        else:
            steps.append(event)
    return steps


def _lays_out(event: Event, source: Value, made: Value) -> bool:
    """Whether an event does no more than to lay out memory anew."""
    name = functional(op_name(event.target))
    alike = (source.dtype, source.device) == (made.dtype, made.device)
    return event.written is None and (name in _LAYOUT or (name == "_to_copy" and alike))


def _is_optional(event: Event | None) -> bool:
    if event is None or isinstance(event.target, nn.Module) or event.written is not None:
        return False
    if functional(op_name(event.target)) not in _OPTIONAL:
        return False
    return len(list(values(event.args, event.kwargs))) == 1


@dataclass(slots=True)
class _Match:
    """Which value of the first reading is which of the second."""

    roots: tuple[dict[int, int], dict[int, int]] = field(default_factory=lambda: ({}, {}))
    """Values that are another value over again, on either side."""
    seconds: dict[int, int] = field(default_factory=dict)
    """Per value of the first reading, that of the second."""
    firsts: dict[int, int] = field(default_factory=dict)
    """The other way round."""

    def skip(self, event: Event, side: int) -> None:
        """The event makes what it is given, for all that the other reading knows."""
        (source,) = values(event.args, event.kwargs)
        roots, made = self.roots[side], event.outputs[0]
        assert made is not None
        roots[made.number] = roots.get(source.number, source.number)

    def value(self, a: Value, b: Value) -> bool:
        """Whether these may be one value; if so, they are from now on."""
        first = self.roots[0].get(a.number, a.number)
        second = self.roots[1].get(b.number, b.number)
        return (
            self.seconds.setdefault(first, second) == second
            and self.firsts.setdefault(second, first) == first
        )

    def may_be(self, a: Value, b: Value) -> bool:
        """The same without noting it."""
        first = self.roots[0].get(a.number, a.number)
        second = self.roots[1].get(b.number, b.number)
        return self.seconds.get(first, second) == second and self.firsts.get(second, first) == first

    def all(self, first: Sequence[Value], second: Sequence[Value]) -> bool:
        """Whether these are the same values, one by one."""
        return len(first) == len(second) and all(map(self.value, first, second))

    def events(self, a: Event | None, b: Event | None) -> bool:
        """Whether this is one op on the same values."""
        if a is None or b is None or _target(a) != _target(b) or a.call.name != b.call.name:
            return False
        if len(a.outputs) != len(b.outputs) or a.kwargs.keys() != b.kwargs.keys():
            return False
        taken = [list(values(event.args, event.kwargs)) for event in (a, b)]
        if len(taken[0]) != len(taken[1]) or not all(map(self.may_be, *taken)):
            return False
        made = [[value for value in event.outputs if value is not None] for event in (a, b)]
        return self.all(*taken) and self.all(*made)


def _target(event: Event) -> Any:
    reshapes = functional(op_name(event.target)) in RESHAPING
    return "reshape" if reshapes else event.target


def _arguments(first: Event, second: Event) -> Iterator[tuple[str, Any, Any]]:
    """The arguments of two events of one op, side by side, by their names."""
    schema = getattr(first.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    for position in range(max(len(first.args), len(second.args))):
        name = names[position] if position < len(names) else str(position)
        a, b = (
            event.args[position] if position < len(event.args) else None
            for event in (first, second)
        )
        yield name, a, b
    for name in first.kwargs:
        yield name, first.kwargs[name], second.kwargs[name]


def _differs(first: Any, second: Any) -> bool:
    """Whether an argument is another one; of values, which differ always, only what they are."""
    left, right = leaves_of(first), leaves_of(second)
    return len(left) != len(right) or any(
        _leaf_differs(a, b) for a, b in zip(left, right, strict=True)
    )


def _leaf_differs(first: Any, second: Any) -> bool:
    if isinstance(first, Value) or isinstance(second, Value):
        return type(first) is not type(second)
    if isinstance(first, Const) and isinstance(second, Const):
        return not is_equal(first.tensor, second.tensor)
    return type(first) is not type(second) or first != second
