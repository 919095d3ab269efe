"""Which activations keep their plain bounds, and which steps are worth it that they do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.core import graph as g
from bnfold.core.blame import Obstacle
from bnfold.core.forest import Conflict, IntArray
from bnfold.core.laws import bind, plain_clip
from bnfold.core.reasons import Reason
from bnfold.core.removal import (
    Options,
    Solution,
    groups_left,
    keep,
    restore,
    save,
    trial,
    try_group,
)
from bnfold.core.system import distinct
from bnfold.core.wholes import close_sums, try_shortcut

_MOST_ASKED = 20_000
"""How often `clip="auto"` asks what an activation would cost: some seconds in all. Each step asks
every one; in a network of thousands of both, later steps stay as `clip="never"` has it."""


def has_room(role: g.Role) -> bool:
    """Whether it is a clip that can be given bounds per channel."""
    return isinstance(role, g.Clip) and role.room


def clip_cost(graph: g.Graph, number: int) -> float:
    """Extra cost, in elements, of giving this clip bounds per channel."""
    op = graph.ops[number]
    assert isinstance(op.role, g.Clip)
    return op.role.cost * int(np.prod(graph.shapes[op.inputs[0]]))


def ask_all_plain(solution: Solution, clips: Sequence[int], options: Options) -> set[int]:
    """The clips that can keep their bounds: all at once if they can, else one after the other."""
    possible = [number for number in clips if not _is_moved(solution, number)]
    try:
        with trial(solution, options):
            for number in possible:
                _demand_plain(solution, number)
    except Conflict:
        return {number for number in possible if _ask_plain(solution, number, options)}
    return set(possible)


def _is_moved(solution: Solution, number: int) -> bool:
    """Whether an element of a clip is known to be stored shifted or negative: asking is no use."""
    system, variables = solution.binding.system, _asked(solution, number)
    shift, sign = system.shift.find(variables), system.sign.find(variables)
    moved = (shift.root == 0) & (shift.q != 0.0) | (sign.root == 0) & (sign.p < 0.0)
    return bool(np.count_nonzero(moved))


def _ask_plain(solution: Solution, number: int, options: Options) -> bool:
    """Let a clip keep its bounds if it can."""
    if _is_moved(solution, number):
        return False
    try:
        with trial(solution, options):
            _demand_plain(solution, number)
    except Conflict:
        return False
    return True


def _demand_plain(solution: Solution, number: int) -> None:
    role = solution.binding.clips[number].role
    plain_clip(solution.binding, number, role, _asked(solution, number))


def _asked(solution: Solution, number: int) -> IntArray:
    """The variables of a clip's elements, without constants that nobody looks at."""
    variables = distinct(solution.binding.clips[number].labels)
    dead = solution.dead.variables
    return np.setdiff1d(variables, dead) if len(dead) else variables


def remove_more(graph: g.Graph, options: Options, first: Solution, costly: list[int]) -> Solution:
    """Without the demand that costly clips stay plain: what else goes, where it pays.

    What `first` removed is removed again; then each remaining step goes if the clips that lose
    their plain bounds by it cost less than the step.
    """
    binding = bind(graph, kept_from_start=options.kept_from_start, open_sums=options.open_sums())
    solution = Solution(binding)
    for bound in first.shortcuts:
        try_shortcut(solution, bound.shortcut, options)
    stay = {
        number: why for number, why in first.kept.items() if _is_settled(graph, number, options)
    }
    for number, obstacle in stay.items():
        keep(solution, (number,), obstacle, options)
    groups, gone = binding.groups, set(solution.removed)
    for number in first.removed:
        if groups[number][0] == number and number not in gone:
            try_group(solution, groups[number], options)
    market = _Market(solution, options, costly, _lost(solution, costly, options))
    for shortcut in options.shortcuts:
        before = save(solution)
        gain = _elements(graph, [n for n in shortcut.steps if n in first.kept])
        if try_shortcut(solution, shortcut, options):
            dear = market.price(gain, first.met.get(shortcut.root, frozenset()))
            if dear is not None:
                restore(solution, before)
                if dear:
                    cost = Obstacle(Reason.CLIP_COST, graph.ops[min(dear)].name)
                    solution.refused.update(dict.fromkeys(shortcut.steps, cost))
    close_sums(solution, options)
    for group in groups_left(solution):
        if group[0] not in first.kept or group[0] in stay:
            continue
        before = save(solution)
        if not try_group(solution, group, options):
            continue
        dear = market.price(_elements(graph, group), first.met.get(group[0], frozenset()))
        if dear is None:
            continue
        obstacle = first.kept[group[0]]
        if dear:  # it could go: what `first` ran into may be gone, but not this
            obstacle = Obstacle(Reason.CLIP_COST, graph.ops[min(dear)].name)
        restore(solution, before)
        keep(solution, group, obstacle, options)
    return solution


@dataclass(slots=True)
class _Market:
    """What activations cost that lose their plain bounds, and what that buys."""

    solution: Solution
    options: Options
    costly: Sequence[int]
    lost: frozenset[int]
    """The clips that are paid for."""
    asked: int = 0

    def price(self, gain: int, met: frozenset[int]) -> set[int] | None:
        """Pay for what was just removed; if that is too much, the clips that it would cost.

        `met` are the clips that are known to stand in its way.
        """
        solution, graph = self.solution, self.solution.binding.graph
        dear = {n for n in met if n not in self.lost and _is_moved(solution, n)}
        if _total_cost(graph, dear) < gain and self.asked <= _MOST_ASKED:
            self.asked += len(self.costly)
            now = _lost(solution, self.costly, self.options)
            dear = set(now - self.lost)
            if _total_cost(graph, now) - _total_cost(graph, self.lost) < gain:
                self.lost = now
                return None
        return dear


def _elements(graph: g.Graph, steps: Iterable[int]) -> int:
    """How many elements affine steps compute."""
    return sum(int(np.prod(graph.shapes[graph.ops[n].outputs[0]])) for n in steps)


def _is_settled(graph: g.Graph, number: int, options: Options) -> bool:
    return number in options.banned or graph.step(number).refusal is not None


def _total_cost(graph: g.Graph, clips: Iterable[int]) -> float:
    return sum(clip_cost(graph, number) for number in clips)


def _lost(solution: Solution, costly: Sequence[int], options: Options) -> frozenset[int]:
    """The clips that could not stay plain now."""
    system = solution.binding.system
    mark = system.mark()
    lost = frozenset(number for number in costly if not _ask_plain(solution, number, options))
    system.rollback(mark)
    return lost
