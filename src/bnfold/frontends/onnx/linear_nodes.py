"""Linear ops as their nodes state them: Conv, ConvTranspose, Gemm, MatMul by a constant, Gather.

Conv, ConvTranspose   W * x + B                  padding and missing taps: see `crosses_zeros`
Gemm                  alpha * A' @ B' + beta * C
MatMul                x @ W or W @ x, and the Add or Sub of constants behind it
Gather                rows of a table, by indices that the user chooses
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.weights import Layout
from bnfold.frontends.onnx.lifter import Lifter, laid_out
from bnfold.frontends.onnx.nodes import Node, aligned
from bnfold.frontends.onnx.shapes import Shape
from bnfold.frontends.onnx.sites import BiasSite
from bnfold.frontends.onnx.windows import centre_of, crosses_zeros
from bnfold.frontends.onnx.written import BROADCASTS, shape_of_summand


@dataclass(frozen=True, slots=True, eq=False)
class LinearSpec:
    """A linear op as the node states it."""

    node: Node
    source: str
    weight: str
    """The constant, in front of its transposition if there is one."""
    weight_position: int
    layout: Layout
    role: g.Linear
    """The op in the core's words, before it is known what may be edited of it."""
    factor: float = 1.0
    bias: BiasSite | None = None
    output: str = ""

    @property
    def out_weight_axis(self) -> int:
        """The axis of the weight along which output channels lie (within their group)."""
        return 0 if self.layout is Layout.OUT_IN else 1

    @property
    def use(self) -> tuple[object, ...]:
        """Ops with equal keys can share one edit of one weight."""
        return self.layout, self.role.groups, self.factor

    def fixed(self, bias: FloatArray | None = None) -> g.Linear:
        """The op where neither its weight nor its bias can be edited."""
        fixed = replace(self.role, weight=g.Weight.FIXED, bias_editable=False)
        return replace(fixed, bias=bias, centre=None)


@dataclass(frozen=True, slots=True)
class Weight:
    """What stands in the place of the weight, and of the bias."""

    name: str
    """The constant, in front of its transposition if there is one."""
    shape: Shape
    """Of what `name` is."""
    position: int
    """Which input it is."""
    is_flipped: bool = False
    """Whether a Transpose stands between it and the op."""
    bias: str = ""
    """The third input."""


def read_linear(lifter: Lifter, node: Node, weight: Weight | None = None) -> LinearSpec | None:
    """The linear op that a node is, with a given weight or its own constant."""
    reader = _READERS.get(node.op)
    if reader is None:
        return None
    if weight is None:
        first = node.op == "Gather" or (
            node.op == "MatMul" and lifter.constants.is_constant(node.input(0))
        )
        weight = _weight_of(lifter, node, 0 if first else 1)
    return None if weight is None else reader(lifter, node, weight)


def _weight_of(lifter: Lifter, node: Node, position: int) -> Weight | None:
    """The constant that is the weight."""
    name = node.input(position)
    shape = lifter.constants.shape(name) if name and is_constant(lifter, name) else None
    if shape is None:
        return None
    bias = "" if node.op == "Gather" else node.input(2)
    maker = lifter.constants.nodes.get(name)
    if maker is not None and maker.op == "Transpose" and len(shape) == 2:
        (source,) = maker.inputs
        is_flip = (
            lifter.only_reader(name) is node
            and lifter.only_reader(source) is maker
            and source in lifter.network.initializers
            and maker.integers("perm") in ((), (1, 0))
        )
        if is_flip:
            return Weight(source, shape[::-1], position, True, bias)
    return Weight(name, shape, position, False, bias)


def is_constant(lifter: Lifter, name: str) -> bool:
    """Whether the value is a float of its own: not only a shape, nor integers dequantised."""
    constants = lifter.constants
    is_own = name not in constants.open and name not in constants.quantized
    return is_own and constants.is_constant(name)


def _convolution(lifter: Lifter, node: Node, weight: Weight) -> LinearSpec | None:
    shape = weight.shape
    source = lifter.shape(node.input(0))
    bias = _bias_name(lifter, weight)
    groups = node.integer("group", 1)
    if source is None or bias is None or len(shape) < 3 or len(source) != len(shape):
        return None
    if weight.position != 1 or weight.is_flipped or groups < 1 or shape[0] % groups:
        return None
    layout = Layout.IN_OUT if node.op == "ConvTranspose" else Layout.OUT_IN
    ins, outs = layout.channels(shape, groups)
    crosses, centre = crosses_zeros(node, shape[2:]), centre_of(node, shape[2:])
    return LinearSpec(
        node,
        node.input(0),
        weight.name,
        1,
        layout,
        g.Linear(ins, outs, 1, 1, groups, crosses, centre=centre),
        bias=BiasSite(node, 2, bias, (outs,)),
        output=node.outputs[0],
    )


