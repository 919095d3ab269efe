"""Which file of this package handles a SOURCE: one per kind of model, with the same functions."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from bnfold.formats import ModelKind, kind_of_file, refusal

if TYPE_CHECKING:
    from bnfold.report import FoldReport
    from bnfold.verify.result import VerifyResult
    from bnfold.verify.runner import InputSpec, Runner

Counts = Mapping[str, int]


class Kind(Protocol):
    """What `_torch`, `_onnx` and `_caffe` provide; `Any` is a value of their own."""

    SUFFIX: str
    """What the name of an output ends in."""

    def check_options(self, arguments: argparse.Namespace) -> None:
        """Raise UsageError for options that mean nothing for this kind, before any work."""

    def default_output(self, arguments: argparse.Namespace) -> Path:
        """Where the folded model goes without -o; UsageError if there is no such place."""

    def open_source(self, arguments: argparse.Namespace) -> Any:
        """Read the model. Raises UsageError, ModelUnreadableError, MissingExtraError."""

    def inspect(self, source: Any, arguments: argparse.Namespace) -> FoldReport:
        """What a fold would do."""

    def fold(self, source: Any, arguments: argparse.Namespace) -> tuple[Any, FoldReport]:
        """The folded model, ready to be compared and written, and the report."""

    def verify(self, source: Any, folded: Any, arguments: argparse.Namespace) -> VerifyResult | str:
        """Run both; or why nothing was verified."""

    def ops(self, source: Any, folded: Any, report: FoldReport) -> tuple[Counts, Counts]:
        """How many ops of each type there are, before and after; `folded` None: before alone."""

    def files_read(self, source: Any, arguments: argparse.Namespace) -> list[Path]:
        """The files that the model was read from; a factory has none."""

    def files_written(self, folded: Any, output: Path) -> list[Path]:
        """The files that `write` made for an output."""

    def release(self, folded: Any) -> None:
        """Leave nothing of it behind that was not written."""

    def runner(self, source: Any, like: Sequence[InputSpec] | None) -> Runner:
        """What runs the source; where it leaves its inputs open, they are like others."""

    def write(self, folded: Any, output: Path, arguments: argparse.Namespace) -> None:
        """Write the folded model, whole or not at all."""


def kind_for(source: str) -> Kind:
    """The handler of a SOURCE: what the file is, or PyTorch's for `package.module:factory`.

    Raises ModelUnreadableError or UsageError for what bnfold does not read.
    """
    if not is_factory(source) and not os.path.lexists(source):
        raise refusal(source)
    kind = ModelKind.MODULE if is_factory(source) else kind_of_file(source)
    return cast(Kind, import_module(f"bnfold.cli.{_HANDLERS[kind]}"))


def is_factory(source: str) -> bool:
    """Whether SOURCE is written like `package.module:attribute`, and no file has that name."""
    return bool(re.fullmatch(r"[\w.]+:[\w.]+", source)) and not Path(source).exists()


_HANDLERS = {
    ModelKind.ONNX_FILE: "_onnx",
    ModelKind.CAFFE_FILES: "_caffe",
    ModelKind.PROGRAM: "_torch",
    ModelKind.MODULE: "_torch",
}
