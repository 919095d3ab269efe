"""No step stays for another one that goes: what stands in its way is asked of the network left.

Steps are tried one after the other, and a step runs into what holds by then. What it names may have
gone in the end: a step in front of it, whose inputs are asked for what its outputs cannot give, or
one behind it, that was to stay. In the network that is left there are only ops that are there.
"""

from __future__ import annotations

from dataclasses import replace

from bnfold.core.left import left_of
from bnfold.core.plan import Plan
from bnfold.core.solver import solve


def explained(plan: Plan) -> Plan:
    """The plan, with other reasons for the steps whose reasons name one that goes."""
    assert plan.solution is not None
    graph = plan.solution.binding.graph
    removed = graph.names(plan.removed)
    gone = set(removed).difference(
        op.name for n, op in enumerate(graph.ops) if n not in plan.removed
    )
    told = {number for number, obstacle in plan.kept.items() if obstacle.blocker in gone}
    if not told:
        return plan
    left, numbers = left_of(graph, plan)
    banned = {now: plan.kept[old] for now, old in numbers.items() if old in plan.kept.keys() - told}
    kept = solve(left, clip=plan.clip_mode, banned=banned).kept
    reasons = {old: kept[now] for now, old in numbers.items() if old in told and now in kept}
    return replace(plan, kept={**plan.kept, **reasons})
