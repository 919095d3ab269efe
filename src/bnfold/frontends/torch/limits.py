"""How far stored values may move from their own size, by dtype; see `core.choose`."""

from __future__ import annotations

import torch


def range_limit(dtype: torch.dtype) -> float:
    """How far stored values may be scaled from their own size."""
    return 2.0**8 if dtype == torch.float16 else 2.0**40


def growth_limit(dtype: torch.dtype) -> float:
    """How much larger a shift may make what others read: as many digits are lost."""
    if dtype == torch.float64:
        return 2.0**20
    return 2.0**4 if dtype in (torch.float16, torch.bfloat16) else 2.0**10


def narrowing(source: torch.dtype, result: torch.dtype) -> dict[str, float]:
    """The limits of an op that rounds what it reads to a narrower dtype; none for any other."""
    if not result.is_floating_point or result.itemsize >= source.itemsize:
        return {}
    return {"range_limit": range_limit(result), "growth_limit": growth_limit(result)}
