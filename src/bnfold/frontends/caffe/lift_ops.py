"""Activations, pooling, and layers that combine several bottoms: no weights, so nothing to edit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bnfold.core import graph as g
from bnfold.core.forest import IntArray
from bnfold.core.limits import read_bounds
from bnfold.frontends.caffe.geometry import Window, canonical, pooled, window
from bnfold.frontends.caffe.lifter import (
    ROOM,
    Lifter,
    are_alike,
    one_to_one,
    only_image,
    placeholder,
)
from bnfold.frontends.caffe.net import Layer, Shape

_OPERATIONS = {0: "PROD", 1: "SUM", 2: "MAX"}
_POOLS = {0: "MAX", 1: "AVE", 2: "STOCHASTIC"}
_SPATIAL = (2, 3)

# ------------------------------------------------------------------- activations


def relu(lifter: Lifter, layer: Layer) -> bool:
    """ReLU, leaky if it has a slope; a fork's options for another upper bound are not known."""
    options = layer.options.part("relu_param")
    if not {field.name for field in options.message.fields} <= {"negative_slope", "engine"}:
        return False
    slope = options.number("negative_slope", 0.0)
    role = g.Homogeneous(np.full((), slope)) if slope else g.Clip(0.0, math.inf, room=ROOM)
    return one_to_one(lifter, layer, role)


def relu6(lifter: Lifter, layer: Layer) -> bool:
    """ReLU6 of forks, without options."""
    return not layer.options.has("relu6_param") and one_to_one(
        lifter, layer, g.Clip(0.0, 6.0, room=ROOM)
    )


def homogeneous(lifter: Lifter, layer: Layer) -> bool:
    """PReLU, AbsVal."""
    slope = np.full((), -1.0) if layer.type == "AbsVal" else None
    return one_to_one(lifter, layer, g.Homogeneous(slope))


def clip(lifter: Lifter, layer: Layer) -> bool:
    """Clip, with two numbers as bounds."""
    options = layer.options.part("clip_param")
    if not options.has("min") or not options.has("max"):
        return False
    lower, upper = options.number("min", 0.0), options.number("max", 0.0)
    if not lower <= upper:
        return False
    lower, upper = read_bounds(lower, upper, "float16" if lifter.is_half else "float32")
    return one_to_one(lifter, layer, g.Clip(lower, upper, room=ROOM))


# ------------------------------------------------------------------- pooling, resizing


def pooling(lifter: Lifter, layer: Layer) -> bool:
    """MAX ignores its border; AVE counts the zeros of its padding."""
    options = layer.options.part("pooling_param")
    shape = only_image(lifter, layer)
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
    if only_image(lifter, layer) is None:
        return False
    if options.integer("pad_beg", 0) > 0 or options.integer("pad_end", 0) > 0:
        return False
    lifter.add(layer, g.Mean(_SPATIAL), layer.inputs, layer.outputs)
    return True


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


# ------------------------------------------------------------------- several bottoms


def eltwise(lifter: Lifter, layer: Layer) -> bool:
    """SUM with coefficients; PROD of two is a gate."""
    options = layer.options.part("eltwise_param")
    shapes = [lifter.shape(number) for number in layer.inputs]
    if len(layer.tops) != 1 or not are_alike(shapes):
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
    if not are_alike([shape[start : start + len(small)], small]):
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
    if len(shapes) != 3 or len(layer.tops) != 1 or not are_alike(shapes[1:]):
        return False
    first, shape = shapes[0], shapes[1]
    if first is None or shape is None or len(shape) != 4 or len(first) not in (2, 4):
        return False
    if not are_alike([first[:2], shape[:2]]) or any(size != 1 for size in first[2:]):
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
