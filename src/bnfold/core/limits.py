"""How far stored values may move from their own size, by dtype; see `choose`."""

from __future__ import annotations


def range_limit(dtype: str) -> float:
    """How far stored values may be scaled from their own size."""
    return 2.0**8 if dtype == "float16" else 2.0**40


def growth_limit(dtype: str) -> float:
    """How much larger a shift may make what others read: as many digits are lost."""
    if dtype == "float64":
        return 2.0**20
    return 2.0**4 if dtype in ("float16", "bfloat16") else 2.0**10


def both(dtype: str) -> dict[str, float]:
    """Both, as roles have them."""
    return {"range_limit": range_limit(dtype), "growth_limit": growth_limit(dtype)}
