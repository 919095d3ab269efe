"""Read a module on other sizes where those of the example do not tell all.

In a module, the length of an axis and a number that is computed from it are what they are on the
example. The channel of an element may depend on them, and how much of a tensor a cut leaves (see
`hidden_sizes`); and the code may ask for a size, and take another path for another one (see
`sizes_asked`).

Then the module is read on other sizes, as many as it takes; where the code asks for a layout, or
writes to what is a copy in some layouts, on the inputs in channels_last and contiguous. Readings
that are alike are one (see `compare_readings`): axes that have other lengths there are open, and so
are numbers that differ, as in an exported program with dynamic shapes (see `symbolic`). Of those
that are not, all are read as one, as for `also`: what is decided then holds on each. A network that
does none of this is read once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from bnfold.core import graph as g
from bnfold.errors import ExampleInputError, UnsupportedModelError
from bnfold.frontends.torch import resizing
from bnfold.frontends.torch.code_names import may_catch, names_used, tensors_held
from bnfold.frontends.torch.compare_readings import Pairing, note_differences, pair
from bnfold.frontends.torch.entries import as_entry
from bnfold.frontends.torch.handed_back import are_written_to
from bnfold.frontends.torch.hidden_sizes import cuts_by_size, may_mix, suggested, turns_of
from bnfold.frontends.torch.known_numbers import held_in_buffers
from bnfold.frontends.torch.lift import lift
from bnfold.frontends.torch.modes import modes_asked
from bnfold.frontends.torch.open_lengths import joined
from bnfold.frontends.torch.read import read_module
from bnfold.frontends.torch.recording import (
    Further,
    Recording,
)
from bnfold.frontends.torch.restorable import Restorable
from bnfold.frontends.torch.surroundings import Surroundings
from bnfold.frontends.torch.tensor_facts import is_ordinary
from bnfold.frontends.torch.told_numbers import Rule, Turn

_TURNS = 12
"""How many answers are made to turn, that were the same on all sizes so far."""
_SAME_LINE, _SAME_LINE_IF_SMALL, _SMALL = 2, 8, 100
"""How many more, of lines of the code that had the other answer in another call; and where there
are so few ops that a reading costs nothing."""
_GUESSES = 3
"""How many numbers are tried of which no question was heard."""
_TRIES, _TRIES_OF_A_GUESS = 6, 2
"""On so many sizes, at most."""
_NAMES = 6
"""How many keys are tried, and sizes that are one."""
_MOST_TIMES = 16
_MOST_ELEMENTS = 1 << 20
"""Of an input that is tried on a guess."""
_INPUTS = 4
"""How many of several inputs get sizes of their own."""
_PATHS = 6
"""How many paths are read as one, at most: time grows with them."""


def read_as_needed(
    model: nn.Module,
    runs: Sequence[Any],
    *,
    is_merged: bool = False,
    surroundings: Restorable | None = None,
) -> Recording:
    """What the module does, on the example inputs and where they do not tell all, on others.

    A module in which ops were merged is read as it was before, whatever is left to do.

    Raises what `read_module` raises for the example inputs.
    """
    surroundings = surroundings or Surroundings(model)
    first = read_module(model, runs, surroundings=surroundings)
    counts = not first.asked.sizes and any(map(cuts_by_size, first.events))
    catches = may_catch(model.modules())
    asked = first.asked.sizes or counts or catches or bool(_cuts(first, runs))
    lies = first.asked.layout or catches or are_written_to(first)
    modes = modes_asked(names_used(model.modules()))
    has_asked = bool(asked or lies or modes) and (is_merged or _has_work(first))
    sizes, layout = has_asked and asked, has_asked and lies
    mixes = not sizes and may_mix(first)
    if not has_asked and not mixes:
        return first
    readings = Readings(model, runs, first, surroundings)
    for mode in modes if has_asked else ():
        readings.read_in(mode)
    if sizes or mixes:
        readings.explore(decided=sizes and (first.asked.decided or counts or catches))
    if catches and sizes:
        readings.fit(tensors_held(model.modules()))
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

    def __init__(
        self,
        model: nn.Module,
        runs: Sequence[Any],
        first: Recording,
        surroundings: Restorable,
    ) -> None:
        self.model = model
        self._read = partial(read_module, model, surroundings=surroundings)
        self.runs = list(runs)
        self.first = first
        self.paths = [Path(self.runs, first)]
        self.tried = [resizing.shapes(runs)]
        """Sizes that the module was read on, or refused."""
        self.takes_others = False
        """Whether the module was read on any other size than that of the batch."""
        self.has_unpaired = False
        """Whether an op is there on some sizes alone."""
        self.further: list[Further] = []
        """What the module takes besides."""
        self.is_other = False
        """Whether the last reading, if there was one, went another way."""
        self.answers = [first.asked.answers]
        """What its code has been told of sizes so far, reading by reading."""
        self.asked = [(self.runs, [*first.asked.turns, *_cuts(first, runs)])]
        """What it asked, to be answered with yes or no, and on which inputs."""
        self.turned: dict[Any, int] = {}
        """Places in the code, and of how many answers another one was tried to be had."""

    def explore(self, *, decided: bool) -> None:
        """Read the module on other sizes; on more of them where its code decides by sizes."""
        axes = resizing.open_axes(self.runs)
        self.read_any(axes, resizing.half)
        if not self.read(axes, resizing.uneven(axes)):  # H - W is 0 for all squares
            self.read_any(axes, resizing.under)
        if not decided:
            self.turn_all()
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
        """Read it where what it was told is something else than it was so far.

        First what a line of the code was always told alike. A line that several calls come through,
        and that was told both, is likely to have no more to show in a third of them. Last what no
        question shows, and numbers in the code that asks suggest.
        """
        self._turn(_TURNS, slice(2))
        small = len(self.first.events) < _SMALL
        self._turn(_SAME_LINE_IF_SMALL if small else _SAME_LINE, slice(3))
        if self.takes_others:
            self._look_for_names()
        self._turn(_GUESSES, slice(2), guess=True)
        if self.takes_others:
            self._go_beyond()

    def _go_beyond(self) -> None:
        """Read it on larger inputs than the numbers that the code knows."""
        reached = max((_longest(resizing.shapes(runs)) for runs, _ in self.asked), default=0)
        longest = _longest([_shape_of(self.runs)])
        modules = list(self.model.modules())
        numbers = held_in_buffers(modules, names_used(modules)) if self.first.asked.known else set()
        numbers = numbers.union(*(known.numbers for known in self.first.asked.known.values()))
        images = [axis for axis in resizing.open_axes(self.runs) if axis]
        most = max(_MOST_ELEMENTS, 2 * resizing.elements(self.runs))
        for length in suggested(numbers, longest, reached):
            if math.prod(_shape_of(self.runs)) * (length / longest) ** 2 <= most:
                self.read_any(images, resizing.scaled(length, longest))

    def fit(self, tensors: Iterable[Tensor]) -> None:
        """Read it where what it holds fits, and does not: code may catch what PyTorch raises."""
        given = _shape_of(self.runs)
        shapes = {tuple(tensor.shape) for tensor in tensors if is_ordinary(tensor)}
        lengths = [shape for shape in shapes if len(shape) <= len(given)]
        for shape in sorted(lengths, key=partial(_distance, given))[:_NAMES]:
            before = len(given) - len(shape)
            open_ = resizing.open_axes(self.runs)
            axes = [axis for axis in open_ if axis >= before and shape[axis - before] > 1]
            if axes and max(shape) <= _MOST_TIMES * max(given):
                self.read(axes, resizing.named(shape, before))

    def _look_for_names(self) -> None:
        """Read it where a length is a key that the code has, or the sizes are one."""
        given = _shape_of(self.runs)
        for turn in self.first.asked.names[:_NAMES]:
            self.turn(self.runs, (), turn, {turn.given})
        for shape in sorted(self.first.asked.shapes, key=partial(_distance, given))[:_NAMES]:
            before = len(given) - len(shape)
            if before >= 0 and max(shape) <= _MOST_TIMES * max(given):
                axes = [axis for axis in resizing.open_axes(self.runs) if axis >= before]
                self.read(axes, resizing.named(shape, before))

    def _turn(self, most: int, line: slice, *, guess: bool = False) -> None:
        for _ in range(most):
            if not self.turn_one(line, guess=guess):
                break

    def turn_one(self, line: slice, *, guess: bool) -> bool:
        """Whether there was something left; `line` is what of its place counts."""
        told: dict[Any, set[Any]] = {}
        for _, turns in self.asked:
            for turn in turns:
                told.setdefault(turn.place[line], set()).add(turn.given)
        for runs, turns in self.asked:
            for number, turn in enumerate(turns):
                seen = told[turn.place[line]]
                is_told_both = isinstance(turn.given, bool) and len(seen) > 1
                is_done = is_told_both or len(seen) <= self.turned.get(turn.place, 0)
                if is_done or turn.is_guess is not guess:
                    continue
                self.turned[turn.place] = len(seen)
                if self.turn(runs, turns[:number], turn, seen):
                    return True
        return False

    def turn(self, runs: list[Any], before: Sequence[Turn], turn: Turn, seen: set[Any]) -> bool:
        """Whether it could be tried on sizes where the code should be told something else."""
        is_tried = False
        tries = _TRIES_OF_A_GUESS if turn.is_guess else _TRIES
        for change in resizing.turning(turn, seen, before, runs)[:tries]:
            self.read(change.axes, change.rule, only=change.only, runs=runs)
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
            recording = self._read(runs, like=self.first)
        except ExampleInputError:
            return False
        own = self.tried[0]
        self.takes_others |= any(a[1:] != b[1:] for a, b in zip(sizes, own, strict=True))
        self.note(Path(runs, recording))
        return True

    def read_laid_out(self) -> None:
        """Readings of the same inputs in other memory layouts."""
        for runs in resizing.laid_out(self.runs):
            try:
                recording = self._read(runs, like=self.first)
            except ExampleInputError:  # view() takes contiguous memory alone
                continue
            self.note(Path(runs, recording), is_other=True)

    def read_in(self, mode: str) -> None:
        """A reading of the same inputs while PyTorch says that it is doing something else."""
        runs = [replace(as_entry(run), mode=mode) for run in self.runs]
        try:
            recording = self._read(runs, like=self.first)
        except ExampleInputError:
            return
        self.note(Path(runs, recording))

    def note(self, reading: Path, *, is_other: bool = False) -> None:
        """Another reading, and whether its code went another way, as far as it was heard."""
        recording = reading.recording
        self.first.handed_out |= recording.handed_out
        is_other |= recording.asked.answers not in self.answers or not recording.is_told
        self.answers.append(recording.asked.answers)
        cuts = _cuts(recording, reading.runs)
        self.asked.append((reading.runs, [*recording.asked.turns, *cuts]))
        is_new = self.add(Path(reading.runs, recording))
        self.is_other = is_other or is_new
        self.further.append(Further(reading.runs, self.is_other))

    def add(self, reading: Path) -> bool:
        """Note what this reading has that the others do not; whether it is another path."""
        for path in self.paths:
            pairing = pair(path.recording, reading.recording)
            if pairing is None or all(pairing.unpaired):
                continue
            if pairing.unpaired[1] or pairing.is_emptier:  # the longer one stands for both
                reading.recording = self._read(reading.runs)
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
            try:
                recording = self._read(runs, given=given)
            except ExampleInputError as error:  # each of them alone was taken
                raise _not_in_turn(self.model, error) from error.cause
            _place_notes(recording, [path.recording for path in self.paths])
        recording.handed_out |= self.first.handed_out
        recording.further = self.further
        recording.rounds = self.first.rounds
        return recording


def _not_in_turn(model: nn.Module, error: ExampleInputError) -> UnsupportedModelError:
    cause = f"{type(error.cause).__name__}: {error.cause}"
    return UnsupportedModelError(
        f"{type(model).__name__} takes other paths on inputs of other sizes, and run on one size"
        f" after the other it raised {cause}",
        "let what a run leaves for the next one fit every size, or fold the exported program",
    )


def _longest(shapes: Sequence[Sequence[int]]) -> int:
    """The longest side of these images, or of what has no sides."""
    return max((length for shape in shapes for length in shape[2:] or shape), default=0)


def _distance(given: Sequence[int], shape: Sequence[int]) -> float:
    """How many times as large, or as small, sizes are."""
    size = max(math.prod(shape), 1)
    return abs(math.log(size / max(math.prod(given[-len(shape) :]), 1)))


def _cuts(recording: Recording, runs: Sequence[Any]) -> list[Turn]:
    """Cuts of which there is more on larger inputs."""
    return turns_of(recording, _shape_of(runs))


def _shape_of(runs: Sequence[Any]) -> tuple[int, ...]:
    """The shape of the input, or of that with most axes."""
    return max(resizing.shapes(runs), key=len, default=())


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
