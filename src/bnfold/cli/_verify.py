"""How `fold` verifies its result, whatever the kind of model: on the inputs at hand, once.

equal        written
not equal    a bug of ours: FoldFailedError (exit status 70), nothing is written
not proven   written, with a warning; with --strict 1, and nothing is written
not run      written, and said: because it cannot be run here, or did not change
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold.cli._output import say
from bnfold.errors import (
    ExampleInputError,
    FoldFailedError,
    UnsupportedModelError,
    UsageError,
)
from bnfold.formats import ModelKind
from bnfold.verify.result import VerifyResult

if TYPE_CHECKING:
    from bnfold.cli._source import Source
    from bnfold.frontend import Folded


def compare(source: Source, folded: Folded) -> VerifyResult | str:
    """What was found; or why nothing was run, which says nothing about the fold.

    Where there is a quicker judge, it is asked first, and may leave the verdict to the other one.

    Raises FoldFailedError if the two do not match.
    """
    from bnfold.frontend import NotRunError
    from bnfold.verify.api import Comparison

    try:
        original, made = folded.runners()
        if original.is_same_as(made):
            return UNCHANGED
        return folded.judged_quickly() or Comparison(samples=1).of(original, made)
    except NotRunError as error:
        return _not_run(source, str(error), error.next_step)
    except UnsupportedModelError as error:
        say(f"{source.name}: {error}")
        return error.problem
    except ExampleInputError as error:
        lines = error.problem.strip().splitlines()
        return _not_run(source, f"the original cannot be run: {lines[0] if lines else ''}")
    except UsageError as error:
        raise FoldFailedError(f"{error.problem}; nothing was written") from error


def _not_run(source: Source, why: str, next_step: str = "") -> str:
    if not next_step and source.kind is ModelKind.ONNX_FILE:
        next_step = "give the shapes of its inputs with --input if that is why"
    say(f"{source.name} was not compared: {why}{f'; {next_step}' if next_step else ''}")
    return why


UNCHANGED = "the model did not change"


def is_doubtful(source: str, verified: VerifyResult | str) -> bool:
    """Say what was found; whether the two are not proven equal. Raises FoldFailedError."""
    if not isinstance(verified, VerifyResult):
        return False
    for note in verified.notes:
        say(f"{source}: {note}")
    if verified.equal:
        return False
    details = [output.detail for output in verified.outputs if output.detail]
    why = "; ".join(
        [verified.summary, *details[:1], *(verified.notes if not verified.outputs else ())]
    )
    if not verified.proven:
        say(f"warning: {source}: {why}")
        return True
    raise FoldFailedError(
        f"the folded {source} does not compute the same: {why}".rstrip(".")
        + "; nothing was written"
    )
