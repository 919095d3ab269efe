"""Sums that see one tensor several times: x + bn(x), conv(x) + bn(x), x + g * (m(x) - bn(x)).

With the affine steps in it gone, a sum passes on other amounts of its terms than it holds of them:

    z  = sum_j A_j * x_j + B          z^ = sum_j C_j * x^_j

A_j is the product of the coefficients and the factors of the steps between x_j and z, added up
where x_j comes in several times, and C_j the same without the steps. A `Shortcut` is such a sum,
with the sums inside it that nobody else reads. Its law is in `shortcut_law`. Where a linear op that
reads x_j is part of the sum, and has a tap for each channel itself, that tap makes up for the
difference.

This file only looks for them. What is found is tried by the solver: a `Shortcut` is no promise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.binding import Binding
from bnfold.core.laws import editable

_MOST_ELEMENTS = 1_000_000
"""A view of more elements is not asked whether it moves any."""

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


@dataclass(frozen=True, slots=True, eq=False)
class _Branch:
    """An operand, and the affine steps and trivial views that it comes through."""

    factor: float
    """Its coefficient in the sum."""
    chain: list[int]
    """Tensors, the operand first."""
    ops: list[int]
    """ops[i] makes chain[i] of chain[i + 1]."""
    free: int
    """From chain[0] to chain[free], every step may go."""
    position: int
    """Which operand it is."""
    inner: int = -1
    """Number of the sum that makes the last tensor, if that is taken apart."""
    below: tuple[_Branch, ...] = ()
    """The operands of that sum."""


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
        self.binding = binding
        self.graph = binding.graph
        self.banned = banned
        self.maker: dict[int, int] = {}
        self.copies: dict[int, bool] = {}
        self.reads: Counter[int] = Counter(tensor for tensor, _, _ in self.graph.outputs)
        for number, op in enumerate(self.graph.ops):
            self.maker.update(dict.fromkeys(op.outputs, number))
            self.reads.update(op.inputs)

    def shortcut(self, root: int, role: g.Sum) -> Shortcut | None:
        """The sum, if anything in it is seen twice."""
        branches = self._branches(root, role)
        leaves = list(_leaves(branches))
        if not 2 <= len(leaves) <= _MOST_BRANCHES:
            return None
        taps: dict[int, Tap] = {}
        for branch, path in _paths(branches, root):
            for tensor, tap in self._tap(branch, path):
                taps.setdefault(tensor, tap)
        meets = Counter(tensor for leaf in leaves for tensor in leaf.chain[: leaf.free + 1])
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

    def may_go(self, number: int) -> bool:
        """Whether an affine step can go, as far as the step itself is concerned."""
        bound = self.binding.affine.get(number)
        if bound is None or not bound.role.is_wanted or not bound.role.is_known:
            return False
        return self.banned.isdisjoint(self.binding.groups[number])

    # ------------------------------------------------------------------ taking the sum apart

    def _branches(self, number: int, role: g.Sum) -> tuple[_Branch, ...]:
        operands = zip(self.graph.ops[number].inputs, role.coefficients, strict=True)
        return tuple(
            self._branch(tensor, factor, position)
            for position, (tensor, factor) in enumerate(operands)
            if factor != 0.0
        )

    def _branch(self, tensor: int, factor: float, position: int) -> _Branch:
        chain, ops, free = [tensor], [], 0
        all_free = True
        while (number := self.maker.get(chain[-1])) is not None:
            kind = self._kind(number)
            if not kind:
                break
            all_free &= kind == "free"
            chain.append(self.graph.ops[number].inputs[0])
            ops.append(number)
            free += all_free
        inside = all_free and all(self.reads[link] == 1 for link in chain)
        role = None if number is None or not inside else self.graph.ops[number].role
        if number is None or not isinstance(role, g.Sum):
            return _Branch(factor, chain, ops, free, position)
        return _Branch(factor, chain, ops, free, position, number, self._branches(number, role))

    def _kind(self, number: int) -> str:
        """ "free" if a step may go or does nothing, "kept" if it is affine, else ""."""
        op = self.graph.ops[number]
        if isinstance(op.role, g.View):
            return "free" if self._moves_nothing(number, op.role) else ""
        if not isinstance(op.role, g.AffineStep):
            return ""
        if self.may_go(number) or self._is_factor(number, op.role):
            return "free"
        return "kept" if number in self.binding.affine and (op.role.scale != 0).all() else ""

    def _is_factor(self, number: int, role: g.AffineStep) -> bool:
        """Whether a step multiplies by constants that stay as they are."""
        if role.tie is not None or role.is_reported or not role.is_known or role.shift.any():
            return False
        bound = self.binding.affine.get(number)
        if bound is None:  # a sum with 0, say, which has no variables of its own
            return not role.is_editable and bool((role.scale == 1).all())
        return not any(editable(bound)) and bool((role.scale != 0).all())

    def _moves_nothing(self, number: int, view: g.View) -> bool:
        """Whether a view is a mere copy."""
        if number not in self.copies:
            self.copies[number] = self._is_copy(self.graph.ops[number], view)
        return self.copies[number]

    def _is_copy(self, op: g.Op, view: g.View) -> bool:
        if len(op.inputs) != 1 or len(op.outputs) != 1:
            return False
        shape = self.graph.shapes[op.inputs[0]]
        size = int(np.prod(shape, dtype=np.int64))
        if shape != self.graph.shapes[op.outputs[0]] or size > _MOST_ELEMENTS:
            return False
        places = np.arange(size, dtype=np.int64).reshape(shape)
        (moved,) = view.apply([places])
        return bool(np.array_equal(np.broadcast_to(moved, shape), places))

    def _tap(self, branch: _Branch, path: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, Tap]]:
        """The linear op at the end of a branch, by each tensor that it is known to read."""
        number = self.maker.get(branch.chain[-1])
        if number is None or any(self.reads[tensor] != 1 for tensor in branch.chain):
            return
        op = self.graph.ops[number]
        if not isinstance(op.role, g.Linear) or not _has_taps_of_its_own(self.graph, op, op.role):
            return
        way = (*((step, 0) for step in reversed(branch.ops)), *path)
        gone = tuple(step for step in reversed(branch.ops) if self.may_go(step))
        for source in self._sources(op.inputs[0]):
            yield source, Tap(number, op.role, way, gone)

    def _sources(self, tensor: int) -> Iterator[int]:
        """A tensor, and those that it is a mere copy of."""
        yield tensor
        while (number := self.maker.get(tensor)) is not None:
            op = self.graph.ops[number]
            if not isinstance(op.role, g.View) or not self._moves_nothing(number, op.role):
                return
            tensor = op.inputs[0]
            yield tensor

    # ------------------------------------------------------------------ coefficients

    def _collect(
        self,
        branches: Sequence[_Branch],
        cuts: dict[int, int],
        collected: _Collected,
        true: FloatArray,
        stored: FloatArray,
    ) -> FloatArray:
        """Note all terms below, of which the sum holds `true` times as much; returns their B."""
        constant = np.zeros(())
        for branch in branches:
            cut = len(branch.ops) if branch.below else cuts[id(branch)]
            scale, shift, passed = self._through(branch.ops[:cut])
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

    def _through(self, ops: Sequence[int]) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The factor and summand of these steps together, and the factor of those that stay."""
        scale, shift, stays = np.ones(()), np.zeros(()), np.ones(())
        for number in reversed(ops):
            role = self.graph.ops[number].role
            if not isinstance(role, g.AffineStep):
                continue
            scale, shift = role.scale * scale, role.scale * shift + role.shift
            if not self.may_go(number):
                stays = role.scale * stays
        return scale, shift, stays

    def _note_steps(self, branch: _Branch, cut: int, collected: _Collected) -> None:
        """Which steps go, and down from where they keep their own law."""
        shared = [index for index in range(cut) if self.reads[branch.chain[index]] > 1]
        first = shared[0] if shared else cut
        for index, number in enumerate(branch.ops[:cut]):
            if isinstance(self.graph.ops[number].role, g.View):
                continue
            if index < first:
                collected.inside.add(branch.chain[index])
            if self.may_go(number):
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


def _leaves(branches: Sequence[_Branch]) -> Iterator[_Branch]:
    for branch in branches:
        if branch.below:
            yield from _leaves(branch.below)
        else:
            yield branch


def _paths(
    branches: Sequence[_Branch], number: int, above: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[_Branch, tuple[tuple[int, int], ...]]]:
    """Each branch that ends in no sum of ours, with the ops from there to the root."""
    for branch in branches:
        path = ((number, branch.position), *above)
        if not branch.below:
            yield branch, path
            continue
        inner = branch.inner
        steps = tuple((step, 0) for step in reversed(branch.ops))
        yield from _paths(branch.below, inner, (*steps, *path))


def _cut(leaf: _Branch, meets: Counter[int]) -> int:
    """Where most branches meet, near the root; 0 if this one meets none."""
    counts = [meets[tensor] for tensor in leaf.chain[: leaf.free + 1]]
    most = max(counts)
    return counts.index(most) if most > 1 else 0


def _total(
    parts: Sequence[FloatArray], of: Callable[[FloatArray], FloatArray] = np.asarray
) -> FloatArray:
    total = np.zeros(())
    for part in parts:
        total = total + of(part)
    return total
