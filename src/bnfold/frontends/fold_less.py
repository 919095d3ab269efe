"""Fold a file less where its fold loses digits: the steps to blame are found by halves, and stay.

Statistics may say that a value is large where the data say that it is not: a fold that trusts them
stores it beside a shift that drowns it. That shows when both are run.

    1  without merges, if something was merged
    2  without what only a fold of the fold removes, whose constants are rounded twice
    3  where it is digits that are lost, with fewer steps removed, until they are not
    4  these steps kept, and merged again

A fold that is wrong in any other way is a bug, which stays in sight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, Self

from bnfold.core.blame import Obstacle
from bnfold.core.fitting import Stays
from bnfold.core.reasons import Reason
from bnfold.frontend import Compare, Folded, Request
from bnfold.frontends.halves import cleared_by_halves

if TYPE_CHECKING:
    from bnfold.verify.result import VerifyResult

_LOST = Obstacle(Reason.SCALE_RANGE, None)


class FoldedFile(Folded, Protocol):
    """A fold of a file that can be made again."""

    @property
    def request(self) -> Request:
        """What was asked for."""

    @property
    def gone(self) -> Sequence[str]:
        """The names of the removed steps."""

    @property
    def late(self) -> Sequence[str]:
        """Those of them that went from what a fold had left."""

    def again(self, request: Request) -> Self:
        """The same file, folded as this asks for."""


def proven(
    whole: FoldedFile, found: VerifyResult, compare: Compare
) -> tuple[FoldedFile, VerifyResult | str]:
    """The largest fold that computes the same, or the last that was tried; and what was found."""
    verdict: VerifyResult | str = found
    plain = whole
    if whole.report.merged:
        plain = whole.again(replace(whole.request, merge="never"))
        verdict = compare(plain)
    while late := _rounded_twice(plain, verdict):
        plain = plain.again(replace(plain.request, stays={**plain.request.stays, **late}))
        verdict = compare(plain)
    if isinstance(verdict, str) or not verdict.loses_digits:
        return plain, verdict
    steps = list(dict.fromkeys(plain.gone))
    search = _Search(plain, steps, compare)
    if not search.is_right([]):
        return plain, verdict
    cleared_by_halves(steps, search.is_right)
    assert search.best is not None
    if whole.report.merged:
        search.attempt(replace(search.best.request, merge=whole.request.merge))
    return search.best, search.verdict


def _rounded_twice(made: FoldedFile, verdict: VerifyResult | str) -> Stays:
    """The steps of a wrong fold whose constants met those that an earlier fold had rounded."""
    if isinstance(verdict, str) or verdict.equal or verdict.loses_digits:
        return {}
    return {name: _LOST for name in made.late if name not in made.request.stays}


@dataclass(slots=True)
class _Search:
    """Which of the removed steps are to blame."""

    whole: FoldedFile
    steps: Sequence[str]
    compare: Compare
    best: FoldedFile | None = field(default=None, init=False)
    verdict: VerifyResult | str = field(default="", init=False)
    """On the best."""
    gone: Sequence[str] = field(default=(), init=False)
    """What the last attempt removed."""

    def is_right(self, cleared: Sequence[str]) -> bool:
        """Whether a fold that removes no others of these steps keeps its digits."""
        stays = {name: _LOST for name in self.steps if name not in cleared}
        if not stays:
            return False  # that is the whole, which lost them
        stays |= self.whole.request.stays
        while not self.attempt(replace(self.whole.request, stays=stays)):
            # Beside all that stays now others may go that did not, and are no better.
            others = set(self.gone).difference(self.steps, stays)
            if not others:
                return False
            stays |= dict.fromkeys(sorted(others), _LOST)
        return True

    def attempt(self, request: Request) -> bool:
        """Whether what is asked for computes the same; the best so far, if it does."""
        made = self.whole.again(request)
        self.gone, verdict = made.gone, self.compare(made)
        if not isinstance(verdict, str) and not verdict.equal:
            made.close()
            return False
        if self.best is not None:
            self.best.close()
        self.best, self.verdict = made, verdict
        return True
