"""Operators on constants that move values without changing them, in NumPy: see `constant_ops`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnfold.frontends.onnx.constant_operands import (
    LARGEST,
    Array,
    Operands,
    Operator,
    Unknown,
    checked_shape,
    listed_axes,
    need,
)
from bnfold.frontends.onnx.nodes import Node


def _expand(node: Node, opset: int, operands: Operands) -> list[Array]:
    array = need(operands[0])
    shape = np.broadcast_shapes(array.shape, checked_shape(need(operands[1])))
    checked_shape(np.asarray(shape))
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
    array, target = need(operands[0]), need(operands[1])
    allow = bool(node.integer("allowzero"))
    return [array.reshape(reshaped(array.shape, target.tolist(), allow_zero=allow))]


def _squeeze(node: Node, opset: int, operands: Operands) -> list[Array]:
    axes = listed_axes(node, operands)
    if axes == ():  # all for some runtimes, none for others
        raise Unknown
    return [np.squeeze(need(operands[0]), axis=axes)]


def _unsqueeze(node: Node, opset: int, operands: Operands) -> list[Array]:
    axes = listed_axes(node, operands)
    if axes is None:
        raise Unknown
    return [np.expand_dims(need(operands[0]), axes)]


def _transpose(node: Node, opset: int, operands: Operands) -> list[Array]:
    perm = node.integers("perm")
    return [np.transpose(need(operands[0]), perm or None)]


def _flatten(node: Node, opset: int, operands: Operands) -> list[Array]:
    array = need(operands[0])
    axis = node.integer("axis", 1)
    axis += array.ndim if axis < 0 else 0
    return [array.reshape(int(np.prod(array.shape[:axis], dtype=np.int64)), -1)]


def _gather(node: Node, opset: int, operands: Operands) -> list[Array]:
    array, indices = need(operands[0]), need(operands[1])
    axis = node.integer("axis")
    if array.size // max(1, array.shape[axis]) * indices.size > max(LARGEST, array.size):
        raise Unknown
    return [np.asarray(np.take(array, indices, axis=axis))]


def _concat(node: Node, opset: int, operands: Operands) -> list[Array]:
    return [np.concatenate([need(o) for o in operands], axis=node.integer("axis", 1))]


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
    array = need(operands[0])
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
    array = need(operands[0])
    axis = node.integer("axis")
    sizes = split_sizes(
        array.shape[axis],
        node.integers("split")
        or (
            tuple(need(operands[1]).tolist())
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
    array, repeats = need(operands[0]), need(operands[1])
    checked_shape(np.asarray(array.shape) * repeats)
    return [np.tile(array, repeats.tolist())]


VIEWS: dict[str, Operator] = {
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
}
