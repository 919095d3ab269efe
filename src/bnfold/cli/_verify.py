"""How `fold` verifies its result, whatever the kind of model: on the inputs at hand, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold.cli._output import say
from bnfold.errors import FoldFailedError, UnsupportedModelError, UsageError

if TYPE_CHECKING:
    from bnfold.verify.result import VerifyResult
    from bnfold.verify.runner import Runner


def verify_fold(original: Runner, folded: Runner) -> VerifyResult | str:
    """What was found; or why the original cannot be run, which says nothing about the fold.

    Raises ExampleInputError if the original raises, FoldFailedError if the two do not match.
    """
    from bnfold.verify.api import verify_runners

    try:
        return verify_runners(original, folded, samples=1)
    except UnsupportedModelError as error:
        say(f"{error}")
        return error.problem
    except UsageError as error:
        raise FoldFailedError(f"{error.problem}; nothing was written") from error
