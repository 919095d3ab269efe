"""The options that edit an ONNX model before it is folded, and the edited model as a file.

What comes behind (inspect, fold, the comparison, the report) sees the edited model as the original;
a conversion to another opset is compared with what was before it. The edited file lies in a folder
for temporary files while the command works.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.cli._numbers import whole
from bnfold.cli._output import progress, say
from bnfold.cli._source import Source, named_shape
from bnfold.cli._stream import called
from bnfold.errors import ExampleInputError, UnsupportedModelError, UsageError
from bnfold.formats import ModelKind
from bnfold.frontend import frontend_of

if TYPE_CHECKING:
    from bnfold.frontends.onnx.edit_file import EditedFile
    from bnfold.report import FoldReport
    from bnfold.verify.runner import Runner

_REPEATED = (
    (
        *("--fix-input", "fixed", "[NAME:]SHAPE"),
        "the sizes of an input from now on, like image:1x3x224x224 or 1,3,224,224",
    ),
    (
        *("--from", "starts", "TENSOR"),
        "make this tensor an input, and drop what made it; once per tensor",
    ),
    (
        *("--to", "ends", "TENSOR"),
        "make this tensor an output, the only one, or one of those named so",
    ),
)
"""Options that may be given several times: each with its attribute, its value, and its help."""
_OPTIONS = (*(option for option, *_ in _REPEATED), "--opset")


def add_edit_options(parser: argparse.ArgumentParser) -> None:
    """What to do with a model before anything else."""
    group = parser.add_argument_group("editing an ONNX model before the fold")
    for option, name, shown, said in _REPEATED:
        group.add_argument(option, action="append", default=[], dest=name, metavar=shown, help=said)
    group.add_argument(
        "--opset", type=whole, metavar="N", help="convert to this version of ONNX's operators"
    )


@dataclass(frozen=True, slots=True)
class Edited:
    """What comes behind works on."""

    source: Source
    file: EditedFile | None = None
    """None where nothing was edited."""

    @property
    def files(self) -> Sequence[Path]:
        """What was read; none where nothing was edited."""
        return self.file.read if self.file else ()

    def noted(self, report: FoldReport) -> FoldReport:
        """The report, with what was done before."""
        done = self.file.done if self.file else ()
        return replace(report, notes=(*(f"edited first: {line}" for line in done), *report.notes))


@contextmanager
def edited(
    source: Source, arguments: argparse.Namespace, output: Path | None = None
) -> Iterator[Edited]:
    """The source, edited as the options say; the output may not hide what was read.

    Raises UsageError, and UnsupportedModelError for what the model cannot be.
    """
    asked = [
        option
        for option, value in zip(
            _OPTIONS,
            (arguments.fixed, arguments.starts, arguments.ends, arguments.opset),
            strict=True,
        )
        if value not in (None, [])
    ]
    if not asked:
        yield Edited(source)
        return
    if source.kind is not ModelKind.ONNX_FILE:
        raise UsageError(
            f"{asked[0]} is for .onnx files, and {source.name} is none", "leave it out"
        )
    shapes = dict(named_shape(text, "--fix-input") for text in arguments.fixed)
    frontend_of(source.kind)  # says which extra is missing
    from bnfold.frontends.onnx.edit_file import edit_file
    from bnfold.frontends.onnx.edit_model import Edits

    edits = Edits(
        inputs=arguments.starts, outputs=arguments.ends, shapes=shapes, opset=arguments.opset
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with progress(f"editing {source.name}") as step:
            made = edit_file(
                source.path, edits, folder, stack, step, output=output, force=arguments.force
            )
        stack.enter_context(called(str(made.path), source.name))
        given = dict(named_shape(text) for text in source.inputs)
        more = [
            f"{name}:{'x'.join(map(str, shape))}"
            for name, shape in made.shapes.items()
            if name not in given
        ]
        yield Edited(replace(source, place=made.path, inputs=(*source.inputs, *more)), made)


def check_edit(edited: Edited) -> None:
    """See that what was edited still runs, and computes what it did in another opset.

    Raises UsageError where it does not run any more, and UnsupportedModelError where a conversion
    is proven to compute something else.
    """
    file, source = edited.file, edited.source
    if file is None:
        return
    _, shapes = source.open()
    with progress(f"running the edited {source.name}"):
        made = source.frontend.runner(file.path, f"the edited {source.name}", shapes, None)
        why = _why_not_run(made)
        if why:
            original = source.frontend.runner(file.read[0], source.name, None, None)
            if _why_not_run(original):
                return  # which is said where the fold is compared
            raise UsageError(
                f"{source.name}: edited so, it does not run any more: {why}",
                "edit it in another way, or leave the check out with --no-verify",
            )
    if file.before is not None:
        with progress(f"verifying the conversion of {source.name}"):
            original = source.frontend.runner(file.before, source.name, shapes, made.specs)
            _check_conversion(source, original, made)


def _why_not_run(runner: Runner) -> str:
    """What ONNX Runtime says, in a line; empty if it runs the model."""
    from bnfold.verify.inputs import choose_samples

    try:
        runner.own().run(choose_samples(runner.specs, 1, 0)[0])
    except Exception as error:  # whatever it raises
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return line.rpartition("Status Message: ")[2].rstrip(". ")
    return ""


def _check_conversion(source: Source, before: Runner, after: Runner) -> None:
    from bnfold.verify.api import Comparison

    try:
        result = Comparison(samples=1, layers=False).of(before, after)
    except (ExampleInputError, UnsupportedModelError, UsageError) as error:
        say(f"{source.name}: its conversion was not compared: {error.problem}")
        return
    if result.proven and not result.equal:
        raise UnsupportedModelError(
            f"{source.name}: converted by onnx, it does not compute the same ({result.summary})",
            "export the model with that opset",
        )
    if not result.equal:
        say(f"warning: {source.name}: its conversion: {result.summary}")
