"""The operators that constants are computed with, in NumPy, for `constants`.

Each takes the node, the opset and the operands (None where an optional one is left out), and gives
the outputs. `Unknown` says that this form of the operator is not evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from bnfold.frontends.onnx import constant_operands
from bnfold.frontends.onnx.constant_operands import Array, Operands, Operator, Unknown, need
from bnfold.frontends.onnx.constant_views import VIEWS
from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.tensors import numpy_dtype

_BFLOAT16 = numpy_dtype(TensorProto.BFLOAT16)


def _elementwise(function: Callable[..., Any]) -> Operator:
    def evaluate(node: Node, opset: int, operands: Operands) -> list[Array]:
        arrays = [need(operand) for operand in operands]
        _check_broadcast(arrays)
        result = np.asarray(function(*arrays))
        return [result.astype(arrays[0].dtype) if result.dtype != bool else result]

    return evaluate


def _check_broadcast(arrays: Sequence[Array]) -> None:
    """Two vectors broadcast to a matrix that may be larger than any memory."""
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    if math.prod(shape) > max(constant_operands.LARGEST, *(array.size for array in arrays)):
        raise Unknown


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu":  # C++ rounds towards zero
        if not np.all(b):
            raise Unknown
        quotient = np.abs(a) // np.abs(b)
        return np.asarray(np.where((a < 0) != (b < 0), -quotient, quotient))
    return np.asarray(a / b)


def _reciprocal(a: Array) -> Array:
    return np.asarray(np.ones((), a.dtype) / a)


def _dequantize_linear(node: Node, opset: int, operands: Operands) -> list[Array]:
    """(x - zero_point) * scale, in the dtype that is asked for, or the scale's.

    Blocks are left to the runtime.
    """
    x, scale, zero = _quantization(node, operands)
    asked = node.integer("output_dtype")
    if asked and asked not in _DEQUANTIZED:
        raise Unknown
    if asked:
        scale = scale.astype(_DEQUANTIZED[asked])
    if x.dtype.kind not in "iu" or x.dtype.itemsize > 4:
        raise Unknown
    shifted = x.astype(np.int64) - (0 if zero is None else zero.astype(np.int64))
    return [shifted.astype(scale.dtype) * scale]


_DEQUANTIZED: dict[int, type] = {1: np.float32, 10: np.float16, 11: np.float64}
"""By their numbers in ONNX."""


def _quantize_linear(node: Node, opset: int, operands: Operands) -> list[Array]:
    """round(x / scale) + zero_point, to the nearest even and within the range of 8 or 16 bits."""
    x, scale, zero = _quantization(node, operands)
    zero = np.zeros((), np.uint8) if zero is None else zero
    if x.dtype != np.float32 or zero.dtype.kind not in "iu" or zero.dtype.itemsize > 2:
        raise Unknown
    if node.integer("output_dtype") or not np.isfinite(x).all() or not np.all(scale):
        raise Unknown
    range_ = np.iinfo(zero.dtype)
    rounded = np.rint(x / scale.astype(np.float32)) + zero.astype(np.float32)
    return [np.clip(rounded, range_.min, range_.max).astype(zero.dtype)]


def _quantization(node: Node, operands: Operands) -> tuple[Array, Array, Array | None]:
    """The operands, those per channel laid along their axis."""
    x, scale = need(operands[0]), need(operands[1])
    zero = operands[2] if len(operands) > 2 else None
    if node.integer("block_size") or scale.ndim > 1 or scale.dtype.kind != "f":
        raise Unknown
    if scale.ndim and scale.size > 1:
        axis = node.integer("axis", 1) % x.ndim
        laid = [-1 if position == axis else 1 for position in range(x.ndim)]
        if len(scale) != x.shape[axis]:
            raise Unknown
        return x, scale.reshape(laid), None if zero is None else zero.reshape(laid)
    return x, scale.reshape(()), None if zero is None else zero.reshape(())


def _clip(node: Node, opset: int, operands: Operands) -> list[Array]:
    array = need(operands[0])
    if opset < 11:
        low, high = node.attribute("min"), node.attribute("max")
    else:
        low, high = (
            operands[position] if len(operands) > position else None for position in (1, 2)
        )
    array = array if low is None else np.maximum(array, np.asarray(low).astype(array.dtype))
    return [array if high is None else np.minimum(array, np.asarray(high).astype(array.dtype))]


def _added(*arrays: Array) -> Array:
    return np.asarray(sum(arrays[1:], arrays[0]))


def _mean(*arrays: Array) -> Array:
    return np.asarray(_added(*arrays) / np.asarray(len(arrays), arrays[0].dtype))


def _where(node: Node, opset: int, operands: Operands) -> list[Array]:
    condition, a, b = (need(operand) for operand in operands)
    _check_broadcast((condition, a, b))
    return [np.where(condition, a, b)]


def _constant(node: Node, opset: int, operands: Operands) -> list[Array]:
    value = node.attribute("value")
    if isinstance(value, TensorProto):
        return [numpy_helper.to_array(value)]
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32)):
        if (number := node.attribute(name)) is not None:
            return [np.array(number, dtype=dtype)]
    for name in ("value_int", "value_ints"):
        if (number := node.attribute(name)) is not None:
            return [np.array(number, dtype=np.int64)]
    raise Unknown


def _cast(node: Node, opset: int, operands: Operands) -> list[Array]:
    array = need(operands[0])
    return [_converted(array, numpy_dtype(node.integer("to")))]


def _converted(array: Array, dtype: np.dtype[Any]) -> Array:
    if array.dtype.kind == "f" and dtype.kind in "iu" and not np.isfinite(array).all():
        raise Unknown
    if dtype.isbuiltin != 1 and dtype != _BFLOAT16:  # what does not fit is clipped, or is not
        raise Unknown
    return array.astype(dtype)


def _range(node: Node, opset: int, operands: Operands) -> list[Array]:
    start, limit, delta = (need(o).reshape(-1)[0] for o in operands)
    if not delta or (limit - start) / delta > constant_operands.LARGEST:
        raise Unknown
    return [np.arange(start, limit, delta, dtype=need(operands[0]).dtype)]


def _reduce(function: Callable[..., Any]) -> Operator:
    def evaluate(node: Node, opset: int, operands: Operands) -> list[Array]:
        array = need(operands[0])
        axes = constant_operands.listed_axes(node, operands)
        if not axes and node.integer("noop_with_empty_axes"):
            return [array]
        kept = bool(node.integer("keepdims", 1))
        result = function(array, axis=axes or None, keepdims=kept)
        return [np.asarray(result).astype(array.dtype)]

    return evaluate


def _length(array: Array, **how: Any) -> Array:
    return np.asarray(np.sqrt(np.sum(array * array, **how)))


def _identity(node: Node, opset: int, operands: Operands) -> list[Array]:
    return [need(operands[0])]


def _constant_of_shape(node: Node, opset: int, operands: Operands) -> list[Array]:
    shape = constant_operands.checked_shape(need(operands[0]))
    value = node.attribute("value")
    fill = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return [np.full(shape, fill.reshape(-1)[0], dtype=fill.dtype)]


TABLE: dict[str, Operator] = {
    **VIEWS,
    "Constant": _constant,
    "Identity": _identity,
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Where": _where,
    "Add": _elementwise(np.add),
    "Sub": _elementwise(np.subtract),
    "Mul": _elementwise(np.multiply),
    "Div": _elementwise(_divide),
    "Neg": _elementwise(np.negative),
    "Abs": _elementwise(np.abs),
    "Sqrt": _elementwise(np.sqrt),
    "Reciprocal": _elementwise(_reciprocal),
    "Pow": _elementwise(np.power),
    "Exp": _elementwise(np.exp),
    "Floor": _elementwise(np.floor),
    "Ceil": _elementwise(np.ceil),
    "Equal": _elementwise(np.equal),
    "Greater": _elementwise(np.greater),
    "Less": _elementwise(np.less),
    "Not": _elementwise(np.logical_not),
    "And": _elementwise(np.logical_and),
    "Or": _elementwise(np.logical_or),
    "Log": _elementwise(np.log),
    "Sign": _elementwise(np.sign),
    "Relu": _elementwise(lambda array: np.maximum(array, 0)),
    "Clip": _clip,
    "Sum": _elementwise(_added),
    "Mean": _elementwise(_mean),
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
    "Min": _elementwise(lambda *arrays: np.minimum.reduce(np.broadcast_arrays(*arrays))),
    "Max": _elementwise(lambda *arrays: np.maximum.reduce(np.broadcast_arrays(*arrays))),
    "ReduceMean": _reduce(np.mean),
    "ReduceL2": _reduce(_length),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
}
