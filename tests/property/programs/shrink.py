"""The smallest program that still fails in the same way."""

from __future__ import annotations

from collections.abc import Callable

from tests.property.programs.check import NoJudgeError, Outcome, check
from tests.property.programs.description import Program


def shrink(outcome: Outcome, check: Callable[[Program], Outcome] = check) -> Outcome:
    """Pieces and options are dropped one by one while what is left fails in the same way."""
    found = True
    while found:
        found = False
        for smaller in outcome.program.smaller():
            if not smaller.pieces:
                continue
            try:
                other = check(smaller)
            except NoJudgeError:
                continue
            if other.kind == outcome.kind:
                outcome, found = other, True
                break
    return outcome
