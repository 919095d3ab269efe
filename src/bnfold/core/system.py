"""The unknowns of a network and the constraints between them.

A variable stands for one channel of one or more tensors and says how the value v is stored:

    v^ = s * (v + t)         s = sign * magnitude, s != 0

Three forests hold what is known of magnitude, sign and shift; sums of shifts wait in `Sums`.
The vocabulary here is what the laws are written in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold.core.affine import FloatArray
from bnfold.core.forest import Conflict, Forest, IntArray, each_once, is_increasing
from bnfold.core.reasons import Reason
from bnfold.core.sums import Sums


@dataclass(frozen=True, slots=True)
class Cause:
    """Where a constraint comes from."""

    op: int
    """Number of the op; -1 for the network's surroundings."""
    name: str
    reason: Reason


class System:
    """Variables and constraints; see the module's head."""

    def __init__(self) -> None:
        self.count = 1
        self.magnitude = Forest(1.0)
        self.sign = Forest(1.0)
        self.shift = Forest(0.0)
        self.sums = Sums(self.shift)
        self.causes: list[Cause] = []

    def reserve(self, count: int) -> None:
        """Make room for so many variables at once, where it is known how many there will be."""
        for forest in self._forests():
            forest.reserve(1 + count)

    def fresh(self, count: int) -> IntArray:
        """New free variables."""
        first = self.count
        self.count += count
        for forest in self._forests():
            forest.extend(self.count)
        return np.arange(first, self.count, dtype=np.int64)

    def cause(self, op: int, name: str, reason: Reason) -> int:
        """Register where the constraints that follow come from."""
        self.causes.append(Cause(op, name, reason))
        return len(self.causes) - 1

    def mark(self) -> tuple[int, ...]:
        """A point to roll back to."""
        return (*(forest.mark() for forest in self._forests()), self.sums.mark())

    def rollback(self, mark: tuple[int, ...]) -> None:
        """Undo every constraint since `mark`; variables and sums that were added stay."""
        *forests, waiting = mark
        for forest, point in zip(self._forests(), forests, strict=True):
            forest.rollback(point)
        self.sums.rollback(waiting)

    def shorten(self, mark: tuple[int, ...]) -> None:
        """Keep paths short where many constraints since `mark` were made in one call."""
        for forest, point in zip(self._forests(), mark[:-1], strict=True):
            forest.shorten(point)

    def _forests(self) -> tuple[Forest, Forest, Forest]:
        return self.magnitude, self.sign, self.shift

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Constraints made inside hold together, or none of them does (Conflict passes on)."""
        mark = self.mark()
        try:
            yield
            self.sums.settle()
        except Conflict:
            self.rollback(mark)
            raise

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Constraints made inside are taken back at its end."""
        mark = self.mark()
        try:
            yield
        finally:
            self.rollback(mark)

    def scale_by(self, left: IntArray, right: IntArray, factor: FloatArray, cause: int) -> None:
        """s_left = factor * s_right, factor != 0."""
        zero = np.zeros(len(factor))
        self.magnitude.relate(left, right, np.abs(factor), zero, cause)
        self.sign.relate(left, right, np.sign(factor), zero, cause)

    def same_scale(self, left: IntArray, right: IntArray, cause: int) -> None:
        """s_left = s_right."""
        self.scale_by(left, right, np.ones(len(left)), cause)

    def same_magnitude(self, left: IntArray, right: IntArray, cause: int) -> None:
        """|s_left| = |s_right|."""
        self.magnitude.relate(left, right, np.ones(len(left)), np.zeros(len(left)), cause)

    def same(self, left: IntArray, right: IntArray, cause: int) -> None:
        """s and t equal."""
        if not len(left):
            return
        self.same_scale(left, right, cause)
        self.shift.relate(left, right, np.ones(len(left)), np.zeros(len(left)), cause)

    def are_same(self, left: IntArray, right: IntArray) -> NDArray[np.bool_]:
        """Where s and t are known to be equal."""
        agree = [forest.agree(left, right) for forest in self._forests()]
        return np.asarray(np.logical_and.reduce(agree))

    def plain_scale(self, variables: IntArray, cause: int) -> None:
        """s = 1."""
        self.magnitude.pin(variables, np.ones(len(variables)), cause)
        self.positive(variables, cause)

    def positive(self, variables: IntArray, cause: int) -> None:
        """s > 0."""
        self.sign.pin(variables, np.ones(len(variables)), cause)

    def no_shift(self, variables: IntArray, cause: int) -> None:
        """t = 0."""
        self.shift.pin(variables, np.zeros(len(variables)), cause)

    def plain(self, variables: IntArray, cause: int) -> None:
        """(s, t) = (1, 0): stored as it is."""
        self.plain_scale(variables, cause)
        self.no_shift(variables, cause)

    def shift_map(
        self, left: IntArray, right: IntArray, p: FloatArray, q: FloatArray, cause: int
    ) -> None:
        """t_left = p * t_right + q; where p is 0, t_left = q."""
        constant = p == 0
        if constant.any():
            self.shift.pin(left[constant], q[constant], cause)
            left, right, p, q = (part[~constant] for part in (left, right, p, q))
        self.shift.relate(left, right, p, q, cause)


def distinct(labels: IntArray) -> IntArray:
    """The variables that occur, without the pinned one."""
    flat = labels.reshape(-1)
    if len(flat) and flat[0] > 0 and is_increasing(flat):  # the common case: fresh variables
        return flat
    variables = each_once(flat)
    return np.extract(variables != 0, variables)
