"""The arithmetic of a plan on a linear op's weight and bias.

    W'[o, i] = s_y[o] * W[o, i] / s_x[i]
    B'[o]    = s_y[o] * (B[o] - sum_i W[o, i, ...] * t_x[i] + t_y[o])

An embedding has no bias and needs none: W'[row, o] = s_y[o] * (W[row, o] + t_y[o]).
Products are float64 and rounded once, to the dtype of the weight.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.core.affine import FloatArray
from bnfold.core.plan import LinearEdit


class Layout(Enum):
    """Where a weight keeps its channels; K stands for any number of kernel axes."""

    OUT_IN = "out, in/groups, *kernel"
    """Conv, Linear"""
    IN_OUT = "in, out/groups, *kernel"
    """ConvTranspose, a matrix on the right of MatMul"""
    ROWS_OUT = "rows, out"
    """Embedding"""


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
        factor = weight_factors(edit, layout, groups, weight.ndim)
        flat = (weight.shape[0], -1)
        is_contiguous = weight.flags.c_contiguous and folded.flags.c_contiguous
        if factor.size == len(factor) and is_contiguous:
            # One factor per row: long rows are what NumPy multiplies fastest.
            np.multiply(
                weight.reshape(flat),
                factor.reshape(-1, 1),
                out=folded.reshape(flat),
                casting="same_kind",
            )
        else:
            np.multiply(weight, factor, out=folded, casting="same_kind")
    return folded


def fold_bias(
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
    edit: LinearEdit,
    layout: Layout,
    groups: int,
) -> FloatArray:
    """The new bias in float64, (out_channels,); the dtype is the caller's to choose."""
    total = np.zeros(len(edit.output_scale))
    if bias is not None:
        total += np.asarray(bias, dtype=np.float64)
    if edit.zeroed.any():
        total[edit.zeroed] = 0.0
    if edit.input_shift.any():
        moved = _shift_seen(weight, edit.input_shift, layout, groups)
        total -= np.where(edit.zeroed, 0.0, moved)
    with np.errstate(over="ignore", invalid="ignore"):
        shifted: FloatArray = edit.output_scale * (total + edit.output_shift)
    return shifted


def weight_factors(edit: LinearEdit, layout: Layout, groups: int, rank: int) -> FloatArray:
    """s_y[o] / s_x[i], shaped to multiply the weight; an axis without effect has length 1.

    Not for rows of an embedding whose output is shifted: there a summand comes first.
    """
    out_scale = np.where(edit.zeroed, 0.0, edit.output_scale)
    if layout is Layout.ROWS_OUT:
        return out_scale.reshape(1, -1)
    kernel = (1,) * (rank - 2)
    if (edit.input_inverse == 1.0).all():
        if layout is Layout.OUT_IN:
            return out_scale.reshape(-1, 1, *kernel)
        inputs_per_group = len(edit.input_inverse) // groups
        by_group = out_scale.reshape(groups, -1)  # (groups, out/groups)
        factor = np.repeat(by_group, inputs_per_group, axis=0)
        return factor.reshape(*factor.shape, *kernel)
    outs = out_scale.reshape(groups, -1)
    ins = edit.input_inverse.reshape(groups, -1)
    if layout is Layout.OUT_IN:
        factor = outs[:, :, None] * ins[:, None, :]  # (groups, out/groups, in/groups)
    else:
        factor = ins[:, :, None] * outs[:, None, :]  # (groups, in/groups, out/groups)
    return factor.reshape(-1, factor.shape[2], *kernel)


def _shift_seen(weight: NDArray[Any], shift: FloatArray, layout: Layout, groups: int) -> FloatArray:
    """sum_i W[o, i, ...] * t[i] over inputs and taps, (out_channels,)."""
    taps = weight.reshape(weight.shape[0], weight.shape[1], -1)
    single = taps.shape[2] == 1
    summed = taps[:, :, 0] if single else taps.sum(axis=2, dtype=np.float64)
    by_group = summed.reshape(groups, -1, summed.shape[1])
    shifts = shift.reshape(groups, -1)
    if layout is Layout.OUT_IN:
        seen: FloatArray = by_group @ shifts[:, :, None]  # (groups, out/groups, 1)
    else:
        seen = shifts[:, None, :] @ by_group  # (groups, 1, out/groups)
    return seen.reshape(-1)
