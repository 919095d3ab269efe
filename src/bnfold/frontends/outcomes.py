"""What a plan made of each affine step, as a report tells it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from bnfold.core import graph as g
from bnfold.core.plan import Plan
from bnfold.network import draw
from bnfold.outcomes import Item, Kept, Removed
from bnfold.report import FoldReport


def outcomes(
    graph: g.Graph,
    plan: Plan,
    *,
    aside: Collection[int] = (),
    calls: Callable[[Collection[int]], int] = len,
) -> list[Item]:
    """An item per affine step that was decided on; the calls of one module are one item.

    `aside` are the numbers of steps that nobody asks about; `calls` counts the calls of a module.
    """
    items = []
    for group in dict.fromkeys(graph.affine_groups().values()):
        outcome = None if group[0] in aside else _outcome(graph, plan, group)
        if outcome is not None:
            step, name = graph.step(group[0]), graph.ops[group[0]].name
            items.append(Item(name, step.kind, step.channels, calls(group), outcome))
    return items


def reported(
    graph: g.Graph,
    plan: Plan,
    items: Sequence[Item],
    versions: Mapping[str, str],
    notes: tuple[str, ...] = (),
) -> FoldReport:
    """The report of a plan for this network; `items` are `outcomes`, and what else there is."""
    network = draw(graph, plan, [item.name for item in items])
    return FoldReport(tuple(items), graph.names(plan.clipped), notes, versions, network)


def _outcome(graph: g.Graph, plan: Plan, group: tuple[int, ...]) -> Removed | Kept | None:
    if group[0] in plan.removed:
        names = [name for call in group for name in plan.removed[call]]
        return Removed(tuple(dict.fromkeys(names)))
    obstacle = plan.kept.get(group[0])
    if obstacle is None:
        return None
    refusal = graph.step(group[0]).refusal
    return Kept(obstacle.reason, obstacle.blocker, None if refusal is None else refusal.detail)
