"""What is added behind a product, which has no bias of its own.

x @ W + c, x @ W - c, c - x @ W     c is the bias
x @ W, then a step that adds        an Add may be born, as that step may go
a step that adds, then x @ W        so it may, once for each such step
"""

from __future__ import annotations

import math

import numpy as np

from bnfold.frontends.onnx.lifter import Lifter, is_constant, laid_out
from bnfold.frontends.onnx.nodes import Node, aligned
from bnfold.frontends.onnx.sites import BiasSite
from bnfold.frontends.onnx.written import BROADCASTS, shape_of_summand


def bias_behind(lifter: Lifter, node: Node, axis: int, rank: int, outs: int) -> BiasSite | None:
    """The Add or Sub of constants behind a MatMul, or room for an Add where an affine step stands.

    An Add costs what the step that it may take the place of costs.
    """
    reader = lifter.only_reader(node.outputs[0])
    added = _added(lifter, reader, node, axis, rank, outs)
    if added is not None:
        return added
    while reader is not None and (reader.op in _MOVERS or _is_factor(lifter, reader)):
        reader = lifter.only_reader(reader.outputs[0])
    if not (reader is not None and _has_summands(lifter, reader)) and not _paid_in_front(
        lifter, node
    ):
        return None
    return BiasSite(node, -1, "", shape_of_summand(outs, axis, rank, lifter.network.opset))


def _added(
    lifter: Lifter, reader: Node | None, node: Node, axis: int, rank: int, outs: int
) -> BiasSite | None:
    """What its only reader adds to a MatMul, or takes from it, or takes it from."""
    if reader is None or reader.op not in _SUMMANDS:
        return None
    position = 1 if reader.inputs[0] == node.outputs[0] else 0
    name = reader.inputs[position]
    stored = lifter.constants.shape(name) if is_constant(lifter, name) else None
    shape = laid_out(lifter, reader, name, rank)
    if stored is None or shape is None:
        return None
    bias_shape = (outs, *(1,) * (rank - 1 - axis))
    factor = -1.0 if reader.op == "Sub" and position == 1 else 1.0
    if len(shape) <= rank and aligned(shape, rank) == aligned(bias_shape, rank):
        return BiasSite(reader, position, name, stored, factor)
    is_old = lifter.network.opset < BROADCASTS
    if math.prod(shape) > 1 and not is_old and _keeps_shape(lifter, reader, node):
        spread = np.broadcast_shapes(shape, bias_shape)
        if 0 < math.prod(spread) <= _LARGEST:
            return BiasSite(reader, position, name, spread, factor, axis=axis - rank)
    return None


def _is_factor(lifter: Lifter, node: Node) -> bool:
    """Whether it multiplies by constants, which a linear op may take in."""
    constant = [lifter.constants.is_constant(name) for name in node.inputs]
    if node.op == "Mul":
        return any(constant)
    return node.op == "Neg" or (node.op == "Div" and constant[1])


def _has_summands(lifter: Lifter, node: Node) -> bool:
    """Whether it is a step that an Add may take the place of."""
    return node.op == "BatchNormalization" or (
        node.op in _SUMMANDS and any(is_constant(lifter, name) for name in node.inputs)
    )


def _paid_in_front(lifter: Lifter, node: Node) -> bool:
    """Whether a step in front may go for the Add; each pays for one."""
    position = 1 if lifter.constants.is_constant(node.input(0)) else 0
    names, seen = [node.input(position)], set[int]()
    for name in names:  # which grows
        maker = lifter.network.makers.get(name)
        if maker is None or maker.index in seen or lifter.constants.is_constant(name):
            continue
        seen.add(maker.index)
        if _has_summands(lifter, maker):
            if maker.index not in lifter.claimed:
                lifter.claimed.add(maker.index)
                return True
        elif maker.op in _MEETINGS or maker.op in _PASSED:
            names.extend(maker.inputs if maker.op in _MEETINGS else maker.inputs[:1])
    return False


def _keeps_shape(lifter: Lifter, add: Node, node: Node) -> bool:
    """Whether the constant of an Add or Sub fits into what it meets, for all sizes."""
    return lifter.shape(add.outputs[0]) is not None and all(
        lifter.shapes.of(add.outputs[0], choice) == lifter.shapes.of(node.outputs[0], choice)
        for choice in range(lifter.shapes.count)
    )


_LARGEST = 1 << 22
"""Elements of the largest constant that takes in a bias per channel."""
_SUMMANDS = ("Add", "Sub")
_MOVERS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Cast")
_MEETINGS = ("Concat", "Add", "Sub", "Sum", "Mean", "Mul", "Div")
_PASSED = (
    *_MOVERS,
    *("Relu", "Clip", "LeakyRelu", "PRelu", "Dropout", "Neg", "Max", "Min", "Pow"),
    *("Slice", "Split", "Tile", "Expand", "Pad"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"),
)
"""What a step in front may have behind it, as far as the Add that it pays for is concerned."""
