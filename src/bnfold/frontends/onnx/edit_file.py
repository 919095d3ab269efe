"""An edited model as a file, for what works on files: the fold, and the runtime that compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from bnfold.errors import UsageError
from bnfold.frontends.onnx.edit_model import Edits, edit
from bnfold.frontends.onnx.fold import check_data_target
from bnfold.frontends.onnx.read import OnnxModel, files_of, read_file
from bnfold.frontends.onnx.write import staged


@dataclass(frozen=True, slots=True)
class EditedFile:
    """Where an edited model lies, until the stack that it was made with is closed."""

    path: Path
    done: Sequence[str]
    """What was done, a line each."""
    read: Sequence[Path]
    """What it was made of: the message, and where its external data lies."""
    before: Path | None = None
    """What was converted to another opset; None where nothing was."""


def edit_file(
    path: Path,
    edits: Edits,
    folder: Path,
    stack: ExitStack,
    step: Callable[[float], None],
    *,
    output: Path | None = None,
    force: bool = False,
) -> EditedFile:
    """Read, edit, and write into the folder; the output must not replace what is read.

    Raises UsageError, UnsupportedModelError and ModelUnreadableError.
    """
    model = read_file(path)
    if output is not None:
        check_data_target(model, output, force=force)
    read = files_of(path, model)
    first = replace(edits, opset=None)
    done = edit(model, first)
    made = path
    if first:
        made = _written(model, folder / path.name, stack, step)
    if edits.opset is None:
        return EditedFile(made, done, read)
    done += edit(model, Edits(opset=edits.opset))
    converted = _written(model, folder / path.name, stack, step)
    return EditedFile(converted, done, read, made)


def _written(
    model: OnnxModel, place: Path, stack: ExitStack, step: Callable[[float], None]
) -> Path:
    try:
        return stack.enter_context(staged(model, place, place.parent, step)).model
    except UsageError as error:
        raise UsageError(
            f"the edited {model.name} could not be written for the time of the work:"
            f" {error.problem}",
            "set TMPDIR to a folder with room for a copy of it",
        ) from error
