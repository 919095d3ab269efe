"""PyTorch behind the door; see `bnfold.frontend` for what each function is.

A model is a module or an exported program. With an output, what is compared and written is a
program: that of the folded module, where a module was folded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from bnfold._output_files import write_whole
from bnfold.errors import UnsupportedModelError
from bnfold.frontend import Compare, Counts, Look, NotRunError, Request
from bnfold.frontends.torch.entries import split_inputs
from bnfold.frontends.torch.example_inputs import check_unread
from bnfold.frontends.torch.fold import fold_module, inspect_module
from bnfold.frontends.torch.garbage import old_objects_set_aside
from bnfold.frontends.torch.held import is_a
from bnfold.frontends.torch.opened_inputs import closed, opened
from bnfold.frontends.torch.program import fold_program, inspect_program
from bnfold.network import op_counts
from bnfold.report import FoldReport

if TYPE_CHECKING:
    from bnfold.bench.settings import Subject, Wishes
    from bnfold.verify.result import VerifyResult
    from bnfold.verify.runner import InputSpec, Runner

IS_TIMED = True
Model = nn.Module | ExportedProgram


def check(model: Model, request: Request) -> None:
    """Nothing lies where an output might go but the output."""


def inspect(model: Model, request: Request) -> Look:
    """Decided on; a module is read on a copy."""
    with old_objects_set_aside(), _usual_tensors():
        request = _usual_inputs(request)
        if isinstance(model, nn.Module):
            report = inspect_module(model, replace(request, inplace=False))
        else:
            check_unread(model, request.inputs)
            report = inspect_program(model, request)
    return Look(report.planned(), _counts(report), ())


def fold(model: Model, request: Request) -> Folded:
    """The folded module or program."""
    folded: Model
    with old_objects_set_aside(), _usual_tensors():
        request = _usual_inputs(request)
        if isinstance(model, nn.Module):
            folded, report = fold_module(model, request)
        else:
            check_unread(model, request.inputs)
            folded, report = fold_program(model, request)
    return Folded(model, request, folded, report)


@contextmanager
def _usual_tensors() -> Iterator[None]:
    """Tensors made in here are as others, whatever mode the caller is in.

    Made in inference mode, weights could never be trained or loaded again.
    """
    if torch.get_default_device().type == "meta":
        raise UnsupportedModelError(
            "the default device is 'meta', where nothing is computed",
            "fold outside of `with torch.device('meta')`",
        )
    with torch.inference_mode(False):
        yield


def _usual_inputs(request: Request) -> Request:
    """Objects among them are opened, and what was made in inference mode is copied.

    A program may write to its inputs, which those of inference mode do not allow elsewhere.
    """
    copies: dict[int, Tensor] = {}

    def usual(leaf: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass():  # one that is not initialised may raise
            if not is_a(leaf, Tensor) or not leaf.is_inference():
                return leaf
        return copies.setdefault(id(leaf), leaf.clone())

    given = opened((request.inputs, request.also))
    inputs, also = pytree.tree_map(usual, given)
    return replace(request, inputs=inputs, also=also)


def _counts(report: FoldReport) -> tuple[Counts, Counts]:
    """Ops as bnfold follows them: calls of modules, and of functions elsewhere."""
    if report.network is None:
        return {}, {}
    return op_counts(report.network.before), op_counts(report.network.after)


@dataclass(slots=True)
class Folded:
    """A folded module or program."""

    original: Model
    request: Request
    model: Model
    report: FoldReport
    files: Sequence[Path] = ()
    program: ExportedProgram | None = field(default=None, init=False)
    """The folded model as it will be written, once somebody asks."""

    @property
    def counts(self) -> tuple[Counts, Counts]:
        """See `_counts`."""
        return _counts(self.report)

    def runners(self) -> tuple[Runner, Runner]:
        """What runs the original and the program that will be written."""
        inputs = self.request.inputs
        try:
            original = runner(self.original, "the original", inputs, None)
            return original, runner(self._program(), "the folded model", inputs, None)
        except UnsupportedModelError as error:
            raise NotRunError(str(error)) from error

    def judged_quickly(self) -> None:
        """There is no quicker judge."""

    def proven(self, found: VerifyResult, compare: Compare) -> tuple[Folded, VerifyResult | str]:
        """Steps that the comparison blames are kept."""
        if self.request.verify:
            return self, found
        made = fold(self.original, replace(self.request, verify=True))
        # The verdict is that on what will be written.
        made.report = replace(made.report, verdict=None, unverified=None)
        return made, compare(made)

    def deliver(self) -> Model | Path:
        """The folded model, or the .pt2 file that was asked for."""
        output = self.request.output
        if output is None:
            return self.model
        program = self._program()

        def save(file: IO[bytes]) -> None:
            patient = _Patient(file)
            torch.export.save(program, patient)  # type: ignore[arg-type]  # all it does is write
            if patient.failure is not None:
                raise patient.failure

        write_whole(output, save)
        return output

    @property
    def written(self) -> Sequence[Path]:
        """One .pt2 file."""
        return () if self.request.output is None else (self.request.output,)

    def close(self) -> None:
        """There is nothing outside of memory."""

    def _program(self) -> ExportedProgram:
        if self.program is None:
            self.program = _as_program(self.model, self.request.inputs)
        return self.program


def _as_program(model: Model, inputs: Any) -> ExportedProgram:
    """The folded model as it will be written."""
    if isinstance(model, ExportedProgram):
        return model
    args, kwargs = closed(split_inputs(inputs))
    try:
        return torch.export.export(model, args, kwargs)
    except Exception as error:  # torch.export raises what tracing a model's code may raise
        text = str(error).strip().splitlines()
        raise UnsupportedModelError(
            f"{type(model).__name__} was folded, but torch.export cannot capture it:"
            f" {text[0] if text else type(error).__name__}".rstrip("."),
            "fold it in Python, with bnfold.fold, which needs no export",
        ) from error


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


def runner(model: Model, name: str, inputs: Any, like: Sequence[InputSpec] | None) -> Runner:
    """On the inputs that are given, on the program's own, or on such as look like others."""
    from bnfold.frontends.torch.runner import module_runner, program_runner

    if isinstance(model, nn.Module):
        return module_runner(model, inputs, name, like)
    return program_runner(model, inputs, name)


def subject(
    models: Mapping[str, Any], inputs: Any, runtimes: Sequence[str] | None, wishes: Wishes
) -> Subject:
    """Eager, compiled, replayed."""
    from bnfold.frontends.torch.runtimes import EAGER, TorchSubject

    return TorchSubject(models, inputs, runtimes=runtimes or (EAGER,), wishes=wishes)
