"""What a frontend lifts a network into: tensors, and ops that each play one role.

A role says which law of `bnfold.core.laws` holds for the op; nothing else about the op is known
here. Constants (weights, statistics) are not tensors of the graph: they belong to the roles.
Shapes are those of the analysed run; a label array broadcasts to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, NamedTuple

import numpy as np

from bnfold.core.affine import FloatArray
from bnfold.core.forest import IntArray
from bnfold.core.reasons import Reason


class Weight(Enum):
    """How far the weight of a linear op may be edited."""

    FREE = "free"
    """Any row and column may be scaled."""
    SIGNS = "signs"
    """Only signs may flip: the weight of a binary network stays binary."""
    FIXED = "fixed"
    """Nothing may change (computed, or used elsewhere)."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Conv, ConvTranspose, Linear, Embedding: y[o] = sum_i W[o, i] * x[i] + B[o]."""

    in_channels: int
    """Channels of the input; 0 for an embedding, whose input has no value to rescale."""
    out_channels: int
    """Channels of the output."""
    in_axis: int
    """Axis of the input that holds the channels."""
    out_axis: int
    """Axis of the output that holds the channels."""
    groups: int = 1
    """Input and output channels are cut into this many independent groups."""
    crosses_zeros: bool = False
    """Some outputs see padded zeros, or fewer taps than others: the input's shift must be 0."""
    weight: Weight = Weight.FREE
    """How far the weight may be edited."""
    bias_editable: bool = True
    """Whether a bias exists or can be born."""
    bias: FloatArray | None = None
    """The bias, (out_channels,): needed where it is not editable; None is 0."""
    depthwise_sum: FloatArray | None = None
    """For a fixed depthwise weight, the sum of each output's taps, (out_channels,)."""
    tie: Hashable = None
    """Ops with one (not None) tie share weight and bias: one edit must serve all of them."""
    centre: tuple[int, ...] | None = None
    """The tap that reads the place it writes to, an index per kernel axis; None if there is none,
    or if single elements of the weight cannot be edited."""
    range_limit: float = math.inf
    """As of `AffineStep`, where it computes in a dtype that holds less than its input's."""
    growth_limit: float = math.inf
    """The same."""


class Refusal(NamedTuple):
    """Why an affine step must stay, whatever the network around it lets through."""

    reason: Reason
    detail: str | None = None


class Removal(Enum):
    """Whether an affine step can go, where no `Refusal` says that it must stay."""

    WANTED = "wanted"
    """The frontend can take it out of the network."""
    UNASKED = "unasked"
    """It stays, and nobody asks why: arithmetic in a module's code."""


class Parameter(Enum):
    """What is known of the factors, or of the summands, of an affine step."""

    EDITABLE = "editable"
    """The frontend can give the step, if it stays, others."""
    FIXED = "fixed"
    """They are the same in every run, and stay as they are."""
    UNKNOWN = "unknown"
    """Other runs may have others: nothing is built on these, even where they do nothing."""

    @staticmethod
    def editable_if(condition: bool) -> Parameter:
        """`EDITABLE`, or else `FIXED`."""
        return Parameter.EDITABLE if condition else Parameter.FIXED


@dataclass(frozen=True, slots=True, eq=False)
class AffineStep:
    """y = scale * x + shift with constants that broadcast to x: BatchNorm, Scale, Mul, Add, ..."""

    scale: FloatArray
    """The factors, broadcastable to the input's shape."""
    shift: FloatArray
    """The summands, of the same shape as `scale`."""
    kind: str = "BatchNorm"
    """What the user calls it; appears in the report."""
    channels: int = 0
    """Number of channels, for the report."""
    removal: Removal | Refusal = Removal.WANTED
    """Whether it can go."""
    factors: Parameter = Parameter.EDITABLE
    """What is known of `scale`."""
    summands: Parameter = Parameter.EDITABLE
    """What is known of `shift`."""
    spread: FloatArray | None = None
    """Typical deviation of the output per constant (|gamma|), of `scale`'s shape; None is 1."""
    center: FloatArray | None = None
    """Typical mean of the output per constant (beta), of `scale`'s shape; None is `shift`."""
    range_limit: float = 2.0**40
    """Stored values may be scaled up or down by at most this (smaller for float16)."""
    growth_limit: float = 2.0**10
    """A shift may make what others read at most this much larger, beside its own deviation."""
    tie: Hashable = None
    """Ops with one (not None) tie are one module called several times: all go, or none."""

    @property
    def refusal(self) -> Refusal | None:
        """Why it must stay, where that is known from the start."""
        return self.removal if isinstance(self.removal, Refusal) else None

    @property
    def is_wanted(self) -> bool:
        """Whether it can go, as far as the step itself is concerned."""
        return self.removal is Removal.WANTED

    @property
    def is_known(self) -> bool:
        """Whether it has the same constants in every run."""
        return Parameter.UNKNOWN not in (self.factors, self.summands)

    @property
    def is_editable(self) -> bool:
        """Whether the frontend can give it, if it stays, other constants of one kind at least."""
        return Parameter.EDITABLE in (self.factors, self.summands)

    @property
    def is_stiff(self) -> bool:
        """Whether it could go, but would keep its factors or its summands if it stays."""
        return self.is_wanted and not self.factors is self.summands is Parameter.EDITABLE

    @property
    def is_reported(self) -> bool:
        """Whether somebody wants to know what became of it."""
        return self.removal is not Removal.UNASKED


