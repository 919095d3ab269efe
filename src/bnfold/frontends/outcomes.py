"""What a plan made of each affine step, as a report tells it."""

from __future__ import annotations

from collections.abc import Collection

from bnfold.core import graph as g
from bnfold.core.plan import Plan
from bnfold.report import Item, Kept, Removed


def outcomes(graph: g.Graph, plan: Plan, aside: Collection[int] = ()) -> list[Item]:
    """An item per affine step that was decided on; the calls of one module are one item.

    `aside` are the numbers of steps that nobody asks about.
    """
    groups = dict.fromkeys(graph.affine_groups().values())
    return [
        Item(graph.ops[group[0]].name, role.kind, role.channels, len(group), outcome)
        for group in groups
        if group[0] not in aside
        and isinstance(role := graph.ops[group[0]].role, g.AffineStep)
        and (outcome := _outcome(plan, group, role)) is not None
    ]


def _outcome(plan: Plan, group: tuple[int, ...], role: g.AffineStep) -> Removed | Kept | None:
    if group[0] in plan.removed:
        names = [name for call in group for name in plan.removed[call]]
        return Removed(tuple(dict.fromkeys(names)))
    obstacle = plan.kept.get(group[0])
    if obstacle is None:
        return None
    detail = role.refusal[1] if role.refusal else None
    return Kept(obstacle.reason, obstacle.blocker, detail)
