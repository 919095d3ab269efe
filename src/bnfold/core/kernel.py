"""Linear ops as numbers, and what becomes of them when they are merged.

    sum     W[d] = sum_j k_j W_j[d]            b = sum_j k_j b_j          d is an offset
    chain   W[d] = sum W2[d2] W1[d1]           b = (sum_p W2[p]) b1 + b2  d = d1 + stride1 * d2
    stack   W[d] = [W_1[d]; W_2[d]; ...]       b = [b_1; b_2; ...]

An affine step is the op with one tap and a channel per group; a mean is one with equal taps. With
g groups each W[d] is block-diagonal, and so it is in every number of groups that divides g.
Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from bnfold.core.affine import FloatArray
from bnfold.core.limits import smallest_whole
from bnfold.core.window import Window, joint


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """The weight and the bias of a linear op."""

    window: Window
    groups: int
    weight: FloatArray
    """(out_channels, in_channels / groups, *kernel)"""
    bias: FloatArray
    """(out_channels,)"""

    @classmethod
    def affine(cls, scale: FloatArray, shift: FloatArray, rank: int) -> Kernel:
        """y = scale * x + shift, (channels,) each, for so many spatial axes."""
        weight = scale.reshape(len(scale), 1, *(1,) * rank)
        return cls(Window.pointwise(rank), len(scale), weight, shift)

    @classmethod
    def mean(cls, window: Window, channels: int) -> Kernel:
        """The mean of the taps, padded zeros included."""
        weight = np.full((channels, 1, *window.kernel), 1.0 / window.taps)
        return cls(window, channels, weight, np.zeros(channels))

    @property
    def numbers(self) -> tuple[FloatArray, FloatArray]:
        """All there are."""
        return self.weight, self.bias

    @property
    def is_affine(self) -> bool:
        """Whether each output depends on the input at its own place and channel alone."""
        return self.is_one_tap and self.window.is_pointwise

    @property
    def is_one_tap(self) -> bool:
        """Whether each output depends on one place of its own channel, wherever that lies."""
        is_diagonal = self.groups == len(self.weight) and self.weight.shape[1] == 1
        return is_diagonal and self.window.taps == 1

    @property
    def gains(self) -> FloatArray:
        """(out_channels,) How large outputs are where inputs are independent and of size 1."""
        rows = self.weight.reshape(len(self.weight), -1)
        gains: FloatArray = np.sqrt(np.square(rows).sum(axis=1))
        return gains

    def keeps_digits_in(self, dtype: str) -> bool:
        """Whether the weights of no channel fall below the dtype's normal numbers."""
        least = smallest_whole(dtype)
        if not least or not self.weight.size:
            return True
        typical = self.gains / math.sqrt(self.weight[0].size)
        return bool(((typical == 0.0) | (typical >= least)).all())

    def in_groups(self, groups: int) -> FloatArray:
        """The weight of the same op in fewer groups."""
        if groups == self.groups:
            return self.weight
        outs, width, *taps = self.weight.shape
        joined = self.groups // groups
        wide = np.zeros((groups, joined, outs // self.groups, joined, width, *taps))
        blocks = self.weight.reshape(groups, joined, outs // self.groups, width, *taps)
        for place in range(joined):
            wide[:, place, :, place] = blocks[:, place]
        return wide.reshape(outs, joined * width, *taps)


def added(kernels: Sequence[Kernel], coefficients: Sequence[float]) -> Kernel:
    """The sum of ops that read one tensor."""
    window = joint([kernel.window for kernel in kernels])
    assert window is not None, "these have no window in common"
    groups = math.gcd(*(kernel.groups for kernel in kernels))
    outs = len(kernels[0].bias)
    width = kernels[0].weight.shape[1] * kernels[0].groups // groups
    weight, bias = np.zeros((outs, width, *window.kernel)), np.zeros(outs)
    for kernel, coefficient in zip(kernels, coefficients, strict=True):
        place: tuple[Any, ...] = (..., *kernel.window.index_in(window))
        bias += coefficient * kernel.bias
        if kernel.is_affine:  # one number per channel: not worth a dense weight
            own, channels = weight[place], np.arange(outs)
            taps = (0,) * len(window.kernel)
            own[(channels, channels % width, *taps)] += coefficient * kernel.weight.reshape(-1)
        else:
            own = kernel.in_groups(groups)
            weight[place] += own if coefficient == 1.0 else coefficient * own
    return Kernel(window, groups, weight, bias)


def stacked(kernels: Sequence[Kernel]) -> Kernel:
    """Ops of one tensor with one window, in one group each, as one that makes all they make."""
    weight, bias = (
        np.concatenate(numbers) for numbers in zip(*(k.numbers for k in kernels), strict=True)
    )
    return Kernel(kernels[0].window, 1, weight, bias)


def behind(inner: Kernel, outer: Kernel, window: Window) -> Kernel:
    """The outer op on what the inner one makes; `window` is that of both, see `chained`."""
    if outer.is_one_tap:
        scale = outer.weight.reshape(-1)
        weight = inner.weight * scale.reshape(-1, *(1,) * (inner.weight.ndim - 1))
        return Kernel(window, inner.groups, weight, scale * inner.bias + outer.bias)
    bias = _on_constant(outer, inner.bias) + outer.bias
    if inner.is_one_tap:
        scale = inner.weight.reshape(outer.groups, 1, -1, *(1,) * len(window.kernel))
        parts = outer.weight.reshape(outer.groups, -1, *outer.weight.shape[1:])
        return Kernel(window, outer.groups, (parts * scale).reshape(outer.weight.shape), bias)
    groups = math.gcd(inner.groups, outer.groups)
    first = _by_group(inner.in_groups(groups), groups)
    second = _by_group(outer.in_groups(groups), groups)
    weight = np.zeros((groups, second.shape[1], first.shape[2], *window.kernel))
    for taps in product(*(range(count) for count in outer.window.kernel)):
        index = tuple(
            _moved(inner.window, outer.window, window, axis, tap) for axis, tap in enumerate(taps)
        )
        tap: tuple[Any, ...] = (..., *taps)
        place: tuple[Any, ...] = (..., *index)
        mixed = second[tap] @ first.reshape(*first.shape[:2], -1)
        weight[place] += mixed.reshape(*mixed.shape[:2], *first.shape[2:])
    return Kernel(window, groups, weight.reshape(-1, *weight.shape[2:]), bias)


def _by_group(weight: FloatArray, groups: int) -> FloatArray:
    return weight.reshape(groups, -1, *weight.shape[1:])


def _moved(inner: Window, outer: Window, whole: Window, axis: int, tap: int) -> slice:
    """Where the taps of the inner op go for one of the outer op's."""
    own, grid = inner.offsets(axis), whole.offsets(axis)
    moved = own[0] + inner.stride[axis] * outer.offsets(axis)[tap]
    first, step = (moved - grid[0]) // grid.step, max(1, own.step // grid.step)
    return slice(first, first + step * (len(own) - 1) + 1, step)


def _on_constant(kernel: Kernel, values: FloatArray) -> FloatArray:
    """What it makes of a tensor that is one number per channel, where it sees no padded zeros."""
    taps = kernel.weight.reshape(kernel.groups, -1, kernel.weight.shape[1], kernel.window.taps)
    summed = taps.sum(axis=3)
    return np.asarray((summed @ values.reshape(kernel.groups, -1, 1)).reshape(-1))
