"""Removing the steps of a sum together, where its law is left open; see `shortcuts`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnfold.core.binding import Binding
from bnfold.core.blame import blame
from bnfold.core.forest import Conflict
from bnfold.core.laws import lay_sum
from bnfold.core.removal import (
    Options,
    Restart,
    Solution,
    clips_among,
    demand,
    remove_steps,
    trial,
)
from bnfold.core.shortcut_law import lay
from bnfold.core.shortcuts import Shortcut


def try_shortcut(solution: Solution, shortcut: Shortcut, options: Options) -> bool:
    """Remove all steps of a sum together, or leave it as it was."""
    binding, gone = solution.binding, set(solution.removed)
    if any(number not in binding.open_sums for number in shortcut.sums):
        return False
    steps = _steps_with(binding, shortcut)
    if not options.banned.keys().isdisjoint(steps):
        return False
    if not gone.isdisjoint(steps) or not solution.kept.keys().isdisjoint(steps):
        return False
    own = [step for step in steps if step not in shortcut.steps or step in shortcut.bound]
    try:
        with trial(solution, options):
            for calls in _by_module(binding, own):  # the next may sit behind it, with a gamma of 0
                remove_steps(solution, calls)
            bound = lay(binding, shortcut)
            if any(np.isin(s.variables, solution.dead.variables).any() for s in bound.terms):
                raise Conflict([])
            for number in shortcut.sums:
                del binding.open_sums[number]
            solution.removed.extend(step for step in steps if step not in own)
            solution.shortcuts.append(bound)
    except Conflict as conflict:
        solution.met[shortcut.root] = clips_among(binding, conflict.causes)
        for number in shortcut.steps:
            obstacle = blame(binding, number, conflict.causes)
            if obstacle.blocker != binding.graph.ops[number].name:
                solution.refused[number] = obstacle
        return False
    return True


def _steps_with(binding: Binding, shortcut: Shortcut) -> list[int]:
    """The steps that go if a shortcut does: also other calls, and those behind a tap."""
    taps = (term.tap for term in shortcut.terms)
    steps = {*shortcut.steps, *(step for tap in taps if tap for step in tap.steps)}
    return sorted({number for step in steps for number in binding.groups[step]})


def _by_module(binding: Binding, steps: Sequence[int]) -> list[list[int]]:
    """The calls of each module, in the order of the first."""
    calls: dict[int, list[int]] = {}
    for number in steps:
        calls.setdefault(binding.groups[number][0], []).append(number)
    return [*calls.values()]


def close_sums(solution: Solution, options: Options) -> None:
    """Let the plain law hold for each sum that no shortcut took along."""
    for number in sorted(solution.binding.open_sums):
        try:
            with demand(solution, options):
                lay_sum(solution.binding, number)
        except Conflict:
            raise Restart(options.without(number)) from None
