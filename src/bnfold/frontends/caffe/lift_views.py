"""Layers that move values, pool them, or combine several: no weights, so nothing to edit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bnfold.core import graph as g
from bnfold.core import labels as lab
from bnfold.core.forest import IntArray
from bnfold.frontends.caffe.lifter import MAX_ELEMENTS, ROOM, Lifter, placeholder
from bnfold.frontends.caffe.net import Layer, Shape
from bnfold.frontends.caffe.shapes import (
    Window,
    canonical,
    concat_axis,
    permutation,
    pooled,
    slice_cuts,
    window,
)

_OPERATIONS = {0: "PROD", 1: "SUM", 2: "MAX"}
_POOLS = {0: "MAX", 1: "AVE", 2: "STOCHASTIC"}
_SPATIAL = (2, 3)

# ------------------------------------------------------------------- elementwise


def relu(lifter: Lifter, layer: Layer) -> bool:
    """ReLU, leaky if it has a slope; a fork's options for another upper bound are not known."""
    options = layer.options.part("relu_param")
    if not {field.name for field in options.message.fields} <= {"negative_slope", "engine"}:
        return False
    slope = options.number("negative_slope", 0.0)
    role = g.Homogeneous(np.full((), slope)) if slope else g.Clip(0.0, math.inf, room=ROOM)
    return _one_to_one(lifter, layer, role)


def relu6(lifter: Lifter, layer: Layer) -> bool:
    """ReLU6 of forks, without options."""
    return not layer.options.has("relu6_param") and _one_to_one(
        lifter, layer, g.Clip(0.0, 6.0, room=ROOM)
    )


def homogeneous(lifter: Lifter, layer: Layer) -> bool:
    """PReLU, AbsVal."""
    slope = np.full((), -1.0) if layer.type == "AbsVal" else None
    return _one_to_one(lifter, layer, g.Homogeneous(slope))


def clip(lifter: Lifter, layer: Layer) -> bool:
    """Clip, with two numbers as bounds."""
    options = layer.options.part("clip_param")
    if not options.has("min") or not options.has("max"):
        return False
    lower, upper = options.number("min", 0.0), options.number("max", 0.0)
    return lower <= upper and _one_to_one(lifter, layer, g.Clip(lower, upper, room=ROOM))


def identity(lifter: Lifter, layer: Layer) -> bool:
    """Split copies its bottom to each top."""
    if len(layer.bottoms) != 1:
        return False
    count = len(layer.tops)
    view = g.View(lambda labels: [labels[0]] * count)
    lifter.add(layer, view, layer.inputs, layer.outputs)
    return True


def dropout(lifter: Lifter, layer: Layer) -> bool:
    """Nothing in the TEST phase; a fork's scale_train moves a factor there."""
    is_plain = not layer.options.part("dropout_param").has("scale_train")
    return is_plain and layer.phase == "TEST" and identity(lifter, layer)


def silence(lifter: Lifter, layer: Layer) -> bool:
    """Reads its bottoms to throw them away."""
    return not layer.tops


def _is_one_to_one(layer: Layer) -> bool:
    return len(layer.bottoms) == len(layer.tops) == 1


def _only_image(lifter: Lifter, layer: Layer) -> Shape | None:
    """The shape of the one bottom of four axes; None where there are more, or other tops."""
    shape = lifter.source(layer)
    return shape if shape is not None and len(shape) == 4 and _is_one_to_one(layer) else None


def _one_to_one(lifter: Lifter, layer: Layer, role: g.Role) -> bool:
    if not _is_one_to_one(layer):
        return False
    lifter.add(layer, role, layer.inputs, layer.outputs)
    return True


# ------------------------------------------------------------------- pooling


def pooling(lifter: Lifter, layer: Layer) -> bool:
    """MAX ignores its border; AVE counts the zeros of its padding."""
    options = layer.options.part("pooling_param")
    shape = _only_image(lifter, layer)
    if shape is None:
        return False
    is_global = options.flag("global_pooling", default=False)
    kernel = window(options, 2)
    if not is_global and kernel is None:
        return False
    is_empty = not is_global and kernel is not None and _has_empty_windows(layer, kernel, shape)
    pads = kernel is not None and any(kernel.pad)
    kind = options.word("pool", "MAX", _POOLS)
    role: g.Role
    if kind == "MAX" and not is_empty:
        role = g.Max(_SPATIAL)
    elif kind == "AVE":
        role = g.Mean(_SPATIAL, counts_zeros=pads or is_empty)
    else:
        return False
    lifter.add(layer, role, layer.inputs, layer.outputs)
    return True


def _has_empty_windows(layer: Layer, kernel: Window, shape: Shape) -> bool:
    """Whether the last window may lie behind the image: rounding up with a stride above the kernel.

    Caffe fills a window without values with 0 or the smallest number.
    """
    for axis in (0, 1):
        if kernel.stride[axis] <= kernel.kernel[axis] and kernel.pad[axis] < kernel.kernel[axis]:
            continue
        count, size = pooled(layer, kernel, shape, axis), shape[2 + axis]
        if count is None or size is None or kernel.pad[axis] >= kernel.kernel[axis]:
            return True
        if (count - 1) * kernel.stride[axis] - kernel.pad[axis] >= size:
            return True
    return False


