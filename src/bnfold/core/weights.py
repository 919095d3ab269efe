"""The arithmetic of a plan on a linear op's weight and bias.

    W'[o, i] = s_y[o] * W[o, i] / s_x[i]
    B'[o]    = s_y[o] * (B[o] - sum_i W[o, i, ...] * t_x[i] + t_y[o])

Where an edit adds to the input at an output's own place, W'[o, o] holds d[o] more at the centre.
An embedding has no bias and needs none: W'[row, o] = s_y[o] * (W[row, o] + t_y[o]).
Products are float64 and rounded once, to the dtype of the weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.core.affine import FloatArray
from bnfold.core.plan import LinearEdit

_BLOCK = 1 << 17
"""About how many factors, or sums of taps, are held in float64 at a time."""
_BUFFER = 1024
"""Entries that NumPy converts to float64 at a time: with these, its buffers stay in the first-level
cache, and a product takes half as long as with the 8192 of its own."""


class Layout(Enum):
    """Where a weight keeps its channels; K stands for any number of kernel axes."""

    OUT_IN = "out, in/groups, *kernel"
    """Conv, Linear"""
    IN_OUT = "in, out/groups, *kernel"
    """ConvTranspose, a matrix on the right of MatMul"""
    ROWS_OUT = "rows, out"
    """Embedding"""

    def channels(self, shape: Sequence[int], groups: int) -> tuple[int, int]:
        """How many go into a convolution whose weight has this shape, and how many come out."""
        first, second = shape[0], shape[1] * groups
        return (first, second) if self is Layout.IN_OUT else (second, first)


def exchanged(weight: FloatArray, groups: int) -> FloatArray:
    """(in, out/groups, *kernel) as (out, in/groups, *kernel), and the other way round."""
    first, second, *taps = weight.shape
    blocks = weight.reshape(groups, first // groups, second, *taps).swapaxes(1, 2)
    return blocks.reshape(groups * second, first // groups, *taps)


def fold_weight(
    weight: NDArray[Any],
    edit: LinearEdit,
    layout: Layout,
    groups: int,
    *,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """The new weight, of the old one's shape and dtype; it may hold inf after an overflow.

    `out` is where it goes, if the caller has made room for it.
    """
    folded = np.empty_like(weight) if out is None else out
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if layout is Layout.ROWS_OUT:  # every output is one row: the shift fits into the weight
            rows = np.where(edit.zeroed, 0.0, weight)
            folded[...] = (rows + edit.output_shift) * edit.output_scale
            return folded
        _multiply(weight, *_factors(edit, layout, groups), folded)
        if edit.added is not None:
            _add_to_centre(weight, edit, folded)
    return folded


def fold_bias(
    weight: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    edit: LinearEdit,
    layout: Layout,
    groups: int,
) -> FloatArray:
    """The new bias in float64, (out_channels,); the dtype is the caller's to choose.

    The weight is looked at, and needed, only where the input is stored with a shift.
    """
    total = np.zeros(len(edit.output_scale))
    if bias is not None:
        total += np.asarray(bias, dtype=np.float64)
    total[edit.zeroed] = 0.0
    if edit.input_shift.any():
        assert weight is not None, "the bias depends on the weight"
        moved = _shift_seen(weight, edit.input_shift, layout, groups)
        total -= np.where(edit.zeroed, 0.0, moved)
    with np.errstate(over="ignore", invalid="ignore"):
        shifted: FloatArray = edit.output_scale * (total + edit.output_shift)
    return shifted


def weight_factors(edit: LinearEdit, layout: Layout, groups: int, rank: int) -> FloatArray:
    """s_y[o] / s_x[i], shaped to multiply the weight; an axis without effect has length 1.

    Not for rows of an embedding whose output is shifted, where a summand comes first, and not
    where an edit adds to the centre.
    """
    assert edit.added is None, "a factor cannot add"
    if layout is Layout.ROWS_OUT:
        return np.where(edit.zeroed, 0.0, edit.output_scale).reshape(1, -1)
    rows, columns = _factors(edit, layout, groups)
    plain = (columns == 1.0).all()
    factor = rows[:, None] if plain else rows[:, None] * columns[_groups_of(rows, groups)]
    return factor.reshape(*factor.shape, *(1,) * (rank - 2))


def _groups_of(rows: FloatArray, groups: int) -> NDArray[np.int64]:
    """The group of each row."""
    return np.arange(len(rows)) // max(1, len(rows) // groups)


def _factors(edit: LinearEdit, layout: Layout, groups: int) -> tuple[FloatArray, FloatArray]:
    """s_y[o] / s_x[i] as one factor per row of the weight, and one per group and column."""
    outs = np.where(edit.zeroed, 0.0, edit.output_scale)
    ins = edit.input_inverse
    if layout is Layout.OUT_IN:
        return outs, ins.reshape(groups, -1)
    return ins, outs.reshape(groups, -1)


def _multiply(
    weight: NDArray[Any], rows: FloatArray, columns: FloatArray, out: NDArray[Any]
) -> None:
    """out = weight times its row's and its column's factor, rounded once."""
    groups, width = columns.shape
    group = _groups_of(rows, groups)
    if width == 1:  # depthwise
        rows, columns = rows * columns[group, 0], np.ones((groups, 1))
    if (columns == 1.0).all() and weight.flags.c_contiguous and out.flags.c_contiguous:
        # One factor per row: long rows are what NumPy multiplies fastest.
        target = out.reshape(len(rows), math.prod(out.shape[1:]))
        multiply(weight.reshape(target.shape), rows[:, None], target)
        return
    step = max(1, _BLOCK // max(1, width))
    for first in range(0, len(rows), step):
        block = slice(first, first + step)
        factor = rows[block, None] * columns[group[block]]
        factor = factor.reshape(*factor.shape, *(1,) * (weight.ndim - 2))
        multiply(weight[block], factor, out[block])


def multiply(weight: NDArray[Any], factor: FloatArray, out: NDArray[Any]) -> None:
    """out = weight * factor in float64, rounded once; the shapes broadcast."""
    before = np.setbufsize(_BUFFER)
    try:
        np.multiply(weight, factor, out=out, casting="same_kind")
    finally:
        np.setbufsize(before)


def _add_to_centre(weight: NDArray[Any], edit: LinearEdit, folded: NDArray[Any]) -> None:
    """W'[o, o] = s_y[o] * W[o, o] / s_x[o] + d[o] at the centre, in float64, rounded once.

    There are as many inputs as outputs, so o is number o % (channels per group) in its group, and
    stands at [o, o % width] whichever of the two comes first.
    """
    assert edit.centre is not None
    channels = np.arange(len(edit.output_scale))
    places = (channels, channels % weight.shape[1], *edit.centre)
    factor = np.where(edit.zeroed, 0.0, edit.output_scale) * edit.input_inverse
    folded[places] = weight[places] * factor + edit.added


def _shift_seen(weight: NDArray[Any], shift: FloatArray, layout: Layout, groups: int) -> FloatArray:
    """sum_i W[o, i, ...] * t[i] over inputs and taps, (out_channels,)."""
    taps = weight.reshape(groups, -1, weight.shape[1], math.prod(weight.shape[2:]))
    if layout is Layout.IN_OUT:
        taps = taps.swapaxes(1, 2)
    _, outs, ins, kernel = taps.shape  # (groups, out/groups, in/groups, kernel)
    shifts = shift.reshape(groups, ins, 1)
    seen = np.empty((groups, outs))
    step = max(1, _BLOCK // max(1, groups * ins))
    for first in range(0, outs, step):
        block = taps[:, first : first + step]
        summed = block[..., 0] if kernel == 1 else block.sum(axis=3, dtype=np.float64)
        seen[:, first : first + step] = (summed @ shifts)[..., 0]
    return seen.reshape(-1)
