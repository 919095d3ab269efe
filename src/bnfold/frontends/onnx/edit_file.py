"""An edited model as a file, for what works on files: the fold, and the runtime that compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import ModelProto

from bnfold.errors import UsageError
from bnfold.frontends.onnx.edit_cut import open_shapes, shapes_of
from bnfold.frontends.onnx.edit_model import Edits, edit
from bnfold.frontends.onnx.fold import check_data_target, check_target
from bnfold.frontends.onnx.read import OnnxModel, files_of, read_file, read_proto
from bnfold.frontends.onnx.write import staged, to_proto


@dataclass(frozen=True, slots=True)
class EditedFile:
    """Where an edited model lies, until the stack that it was made with is closed."""

    path: Path
    done: Sequence[str]
    """What was done, a line each."""
    read: Sequence[Path]
    """What it was made of: the message, and where its external data lies."""
    shapes: Mapping[str, Sequence[int]]
    """What fits the inputs that were tensors inside, where their sizes are open: no image."""
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
    if output is not None and model.external:
        check_data_target(model, output, force=force)
    read = files_of(path, model)
    first = replace(edits, opset=None)
    inside = shapes_of(model, edits.inputs) if edits.inputs else {}
    done = edit(model, first)
    shapes = open_shapes(model, inside)
    made = path
    if first:
        made = _written(model, folder / path.name, stack, step)
    if edits.opset is None:
        return EditedFile(made, done, read, shapes)
    done += edit(model, Edits(opset=edits.opset))
    converted = _written(model, folder / path.name, stack, step)
    return EditedFile(converted, done, read, shapes, made)


def edit_in_memory(model: ModelProto, edits: Edits) -> ModelProto:
    """The edited model; the one that was given is left alone."""
    source = read_proto(model)
    edit(source, edits)
    return to_proto(source)


def edit_to(path: Path, output: Path, edits: Edits, *, force: bool) -> Path:
    """Write the edited model, whole or not at all; see `edit_file` for what it raises."""
    check_target(path, output, force=force)
    model = read_file(path)
    if model.external:
        check_data_target(model, output, force=force)
    edit(model, edits)
    with staged(model, output, output.parent, lambda part: None) as made:
        made.move_to(output, force=force)
    return output


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
