"""The network that a plan leaves, in the core's words: what another fold or merge would see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnfold.core import graph as g
from bnfold.core.plan import AffineEdit, Plan


def left_of(graph: g.Graph, plan: Plan) -> tuple[g.Graph, dict[int, int]]:
    """The graph without what is removed, and which number each op had."""
    ops: list[g.Op] = []
    numbers: dict[int, int] = {}
    now: dict[int, int] = {}
    for number, op in enumerate(graph.ops):
        inputs = tuple(now.get(tensor, tensor) for tensor in op.inputs)
        if number in plan.removed:
            now[op.outputs[0]] = inputs[0]
            continue
        role, edit = op.role, plan.affine.get(number)
        if isinstance(role, g.AffineStep) and edit is not None:
            role = _edited(role, edit)
        numbers[len(ops)] = number
        ops.append(replace(op, role=role, inputs=inputs))
    outputs = [(now.get(tensor, tensor), name, why) for tensor, name, why in graph.outputs]
    return g.Graph(graph.shapes, ops, graph.inputs, outputs), numbers


def _edited(role: g.AffineStep, edit: AffineEdit) -> g.AffineStep:
    """The step with its new constants; how much its output deviates grows with the factor.

    Its statistics stay, so gamma' / gamma = a' / a.
    """
    new = replace(role, scale=edit.scale, shift=edit.shift)
    if role.spread is None or role.center is None:
        return new
    known = role.scale != 0
    ratio = np.divide(edit.scale, role.scale, out=np.zeros_like(edit.scale), where=known)
    mean = np.divide(role.center - role.shift, role.scale, out=np.zeros_like(ratio), where=known)
    return replace(new, spread=np.abs(ratio) * role.spread, center=edit.shift + edit.scale * mean)
