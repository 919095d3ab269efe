"""Linear ops whose weight is an integer tensor behind a DequantizeLinear.

    W[o, ...] = scale[o] * (q[o, ...] - zero_point[o])

Integers are never touched. What can change is the scale, one per output channel, and the bias if it
is a float: the op is lifted as a linear op with a fixed weight, followed by an affine step with
constants of its own. The scale has to stay positive, so only positive rescalings pass on either
side. https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.frontends.onnx.lift_linear import has_bias_size
from bnfold.frontends.onnx.lifter import Lifter, as_float64
from bnfold.frontends.onnx.limits import range_limit
from bnfold.frontends.onnx.linear_nodes import LinearSpec, Weight, read_linear
from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.sites import BiasSite, QuantizedSite
from bnfold.frontends.onnx.tensors import FLOATS


def emit(lifter: Lifter, node: Node) -> bool:
    """Add the node if it is one."""
    if node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return False
    dequantize = _dequantize(lifter, node)
    shape = lifter.shape(node.input(1)) if dequantize else None
    if dequantize is None or shape is None or (node.op == "MatMul" and len(shape) != 2):
        return False
    integer_bias = _dequantized(lifter, node.input(2))
    constant = "" if integer_bias is not None else node.input(2)
    weight = Weight(node.input(1), shape, 1, bias="" if node.op == "MatMul" else constant)
    spec = read_linear(lifter, node, weight)
    if spec is not None and spec.output != node.outputs[0]:
        # The Add or Sub behind a MatMul is a step of its own here.
        spec = replace(spec, bias=None, output=node.outputs[0], factor=1.0)
    if spec is None or spec.factor != 1.0 or not lifter.is_activation(spec.source):
        return False
    if not lifter.is_float(spec.output) or node.integer("transA"):
        return False
    if lifter.shapes.dtypes.get(dequantize.input(1)) not in FLOATS:
        return False
    if spec.bias is not None and spec.bias.axis is not None:
        return False
    name = "" if spec.bias is None else spec.bias.name
    if name and not has_bias_size(lifter, name, spec.role.out_channels):
        return False
    bias = _bias(lifter, spec) if integer_bias is None else _Bias(integer_bias, False)
    scale_editable = _has_scale_per_channel(lifter, dequantize, spec, len(shape))
    return _emit(lifter, spec, dequantize, bias, scale_editable=scale_editable)


def _dequantize(lifter: Lifter, node: Node) -> Node | None:
    """What makes the weight from constants, for this node alone."""
    made = lifter.network.makers.get(node.input(1))
    if made is None or made.op != "DequantizeLinear" or lifter.only_reader(node.input(1)) is None:
        return None
    constant = all(lifter.constants.is_constant(name) for name in made.inputs if name)
    return made if constant and not made.integer("block_size") else None


def _dequantized(lifter: Lifter, name: str) -> FloatArray | None:
    """The bias, if it is integers behind a DequantizeLinear."""
    made = lifter.network.makers.get(name) if name else None
    if made is None or made.op != "DequantizeLinear":
        return None
    arrays = [lifter.constants.array(n) if n else None for n in made.inputs]
    if arrays[0] is None or arrays[1] is None or (len(arrays) > 2 and arrays[2] is None):
        return np.full(1, np.nan)
    zero = as_float64(arrays[2]) if len(arrays) > 2 and arrays[2] is not None else 0.0
    return np.atleast_1d((as_float64(arrays[0]) - zero) * as_float64(arrays[1]))


def _has_scale_per_channel(lifter: Lifter, dequantize: Node, spec: LinearSpec, rank: int) -> bool:
    """Whether there is a scale per output channel; one for all of them stays one for all."""
    if lifter.network.opset < 13 or (spec.node.op == "ConvTranspose" and spec.role.groups > 1):
        return False
    scale = lifter.constants.array(dequantize.input(1))
    if scale is None or not (as_float64(scale) > 0).all():
        return False
    return scale.shape == (spec.role.out_channels,) and dequantize.integer("axis", 1) % rank == (
        spec.out_weight_axis
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Bias:
    values: FloatArray
    editable: bool


def _bias(lifter: Lifter, spec: LinearSpec) -> _Bias:
    """What is added per channel; integers behind a DequantizeLinear are left alone."""
    site = spec.bias
    none = np.zeros(spec.role.out_channels)
    if site is None:
        return _Bias(none, False)
    if not site.name:
        return _Bias(none, site.node is spec.node and site.position >= 0 and site.factor == 1.0)
    array = lifter.constants.array(site.name)
    if array is None:
        return _Bias(np.full(spec.role.out_channels, np.nan), False)
    values = np.broadcast_to(as_float64(array).reshape(-1) * site.factor, (spec.role.out_channels,))
    return _Bias(values.copy(), site.factor == 1.0 and site.node is spec.node)


def _emit(
    lifter: Lifter, spec: LinearSpec, dequantize: Node, bias: _Bias, *, scale_editable: bool
) -> bool:
    node = spec.node
    shape, axis, channels = lifter.shape(spec.output), spec.role.out_axis, spec.role.out_channels
    if shape is None or shape[axis] != channels or np.isnan(bias.values).any():
        return False
    rank = len(shape)
    affine = g.AffineStep(
        g.channel_array(np.ones(channels), axis, rank),
        g.channel_array(np.broadcast_to(bias.values, channels), axis, rank),
        node.op,
        channels,
        removal=g.Removal.UNASKED,
        factors=g.Parameter.editable_if(scale_editable),
        summands=g.Parameter.editable_if(bias.editable),
        range_limit=range_limit(lifter.shapes.dtypes[spec.output]),
    )
    tensor = lifter.tensor(spec.source)
    axes = frozenset((axis,))
    if lifter.shapes.count > 1 and axes & lifter.shapes.open_axes(spec.output):
        return False
    for role in (spec.fixed(), g.POSITIVE):
        (tensor,) = lifter.graph.add(node.name, role, [tensor], [shape])
    (tensor,) = lifter.graph.add(node.name, affine, [tensor], [shape])
    site = spec.bias or BiasSite(node, 2, "", (channels,))
    lifter.lifted.sites[len(lifter.graph.ops) - 1] = QuantizedSite(node, dequantize, site)
    return lifter.emit(node, g.POSITIVE, [tensor], axes, outputs=[spec.output]) is not None
