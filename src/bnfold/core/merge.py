"""Linear ops that can be one: which of a network's to merge, and which of them does the work.

Looked for are chains of linear ops, sums whose operands are linear ops of one tensor (see
`expressions`), and siblings (see there). Operands of a sum that are something else stay in a
smaller sum. What is merged costs no more multiplications and holds no larger weight than what it is
made of; of several choices the one that saves most is taken. Steps at the ends that a fold removes
anyway are left to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations

from bnfold.core import graph as g
from bnfold.core.expression import Build, Expression, Freedom, Part, varying_axes
from bnfold.core.expressions import Expressions
from bnfold.core.kernel import Kernel
from bnfold.core.merged import Merge
from bnfold.core.nested_sum import NestedSum, Operand, Place
from bnfold.core.siblings import find_siblings
from bnfold.core.window import Window

_MOST_OPERANDS = 64
"""So many operands of a sum are looked at in one go."""


@dataclass(slots=True)
class _Cluster:
    """Operands of one sum that are going to be one."""

    operands: list[Operand]
    terms: list[tuple[Expression, float]]
    """What it is the sum of, with coefficients."""
    whole: Expression
    """Their sum."""
    chosen: Operand | None = None
    """The operand in the place of which it comes in; None for the last one."""

    @property
    def enters(self) -> Operand:
        """The operand in the place of which it comes in."""
        last = max(self.operands, key=lambda operand: (operand.place[0], -operand.place[1]))
        return self.chosen or last


def find_merges(
    graph: g.Graph, parts: Mapping[int, Part], freedom: Freedom | None = None
) -> list[Merge]:
    """What to merge in a network; no op is in two of them."""
    expressions = Expressions.of(graph, parts, freedom or Freedom())
    finder = _Finder(graph, parts, expressions)
    merges = finder.run()
    return [*merges, *find_siblings(expressions)]


def choices(
    graph: g.Graph, parts: Mapping[int, Part], merges: Sequence[Merge]
) -> Iterator[list[Merge]]:
    """The merges, and fewer of them for when a step stays that would go without: none at last.

    A merged op may see padded zeros where what read the source before saw none. Then a shift that
    could have gone into the first op of a chain stays in front of it. And an activation that
    siblings have in common is asked for bounds per channel where one of several was.
    """
    if merges:
        yield list(merges)
        narrowed = [merge for merge in merges if merge.concat is None]
        fewer = [merge for merge in narrowed if not _adds_zeros(graph, parts, merge)]
        for less, more in ((narrowed, merges), (fewer, narrowed)):
            if 0 < len(less) < len(more):
                yield less
    yield []


def _adds_zeros(graph: g.Graph, parts: Mapping[int, Part], merge: Merge) -> bool:
    """Whether the carrier sees padded zeros of the source, and nothing in it did."""
    if merge.window is None or not (merge.window.pads or merge.window.is_transposed):
        return False
    first = [n for n in {merge.carrier, *merge.gone} if merge.source in graph.ops[n].inputs]
    windows = (parts[number].window for number in first if number in parts)
    return not any(w is not None and (w.pads or w.is_transposed) for w in windows)


class _Finder:
    def __init__(self, graph: g.Graph, parts: Mapping[int, Part], expressions: Expressions) -> None:
        self.graph = graph
        self.parts = parts
        self.expressions = expressions
        self.freedom = expressions.freedom
        self.taken: set[int] = set()
        """Numbers of the ops that are merged."""

    def run(self) -> list[Merge]:
        """From the back: what holds more comes first."""
        merges: list[Merge] = []
        for number in reversed(range(len(self.graph.ops))):
            if number in self.taken:
                continue
            if isinstance(self.graph.ops[number].role, g.Sum):
                merges += self._in_sum(number)
            elif number in self.parts:
                merges += self._in_chain(number)
        return merges

    def _in_chain(self, number: int) -> list[Merge]:
        """The merge of what ends in a linear op."""
        (output,) = self.graph.ops[number].outputs
        made = self.expressions.by_tensor.get(output, ())
        chains = [e for e in made if e.is_chain and e.is_whole and e.pays]
        for whole in sorted(chains, key=lambda e: (-e.saves, -len(e.ops))):
            if self._carrier(whole) is not None:
                return [self._merge(whole, output)]
        return []

    def _in_sum(self, number: int) -> list[Merge]:
        nested = NestedSum(self.expressions, number)
        operands = nested.operands
        (output,) = self.graph.ops[number].outputs
        if not self.expressions.are_alike((operand.tensor for operand in operands), output):
            return []
        free = operands[:_MOST_OPERANDS]
        while clusters := self._clusters(free, output):
            if len(clusters[0].operands) == len(operands):
                whole = clusters[0].whole
                return [self._merge(replace(whole, ops=whole.ops | set(nested.sums)), output)]
            if any(operand.coefficient == 0.0 for operand in operands):
                return []  # what is multiplied by 0 has no place for the others
            clusters = self._placed(nested, clusters)
            company = self._company(nested, clusters)
            if not company:
                return self._in_part(nested, clusters)
            free = [operand for operand in free if operand.place not in company]
        return []

    # ---------------------------------------------------------------- which operands

    def _clusters(self, operands: Sequence[Operand], output: int) -> list[_Cluster]:
        """Which operands become one; what saves most comes first."""
        left = [
            [_Cluster([o], [(e, o.coefficient)], e) for e in self.expressions.seen(o.tensor)]
            for o in operands
        ]
        while options := [
            cluster
            for members in self._by_source(left)
            for shares in {False, any(not c.whole.is_whole for c in members)}
            for cluster in self._grouped(members, output, shares=shares)
        ]:
            best = max(options, key=lambda c: (c.whole.saves, len(c.operands)))
            merged = {operand.place for operand in best.operands}
            left = [entry for entry in left if entry[0].operands[0].place not in merged]
            seen = [best.whole, *self.expressions.further(best.whole, output)]
            left.append([_Cluster(best.operands, [(e, 1.0)], e) for e in seen])
        clusters = [self._cheapest(seen) for seen in left if len(seen[0].operands) > 1]
        return sorted(clusters, key=lambda cluster: -cluster.whole.saves)

    def _cheapest(self, clusters: Sequence[_Cluster]) -> _Cluster:
        """Of the same operands, of one source or another."""
        first, *others = clusters
        others = [
            c
            for c in others
            if c.whole.is_whole and c.whole.pays and self._carrier(c.whole) is not None
        ]
        return max([first, *others], key=lambda c: (c.whole.saves, len(c.whole.ops)))

    def _by_source(self, clusters: Sequence[Sequence[_Cluster]]) -> list[list[_Cluster]]:
        """Those that are expressions of one source."""
        by_source: dict[int, list[_Cluster]] = {}
        for seen in clusters:
            for cluster in seen:
                by_source.setdefault(cluster.whole.source, []).append(cluster)
        return [members for members in by_source.values() if len(members) > 1]

    def _grouped(
        self, clusters: list[_Cluster], output: int, *, shares: bool
    ) -> Iterator[_Cluster]:
        """Operands of one source, put together two by two while that pays.

        With `shares`, also where the rest of what they are made of is still to come.
        """
        standing = dict(enumerate(clusters))
        pairs = list(combinations(standing, 2))
        made: dict[tuple[int, int], _Cluster] = {}
        while True:
            for first, second in pairs:
                both = self._both(standing[first], standing[second], output)
                if both is not None and (shares or both.whole.is_whole):
                    made[first, second] = both
            if not made:
                break
            best = max(made, key=lambda pair: (made[pair].whole.saves, -pair[0], -pair[1]))
            standing[best[0]] = made[best]
            del standing[best[1]]
            made = {pair: both for pair, both in made.items() if not {*pair} & {*best}}
            pairs = [pair for pair in combinations(standing, 2) if best[0] in pair]
        for cluster in standing.values():
            is_one = len(cluster.terms) > 1 and cluster.whole.is_whole
            if is_one and self._carrier(cluster.whole) is not None:
                yield cluster

    def _both(self, first: _Cluster, second: _Cluster, output: int) -> _Cluster | None:
        """Two clusters as one, if that pays."""
        terms = first.terms + second.terms
        whole = self.expressions.sum([e for e, _ in terms], [c for _, c in terms], output)
        if whole is None:
            return None
        _, again = self.expressions.together([first.whole, second.whole])
        least = first.whole.least + second.whole.least - sum(e.least for e in again)
        whole = replace(whole, parts_cost=least)
        operands = first.operands + second.operands
        return _Cluster(operands, terms, whole) if whole.pays else None

    def _carrier(self, whole: Expression, before: int | None = None) -> int | None:
        """The op that can do the work of all: one that has as many taps already, if there is.

        It stands before the op that is to read what it makes, if that is told.
        """
        ops = [n for n in whole.ops if before is None or n < before]
        linear = [n for n in ops if n in self.parts and self._carries(n, whole.window)]
        if whole.dtypes:
            return min(
                linear, key=lambda n: (self.parts[n].window != whole.window, n), default=None
            )
        return min((n for n in ops if self._carries_affine(n)), default=None)

    def _carries(self, number: int, window: Window | None) -> bool:
        """Whether a linear op is of a kind that can have such a window."""
        part = self.parts[number]
        if part.window is None or window is None:
            return part.carries and part.window is window
        is_alike = part.window.is_transposed == window.is_transposed
        return part.carries and not window.cuts and (is_alike or window.is_pointwise)

    def _carries_affine(self, number: int) -> bool:
        op = self.graph.ops[number]
        if not isinstance(op.role, g.AffineStep) or not self.freedom.carries_affine(number):
            return False
        both = op.role.factors is op.role.summands is g.Parameter.EDITABLE
        return both and bool(varying_axes(op.role, len(self.graph.shapes[op.outputs[0]])))

    # ---------------------------------------------------------------- what becomes of the sum

    def _placed(self, nested: NestedSum, clusters: list[_Cluster]) -> list[_Cluster]:
        """Each where it leaves the fewest subtrahends alone: in the last place, if that is one.

        a - r + b is (a + b) - r, where what makes a can carry both.
        """
        for at, cluster in enumerate(clusters):
            if not self._company(nested, clusters):
                break
            others = [
                [*clusters[:at], replace(cluster, chosen=operand), *clusters[at + 1 :]]
                for operand in cluster.operands
                if self._carrier(cluster.whole, operand.place[0]) is not None
            ]
            clusters = min(
                [clusters, *others], key=lambda placed: len(self._company(nested, placed))
            )
        return clusters

    def _company(self, nested: NestedSum, clusters: Sequence[_Cluster]) -> set[Place]:
        """Operands that have to stay, as without them a subtrahend would be left alone in a sum."""
        kept = nested.kept(_dropped(clusters))
        now = nested.coefficients(kept)
        costs = {
            operand.place: max(e.cost for e in self.expressions.seen(operand.tensor))
            for cluster in clusters
            for operand in cluster.operands
        }
        merged = costs.keys()
        ways = {operand.place: [*nested.way(operand.place)] for operand in nested.operands}
        staying: set[Place] = set()
        for operand in nested.operands:
            if operand.place in merged or now[operand.place] == operand.coefficient:
                continue
            for number, position in ways[operand.place]:
                role = self.graph.ops[number].role
                assert isinstance(role, g.Sum)
                is_alone = len(kept[number]) == 1 < len(self.graph.ops[number].inputs)
                if is_alone and role.coefficients[position] != 1.0:
                    others = [
                        place
                        for place, way in ways.items()
                        if any(n == number and p != position for n, p in way)
                    ]
                    # One is enough: that which costs least as it is.
                    staying.add(min(others, key=lambda place: (costs[place], place)))
        return staying

    def _in_part(self, nested: NestedSum, clusters: Sequence[_Cluster]) -> list[Merge]:
        """Merges in a sum that keeps other operands, too."""
        kept = nested.kept(_dropped(clusters))
        now = nested.coefficients(kept)
        fewer = {
            number: positions
            for number, positions in kept.items()
            if len(positions) < len(self.graph.ops[number].inputs)
        }
        self.taken |= {*nested.sums}
        empty = {number for number in nested.sums if number not in kept}
        return [
            self._merge(
                replace(cluster.whole, ops=cluster.whole.ops | empty),
                cluster.enters.tensor,
                enters=cluster.enters.place,
                coefficient=now[cluster.enters.place],
                sums=fewer,
            )
            for cluster in clusters
        ]

    def _with_source(self, whole: Expression, output: int) -> Expression:
        """With the linear op that makes its source, if it alone reads that now, and it pays."""
        own = sum(self.graph.ops[n].inputs.count(whole.source) for n in whole.ops)
        if not self.expressions.is_own(whole.source, own):
            return whole
        options = [
            joined
            for inner in self.expressions.by_tensor.get(whole.source, ())
            if inner.is_whole
            if (joined := self.expressions.chain(inner, whole, output)) is not None
            if joined.pays and self._carrier(joined) is not None
        ]
        return max(options, key=lambda e: (e.saves, len(e.ops)), default=whole)

    def _merge(
        self,
        whole: Expression,
        output: int,
        *,
        enters: Place | None = None,
        coefficient: float = 1.0,
        sums: Mapping[int, tuple[int, ...]] | None = None,
    ) -> Merge:
        whole = self._with_source(whole, output)
        carrier = self._carrier(whole, enters and enters[0])
        assert carrier is not None and whole.axis is not None
        self.taken |= whole.ops
        channels = self.expressions.channels(whole.source, whole.axis)
        rank = 0 if whole.window is None else len(whole.window.kernel)
        kernel = partial(_kernel, whole.build, channels, rank, 1.0 / coefficient)
        groups = whole.groups
        gone = whole.ops - {carrier}
        return Merge(
            carrier, whole.source, output, enters, whole.window, groups, kernel, gone, sums or {}
        )


def _dropped(clusters: Sequence[_Cluster]) -> set[Place]:
    """Where operands come in that go into another one of their cluster."""
    merged = {operand.place for cluster in clusters for operand in cluster.operands}
    return merged - {cluster.enters.place for cluster in clusters}


def _kernel(build: Build, channels: int, rank: int, factor: float) -> Kernel:
    kernel = build(channels, rank)
    if factor == 1.0:
        return kernel
    return replace(kernel, weight=factor * kernel.weight, bias=factor * kernel.bias)
