"""Which file of this package handles a SOURCE: one per kind of model, with the same functions."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from bnfold.cli._compare import Difference
from bnfold.report import FoldReport


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

    def compare(self, source: Any, folded: Any, arguments: argparse.Namespace) -> Difference | str:
        """Run both; or why nothing was compared."""

    def write(self, folded: Any, output: Path, arguments: argparse.Namespace) -> None:
        """Write the folded model, whole or not at all."""


def kind_for(source: str) -> Kind:
    """The handler of a SOURCE, by its suffix; what has no suffix of its own is PyTorch's."""
    name = _BY_SUFFIX.get(Path(source).suffix.lower(), "_torch")
    return cast(Kind, import_module(f"bnfold.cli.{name}"))


_BY_SUFFIX = {".onnx": "_onnx", ".prototxt": "_caffe", ".caffemodel": "_caffe"}
