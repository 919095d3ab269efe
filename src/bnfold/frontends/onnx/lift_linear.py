"""Linear ops: Conv, ConvTranspose, Gemm, MatMul by a constant, Gather from a table.

A weight that is an initializer is edited in place where all its readers are such ops and use it
alike (they are tied: one edit serves all); else the op that needs another weight gets one of its
own. A MatMul has no bias: the Add of a constant behind it counts as one, and where a
BatchNormalization stands there instead, an Add can be born in its place.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.weights import Layout
from bnfold.frontends.onnx.lift import BiasSite, Lifter, LinearSite, as_float64
from bnfold.frontends.onnx.nodes import Node, aligned
from bnfold.frontends.onnx.tensors import FLOATS


@dataclass(frozen=True, slots=True, eq=False)
class LinearSpec:
    """A linear op as the node states it."""

    node: Node
    source: str
    weight: str
    """The constant, in front of its transposition if there is one."""
    weight_position: int
    layout: Layout
    groups: int
    in_axis: int
    out_axis: int
    in_channels: int
    out_channels: int
    crosses_zeros: bool = False
    factor: float = 1.0
    bias: BiasSite | None = None
    output: str = ""

    @property
    def use(self) -> tuple[object, ...]:
        """Ops with equal keys can share one edit of one weight."""
        return self.layout, self.groups, self.factor


@dataclass(slots=True)
class Linears:
    """All linear ops of a network."""

    specs: dict[int, LinearSpec] = field(default_factory=dict)
    """Per node index."""
    by_weight: dict[str, list[LinearSpec]] = field(default_factory=dict)
    skipped: set[int] = field(default_factory=set)
    """Nodes that are a part of another's op: the Add behind a MatMul."""


def survey(lifter: Lifter) -> Linears:
    """Find all linear ops before any is lifted: what may be edited depends on all uses."""
    found = Linears()
    for node in lifter.network.nodes:
        reader = _READERS.get(node.op)
        spec = reader(lifter, node) if reader else None
        if spec is None or not _is_usable(lifter, spec):
            continue
        found.specs[node.index] = spec
        found.by_weight.setdefault(spec.weight, []).append(spec)
        if spec.bias is not None and spec.bias.node is not node:
            found.skipped.add(spec.bias.node.index)
    return found


def _is_usable(lifter: Lifter, spec: LinearSpec) -> bool:
    """Whether shapes and dtypes are known and say the same as the weight."""
    if lifter.shapes.dtypes.get(spec.weight) not in FLOATS:
        return False
    computed = [spec.weight] if spec.bias is None else [spec.weight, spec.bias.name]
    for name in computed:
        if name in lifter.constants.nodes and lifter.constants.array(name) is None:
            return False
    output = lifter.shape(spec.output)
    if output is None or not lifter.is_float(spec.output):
        return False
    if output[spec.out_axis] != spec.out_channels or not spec.out_channels:
        return False
    if not spec.in_channels:
        return lifter.shape(spec.source) is not None
    source = lifter.shape(spec.source)
    if source is None or not lifter.is_activation(spec.source):
        return False
    return source[spec.in_axis] == spec.in_channels


def emit(lifter: Lifter, node: Node, linears: Linears) -> bool:
    """Add the op and say where its parameters are."""
    spec = linears.specs[node.index]
    bias_editable, bias = _bias_freedom(lifter, spec)
    tie = spec.weight if is_tied(lifter, spec, linears) else None
    role = g.Linear(
        spec.in_channels,
        spec.out_channels,
        spec.in_axis,
        spec.out_axis,
        spec.groups,
        spec.crosses_zeros,
        _weight_freedom(lifter, spec),
        bias_editable,
        bias,
        tie=tie,
    )
    inputs = [lifter.tensor(spec.source)]
    number = lifter.emit(node, role, inputs, frozenset((spec.out_axis,)), outputs=[spec.output])
    if number is None:
        return False
    lifter.lifted.sites[number] = LinearSite(
        node,
        spec.weight_position,
        spec.weight,
        spec.layout,
        spec.groups,
        spec.factor,
        spec.bias if bias_editable else None,
    )
    return True


def is_tied(lifter: Lifter, spec: LinearSpec, linears: Linears) -> bool:
    """Whether several ops read the weight, all of them alike, and nobody else."""
    uses = linears.by_weight[spec.weight]
    readers = lifter.network.value_readers(spec.weight)
    if len(readers) < 2 or lifter.network.is_pinned(spec.weight):
        return False
    return len(uses) == len(readers) and all(other.use == spec.use for other in uses)


