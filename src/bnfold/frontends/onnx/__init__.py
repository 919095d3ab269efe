"""The ONNX frontend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnfold.core.solver import ClipMode
from bnfold.errors import UnsupportedModelError
from bnfold.report import FoldReport

Shapes = Mapping[str, Sequence[int]] | None


def _refuse() -> FoldReport:
    raise UnsupportedModelError("ONNX models are not supported yet", "wait for the next version")


def fold_model(model: Any, inputs: Shapes, *, clip: ClipMode) -> tuple[Any, FoldReport]:
    """See `bnfold.fold`."""
    return model, _refuse()


def fold_file(
    path: Path, output: Path, inputs: Shapes, *, clip: ClipMode, force: bool
) -> FoldReport:
    """See `bnfold.fold`."""
    return _refuse()


def inspect_model(model: Any, inputs: Shapes, *, clip: ClipMode) -> FoldReport:
    """See `bnfold.inspect`."""
    return _refuse()
