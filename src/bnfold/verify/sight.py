"""Accept on sight what a rounding of every layer explains, without any run more.

A run of L layers rounds each of them once more, which moves it by up to u of its size, u being the
unit roundoff of the dtype. If all of these point the same way, the output moves by L * u of its
size; the largest of N numbers by k times as much (see `verdict`). A difference below that is no
fault that anybody could tell from rounding. One above it may still be rounding: layers may make
small differences larger. Then the network's own noise has to be measured; `thorough` does that.

16 bits are never accepted on sight: there, a rounding of every layer explains nearly everything.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnfold.core.affine import FloatArray
from bnfold.verify import compare, verdict
from bnfold.verify.findings import OutputDifference
from bnfold.verify.result import VerifyResult
from bnfold.verify.runner import Array, Output

_FINE = 2.0**-24
"""Unit roundoff of float32."""
_FEW = 32
"""Numbers from which a channel has a size of its own."""


def accept(
    before: Sequence[Output], after: Sequence[Output], layers: int, *, samples: int
) -> VerifyResult | None:
    """The verdict "equal", where the outputs alone show it; None where that is in doubt."""
    if len(before) != len(after):
        return None
    count = sum(output.values.size for output in before)
    k = verdict.factor(count)
    differences = []
    for original, folded in zip(before, after, strict=True):
        if (original.values.shape, original.dtype) != (folded.values.shape, folded.dtype):
            return None
        difference = _accepted(original, folded.values, k * max(1, layers))
        if difference is None:
            return None
        differences.append(difference)
    return VerifyResult(True, tuple(differences), samples=samples, truth="original")


def _accepted(before: Output, after: Array, roundings: float) -> OutputDifference | None:
    unit = verdict.unit(before.dtype)
    first, second = compare.flat(before.values), compare.flat(after)
    gap = np.abs(compare.gaps(first, second))
    allowed = roundings * unit * _sizes(before.values)
    if (
        unit > _FINE
        or not np.isfinite(allowed).all()
        or not (gap.reshape(allowed.shape) <= allowed).all()
    ):
        return None
    return compare.difference(
        before,
        [before.values],
        [after],
        error=verdict.rms(gap),
        own_error=0.0,
        allowed=float(allowed.max(initial=0.0)),
        equal=True,
    )


def _sizes(values: Array) -> FloatArray:
    """How large the numbers around each number are: those of its channel, if these are many."""
    flat = np.abs(compare.flat(values))
    finite = np.where(np.isfinite(flat), flat, 0.0)
    whole = np.full(finite.shape, verdict.rms(finite))
    if values.dtype.kind != "f" or values.ndim < 3:
        return whole
    sizes = whole.reshape(values.shape)
    squares = np.square(finite).reshape(values.shape)
    for axis in {1, values.ndim - 1}:
        others = tuple(dim for dim in range(values.ndim) if dim != axis)
        if values.size // max(1, values.shape[axis]) >= _FEW:
            sizes = np.minimum(sizes, np.sqrt(squares.mean(axis=others, keepdims=True)))
    return sizes.reshape(-1)
