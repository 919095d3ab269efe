"""PyTorch on the command line: .pt2 files and factories; see `_kinds` for what each function is."""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bnfold import api
from bnfold.cli import _torch_source
from bnfold.cli._kinds import is_factory
from bnfold.cli._options import refuse_weights
from bnfold.cli._output import say, write_whole
from bnfold.cli._torch_source import Source
from bnfold.cli._verify import verify_fold
from bnfold.errors import UnsupportedModelError, UsageError
from bnfold.network import op_counts

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from bnfold.report import FoldReport
    from bnfold.verify.result import VerifyResult
    from bnfold.verify.runner import InputSpec, Runner

SUFFIX = ".pt2"


def check_options(arguments: argparse.Namespace) -> None:
    """--input and --eval are for factories, WEIGHTS for Caffe."""
    refuse_weights(arguments)
    _torch_source.check_options(arguments.source, arguments.inputs, eval_mode=arguments.eval_mode)


def default_output(arguments: argparse.Namespace) -> Path:
    """Beside the file; a factory has no such place."""
    if is_factory(arguments.source):
        raise UsageError(
            f"{arguments.source} is no file that an output could lie beside",
            "say where with -o folded.pt2",
        )
    if not Path(arguments.source).name:
        raise _torch_source.no_file(arguments.source)
    return Path(arguments.source).with_suffix(".folded.pt2")


def open_source(arguments: argparse.Namespace) -> Source:
    """Load the file, or call the factory."""
    return _torch_source.open_source(
        arguments.source, arguments.inputs, eval_mode=arguments.eval_mode
    )


def inspect(source: Source, arguments: argparse.Namespace) -> FoldReport:
    """The report."""
    return api.inspect(source.model, source.args, clip=arguments.clip)


@dataclass(slots=True)
class Folded:
    """A folded program as it will be written."""

    program: ExportedProgram
    found: VerifyResult | str = "not yet"
    """What comparing it with the source showed; or why it could not be compared."""


def fold(source: Source, arguments: argparse.Namespace) -> tuple[Folded, FoldReport]:
    """The folded program and the report; steps that the verification blames are kept."""
    folded, report = _fold(source, arguments, prove=False)
    if arguments.verify:
        folded.found = _verify(source, folded.program)
        if not isinstance(folded.found, str) and not folded.found.equal:
            folded, report = _fold(source, arguments, prove=True)
            folded.found = _verify(source, folded.program)
    return folded, report


def _fold(
    source: Source, arguments: argparse.Namespace, *, prove: bool
) -> tuple[Folded, FoldReport]:
    given: Any = source.model  # a program brings no inputs here, so `fold` takes either
    model, report = api.fold(given, source.args, clip=arguments.clip, verify=prove)
    # The verdict is that on what will be written.
    return Folded(_as_program(source, model)), replace(report, verdict=None, unverified=None)


def verify(source: Source, folded: Folded, arguments: argparse.Namespace) -> VerifyResult | str:
    """What comparing the source with what will be written showed, on the example inputs."""
    return folded.found


def _verify(source: Source, folded: ExportedProgram) -> VerifyResult | str:
    from bnfold.frontends.torch.runner import call_runner, program_runner

    name = f"the folded {source.name}"
    try:
        original = runner(source, None)
        if source.args is None:
            return verify_fold(original, program_runner(folded, None, name))
    except UnsupportedModelError as error:
        say(f"{error}")
        return error.problem
    return verify_fold(original, call_runner(folded, source.args, source.kwargs, name))


def runner(source: Source, like: Sequence[InputSpec] | None) -> Runner:
    """What runs it."""
    import torch

    from bnfold.frontends.torch.runner import call_runner, module_runner, program_runner

    model = source.model
    if source.args is not None:
        return call_runner(model, source.args, source.kwargs, source.name)
    if isinstance(model, torch.nn.Module):
        return module_runner(model, None, source.name, like)
    return program_runner(model, None, source.name)


def ops(
    source: Source, folded: Folded | None, report: FoldReport
) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Ops as bnfold follows them: calls of modules, and of functions elsewhere."""
    if report.network is None:
        return {}, {}
    before, after = report.network.before, report.network.after
    return op_counts(before), op_counts(after)


def files_read(source: Source, arguments: argparse.Namespace) -> list[Path]:
    """The .pt2 file; a factory has none."""
    return [] if is_factory(arguments.source) else [Path(arguments.source)]


def files_written(folded: Folded, output: Path) -> list[Path]:
    """One .pt2 file."""
    return [output]


def release(folded: object) -> None:
    """There is nothing outside of memory."""


def write(folded: Folded, output: Path, arguments: argparse.Namespace) -> None:
    """One .pt2 file."""
    import torch

    def save(file: IO[bytes]) -> None:
        patient = _Patient(file)
        torch.export.save(folded.program, patient)  # type: ignore[arg-type]  # all it does is write
        if patient.failure is not None:
            raise patient.failure

    write_whole(output, save)


class _Patient(io.RawIOBase):
    """A file that keeps what goes wrong to itself until it is asked.

    PyTorch writes from a destructor in C++, where an exception (a full disk, Ctrl-C) aborts the
    process.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.failure: BaseException | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        return place  # back to the start, when all is written

    def write(self, content: Any) -> int:
        try:
            if self.failure is None:
                self.file.write(content)
        except BaseException as error:
            self.failure = error
        return len(content)


def _as_program(source: Source, model: Any) -> ExportedProgram:
    """The folded model as it will be written."""
    import torch

    if isinstance(model, torch.export.ExportedProgram):
        return model
    try:
        return torch.export.export(model, source.args or (), source.kwargs)
    except Exception as error:  # torch.export raises what tracing a model's code may raise
        text = str(error).strip().splitlines()
        raise UnsupportedModelError(
            f"{source.name} was folded, but torch.export cannot capture it:"
            f" {text[0] if text else type(error).__name__}".rstrip("."),
            "fold it in Python, with bnfold.fold, which needs no export",
        ) from error
