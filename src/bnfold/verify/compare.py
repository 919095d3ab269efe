"""Measure how far two outputs are apart. NaN and infinity are equal to themselves alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnfold.core.affine import FloatArray
from bnfold.verify.findings import OutputDifference
from bnfold.verify.runner import Array, Output
from bnfold.verify.verdict import rms


def is_number(array: Array) -> bool:
    """Whether rounding means something: floating point, complex, or a small float (kind V)."""
    return array.dtype.kind in "fcV"


def flat(array: Array) -> FloatArray:
    """All numbers in float64, the two parts of complex ones side by side."""
    if array.dtype.kind == "c":
        return np.ascontiguousarray(array, dtype=np.complex128).reshape(-1).view(np.float64)
    if array.dtype.kind in "OSU":  # texts: equal or not, so a number each
        texts = [hash(repr(text)) % 2**52 for text in array.reshape(-1).tolist()]
        return np.array(texts, dtype=np.float64)
    return np.asarray(array, dtype=np.float64).reshape(-1)


def gaps(a: FloatArray, b: FloatArray) -> FloatArray:
    """b - a; 0 where both are the same infinity or both NaN, infinite where only one is."""
    with np.errstate(invalid="ignore", over="ignore"):
        gap = b - a
        if not np.isnan(np.vdot(gap, gap)):  # one look at each, where there is none
            return gap
    unknown = np.isnan(gap)  # of equal infinities, too
    if unknown.any():
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        gap[unknown] = np.where(same[unknown], 0.0, np.inf)
    return gap


def largest_gap(a: Array, b: Array) -> float:
    """The largest absolute difference."""
    return float(np.abs(gaps(flat(a), flat(b))).max(initial=0.0))


def is_same(a: Array, b: Array) -> bool:
    """Whether two arrays hold the very same."""
    return a.shape == b.shape and bool(np.all(gaps(flat(a), flat(b)) == 0.0))


def distance(before: Sequence[Array], after: Sequence[Array]) -> float:
    """RMS of the differences; for integers the share that differs."""
    parts = [gaps(flat(a), flat(b)) for a, b in zip(before, after, strict=True)]
    gap = np.concatenate(parts) if parts else np.zeros(0)
    if before and not is_number(before[0]):
        return float(np.mean(gap != 0)) if gap.size else 0.0
    return rms(gap)


def difference(
    output: Output,
    before: Sequence[Array],
    after: Sequence[Array],
    *,
    error: float,
    own_error: float,
    allowed: float,
    equal: bool,
    detail: str = "",
) -> OutputDifference:
    """What was judged of an output, with its distances over all samples."""
    a = np.concatenate([flat(array) for array in before])
    b = np.concatenate([flat(array) for array in after])
    gap = np.abs(gaps(a, b))
    size = np.abs(a[np.isfinite(a)])
    worst, usual = float(gap.max(initial=0.0)), _mean(gap)
    return OutputDifference(
        name=output.name,
        dtype=output.dtype,
        shape=output.values.shape,
        max_absolute=worst,
        mean_absolute=usual,
        max_relative=_ratio(worst, float(size.max(initial=0.0))),
        mean_relative=_ratio(usual, _mean(size)),
        cosine=1.0 if worst == 0.0 else _cosine(a, b),
        top1=_top1(before, after) if gap.size else None,
        error=error,
        own_error=own_error,
        allowed=allowed,
        equal=equal,
        detail=detail,
    )


def _mean(sizes: FloatArray) -> float:
    return float(sizes.mean()) if sizes.size else 0.0


def _ratio(gap: float, size: float) -> float:
    if gap == 0.0:
        return 0.0
    return gap / size if size else float("inf")


def _cosine(a: FloatArray, b: FloatArray) -> float:
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    # Divided by the largest first: squares of large numbers overflow.
    largest_a, largest_b = np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0)
    if largest_a == 0.0 or largest_b == 0.0:
        return 1.0 if largest_a == largest_b else 0.0
    a, b = a / largest_a, b / largest_b
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def _top1(before: Sequence[Array], after: Sequence[Array]) -> float | None:
    """The share of rows with the same largest column, of (N, classes)."""
    first = before[0]
    if first.ndim != 2 or first.shape[1] < 2 or first.dtype.kind != "f":
        return None
    if any(array.shape[1:] != first.shape[1:] for array in before):
        return None
    pairs = zip(before, after, strict=True)
    same = [np.argmax(a, axis=1) == np.argmax(b, axis=1) for a, b in pairs]
    return float(np.concatenate(same).mean())
