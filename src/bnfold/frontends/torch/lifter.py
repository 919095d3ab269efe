"""A lift under way: the values' tensors, where ops live, and how they are added to the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, fx, nn

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.reasons import Reason
from bnfold.core.weights import Layout
from bnfold.frontends.torch.looks import asks_for_values
from bnfold.frontends.torch.moved_axes import places_of
from bnfold.frontends.torch.recording import (
    OVERLAY,
    Call,
    Const,
    Event,
    Recording,
    Value,
    values,
)
from bnfold.frontends.torch.symbolic import (
    EVERY,
    open_arguments,
    open_axes,
    open_axes_of_written,
)
from bnfold.frontends.torch.tensor_facts import array_over


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """What lays values along an axis of their own, over which an op adds up."""

    operands: tuple[Value, ...]
    events: tuple[Event, ...]
    """The last first; a single one lists the operands itself."""
    axis: int


@dataclass(frozen=True, slots=True, eq=False)
class LinearSite:
    """Where a linear op keeps its weight and bias."""

    weight: Tensor
    """What the op multiplies by, in `layout`."""
    parameter: Tensor | None
    """Where the weight is kept; None where it may not be edited."""
    bias: Tensor | None
    """The parameter; None where there is none or it may not be edited."""
    layout: Layout
    groups: int
    module: nn.Module | None = None
    """The module that can be given a bias it does not have."""
    node: fx.Node | None = None
    """The node, in an exported program."""


@dataclass(frozen=True, slots=True, eq=False)
class AffineSite:
    """Where an affine step lives."""

    module: nn.Module | None
    """The module to replace; None for a function call."""
    successors: tuple[nn.Module, ...] = ()
    """What else the module ran after the affine step, in order."""
    gamma: Tensor | None = None
    beta: Tensor | None = None
    statistics: Tensor | None = None
    """The running mean, for the dtype and device of new constants."""
    running_mean: Tensor | None = None
    """The statistics' mean, where it may be edited."""
    mean: FloatArray | None = None
    deviation: FloatArray | None = None
    """sqrt(var + eps)"""
    source: Value | None = None
    """What went in."""
    output: Value | None = None
    """What came out."""
    event: int = -1
    """Number of the event that made the output."""
    nodes: tuple[fx.Node, ...] = ()
    """The nodes, in an exported program."""


@dataclass(frozen=True, slots=True, eq=False)
class ClipSite:
    """Where an activation lives."""

    module: nn.Module | None
    value: Value
    """What it clips."""
    event: int
    """Number of the event."""
    device: torch.device
    """Where its input lives."""
    node: fx.Node | None = None
    """The node, in an exported program."""


Site = LinearSite | AffineSite | ClipSite


@dataclass(slots=True)
class Lifted:
    """The core's view of a recording, with the way back."""

    graph: g.Graph
    sites: dict[int, Site] = field(default_factory=dict)
    """Per op number."""
    tensors: dict[int, int] = field(default_factory=dict)
    """Graph tensor per value number."""
    events: dict[int, Event] = field(default_factory=dict)
    """Per op number, its event (the last, where it has several); not where something about the
    event differs from run to run."""
    stacks: dict[int, Stack] = field(default_factory=dict)
    """Per op number of a sum, what stacks its operands first."""


Handler = Callable[["Lifter", Event], None]


