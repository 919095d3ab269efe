"""Caffe on the command line; see `_kinds` for what each function is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bnfold.cli._compare import Difference
from bnfold.errors import UnsupportedModelError
from bnfold.report import FoldReport

SUFFIX = ".prototxt"


def check_options(arguments: argparse.Namespace) -> None:
    """Not supported yet."""
    raise UnsupportedModelError(
        f"{arguments.source}: Caffe models are not supported yet", "convert the model to ONNX"
    )


def default_output(arguments: argparse.Namespace) -> Path:
    """Beside the network."""
    return Path(arguments.source).with_suffix(".folded.prototxt")


def open_source(arguments: argparse.Namespace) -> Any:
    """Read the network and its weights."""
    raise NotImplementedError


def inspect(source: Any, arguments: argparse.Namespace) -> FoldReport:
    """The report."""
    raise NotImplementedError


def fold(source: Any, arguments: argparse.Namespace) -> tuple[Any, FoldReport]:
    """The folded network."""
    raise NotImplementedError


def compare(source: Any, folded: Any, arguments: argparse.Namespace) -> Difference | str:
    """Run both."""
    raise NotImplementedError


def write(folded: Any, output: Path, arguments: argparse.Namespace) -> None:
    """Two files: network and weights."""
    raise NotImplementedError
