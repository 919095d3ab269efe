"""Layers that move values without changing them: run on labels, they say where each one went."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bnfold.core import graph as g
from bnfold.core import labels as lab
from bnfold.core.forest import IntArray
from bnfold.frontends.caffe.geometry import concat_axis, permutation, slice_cuts
from bnfold.frontends.caffe.lifter import (
    MAX_ELEMENTS,
    Lifter,
    are_alike,
    is_one_to_one,
    one_to_one,
    only_image,
    placeholder,
)
from bnfold.frontends.caffe.net import Layer, Shape


def identity(lifter: Lifter, layer: Layer) -> bool:
    """Split copies its bottom to each top."""
    if len(layer.bottoms) != 1:
        return False
    count = len(layer.tops)
    view = g.View(lambda labels: [labels[0]] * count, is_copy=layer.type == "Dropout")
    lifter.add(layer, view, layer.inputs, layer.outputs)
    return True


def dropout(lifter: Lifter, layer: Layer) -> bool:
    """Nothing in the TEST phase; a fork's scale_train moves a factor there."""
    is_plain = not layer.options.part("dropout_param").has("scale_train")
    return is_plain and layer.phase == "TEST" and identity(lifter, layer)


def silence(lifter: Lifter, layer: Layer) -> bool:
    """Reads its bottoms to throw them away."""
    return not layer.tops


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
    if not are_alike(others):
        return False
    lifter.add(
        layer, g.View(lambda labels: [lab.concat(labels, axis)], axis), layer.inputs, layer.outputs
    )
    return True


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
    return one_to_one(lifter, layer, g.View(lambda labels: [np.transpose(labels[0], order)]))


def shuffle_channels(lifter: Lifter, layer: Layer) -> bool:
    """ShuffleChannel of forks: (group, C/group) transposed."""
    group = layer.options.part("shuffle_channel_param").integer("group", 1)
    shape = only_image(lifter, layer)
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
    if not is_one_to_one(layer):
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
