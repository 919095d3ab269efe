"""Which ops took a removed affine step in: those whose new weights its constants decide.

A removed step y = a*x + b ties how its two sides are stored, s_x = a * s_y and t_x = (t_y + b) / a.
One side rests, because a law pins it or because `choose` anchors it there; so the step's constants
move all that hangs on the other side:

    conv -- bn -- scale -- relu -- conv      the last output is anchored: both steps move conv
    input -- bn -- relu -- conv              the input is pinned: bn moves the second conv

Variables that laws tie to each other are one node, removed steps are the edges between nodes, and
z = x + y is an edge with three ends for shifts. From the nodes that rest each node collects the
steps on its way. An op that is edited took in the steps of all its variables. Constants that cancel
on the way, as those of two calls of one module can, are collected all the same.

The common case needs no walk: one linear op makes what only the step reads, and the output rests.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold.core import graph as g
from bnfold.core.binding import Binding
from bnfold.core.choose import Values, anchors
from bnfold.core.forest import IntArray, each_once
from bnfold.core.laws import bind
from bnfold.core.removal import Solution

_UNKNOWN = -1
_NONE = 0
"""The number of the empty set of steps."""


class _Sets:
    """Sets of steps under numbers, so that arrays can hold them."""

    def __init__(self) -> None:
        self.members: list[frozenset[int]] = [frozenset()]
        self._numbers: dict[frozenset[int], int] = {frozenset(): _NONE}

    def number(self, members: frozenset[int]) -> int:
        """The number of a set."""
        number = self._numbers.setdefault(members, len(self.members))
        if number == len(self.members):
            self.members.append(members)
        return number

    def join(self, left: IntArray, right: IntArray) -> IntArray:
        """The unions of sets, pair by pair."""
        base = len(self.members)
        pairs = left * base + right
        distinct = each_once(pairs)
        unions = np.zeros(len(distinct), dtype=np.int64)
        for place, pair in enumerate(distinct.tolist()):
            unions[place] = self.number(self.members[pair // base] | self.members[pair % base])
        joined: IntArray = unions[np.searchsorted(distinct, pairs)]
        return joined


@dataclass(frozen=True, slots=True, eq=False)
class _Edges:
    """The removed steps, a row per channel whose input and output depend on each other."""

    left: IntArray
    right: IntArray
    of_scale: IntArray
    """The number of the set of the step and the other calls of its module; the empty one's where
    the factor is 1."""
    of_shift: IntArray
    """The same, where neither the summand nor a shift is there."""


def taken_in(
    solution: Solution, values: Values, edited: Collection[int]
) -> dict[int, tuple[str, ...]]:
    """Per removed step, the names of the ops among `edited` that now do its work."""
    takers = _into_their_makers(solution, values, edited)
    if len(takers) < len(solution.removed):
        takers = _decided(solution, values, edited)
    names = solution.binding.graph.names
    return {step: tuple(dict.fromkeys(names(takers[step]))) for step in solution.removed}


def beside(
    binding: Binding, edited: Collection[int], outputs: IntArray, op: g.Op
) -> tuple[str, ...]:
    """The names for steps that went with a sum: who reads the sum, or else who made it."""
    inputs = {number: binding.edited(number).inputs for number in sorted(edited)}
    readers = [number for number, read in inputs.items() if np.isin(read, outputs).any()]
    takers = readers or _upstream(binding, frozenset(edited), op)
    return tuple(dict.fromkeys(binding.graph.names(takers)))


def _upstream(binding: Binding, edited: frozenset[int], op: g.Op) -> list[int]:
    """The nearest edited ops whose values reach an op, through sums and the like."""
    ops = binding.graph.ops
    makers = {tensor: number for number, maker in enumerate(ops) for tensor in maker.outputs}
    nearest: set[int] = set()
    seen: set[int] = set()
    waiting = list(op.inputs)
    while waiting:
        tensor = waiting.pop()
        number = makers.get(tensor)
        if tensor in seen or number is None:
            continue
        seen.add(tensor)
        if number in edited:
            nearest.add(number)
        else:
            waiting.extend(ops[number].inputs)
    return sorted(nearest)


def _into_their_makers(
    solution: Solution, values: Values, edited: Collection[int]
) -> dict[int, list[int]]:
    """The steps whose input is one linear op's output, which nothing else is tied to."""
    binding = solution.binding
    maker = np.full(binding.system.count, -1, dtype=np.int64)
    reads = np.zeros(binding.system.count, dtype=np.int64)
    for number, op in enumerate(binding.graph.ops):
        if isinstance(op.role, g.Linear) and _is_free(op.role):
            maker[binding.linear[number].outputs] = number
        if not isinstance(op.role, g.View | g.Clip | g.Homogeneous):
            for tensor in op.inputs:
                reads[each_once(binding.labels[tensor].reshape(-1))] += 1
    for tensor, _, _ in binding.graph.outputs:
        reads[each_once(binding.labels[tensor].reshape(-1))] += 1
    into = {}
    for number in solution.removed:
        bound = binding.affine[number]
        x, y = bound.inputs, bound.outputs
        if not len(x) or len(binding.groups[number]) > 1 or (maker[x] < 0).any():
            continue
        rests = ((values.scale[y] == 1.0) & (values.inverse[y] != 0) & (values.shift[y] == 0)).all()
        if rests and (maker[x] == maker[x[0]]).all() and (reads[x] == 1).all():
            into[number] = [int(maker[x[0]])] if maker[x[0]] in edited else []
    return into


