"""How a plan stores each tensor: v^ = s * (v + t), read back from the solver's variables.

Where nothing can be said, the element is not `known`:

    1/s = 0        a constant that its readers hold themselves; nobody looks at what is stored there
    gamma = 0      the producer's weights became 0: what is stored is the BatchNorm's constant, and
                   so is everything between that producer and the BatchNorm
    a shortcut     what is inside a sum whose steps went together; only the sum counts
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold.core.affine import FloatArray
from bnfold.core.plan import Plan
from bnfold.core.removal import Solution


@dataclass(frozen=True, slots=True, eq=False)
class Rescaling:
    """The rescaling of a tensor; all arrays have one shape, which broadcasts to the tensor's."""

    scale: FloatArray
    shift: FloatArray
    known: NDArray[np.bool_]
    """False where the stored value says nothing about the value."""
    is_rounded: bool = False
    """Whether scale and shift are those of constants that were rounded on the way: of merged ops,
    or of what an earlier fold has made."""

    def then(self, later: Rescaling) -> Rescaling:
        """This rescaling, and a later one of what came of it.

        s2 * (s1 * (v + t1) + t2) = s1 s2 * (v + t1 + t2 / s1)
        """
        return Rescaling(
            self.scale * later.scale,
            self.shift + later.shift / np.where(self.known, self.scale, 1.0),
            self.known & later.known,
            is_rounded=True,
        )


Rescalings = Mapping[str, Rescaling]
"""Of tensors, by their names."""


def in_turn(first: Rescalings, second: Rescalings) -> dict[str, Rescaling]:
    """The rescalings of two plans, one after the other, of the tensors that both know by name."""
    return {name: first[name].then(second[name]) for name in first if name in second}


class PlanRescalings:
    """The rescalings of a plan, tensor by tensor."""

    def __init__(self, plan: Plan, *, is_rounded: bool = False) -> None:
        assert plan.solution is not None
        self._solution = plan.solution
        self._is_rounded = is_rounded
        self._hidden = _hidden(plan.solution)

    def of(self, tensor: int) -> Rescaling:
        """The rescaling of a tensor of the graph."""
        labels = self._solution.binding.labels[tensor]
        values = self._solution.values
        known = ~self._hidden[labels]
        return Rescaling(values.scale[labels], values.shift[labels], known, self._is_rounded)


def _hidden(solution: Solution) -> NDArray[np.bool_]:
    """The variables of which nothing can be said."""
    hidden = np.asarray(solution.values.inverse == 0)
    binding = solution.binding
    for number, channel in solution.zeroed:
        hidden[binding.linear[number].outputs[channel]] = True
    for bound_sum in solution.shortcuts:
        for tensor in bound_sum.shortcut.inside:
            hidden[binding.labels[tensor]] = True
    # From the back: what a removed step makes of a hidden value says nothing about its input.
    for number in sorted(solution.alone(), reverse=True):
        bound = binding.affine[number]
        hidden[bound.inputs[(bound.scale == 0) | hidden[bound.outputs]]] = True
    hidden[0] = False  # what is stored as it is
    return hidden
