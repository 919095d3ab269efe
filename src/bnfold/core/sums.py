"""Sums of shifts: k0*t0 + k1*t1 + k2*t2 + constant = 0 over three variables of a shift forest.

A sum z = x + y relates three shifts, which a union-find cannot hold. It waits here until two of
its sides are known or related; then it becomes an ordinary relation. At the end the sums that
still wait are solved exactly: a side that nothing else constrains is computed from the others,
and what is left after that, which is rare and small, is a dense linear system.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.core.affine import FloatArray
from bnfold.core.forest import RELATIVE_TOLERANCE, Conflict, Forest, IntArray, each_once
from bnfold.core.rows_by_root import RowsByRoot

_VANISHES = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Equations:
    """Rows `coefficients . value[roots] + constant = 0`, simplified; a coefficient 0 is no term."""

    roots: IntArray
    coefficients: FloatArray
    constant: FloatArray
    size: FloatArray
    """Magnitude of the terms behind `constant`, to judge what counts as 0."""


class Sums:
    """The waiting sums of one shift forest; see the module's head."""

    def __init__(self, forest: Forest) -> None:
        self.forest = forest
        self.variables = np.zeros((0, 3), dtype=np.int64)
        self.coefficients = np.zeros((0, 3))
        self.cause = np.zeros(0, dtype=np.int64)
        self.waiting = np.zeros(0, dtype=bool)
        self.roots = np.zeros((0, 3), dtype=np.int64)
        """Each row's roots when it was last looked at; -1 if never. Nothing is new as long as
        they are still roots."""
        self._log: list[tuple[IntArray, IntArray]] = []
        self._added: list[tuple[IntArray, FloatArray, int]] = []
        self._unseen: list[IntArray] = []
        """Rows to look at again, whatever became of their roots."""
        self._by_root = RowsByRoot()

    def add(self, variables: IntArray, coefficients: FloatArray, cause: int) -> None:
        """Demand coefficients . value[variables] = 0 for rows of shape (n, 3)."""
        self._added.append((variables, coefficients, cause))

    def gather(self) -> None:
        """Take in what was added: all at once, as each time copies everything."""
        if not self._added:
            return
        variables, coefficients, causes = zip(*self._added, strict=True)
        self._added.clear()
        lengths = [len(rows) for rows in variables]
        first, count = len(self.waiting), sum(lengths)
        self.variables = np.concatenate([self.variables, *variables])
        self.coefficients = np.concatenate([self.coefficients, *coefficients])
        self.cause = np.concatenate([self.cause, np.repeat(causes, lengths)])
        self.waiting = np.concatenate([self.waiting, np.ones(count, dtype=bool)])
        self.roots = np.concatenate([self.roots, np.full((count, 3), -1)])
        self._unseen.append(np.arange(first, first + count))

    def rows(self) -> int:
        """How many there are."""
        self.gather()
        return len(self.waiting)

    def withdraw(self, first: int) -> None:
        """Forget the rows from `first` on, after a rollback to before they were added."""
        self.gather()
        self.waiting[first:] = False

    def mark(self) -> int:
        """A point to roll back to; `add` is not rolled back, but see `withdraw`."""
        return len(self._log)

    def rollback(self, mark: int) -> None:
        """Let the sums settled since `mark` wait again."""
        while len(self._log) > mark:
            rows, roots = self._log.pop()
            self.waiting[rows] = True
            self.roots[rows] = roots
            self._unseen.append(rows)

    def settle(self) -> None:
        """Turn every sum that has become a relation or a value into one. Raises Conflict."""
        self.gather()
        while self.forest.disturbed or self._unseen:
            rows = self._touched()
            if not len(rows):
                return
            equations = self.equations(rows)
            self._log.append((rows, self.roots[rows]))
            self.roots[rows] = equations.roots
            terms = _terms(equations)
            ready = terms < 3
            self._await(rows[~ready])
            if not ready.any():
                return
            self._settle(rows[ready], _take(equations, ready), terms[ready])

    def _touched(self) -> IntArray:
        """The waiting sums with a variable whose root got a parent since they were looked at."""
        unseen = self._unseen
        if self.forest.disturbed:
            unseen += self._by_root.take(np.concatenate(self.forest.disturbed))
        self._unseen = []
        self.forest.disturbed.clear()
        rows = each_once(np.concatenate(unseen)) if unseen else np.zeros(0, dtype=np.int64)
        rows = rows[self.waiting[rows]]
        roots = self.roots[rows]
        touched = (roots < 0) | (self.forest.parent[roots] != roots)
        first, second, third = touched.T  # along an axis of 3, any() is slow
        seen = first | second | third
        self._await(rows[~seen])  # what got a parent has lost it again
        return np.extract(seen, rows)

    def _await(self, rows: IntArray) -> None:
        """Hear of these rows when one of their roots gets a parent."""
        roots = self.roots[rows].T.reshape(-1)
        free = roots != 0
        roots = roots[free]
        self.forest.watch(roots)
        self._by_root.put(roots, np.tile(rows, 3)[free], among=len(self.forest.parent))

    def equations(self, rows: IntArray) -> Equations:
        """These sums over the roots of their variables."""
        rooted = self.forest.find(self.variables[rows])
        factors = self.coefficients[rows]
        k = factors * rooted.p
        offsets = factors * rooted.q
        first, second, third = offsets.T
        return simplify(rooted.root, k, first + second + third, _largest(offsets))

    def _settle(self, rows: IntArray, equations: Equations, terms: IntArray) -> None:
        self.waiting[rows] = False
        k, roots, constant = equations.coefficients, equations.roots, equations.constant
        empty = terms == 0
        wrong = empty & (np.abs(constant) > RELATIVE_TOLERANCE * equations.size)
        if wrong.any():
            place = int(np.flatnonzero(wrong)[0])
            raise Conflict(self.causes(int(rows[place])))
        # The first term that is there, and the last: the other one where there are two.
        present, line = k != 0, np.arange(len(rows))
        first, second = present.argmax(axis=1), 2 - present[:, ::-1].argmax(axis=1)
        k_first, k_second = k[line, first], k[line, second]
        root_first, root_second = roots[line, first], roots[line, second]
        for count in (1, 2):
            chosen = np.flatnonzero(terms == count)
            for alike in _alike(self.cause[rows[chosen]]):
                block = chosen[alike]
                cause = self.cause[rows[block[0]]]
                known = constant[block] / k_first[block]
                if count == 1:
                    self.forest.pin(root_first[block], -known, int(cause))
                    continue
                p = -k_second[block] / k_first[block]
                self.forest.relate(root_first[block], root_second[block], p, -known, int(cause))

    def causes(self, row: int) -> list[int]:
        """The causes behind a row, its own op first."""
        causes = [int(self.cause[row])]
        for variable in self.variables[row]:
            causes += self.forest.path(int(variable))
        return causes


