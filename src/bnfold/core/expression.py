"""What a tensor is as a linear op of an earlier one, its source.

An expression knows what it would cost as one op, and in the cheapest way that is known; its kernel
is computed when somebody asks for it. Which expressions a network holds, `expressions` says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.kernel import Kernel
from bnfold.core.window import Window

Cut = tuple[int, int, int]
"""An axis, from where to where; an end of `END` and more is that of the axis."""
END = 1 << 31


@dataclass(frozen=True, slots=True, eq=False)
class Border:
    """What is padded in the place of zeros, one number per channel."""

    values: FloatArray
    """(channels,)"""
    rounding: float
    """Of the arithmetic that made them, relative to the largest."""

    def is_made_of_zeros(self, kernel: Kernel) -> bool:
        """Whether a linear op makes this where it reads zeros alone: then the zeros are padded."""
        if kernel.bias.shape != self.values.shape or not np.isfinite(self.values).all():
            return False
        apart = np.abs(kernel.bias - self.values).max(initial=0.0)
        return bool(apart <= self.rounding * np.abs(self.values).max(initial=0.0))


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A linear op as its frontend states it, for merging: constant, and nobody else's."""

    window: Window | None
    """None where it has no spatial axes, as a Linear."""
    groups: int
    axis: int
    """Of the channels, in the input and in the output."""
    in_channels: int
    out_channels: int
    weight: Callable[[], FloatArray]
    """(out_channels, in_channels / groups, *kernel)"""
    bias: Callable[[], FloatArray] | None
    """(out_channels,); None if there is none."""
    dtype: str
    """Of the weight: only equal ones merge."""
    carries: bool
    """Whether it can be given the kernel and the source of others."""
    is_stored: bool = True
    """Whether its weight takes room; that of a mean is known."""
    border: Border | None = None
    """What it pads, if that is not zeros: it is linear behind what makes that of zeros."""

    @classmethod
    def of(
        cls,
        role: g.Linear,
        window: Window | None,
        weight: Callable[[], FloatArray],
        bias: Callable[[], FloatArray] | None,
        dtype: str,
        *,
        carries: bool = True,
    ) -> Part:
        """The part that a linear op is."""
        channels = role.in_channels, role.out_channels
        return cls(window, role.groups, role.in_axis, *channels, weight, bias, dtype, carries)

    @classmethod
    def pooling(cls, window: Window, channels: int, axis: int, dtype: str) -> Part:
        """A mean over windows, as a convolution whose weight is a constant.

        One of a single tap moves values: it pads zeros, or where the padding is negative, crops.
        """

        def weight() -> FloatArray:
            return Kernel.mean(window, channels).weight

        return cls(
            *(window, channels, axis, channels, channels, weight, None, dtype),
            carries=False,
            is_stored=False,
        )

    @classmethod
    def padding(cls, role: g.Pad, shape: Sequence[int], dtype: str) -> Part | None:
        """Zeros around an input of this shape, or a border cut off, behind the channels.

        Or in front of these, if they come last.
        """
        rank, moved = len(shape), [*map(any, zip(role.before, role.after, strict=True))]
        if role.value != 0.0 or rank < 3 or moved[0] or (moved[1] and moved[-1]):
            return None
        axis, space = (rank - 1, slice(1, -1)) if moved[1] else (1, slice(2, None))
        ones = (1,) * (rank - 2)
        window = Window(ones, ones, ones, role.before[space], role.after[space])
        return cls.pooling(window, shape[axis], axis, dtype)

    @classmethod
    def cut(cls, cuts: Sequence[Cut], shape: Sequence[int], dtype: str) -> Part | None:
        """Slices with a step of 1, if they cut a border off, whatever the size."""
        before, after = [0] * len(shape), [0] * len(shape)
        for axis, start, end in cuts:
            if start < 0 or 0 <= end < END:
                return None
            before[axis], after[axis] = -start, min(end, 0)
        return cls.padding(g.Pad(tuple(before), tuple(after)), shape, dtype)

    @property
    def multiplies(self) -> bool:
        """Whether it does more than move values."""
        return self.is_stored or self.window is None or self.window.taps > 1

    def kernel(self, channels: int, rank: int) -> Kernel:
        """The numbers, with so many spatial axes."""
        window = self.window or Window.pointwise(rank)
        weight = np.asarray(self.weight(), dtype=np.float64)
        bias = np.zeros(self.out_channels) if self.bias is None else self.bias()
        shape = (self.out_channels, self.in_channels // self.groups, *window.kernel)
        return Kernel(window, self.groups, weight.reshape(shape), bias)


@dataclass(frozen=True, slots=True)
class Freedom:
    """What a frontend can do."""

    can_go: Callable[[int], bool] = lambda number: True
    """Whether an op that is merged can be taken out."""
    carries_affine: Callable[[int], bool] = lambda number: True
    """Whether an affine step can be given any other constants."""
    shortens_concats: bool = True
    """Whether a concat can lose operands."""
    ends: Collection[int] = ()
    """Tensors that nothing is merged across."""


Build = Callable[[int, int], Kernel]
"""Makes a kernel for so many channels of the source, and so many spatial axes."""


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """A tensor as a linear op of an earlier one."""

    source: int
    build: Build
    window: Window | None = None
    """None for one tap that reads the place it writes to, whatever the rank."""
    axis: int | None = None
    """Of the channels; None if it does the same to all of them."""
    groups: int = 0
    """0 for as many as there are channels."""
    shifts: bool = False
    """Whether it may make other values of zeros than zeros."""
    ops: frozenset[int] = frozenset()
    """The ops that it stands for."""
    dtypes: frozenset[str] = frozenset()
    """Of the weights."""
    cost: int = 0
    """Multiplications, as one op."""
    parts_cost: int = 0
    """The same in the cheapest way that is known, merged or not."""
    size: int = 0
    """Elements of the weight, as one op."""
    parts_size: int = 0
    """The same of what it is made of."""
    reads: int = 1
    """How often the source is read for it."""
    is_chain: bool = False
    """Whether it holds a linear op behind others."""
    shares: Mapping[int, Share] = field(default_factory=dict)
    """Tensors in between that more is made of: nothing is one op that does not hold all of that."""

    @property
    def is_identity(self) -> bool:
        """Whether the tensor is the source."""
        return not self.ops

    @property
    def is_whole(self) -> bool:
        """Whether nobody else reads what lies between."""
        return not self.shares

    @property
    def pays(self) -> bool:
        """Whether it costs no more as one op."""
        return self.cost <= self.parts_cost and self.size <= self.parts_size

    @property
    def saves(self) -> int:
        """How many multiplications."""
        return self.parts_cost - self.cost

    @property
    def least(self) -> int:
        """What it costs in the cheapest way; with what others share, it is no op of its own."""
        return min(self.cost, self.parts_cost) if self.is_whole else self.parts_cost


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A tensor that an expression reads in between, and others too."""

    reads: int
    """How often it does."""
    made: Expression
    """What the tensor is, as one of the same source."""


def varying_axes(role: g.AffineStep, rank: int) -> tuple[int, ...]:
    """The axes of a tensor of this rank along which an affine step has several constants."""
    behind = rank - role.scale.ndim
    return tuple(axis + behind for axis, length in enumerate(role.scale.shape) if length > 1)


def is_same(role: g.Role) -> bool:
    """Whether an op makes the very tensor that it reads: a copy, or an activation of slope 1."""
    if isinstance(role, g.Homogeneous):
        return role.negative is not None and bool((role.negative == 1.0).all())
    return isinstance(role, g.View) and role.is_copy


def is_free(role: g.Role) -> bool:
    """Whether a linear op has a weight of its own, which may be anything."""
    if not isinstance(role, g.Linear):
        return True
    return role.weight is g.Weight.FREE and role.tie is None