@dataclass(frozen=True, slots=True)
class RefusedStep:
    """An affine step by name only: nothing is known of what it computes, but why it stays."""

    refusal: Refusal
    """Why."""
    kind: str = "BatchNorm"
    """As of `AffineStep`."""
    channels: int = 0
    """As of `AffineStep`."""
    tie: Hashable = None
    """As of `AffineStep`."""

    is_reported: ClassVar[bool] = True
    is_stiff: ClassVar[bool] = False


Step = AffineStep | RefusedStep
"""What the report has an item for, if anybody asks."""


@dataclass(frozen=True, slots=True)
class Clip:
    """y = min(max(x, lower), upper), elementwise: ReLU, ReLU6, Hardtanh, clamp."""

    lower: float
    upper: float
    room: bool = True
    """Whether the frontend can give it bounds per channel."""
    one_sided_cost: float = 0.0
    """Extra cost per element, in elementwise passes, of one bound per channel instead."""
    two_sided_cost: float = 1.0
    """The same for two bounds per channel."""
    tie: Hashable = None
    """Ops with one (not None) tie are one module called several times: all share their bounds."""
    stored_alike: tuple[int, ...] = ()
    """Of an op with a tie, the axes along which there cannot be several bounds."""

    @property
    def cost(self) -> float:
        """Extra cost per element of bounds per channel."""
        one_sided = np.isinf(self.lower) != np.isinf(self.upper)
        return self.one_sided_cost if one_sided else self.two_sided_cost


@dataclass(frozen=True, slots=True, eq=False)
class Homogeneous:
    """f(s * x) = s * f(x) for s > 0: LeakyReLU, PReLU, Abs."""

    negative: FloatArray | None = None
    """f(x) / x for x < 0, broadcastable to the input, where f(x) = x for the other ones; None if
    that is not known, or not so."""


@dataclass(frozen=True, slots=True)
class Max:
    """The largest value along some axes, windows or all; a border, if any, is -inf."""

    axes: tuple[int, ...]
    """Axes of the input along which values meet."""
    keeps_rank: bool = True
    """False where the axes disappear from the output."""
    tells_places: bool = False
    """Somebody reads where the largest values were: of a constant that is stored as anything, that
    is anywhere."""


POSITIVE = Max(())
"""An op whose law is that of a maximum in which no values meet: any s > 0 passes, and any t."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A weighted mean along some axes (pooling, resizing): the weights sum to 1, or t is 0."""

    axes: tuple[int, ...]
    """Axes of the input along which values meet."""
    keeps_rank: bool = True
    """False where the axes disappear from the output."""
    counts_zeros: bool = False
    """Padded zeros take part, or the weights do not sum to 1: the shift must be 0."""


@dataclass(frozen=True, slots=True)
class Alike(Mean):
    """No op of the network: values stay what they are, and are stored alike along some axes.

    Of an axis that has other lengths in other runs, say.
    """


@dataclass(frozen=True, slots=True)
class Sum:
    """z = c1 * x1 + c2 * x2 + ..., with broadcasting."""

    coefficients: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Gate:
    """z = x1 * x2 of two activations, with broadcasting."""


@dataclass(frozen=True, slots=True)
class View:
    """Values are moved, never changed: reshape, transpose, concat, split, slice, gather."""

    apply: Callable[[Sequence[IntArray]], Sequence[IntArray]]
    """Does to label arrays (each broadcast to its input's shape) what the op does to values."""
    concat: int | None = None
    """The axis along which it puts its inputs one behind the other, where it does that alone."""
    is_copy: bool = False
    """Whether it makes of one tensor the very same, all values in their places and in the dtype."""
    range_limit: float = math.inf
    """As of `AffineStep`, where it casts to a dtype that holds less."""
    growth_limit: float = math.inf
    """The same."""


