"""A union-find whose members are tied to their root by affine maps, with undo.

Every variable k holds   value[k] = p[k] * value[parent[k]] + q[k],   p != 0,
and variable 0 is the one whose value is known from the start: tying a class to it pins the class.
A scale is kept in two forests, magnitude (p > 0) and sign (p = +1 or -1), both with q = 0 and
value[0] = 1: "positive" is then a pin like any other. Shifts use value[0] = 0.

All calls take arrays (a block of channels at once). Links go from the smaller class to the larger,
so paths stay logarithmic without path compression and a link is undone by cutting it again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnfold.core.affine import FloatArray

IntArray = NDArray[np.int64]

RELATIVE_TOLERANCE = 1e-10
"""Two float64 routes to one coefficient agree this well, or they disagree."""
CANCELLED = 1e-13
"""A sum this small beside its terms is 0: the rest is rounding of the solver's own arithmetic."""
SOLVABLE_GAP = 1e-6
"""A contradiction in p determines the root only where the two p differ by more than this."""
_PINNED_SIZE = 1 << 30
"""Larger than any class of free variables."""


class Conflict(Exception):  # noqa: N818  # an answer, not an error
    """Two constraints cannot both hold. Raised inside a trial, which is then rolled back."""

    def __init__(self, causes: list[int]) -> None:
        super().__init__(causes)
        self.causes = causes
        """Cause numbers of the links involved, the nearest first."""


class Rooted(NamedTuple):
    """Variables over their roots: value = p * value[root] + q."""

    root: IntArray
    p: FloatArray
    q: FloatArray


def is_increasing(values: IntArray) -> bool:
    """Whether no value repeats, told by the order that fresh variables have."""
    return not np.count_nonzero(values[1:] <= values[:-1])


def each_once(values: IntArray) -> IntArray:
    """The values that occur, sorted: often the given array itself, so it is only to be read.

    A plain np.unique would import numpy.ma, for 30 ms.
    """
    return values if is_increasing(values) else np.unique(values, return_counts=True)[0]


def _total(one: FloatArray, other: FloatArray) -> FloatArray:
    """Their sum, without what only rounding leaves of it."""
    total = one + other
    rounded = np.abs(total) <= CANCELLED * np.abs(one)
    if np.count_nonzero(rounded):
        total[rounded] = 0.0
    return total


