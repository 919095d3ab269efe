"""Whether what a fold leaves can be merged once more, told by its plan before anything is written.

A BatchNorm in front of a padded convolution ends a chain; once the fold has taken it out, the
convolution may be merged with what lies beside it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnfold.core import graph as g
from bnfold.core.expression import Freedom, Part
from bnfold.core.merge import find_merges
from bnfold.core.plan import Plan
from bnfold.frontends.caffe.lifter import Lifted
from bnfold.frontends.caffe.merge import freedom_of
from bnfold.frontends.caffe.merge_parts import parts_of
from bnfold.frontends.caffe.net import Net


def can_merge_again(net: Net, lifted: Lifted, plan: Plan) -> bool:
    """Whether there is something to merge in the network that the plan makes."""
    graph, numbers = _left(lifted.graph, plan)
    parts = parts_of(net, lifted)
    freedom = freedom_of(lifted, parts)
    left = {new: _left_of(parts[old], plan, old) for new, old in numbers.items() if old in parts}
    return bool(
        find_merges(
            graph,
            left,
            Freedom(
                lambda number: freedom.can_go(numbers[number]),
                carries_affine=lambda number: freedom.carries_affine(numbers[number]),
            ),
        )
    )


def _left(graph: g.Graph, plan: Plan) -> tuple[g.Graph, dict[int, int]]:
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
            role = replace(role, scale=edit.scale, shift=edit.shift)
        numbers[len(ops)] = number
        ops.append(replace(op, role=role, inputs=inputs))
    outputs = [(now.get(tensor, tensor), name, why) for tensor, name, why in graph.outputs]
    return g.Graph(graph.shapes, ops, graph.inputs, outputs), numbers


def _left_of(part: Part, plan: Plan, number: int) -> Part:
    """A part that has a bias now, if it gets one."""
    edit = plan.linear.get(number)
    if part.bias is not None or edit is None or not edit.needs_bias:
        return part
    return replace(part, bias=lambda: np.zeros(part.out_channels))
