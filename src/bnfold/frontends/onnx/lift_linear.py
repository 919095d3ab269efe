"""Linear ops: Conv, ConvTranspose, Gemm, MatMul or Einsum by a constant, Gather from a table.

A weight that is an initializer is edited in place where all its readers are such ops and use it
alike (they are tied: one edit serves all); else the op that needs another weight gets one of its
own. A MatMul has no bias: the Add of a constant behind it counts as one, and where a
BatchNormalization stands there instead, an Add can be born in its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.weights import Layout
from bnfold.frontends.onnx.lifter import Lifter, as_float64
from bnfold.frontends.onnx.linear_nodes import LinearSpec, Weight, read_linear
from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.sites import LinearSite
from bnfold.frontends.onnx.tensors import FLOATS


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
    linears = Linears()
    for node in lifter.network.nodes:
        spec = read_linear(lifter, node)
        if spec is None or not _is_usable(lifter, spec):
            continue
        linears.specs[node.index] = spec
        linears.by_weight.setdefault(spec.weight, []).append(spec)
        if spec.bias is not None and spec.bias.node is not node:
            linears.skipped.add(spec.bias.node.index)
    return linears


def _is_usable(lifter: Lifter, spec: LinearSpec) -> bool:
    """Whether shapes and dtypes are known and say the same as the weight."""
    dtype = lifter.shapes.dtypes.get(spec.weight)
    if dtype not in FLOATS or spec.node.index in lifter.shapes.blind:
        return False
    if spec.bias is not None and spec.bias.node.index in lifter.shapes.blind:
        return False
    bias = "" if spec.bias is None else spec.bias.name
    if bias and lifter.shapes.dtypes.get(bias) != dtype:  # no runtime takes such a pair
        return False
    is_full = spec.bias is not None and spec.bias.axis is not None
    if bias and not is_full and not has_bias_size(lifter, bias, spec.role.out_channels):
        return False
    for name in (spec.weight, bias):
        if name in lifter.constants.nodes and lifter.constants.array(name) is None:
            return False
    return _fits(lifter, spec)


def has_bias_size(lifter: Lifter, name: str, channels: int) -> bool:
    """Whether a constant has one number, or one per channel."""
    shape = lifter.constants.shape(name)
    return shape is not None and math.prod(shape) in (1, channels)


def _fits(lifter: Lifter, spec: LinearSpec) -> bool:
    output, role = lifter.shape(spec.output), spec.role
    if output is None or not lifter.is_float(spec.output):
        return False
    if output[role.out_axis] != role.out_channels or not role.out_channels:
        return False
    if not role.in_channels:
        return lifter.shape(spec.source) is not None
    source = lifter.shape(spec.source)
    if source is None or not lifter.is_activation(spec.source):
        return False
    return source[role.in_axis] == role.in_channels


def emit(lifter: Lifter, node: Node, linears: Linears) -> bool:
    """Add the op and say where its parameters are."""
    spec = linears.specs[node.index]
    bias_editable, bias = _bias_freedom(lifter, spec)
    tie = spec.weight if is_tied(lifter, spec, linears) else None
    weight = _weight_freedom(lifter, spec)
    role = replace(spec.role, weight=weight, bias_editable=bias_editable, bias=bias, tie=tie)
    inputs = [lifter.tensor(spec.source)]
    number = lifter.emit(node, role, inputs, frozenset((role.out_axis,)), outputs=[spec.output])
    if number is None:
        return False
    lifter.lifted.sites[number] = LinearSite(
        node,
        spec.weight_position,
        spec.weight,
        spec.layout,
        role.groups,
        spec.factor,
        spec.bias if bias_editable else None,
    )
    return True


_CONVOLUTIONS = ("Conv", "ConvTranspose")
_WITH_WEIGHT = (*_CONVOLUTIONS, "Gemm", "MatMul")


def emit_fixed(lifter: Lifter, node: Node) -> bool:
    """A convolution whose weight is no constant, or an op with a sparse one: still linear."""
    name = node.input(1)
    shape = lifter.shape(name)
    known = _WITH_WEIGHT if name in lifter.network.sparse else _CONVOLUTIONS
    if node.op not in known or shape is None or not lifter.is_float(name):
        return False
    if lifter.constants.is_constant(name) and name not in lifter.constants.quantized:
        return False
    spec = read_linear(lifter, node, Weight(name, shape, 1, bias=node.input(2)))
    if spec is None or not _fits(lifter, spec):
        return False
    if spec.bias is not None and spec.bias.axis is not None:
        return False
    bias = lifter.constants.array(node.input(2)) if node.input(2) else None
    if node.input(2) and bias is None:
        return False
    summands = None if bias is None else as_float64(bias).reshape(-1)
    role = spec.fixed(summands)
    lifter.graph.pin(node.name, [lifter.tensor(name)])
    inputs = [lifter.tensor(spec.source)]
    return lifter.emit(node, role, inputs, frozenset((role.out_axis,))) is not None


def is_tied(lifter: Lifter, spec: LinearSpec, linears: Linears) -> bool:
    """Whether several ops read the weight, all of them alike, and nobody else."""
    uses = linears.by_weight[spec.weight]
    readers = lifter.network.value_readers(spec.weight)
    if not lifter.ties or len(readers) < 2 or lifter.network.is_pinned(spec.weight):
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
