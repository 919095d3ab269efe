"""Whether a step that stays may go from the network that a plan makes, as it could not from this.

Two things are judged by the constants that a network came with, and a plan changes those: whether
a channel of gamma 0 can be made constant at its producer, behind a step and an activation that made
another constant of it; and how far a value may be scaled or shifted, which is beside what it was.
"""

from __future__ import annotations

from bnfold.core import graph as g
from bnfold.core.plan import Plan
from bnfold.core.reasons import Reason


def may_fold_again(graph: g.Graph, plan: Plan) -> bool:
    """Whether another fold may find more; what it does find is known only when it is made."""
    if not plan.removed:
        return False
    return any(
        obstacle.reason is Reason.SCALE_RANGE or _has_zeros(graph.ops[number].role)
        for number, obstacle in plan.kept.items()
    )


def _has_zeros(role: g.Role) -> bool:
    return isinstance(role, g.AffineStep) and role.is_wanted and not role.scale.all()
