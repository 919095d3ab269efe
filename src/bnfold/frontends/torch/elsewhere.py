"""Read a module on other sizes where its channels may come to lie along another axis.

In a module, the length of an axis and a number that is computed from it are what they are on the
example. A reshape, or a concatenation along the height, may make the channel of an element depend
on them. Then the module is read on other sizes, as many as it takes: axes that have other lengths
there are open, and so are numbers that differ, as in an exported program with dynamic shapes (see
`symbolic`).

Where another size takes another path through the code, both paths are read as one, as for `also`:
what is decided then holds on both. A plain network is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.core.forest import IntArray
from bnfold.core.labels import repeat_along_an_axis, vary_off_the_channels
from bnfold.core.laws import bind
from bnfold.errors import ExampleInputError
from bnfold.frontends.torch.leaves import CLIPS
from bnfold.frontends.torch.lift import lift
from bnfold.frontends.torch.lift_views import MIXING
from bnfold.frontends.torch.ops import functional, op_name
from bnfold.frontends.torch.read import Entry, read_module
from bnfold.frontends.torch.recording import Const, Event, Recording, Value, constants, values


def read_as_needed(model: nn.Module, runs: Sequence[Any]) -> Recording:
    """What the module does, on the example inputs and where they do not tell all, on others.

    Raises what `read_module` raises for the example inputs.
    """
    recording = read_module(model, runs)
    if not _may_mix(recording):
        return recording
    paths = list(runs)
    for other_runs, other in _elsewhere(model, runs, recording):
        if _is_alike(_steps(recording.events), _steps(other.events)):
            _note_differences(recording, other.events)
        else:
            paths += other_runs
    return recording if len(paths) == len(runs) else read_module(model, paths)


# -------------------------------------------------------------------- other sizes


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

    def any_of(found: Sequence[Value], test: Callable[[IntArray], bool]) -> bool:
        return any(
            test(labels[lifted.tensors[value.number]])
            for value in found
            if value.number in lifted.tensors
        )

    return any_of(open_ended, repeat_along_an_axis) or any_of(clips, vary_off_the_channels)


def _computes_constants(recording: Recording) -> bool:
    """Whether functions take constants that code made, as long as an axis may be.

    gamma.repeat(n), a slice of a weight, linspace(0, 1, w): these bring channels along any axis.
    """
    return any(
        constant.tensor.numel() > 1
        and (constant.how == "?" or id(constant.origin) not in recording.owned)
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


Change = Callable[[Tensor, int], Tensor]


def _elsewhere(
    model: nn.Module, runs: Sequence[Any], first: Recording
) -> Iterator[tuple[list[Any], Recording]]:
    """Readings on other sizes that the module takes: on all axes at once, or else one by one.

    Smaller ones, which cost less; half of a size, as networks halve them themselves, and one less,
    which is odd where the example is even.
    """
    axes = _axes(runs)
    found = list(_taken(model, runs, axes, _half, first))
    for axis in axes if not found and len(axes) > 1 else ():
        found += _taken(model, runs, [axis], _half, first)
    yield from found
    yield from _taken(model, runs, axes, _one_less, first)


def _taken(
    model: nn.Module, runs: Sequence[Any], axes: Sequence[int], change: Change, first: Recording
) -> Iterator[tuple[list[Any], Recording]]:
    """The reading with these axes changed, if the module takes that."""
    other = [_resized(run, axes, change) for run in runs]
    with suppress(ExampleInputError):
        yield other, read_module(model, other, like=first)


def _half(tensor: Tensor, axis: int) -> Tensor:
    size = tensor.shape[axis]
    if axis == 0:
        return _one_more(tensor, axis)
    if size < _SMALL or size % 2:
        return torch.cat([tensor, tensor], dim=axis)
    return tensor.narrow(axis, 0, size // 2)


def _one_less(tensor: Tensor, axis: int) -> Tensor:
    if axis == 0 or tensor.shape[axis] == 1:
        return _one_more(tensor, axis)
    return tensor.narrow(axis, 0, tensor.shape[axis] - 1)


def _one_more(tensor: Tensor, axis: int) -> Tensor:
    return torch.cat([tensor, tensor.narrow(axis, 0, 1)], dim=axis)


_SMALL = 64
"""Sizes below this are doubled, not halved: networks halve them up to five times."""


def _axes(runs: Sequence[Any]) -> list[int]:
    """The axes whose length may be another one: not the channels of images."""
    given = [run.inputs if isinstance(run, Entry) else run for run in runs]
    tensors = [leaf for leaf in pytree.tree_leaves(given) if _is_resizable(leaf)]
    most = max((tensor.ndim for tensor in tensors), default=0)
    return [axis for axis in range(most) if not (axis == 1 and most > 3)]


def _is_resizable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.numel() > 0


def _resized(run: Any, axes: Sequence[int], change: Change) -> Any:
    """The same inputs, changed along these axes."""
    if isinstance(run, Entry):
        return Entry(run.entry, _resized(run.inputs, axes, change))

    def resized(leaf: Any) -> Any:
        if _is_resizable(leaf):
            for axis in axes:
                leaf = change(leaf, axis) if axis < leaf.ndim else leaf
        return leaf

    return pytree.tree_map(resized, run)


# -------------------------------------------------------------------- comparing


def _steps(events: Sequence[Event]) -> list[Event]:
    """The events without those that only lay out memory anew: that, too, depends on the size."""
    return [event for event in events if functional(op_name(event.target)) not in _LAYOUT]


_LAYOUT = frozenset(("clone", "contiguous", "alias", "detach"))
_RESHAPING = frozenset(("view", "_unsafe_view", "reshape", "_reshape_alias"))
"""One op in code, several in a recording."""


def _is_alike(first: Sequence[Event], second: Sequence[Event]) -> bool:
    """Whether both are the same ops in the same order."""
    return len(first) == len(second) and all(
        _target(a) == _target(b) and a.call.name == b.call.name and _fits(a, b)
        for a, b in zip(first, second, strict=True)
    )


def _target(event: Event) -> Any:
    reshapes = functional(op_name(event.target)) in _RESHAPING
    return "reshape" if reshapes else event.target


def _fits(one: Event, other: Event) -> bool:
    return len(one.outputs) == len(other.outputs) and one.kwargs.keys() == other.kwargs.keys()


def _note_differences(recording: Recording, others: Sequence[Event]) -> None:
    """Call open what differs in another reading of the same ops."""
    for event, other in zip(_steps(recording.events), _steps(others), strict=True):
        names = frozenset(name for name, a, b in _arguments(event, other) if _differs(a, b))
        if names:
            known = recording.open_arguments.get(event.number, frozenset())
            recording.open_arguments[event.number] = known | names
        for place, (a, b) in enumerate(zip(event.outputs, other.outputs, strict=True)):
            if a is None or b is None or len(a.shape) != len(b.shape):
                continue
            pairs = enumerate(zip(a.shape, b.shape, strict=True))
            axes = {axis for axis, (length, there) in pairs if length != there}
            if axes:
                known_axes = recording.open_axes.get((event.number, place), ())
                recording.open_axes[event.number, place] = tuple(sorted(axes.union(known_axes)))


def _arguments(one: Event, other: Event) -> Iterator[tuple[str, Any, Any]]:
    """The arguments of two events of one op, side by side, by their names."""
    schema = getattr(one.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    for place in range(max(len(one.args), len(other.args))):
        name = names[place] if place < len(names) else str(place)
        a, b = (event.args[place] if place < len(event.args) else None for event in (one, other))
        yield name, a, b
    for name in one.kwargs:
        yield name, one.kwargs[name], other.kwargs[name]


def _differs(one: Any, other: Any) -> bool:
    """Whether an argument is another one; of values, which differ always, only what they are."""
    left, right = pytree.tree_leaves(one), pytree.tree_leaves(other)
    return len(left) != len(right) or any(
        _leaf_differs(a, b) for a, b in zip(left, right, strict=True)
    )


def _leaf_differs(one: Any, other: Any) -> bool:
    if isinstance(one, Value) or isinstance(other, Value):
        return type(one) is not type(other)
    if isinstance(one, Const) and isinstance(other, Const):
        a, b = one.tensor, other.tensor
        if a is b:
            return False
        return a.shape != b.shape or a.dtype != b.dtype or not torch.equal(a, b)
    return type(one) is not type(other) or one != other
