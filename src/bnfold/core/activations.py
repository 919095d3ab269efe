"""Which activations keep their plain bounds: those whose law allows it are asked to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnfold.core.forest import Conflict, IntArray
from bnfold.core.laws import plain_clip
from bnfold.core.removal import Options, Solution, trial
from bnfold.core.system import distinct


def ask_all_plain(solution: Solution, clips: Sequence[int], options: Options) -> set[int]:
    """The clips that can keep their bounds: all at once if they can, else one after the other."""
    possible = [number for number in clips if not is_moved(solution, number)]
    try:
        with trial(solution, options):
            for number in possible:
                _demand_plain(solution, number)
    except Conflict:
        return {number for number in possible if ask_plain(solution, number, options)}
    return set(possible)


def is_moved(solution: Solution, number: int) -> bool:
    """Whether an element of a clip is known to be stored shifted or negative: asking is no use."""
    system, variables = solution.binding.system, _asked(solution, number)
    shift, sign = system.shift.find(variables), system.sign.find(variables)
    moved = (shift.root == 0) & (shift.q != 0.0) | (sign.root == 0) & (sign.p < 0.0)
    return bool(np.count_nonzero(moved))


def ask_plain(solution: Solution, number: int, options: Options) -> bool:
    """Let a clip keep its bounds if it can."""
    if is_moved(solution, number):
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
