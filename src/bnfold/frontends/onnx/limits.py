"""How far stored values may move from their own size, by data type; see `core.limits`."""

from __future__ import annotations

from onnx import TensorProto

from bnfold.core import limits

_NAMES: dict[int | None, tuple[str, int]] = {
    TensorProto.DOUBLE: ("float64", 64),
    TensorProto.FLOAT: ("float32", 32),
    TensorProto.FLOAT16: ("float16", 16),
    TensorProto.BFLOAT16: ("bfloat16", 16),
}
"""Name and bits per data type."""


def range_limit(data_type: int) -> float:
    """How far stored values may be scaled from their own size."""
    return limits.range_limit(_name(data_type))


def growth_limit(data_type: int) -> float:
    """How much larger a shift may make what others read."""
    return limits.growth_limit(_name(data_type))


def largest(data_type: int) -> float:
    """The largest finite number."""
    return limits.largest(_name(data_type))


def read_bounds(lower: float, upper: float, data_type: int) -> tuple[float, float]:
    """The bounds of a clip; at the ends of the data type there is none."""
    return limits.read_bounds(lower, upper, _name(data_type))


def narrowing(source: int | None, result: int | None) -> dict[str, float]:
    """The limits of an op that rounds what it reads to a narrower type; none for any other."""
    if source not in _NAMES or result not in _NAMES:
        return {}
    (_, before), (name, after) = _NAMES[source], _NAMES[result]
    return limits.both(name) if after < before else {}


def _name(data_type: int) -> str:
    return _NAMES[data_type][0] if data_type in _NAMES else ""
