"""LSTM, GRU and RNN: what they read is multiplied by a matrix before anything else happens.

    gates = X @ W' + Wb + (H @ R' + Rb)          W' = W / s_x          Wb' = Wb - W @ t_x

A linear op on X, then a function that nothing is known about. W is (directions, gates * hidden,
inputs), B is (directions, 2 * gates * hidden): Wb and then Rb.
https://onnx.ai/onnx/operators/onnx__LSTM.html
"""

from __future__ import annotations

from bnfold.core import graph as g
from bnfold.frontends.onnx.lifter import Lifter, is_constant
from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.sites import RecurrentSite

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def emit(lifter: Lifter, node: Node) -> bool:
    """Add the node if it is one whose matrix for X can be edited."""
    gates = _GATES.get(node.op)
    if gates is None or lifter.network.opset < 7:
        return False
    source, weight, bias = node.input(0), node.input(1), node.input(3)
    shape = lifter.constants.shape(weight) if is_constant(lifter, weight) else None
    read = lifter.shape(source)
    if shape is None or len(shape) != 3 or read is None or not lifter.is_activation(source):
        return False
    directions, rows, inputs = shape
    if len(read) != 3 or read[2] != inputs or not lifter.is_float(weight) or rows % gates:
        return False
    bias_editable = not bias or (
        is_constant(lifter, bias) and lifter.constants.shape(bias) == (directions, 2 * rows)
    )
    role = g.Linear(inputs, directions * rows, 2, 2, bias_editable=bias_editable)
    made = lifter.graph.add(
        node.name, role, [lifter.tensor(source)], [(*read[:2], directions * rows)]
    )
    site = RecurrentSite(node, weight, bias, directions, rows)
    lifter.lifted.sites[len(lifter.graph.ops) - 1] = site
    others = dict.fromkeys(n for n in node.inputs[1:] if n and not lifter.constants.is_constant(n))
    tensors = [*made, *(lifter.tensor(name) for name in others)]
    return lifter.emit(node, g.Opaque(), tensors, frozenset()) is not None
