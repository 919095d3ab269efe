"""ONNX on the command line; see `_kinds` for what each function is.

The verification runs the files themselves: the original, and the folded model where it lies until
it is moved into its place.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold._kinds import folded_beside
from bnfold._places import is_same_file
from bnfold.cli._options import refuse_weights
from bnfold.cli._output import progress, say
from bnfold.cli._verify import verify_fold
from bnfold.errors import ExampleInputError, UsageError

if TYPE_CHECKING:
    from bnfold.core.plan import Plan
    from bnfold.frontends.onnx.read import OnnxModel
    from bnfold.frontends.onnx.sites import Lifted
    from bnfold.frontends.onnx.write import Staged
    from bnfold.report import FoldReport
    from bnfold.verify.result import VerifyResult
    from bnfold.verify.runner import InputSpec, Runner

SUFFIX = ".onnx"


@dataclass(slots=True)
class Source:
    """A model, and the shapes that the user gave."""

    path: Path
    model: OnnxModel
    pins: dict[str, tuple[int, ...]]
    counts: Counter[str]
    """Ops by type, as they were read: a fold works in the bodies of `model` itself."""


@dataclass(slots=True, weakref_slot=True)
class Folded:
    """A folded model on the disk; its files vanish with it, unless they are moved away."""

    staged: Staged
    shapes: dict[str, tuple[int, ...]]
    """Of the inputs, as the model was analysed."""
    lifted: Lifted
    plan: Plan
    files: ExitStack


def check_options(arguments: argparse.Namespace) -> None:
    """--eval is for factories, WEIGHTS for Caffe."""
    refuse_weights(arguments)
    if arguments.eval_mode:
        raise UsageError("--eval is for package.module:factory", "leave it out")
    for text in arguments.inputs:
        _parse(text)
    output = arguments.output if "output" in arguments else None
    if output is not None and is_same_file(output, Path(arguments.source)):
        raise UsageError(f"{output} is the model itself", "name another output with -o")


def default_output(arguments: argparse.Namespace) -> Path:
    """Beside the model."""
    return folded_beside(Path(arguments.source), SUFFIX)


def open_source(arguments: argparse.Namespace) -> Source:
    """Read the model, but not its large tensors."""
    from bnfold.frontends import onnx  # noqa: F401  # says which extra is missing, if onnx is
    from bnfold.frontends.onnx.read import read_file

    path = Path(arguments.source)
    model = read_file(path)
    return Source(path, model, input_shapes(arguments.inputs, model), _counted(model))


def inspect(source: Source, arguments: argparse.Namespace) -> FoldReport:
    """The report."""
    from bnfold.frontends.onnx.fold import prepare

    folding = prepare(source.model, source.pins, clip=arguments.clip)
    folding.check()
    return folding.report


def fold(source: Source, arguments: argparse.Namespace) -> tuple[Folded, FoldReport]:
    """The folded model, complete on the disk but not yet in its place, and the report."""
    from bnfold.frontends.onnx.fold import check_data_target, check_name, prepare

    if not arguments.dry_run:
        target = arguments.output or default_output(arguments)
        check_name(target)
        check_data_target(source.model, target, force=arguments.force)
    folding = prepare(source.model, source.pins, clip=arguments.clip)
    stack = ExitStack()
    try:
        if arguments.dry_run:
            output = Path(f"model{SUFFIX}")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            output = arguments.output or default_output(arguments)
            folder = output.parent
        with progress(f"writing {output}") as step:
            staged = stack.enter_context(folding.staged(output, folder, step))
        folded = Folded(staged, folding.shapes.choices[0], folding.lifted, folding.plan, stack)
    except BaseException:
        stack.close()
        raise
    weakref.finalize(folded, stack.close)
    return folded, folding.report


def verify(source: Source, folded: Folded, arguments: argparse.Namespace) -> VerifyResult | str:
    """Run the files themselves, the folded one where it lies until it is moved."""
    from bnfold.frontends.onnx.runner import file_runner, storage

    try:
        for path in (source.path, folded.staged.model):
            if not _is_text(path):
                return f"ONNX Runtime opens no file whose path is no UTF-8: {path}"
        original = file_runner(source.path, folded.shapes)
    except UsageError as error:
        say(f"{source.path} was not run: {error.problem}")
        return error.problem
    original.known = [storage(folded.lifted, folded.plan)]
    name = f"the folded {source.path}"
    other = file_runner(folded.staged.model, folded.shapes, name=name)
    try:
        return verify_fold(original, other)
    except ExampleInputError as error:  # says nothing about the fold
        reason = f"the original cannot be run: {_first_line(error.problem)}"
        say(f"{reason}; give the shapes of its inputs with --input if that is why")
        return reason


def runner(source: Source, like: Sequence[InputSpec] | None) -> Runner:
    """What runs it."""
    from bnfold.frontends.onnx.runner import file_runner

    return file_runner(source.path, source.pins, like=like)


def ops(
    source: Source, folded: Folded | None, report: FoldReport
) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Nodes by operator, those of bodies and functions too."""
    from bnfold.frontends.onnx.read import read_file

    after = source.counts if folded is None else _counted(read_file(folded.staged.model))
    return source.counts, after


def _counted(model: OnnxModel) -> Counter[str]:
    graphs: list[Any] = [model.proto.graph, *model.proto.functions]
    counts: Counter[str] = Counter()
    while graphs:
        for node in graphs.pop().node:
            counts[node.op_type] += 1
            for attribute in node.attribute:
                graphs += [attribute.g, *attribute.graphs]
    return counts


def files_read(source: Source, arguments: argparse.Namespace) -> list[Path]:
    """The message, and where its external data lies."""
    from bnfold.frontends.onnx.bulk import FileBulk

    bulk = source.model.bulk.values()
    paths = {part.path for part in bulk if isinstance(part, FileBulk)} - {source.path}
    return [source.path, *sorted(paths)]


def files_written(folded: Folded, output: Path) -> list[Path]:
    """The message, and the external data, if there is any."""
    from bnfold.frontends.onnx.write import data_name

    data = [output.with_name(data_name(output.name))] if folded.staged.has_data else []
    return [output, *data]


def release(folded: Folded) -> None:
    """Remove what was not moved into its place."""
    folded.files.close()


def write(folded: Folded, output: Path, arguments: argparse.Namespace) -> None:
    """Move the files into their place."""
    folded.staged.move_to(output, force=arguments.force)


# -------------------------------------------------------------------- inputs


def _parse(text: str) -> tuple[str, tuple[int, ...]]:
    """`name:1x3x224x224`, or a shape alone; names may hold colons themselves."""
    match = re.fullmatch(r"(?:(.+):)?([1-9][0-9]*(?:x[1-9][0-9]*)*)", text, re.ASCII)
    if match is None:
        raise UsageError(
            f"--input {text} is no shape of an input", "write it like image:1x3x224x224"
        )
    return match[1] or "", tuple(int(size) for size in match[2].split("x"))


def input_shapes(texts: list[str], model: OnnxModel) -> dict[str, tuple[int, ...]]:
    """Every `--input` under the name of its input."""
    graph = model.proto.graph
    given = {tensor.name for tensor in graph.initializer}
    names = [info.name for info in graph.input if info.name not in given]
    pins = {}
    for text in texts:
        name, shape = _parse(text)
        if not name and len(names) != 1:
            raise UsageError(
                f"--input {text}: which of the inputs {', '.join(names)}?",
                f"write it like {names[0] if names else 'name'}:{text}",
            )
        pins[name or names[0]] = shape
    return pins


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else ""
