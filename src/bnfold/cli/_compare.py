"""Run the original and the folded model on the same inputs and measure how far they are apart.

Framework-free: each kind of model says how to run itself and hands over its outputs as arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import ExampleInputError, FoldFailedError

# The largest difference that rounding explains, relative to the largest value of the output.
# A fold reorders the same arithmetic: each dtype gets some 10^3 to 10^6 of its rounding steps
# (2^-52, 2^-23, 2^-10, 2^-7), because a deep network adds them up; a wrong fold is off by far more.
_TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "float16": 5e-2, "bfloat16": 5e-2}
# Integers come from comparisons (an argmax), which one rounding may tip over: the share that may.
_INTEGER_TOLERANCE = 5e-2
_NUDGES = 4
"""How many times the effect of moving the inputs by their last bit counts as rounding."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two runs are apart."""

    absolute: float
    """Largest absolute difference of an output."""
    relative: float
    """Largest difference relative to the largest value of the same output."""
    tolerance: float
    """What `relative` may be."""

    def to_dict(self) -> dict[str, float]:
        """Plain data for JSON."""
        return {
            "absolute": self.absolute,
            "relative": self.relative,
            "tolerance": self.tolerance,
        }

    def __str__(self) -> str:
        return f"largest difference {self.absolute:.2g} absolute, {self.relative:.2g} relative"


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """One output of a run."""

    values: NDArray[Any]
    """In a dtype that NumPy knows; wide enough for `dtype`."""
    dtype: str
    """The name of the dtype that the model returned: float32, bfloat16, int64, ..."""


Run = Callable[[], Sequence[Output]]


def check_equal(
    name: str,
    original: Run,
    folded: Run,
    dtypes: frozenset[str],
    *,
    nudged: Run | None = None,
) -> Difference:
    """The largest relative difference of any output; `dtypes` are those of the weights.

    `nudged` runs the original on inputs that are moved to the neighbouring numbers. Where that
    alone changes the outputs by more than rounding explains in other networks, it says what it
    explains in this one.

    Raises ExampleInputError if the original raises, FoldFailedError if the folded one does or if
    the outputs are plainly unequal.
    """
    try:
        expected = original()
    except Exception as error:
        raise ExampleInputError(name, error) from error
    try:
        actual = folded()
    except Exception as error:
        raise FoldFailedError(
            f"the folded {name} raised {type(error).__name__} on the inputs that the original"
            f" accepts: {error}".rstrip(".")
        ) from error
    if len(expected) != len(actual):
        raise FoldFailedError(
            f"the folded {name} returns {len(actual)} tensors, the original {len(expected)}"
        )
    pairs = list(zip(expected, actual, strict=True))
    differences = [_difference(name, a, b, dtypes) for a, b in pairs]
    worst = max(differences, key=_excess, default=Difference(0.0, 0.0, 0.0))
    if _excess(worst) > 1.0 and nudged is not None:
        own = [_difference(name, a, b, dtypes) for a, b in zip(expected, nudged(), strict=True)]
        differences = [
            replace(d, tolerance=max(d.tolerance, _NUDGES * o.relative))
            for d, o in zip(differences, own, strict=True)
        ]
        worst = max(differences, key=_excess)
    if not _excess(worst) <= 1.0:
        raise FoldFailedError(
            f"the folded {name} differs from the original by {worst.absolute:.2g} absolute,"
            f" {worst.relative:.2g} relative (rounding explains {worst.tolerance:.0e});"
            " nothing was written"
        )
    return worst


def _excess(difference: Difference) -> float:
    """Above 1 where rounding does not explain it; NaN counts as that."""
    if difference.relative <= difference.tolerance:
        return difference.relative / difference.tolerance if difference.tolerance else 0.0
    return np.inf if np.isnan(difference.relative) else difference.relative / difference.tolerance


def _difference(name: str, expected: Output, actual: Output, dtypes: frozenset[str]) -> Difference:
    """How far one output is off. Raises FoldFailedError if it is another kind of array."""
    a, b = expected.values, actual.values
    if (a.shape, expected.dtype) != (b.shape, actual.dtype):
        raise FoldFailedError(
            f"an output of the folded {name} is {b.shape} {actual.dtype},"
            f" of the original {a.shape} {expected.dtype}"
        )
    gap, scale = _gap(a, b)
    if a.dtype.kind in "fcV":  # V: the small floats that NumPy does not know by itself
        tolerance = _tolerance(dtypes | {expected.dtype})
        relative = gap / scale if scale else float(gap > 0)
    else:
        tolerance = _INTEGER_TOLERANCE
        relative = float((a != b).mean()) if a.size else 0.0
    return Difference(gap, relative, tolerance)


def _gap(expected: NDArray[Any], actual: NDArray[Any]) -> tuple[float, float]:
    """Largest difference, and largest value. NaN and infinity are equal to themselves only."""
    if expected.dtype.kind in "OSU":  # strings
        return 0.0, 0.0
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = expected.astype(wide).reshape(-1), actual.astype(wide).reshape(-1)
    if wide is np.complex128:
        a, b = a.view(np.float64), b.view(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        gaps = np.abs(np.where(same, 0.0, a - b))
    if not gaps.size:
        return 0.0, 0.0
    finite = np.abs(a[np.isfinite(a)])
    return float(gaps.max()), float(finite.max()) if finite.size else 0.0


def _tolerance(dtypes: frozenset[str]) -> float:
    return max((_TOLERANCE[name] for name in dtypes if name in _TOLERANCE), default=1e-3)
