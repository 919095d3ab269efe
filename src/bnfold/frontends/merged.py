"""What was merged, as a report tells it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TypeVar

from bnfold.core import graph as g
from bnfold.core.merge import Merge
from bnfold.outcomes import Item, Merged, Outcomes, Removed

Report = TypeVar("Report", bound=Outcomes)


def told(graph: g.Graph, merges: Sequence[Merge]) -> list[Merged]:
    """What became of the ops of a network, in its order; sums are not named."""
    return [
        Merged(
            graph.ops[merge.carrier].name,
            graph.ops[merge.carrier].kind,
            tuple(graph.ops[n].name for n in sorted(merge.gone) if _is_named(graph.ops[n])),
        )
        for merge in sorted(merges, key=lambda merge: merge.carrier)
    ]


def taken_in(graph: g.Graph, merges: Sequence[Merge], aside: Collection[int] = ()) -> list[Item]:
    """The affine steps that went into merged ops, but for those that nobody asks about."""
    return [
        Item(op.name, op.role.kind, op.role.channels, 1, Removed((graph.ops[merge.carrier].name,)))
        for merge in merges
        for number in sorted(merge.gone - {*aside})
        if isinstance((op := graph.ops[number]).role, g.AffineStep) and op.role.is_wanted
    ]


def with_merges(
    report: Report, merged: Sequence[Merged], items: Sequence[Item], order: Sequence[str]
) -> Report:
    """The report of the merged network, with what was merged before; items in the given order."""
    places = {name: place for place, name in enumerate(order)}
    both = sorted([*items, *report.items], key=lambda item: places.get(item.name, len(places)))
    return replace(report, items=tuple(both), merged=(*report.merged, *merged))


def _is_named(op: g.Op) -> bool:
    return not isinstance(op.role, g.Sum)