def _weight_freedom(lifter: Lifter, spec: LinearSpec) -> g.Weight:
    if lifter.takes_signs:
        array = lifter.constants.array(spec.weight)
        if array is None or _is_binary(as_float64(array)):
            return g.Weight.SIGNS
    return g.Weight.FREE


def _is_binary(weight: FloatArray) -> bool:
    """+c and -c, and nothing else."""
    magnitude = np.abs(weight)
    first = magnitude.reshape(-1)[:1]
    return bool((magnitude == first).all()) and bool((first > 0).all())


def _bias_freedom(lifter: Lifter, spec: LinearSpec) -> tuple[bool, FloatArray | None]:
    """Whether the bias may be edited or born, and what it is where it may not."""
    if spec.layout is Layout.ROWS_OUT:  # the rows themselves take the shift
        return True, None
    return spec.bias is not None, None


# -------------------------------------------------------------------- readers


def _weight_of(lifter: Lifter, node: Node, position: int) -> tuple[str, bool] | None:
    """The constant that is the weight, and whether it is used transposed."""
    name = node.input(position)
    if not name or not lifter.constants.is_constant(name) or name in lifter.constants.open:
        return None
    maker = lifter.constants.nodes.get(name)
    if maker is not None and maker.op == "Transpose":
        (source,) = maker.inputs
        shape = lifter.constants.shape(source)
        is_flip = (
            lifter.only_reader(name) is node
            and lifter.only_reader(source) is maker
            and source in lifter.network.initializers
            and shape is not None
            and len(shape) == 2
            and maker.integers("perm") in ((), (1, 0))
        )
        if is_flip:
            return source, True
    return name, False


def _constant_bias(lifter: Lifter, name: str) -> bool:
    return lifter.constants.is_constant(name) and name not in lifter.constants.open


def _convolution(lifter: Lifter, node: Node) -> LinearSpec | None:
    weight = lifter.constants.is_constant(node.input(1)) and node.input(1)
    shape = lifter.constants.shape(node.input(1)) if weight else None
    source = lifter.shape(node.input(0))
    bias = _convolution_bias(lifter, node)
    if not weight or shape is None or source is None or bias is None or len(shape) < 3:
        return None
    if weight in lifter.constants.open or len(source) != len(shape):
        return None
    groups = node.integer("group", 1)
    transposed = node.op == "ConvTranspose"
    if groups < 1 or shape[0] % groups:
        return None
    # Conv weight: (out, in/groups, *kernel); ConvTranspose weight: (in, out/groups, *kernel)
    ins, outs = (shape[0], shape[1] * groups) if transposed else (shape[1] * groups, shape[0])
    crosses = _misses_taps(node, shape[2:]) if transposed else _pads(node, shape[2:])
    layout = Layout.IN_OUT if transposed else Layout.OUT_IN
    site = BiasSite(node, 2, bias, (outs,))
    return LinearSpec(
        node,
        node.input(0),
        weight,
        1,
        layout,
        groups,
        1,
        1,
        ins,
        outs,
        crosses,
        bias=site,
        output=node.outputs[0],
    )


def _convolution_bias(lifter: Lifter, node: Node) -> str | None:
    """The constant bias, "" if there is none; None if it is no constant."""
    name = node.input(2)
    return name if not name or _constant_bias(lifter, name) else None


