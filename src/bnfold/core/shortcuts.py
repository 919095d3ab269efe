"""Sums that see one tensor several times: x + bn(x), conv(x) + bn(x), x + g * (m(x) - bn(x)).

With the affine steps in it gone, a sum passes on other amounts of its terms than it holds of them:

    z  = sum_j A_j * x_j + B          z^ = sum_j C_j * x^_j

A_j is the product of the coefficients and the factors of the steps between x_j and z, added up
where x_j comes in several times, and C_j the same without the steps. A `Shortcut` is such a sum,
with the sums inside it that nobody else reads. Its law is in `shortcut_law`. Where a linear op that
reads x_j is part of the sum, and has a tap for each channel itself, that tap makes up for the
difference.

This file only looks for them, in what `branches` makes of a sum. What is found is tried by the
solver: a `Shortcut` is no promise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.binding import Binding
from bnfold.core.branches import Branch, Branches, leaves_of, paths_of

_MOST_BRANCHES = 64
"""A sum of more terms is not taken apart."""


@dataclass(frozen=True, slots=True, eq=False)
class Tap:
    """A linear op in the sum that can add any multiple of a term, channel by channel."""

    linear: int
    """Number of the linear op."""
    role: g.Linear
    path: tuple[tuple[int, int], ...]
    """The ops from there to the sum, the sum included, and which of its operands is meant."""
    steps: tuple[int, ...]
    """The affine steps among them that have to go, too."""


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A tensor x_j that the sum sees, all coefficients broadcastable to the sum."""

    tensor: int
    true: FloatArray
    """A_j: how much of it the sum holds."""
    stored: FloatArray
    """C_j: how much of it is added up once the steps are gone."""
    largest_true: FloatArray
    """The sum of the magnitudes that A_j consists of."""
    largest_stored: FloatArray
    """The same for C_j."""
    tap: Tap | None
    """Who makes up for a difference of the two."""


@dataclass(frozen=True, slots=True, eq=False)
class Shortcut:
    """A sum whose affine steps may go together; see the module's head."""

    root: int
    """Number of the sum."""
    sums: frozenset[int]
    """The sums it consists of, itself included."""
    steps: tuple[int, ...]
    """The affine steps in it, in the order in which they run."""
    bound: tuple[int, ...]
    """Those of them whose output someone else reads, and those below: their own law holds, too."""
    terms: tuple[Term, ...]
    constant: FloatArray
    """B"""
    inside: tuple[int, ...]
    """Tensors between the terms and the sum that hold nothing of their own any more."""


@dataclass(slots=True)
class _Collected:
    """What is collected about one sum."""

    sums: set[int] = field(default_factory=set)
    steps: set[int] = field(default_factory=set)
    bound: set[int] = field(default_factory=set)
    inside: set[int] = field(default_factory=set)
    seen: list[tuple[int, FloatArray, FloatArray]] = field(default_factory=list)
    """Per occurrence of a term: the tensor, how much the sum holds, how much is stored."""
    taps: dict[int, Tap] = field(default_factory=dict)
    """By the tensor that they read."""


def find(binding: Binding, banned: Collection[int]) -> list[Shortcut]:
    """The sums whose steps may go together, outer ones before those inside."""
    finder = _Finder(binding, frozenset(banned))
    sums = [(n, op.role) for n, op in enumerate(binding.graph.ops) if isinstance(op.role, g.Sum)]
    shortcuts = (finder.shortcut(number, role) for number, role in reversed(sums))
    return [shortcut for shortcut in shortcuts if shortcut is not None]


