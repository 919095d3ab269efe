"""Which variable each element of a tensor belongs to.

A label array is an integer array that broadcasts to the tensor's shape, kept small: an axis along
which labels do not change has length 1, (1, C, 1, 1) for an image. Label 0 is the pinned variable:
its value is stored as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import numpy as np

from bnfold.core.forest import IntArray

Apply = Callable[[Sequence[IntArray]], Sequence[IntArray]]
"""What an op that moves values does to labels, each broadcast to its tensor's shape."""
MAX_PAIRS = 2_000_000
"""More distinct label combinations than this are not worth tracking: the op is taken as opaque."""
SMALL = 4096
"""Up to this many elements, looking for repeated combinations costs more than it saves."""


def pinned(rank: int) -> IntArray:
    """Labels of a tensor that is stored as it is."""
    return np.zeros((1,) * rank, dtype=np.int64)


def along(first: int, count: int, axis: int, rank: int) -> IntArray:
    """`count` fresh variables from number `first`, one per index of `axis`."""
    shape = [1] * rank
    shape[axis] = count
    return np.arange(first, first + count, dtype=np.int64).reshape(shape)


def expand(labels: IntArray, shape: Sequence[int]) -> IntArray:
    """The labels at the tensor's full shape, without copying."""
    shape = tuple(shape)
    if labels.shape == shape:
        return labels
    fits = len(labels.shape) == len(shape) and labels.flags.c_contiguous
    if not fits or not all(a in (1, b) for a, b in zip(labels.shape, shape, strict=True)):
        return np.broadcast_to(labels, shape)
    # The same for what is almost always here, in a tenth of the time.
    steps = zip(labels.shape, labels.strides, strict=True)
    strides = [0 if length == 1 else step for length, step in steps]
    return np.ndarray(shape, labels.dtype, labels, strides=strides)


def compress(labels: IntArray) -> IntArray:
    """The smallest array that still broadcasts to the same labels."""
    if not labels.size:  # nothing is there to be stored
        return pinned(labels.ndim)
    # Axes that are broadcast go first, without a look at the values: the tensor may be huge.
    labels = thin(labels)
    for axis in range(labels.ndim):
        if labels.shape[axis] <= 1:
            continue
        first = labels.take([0], axis=axis)
        if (labels == first).all():
            labels = first
    return labels


def thin(labels: IntArray, keep: Collection[int] = ()) -> IntArray:
    """The labels with each axis that is broadcast at length 1, but for those to keep."""
    return labels[
        tuple(
            slice(0, 1) if step == 0 and axis not in keep else slice(None)
            for axis, step in enumerate(labels.strides)
        )
    ]


def concat(parts: Sequence[IntArray], axis: int, most: int | None = None) -> IntArray:
    """The labels side by side; other axes along which no part changes come out at length 1.

    A part of length 1 along another axis is broadcast to the rest. Raises ValueError where that
    makes more than `most` labels.
    """
    shared = np.broadcast_shapes(*((*p.shape[:axis], *p.shape[axis + 1 :]) for p in parts))
    full = [np.broadcast_to(p, (*shared[:axis], p.shape[axis], *shared[axis:])) for p in parts]
    kept = {axis} | {dim for part in full for dim, step in enumerate(part.strides) if step}
    small = [thin(part, kept) for part in full]
    if most is not None and sum(part.size for part in small) > most:
        raise ValueError("too many labels to follow")
    return np.concatenate(small, axis=axis)


def picked(
    labels: IntArray, axes: Sequence[int], shape: Sequence[int], place: int | None = None
) -> IntArray:
    """Labels of what is picked along axes on which they do not change.

    The axes keep their places, and the others may be cut; or they go, and as many as the new
    shape has more stand in front of the one that is at `place` among the others.
    """
    if place is None:
        lengths = (1 if axis in axes else length for axis, length in enumerate(shape))
        return np.broadcast_to(labels[tuple(map(slice, lengths))], tuple(shape))
    kept = labels[tuple(0 if axis in axes else slice(None) for axis in range(labels.ndim))]
    new = (1,) * (len(shape) - kept.ndim)
    return np.broadcast_to(kept.reshape(kept.shape[:place] + new + kept.shape[place:]), shape)


def merge_axes(labels: IntArray, axes: Sequence[int]) -> tuple[IntArray, IntArray, IntArray]:
    """Labels with `axes` reduced to length 1, and the pairs that must be equal for that."""
    axes = tuple(axis % labels.ndim for axis in axes)
    if all(labels.shape[axis] == 1 for axis in axes):
        none = np.zeros(0, dtype=np.int64)
        return labels, none, none
    first = labels
    for axis in axes:
        first = first.take([0], axis=axis)
    others = np.broadcast_to(first, labels.shape)
    differ = labels != others
    return first, labels[differ], others[differ]


def to_channels(labels: IntArray, axis: int, count: int) -> tuple[IntArray, IntArray, IntArray]:
    """One label per channel of `axis`, (count,), and the pairs that must be equal for that."""
    axis %= labels.ndim
    rest = [dim for dim in range(labels.ndim) if dim != axis]
    first, left, right = merge_axes(labels, rest)
    return expand(first.reshape(-1), (count,)), left, right


def combine(arrays: Sequence[IntArray]) -> tuple[list[IntArray], IntArray, int] | None:
    """The distinct combinations that occur when arrays are broadcast against each other.

    Returns the labels of each array per combination, which combination each element has
    (compressed), and how many there are; None if there are too many to track.
    """
    shapes = {array.shape for array in arrays}
    shape = shapes.pop() if len(shapes) == 1 else np.broadcast_shapes(*shapes)
    total = math.prod(shape)
    if total > MAX_PAIRS:
        return None
    flat = [expand(array, shape).reshape(-1) for array in arrays]
    if total <= SMALL and total <= max(array.size for array in arrays):
        # One of the arrays is already as fine as the result: few combinations, if any, repeat.
        return flat, np.arange(total, dtype=np.int64).reshape(shape), total
    key = flat[0]
    for labels in flat[1:]:
        _, key = np.unique(key, return_inverse=True)
        key = key * (int(labels.max(initial=0)) + 1) + labels
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return [labels[first] for labels in flat], compress(inverse.reshape(shape)), len(first)


def repeat_along_an_axis(labels: IntArray) -> bool:
    """Whether labels vary along an axis and come again on it.

    Channels that lie along an axis are all different. Where some come again, the axis holds
    something else beside them (rows of an image, say), and which channel is where depends on how
    much of that there is.
    """
    for axis, size in enumerate(labels.shape):
        if size > 1:
            rows = np.moveaxis(labels, axis, 0).reshape(size, -1)
            different = len(np.unique(rows, axis=0))
            if 1 < different < size:
                return True
    return False


def vary_off_the_channels(labels: IntArray) -> bool:
    """Whether labels vary along another axis than the second, where channels lie."""
    return any(size > 1 for axis, size in enumerate(labels.shape) if axis != 1)
