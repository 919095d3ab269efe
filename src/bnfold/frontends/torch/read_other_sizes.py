"""Read a module on other sizes where those of the example do not tell all.

In a module, the length of an axis and a number that is computed from it are what they are on the
example. Two things depend on them:

    channels   a reshape, or a concatenation along the height, may make the channel of an element
               depend on them
    the code   it may ask for a size, and take another path for another one (see `sizes_asked`)

Then the module is read on other sizes, as many as it takes; where the code asks for a layout, or
writes to what is a copy in some layouts, on the inputs in channels_last and contiguous. Readings
that are alike are one (see `compare_readings`): axes that have other lengths there are open, and so
are numbers that differ, as in an exported program with dynamic shapes (see `symbolic`). Of those
that are not, all are read as one, as for `also`: what is decided then holds on each. A network that
does none of this is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bnfold.core import graph as g
from bnfold.core.forest import IntArray
from bnfold.core.labels import repeat_along_an_axis, vary_off_the_channels
from bnfold.core.laws import bind
from bnfold.errors import ExampleInputError
from bnfold.frontends.torch import resizing
from bnfold.frontends.torch.compare_readings import Pairing, note_differences, pair
from bnfold.frontends.torch.handed_back import are_written_to
from bnfold.frontends.torch.leaf_modules import CLIPS
from bnfold.frontends.torch.lift import lift
from bnfold.frontends.torch.lift_views import MIXING
from bnfold.frontends.torch.open_lengths import joined
from bnfold.frontends.torch.ops import Arguments, UnfitError, functional, op_name
from bnfold.frontends.torch.read import read_module
from bnfold.frontends.torch.recording import (
    Event,
    Further,
    Recording,
    Value,
    constants,
    values,
)
from bnfold.frontends.torch.sizes_asked import Rule, Turn

_TURNS = 12
"""How many answers are made to turn, that were the same on all sizes so far."""
_SAME_LINE = 2
"""How many more, of lines of the code that had the other answer in another call."""
_TRIES = 6
"""On so many sizes, at most."""
_INPUTS = 4
"""How many of several inputs get sizes of their own."""
_PATHS = 6
"""How many paths are read as one, at most: time grows with them."""


def read_as_needed(model: nn.Module, runs: Sequence[Any], *, is_merged: bool = False) -> Recording:
    """What the module does, on the example inputs and where they do not tell all, on others.

    A module in which ops were merged is read as it was before, whatever is left to do.

    Raises what `read_module` raises for the example inputs.
    """
    first = read_module(model, runs)
    counts = not first.asked.sizes and any(map(_cuts_by_size, first.events))
    asked = first.asked.sizes or counts
    lies = first.asked.layout or are_written_to(first)
    has_asked = (asked or lies) and (is_merged or _has_work(first))
    sizes, layout = has_asked and asked, has_asked and lies
    mixes = not sizes and _may_mix(first)
    if not sizes and not layout and not mixes:
        return first
    readings = Readings(model, runs, first)
    if sizes or mixes:
        readings.explore(decided=sizes and (first.asked.decided or counts))
    if layout:
        readings.read_laid_out()
    return readings.joined()


@dataclass(slots=True)
class Path:
    """A way through the code, and the inputs on which it was taken."""

    runs: list[Any]
    recording: Recording


class Readings:
    """What a module does on inputs of several sizes."""

    def __init__(self, model: nn.Module, runs: Sequence[Any], first: Recording) -> None:
        self.model = model
        self.runs = list(runs)
        self.first = first
        self.paths = [Path(self.runs, first)]
        self.tried = [resizing.shapes(runs)]
        """Sizes that the module was read on, or refused."""
        self.has_unpaired = False
        """Whether an op is there on some sizes alone."""
        self.further: list[Further] = []
        """What the module takes besides."""
        self.is_other = False
        """Whether the last reading, if there was one, went another way."""
        self.answers = [first.asked.answers]
        """What its code has been told of sizes so far, reading by reading."""
        self.asked = [(self.runs, first.asked.turns)]
        """What it asked, to be answered with yes or no, and on which inputs."""
        self.turned: set[Any] = set()
        """Places in the code of which another answer was tried to be had."""

    def explore(self, *, decided: bool) -> None:
        """Read the module on other sizes; on more of them where its code decides by sizes."""
        axes = resizing.open_axes(self.runs)
        self.read_any(axes, resizing.half)
        if not self.read(axes, resizing.uneven(axes)):  # H - W is 0 for all squares
            self.read_any(axes, resizing.under)
        if not decided:
            return
        mixed = [self.read_any(axes, rule) for rule in resizing.oblong(axes)]
        if not all(mixed):
            self.read_any(axes, resizing.over)
        self.read(axes, resizing.even)
        self.turn_all()
        for axis in axes if self.differ else ():  # which one it is that decides
            self.read([axis], resizing.under)
        for place in range(min(resizing.count(self.runs), _INPUTS)):  # one input beside the others
            self.read_any(axes, resizing.half, only=place)

    def turn_all(self) -> None:
        """Read it where questions have an answer that they did not have so far.

        First those of which the line had one alone. A line that several calls come through, and
        that had both, is likely to have no more to show in a third of them.
        """
        for most, line in ((_TURNS, slice(2)), (_SAME_LINE, slice(3))):
            for _ in range(most):
                if not self.turn_one(line):
                    break

    def turn_one(self, line: slice) -> bool:
        """Whether there was a question left; `line` is what of its place counts."""
        given: dict[Any, set[bool]] = {}
        for _, turns in self.asked:
            for turn in turns:
                given.setdefault(turn.place[line], set()).add(turn.given)
        for runs, turns in self.asked:
            for number, turn in enumerate(turns):
                if len(given[turn.place[line]]) == 1 and turn.place not in self.turned:
                    self.turned.add(turn.place)
                    if self.turn(runs, turns[:number], turn):
                        return True
        return False

    def turn(self, runs: list[Any], before: Sequence[Turn], turn: Turn) -> bool:
        """Whether it could be tried on sizes where this answer should be another one."""
        is_tried = False
        for change in resizing.turning(turn, before, runs)[:_TRIES]:
            self.read(change.axes, change.rule, runs=runs)
            is_tried = True
            if self.is_other:
                break
        return is_tried

    @property
    def differ(self) -> bool:
        """Whether other sizes take other paths."""
        return len(self.paths) > 1 or self.has_unpaired

    def read_any(self, axes: Sequence[int], rule: Rule, *, only: int | None = None) -> bool:
        """A reading with all axes changed, or if the module does not take that, one by one."""
        if self.read(axes, rule, only=only):
            return True
        each = [self.read([axis], rule, only=only) for axis in (axes if len(axes) > 1 else ())]
        return any(each)

    def read(
        self,
        axes: Sequence[int],
        rule: Rule,
        *,
        only: int | None = None,
        runs: list[Any] | None = None,
    ) -> bool:
        """Whether the module takes inputs with these axes changed; if so, it was read on them.

        `only`: which of several inputs is changed; `runs`: what is changed, if not what was given.
        """
        self.is_other = False
        runs = resizing.resized(runs or self.runs, axes, rule, only=only)
        if runs is None or (sizes := resizing.shapes(runs)) in self.tried:
            return True
        self.tried.append(sizes)
        try:
            recording = read_module(self.model, runs, like=self.first)
        except ExampleInputError:
            return False
        self.note(Path(runs, recording))
        return True

    def read_laid_out(self) -> None:
        """Readings of the same inputs in other memory layouts."""
        for runs in resizing.laid_out(self.runs):
            try:
                recording = read_module(self.model, runs, like=self.first)
            except ExampleInputError:  # view() takes contiguous memory alone
                continue
            self.note(Path(runs, recording), is_other=True)

    def note(self, reading: Path, *, is_other: bool = False) -> None:
        """Another reading, and whether its code went another way, as far as it was heard."""
        recording = reading.recording
        is_other |= recording.asked.answers not in self.answers or not recording.is_structural
        self.answers.append(recording.asked.answers)
        self.asked.append((reading.runs, recording.asked.turns))
        is_new = self.add(Path(reading.runs, recording))
        self.is_other = is_other or is_new
        self.further.append(Further(reading.runs, self.is_other))

    def add(self, reading: Path) -> bool:
        """Note what this reading has that the others do not; whether it is another path."""
        for path in self.paths:
            pairing = pair(path.recording, reading.recording)
            if pairing is None or all(pairing.unpaired):
                continue
            if pairing.unpaired[1]:  # the longer one stands for both
                reading.recording = read_module(self.model, reading.runs)
                pairing = pair(path.recording, reading.recording)
                if pairing is None or pairing.unpaired[0]:
                    continue
                note_differences(reading.recording, pairing, side=1)
                _carry_notes(path.recording, reading.recording, pairing)
                path.runs, path.recording = reading.runs, reading.recording
                self.has_unpaired = True
                return True
            note_differences(path.recording, pairing, side=0)
            path.recording.varying.update(
                event.number
                for event, twin in pairing.pairs
                if twin.number in reading.recording.varying
            )
            self.has_unpaired |= bool(pairing.unpaired[0])
            return bool(pairing.unpaired[0])
        if len(self.paths) < _PATHS:
            self.paths.append(reading)
        return True

    def joined(self) -> Recording:
        """All readings as one."""
        if len(self.paths) == 1:
            recording = self.paths[0].recording
        else:
            given = len(self.paths[0].runs)
            runs = [run for path in self.paths for run in path.runs]
            recording = read_module(self.model, runs, given=given)
            _place_notes(recording, [path.recording for path in self.paths])
        recording.further = self.further
        recording.rounds = self.first.rounds
        return recording


def _carry_notes(old: Recording, new: Recording, pairing: Pairing) -> None:
    """What was noted of the first reading's events, of the second's."""
    for event, twin in pairing.pairs:
        _copy_notes(old, event.number, new, twin.number, len(event.outputs))


def _copy_notes(old: Recording, number: int, new: Recording, new_number: int, outputs: int) -> None:
    none: frozenset[str] = frozenset()
    if number in old.varying:
        new.varying.add(new_number)
    names = old.open_arguments.get(number, none) | new.open_arguments.get(new_number, none)
    if names:
        new.open_arguments[new_number] = names
    for position in range(outputs):
        known = old.open_axes.get((number, position))
        if known is not None:
            place = (new_number, position)
            new.open_axes[place] = joined(known, new.open_axes.get(place, {}))


def _place_notes(whole: Recording, parts: Sequence[Recording]) -> None:
    """Take over what was noted of the readings that this one consists of, one after the other."""
    before = 0
    whole.given = len(parts[0].events)
    for part in parts:
        for event in part.events:
            number = before + event.number
            _copy_notes(part, event.number, whole, number, len(event.outputs))
        before += len(part.events)
    if before != len(whole.events):  # what one run leaves changes the next
        whole.varying.update(event.number for event in whole.events)


def _has_work(recording: Recording) -> bool:
    """Whether there is anything to fold, or to merge."""
    graph = lift(recording).graph
    linear = sum(isinstance(op.role, g.Linear | g.Mean) for op in graph.ops)
    return linear > 1 or bool(graph.affine_groups())


# -------------------------------------------------------------------- channels along other axes


def _may_mix(recording: Recording) -> bool:
    """Whether an axis may hold channels beside something that has other lengths elsewhere."""
    made = [event.outputs[0] for event in recording.events if _mixes(event)]
    clips = _clipped(recording) if _computes_constants(recording) else []
    if not made and not clips:
        return False
    readers: dict[int, list[Any]] = {}
    for event in recording.events:
        for value in values(event.args, event.kwargs):
            readers.setdefault(value.number, []).append(event.target)
    returned = {value.number for value, _ in recording.outputs}
    open_ended = [value for value in made if value and not _is_fixed(value, readers, returned)]
    if not open_ended and not clips:
        return False
    lifted = lift(recording)
    labels = bind(lifted.graph).labels

    def any_of(candidates: Sequence[Value], test: Callable[[IntArray], bool]) -> bool:
        return any(
            test(labels[lifted.tensors[value.number]])
            for value in candidates
            if value.number in lifted.tensors
        )

    return any_of(open_ended, repeat_along_an_axis) or any_of(clips, vary_off_the_channels)


def _computes_constants(recording: Recording) -> bool:
    """Whether functions take constants that code made, as long as an axis may be.

    gamma.repeat(n), a slice of a weight, linspace(0, 1, w): these bring channels along any axis.
    """
    return any(
        constant.tensor.numel() > 1
        and (constant.is_shaped_by_code or id(constant.origin) not in recording.owned)
        for event in recording.events
        if not isinstance(event.target, nn.Module)
        for constant in constants(event.args, event.kwargs)
    )


def _clipped(recording: Recording) -> list[Value]:
    """What modules made that can be given bounds: an array of them has one size."""
    return [
        value
        for event in recording.events
        if isinstance(event.target, CLIPS)
        for value in event.outputs
        if value is not None
    ]


def _cuts_by_size(event: Event) -> bool:
    """Whether the length of an axis, other than that of channels, says how many parts there are."""
    if isinstance(event.target, nn.Module):
        return False
    source = event.args[0] if event.args else None
    if functional(op_name(event.target)) not in ("split", "unbind") or not isinstance(
        source, Value
    ):
        return False
    try:
        axis = Arguments(event).get("dim") or 0
    except UnfitError:
        return True
    rank = len(source.shape)
    return not isinstance(axis, int) or rank < 4 or axis % rank != 1


def _mixes(event: Event) -> bool:
    if isinstance(event.target, nn.Module) or not event.outputs:
        return False
    name, output = functional(op_name(event.target)), event.outputs[0]
    if name not in MIXING or output is None:
        return False
    if name in ("cat", "concat", "concatenate"):
        # Images, concatenated along their channels.
        axis = event.args[1] if len(event.args) > 1 else 0
        return len(output.shape) < 4 or axis % len(output.shape) != 1
    return True


def _is_fixed(value: Value, readers: dict[int, list[Any]], returned: set[int]) -> bool:
    """Whether nothing reads it but Linears, whose weights have but one size."""
    if value.number in returned or len(value.shape) != 2:
        return False
    return all(isinstance(target, nn.Linear) for target in readers.get(value.number, ()))
