"""What depends on sizes in a module whose code asks for none.

channels   a reshape, a concatenation along the height or a write into a part may make the
           channel of an element depend on lengths, or an array of bounds fit one size alone
cuts       `y[:, :, 20:]` is empty on small images, `y[:, :, :20]` all of it, and `split(20)` one
           part: what a reading shows of them there is not all
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from bnfold.core.forest import IntArray
from bnfold.core.labels import repeat_along_an_axis, vary_off_the_channels
from bnfold.core.laws import bind
from bnfold.frontends.torch.leaf_modules import CLIPS
from bnfold.frontends.torch.lift import lift
from bnfold.frontends.torch.lift_views import MIXING
from bnfold.frontends.torch.moved_axes import RESHAPING
from bnfold.frontends.torch.ops import Arguments, UnfitError, functional, op_name
from bnfold.frontends.torch.recording import (
    OVERLAY,
    Event,
    Recording,
    Value,
    constants,
    values,
)
from bnfold.frontends.torch.told_numbers import ANY, Rule, Turn


def turns_of(recording: Recording, given: Sequence[int]) -> list[Turn]:
    """Cuts of which there is more on larger inputs; `given` is the shape of the input."""
    return [turn for event in recording.events for turn in _turns(event, given)]


def suggested(numbers: Iterable[int], longest: int, reached: int) -> list[int]:
    """Longer sides than numbers that the code knows which asks for sizes: a range by a step.

    A number may be the side of an image, or its area. `longest` is the longest side of the input,
    and `reached` of all that was read.
    """
    known = sorted(set(numbers))
    sides = [n for n in known if reached <= n <= _MOST_TIMES * longest][:_GUESSES]
    areas = [n for n in map(math.isqrt, known) if reached <= n <= _MOST_TIMES * longest][:_GUESSES]
    longer = [length for n in sides for length in (n + n // 8 + 2, 5 * n // 2 + 1)]
    return [*longer, *(n + n // 8 + 2 for n in areas)]


_MOST_TIMES = 64
"""So many times as large as the input a number may be that is taken for a size."""
_GUESSES = 3
"""So many numbers are tried."""


def _turns(event: Event, given: Sequence[int]) -> Iterator[Turn]:
    source = event.args[0] if event.args else None
    if isinstance(event.target, nn.Module) or not isinstance(source, Value) or not source.shape:
        return
    try:
        axis, limits = _cut(event)
    except UnfitError:
        return
    axis %= len(source.shape)
    length = source.shape[axis]
    is_batch = axis == 0 and length == next(iter(given), 0)
    known = axis if is_batch or len(source.shape) == len(given) else ANY
    for limit in sorted({abs(limit) for limit in limits}):
        if length <= limit < sys.maxsize:

            def is_longer(rule: Rule, limit: int = limit) -> bool:
                return rule(known, length) > limit

            place = (event.number, (op_name(event.target), limit), 1)
            yield Turn(place, given=False, formula=is_longer, hint=(limit + 1) / max(length, 1))


def _cut(event: Event) -> tuple[int, list[int]]:
    """The axis along which an op cuts, and where; the numbers are those of the code."""
    given = Arguments(event)
    if (name := functional(op_name(event.target))) == "slice":
        ends = given.get("start"), given.get("end")
    elif name == "split":
        ends = given.get("split_size"), None
    else:
        raise UnfitError
    axis = given.get("dim") or 0
    if not isinstance(axis, int):
        raise UnfitError
    return axis, [end for end in ends if isinstance(end, int) and end]


def may_mix(recording: Recording) -> bool:
    """Whether an axis may hold channels beside something that has other lengths elsewhere."""
    if any(event.target == OVERLAY or _is_shaped(event) for event in recording.events):
        return True
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


def cuts_by_size(event: Event) -> bool:
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


def _is_shaped(event: Event) -> bool:
    """Whether it has a shape of the code's own, of which one length is open: `view(-1, 256)`."""
    if isinstance(event.target, nn.Module) or functional(op_name(event.target)) not in RESHAPING:
        return False
    return any(isinstance(argument, list | tuple) and -1 in argument for argument in event.args)


def _is_fixed(value: Value, readers: dict[int, list[Any]], returned: set[int]) -> bool:
    """Whether nothing reads it but Linears, whose weights have but one size."""
    if value.number in returned or len(value.shape) != 2:
        return False
    return all(isinstance(target, nn.Linear) for target in readers.get(value.number, ()))