@dataclass(frozen=True, slots=True)
class Pad:
    """Constant padding."""

    before: tuple[int, ...]
    """Elements added in front, per axis; negative crops."""
    after: tuple[int, ...]
    """Elements added behind, per axis; negative crops."""
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Sign:
    """sign(x), or a comparison with 0: only the input's sign matters."""

    odd: bool
    """f(-x) = -f(x) everywhere, 0 included; x >= 0 ? 1 : -1 is not."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """Nothing is known: no rescaling passes on either side."""

    reason: Reason = Reason.NONLINEAR
    """What to answer a BatchNorm that is stopped here."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant that meets activations in a concat or sum."""

    value: FloatArray
    """The constant, broadcastable to the output's shape."""


Role = (
    Linear
    | AffineStep
    | RefusedStep
    | Clip
    | Homogeneous
    | Max
    | Mean
    | Sum
    | Gate
    | View
    | Pad
    | Sign
    | Opaque
    | Constant
)


@dataclass(frozen=True, slots=True)
class Op:
    """One step of the network."""

    name: str
    """How the user knows it: a module path, a node name."""
    role: Role
    inputs: tuple[int, ...]
    """Tensor numbers."""
    outputs: tuple[int, ...]
    """Tensor numbers."""
    kind: str = ""
    """What the user calls it: Conv2d, Relu, ...; "" for a part of the next op of this name."""


@dataclass(slots=True)
class Graph:
    """Tensors and ops; ops are in the order in which they run."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    """The shape of each tensor."""
    ops: list[Op] = field(default_factory=list)
    inputs: list[tuple[int, str]] = field(default_factory=list)
    """Tensors that come from the user, with their names."""
    outputs: list[tuple[int, str, Reason]] = field(default_factory=list)
    """Tensors that somebody outside reads: a network output, a hook."""

    def tensor(self, shape: Sequence[int]) -> int:
        """A new tensor; returns its number."""
        self.shapes.append(tuple(shape))
        return len(self.shapes) - 1

    def input(self, shape: Sequence[int], name: str) -> int:
        """A new tensor that the user passes in."""
        number = self.tensor(shape)
        self.inputs.append((number, name))
        return number

    def output(self, tensor: int, name: str, reason: Reason = Reason.GRAPH_OUTPUT) -> None:
        """Declare that somebody outside reads this tensor's true value."""
        self.outputs.append((tensor, name, reason))

    def add(
        self,
        name: str,
        role: Role,
        inputs: Sequence[int],
        shapes: Sequence[Sequence[int]],
        *,
        kind: str = "",
    ) -> tuple[int, ...]:
        """Append an op; returns the numbers of its new output tensors."""
        outputs = tuple(self.tensor(shape) for shape in shapes)
        self.ops.append(Op(name, role, tuple(inputs), outputs, kind))
        return outputs

    def pin(self, name: str, tensors: Sequence[int]) -> None:
        """Append an op without a result, which reads these tensors as they are."""
        self.add(name, Opaque(), tensors, [])

    def names(self, numbers: Iterable[int]) -> tuple[str, ...]:
        """The names of these ops."""
        return tuple(self.ops[number].name for number in numbers)

    def step(self, number: int) -> Step:
        """The role of an affine step."""
        role = self.ops[number].role
        assert isinstance(role, Step)
        return role

    def steps(self) -> Iterator[tuple[int, Op, Step]]:
        """All affine steps: the number of each, its op and its role."""
        for number, op in enumerate(self.ops):
            if isinstance(op.role, Step):
                yield number, op, op.role

    def affine_groups(self) -> dict[int, tuple[int, ...]]:
        """Per affine step, the calls of the module behind it (itself included), in order."""
        tied: dict[Hashable, list[int]] = {}
        for number, _, step in self.steps():
            key = ("alone", number) if step.tie is None else ("tie", step.tie)
            tied.setdefault(key, []).append(number)
        return {number: tuple(group) for group in tied.values() for number in group}


def channel_array(values: FloatArray, axis: int, rank: int) -> FloatArray:
    """(C,) values laid along `axis` of a tensor of this rank: (1, C, 1, 1) for an image."""
    shape = [1] * rank
    shape[axis] = len(values)
    return np.asarray(values, dtype=np.float64).reshape(shape)


def centre_tap(
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
) -> tuple[int, ...] | None:
    """The tap of a convolution that reads the place it writes to, in an output of its input's size.

    The taps of output q read q * stride + tap * dilation - before; for a transposed convolution
    with stride 1 the tap is the same one. `before` and `after` are what is padded. None if there is
    no such tap.
    """
    centre = []
    for taps, step, spread, left, right in zip(
        kernel, stride, dilation, before, after, strict=True
    ):
        if step != 1 or left < 0 or left % spread or left + right != spread * (taps - 1):
            return None
        centre.append(left // spread)
    return tuple(centre)
