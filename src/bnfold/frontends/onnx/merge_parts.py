"""The linear nodes of a model, as the core merges them: windows, and weights in one layout.

Conv, ConvTranspose   any number of spatial axes; SAME with a stride beside its like
Gemm, MatMul          without spatial axes; what is added behind a MatMul is its bias
AveragePool           equal taps; not where padded zeros are not counted, or a window is cut
Pad                   one tap: zeros, of which no number depends on the size
Slice                 the same with a negative padding, if it says how much it cuts off
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.expression import Part
from bnfold.core.weights import Layout, exchanged
from bnfold.frontends.onnx.constants import Constants
from bnfold.frontends.onnx.lifter import as_float64
from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.sites import Lifted, LinearSite
from bnfold.frontends.onnx.tensors import FLOATS, numpy_dtype
from bnfold.frontends.onnx.windows import window_of

CONVOLUTIONS = ("Conv", "ConvTranspose")


def parts_of(lifted: Lifted) -> dict[int, Part]:
    """The ops that may take part in a merge, by number."""
    parts = {}
    for number, op in enumerate(lifted.graph.ops):
        site = lifted.sites.get(number)
        part = None
        if isinstance(op.role, g.Linear) and isinstance(site, LinearSite):
            part = _linear(lifted, op.role, site)
        elif isinstance(op.role, g.Mean) and op.kind == "AveragePool":
            part = _pooling(lifted, op)
        elif isinstance(op.role, g.Pad):
            part = _padding(lifted, op, op.role)
        elif isinstance(op.role, g.View) and op.kind == "Slice":
            part = _cut(lifted, op)
        if part is not None:
            parts[number] = part
    return parts


def _linear(lifted: Lifted, role: g.Linear, site: LinearSite) -> Part | None:
    constants, network = lifted.constants, lifted.network
    bias = site.bias
    names = [site.weight] + ([bias.name] if bias is not None and bias.name else [])
    dtype = constants.shapes.dtypes.get(site.weight)
    is_plain = role.weight is g.Weight.FREE and role.tie is None and role.in_axis == role.out_axis
    has_room = role.bias_editable or (bias is None and role.bias is None)
    if not is_plain or not has_room or dtype not in FLOATS:
        return None
    if any(network.is_pinned(name) or name in constants.open for name in names):
        return None
    # A bias may be shared: the merged op has its own.
    if len(network.value_readers(site.weight)) != 1 or not _is_stored_in_full(lifted, site.weight):
        return None
    if constants.shapes.dtypes.get(site.node.outputs[0]) != dtype:
        return None
    if bias is not None and (bias.axis is not None or bias.node.op == "CastLike"):
        return None
    shape = constants.shape(site.weight)
    assert shape is not None
    window = None
    if site.node.op in CONVOLUTIONS:
        window = window_of(site.node, shape[2:])
        if window is None:
            return None
    elif site.node.op not in ("Gemm", "MatMul") or len(shape) != 2:
        return None
    has_bias = bias is not None and bool(bias.name)
    return Part.of(
        role,
        window,
        partial(_weight, lifted, site),
        partial(_bias, lifted, site, role.out_channels) if has_bias else None,
        str(dtype),
        # A transposed input would be read by the others as it is.
        carries=not site.node.integer("transA"),
    )


def _is_stored_in_full(lifted: Lifted, weight: str) -> bool:
    """Whether a file that stores what a constant is computed of is not larger with the constant."""
    constants = lifted.constants
    stored, behind = 0, [weight]
    for name in behind:  # which grows
        node = constants.nodes.get(name)
        if node is not None and node.op != "Constant":
            behind += [operand for operand in node.inputs if operand and operand not in behind]
        elif constants.is_constant(name):
            stored += _bytes(constants, name)
    return stored >= _bytes(constants, weight)


def _bytes(constants: Constants, name: str) -> int:
    shape, dtype = constants.shape(name), constants.shapes.dtypes.get(name)
    if shape is None or dtype is None:
        return 0
    return math.prod(shape) * numpy_dtype(dtype).itemsize


def _weight(lifted: Lifted, site: LinearSite) -> FloatArray:
    """(out, in/groups, *kernel)"""
    array = lifted.constants.array(site.weight)
    assert array is not None
    weight = as_float64(array) * site.factor
    return weight if site.layout is Layout.OUT_IN else exchanged(weight, site.groups)


def _bias(lifted: Lifted, site: LinearSite, channels: int) -> FloatArray:
    assert site.bias is not None
    array = lifted.constants.array(site.bias.name)
    assert array is not None
    return np.broadcast_to(as_float64(array).reshape(-1) * site.bias.factor, (channels,))


def _padding(lifted: Lifted, op: g.Op, role: g.Pad) -> Part | None:
    name, node = _made(lifted, op)
    if node is None or (node.input(1) and lifted.constants.may_differ(node.input(1))):
        return None
    shape = lifted.graph.shapes[op.inputs[0]]
    return Part.padding(role, shape, str(lifted.constants.shapes.dtypes.get(name)))


def _cut(lifted: Lifted, op: g.Op) -> Part | None:
    name, node = _made(lifted, op)
    shape = lifted.graph.shapes[op.inputs[0]]
    if node is None:
        return None
    listed: list[tuple[int, ...]] = []
    for place, key in enumerate(("starts", "ends", "axes", "steps"), 1):
        if lifted.network.opset < 10:
            listed.append(node.integers(key))
            continue
        array = lifted.constants.array(node.input(place)) if node.input(place) else np.zeros(0)
        if array is None:
            return None
        listed.append(tuple(int(number) for number in array.reshape(-1)))
    starts, ends, axes, steps = listed
    axes = tuple(axis % len(shape) for axis in axes) or tuple(range(len(starts)))
    if set(steps) - {1} or not len(starts) == len(ends) == len({*axes}):
        return None
    cuts = [*zip(axes, starts, ends, strict=True)]
    return Part.cut(cuts, shape, str(lifted.constants.shapes.dtypes.get(name)))


def _made(lifted: Lifted, op: g.Op) -> tuple[str, Node | None]:
    """What an op makes, and the node that does."""
    (tensor,) = op.outputs
    name = next((name for name, number in lifted.tensors.items() if number == tensor), "")
    return name, lifted.network.makers.get(name)


def _pooling(lifted: Lifted, op: g.Op) -> Part | None:
    name, node = _made(lifted, op)
    if node is None or node.integer("ceil_mode"):
        return None
    window = window_of(node, node.integers("kernel_shape"))
    if window is None or (window.pads and not node.integer("count_include_pad")) or window.rule:
        return None
    if any(spread > 1 for spread in window.dilation):  # younger than most runtimes
        return None
    channels = lifted.graph.shapes[op.outputs[0]][1]
    return Part.pooling(window, channels, 1, str(lifted.constants.shapes.dtypes.get(name)))
