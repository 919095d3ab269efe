"""Activations, pooling, and arithmetic of activations; what is not in a table is opaque."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from bnfold.core import graph as g
from bnfold.frontends.onnx.attention import emit_einsum, emit_product
from bnfold.frontends.onnx.lift_constants import operands
from bnfold.frontends.onnx.lift_views import VIEWS, same
from bnfold.frontends.onnx.lifter import Handler, Lifter, as_float64
from bnfold.frontends.onnx.limits import read_bounds
from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.sites import ClipSite
from bnfold.frontends.onnx.windows import window_of
from bnfold.frontends.onnx.written import BROADCASTS


def emit(lifter: Lifter, node: Node) -> None:
    """Add one node."""
    handler = _TABLE.get(node.op) or VIEWS.get(node.op)
    usable = handler is not None and node.outputs and lifter.is_float(node.outputs[0])
    if not usable or handler is None or not handler(lifter, node):
        lifter.opaque(node)


# -------------------------------------------------------------------- activations


def _relu(lifter: Lifter, node: Node) -> bool:
    return _emit_clip(lifter, node, 0.0, np.inf)


def _clip(lifter: Lifter, node: Node) -> bool:
    if lifter.network.opset < 11:
        lower, upper = node.number("min", -np.inf), node.number("max", np.inf)
        return _emit_clip(lifter, node, lower, upper)
    bounds = []
    for position, free in ((1, -np.inf), (2, np.inf)):
        name = node.input(position)
        array = lifter.constants.array(name) if name else np.array(free)
        if array is None or array.size != 1:
            return False
        bounds.append(float(array.reshape(())))
    return _emit_clip(lifter, node, *bounds)


# Passes over the tensor. Runtimes for ONNX run a Relu inside of the op before it, a BatchNorm too
# (ONNX Runtime makes it a depthwise convolution), and neither a Max nor a Min with a constant. For
# those ONNX Runtime also leaves its blocked layout (NCHWc) and comes back to it: two passes more.
_BOUND_COST = 3.0


def _bounded(bounds: Callable[[float], tuple[float, float]]) -> Handler:
    """A Max or Min of an activation and one number, in either place, or of the activation alone.

    A bound per channel costs nothing more, but where a factor is negative a Min stands behind.
    """

    def handler(lifter: Lifter, node: Node) -> bool:
        if len(node.inputs) == 1:
            return same(lifter, node)
        if len(node.inputs) != 2:
            return False
        first = lifter.constants.is_constant(node.inputs[0])
        source, name = (node.inputs[1], node.inputs[0]) if first else node.inputs
        array = lifter.constants.array(name) if lifter.constants.is_constant(name) else None
        if (
            array is None
            or array.size != 1
            or lifter.shape(source) != lifter.shape(node.outputs[0])
        ):
            return False
        return _emit_clip(lifter, node, *bounds(float(array.reshape(()))), source=source, cost=1.0)

    return handler


def _emit_clip(
    lifter: Lifter,
    node: Node,
    lower: float,
    upper: float,
    *,
    source: str = "",
    cost: float = _BOUND_COST,
) -> bool:
    source = source or node.inputs[0]
    if not lifter.is_activation(source) or not lower <= upper:
        return False
    data_type = lifter.shapes.dtypes[source]
    lower, upper = read_bounds(lower, upper, data_type)
    # Max and Min broadcast from opset 8 on, and runtimes have them for float16 from 12 on.
    since = 8 if data_type in (TensorProto.FLOAT, TensorProto.DOUBLE) else 12
    since = 13 if data_type == TensorProto.BFLOAT16 else since
    room = lifter.network.opset >= since
    tensor = lifter.tensor(source)
    role = g.Clip(lower, upper, room=room, one_sided_cost=cost, two_sided_cost=cost + 1)
    number = lifter.emit(node, role, [tensor], lifter.axes_of(tensor))
    if number is None:
        return False
    if room:
        lifter.lifted.sites[number] = ClipSite(node, source, data_type)
    return True


def _leaky_relu(lifter: Lifter, node: Node) -> bool:
    return _elementwise(lifter, node, g.Homogeneous(np.array(node.number("alpha", 0.01))))


def _abs(lifter: Lifter, node: Node) -> bool:
    return _elementwise(lifter, node, g.Homogeneous(np.array(-1.0)))


def _prelu(lifter: Lifter, node: Node) -> bool:
    """The slope is a constant, or stored as it is."""
    slope = node.input(1)
    if not lifter.is_activation(node.inputs[0]):
        return False
    if not lifter.constants.is_constant(slope):
        lifter.graph.pin(node.name, [lifter.tensor(slope)])
    slopes = lifter.constants.array(slope) if lifter.constants.is_constant(slope) else None
    shape = lifter.shape(node.inputs[0]) or ()
    if slopes is not None and slopes.ndim == 1 and lifter.network.opset < BROADCASTS:
        slopes = slopes.reshape(-1, *(1,) * (len(shape) - 2))  # one per channel
    role = g.Homogeneous(None if slopes is None else as_float64(slopes))
    same_shape = shape == lifter.shape(node.outputs[0])
    return same_shape and _elementwise(lifter, node, role)


def _sign(lifter: Lifter, node: Node) -> bool:
    return _elementwise(lifter, node, g.Sign(odd=True))


def _elementwise(lifter: Lifter, node: Node, role: g.Role) -> bool:
    source = node.inputs[0]
    if not lifter.is_activation(source):
        return False
    tensor = lifter.tensor(source)
    return lifter.emit(node, role, [tensor], lifter.axes_of(tensor)) is not None


# -------------------------------------------------------------------- pooling


def _emit_reduction(lifter: Lifter, node: Node, role: g.Max | g.Mean) -> bool:
    source = node.inputs[0]
    if not lifter.is_activation(source):
        return False
    tensor = lifter.tensor(source)
    axes = lifter.axes_of(tensor) - set(role.axes)
    if not role.keeps_rank:
        axes = frozenset(axis - sum(gone < axis for gone in role.axes) for axis in axes)
    return lifter.emit(node, role, [tensor], axes, outputs=node.outputs[:1]) is not None


def _space(lifter: Lifter, node: Node) -> tuple[int, ...]:
    """All axes behind the channels."""
    return tuple(range(2, len(lifter.shape(node.inputs[0]) or ())))


def _max_pool(lifter: Lifter, node: Node) -> bool:
    places = node.outputs[1] if len(node.outputs) > 1 else ""
    is_read = bool(places) and lifter.network.is_read(places)
    kernel = node.integers("kernel_shape")
    window = window_of(node, kernel) if kernel and not places else None
    if window is not None and window.is_pointwise:
        return same(lifter, node)
    return _emit_reduction(lifter, node, g.Max(_space(lifter, node), tells_places=is_read))


def _average_pool(lifter: Lifter, node: Node) -> bool:
    """Padding that is counted is made of zeros; where windows end beyond it, tools disagree."""
    padded = any(node.integers("pads")) or node.text("auto_pad", "NOTSET").startswith("SAME")
    cut = bool(node.integer("ceil_mode")) or any(d > 1 for d in node.integers("dilations"))
    zeros = bool(node.integer("count_include_pad")) and (padded or cut)
    zeros |= padded and any(d > 1 for d in node.integers("dilations"))
    return _emit_reduction(lifter, node, g.Mean(_space(lifter, node), counts_zeros=zeros))


def _global_average_pool(lifter: Lifter, node: Node) -> bool:
    return _emit_reduction(lifter, node, g.Mean(_space(lifter, node)))


def _reduce(role: Callable[[tuple[int, ...], bool], g.Max | g.Mean]) -> Handler:
    def handler(lifter: Lifter, node: Node) -> bool:
        shape = lifter.shape(node.inputs[0])
        axes = _reduced_axes(lifter, node)
        if shape is None or axes is None:
            return False
        rank = len(shape)
        listed = tuple(sorted(axis % rank for axis in axes)) if axes else tuple(range(rank))
        if not rank or (not axes and node.integer("noop_with_empty_axes")):
            return False
        return _emit_reduction(lifter, node, role(listed, bool(node.integer("keepdims", 1))))

    return handler


def _reduce_sum(lifter: Lifter, node: Node) -> bool:
    """So many times the mean: a shift grows with the number of elements, if that is known."""
    shape, axes = lifter.shape(node.inputs[0]), _reduced_axes(lifter, node)
    if shape is None or axes is None:
        return False
    listed = {axis % len(shape) for axis in axes} or {*range(len(shape))}
    if listed & lifter.shapes.open_axes(node.inputs[0]):
        return _reduce(lambda axes, keep: g.Mean(axes, keep, counts_zeros=True))(lifter, node)
    if not _reduce(g.Mean)(lifter, node):
        return False
    count = float(np.prod([shape[axis] for axis in listed]))
    mean = lifter.tensors[node.outputs[0]]
    axes_of_mean = lifter.axes_of(mean)
    return lifter.emit(node, g.Sum((count,)), [mean], axes_of_mean) is not None


def _reduced_axes(lifter: Lifter, node: Node) -> tuple[int, ...] | None:
    """The axes, empty for all; None if they are not known."""
    name = node.input(1)
    if not name:
        return node.integers("axes")
    array = lifter.constants.array(name)
    return None if array is None else tuple(int(axis) for axis in array.reshape(-1))


def _resize(lifter: Lifter, node: Node) -> bool:
    """Weights that sum to 1; an axis that keeps its length keeps its values, and so may all."""
    if node.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return False
    shape, output = lifter.shape(node.inputs[0]), lifter.shape(node.outputs[0])
    if shape is None or output is None:
        return False
    listed = [axis % len(shape) for axis in node.integers("axes")] or list(range(len(shape)))
    scales = _scales(lifter, node)
    touched = []
    for place, axis in enumerate(listed):
        stays = shape[axis] == output[axis]
        if lifter.shapes.count > 1:
            old, new = (lifter.shapes.lengths.get(n) for n in (node.inputs[0], node.outputs[0]))
            stays = old is not None and new is not None and old[axis] == new[axis]
        stretched = node.text("keep_aspect_ratio_policy", "stretch") == "stretch"
        if scales is not None and len(scales) == len(listed):
            stays = scales[place] == 1.0
        elif scales is not None or not stretched:
            stays = False
        if not stays:
            touched.append(axis)
    return _emit_reduction(lifter, node, g.Mean(tuple(touched))) if touched else same(lifter, node)


def _scales(lifter: Lifter, node: Node) -> tuple[float, ...] | None:
    """The scales of a Resize or Upsample; None where sizes are given instead."""
    position = 1 if node.op == "Upsample" or lifter.network.opset < 11 else 2
    if node.op == "Upsample" and lifter.network.opset < 9:
        return tuple(float(scale) for scale in node.attribute("scales") or ())
    name = node.input(position)
    if not name:
        return None
    array = lifter.constants.array(name)
    if array is None:
        return (np.nan,)
    return tuple(float(scale) for scale in array.reshape(-1)) or None


# -------------------------------------------------------------------- arithmetic of activations


def _sum(coefficients: Callable[[int], tuple[float, ...]]) -> Handler:
    def handler(lifter: Lifter, node: Node) -> bool:
        if not all(lifter.is_float(n) for n in node.inputs) or not _spreads_from_the_right(
            lifter, node
        ):
            return False
        tensors = operands(lifter, node)
        if tensors is None:
            return False
        return _emit_joint(lifter, node, g.Sum(coefficients(len(tensors))), tensors)

    return handler


def _spreads_from_the_right(lifter: Lifter, node: Node) -> bool:
    """Whether operands meet as they do in NumPy; of the older way, those that need no spreading."""
    if lifter.network.opset >= BROADCASTS:
        return True
    are_alike = len({lifter.shape(name) for name in node.inputs}) == 1
    return are_alike and all(lifter.is_activation(name) for name in node.inputs)


def _emit_joint(lifter: Lifter, node: Node, role: g.Role, tensors: list[int]) -> bool:
    rank = len(lifter.shape(node.outputs[0]) or ())
    axes: frozenset[int] = frozenset()
    for tensor in tensors:
        axes |= lifter.axes_of(tensor, rank)
    return lifter.emit(node, role, tensors, axes) is not None


def _mul(lifter: Lifter, node: Node) -> bool:
    if not all(lifter.is_activation(n) for n in node.inputs):
        return False
    if not _spreads_from_the_right(lifter, node):
        return False
    return _emit_joint(lifter, node, g.Gate(), [lifter.tensor(name) for name in node.inputs])


def _where(lifter: Lifter, node: Node) -> bool:
    """One of two, the same one everywhere, as in what exporters make of `torch.lerp`."""
    condition = lifter.constants.array(node.inputs[0])
    first, second = node.inputs[1:]
    shapes = {lifter.shape(name) for name in (first, second, node.outputs[0])}
    if condition is None or len({*condition.flat}) != 1 or len(shapes) > 1:
        return False
    if not (lifter.is_activation(first) and lifter.is_activation(second)):
        return False
    taken = float(condition.flat[0])
    tensors = [lifter.tensor(name) for name in (first, second)]
    return _emit_joint(lifter, node, g.Sum((taken, 1.0 - taken)), tensors)


def _div(lifter: Lifter, node: Node) -> bool:
    if not all(lifter.is_activation(n) for n in node.inputs):
        return False
    if not _spreads_from_the_right(lifter, node):
        return False
    x, y = (lifter.tensor(name) for name in node.inputs)
    lifter.graph.pin(node.name, [y])
    return _emit_joint(lifter, node, g.Gate(), [x, y])


_TABLE: dict[str, Handler] = {
    "Relu": _relu,
    "Clip": _clip,
    "Max": _bounded(lambda bound: (bound, np.inf)),
    "Min": _bounded(lambda bound: (-np.inf, bound)),
    "LeakyRelu": _leaky_relu,
    "Abs": _abs,
    "PRelu": _prelu,
    "Sign": _sign,
    "MaxPool": _max_pool,
    "GlobalMaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "ReduceMax": _reduce(g.Max),
    "ReduceMin": _reduce(g.Max),
    "ReduceMean": _reduce(g.Mean),
    "ReduceSum": _reduce_sum,
    "Resize": _resize,
    "Upsample": _resize,
    "Add": _sum(lambda count: (1.0,) * count),
    "Sum": _sum(lambda count: (1.0,) * count),
    "Mean": _sum(lambda count: (1.0 / count,) * count),
    "Sub": _sum(lambda count: (1.0, -1.0)),
    "Where": _where,
    "Mul": _mul,
    "Div": _div,
    "MatMul": emit_product,
    "Einsum": emit_einsum,
}
