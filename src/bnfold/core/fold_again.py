"""Whether a step that stays may go from the network that a plan makes, as it could not from this.

Two things are judged by the constants that a network came with, and a plan changes those: whether
a channel of gamma 0 can be made constant at its producer, behind a step and an activation that made
another constant of it; and how far a value may be scaled or shifted, which is beside what it was.

And steps are tried in turn, each beside what is decided by then. What stands in the way of one may
be a step behind it that goes in the end, or one of the sums that were given up for it. So what is
left is planned once more, before anything is written.
"""

from __future__ import annotations

from bnfold.core import graph as g
from bnfold.core.left import left_of
from bnfold.core.modes import ClipMode
from bnfold.core.plan import Plan, make_plan
from bnfold.core.reasons import Reason


def may_fold_again(graph: g.Graph, plan: Plan) -> bool:
    """Whether another fold may find more; what it does find is known only when it is made."""
    if not plan.removed or not plan.kept:
        return False
    depends_on_constants = any(
        obstacle.reason is Reason.SCALE_RANGE or _has_zeros(graph.ops[number].role)
        for number, obstacle in plan.kept.items()
    )
    return depends_on_constants or _finds_more(graph, plan)


def _has_zeros(role: g.Role) -> bool:
    return isinstance(role, g.AffineStep) and role.is_wanted and not role.scale.all()


def _finds_more(graph: g.Graph, plan: Plan) -> bool:
    """Planned without bounds per channel where they have a price, which was weighed before.

    To weigh it again would take as long as all else does where many steps stay for it.
    """
    left, numbers = left_of(graph, plan)
    banned = {
        now: plan.kept[old]
        for now, old in numbers.items()
        if old in plan.kept and plan.kept[old].reason is Reason.OVERFLOW
    }
    clip: ClipMode = "never" if plan.clip_mode == "auto" else plan.clip_mode
    return bool(make_plan(left, clip=clip, banned=banned).removed)