def _bias_name(lifter: Lifter, weight: Weight) -> str | None:
    """The constant bias, "" if there is none; None if it is no constant."""
    return weight.bias if not weight.bias or is_constant(lifter, weight.bias) else None


def _gemm(lifter: Lifter, node: Node, weight: Weight) -> LinearSpec | None:
    """alpha * A' @ B' + beta * C with a constant B."""
    bias = _bias_name(lifter, weight)
    if bias is None or len(weight.shape) != 2 or len(lifter.shape(node.input(0)) or ()) != 2:
        return None
    is_out_in = bool(node.integer("transB")) != weight.is_flipped
    outs, ins = weight.shape if is_out_in else weight.shape[::-1]
    bias_shape: tuple[int, ...] = (outs,)
    is_full = bool(bias) and not _is_per_column(lifter, bias, outs)
    if bias:
        shape = lifter.constants.shape(bias)
        if shape is None or len(shape) > 2:
            return None
        bias_shape = (shape[0], outs) if len(shape) == 2 else bias_shape
    factor = node.number("alpha", 1.0)
    in_axis = 0 if node.integer("transA") else 1
    return LinearSpec(
        node,
        node.input(0),
        weight.name,
        1,
        Layout.OUT_IN if is_out_in else Layout.IN_OUT,
        g.Linear(ins, outs, in_axis, 1, centre=() if factor == 1.0 else None),
        factor=factor,
        bias=BiasSite(
            node, 2, bias, bias_shape, node.number("beta", 1.0), axis=-1 if is_full else None
        ),
        output=node.outputs[0],
    )


def _is_per_column(lifter: Lifter, name: str, outs: int) -> bool:
    shape = lifter.constants.shape(name) or ()
    return shape[-1:] in ((), (1,), (outs,)) and (len(shape) < 2 or shape[0] == 1)


def _matmul(lifter: Lifter, node: Node, weight: Weight) -> LinearSpec | None:
    """x @ W, W: (in, out), or W @ x, W: (out, in), or a batch of such W.

    Of a batch the matrices share their factors, and one bias: no shift of the input fits into that.
    """
    left = weight.position == 0
    source = node.input(1 - weight.position)
    rank, batch = len(lifter.shape(source) or ()), weight.shape[:-2]
    if rank < 2 or len(weight.shape) < 2 or not all(batch):
        return None
    is_out_in = left != weight.is_flipped
    outs, ins = weight.shape[-2:] if is_out_in else weight.shape[:-3:-1]
    from_the_back = 2 if left else 1
    made = max(rank, len(weight.shape))
    axis = made - from_the_back
    bias = _bias_behind(lifter, node, axis, made, outs)
    is_separate = bias is not None and bias.node is not node
    is_taken_off = bias is not None and bias.node.op == "Sub" and bias.position == 0  # c - x @ W
    return LinearSpec(
        node,
        source,
        weight.name,
        weight.position,
        Layout.OUT_IN if is_out_in else Layout.IN_OUT,
        g.Linear(
            *(ins, outs, rank - from_the_back, axis),
            crosses_zeros=math.prod(batch) > 1,
            centre=None if is_taken_off else (),
        ),
        factor=-1.0 if is_taken_off else 1.0,
        bias=bias,
        output=bias.node.outputs[0] if is_separate and bias else node.outputs[0],
    )


def _bias_behind(lifter: Lifter, node: Node, axis: int, rank: int, outs: int) -> BiasSite | None:
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
    *("Relu", "Clip", "LeakyRelu", "PRelu", "Dropout"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"),
)
"""What a step in front may have behind it, as far as the Add that it pays for is concerned."""


def _gather(lifter: Lifter, node: Node, weight: Weight) -> LinearSpec | None:
    """Rows of a constant table, by indices that the user chooses: an embedding."""
    indices = node.input(1)
    if weight.is_flipped or lifter.constants.is_constant(indices):
        return None
    rank = len(lifter.shape(indices) or ())
    if len(weight.shape) != 2 or lifter.shape(indices) is None or node.integer("axis") != 0:
        return None
    return LinearSpec(
        node,
        indices,
        weight.name,
        0,
        Layout.ROWS_OUT,
        g.Linear(0, weight.shape[1], 0, rank),
        output=node.outputs[0],
    )


_READERS: dict[str, Callable[[Lifter, Node, Weight], LinearSpec | None]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Gather": _gather,
}
