"""Constants that meet activations, as a summand, in a Concat, or as the input of a step.

A constant is stored rescaled like any other value: c^ = s * (c + t) is what its file holds then. It
is lifted as a linear op without inputs whose channels lie along one axis of what it meets; along
that axis it is spread out if it has one number for all channels.
"""

from __future__ import annotations

import math

from bnfold.core import graph as g
from bnfold.frontends.onnx.lifter import Lifter, as_float64, is_constant
from bnfold.frontends.onnx.nodes import Node, aligned
from bnfold.frontends.onnx.shapes import Shape
from bnfold.frontends.onnx.sites import ConstantSite

_LARGEST = 1 << 22
"""Elements up to which a constant is spread out over the channels."""


def operands(lifter: Lifter, node: Node, axis: int | None = None) -> list[int] | None:
    """The graph tensors of all inputs of a node; None if one of them is not known.

    `axis` of the output is where channels lie, unless the activations say more.
    """
    tensors: dict[int, int] = {}
    rank = len(lifter.shape(node.outputs[0]) or ())
    varying: set[int] = set()
    for position, name in enumerate(node.inputs):
        if not lifter.constants.is_constant(name):
            tensors[position] = lifter.tensor(name)
            varying |= lifter.axes_of(tensors[position], rank)
    if axis is None:
        axis = min(varying) if len(varying) == 1 else min(1, rank - 1)
    for position in range(len(node.inputs)):
        if position not in tensors:
            number = _operand(lifter, node, position, axis, rank)
            if number is None:
                return None
            tensors[position] = number
    return [tensors[position] for position in range(len(node.inputs))]


def _operand(lifter: Lifter, node: Node, position: int, axis: int, rank: int) -> int | None:
    name = node.inputs[position]
    if not lifter.is_float(name):
        return None
    if is_constant(lifter, name) and rank:
        shape = lifter.constants.shape(name) or ()
        wanted = list(aligned(shape, rank))
        if node.op != "Concat":
            wanted[axis] = (lifter.shape(node.outputs[0]) or ())[axis]
        grows = math.prod(wanted) != math.prod(shape)
        is_open = axis in lifter.shapes.open_axes(node.outputs[0]) and wanted[axis] > 1
        if not is_open and (not grows or math.prod(wanted) <= _LARGEST):
            tensor = table(lifter, node, position, axis, tuple(wanted))
            if tensor is not None:
                return tensor
    array, shape = lifter.constants.array(name), lifter.constants.shape(name) or ()
    if array is None:
        return None
    role = g.Constant(as_float64(array))
    number = lifter.graph.add(node.name, role, (), [shape])[0]
    is_free = not role.value.any() and bool(shape)
    lifter.varying[number] = frozenset((1 if len(shape) > 1 else 0,)) if is_free else frozenset()
    return number


def table(lifter: Lifter, node: Node, position: int, axis: int, shape: Shape) -> int | None:
    """The graph tensor of a constant, of that shape, with channels of its own along an axis."""
    name = node.inputs[position]
    if not is_constant(lifter, name) or not shape[axis]:
        return None
    if name not in lifter.network.initializers and lifter.constants.array(name) is None:
        return None
    role = g.Linear(0, shape[axis], 0, axis)
    number = lifter.graph.add(name, role, (), [shape])[0]
    site = ConstantSite(node, position, name, axis, shape)
    lifter.lifted.sites[len(lifter.graph.ops) - 1] = site
    lifter.varying[number] = frozenset((axis,)) if shape[axis] > 1 else frozenset()
    return number
