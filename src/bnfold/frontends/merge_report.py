"""What was merged before a fold, as the report of the fold tells it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TypeVar

from bnfold.core import graph as g
from bnfold.core.expression import Freedom, Part
from bnfold.core.merged import Merge
from bnfold.core.plan import Plan
from bnfold.core.unmerged import unmerged
from bnfold.network import Network, State, draw
from bnfold.outcomes import Item, Merged, Outcomes, Removed, Unmerged

Report = TypeVar("Report", bound=Outcomes)


@dataclass(frozen=True, slots=True)
class Merging:
    """What was merged in a network."""

    graph: g.Graph = field(default_factory=g.Graph)
    """The network as it was."""
    parts: Mapping[int, Part] = field(default_factory=dict)
    freedom: Freedom = field(default_factory=Freedom)
    merges: Sequence[Merge] = ()
    aside: Collection[int] = ()
    """Affine steps that nobody asks about."""
    seats: Mapping[int, int] = field(default_factory=dict)
    """Carriers that stand in the place of a step that is merged, and which."""

    def __bool__(self) -> bool:
        return bool(self.merges)

    @property
    def merged(self) -> tuple[Merged, ...]:
        """What became of the ops, in the network's order."""
        merged = []
        for merge in sorted(self.merges, key=lambda merge: merge.carrier):
            kind, seat = self.graph.ops[merge.carrier].kind, self._seat(merge)
            parts = self.graph.names(sorted({*merge.gone, merge.carrier} - {seat}))
            merged.append(Merged(self.graph.ops[seat].name, kind, tuple(dict.fromkeys(parts))))
        return tuple(merged)

    @property
    def items(self) -> list[Item]:
        """The affine steps that went into merged ops."""
        return [
            Item(op.name, op.role.kind, op.role.channels, 1, Removed((into,)))
            for merge in self.merges
            if (into := self.graph.ops[self._seat(merge)].name)
            for number in sorted(merge.gone - {*self.aside})
            if isinstance((op := self.graph.ops[number]).role, g.AffineStep) and op.role.is_wanted
        ]

    @property
    def unmerged(self) -> tuple[Unmerged, ...]:
        """The sums that could not be merged, and why."""
        ops = self.graph.ops
        return tuple(
            Unmerged(
                ops[left.sum].name,
                left.reason,
                None if left.blocker is None else ops[left.blocker].name,
            )
            for left in unmerged(self.graph, self.parts, self.freedom, self.merges)
        )

    def _seat(self, merge: Merge) -> int:
        """The op in whose place the merged one stands."""
        return self.seats.get(merge.carrier, merge.carrier)

    def told(self, report: Report) -> Report:
        """The report of a fold of the merged network, as one of the network that it was."""
        report = replace(report, unmerged=self.unmerged)
        if not self:
            return report
        places = {op.name: place for place, op in enumerate(self.graph.ops)}
        items = passed_on([*self.items, *report.items], _taken_in(report.items))
        items.sort(key=lambda item: places.get(item.name, len(places)))
        network = None
        if report.network is not None:
            network = self._drawn(report.network, [item.name for item in items])
        return replace(report, items=tuple(items), merged=self.merged, network=network)

    def _drawn(self, folded: Network, items: Collection[str]) -> Network:
        """The network as it was, with what both the merges and the fold did to it."""
        ops = self.graph.ops
        after = {(node.name, node.kind): node for node in folded.before}
        states: dict[str, State] = {}
        for merge in self.merges:
            for number, kept in merge.sums.items():
                if len(kept) == 1:
                    states[ops[number].name] = State.REMOVED
            states |= dict.fromkeys(self.graph.names({*merge.gone, merge.carrier}), State.MERGED)
        states |= {ops[self._seat(merge)].name: State.CARRIER for merge in self.merges}
        nodes = []
        for node in draw(self.graph, Plan(), items).before:
            known = after.get((node.name, node.kind), node)
            state = states.get(node.name, known.state)
            nodes.append(node._replace(state=state, blocker=known.blocker))
        return Network(tuple(nodes))


def told_in_turn(graph: g.Graph, reports: Sequence[Report]) -> Report:
    """What folds of one network did, one after the other; `graph` is the network as it came.

    A later one has the last word on what an earlier one kept. Notes are those of the last.
    """
    *earlier, last = reports
    if not earlier:
        return last
    places = {op.name: place for place, op in enumerate(graph.ops)}
    gone = [item for report in reports for item in report.items if item.is_removed]
    merged = _merged_in_turn(reports, places)
    kept = [item for item in last.items if not item.is_removed]
    items = passed_on([*gone, *kept], {**_taken_in(gone), **went_into(merged)})
    items.sort(key=lambda item: places.get(item.name, len(places)))
    return replace(
        last,
        items=tuple(items),
        clips=tuple(dict.fromkeys(name for report in reports for name in report.clips)),
        merged=merged,
        network=reduce(_drawn_over, (report.network for report in reports)),
    )


def _merged_in_turn(reports: Sequence[Outcomes], places: Mapping[str, int]) -> tuple[Merged, ...]:
    """What was merged, and merged again: all parts went into what is there at last."""
    merged: dict[str, Merged] = {}
    for later in (one for report in reports for one in report.merged):
        parts: list[str] = []
        for name in (later.into, *later.parts):
            parts += merged.pop(name).parts if name in merged else ()
            parts += [name] if name != later.into else []
        parts = [name for name in dict.fromkeys(parts) if name != later.into]
        parts.sort(key=lambda name: places.get(name, len(places)))
        merged[later.into] = replace(later, parts=tuple(parts))
    return tuple(merged.values())


def _taken_in(items: Sequence[Item]) -> dict[str, tuple[str, ...]]:
    """What took steps in, by their names."""
    return {item.name: item.outcome.into for item in items if isinstance(item.outcome, Removed)}


def went_into(merged: Sequence[Merged]) -> dict[str, tuple[str, ...]]:
    """What took merged ops in, by their names."""
    return {name: (one.into,) for one in merged for name in one.parts}


def passed_on(items: Sequence[Item], gone: Mapping[str, Sequence[str]]) -> list[Item]:
    """Steps that went into one that is gone, too, went into what took that in."""
    told = []
    for item in items:
        if not isinstance(item.outcome, Removed):
            told.append(item)
            continue
        names, seen = list(item.outcome.into), {item.name}
        for name in names:  # which grows
            if name in gone and name not in seen:
                seen.add(name)
                names += gone[name]
        into = tuple(dict.fromkeys(name for name in names if name not in seen))
        told.append(replace(item, outcome=Removed(into)) if into else item)
    return told


def _drawn_over(first: Network | None, second: Network | None) -> Network | None:
    """A drawing of a network, with what was done later to the nodes that were left."""
    if first is None or second is None:
        return first
    later = {(node.name, node.kind): node for node in second.before if node.state != State.PLAIN}
    nodes = []
    for node in first.before:
        known = later.get((node.name, node.kind), node)
        nodes.append(node._replace(state=known.state, blocker=known.blocker))
    return Network(tuple(nodes))
