"""A sum with the sums that it alone reads, as one sum, for merging.

    z = c0 * (c1 * x1 + c2 * x2) + c3 * x3    has the operands x1, x2, x3 of coefficients
                                              c0 * c1, c0 * c2, c3

Where operands are merged, fewer come in: a sum that keeps one alone is that operand, without its
coefficient, and one that keeps none is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from bnfold.core import graph as g
from bnfold.core.expressions import Expressions

Place = tuple[int, int]
"""The number of a sum, and the position of one of its operands."""


@dataclass(slots=True)
class Operand:
    """An operand of a sum, or of a sum that it alone reads."""

    tensor: int
    coefficient: float
    place: Place
    """Where it comes in."""


class NestedSum:
    """The operands of a sum, and of the sums in it; see the module's head."""

    def __init__(self, expressions: Expressions, number: int) -> None:
        self._expressions = expressions
        self._ops = expressions.graph.ops
        sums, operands = [number], []
        self._outer: dict[int, Place] = {}
        """Where each of the inner sums comes in."""
        waiting = [(number, 1.0)]
        while waiting:
            outer, factor = waiting.pop()
            for position, own in enumerate(self._role(outer).coefficients):
                tensor = self._ops[outer].inputs[position]
                inner = self._inner_sum(tensor)
                if inner is None:
                    operands.append(Operand(tensor, factor * own, (outer, position)))
                else:
                    sums.append(inner)
                    self._outer[inner] = outer, position
                    waiting.append((inner, factor * own))
        self.sums = sorted(sums)
        """Their numbers: inner ones come first, the whole sum last."""
        self.operands = sorted(operands, key=lambda operand: operand.place)

    def way(self, place: Place) -> Iterator[Place]:
        """The places through which an operand comes into the whole sum."""
        yield place
        while (outer := self._outer.get(place[0])) is not None:
            place = outer
            yield place

    def kept(self, dropped: Collection[Place]) -> dict[int, tuple[int, ...]]:
        """The positions that each sum keeps; one that keeps none is not there."""
        kept: dict[int, tuple[int, ...]] = {}
        for number in self.sums:
            positions = []
            for position, tensor in enumerate(self._ops[number].inputs):
                maker = self._inner_sum(tensor)
                is_empty = maker in self.sums and maker not in kept
                if (number, position) not in dropped and not is_empty:
                    positions.append(position)
            if positions:
                kept[number] = tuple(positions)
        return kept

    def coefficients(self, kept: Mapping[int, tuple[int, ...]]) -> dict[Place, float]:
        """What each operand that is kept is multiplied by now: one that is left alone, by 1."""
        coefficients: dict[Place, float] = {}
        waiting = [(self.sums[-1], 1.0)]
        while waiting:
            number, factor = waiting.pop()
            for position in kept[number]:
                is_alone = len(kept[number]) == 1 < len(self._ops[number].inputs)
                own = 1.0 if is_alone else self._role(number).coefficients[position]
                coefficients[number, position] = factor * own
                maker = self._inner_sum(self._ops[number].inputs[position])
                if maker is not None and maker in kept:
                    waiting.append((maker, factor * own))
        return coefficients

    def _role(self, number: int) -> g.Sum:
        role = self._ops[number].role
        assert isinstance(role, g.Sum)
        return role

    def _inner_sum(self, tensor: int) -> int | None:
        """The sum that makes a tensor for one reader alone."""
        maker = self._expressions.makers.get(tensor)
        if maker is None or not isinstance(self._ops[maker].role, g.Sum):
            return None
        alone = self._expressions.readings[tensor] == 1
        alike = self._expressions.are_alike(self._ops[maker].inputs, tensor)
        return maker if alone and alike else None
