"""The merges that a frontend can write: less is looked for where one of them cannot be written.

What cannot be written as one op may hold what can. So the search is repeated, and nothing is merged
across what the last linear op of such a merge reads; after that, without this op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from bnfold.core import graph as g
from bnfold.core.expression import Freedom, Part
from bnfold.core.merge import find_merges
from bnfold.core.merged import Merge

MOST_ROUNDS = 8
"""How often is looked again."""


@dataclass(slots=True)
class Fence:
    """What merges that could not be written leave alone."""

    banned: set[int] = field(default_factory=set)
    """Numbers of ops."""
    ends: set[int] = field(default_factory=set)
    """Tensors that nothing is merged across."""

    @property
    def size(self) -> int:
        """It only grows."""
        return len(self.banned) + len(self.ends)

    def around(self, freedom: Freedom) -> Freedom:
        """The same freedom, less this."""
        banned = frozenset(self.banned)
        return replace(
            freedom,
            can_go=lambda number: number not in banned and freedom.can_go(number),
            carries_affine=lambda number: number not in banned and freedom.carries_affine(number),
            ends=frozenset({*freedom.ends, *self.ends}),
        )

    def narrow(self, graph: g.Graph, parts: Mapping[int, Part], merge: Merge) -> None:
        """Let the next search find less than this merge."""
        ops = {*merge.gone, merge.carrier}
        last = max((number for number in ops if number in parts), default=merge.carrier)
        front = {*graph.ops[last].inputs} - {merge.source} - self.ends
        self.ends |= front
        if not front:
            self.banned.add(last)

    def shut_out(self, merges: Iterable[Merge]) -> None:
        """Find nothing more in any of these."""
        self.banned |= {n for merge in merges for n in (merge.carrier, *merge.gone)}


def merges_within(
    graph: g.Graph,
    parts: Mapping[int, Part],
    freedom: Freedom,
    can_write: Callable[[Merge], bool],
) -> list[Merge]:
    """What to merge, as `find_merges`, of what can be written; those of one sum all, or none."""
    fence = Fence()
    merges: list[Merge] = []
    for _ in range(MOST_ROUNDS):
        merges = find_merges(graph, parts, fence.around(freedom))
        refused = [merge for merge in merges if not can_write(merge)]
        if not refused:
            return merges
        for merge in refused:
            fence.narrow(graph, parts, merge)
        merges = without(merges, refused)
    return merges


def without(merges: list[Merge], refused: list[Merge]) -> list[Merge]:
    """The merges but for these, and for those that shorten the same sums."""
    sums = {number for merge in refused for number in merge.sums}
    return [merge for merge in merges if merge not in refused and not sums & merge.sums.keys()]
