"""Where the taps of a linear op read, along each spatial axis.

    y[q] = sum_p W[p] x[stride * q + dilation * p - before]          x is 0 outside

The op's offsets are dilation * p - before. How many outputs there are depends on the stride and on
the margin, before + after - dilation * (kernel - 1), alone:

    outputs = (inputs + margin - 1) // stride + 1

A transposed convolution is the same with x and y exchanged: y[stride * q + offset] += W[p] x[q].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Axes = tuple[int, ...]
"""One number per spatial axis."""


@dataclass(frozen=True, slots=True)
class Window:
    """The taps of a convolution, or of a pooling, along each spatial axis."""

    kernel: Axes
    stride: Axes
    dilation: Axes
    before: Axes
    """Zeros padded in front; negative where a border is cut off, and so behind."""
    after: Axes
    """Zeros padded behind; of a transposed one, less its output padding."""
    is_transposed: bool = False
    rule: str = ""
    """What says how much is padded at each size, where no number does (`before` and `after` are
    those of a stride of 1 then): it merges with what pads by the same rule, and one tap."""

    @classmethod
    def pointwise(cls, rank: int) -> Window:
        """One tap, which reads the place that it writes to."""
        ones, zeros = (1,) * rank, (0,) * rank
        return cls(ones, ones, ones, zeros, zeros)

    @property
    def is_pointwise(self) -> bool:
        """Whether it reads the place that it writes to, and no other."""
        is_moved = any(self.before) or any(self.after)
        return self.taps == 1 and set(self.stride) <= {1} and not is_moved

    @property
    def pads(self) -> bool:
        """Whether anything is padded, or may be."""
        return bool(self.rule) or any(pad > 0 for pad in (*self.before, *self.after))

    @property
    def cuts(self) -> bool:
        """Whether a border is cut off, which no convolution does."""
        after = () if self.is_transposed else self.after
        return any(pad < 0 for pad in (*self.before, *after))

    @property
    def sees_fewer(self) -> bool:
        """Whether some outputs see padded zeros, or fewer taps than others."""
        return self.pads or self.is_transposed

    @property
    def taps(self) -> int:
        """How many there are."""
        return math.prod(self.kernel)

    @property
    def margin(self) -> Axes:
        """What the number of outputs depends on, beside the stride."""
        return tuple(
            before + after - dilation * (kernel - 1)
            for before, after, dilation, kernel in zip(
                self.before, self.after, self.dilation, self.kernel, strict=True
            )
        )

    def offsets(self, axis: int) -> range:
        """Of its taps along an axis."""
        step, before = self.dilation[axis], self.before[axis]
        return range(-before, step * self.kernel[axis] - before, step)

    def index_in(self, other: Window) -> tuple[slice, ...]:
        """Which taps of another window, that has all its offsets, these are."""
        index = []
        for axis, taps in enumerate(self.kernel):
            own, grid = self.offsets(axis), other.offsets(axis)
            first, step = (own[0] - grid[0]) // grid.step, max(1, own.step // grid.step)
            index.append(slice(first, first + step * (taps - 1) + 1, step))
        return tuple(index)


def same_padding(kernel: Axes, dilation: Axes) -> tuple[Axes, Axes]:
    """What keeps the size with stride 1: in front, and behind, where the odd one goes."""
    total = [step * (taps - 1) for step, taps in zip(dilation, kernel, strict=True)]
    before = tuple(both // 2 for both in total)
    return before, tuple(both - half for both, half in zip(total, before, strict=True))


def joint(windows: Sequence[Window]) -> Window | None:
    """The smallest window that has the offsets of all of these; None if there is none.

    They have to give as many outputs as each other for every size of the input.
    """
    first = windows[0]
    if any(window.rule for window in windows):
        return first if len({*windows}) == 1 else None
    plain = [window for window in windows if not window.is_pointwise]
    is_transposed = bool(plain) and plain[0].is_transposed
    if any(window.is_transposed != is_transposed for window in plain):
        return None
    if any((window.stride, window.margin) != (first.stride, first.margin) for window in windows):
        return None
    axes = [
        _grid([window.offsets(axis) for window in windows]) for axis in range(len(first.kernel))
    ]
    return _on_grid(axes, first.stride, first.margin, is_transposed=is_transposed)


def chained(inner: Window, outer: Window, *, inner_shifts: bool) -> Window | None:
    """The window of `outer` behind `inner`; None if what they do is no one window's work.

    `inner_shifts` says that the inner op may make other values of zeros than zeros.
    """
    if inner.is_pointwise and not (inner_shifts and outer.sees_fewer):
        return outer
    if outer.is_pointwise:
        return inner
    if inner.is_transposed or outer.is_transposed or (inner_shifts and outer.pads):
        return None
    if inner.rule or outer.rule:
        return None
    axes, margins = [], []
    for axis, stride in enumerate(inner.stride):
        # What the outer op reads as a padded zero, the inner one has to make of zeros alone.
        if (outer.before[axis] > 0 and inner.offsets(axis)[-1] >= stride) or (
            outer.after[axis] > 0 and inner.offsets(axis)[0] + inner.margin[axis] < 0
        ):
            return None
        moved = outer.offsets(axis)
        spread = range(moved[0] * stride, moved[-1] * stride + 1, moved.step * stride)
        axes.append(_sums(inner.offsets(axis), spread))
        margins.append(inner.margin[axis] + stride * outer.margin[axis])
    strides = tuple(a * b for a, b in zip(inner.stride, outer.stride, strict=True))
    return _on_grid(axes, strides, tuple(margins), is_transposed=False)


def _grid(offsets: Sequence[range]) -> range:
    """The coarsest range that holds all of these."""
    low, high = min(each[0] for each in offsets), max(each[-1] for each in offsets)
    steps = [each.step for each in offsets if len(each) > 1]
    step = math.gcd(*steps, *(each[0] - low for each in offsets)) or 1
    return range(low, high + 1, step)


def _sums(first: range, second: range) -> range:
    """The coarsest range that holds the sums of an element of each."""
    steps = [each.step for each in (first, second) if len(each) > 1]
    step = math.gcd(*steps) or 1
    return range(first[0] + second[0], first[-1] + second[-1] + 1, step)


def _on_grid(axes: Sequence[range], stride: Axes, margin: Axes, *, is_transposed: bool) -> Window:
    before = tuple(-axis[0] for axis in axes)
    after = tuple(
        rest + axis[-1] - axis[0] - front
        for axis, rest, front in zip(axes, margin, before, strict=True)
    )
    kernel = tuple(len(axis) for axis in axes)
    dilation = tuple(axis.step for axis in axes)
    return Window(kernel, stride, dilation, before, after, is_transposed)
