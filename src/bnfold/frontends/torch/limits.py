"""How far stored values may move from their own size, by dtype; see `core.limits`."""

from __future__ import annotations

import torch

from bnfold.core import limits


def range_limit(dtype: torch.dtype) -> float:
    """How far stored values may be scaled from their own size."""
    return limits.range_limit(_name(dtype))


def growth_limit(dtype: torch.dtype) -> float:
    """How much larger a shift may make what others read."""
    return limits.growth_limit(_name(dtype))


def largest(dtype: torch.dtype) -> float:
    """The largest finite number."""
    return limits.largest(_name(dtype))


def read_bounds(lower: float, upper: float, dtype: torch.dtype) -> tuple[float, float]:
    """The bounds of a clip; at the ends of the dtype there is none."""
    return limits.read_bounds(lower, upper, _name(dtype))


def narrowing(source: torch.dtype, result: torch.dtype) -> dict[str, float]:
    """The limits of an op that rounds what it reads to a narrower dtype; none for any other."""
    is_narrower = result.is_floating_point and result.itemsize < source.itemsize
    return limits.both(_name(result)) if is_narrower else {}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