class _Finder:
    def __init__(self, binding: Binding, banned: frozenset[int]) -> None:
        self.graph = binding.graph
        self.branches = Branches(binding, banned)

    def shortcut(self, root: int, role: g.Sum) -> Shortcut | None:
        """The sum, if anything in it is seen twice."""
        branches = self.branches.of(root, role)
        leaves = list(leaves_of(branches))
        if not 2 <= len(leaves) <= _MOST_BRANCHES:
            return None
        taps: dict[int, Tap] = {}
        for branch, path in paths_of(branches, root):
            for tensor, tap in self._tap(branch, path):
                taps.setdefault(tensor, tap)
        meets = Counter(leaf.chain[index] for leaf in leaves for index in _meetings(leaf))
        meets.update(tensor for tensor in taps if tensor in meets)
        cuts = {id(leaf): _cut(leaf, meets) for leaf in leaves}
        used = Counter(leaf.chain[cuts[id(leaf)]] for leaf in leaves)
        for leaf in leaves:
            tensor = leaf.chain[cuts[id(leaf)]]
            if used[tensor] == 1 and tensor not in taps:
                cuts[id(leaf)] = 0
        collected = _Collected(sums={root})
        collected.taps = {tensor: tap for tensor, tap in taps.items() if tensor in used}
        constant = self._collect(branches, cuts, collected, np.ones(()), np.ones(()))
        return self._finish(root, collected, constant)

    def _tap(self, branch: Branch, path: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, Tap]]:
        """The linear op at the end of a branch, by each tensor that it is known to read."""
        number = self.branches.maker.get(branch.chain[-1])
        if number is None or any(self.branches.reads[tensor] != 1 for tensor in branch.chain):
            return
        if branch.moved:
            return
        op = self.graph.ops[number]
        if not isinstance(op.role, g.Linear) or not _has_taps_of_its_own(self.graph, op, op.role):
            return
        way = (*((step, 0) for step in reversed(branch.ops)), *path)
        gone = tuple(step for step in reversed(branch.ops) if self.branches.may_go(step))
        for source in self.branches.sources(op.inputs[0]):
            yield source, Tap(number, op.role, way, gone)

    def _collect(
        self,
        branches: Sequence[Branch],
        cuts: dict[int, int],
        collected: _Collected,
        true: FloatArray,
        stored: FloatArray,
    ) -> FloatArray:
        """Note all terms below, of which the sum holds `true` times as much; returns their B."""
        constant = np.zeros(())
        for branch in branches:
            cut = len(branch.ops) if branch.below else cuts[id(branch)]
            scale, shift, passed = self._through(branch, cut)
            held, added = true * branch.factor * scale, stored * branch.factor * passed
            constant = constant + true * branch.factor * shift
            self._note_steps(branch, cut, collected)
            if branch.below:
                collected.sums.add(branch.inner)
                collected.inside.add(branch.chain[-1])
                constant = constant + self._collect(branch.below, cuts, collected, held, added)
            else:
                collected.seen.append((branch.chain[cut], held, added))
        return constant

    def _through(self, branch: Branch, cut: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The factor and summand of its steps together, and the factor of those that stay."""
        scale, shift, stays = np.ones(()), np.zeros(()), np.ones(())
        for number, (factors, summands) in reversed(
            [*zip(branch.ops, branch.laid, strict=True)][:cut]
        ):
            if not isinstance(self.graph.ops[number].role, g.AffineStep):
                continue
            scale, shift = factors * scale, factors * shift + summands
            if not self.branches.may_go(number):
                stays = factors * stays
        return scale, shift, stays

    def _note_steps(self, branch: Branch, cut: int, collected: _Collected) -> None:
        """Which steps go, and down from where they keep their own law."""
        shared = [index for index in range(cut) if self.branches.reads[branch.chain[index]] > 1]
        first = shared[0] if shared else cut
        for index, number in enumerate(branch.ops[:cut]):
            if isinstance(self.graph.ops[number].role, g.View):
                continue
            if index < first:
                collected.inside.add(branch.chain[index])
            if self.branches.may_go(number):
                collected.steps.add(number)
                if index >= first:
                    collected.bound.add(number)

    def _finish(self, root: int, collected: _Collected, constant: FloatArray) -> Shortcut | None:
        if not collected.steps:
            return None
        terms = []
        for tensor in dict.fromkeys(tensor for tensor, _, _ in collected.seen):
            true = [held for source, held, _ in collected.seen if source == tensor]
            stored = [added for source, _, added in collected.seen if source == tensor]
            tap = collected.taps.get(tensor)
            sums = (_total(true), _total(stored), _total(true, np.abs), _total(stored, np.abs))
            terms.append(Term(tensor, *sums, tap))
        for term in terms:
            if term.tap is not None:
                collected.inside.update(self._along(term.tap))
        return Shortcut(
            root,
            frozenset(collected.sums),
            tuple(sorted(collected.steps)),
            tuple(sorted(collected.bound)),
            tuple(terms),
            constant,
            tuple(sorted(collected.inside)),
        )

    def _along(self, tap: Tap) -> list[int]:
        """What is made on the way from a tap to the sum."""
        ops = [tap.linear, *(number for number, _ in tap.path[:-1])]
        return [self.graph.ops[number].outputs[0] for number in ops]


def _has_taps_of_its_own(graph: g.Graph, op: g.Op, role: g.Linear) -> bool:
    """Whether each output of a linear op has a tap, free to change, for the input at its place."""
    if role.centre is None or role.weight is not g.Weight.FREE or role.tie is not None:
        return False
    alike = role.in_channels == role.out_channels and role.in_axis == role.out_axis
    return alike and graph.shapes[op.inputs[0]] == graph.shapes[op.outputs[0]]


def _meetings(leaf: Branch) -> list[int]:
    """Indices of the tensors in its chain that it may be cut at: they lie as the sum does."""
    return [index for index in range(leaf.free + 1) if index not in leaf.moved]


def _cut(leaf: Branch, meets: Counter[int]) -> int:
    """Where most branches meet, near the root; 0 if this one meets none."""
    counts = {index: meets[leaf.chain[index]] for index in _meetings(leaf)}
    most = max(counts.values())
    return next(index for index, count in counts.items() if count == most) if most > 1 else 0


def _total(
    parts: Sequence[FloatArray], of: Callable[[FloatArray], FloatArray] = np.asarray
) -> FloatArray:
    total = np.zeros(())
    for part in parts:
        total = total + of(part)
    return total