def _pads(node: Node, kernel: tuple[int, ...]) -> bool:
    """Whether outputs of a convolution see padded zeros."""
    mode = node.text("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return any(pad != 0 for pad in node.integers("pads"))
    return mode != "VALID" and any(taps > 1 for taps in kernel)


def _misses_taps(node: Node, kernel: tuple[int, ...]) -> bool:
    """Whether outputs of a transposed convolution see different sets of taps."""
    return (
        any(taps > 1 for taps in kernel)
        or any(stride > 1 for stride in node.integers("strides"))
        or any(pad != 0 for pad in node.integers("pads"))
        or any(pad != 0 for pad in node.integers("output_padding"))
        or bool(node.integers("output_shape"))
        or node.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    )


def _gemm(lifter: Lifter, node: Node) -> LinearSpec | None:
    """alpha * A' @ B' + beta * C with a constant B."""
    found = _weight_of(lifter, node, 1)
    if found is None or len(lifter.shape(node.input(0)) or ()) != 2:
        return None
    weight, flipped = found
    shape = lifter.constants.shape(weight)
    if shape is None or len(shape) != 2:
        return None
    is_out_in = bool(node.integer("transB")) != flipped
    outs, ins = shape if is_out_in else shape[::-1]
    name = node.input(2)
    bias = None
    if not name or (_constant_bias(lifter, name) and _is_per_column(lifter, name, outs)):
        stored: tuple[int, ...] = (outs,)
        if name and len(lifter.constants.shape(name) or ()) == 2:
            stored = (1, outs)
        bias = BiasSite(node, 2, name, stored, node.number("beta", 1.0))
    else:
        return None
    return LinearSpec(
        node,
        node.input(0),
        weight,
        1,
        Layout.OUT_IN if is_out_in else Layout.IN_OUT,
        1,
        0 if node.integer("transA") else 1,
        1,
        ins,
        outs,
        factor=node.number("alpha", 1.0),
        bias=bias,
        output=node.outputs[0],
    )


def _is_per_column(lifter: Lifter, name: str, outs: int) -> bool:
    shape = lifter.constants.shape(name)
    if shape is None or len(shape) > 2:
        return False
    return shape[-1:] in ((), (1,), (outs,)) and (len(shape) < 2 or shape[0] == 1)


def _matmul(lifter: Lifter, node: Node) -> LinearSpec | None:
    """x @ W, W: (in, out), or W @ x, W: (out, in)."""
    left = lifter.constants.is_constant(node.input(0))
    position = 0 if left else 1
    found = _weight_of(lifter, node, position)
    source = node.input(1 - position)
    rank = len(lifter.shape(source) or ())
    if found is None or rank < 2:
        return None
    weight, flipped = found
    shape = lifter.constants.shape(weight)
    if shape is None or len(shape) != 2:
        return None
    is_out_in = left != flipped
    outs, ins = shape if is_out_in else shape[::-1]
    axis = rank - 2 if left else rank - 1
    bias = _bias_behind(lifter, node, axis, rank, outs)
    is_separate = bias is not None and bias.node is not node
    return LinearSpec(
        node,
        source,
        weight,
        position,
        Layout.OUT_IN if is_out_in else Layout.IN_OUT,
        1,
        axis,
        axis,
        ins,
        outs,
        bias=bias,
        output=bias.node.outputs[0] if is_separate and bias else node.outputs[0],
    )


def _bias_behind(lifter: Lifter, node: Node, axis: int, rank: int, outs: int) -> BiasSite | None:
    """The Add of constants behind a MatMul, or room for one where an affine step stands."""
    stored = (outs,) if axis == rank - 1 else (outs, 1)
    reader = lifter.only_reader(node.outputs[0])
    name = _added(lifter, reader, node.outputs[0])
    if reader is not None and name:
        shape = lifter.constants.shape(name)
        assert shape is not None
        if len(shape) <= rank and aligned(shape, rank) == aligned(stored, rank):
            return BiasSite(reader, list(reader.inputs).index(name), name, shape)
    while reader is not None and reader.op in _MOVERS:
        reader = lifter.only_reader(reader.outputs[0])
    if reader is None:
        return None
    # An Add costs what the step that it may take the place of costs.
    takes = reader.op == "BatchNormalization" or any(
        _added(lifter, reader, name) for name in reader.inputs
    )
    return BiasSite(node, -1, "", stored) if takes else None


_MOVERS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Cast")


def _added(lifter: Lifter, node: Node | None, source: str) -> str:
    """The constant that an Add adds to the value; "" if it is none."""
    if node is None or node.op != "Add" or lifter.network.opset < 7:
        return ""
    first, second = node.inputs
    name = second if first == source else first
    is_known = _constant_bias(lifter, name) and lifter.constants.shape(name) is not None
    return name if is_known else ""


def _gather(lifter: Lifter, node: Node) -> LinearSpec | None:
    """Rows of a constant table, by indices that the user chooses: an embedding."""
    found = _weight_of(lifter, node, 0)
    indices = node.input(1)
    if found is None or found[1] or lifter.constants.is_constant(indices):
        return None
    shape = lifter.constants.shape(found[0])
    rank = len(lifter.shape(indices) or ())
    if shape is None or len(shape) != 2 or lifter.shape(indices) is None:
        return None
    if node.integer("axis") != 0:
        return None
    return LinearSpec(
        node,
        indices,
        found[0],
        0,
        Layout.ROWS_OUT,
        1,
        0,
        rank,
        0,
        shape[1],
        output=node.outputs[0],
    )


_READERS = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Gather": _gather,
}
