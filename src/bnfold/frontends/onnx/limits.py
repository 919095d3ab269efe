"""How far stored values may move from their own size, by data type; see `core.choose`."""

from __future__ import annotations


def range_limit(data_type: int) -> float:
    """How far stored values may be scaled from their own size."""
    from onnx import TensorProto

    return 2.0**8 if data_type == TensorProto.FLOAT16 else 2.0**40


def growth_limit(data_type: int) -> float:
    """How much larger a shift may make what others read: as many digits are lost."""
    from onnx import TensorProto

    if data_type == TensorProto.DOUBLE:
        return 2.0**20
    return 2.0**4 if data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16) else 2.0**10


def narrowing(source: int | None, result: int | None) -> dict[str, float]:
    """The limits of an op that rounds what it reads to a narrower type; none for any other."""
    from onnx import TensorProto

    bits: dict[int | None, int] = {TensorProto.DOUBLE: 64, TensorProto.FLOAT: 32}
    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    if source not in bits or result not in (TensorProto.FLOAT, *halves):
        return {}
    if bits.get(result, 16) >= bits[source]:
        return {}
    return {"range_limit": range_limit(result), "growth_limit": growth_limit(result)}
