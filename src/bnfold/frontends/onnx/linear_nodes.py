"""Linear ops as their nodes state them: Conv, ConvTranspose, Gemm, MatMul, Einsum, Gather.

Conv, ConvTranspose   W * x + B                  padding and missing taps: see `crosses_zeros`
Gemm                  alpha * A' @ B' + beta * C
MatMul                x @ W or W @ x, and the Add or Sub of constants behind it
Einsum                a MatMul by one matrix whose axes may lie anywhere
Gather                rows of a table, by indices that the user chooses
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.weights import Layout
from bnfold.frontends.onnx.bias_behind import bias_behind
from bnfold.frontends.onnx.einsum import terms_of
from bnfold.frontends.onnx.lifter import Lifter, is_constant
from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.shapes import Shape
from bnfold.frontends.onnx.sites import BiasSite
from bnfold.frontends.onnx.windows import centre_of, crosses_zeros


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
            node.op in ("MatMul", "Einsum") and lifter.constants.is_constant(node.input(0))
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
    role = g.Linear(
        *(ins, outs, rank - from_the_back, made - from_the_back),
        crosses_zeros=math.prod(batch) > 1,
        centre=(),
    )
    return _product(lifter, node, weight, role, made, is_out_in=is_out_in)


def _einsum(lifter: Lifter, node: Node, weight: Weight) -> LinearSpec | None:
    """A sum over one axis, in the place of which one of the matrix comes: a MatMul."""
    shape = lifter.shape(node.input(1 - weight.position))
    if shape is None or len(node.inputs) != 2 or len(weight.shape) != 2:
        return None
    ranks = [len(shape), 2]
    terms = terms_of(node, ranks if weight.position else ranks[::-1])
    if terms is None:
        return None
    x, matrix, made = terms[1 - weight.position], terms[weight.position], terms[2]
    summed, new = "".join(set(matrix) - set(made)), "".join(set(matrix) - set(x))
    if len(summed) != 1 or len(new) != 1 or set(made) != set(x) - {summed} | {new}:
        return None
    is_out_in = (matrix == new + summed) != weight.is_flipped
    outs, ins = weight.shape if is_out_in else weight.shape[::-1]
    is_in_place = x.replace(summed, new) == made
    role = g.Linear(
        *(ins, outs, x.index(summed), made.index(new)), centre=() if is_in_place else None
    )
    return _product(lifter, node, weight, role, len(made), is_out_in=is_out_in)


def _product(
    lifter: Lifter, node: Node, weight: Weight, role: g.Linear, rank: int, *, is_out_in: bool
) -> LinearSpec:
    """Of an activation and a matrix, with what is added to it; `rank` is that of what it makes."""
    bias = bias_behind(lifter, node, role.out_axis, rank, role.out_channels)
    is_separate = bias is not None and bias.node is not node
    is_taken_off = bias is not None and bias.node.op == "Sub" and bias.position == 0  # c - x @ W
    return LinearSpec(
        node,
        node.input(1 - weight.position),
        weight.name,
        weight.position,
        Layout.OUT_IN if is_out_in else Layout.IN_OUT,
        replace(role, centre=None) if is_taken_off else role,
        factor=-1.0 if is_taken_off else 1.0,
        bias=bias,
        output=bias.node.outputs[0] if is_separate and bias else node.outputs[0],
    )


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
    "Einsum": _einsum,
    "Gather": _gather,
}
