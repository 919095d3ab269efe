"""Norms of each sample: what they compute is their own, the constants behind it are an affine step.

    InstanceNormalization, GroupNormalization     y[c] = scale[c] * f(x)[c] + B[c]
    LayerNormalization over the last axis         the same, with c along it, and B may be missing
    RMSNormalization over the last axis           the same without a B

Nothing passes f. The step stays where it is and takes in what follows, as a BatchNormalization
that stays does.
https://onnx.ai/onnx/operators/onnx__LayerNormalization.html
"""

from __future__ import annotations

import numpy as np

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.frontends.onnx.lifter import Lifter, as_float64, is_constant
from bnfold.frontends.onnx.limits import growth_limit, range_limit
from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.sites import AffineSite

_OVER_CHANNELS = ("InstanceNormalization", "GroupNormalization")
_OVER_LAST = ("LayerNormalization", "RMSNormalization")


def emit(lifter: Lifter, node: Node) -> bool:
    """Add the node if it is one, as two ops."""
    axis = _axis(lifter, node)
    if axis is None or axis in lifter.shapes.open_axes(node.outputs[0]):
        return False
    shape = lifter.shape(node.inputs[0])
    assert shape is not None
    channels = shape[axis]
    scale, shift = (_parameter(lifter, node, position, channels) for position in (1, 2))
    if scale is None or shift is None:
        return False
    has_shift = node.op != "RMSNormalization"
    data_type = lifter.shapes.dtypes[node.inputs[0]]
    laid = [g.channel_array(part, axis, len(shape)) for part in (scale, shift)]
    role = g.AffineStep(
        laid[0],
        laid[1],
        node.op,
        channels,
        removal=g.Removal.UNASKED,
        summands=g.Parameter.editable_if(has_shift),
        spread=np.abs(laid[0]),
        center=laid[1],
        range_limit=range_limit(data_type),
        growth_limit=growth_limit(data_type),
    )
    source = lifter.tensor(node.inputs[0])
    (inner,) = lifter.graph.add(node.name, g.Opaque(), [source], [shape])
    number = lifter.emit(node, role, [inner], frozenset((axis,)), outputs=node.outputs[:1])
    assert number is not None, "the axis is not open"
    mean, deviation = np.zeros(channels), np.ones(channels)
    site = AffineSite(node, node.inputs[0], node.outputs[0], mean, deviation)
    lifter.lifted.sites[number] = site
    return True


def _axis(lifter: Lifter, node: Node) -> int | None:
    """Along which its constants lie; None if it is no such node, or its shape is not known."""
    if node.op not in (*_OVER_CHANNELS, *_OVER_LAST) or not lifter.is_activation(node.inputs[0]):
        return None
    shape = lifter.shape(node.inputs[0]) or ()
    if len(shape) < 2 or shape != lifter.shape(node.outputs[0]):
        return None
    if node.op in _OVER_CHANNELS:
        return 1
    last = len(shape) - 1
    return last if node.integer("axis", -1) % len(shape) == last else None


def _parameter(lifter: Lifter, node: Node, position: int, channels: int) -> FloatArray | None:
    """One number per channel, zeros where there is no B; None if that is not what is there."""
    name = node.input(position)
    if not name and position == 2 and node.op in _OVER_LAST:
        return np.zeros(channels)
    array = lifter.constants.array(name) if name and is_constant(lifter, name) else None
    if array is None or array.shape != (channels,):
        return None
    found = as_float64(array)
    return found if np.isfinite(found).all() else None
