"""Whether what a fold leaves can be merged once more, told by its plan before anything is written.

What is merged may stand beside others that it can be merged with. And an affine step may end a
chain, or part two sums; once the fold has taken it out, a linear op may be merged with what lies
beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from bnfold.core import graph as g
from bnfold.core.expression import Freedom, Part
from bnfold.core.left import left_of
from bnfold.core.merge import find_merges
from bnfold.core.plan import Plan
from bnfold.core.unmoved import Order, unmoved


def can_merge_again(
    graph: g.Graph,
    plan: Plan,
    parts: Mapping[int, Part],
    freedom: Freedom,
    *,
    is_merged: bool,
    moves: Mapping[int, Order] | None = None,
) -> bool:
    """Whether there may be something to merge in the network that the plan makes of this one.

    `is_merged` says whether this one is what a merge made; `moves` are for `unmoved`.
    """
    if not (plan.removed or is_merged):
        return False
    if any(_is_tied(graph.ops[number].role) for number in plan.linear):
        return True  # it has a weight of its own now
    left, numbers = left_of(graph, plan)
    parts_left = {
        new: _left_of(parts[old], plan, old) for new, old in numbers.items() if old in parts
    }
    freedom_left = replace(
        freedom,
        can_go=lambda number: freedom.can_go(numbers[number]),
        carries_affine=lambda number: freedom.carries_affine(numbers[number]),
    )
    moves_left = {new: moves[old] for new, old in numbers.items() if moves and old in moves}
    seen = unmoved(left, parts_left, moves_left)
    return bool(find_merges(seen.graph, seen.parts, freedom_left))


def _is_tied(role: g.Role) -> bool:
    return isinstance(role, g.Linear) and role.tie is not None


def _left_of(part: Part, plan: Plan, number: int) -> Part:
    """A part whose bias shifts, if the fold gives it a shift."""
    edit = plan.linear.get(number)
    if edit is None or not edit.needs_bias:
        return part
    return replace(part, bias=lambda: np.ones(part.out_channels))
