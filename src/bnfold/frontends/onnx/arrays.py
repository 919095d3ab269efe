"""The operators that constants are computed with, in NumPy, for `constants`.

Each takes the node, the opset and the operands (None where an optional one is left out), and gives
the outputs. `Unknown` says that this form of the operator is not evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.tensors import numpy_dtype

Array = NDArray[Any]
Operands = Sequence[Array | None]


class Unknown(Exception):  # noqa: N818  # an answer, not an error
    """This form of the operator is not evaluated."""


_BFLOAT16 = numpy_dtype(TensorProto.BFLOAT16)
_LARGEST = 1 << 24
"""Elements of the largest array that is made from a shape."""


def _need(operand: Array | None) -> Array:
    if operand is None:
        raise Unknown
    return operand


def _elementwise(function: Callable[..., Any]) -> Callable[[Node, int, Operands], list[Array]]:
    def evaluate(node: Node, opset: int, operands: Operands) -> list[Array]:
        arrays = [_need(operand) for operand in operands]
        _check_broadcast(arrays)
        result = np.asarray(function(*arrays))
        return [result.astype(arrays[0].dtype) if result.dtype != bool else result]

    return evaluate


def _check_broadcast(arrays: Sequence[Array]) -> None:
    """Two vectors broadcast to a matrix that may be larger than any memory."""
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    if math.prod(shape) > max(_LARGEST, *(array.size for array in arrays)):
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
    """(x - zero_point) * scale, in the dtype of the scale; blocks are left to the runtime."""
    x, scale, zero = _quantization(node, operands)
    if x.dtype.kind not in "iu" or x.dtype.itemsize > 4:
        raise Unknown
    shifted = x.astype(np.int64) - (0 if zero is None else zero.astype(np.int64))
    return [shifted.astype(scale.dtype) * scale]


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
    x, scale = _need(operands[0]), _need(operands[1])
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
    array = _need(operands[0])
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
    condition, a, b = (_need(operand) for operand in operands)
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
    array = _need(operands[0])
    return [_converted(array, numpy_dtype(node.integer("to")))]


def _converted(array: Array, dtype: np.dtype[Any]) -> Array:
    if array.dtype.kind == "f" and dtype.kind in "iu" and not np.isfinite(array).all():
        raise Unknown
    if dtype.isbuiltin != 1 and dtype != _BFLOAT16:  # what does not fit is clipped, or is not
        raise Unknown
    return array.astype(dtype)


def _constant_of_shape(node: Node, opset: int, operands: Operands) -> list[Array]:
    shape = _shape(_need(operands[0]))
    value = node.attribute("value")
    fill = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return [np.full(shape, fill.reshape(-1)[0], dtype=fill.dtype)]


def _shape(array: Array) -> tuple[int, ...]:
    shape = tuple(int(length) for length in array.reshape(-1))
    if any(length < 0 for length in shape) or math.prod(shape) > _LARGEST:
        raise Unknown
    return shape


def _expand(node: Node, opset: int, operands: Operands) -> list[Array]:
    array = _need(operands[0])
    shape = np.broadcast_shapes(array.shape, _shape(_need(operands[1])))
    _shape(np.asarray(shape))
    return [np.broadcast_to(array, shape)]


def reshaped(shape: Sequence[int], target: Sequence[int], *, allow_zero: bool) -> tuple[int, ...]:
    """What Reshape makes of a shape; -1 is what is left, 0 the old length."""
    new = [
        shape[axis] if length == 0 and not allow_zero else length
        for axis, length in enumerate(target)
    ]
    if -1 in new:
        rest = int(np.prod([length for length in new if length != -1], dtype=np.int64))
        if not rest:
            raise Unknown
        new[new.index(-1)] = int(np.prod(shape, dtype=np.int64)) // rest
    return tuple(int(length) for length in new)


def _reshape(node: Node, opset: int, operands: Operands) -> list[Array]:
    array, target = _need(operands[0]), _need(operands[1])
    allow = bool(node.integer("allowzero"))
    return [array.reshape(reshaped(array.shape, target.tolist(), allow_zero=allow))]


def _axes(node: Node, operands: Operands, position: int = 1) -> tuple[int, ...] | None:
    listed = node.attribute("axes")
    if listed is None and len(operands) > position and operands[position] is not None:
        listed = _need(operands[position]).reshape(-1).tolist()
    return None if listed is None else tuple(int(axis) for axis in listed)


def _squeeze(node: Node, opset: int, operands: Operands) -> list[Array]:
    axes = _axes(node, operands)
    if axes == ():  # all for some runtimes, none for others
        raise Unknown
    return [np.squeeze(_need(operands[0]), axis=axes)]


def _unsqueeze(node: Node, opset: int, operands: Operands) -> list[Array]:
    axes = _axes(node, operands)
    if axes is None:
        raise Unknown
    return [np.expand_dims(_need(operands[0]), axes)]


def _transpose(node: Node, opset: int, operands: Operands) -> list[Array]:
    perm = node.integers("perm")
    return [np.transpose(_need(operands[0]), perm or None)]


def _flatten(node: Node, opset: int, operands: Operands) -> list[Array]:
    array = _need(operands[0])
    axis = node.integer("axis", 1)
    axis += array.ndim if axis < 0 else 0
    return [array.reshape(int(np.prod(array.shape[:axis], dtype=np.int64)), -1)]


def _gather(node: Node, opset: int, operands: Operands) -> list[Array]:
    array, indices = _need(operands[0]), _need(operands[1])
    axis = node.integer("axis")
    if array.size // max(1, array.shape[axis]) * indices.size > max(_LARGEST, array.size):
        raise Unknown
    return [np.asarray(np.take(array, indices, axis=axis))]


def _concat(node: Node, opset: int, operands: Operands) -> list[Array]:
    return [np.concatenate([_need(o) for o in operands], axis=node.integer("axis", 1))]


def slice_index(
    shape: Sequence[int],
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> tuple[slice, ...]:
    """The index that a Slice stands for; Python clamps as ONNX does, but for a negative step."""
    index = [slice(None)] * len(shape)
    for position, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = axes[position] if axes else position
        step = steps[position] if steps else 1
        if step < 0:
            start = max(start, -shape[axis])
        backwards_to_start = step < 0 and end < -(1 << 30)
        index[axis] = slice(start, None if backwards_to_start else end, step)
    return tuple(index)


def _slice(node: Node, opset: int, operands: Operands) -> list[Array]:
    array = _need(operands[0])
    if opset < 10:
        parts = [node.integers("starts"), node.integers("ends"), node.integers("axes"), ()]
    else:
        parts = [
            ()
            if len(operands) <= position or (given := operands[position]) is None
            else tuple(int(v) for v in given.reshape(-1))
            for position in (1, 2, 3, 4)
        ]
    starts, ends, axes, steps = parts
    return [array[slice_index(array.shape, starts, ends, axes, steps)]]


def _split(node: Node, opset: int, operands: Operands) -> list[Array]:
    array = _need(operands[0])
    axis = node.integer("axis")
    sizes = split_sizes(
        array.shape[axis],
        node.integers("split")
        or (
            tuple(_need(operands[1]).tolist())
            if len(operands) > 1 and operands[1] is not None
            else ()
        ),
        len(node.outputs),
    )
    return list(np.split(array, np.cumsum(sizes)[:-1], axis=axis))


def split_sizes(length: int, sizes: Sequence[int], count: int) -> tuple[int, ...]:
    """The lengths of the parts: as given, or equal ones, the last of which may be shorter."""
    if sizes:
        return tuple(int(size) for size in sizes)
    each = -(-length // count)
    return (*[each] * (count - 1), length - each * (count - 1))


def _tile(node: Node, opset: int, operands: Operands) -> list[Array]:
    array, repeats = _need(operands[0]), _need(operands[1])
    _shape(np.asarray(array.shape) * repeats)
    return [np.tile(array, repeats.tolist())]


def _range(node: Node, opset: int, operands: Operands) -> list[Array]:
    start, limit, delta = (_need(o).reshape(-1)[0] for o in operands)
    if not delta or (limit - start) / delta > _LARGEST:
        raise Unknown
    return [np.arange(start, limit, delta, dtype=_need(operands[0]).dtype)]


def _reduce(function: Callable[..., Any]) -> Callable[[Node, int, Operands], list[Array]]:
    def evaluate(node: Node, opset: int, operands: Operands) -> list[Array]:
        array = _need(operands[0])
        axes = _axes(node, operands)
        if not axes and node.integer("noop_with_empty_axes"):
            return [array]
        kept = bool(node.integer("keepdims", 1))
        result = function(array, axis=axes or None, keepdims=kept)
        return [np.asarray(result).astype(array.dtype)]

    return evaluate


def _length(array: Array, **how: Any) -> Array:
    return np.asarray(np.sqrt(np.sum(array * array, **how)))


def _identity(node: Node, opset: int, operands: Operands) -> list[Array]:
    return [_need(operands[0])]


TABLE: dict[str, Callable[[Node, int, Operands], list[Array]]] = {
    "Constant": _constant,
    "Identity": _identity,
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Flatten": _flatten,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Tile": _tile,
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