def _is_free(role: g.Linear) -> bool:
    return role.tie is None and role.weight is g.Weight.FREE and role.bias_editable


def _decided(solution: Solution, values: Values, edited: Collection[int]) -> dict[int, list[int]]:
    """Per removed step, the edited ops with a variable that its constants decide."""
    binding, sets = solution.binding, _Sets()
    # The laws without the removals: what they tie is a node.
    resting = bind(
        binding.graph,
        plain_clips=frozenset(solution.plain),
        kept_from_start=frozenset(solution.kept),
        open_sums=binding.left_open,
        given_scales=binding.given_scales,
    ).system
    resting.sums.gather()
    own = _all(resting.count)
    laid = np.arange(resting.count, binding.system.count)  # by the laws of shortcuts
    edges = _edges(solution, values, sets)
    anchored = np.zeros(binding.system.count, dtype=bool)
    anchored[anchors(binding, solution.removed)] = True
    ends = (edges.left, edges.right)
    no_sums = np.zeros((0, 3), dtype=np.int64)
    of_scale = _Walk(sets, np.concatenate([resting.magnitude.roots(own), laid]))
    of_scale.run(*ends, edges.of_scale, no_sums, anchored, np.abs(values.scale) == 1.0)
    of_shift = _Walk(sets, np.concatenate([resting.shift.roots(own), laid]))
    of_shift.run(*ends, edges.of_shift, resting.sums.variables, anchored, values.shift == 0.0)
    deciding = sets.join(of_scale.deciding(), _with_constants(solution, sets, of_shift.deciding()))
    into: dict[int, list[int]] = {number: [] for number in solution.removed}
    for number in sorted(edited):
        bound = binding.edited(number)
        numbers = each_once(deciding[np.concatenate([bound.inputs, bound.outputs])])
        for step in frozenset[int]().union(*(sets.members[n] for n in numbers.tolist())):
            into[step].append(number)
    return into


def _all(count: int) -> IntArray:
    return np.arange(count, dtype=np.int64)