def interp(lifter: Lifter, layer: Layer) -> bool:
    """Bilinear resizing; its pads only crop."""
    options = layer.options.part("interp_param")
    if _only_image(lifter, layer) is None:
        return False
    if options.integer("pad_beg", 0) > 0 or options.integer("pad_end", 0) > 0:
        return False
    lifter.add(layer, g.Mean(_SPATIAL), layer.inputs, layer.outputs)
    return True


# ------------------------------------------------------------------- several bottoms


def eltwise(lifter: Lifter, layer: Layer) -> bool:
    """SUM with coefficients; PROD of two is a gate."""
    options = layer.options.part("eltwise_param")
    shapes = [lifter.shape(number) for number in layer.inputs]
    if len(layer.tops) != 1 or not _are_alike(shapes):
        return False
    operation = options.word("operation", "SUM", _OPERATIONS)
    factors = options.numbers("coeff") or [1.0] * len(shapes)
    if operation == "SUM" and len(factors) == len(shapes):
        coefficients = tuple(float(np.float32(factor)) for factor in factors)
        lifter.add(layer, g.Sum(coefficients), layer.inputs, layer.outputs)
        return True
    if operation == "PROD" and len(shapes) == 2 and not options.has("coeff"):
        lifter.add(layer, g.Gate(), layer.inputs, layer.outputs)
        return True
    return False