class Lifter:
    """The state of a lift."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.owned = recording.owned
        self.is_program = any(root.node is not None for root in _calls(recording))
        """An exported program, where every op is a node that can be replaced."""
        self.graph = g.Graph()
        self.sites: dict[int, Site] = {}
        self.tensors: dict[int, int] = {}
        """Graph tensor per value number."""
        self.events: dict[int, Event] = {}
        """See `Lifted.events`."""
        self.open: dict[int, frozenset[str]] = {
            event.number: names
            for event in (recording.events if recording.open_nodes else ())
            if (names := open_arguments(event, recording.open_nodes))
        } | recording.open_arguments
        """Per event number: the names of its open arguments; see `symbolic`."""
        # What is other in the next run is open, too.
        self.open |= dict.fromkeys(recording.varying, frozenset({EVERY}))
        self.stacks: dict[int, Stack] = {}
        """Per op number of a sum, what stacks its operands first."""
        self.readers: dict[int, int] = {}
        """How many events read each value number."""
        for event in recording.events:
            for value in values(event.args, event.kwargs):
                self.readers[value.number] = self.readers.get(value.number, 0) + 1
        for value, _ in recording.outputs:
            self.readers[value.number] = self.readers.get(value.number, 0) + 1

    # ---------------------------------------------------------------- values

    @cached_property
    def knows_numbers(self) -> bool:
        """Whether a number that was the same in all readings is the same in every run."""
        read = self.recording
        return not (read.counts or read.takes_numbers or asks_for_values(read))

    @cached_property
    def makers(self) -> dict[int, Event]:
        """The event that made a value, by the value's number."""
        return {
            value.number: event
            for event in self.recording.events
            for value in event.outputs
            if value
        }

    @cached_property
    def module_events(self) -> dict[int, list[Event]]:
        """The events that are whole calls of a module, by id(module)."""
        events: dict[int, list[Event]] = {}
        for event in self.recording.events:
            if isinstance(event.target, nn.Module):
                events.setdefault(id(event.target), []).append(event)
        return events

    def tensor(self, value: Value) -> int:
        """The graph tensor of a value; one that nothing made is stored as it is."""
        known = self.tensors.get(value.number)
        if known is None:
            known = self.tensors[value.number] = self.graph.tensor(value.shape)
        return known

    def operand(self, argument: Value | Const, name: str) -> int:
        """The graph tensor of a value or constant."""
        if isinstance(argument, Value):
            return self.tensor(argument)
        array = to_numpy(argument.tensor)
        return self.graph.add(name, g.Constant(array), (), [argument.tensor.shape])[0]

    def emit(
        self,
        event: Event,
        role: g.Role,
        inputs: Sequence[int],
        *,
        outputs: Sequence[Value | None] | None = None,
        name: str | None = None,
    ) -> int:
        """Add an op that makes the event's outputs (those that are tensors); returns its number."""
        made = [value for value in (event.outputs if outputs is None else outputs) if value]
        places = {id(value): place for place, value in enumerate(event.outputs)}
        shapes = [value.shape for value in made]
        kind = kind_of(event)
        # What moves labels, and where an array of bounds would be made for one size.
        # Of several calls with room, the law looks whether one array serves all.
        is_alone = isinstance(role, g.Clip) and role.room and role.tie is None
        ties = isinstance(role, g.View) or is_alone
        follows = isinstance(role, g.View) and places_of(event) is not None
        if isinstance(role, g.View | g.Pad) and not follows:
            inputs = self._alike(event, inputs)
        numbers = self.graph.add(name or event.name, role, inputs, shapes, kind=kind)
        added = len(self.graph.ops) - 1
        if event.number not in self.open:
            self.events[added] = event
        for value, number in zip(made, numbers, strict=True):
            axes = self.open_axes(event, places.get(id(value), 0)) if ties else {}
            if not follows:
                axes = dict.fromkeys(axes, 1)
            self.tensors[value.number] = self._tied(event, number, axes)
        return added

    def open_axes(self, event: Event, output: int) -> Mapping[int, int]:
        """The axes of an output that have other lengths elsewhere, and their periods."""
        known = self.recording.open_axes
        if known:
            return known.get((event.number, output), {})
        made = event.outputs[output]
        if event.target == OVERLAY and made is not None:
            return dict.fromkeys(open_axes_of_written(event, made.shape), 1)
        return dict.fromkeys(open_axes(event, output), 1)

    def _alike(self, event: Event, inputs: Sequence[int]) -> list[int]:
        """The inputs, where along an axis of any length what is stored is stored alike."""
        tied = {}
        for value in values(event.args, event.kwargs) if self.recording.open_axes else ():
            axes = {axis: 1 for axis, period in self._repeats(value).items() if period != 1}
            number = self.tensors.get(value.number)
            if axes and number is not None and number in inputs:
                tied[number] = self._tied(event, number, axes)
        return [tied.get(number, number) for number in inputs]

    def _repeats(self, value: Value) -> Mapping[int, int]:
        """What is noted of the axes of a value."""
        while (event := self.makers.get(value.number)) is not None:
            numbers = [made.number if made else None for made in event.outputs]
            place = numbers.index(value.number)
            known = self.recording.open_axes.get((event.number, place))
            source = event.args[0] if event.args else None
            if known is not None or places_of(event) is None or not isinstance(source, Value):
                return known or {}
            if source.shape != value.shape:
                return {}
            value = source
        return {}

    def _tied(self, event: Event, number: int, axes: Mapping[int, int]) -> int:
        """What is stored along these axes comes again after so many entries; 1 is alike."""
        shape = self.graph.shapes[number]
        alike = []
        for axis, period in axes.items():
            if period == 1 or (period and shape[axis] % period):
                alike.append(axis)
            elif period:
                cut = (*shape[:axis], shape[axis] // period, period, *shape[axis + 1 :])
                (number,) = self.graph.add(event.name, _in_shape(cut), [number], [cut])
                (number,) = self.graph.add(event.name, g.Alike((axis,)), [number], [cut])
                (number,) = self.graph.add(event.name, _in_shape(shape), [number], [shape])
        if alike:
            (number,) = self.graph.add(event.name, g.Alike(tuple(alike)), [number], [shape])
        return number

    def opaque(self, event: Event) -> None:
        """Nothing is known about the event."""
        is_parted = bool(self.recording.parted) and event.number in self.recording.varying
        reason = Reason.VARIES if is_parted else Reason.NONLINEAR
        inputs = [self.tensor(value) for value in values(event.args, event.kwargs)]
        self.emit(event, g.Opaque(reason), inputs)

    def is_known(self, constant: Const) -> bool:
        """Whether the constant is the same in every run.

        What a module's code makes may depend on the shape, or on what earlier runs left; in a
        program that is said (`symbolic`).
        """
        own = id(constant.origin) in self.owned and not constant.is_shaped_by_code
        return own or self.is_program

    def is_read(self, value: Value) -> bool:
        """Whether an event, or someone outside, reads the value."""
        return self.readers.get(value.number, 0) > 0

    def single_use(self, value: Value) -> bool:
        """Whether exactly one event reads the value, and no one outside."""
        return self.readers.get(value.number, 0) == 1


def _in_shape(shape: Sequence[int]) -> g.View:
    return g.View(lambda labels: [labels[0].reshape(shape)])


def kind_of(event: Event) -> str:
    """What the reader of a report calls an event: the module's class, or the function."""
    if isinstance(event.target, nn.Module):
        return type(event.target).__name__
    name = str(getattr(event.target, "_opname", event.target))
    return name.removeprefix("_").removesuffix("_")


def to_numpy(tensor: Tensor) -> FloatArray:
    """A constant as float64, on the CPU."""
    return array_over(tensor.detach().to("cpu", torch.float64))


def is_readable(tensor: Tensor) -> bool:
    """Whether a constant has content that NumPy can read as real numbers."""
    plain = tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_complex()
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def is_floating(value: Value) -> bool:
    """Whether rescaling makes sense for the value."""
    return value.dtype.is_floating_point


def first_value(event: Event) -> Value | None:
    """An event's first argument, if it is a floating-point value."""
    value = event.args[0] if event.args else None
    return value if isinstance(value, Value) and is_floating(value) else None


def channel_axis(value: Value, kernel_rank: int) -> int:
    """The channel axis of a convolution's input, batched or not."""
    return len(value.shape) - kernel_rank - 1


def calls_of(call: Call) -> list[Call]:
    """The calls directly inside a call."""
    return [item for item in call.items if isinstance(item, Call)]


def _calls(recording: Recording) -> list[Call]:
    return [call for root in recording.roots for call in calls_of(root)]


def shape_of(array: FloatArray, rank: int) -> FloatArray:
    """The array with leading axes of length 1 up to a rank."""
    return np.reshape(array, (1,) * (rank - array.ndim) + array.shape)
