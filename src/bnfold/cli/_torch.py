"""PyTorch on the command line: .pt2 files and factories; see `_kinds` for what each function is."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bnfold import api
from bnfold.cli import _torch_source
from bnfold.cli._compare import Difference, Output, check_equal
from bnfold.cli._options import refuse_weights
from bnfold.cli._output import say, write_whole
from bnfold.cli._torch_source import Source, is_factory
from bnfold.errors import UnsupportedModelError, UsageError
from bnfold.report import FoldReport

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

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


def fold(source: Source, arguments: argparse.Namespace) -> tuple[ExportedProgram, FoldReport]:
    """The folded program as it will be written, and the report."""
    model, report = api.fold(source.model, source.args, clip=arguments.clip)
    return _as_program(source, model), report


def compare(
    source: Source, folded: ExportedProgram, arguments: argparse.Namespace
) -> Difference | str:
    """Compare what came in with what will be written, on the example inputs."""
    import torch

    if source.args is None:
        say(f"{source.name} carries no example inputs: nothing was run, nothing was compared")
        return "the program carries no example inputs"
    original = source.model
    runnable = original if isinstance(original, torch.nn.Module) else original.module()
    dtypes = frozenset(_name(tensor.dtype) for tensor in runnable.state_dict().values())
    return check_equal(
        source.name,
        lambda: _run(runnable, source),
        lambda: _run(folded.module(), source),
        dtypes,
    )


def write(folded: ExportedProgram, output: Path, arguments: argparse.Namespace) -> None:
    """One .pt2 file."""
    import torch

    def save(file: IO[bytes]) -> None:
        patient = _Patient(file)
        torch.export.save(folded, patient)  # type: ignore[arg-type]  # all it does is write
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


def _run(model: Callable[..., Any], source: Source) -> list[Output]:
    import torch
    from torch.utils import _pytree

    args, kwargs = _pytree.tree_map_only(
        torch.Tensor, torch.Tensor.clone, (source.args or (), source.kwargs)
    )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same randomness for both, if there is any
        leaves = _pytree.tree_leaves(model(*args, **kwargs))
    return [_output(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _output(tensor: torch.Tensor) -> Output:
    import torch

    plain = tensor.detach().cpu()
    wide = plain.float() if plain.dtype == torch.bfloat16 else plain
    return Output(wide.numpy(), _name(tensor.dtype))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