def _are_alike(shapes: Sequence[Shape | None]) -> bool:
    """Whether the shapes agree, as far as they are known."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or len({len(shape) for shape in known}) != 1:
        return False
    return all(len(set(sizes) - {None}) <= 1 for sizes in zip(*known, strict=True))


def concat(lifter: Lifter, layer: Layer) -> bool:
    """Side by side along one axis, whose sizes have to be known."""
    shapes = [lifter.shape(number) for number in layer.inputs]
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or len({len(shape) for shape in known}) != 1:
        return False
    axis = concat_axis(layer, "concat_param", "concat_dim", len(known[0]))
    if axis is None or len(layer.tops) != 1 or any(shape[axis] is None for shape in known):
        return False
    if sum(shape[axis] or 0 for shape in known) > MAX_ELEMENTS:
        return False
    others = [(*shape[:axis], *shape[axis + 1 :]) for shape in known]
    if not _are_alike(others):
        return False
    lifter.add(
        layer, g.View(lambda labels: [lab.concat(labels, axis)], axis), layer.inputs, layer.outputs
    )
    return True


def gate(lifter: Lifter, layer: Layer) -> bool:
    """Scale with two bottoms: the second is the factor, over the axes that it covers."""
    options = layer.options.part("scale_param")
    if options.flag("bias_term", default=False) or layer.blobs:
        return False
    return _broadcast(lifter, layer, g.Gate(), options.integer("axis", 1))


def added(lifter: Lifter, layer: Layer) -> bool:
    """Bias with two bottoms: the second is added, over the axes that it covers."""
    if layer.blobs:
        return False
    options = layer.options.part("bias_param")
    return _broadcast(lifter, layer, g.Sum((1.0, 1.0)), options.integer("axis", 1))


def _broadcast(lifter: Lifter, layer: Layer, role: g.Role, axis: int) -> bool:
    if len(layer.bottoms) != 2 or len(layer.tops) != 1:
        return False
    shape, small = (lifter.shape(number) for number in layer.inputs)
    if shape is None or small is None:
        return False
    start = canonical(axis, len(shape))
    if start is None or start + len(small) > len(shape):
        return False
    if not _are_alike([shape[start : start + len(small)], small]):
        return False
    tensor = _laid_along(lifter, layer, layer.inputs[1], start, len(shape))
    inputs = [lifter.tensors[layer.inputs[0]], tensor]
    result = placeholder(lifter.shape(layer.outputs[0]))
    (made,) = lifter.graph.add(layer.name, role, inputs, [result], kind=layer.type)
    lifter.tensors[layer.outputs[0]] = made
    return True


def _laid_along(lifter: Lifter, layer: Layer, number: int, start: int, rank: int) -> int:
    """A tensor of a value with axes of length 1 around its own."""
    small = placeholder(lifter.shape(number))
    before, after = (1,) * start, (1,) * (rank - start - len(small))

    def apply(labels: Sequence[IntArray]) -> Sequence[IntArray]:
        return [labels[0][(None,) * start + (...,) + (None,) * len(after)]]

    view = g.View(apply)
    return lifter.add_view(layer, view, lifter.tensors[number], (*before, *small, *after))


def axpy(lifter: Lifter, layer: Layer) -> bool:
    """Axpy of SENet: the first bottom scales the channels of the second, the third is added."""
    shapes = [lifter.shape(number) for number in layer.inputs]
    if len(shapes) != 3 or len(layer.tops) != 1 or not _are_alike(shapes[1:]):
        return False
    first, shape = shapes[0], shapes[1]
    if first is None or shape is None or len(shape) != 4 or len(first) not in (2, 4):
        return False
    if not _are_alike([first[:2], shape[:2]]) or any(size != 1 for size in first[2:]):
        return False
    rank = 4
    factor = (
        lifter.tensors[layer.inputs[0]]
        if len(first) == rank
        else _laid_along(lifter, layer, layer.inputs[0], 0, rank)
    )
    x, y = (lifter.tensors[number] for number in layer.inputs[1:])
    size = placeholder(lifter.shape(layer.outputs[0]))
    (scaled,) = lifter.graph.add(layer.name, g.Gate(), [x, factor], [size])
    role = g.Sum((1.0, 1.0))
    (made,) = lifter.graph.add(layer.name, role, [scaled, y], [size], kind=layer.type)
    lifter.tensors[layer.outputs[0]] = made
    return True


# ------------------------------------------------------------------- views


def slice_(lifter: Lifter, layer: Layer) -> bool:
    """Parts along one axis, whose size has to be known."""
    shape = lifter.source(layer)
    cuts = None if shape is None else slice_cuts(layer, shape)
    if cuts is None or len(layer.bottoms) != 1:
        return False
    axis, places = cuts

    def apply(labels: Sequence[IntArray]) -> Sequence[IntArray]:
        return np.split(labels[0], places[1:-1], axis=axis)

    lifter.add(layer, g.View(apply), layer.inputs, layer.outputs)
    return True


def permute(lifter: Lifter, layer: Layer) -> bool:
    """Another order of the axes."""
    shape = lifter.source(layer)
    order = None if shape is None else permutation(layer, len(shape))
    if order is None:
        return False
    return _one_to_one(lifter, layer, g.View(lambda labels: [np.transpose(labels[0], order)]))


def shuffle_channels(lifter: Lifter, layer: Layer) -> bool:
    """ShuffleChannel of forks: (group, C/group) transposed."""
    group = layer.options.part("shuffle_channel_param").integer("group", 1)
    shape = _only_image(lifter, layer)
    if shape is None:
        return False
    channels = shape[1]
    if channels is None or channels > MAX_ELEMENTS or group <= 0 or channels % group:
        return False
    order = np.arange(channels).reshape(group, -1).T.reshape(-1)
    view = g.View(lambda labels: [labels[0].take(order, axis=1)])
    lifter.add(layer, view, layer.inputs, layer.outputs)
    return True


def reshape(lifter: Lifter, layer: Layer) -> bool:
    """Reshape and Flatten; all sizes but the first have to be known, or follow from a reader."""
    if not _is_one_to_one(layer):
        return False
    old, new = lifter.source(layer), lifter.shape(layer.outputs[0])
    if old is None or new is None or not old or not new:
        return False
    keeps_batch = old[0] == new[0] and len(old) > 1 and len(new) > 1
    start = 1 if keeps_batch else 0
    repeat = _repeat(old[start:], new[start:])
    if repeat is None:
        return False
    sizes = placeholder(new)[start:]
    if math.prod(placeholder(new)) > MAX_ELEMENTS:
        return False

    def apply(labels: Sequence[IntArray]) -> Sequence[IntArray]:
        (array,) = labels
        if start and array.strides[0] == 0:
            array = array[:1]
        if repeat > 1:
            array = np.repeat(array.reshape((*array.shape[:start], -1)), repeat, axis=start)
        return [array.reshape((*array.shape[:start], *sizes))]

    lifter.add(layer, g.View(apply), layer.inputs, layer.outputs)
    return True


def _repeat(old: Shape, new: Shape) -> int | None:
    """How many elements of axes of unknown size stand behind each index of the known ones.

    1 if all sizes are known. If not, the unknown ones have to be the last of the old shape, and
    the new one has to be a single axis of known size.
    """
    if None not in old:
        have = math.prod(size for size in old if size is not None)
        want = math.prod(size for size in new if size is not None)
        return 1 if None not in new and have == want else None
    known = [size for size in old if size is not None]
    if None in old[: len(known)] or len(new) != 1 or new[0] is None:
        return None
    count = math.prod(known)
    return new[0] // count if count and new[0] % count == 0 else None


def crop(lifter: Lifter, layer: Layer) -> bool:
    """A window of the first bottom; of the second only the shape matters."""
    options = layer.options.part("crop_param")
    if len(layer.bottoms) != 2 or len(layer.tops) != 1:
        return False
    shape, result = lifter.source(layer), lifter.shape(layer.outputs[0])
    if shape is None or result is None:
        return False
    axis = canonical(options.integer("axis", 2), len(shape))
    if axis is None or axis < 2:
        return False  # along channels the offsets would have to be known
    lifter.add(layer, g.Mean(tuple(range(axis, len(shape)))), layer.read, layer.outputs)
    return True
