"""Lift the main graph into the core's graph: which role each node plays, and what may be edited.

The tables are in `lift_linear`, `lift_affine`, `lift_ops` and `lift_views`; what no table knows is
opaque, and so is every node whose shapes are not known. For each op that the plan may change, a
site says where in the model.
"""

from __future__ import annotations

from bnfold.core.reasons import Reason
from bnfold.frontends.onnx import (
    lift_affine,
    lift_linear,
    lift_norms,
    lift_ops,
    lift_quantized,
    lift_recurrent,
    stacks,
)
from bnfold.frontends.onnx.constants import Constants
from bnfold.frontends.onnx.lifter import Lifter
from bnfold.frontends.onnx.nodes import Network
from bnfold.frontends.onnx.shapes import Shapes
from bnfold.frontends.onnx.sites import Lifted


def lift(network: Network, constants: Constants, shapes: Shapes, *, ties: bool = True) -> Lifted:
    """The graph of a model. Without `ties`, ops that share a weight may get one each."""
    lifter = Lifter(network, constants, shapes, ties=ties)
    for name in network.inputs:
        lifter.name(name, lifter.graph.input(lifter.shape(name) or (), name))
    linears = lift_linear.survey(lifter)
    sums = stacks.survey(lifter)
    skipped = linears.skipped | stacks.skipped(sums)
    for node in network.nodes:
        if node.index in skipped or all(o in constants.nodes for o in node.outputs if o):
            continue
        if node.index in shapes.blind and node.op != "BatchNormalization":
            lifter.opaque(node)
            continue
        if node.index in sums:
            stacks.emit(lifter, node, sums[node.index])
            continue
        if node.index in linears.specs and lift_linear.emit(lifter, node, linears):
            continue
        if lift_quantized.emit(lifter, node) or lift_affine.emit(lifter, node):
            continue
        if lift_linear.emit_fixed(lifter, node) or lift_recurrent.emit(lifter, node):
            continue
        if lift_norms.emit(lifter, node):
            continue
        lift_ops.emit(lifter, node)
    for name in sorted(network.captured):
        if name in lifter.tensors:
            lifter.graph.output(lifter.tensors[name], name, Reason.NONLINEAR)
    for name in network.outputs:
        if name in lifter.tensors:
            lifter.graph.output(lifter.tensors[name], name)
    return lifter.lifted
