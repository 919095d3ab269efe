"""How far stored values may move from their own size, by dtype; see `choose`."""

from __future__ import annotations

import math

from bnfold.core.affine import FloatArray

_LARGEST = {
    "float16": 65504.0,
    "bfloat16": math.ldexp(255.0, 120),
    "float32": math.ldexp(float(2**24 - 1), 104),
    "float64": math.ldexp(float(2**53 - 1), 971),
}


_SMALLEST_WHOLE = {"float16": 2.0**-17}
"""The least root of the mean square that keeps nine bits of numbers beside a step of 2^-24: below
its normal numbers float16 has no more. The other dtypes reach down to where nothing is."""


def smallest_whole(dtype: str) -> float:
    """How small the weights of a channel may be, on the average, and keep their digits."""
    return _SMALLEST_WHOLE.get(dtype, 0.0)


def largest(dtype: str) -> float:
    """The largest finite number; infinite where the dtype is not known."""
    return _LARGEST.get(dtype, math.inf)


def read_bounds(lower: float, upper: float, dtype: str) -> tuple[float, float]:
    """The bounds of a clip: one at the end of the dtype is none, as exporters write that."""
    most = largest(dtype)
    return -math.inf if lower <= -most else lower, math.inf if upper >= most else upper


def range_limit(dtype: str) -> float:
    """How far stored values may be scaled from their own size."""
    return 2.0**8 if dtype == "float16" else 2.0**40


def growth_limit(dtype: str) -> float:
    """How much larger a shift may make what others read: as many digits are lost."""
    if dtype == "float64":
        return 2.0**17
    return 2.0**4 if dtype in ("float16", "bfloat16") else 2.0**10


def keeps_digits(gains: FloatArray, passed: float, dtype: str) -> bool:
    """Whether an op that is off by what is passed beside it keeps the digits of what both make.

    W * x is computed as (W - b * I) * x + b * x, which rounds as b * x does. `gains` are those of W
    per channel, `passed` is b. A channel may lose what a shift may cost; all together three bits.
    """
    live = gains[gains > 0]
    if not len(live):  # constants, from which what is passed cancels
        return True
    total = _ALL_TOGETHER * math.sqrt(float(gains @ gains) / len(gains))
    return bool((abs(passed) <= growth_limit(dtype) * live).all()) and abs(passed) <= total


_ALL_TOGETHER = 8.0


def both(dtype: str) -> dict[str, float]:
    """Both, as roles have them."""
    return {"range_limit": range_limit(dtype), "growth_limit": growth_limit(dtype)}