def _edges(solution: Solution, values: Values, sets: _Sets) -> _Edges:
    parts = []
    for number in solution.removed:
        bound = solution.binding.affine[number]
        live = values.inverse[bound.outputs] != 0
        x, y, a, b = (
            part[live] for part in (bound.inputs, bound.outputs, bound.scale, bound.shift)
        )
        own = sets.number(frozenset(solution.binding.groups[number]))
        moved = (b != 0) | (values.shift[x] != 0) | (values.shift[y] != 0) | (a == 0)
        parts.append((x, y, np.where(a == 1, _NONE, own), np.where(moved, own, _NONE)))
    for sum_ in solution.shortcuts:
        steps = (solution.binding.groups[step] for step in sum_.shortcut.steps)
        numbers = np.full(len(sum_.outputs), sets.number(frozenset[int]().union(*steps)))
        # A tap makes up for the rest.
        plain = (summand for summand in sum_.terms if summand.term.tap is None)
        parts += [(summand.variables, sum_.outputs, numbers, numbers) for summand in plain]
    none = np.zeros(0, dtype=np.int64)
    return _Edges(*(np.concatenate([none, *column]) for column in zip(*parts, strict=True)))


def _with_constants(solution: Solution, sets: _Sets, deciding: IntArray) -> IntArray:
    """The outputs that are a constant to their readers are so by the step alone."""
    for number in solution.removed:
        bound = solution.binding.affine[number]
        constant = bound.outputs[np.isin(bound.outputs, solution.dead.variables)]
        deciding[constant] = sets.number(frozenset(solution.binding.groups[number]))
    return deciding


class _Walk:
    """From the nodes that rest to all others, collecting steps."""

    def __init__(self, sets: _Sets, nodes: IntArray) -> None:
        self.sets = sets
        self.nodes = nodes
        """Per variable, the one that stands for its node."""
        self.known = np.full(len(nodes), _UNKNOWN, dtype=np.int64)
        """Per node, the number of the set of steps that decide its value."""

    def deciding(self) -> IntArray:
        """Per variable, the number of the set of steps that decide its value."""
        return np.maximum(self.known[self.nodes], _NONE)

    def run(
        self,
        left: IntArray,
        right: IntArray,
        moves: IntArray,
        sums: IntArray,
        anchored: NDArray[np.bool_],
        rests: NDArray[np.bool_],
    ) -> None:
        """Start where nothing can move: first what is pinned, then what was put there."""
        left, right, sums = self.nodes[left], self.nodes[right], self.nodes[sums]
        pinned = np.zeros(len(rests), dtype=bool)
        pinned[0] = True
        for start in (pinned, anchored & rests, rests):
            fresh = self.nodes[start]
            self.known[fresh[self.known[fresh] == _UNKNOWN]] = _NONE
            while self._cross(left, right, moves) or self._sum(sums):
                open_ends = (self.known[left] == _UNKNOWN) | (self.known[right] == _UNKNOWN)
                left, right, moves = left[open_ends], right[open_ends], moves[open_ends]
            # A step between what laws tie decides the value of both.
            loop = (left == right) & (self.known[left] == _UNKNOWN)
            self.known[left[loop]] = moves[loop]

    def _cross(self, left: IntArray, right: IntArray, moves: IntArray) -> bool:
        """From known nodes to the other ends of their steps; whether there were any."""
        left_known, right_known = self.known[left] != _UNKNOWN, self.known[right] != _UNKNOWN
        crossing = left_known != right_known
        source = np.where(left_known, left, right)[crossing]
        target = np.where(left_known, right, left)[crossing]
        self.known[target] = self.sets.join(self.known[source], moves[crossing])
        return bool(crossing.any())

    def _sum(self, sums: IntArray) -> bool:
        """From two sides of a sum to the third; whether there were any."""
        known = self.known[sums] != _UNKNOWN
        ready = np.count_nonzero(known, axis=1) == 2
        rows, third = sums[ready], known[ready].argmin(axis=1)
        line = np.arange(len(rows))
        first, second = (rows[line, (third + k) % 3] for k in (1, 2))
        self.known[rows[line, third]] = self.sets.join(self.known[first], self.known[second])
        return bool(ready.any())