def simplify(
    roots: IntArray, coefficients: FloatArray, constant: FloatArray, size: FloatArray
) -> Equations:
    """Terms of one root merged, known ones (root 0, value 0) and vanished ones dropped.

    A term vanishes beside what it was merged of. Other roots' terms say nothing of its size: each
    root has a unit of its own.
    """
    k = np.where(roots == 0, 0.0, coefficients)
    largest = np.abs(k)
    for left, right in ((0, 1), (0, 2), (1, 2)):
        same = (roots[:, left] == roots[:, right]) & (k[:, left] != 0) & (k[:, right] != 0)
        if same.any():
            k[same, left] += k[same, right]
            k[same, right] = 0.0
            largest[same, left] = np.maximum(largest[same, left], largest[same, right])
    k[np.abs(k) <= _VANISHES * largest] = 0.0
    return Equations(roots, k, constant, size)


def _terms(equations: Equations) -> IntArray:
    """How many terms each row has."""
    first, second, third = (equations.coefficients != 0).astype(np.int64).T
    return np.asarray(first + second + third)


def _largest(rows: FloatArray) -> FloatArray:
    """The largest magnitude of each row; along an axis of 3, max() is slow."""
    first, second, third = np.abs(rows).T
    largest: FloatArray = np.maximum(np.maximum(first, second), third)
    return largest


def _alike(keys: NDArray[Any]) -> list[IntArray]:
    """The places of each key that occurs, keys and places ascending."""
    order = np.argsort(keys, kind="stable")
    cuts = np.flatnonzero(np.diff(keys[order])) + 1
    return np.split(order, cuts) if len(order) else []


