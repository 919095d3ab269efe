"""How `fold` verifies its result, whatever the kind of model: on the inputs at hand, once.

equal        written
not equal    a bug of ours: FoldFailedError (exit status 70), nothing is written
not proven   written, with a warning; with --strict 1, and nothing is written
not run      written, and said: because it cannot be run here, or did not change
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bnfold.cli._output import say
from bnfold.errors import FoldFailedError, UnsupportedModelError, UsageError
from bnfold.verify.result import VerifyResult

if TYPE_CHECKING:
    from bnfold.verify.runner import Runner


def verify_fold(
    original: Runner, folded: Runner, *, quickly: Callable[[], VerifyResult | None] = lambda: None
) -> VerifyResult | str:
    """What was found; or why nothing was run, which says nothing about the fold.

    Where a quicker judge is given, it is asked first, and may leave the verdict to the other one.

    Raises ExampleInputError if the original raises, FoldFailedError if the two do not match.
    """
    from bnfold.verify.api import verify_runners

    if original.is_same_as(folded):
        return UNCHANGED
    try:
        return quickly() or verify_runners(original, folded, samples=1)
    except UnsupportedModelError as error:
        say(f"{error}")
        return error.problem
    except UsageError as error:
        raise FoldFailedError(f"{error.problem}; nothing was written") from error


UNCHANGED = "the model did not change"


def is_doubtful(source: str, found: VerifyResult | str) -> bool:
    """Say what was found; whether the two are not proven equal. Raises FoldFailedError."""
    if not isinstance(found, VerifyResult):
        return False
    for note in found.notes:
        say(note)
    if found.equal:
        return False
    details = [output.detail for output in found.outputs if output.detail]
    why = "; ".join([found.summary, *details[:1], *(found.notes if not found.outputs else ())])
    if not found.proven:
        say(f"warning: {why}")
        return True
    raise FoldFailedError(
        f"the folded {source} does not compute the same: {why}".rstrip(".")
        + "; nothing was written"
    )
