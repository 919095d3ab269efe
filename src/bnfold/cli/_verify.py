"""How `fold` verifies its result, whatever the kind of model: on the inputs at hand, once."""

from __future__ import annotations

from bnfold.cli._output import say
from bnfold.errors import ExampleInputError, FoldFailedError, UsageError
from bnfold.verify.api import verify_runners
from bnfold.verify.result import VerifyResult
from bnfold.verify.runner import NotRunnableError, Runner


def verify_fold(original: Runner, folded: Runner) -> VerifyResult | str:
    """What was found; or why the original cannot be run, which says nothing about the fold.

    Raises ExampleInputError if the original raises, FoldFailedError if the two do not match.
    """
    try:
        return verify_runners(original, folded, samples=1)
    except ExampleInputError as error:
        if isinstance(error.cause, NotRunnableError):
            reason = str(error.cause)
            say(f"{original.name} was not run: {reason}; {_STEP}")
            return reason
        raise
    except UsageError as error:
        raise FoldFailedError(f"{error.problem}; nothing was written") from error


_STEP = 'what runs a model comes with: python -m pip install "bnfold[torch,onnx]"'