def _take(equations: Equations, rows: NDArray[np.bool_]) -> Equations:
    return Equations(
        equations.roots[rows],
        equations.coefficients[rows],
        equations.constant[rows],
        equations.size[rows],
    )


def solve_waiting(
    sums: Sums, preferred: FloatArray, busy: NDArray[np.bool_] | None = None
) -> FloatArray:
    """Values for all roots such that every waiting sum holds, near `preferred` where free.

    `preferred` and `busy` have one entry per variable and are read at roots: what is busy moves
    only where nothing else can. Raises Conflict when the waiting sums contradict each other.
    """
    values = preferred.copy()
    values[0] = 0.0
    sums.gather()
    rows = np.flatnonzero(sums.waiting)
    if not len(rows):
        return values
    equations = sums.equations(rows)
    peeled = _peel(equations, np.zeros(len(values), dtype=bool) if busy is None else busy)
    core = np.ones(len(rows), dtype=bool)
    for block, _ in peeled:
        core[block] = False
    if core.any():
        _solve_core(equations, np.flatnonzero(core), values, sums, rows)
    for block, column in reversed(peeled):
        k, roots = equations.coefficients[block], equations.roots[block]
        line = np.arange(len(block))
        rest = (k * values[roots]).sum(axis=1) - k[line, column] * values[roots[line, column]]
        values[roots[line, column]] = -(rest + equations.constant[block]) / k[line, column]
    return values


def _peel(equations: Equations, busy: NDArray[np.bool_]) -> list[tuple[IntArray, IntArray]]:
    """Rounds of equations that each own a root which no other remaining equation uses.

    Those that own one that is not busy come first, and take that one.
    """
    k, roots = equations.coefficients, equations.roots
    uses = np.bincount(roots[k != 0], minlength=len(busy))
    remaining = np.ones(len(roots), dtype=bool)
    rounds: list[tuple[IntArray, IntArray]] = []
    while True:
        private = (uses[roots] == 1) & (k != 0) & remaining[:, None]
        idle = private & ~busy[roots]
        private = idle if idle.any() else private
        rows = np.flatnonzero(private.any(axis=1))
        if not len(rows):
            return rounds
        rounds.append((rows, private[rows].argmax(axis=1)))
        remaining[rows] = False
        np.subtract.at(uses, roots[rows][k[rows] != 0], 1)


def _solve_core(
    equations: Equations, core: IntArray, values: FloatArray, sums: Sums, rows: IntArray
) -> None:
    """The equations that share all their roots: least squares around the preferred values."""
    components = Forest(0.0)
    components.extend(len(values))
    for column in (1, 2):
        left, right = equations.roots[core, 0], equations.roots[core, column]
        apart = (left != 0) & (right != 0)
        left, right = left[apart], right[apart]
        components.relate(left, right, np.ones(len(left)), np.zeros(len(left)), -1)
    members = components.roots(equations.roots[core].max(axis=1))
    for block in _alike(members):
        _solve_component(equations, core[block], values, sums, rows)


def _solve_component(
    equations: Equations, core: IntArray, values: FloatArray, sums: Sums, rows: IntArray
) -> None:
    k, roots = equations.coefficients[core], equations.roots[core]
    used, columns = np.unique(roots, return_inverse=True)
    matrix = np.zeros((len(core), len(used)))
    np.add.at(matrix, (np.arange(len(core))[:, None], columns.reshape(roots.shape)), k)
    start = solution = values[used]
    for _ in range(2):  # the second time takes away what the first one, from far off, rounded
        target = -equations.constant[core] - matrix @ solution
        step, *_ = np.linalg.lstsq(matrix, target, rcond=None)
        solution = solution + step
        # What was taken back to 0 is 0: the rest is rounding, and no measure of what is wrong.
        moved = np.maximum(np.abs(step).max(initial=0.0), np.abs(solution - start))
        solution[np.abs(solution) <= _VANISHES * moved] = 0.0
    residual = np.abs(matrix @ solution + equations.constant[core])
    size = np.abs(matrix) @ np.abs(solution) + equations.size[core]
    wrong = residual > RELATIVE_TOLERANCE * size
    if wrong.any():
        raise Conflict(sums.causes(int(rows[core[int(np.flatnonzero(wrong)[0])]])))
    values[used] = solution
    values[0] = 0.0