class Forest:
    """Affine union-find over blocks of variables; see the module's head."""

    def __init__(self, pinned_value: float) -> None:
        self.pinned_value = pinned_value
        self.parent = np.zeros(1, dtype=np.int64)
        self.p = np.ones(1)
        self.q = np.zeros(1)
        self.size = np.full(1, _PINNED_SIZE, dtype=np.int32)
        self.cause = np.full(1, -1, dtype=np.int32)
        self._row = np.zeros(1, dtype=np.int64)
        """Scratch: the row of a call in which a variable occurs."""
        self._log: list[tuple[IntArray, IntArray, NDArray[np.int32]]] = []
        self.watched = np.zeros(1, dtype=bool)
        """Roots that somebody wants to know about when they get a parent."""
        self.disturbed: list[IntArray] = []
        """Those of them that did; noted here, cleared by who asked."""
        self._has_offsets = pinned_value == 0.0
        """Scales have none: every q is 0, and takes no memory."""

    def extend(self, count: int) -> None:
        """Make room for at least `count` variables in all, the new ones free."""
        have = len(self.parent)
        if count > have:
            self.reserve(max(count, have + have // 4))

    def reserve(self, count: int) -> None:
        """Make room for exactly `count` variables in all."""
        more = count - len(self.parent)
        if more <= 0:
            return
        self.parent = np.concatenate([self.parent, np.arange(len(self.parent), count)])
        self.p = np.concatenate([self.p, np.ones(more)])
        if self._has_offsets:
            self.q = np.concatenate([self.q, np.zeros(more)])
        else:
            self.q = np.broadcast_to(np.zeros(1), count)
        self.size = np.concatenate([self.size, np.ones(more, dtype=np.int32)])
        self.cause = np.concatenate([self.cause, np.full(more, -1, dtype=np.int32)])
        self.watched = np.concatenate([self.watched, np.zeros(more, dtype=bool)])
        self._row = np.empty(count, dtype=np.int64)

    def watch(self, roots: IntArray) -> None:
        """From now on note in `disturbed` when one of these gets a parent."""
        self.watched[roots] = True

    def mark(self) -> int:
        """A point to roll back to."""
        return len(self._log)

    def rollback(self, mark: int) -> None:
        """Undo every link since `mark`."""
        while len(self._log) > mark:
            children, parents, added = self._log.pop()
            np.subtract.at(self.size, parents, added)
            self.parent[children] = children
            self.p[children] = 1.0
            if self._has_offsets:
                self.q[children] = 0.0
            self.cause[children] = -1

    def shorten(self, mark: int) -> None:
        """Hang what was linked since `mark` directly under its root.

        Links made in one call may form a chain. Undo cuts each of them, wherever it leads by now.
        """
        for child, _, _ in self._log[mark:]:
            up = self.parent[child]
            while np.count_nonzero(self.parent[up] != up):
                if self._has_offsets:
                    self.q[child] = _total(self.q[child], self.p[child] * self.q[up])
                self.p[child] *= self.p[up]
                self.parent[child] = self.parent[up]
                up = self.parent[child]

    def find(self, variables: IntArray) -> Rooted:
        """The root of each variable and the map from it."""
        node = variables
        up = self.parent[node]
        if not np.count_nonzero(up != node):  # a third of the time of all()
            return Rooted(node, np.ones(node.shape), np.zeros(node.shape))
        p = self.p[node]
        q = self.q[node] if self._has_offsets else np.zeros(node.shape)
        node, up = up, self.parent[up]
        while np.count_nonzero(up != node):
            if self._has_offsets:
                q = _total(q, p * self.q[node])
            p = p * self.p[node]
            node, up = up, self.parent[up]
        return Rooted(node, p, q)

    def agree(self, left: IntArray, right: IntArray) -> NDArray[np.bool_]:
        """Where two variables have one value, whatever those of their roots are."""
        one, other = self.find(left), self.find(right)
        is_zero = (one.root == 0) & (self.pinned_value == 0.0)
        maps = (one.q == other.q) & ((one.p == other.p) | is_zero)
        return np.asarray((one.root == other.root) & maps)

    def largest_offset(self, variables: IntArray) -> FloatArray:
        """The largest of the summands that make each variable's q: what may have cancelled."""
        node, p = variables, np.ones(variables.shape)
        largest = np.abs(self.q[node])
        while not (self.parent[node] == node).all():
            p = p * self.p[node]
            node = self.parent[node]
            largest = np.maximum(largest, np.abs(p * self.q[node]))
        return largest

    def roots(self, variables: IntArray) -> IntArray:
        """The root of each variable, without the map."""
        node = variables
        up = self.parent[node]
        while np.count_nonzero(up != node):
            node, up = up, self.parent[up]
        return node

    def relate(
        self, left: IntArray, right: IntArray, p: FloatArray, q: FloatArray, cause: int
    ) -> IntArray:
        """Demand value[left] = p * value[right] + q, arrays of one length, p != 0.

        Returns the roots that got a parent. Raises Conflict, possibly with part of the links made:
        call it inside a trial, or where a conflict is impossible.
        """
        made: list[IntArray] = []
        while len(left):
            a, b = self.find(left), self.find(right)
            same = a.root == b.root
            if np.count_nonzero(same):
                chosen = np.flatnonzero(same)
                solved = self._check(a, b, p, q, chosen, left, right, cause)
                if len(solved):
                    made.append(solved)
                rest = ~same
                if not rest.any():
                    break
                left, right, p, q = left[rest], right[rest], p[rest], q[rest]
                continue
            linked, done = self._link(a, b, p, q, cause)
            made.append(linked)
            if np.count_nonzero(done) == len(done):
                break
            rest = ~done
            left, right, p, q = left[rest], right[rest], p[rest], q[rest]
        return np.concatenate(made) if made else np.zeros(0, dtype=np.int64)

    def pin(self, variables: IntArray, value: FloatArray, cause: int) -> IntArray:
        """Demand value[variables] = value (of variable 0's kind). Same contract as `relate`."""
        zero = np.zeros(len(variables), dtype=np.int64)
        rooted = self.find(variables)
        if is_increasing(rooted.root) and rooted.root.all():  # the common case: all are free
            new_p = (1.0 if self._has_offsets else value / self.pinned_value) / rooted.p
            new_q = (value - rooted.q) / rooted.p if self._has_offsets else rooted.q
            self._hang(rooted.root, zero, new_p, new_q, cause)
            return rooted.root
        if self.pinned_value == 0.0:
            return self.relate(variables, zero, np.ones(len(zero)), value, cause)
        return self.relate(variables, zero, value / self.pinned_value, np.zeros(len(zero)), cause)

    def path(self, variable: int) -> list[int]:
        """The causes of the links from a variable up to its root, nearest first."""
        causes = []
        while (up := int(self.parent[variable])) != variable:
            causes.append(int(self.cause[variable]))
            variable = up
        return causes

    def causes_of(self, variables: IntArray) -> list[int]:
        """The causes of all links from these variables up to their roots."""
        causes: set[int] = set()
        node, up = variables, self.parent[variables]
        while (below := up != node).any():
            causes.update(self.cause[node[below]].tolist())
            node, up = up, self.parent[up]
        return sorted(causes)

    def _link(
        self, a: Rooted, b: Rooted, p: FloatArray, q: FloatArray, cause: int
    ) -> tuple[IntArray, NDArray[np.bool_]]:
        """Link one root of each pair under the other; a child only once per call."""
        size_a, size_b = self.size[a.root], self.size[b.root]
        a_down = (size_a < size_b) | ((size_a == size_b) & (a.root > b.root))
        child = np.where(a_down, a.root, b.root)
        above = np.where(a_down, b.root, a.root)
        # pa * A + qa = p * (pb * B + qb) + q, solved for the child
        slope = p * b.p
        new_p = np.where(a_down, slope / a.p, a.p / slope)
        new_q = q
        if self._has_offsets:
            offset = _total(_total(q, p * b.q), -a.q)
            new_q = np.where(a_down, offset / a.p, -offset / slope)
        done = np.ones(len(child), dtype=bool)
        if not is_increasing(child):  # a root may occur twice
            line = np.arange(len(child))
            self._row[child[::-1]] = line[::-1]  # the first occurrence is written last
            done = self._row[child] == line
            child, above, new_p, new_q = child[done], above[done], new_p[done], new_q[done]
        self._hang(child, above, new_p, new_q, cause)
        return child, done

    def _hang(
        self, child: IntArray, above: IntArray, p: FloatArray, q: FloatArray, cause: int
    ) -> None:
        """Give roots, each once, a parent."""
        watched = self.watched[child]
        if np.count_nonzero(watched):
            self.disturbed.append(child[watched])
        self.parent[child] = above
        self.p[child] = p
        if self._has_offsets:
            self.q[child] = q
        self.cause[child] = cause
        # A parent may itself be a child in this call; sizes only steer the depth, so the log keeps
        # what was added rather than deriving it again.
        added = self.size[child]
        np.add.at(self.size, above, added)
        self._log.append((child, above, added))

    def _check(
        self,
        a: Rooted,
        b: Rooted,
        p: FloatArray,
        q: FloatArray,
        chosen: IntArray,
        left: IntArray,
        right: IntArray,
        cause: int,
    ) -> IntArray:
        """Pairs that share a root: consistent, or they determine the root, or they conflict."""
        slope = p[chosen] * b.p[chosen]
        offset = p[chosen] * b.q[chosen] + q[chosen]
        a_p, a_q = a.p[chosen], a.q[chosen]
        gap, step = np.abs(slope - a_p), np.abs(a_q - offset)
        if not (np.count_nonzero(gap) or np.count_nonzero(step)):  # one map, as nearly always
            return np.zeros(0, dtype=np.int64)
        size = np.maximum(np.abs(slope), np.abs(a_p))
        known = a.root[chosen] == 0
        # value = a_p * root + a_q and = slope * root + offset, with the root known or not
        root_value = self.pinned_value if self.pinned_value else 0.0
        left_value = a_p * root_value + a_q
        right_value = slope * root_value + offset
        terms = np.maximum(np.abs(p[chosen] * b.q[chosen]), np.abs(q[chosen]))
        tolerance = RELATIVE_TOLERANCE * np.maximum(
            np.maximum(np.abs(left_value), np.abs(right_value)), terms
        )
        equal_value = np.abs(left_value - right_value) <= tolerance
        equal_slope = gap <= RELATIVE_TOLERANCE * size
        level = step <= RELATIVE_TOLERANCE * np.maximum(
            np.maximum(np.abs(a_q), np.abs(offset)), terms
        )
        fine = np.where(known, equal_value, equal_slope & level)
        solvable = ~known & (gap > SOLVABLE_GAP * size) & (self.pinned_value == 0.0)
        broken = ~fine & ~solvable
        if broken.any():
            pair = chosen[int(np.flatnonzero(broken)[0])]
            raise Conflict([cause, *self.path(int(right[pair])), *self.path(int(left[pair]))])
        solve = solvable & ~fine
        if not solve.any():
            return np.zeros(0, dtype=np.int64)
        roots = a.root[chosen][solve]
        value = (offset[solve] - a_q[solve]) / (a_p[solve] - slope[solve])
        return self.pin(roots, value, cause)
