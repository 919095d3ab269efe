"""Move the constants of one step and see which edits of a plan change with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnfold.core import graph as g
from bnfold.core.modes import ClipMode
from bnfold.core.plan import AffineEdit, LinearEdit, Plan, make_plan


def moved(graph: g.Graph, number: int) -> g.Graph:
    """The graph with other constants in the step, and in those of its group."""
    other = replace(graph, ops=list(graph.ops))
    for member in graph.affine_groups()[number]:
        op = graph.ops[member]
        assert isinstance(op.role, g.AffineStep)
        a, b = op.role.scale, op.role.shift
        wobble = 1 + 1e-3 * np.cos(np.arange(a.size)).reshape(a.shape)
        # What is 1 or 0 is no parameter of the step: a Mul has no summand, an Add no factor.
        role = replace(op.role, scale=np.where(a == 1, a, a * wobble), shift=b * wobble**2)
        other.ops[member] = replace(op, role=role)
    return other


def parts(plan: Plan) -> dict[int, list[np.ndarray]]:
    found: dict[int, list[np.ndarray]] = {}
    for number, edit in (plan.linear | plan.affine).items():
        if isinstance(edit, LinearEdit):
            found[number] = [edit.input_inverse, edit.input_shift]
            found[number] += [edit.output_scale, edit.output_shift]
        if isinstance(edit, AffineEdit):
            found[number] = [edit.scale, edit.shift]
    return found


def changed(graph: g.Graph, plan: Plan, number: int, clip: ClipMode) -> set[str] | None:
    """The names of the ops whose edit changes with the step; None if it is another plan."""
    other = make_plan(moved(graph, number), clip=clip)
    if set(other.removed) != set(plan.removed):
        return None
    before, after = parts(plan), parts(other)
    found = set()
    for op in before.keys() | after.keys():
        same = op in before and op in after
        same = same and all(
            np.allclose(a, b, rtol=1e-8, atol=1e-10)
            for a, b in zip(before[op], after[op], strict=True)
        )
        if not same:
            found.add(graph.ops[op].name)
    return found
