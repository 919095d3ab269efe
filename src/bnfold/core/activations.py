"""Which activations keep their plain bounds: those whose law allows it are asked to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bnfold.core.forest import Conflict, IntArray
from bnfold.core.laws import plain_clips
from bnfold.core.reasons import Reason
from bnfold.core.removal import Options, Solution, demand


def ask_all_plain(solution: Solution, clips: Sequence[int], options: Options) -> set[int]:
    """The clips that can keep their bounds: all at once if they can, else one after the other."""
    if not clips:
        return set()
    asked = [_asked(solution, number) for number in clips]
    moved = _are_moved(solution, np.concatenate(asked))
    hopeless = set(np.repeat(clips, list(map(len, asked)))[moved].tolist())
    possible = [number for number in clips if number not in hopeless]
    if _ask(solution, possible, options):
        return set(possible)
    return {number for number in possible if ask_plain(solution, number, options)}


def ask_plain(solution: Solution, number: int, options: Options) -> bool:
    """Let a clip keep its bounds if it can."""
    return not is_moved(solution, number) and _ask(solution, [number], options)


def is_moved(solution: Solution, number: int) -> bool:
    """Whether an element of a clip is known to be stored shifted or negative: asking is no use."""
    return bool(np.count_nonzero(_are_moved(solution, _asked(solution, number))))


def _are_moved(solution: Solution, variables: IntArray) -> NDArray[np.bool_]:
    system = solution.binding.system
    shift, sign = system.shift.find(variables), system.sign.find(variables)
    moved = (shift.root == 0) & (shift.q != 0.0) | (sign.root == 0) & (sign.p < 0.0)
    return np.asarray(moved)


def _ask(solution: Solution, clips: Sequence[int], options: Options) -> bool:
    """Let clips keep their bounds if they can together; nobody asks which of them could not."""
    binding = solution.binding
    asked = [(binding.clips[number].role, _asked(solution, number)) for number in clips]
    try:
        with demand(solution, options):
            plain_clips(binding.system, asked, binding.system.cause(-1, "", Reason.CLIP_COST))
    except Conflict:
        return False
    return True


def _asked(solution: Solution, number: int) -> IntArray:
    """The variables of a clip's elements, without constants that nobody looks at."""
    variables = solution.binding.clips[number].variables
    is_dead, _ = solution.dead.of(variables)
    return np.extract(~is_dead, variables)
