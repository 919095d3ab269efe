"""What bounds per channel cost, and whether the removal of a step is worth that.

A clip with one bound per channel in the place of a plain one is a slower op on most targets; an
affine step is a pass over its elements. Both are counted in elements. A step goes if the clips that
lose their plain bounds by it cost less than the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bnfold.core import graph as g
from bnfold.core.activations import ask_all_plain, is_moved
from bnfold.core.removal import Options, Solution

_MOST_ASKED = 20_000
"""How often `clip="auto"` asks what an activation would cost: some seconds in all. Each step asks
every one; in a network of thousands of both, later steps stay as `clip="never"` has it."""


def clip_costs(graph: g.Graph) -> dict[int, float]:
    """Extra cost, in elements, of bounds per channel, for each clip that can be given some."""
    return {
        number: op.role.cost * int(np.prod(graph.shapes[op.inputs[0]]))
        for number, op in enumerate(graph.ops)
        if isinstance(op.role, g.Clip) and op.role.room
    }


def elements(graph: g.Graph, steps: Iterable[int]) -> int:
    """How many elements affine steps compute."""
    return sum(int(np.prod(graph.shapes[graph.ops[n].outputs[0]])) for n in steps)


class TooDear(Exception):  # noqa: N818  # control flow, not an error
    """What was removed is not worth what it costs."""

    def __init__(self, clips: set[int]) -> None:
        super().__init__()
        self.clips = clips
        """The clips that would lose their plain bounds, if that is the reason."""


@dataclass(slots=True)
class Market:
    """What activations cost that lose their plain bounds, and what that buys."""

    solution: Solution
    options: Options
    costs: Mapping[int, float]
    """Of the clips that cost anything, by number."""
    lost: frozenset[int] = frozenset()
    """The clips that are paid for."""
    asked: int = 0

    def look(self) -> frozenset[int]:
        """The clips that could not stay plain now."""
        with self.solution.binding.system.aside():
            return frozenset(
                self.costs.keys() - ask_all_plain(self.solution, [*self.costs], self.options)
            )

    def pay(self, gain: int, met: frozenset[int]) -> None:
        """Pay for what was just removed. Raises TooDear if that costs more than is gained.

        `met` are the clips that are known to stand in its way.
        """
        dear = {n for n in met if n not in self.lost and is_moved(self.solution, n)}
        if self._total(dear) < gain and self.asked <= _MOST_ASKED:
            self.asked += len(self.costs)
            now = self.look()
            dear = set(now - self.lost)
            if self._total(now) - self._total(self.lost) < gain:
                self.lost = now
                return
        raise TooDear(dear)

    def _total(self, clips: Iterable[int]) -> float:
        return sum(self.costs[number] for number in clips)
