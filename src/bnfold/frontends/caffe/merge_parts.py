"""Which layers may be merged, and what each computes as a linear op.

    Convolution, Deconvolution, InnerProduct    with arrays of their own, in 32 bits at least
    Pooling AVE                                 equal taps, where no window is cut

An average counts the zeros of its padding. Caffe rounds the number of windows up, and the last one,
where it is cut, is divided by what is left of it: that is no convolution.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.expression import Part
from bnfold.core.weights import Layout, exchanged
from bnfold.core.window import Window
from bnfold.frontends.caffe.geometry import DECONVOLUTIONS, pooled, window
from bnfold.frontends.caffe.known_fields import KNOWN
from bnfold.frontends.caffe.lifter import Lifted, LinearSite, placeholder
from bnfold.frontends.caffe.memory import overwritten
from bnfold.frontends.caffe.net import Layer, Net
from bnfold.frontends.caffe.options import Options
from bnfold.frontends.caffe.sharing import Sharing

DTYPE = "float32"
"""What Caffe computes in, whatever a file holds."""

_LAYER_FIELDS = {"name", "type", "bottom", "top", "param", "blobs_lr", "weight_decay", "phase"}
_HOLES = {"hole", "hole_h", "hole_w"}
"""What a merged layer would have to have another of, under a name that is not written."""
_HALF = ("default_forward_type", "default_forward_math")
"""Of NVIDIA's Caffe: what it computes in, where a layer does not say it."""
_MOST_TAPS = 1024
"""A mean over more has no place in a file as a weight."""
_AVE = {0: "MAX", 1: "AVE", 2: "STOCHASTIC"}


def parts_of(net: Net, lifted: Lifted) -> dict[int, Part]:
    """By op number."""
    whole = Options(net.document, net.document.root)
    if "FLOAT16" in [word for name in _HALF for word in whole.texts(name)]:
        return {}
    sharing = Sharing(net)
    untouchable = overwritten(net)
    values = {tensor: number for number, tensor in lifted.tensors.items()}
    parts: dict[int, Part] = {}
    for number, op in enumerate(lifted.graph.ops):
        value = values.get(op.outputs[0]) if len(op.outputs) == 1 else None
        layer = None if value is None else net.values[value].maker
        if layer is None or untouchable & {*layer.inputs, *layer.outputs}:
            continue
        site = lifted.sites.get(number)
        part: Part | None = None
        if isinstance(site, LinearSite) and isinstance(op.role, g.Linear):
            if _is_plain(layer, site.part) and sharing.is_alone(layer) and _is_own(site, op.role):
                part = _of_weights(net, site, op.role)
        elif layer.type == "Pooling" and _is_plain(layer, "pooling_param"):
            part = _of_pooling(net, layer)
        if part is not None and _are_known(lifted, op, part):
            parts[number] = part
    return parts


def _is_plain(layer: Layer, part: str) -> bool:
    """Whether it has one bottom and one top, and no field that is not known."""
    fields = {field.name for field in layer.options.message.fields}
    inner = {field.name for field in layer.options.part(part).message.fields}
    is_single = len(layer.bottoms) == len(layer.tops) == 1
    return is_single and fields <= {*_LAYER_FIELDS, part} and inner <= KNOWN[part] - _HOLES


def _is_own(site: LinearSite, role: g.Linear) -> bool:
    """Whether its arrays may change, and are held in 32 bits at least."""
    is_wide = all(blob.dtype.itemsize >= 4 for blob in site.layer.blobs)
    return site.is_editable and role.tie is None and role.weight is g.Weight.FREE and is_wide


def _are_known(lifted: Lifted, op: g.Op, part: Part) -> bool:
    """Whether the graph has its channels, and not the 1 of what is not known."""
    shapes = [lifted.graph.shapes[tensor] for tensor in (op.inputs[0], op.outputs[0])]
    rank = 0 if part.window is None else len(part.window.kernel)
    if any(len(shape) != part.axis + 1 + rank for shape in shapes):
        return False
    return [shape[part.axis] for shape in shapes] == [part.in_channels, part.out_channels]


def _of_weights(net: Net, site: LinearSite, role: g.Linear) -> Part | None:
    shape = placeholder(net.values[site.layer.outputs[0]].shape)
    own: Window | None = None
    if site.part == "convolution_param":
        own = window_of(
            site.layer, site.layer.options.part(site.part), len(shape) - 1 - role.in_axis
        )
        if own is None:
            return None
    bias = None if site.bias is None else partial(_bias, site)
    return Part.of(role, own, partial(_weight, site), bias, DTYPE)


def window_of(layer: Layer, options: Options, rank: int) -> Window | None:
    """The window that a convolution's options spell."""
    spelled = window(options, rank)
    if spelled is None:
        return None
    is_transposed = layer.type in DECONVOLUTIONS
    pad = spelled.pad
    return Window(spelled.kernel, spelled.stride, spelled.dilation, pad, pad, is_transposed)


def _weight(site: LinearSite) -> FloatArray:
    """(out, in / groups, *kernel)"""
    stored = site.weight.read().astype(np.float64).reshape(site.matrix)
    return turned(stored, site.groups) if site.layout is Layout.IN_OUT else stored


def turned(weight: FloatArray, groups: int) -> FloatArray:
    """From Deconvolution's order of axes, and back; sums of products depend on the memory's."""
    return np.ascontiguousarray(exchanged(weight, groups))


def _bias(site: LinearSite) -> FloatArray:
    assert site.bias is not None
    return site.bias.read().astype(np.float64).reshape(-1)


def _of_pooling(net: Net, layer: Layer) -> Part | None:
    """A mean whose windows are all whole, for every size or for the one that is declared."""
    options = layer.options.part("pooling_param")
    shape = net.values[layer.inputs[0]].shape
    spelled = window(options, 2)
    is_mean = options.word("pool", "MAX", _AVE) == "AVE"
    if not is_mean or shape is None or len(shape) != 4 or shape[1] is None or spelled is None:
        return None
    if math.prod(spelled.kernel) > _MOST_TAPS:
        return None
    if any(pad >= kernel for pad, kernel in zip(spelled.pad, spelled.kernel, strict=True)):
        return None
    for axis, stride in enumerate(spelled.stride):
        size, count = shape[2 + axis], pooled(layer, spelled, shape, axis)
        room = None if size is None else size + 2 * spelled.pad[axis] - spelled.kernel[axis]
        if stride == 1 and (room is None or room >= 0):
            continue
        if room is None or room < 0 or room % stride or count != room // stride + 1:
            return None
    own = Window(spelled.kernel, spelled.stride, spelled.dilation, spelled.pad, spelled.pad)
    return Part.pooling(own, shape[1], 1, DTYPE)
