"""Which kind of model something is, told without importing a framework.

object      by the names of its classes
path        by its suffix: .onnx, .prototxt
pair        (prototxt path, caffemodel path)
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Any

from bnfold.errors import UnsupportedModelError


class ModelKind(Enum):
    """What `fold` takes."""

    MODULE = "torch.nn.Module"
    PROGRAM = "torch.export.ExportedProgram"
    ONNX_PROTO = "onnx.ModelProto"
    ONNX_IR = "onnx_ir.Model"
    ONNX_FILE = "path of an .onnx file"
    CAFFE_FILES = "path of a .prototxt file, or the pair (prototxt, caffemodel)"

    @property
    def is_file(self) -> bool:
        """Whether the model is read from a file, and the result written to one."""
        return self in (ModelKind.ONNX_FILE, ModelKind.CAFFE_FILES)


_CLASSES = {
    "torch.nn.modules.module.Module": ModelKind.MODULE,
    "torch.export.exported_program.ExportedProgram": ModelKind.PROGRAM,
    "onnx.onnx_ml_pb2.ModelProto": ModelKind.ONNX_PROTO,
    "onnx_ir.Model": ModelKind.ONNX_IR,
    "onnx_ir._core.Model": ModelKind.ONNX_IR,
}

_SUFFIXES = {".onnx": ModelKind.ONNX_FILE, ".prototxt": ModelKind.CAFFE_FILES}


def kind_of(model: Any) -> ModelKind:
    """The kind of a model. Raises UnsupportedModelError for anything else."""
    if isinstance(model, tuple) and len(model) == 2 and all(_is_path(part) for part in model):
        return ModelKind.CAFFE_FILES
    if _is_path(model):
        kind = _SUFFIXES.get(Path(model).suffix.lower())
        if kind is not None:
            return kind
        raise UnsupportedModelError(
            f"{os.fspath(model)!r} does not end in {' or '.join(_SUFFIXES)}",
            "pass the path of such a file, or load the model and pass it",
        )
    for base in type(model).__mro__:
        kind = _CLASSES.get(f"{base.__module__}.{base.__qualname__}")
        if kind is not None:
            return kind
    raise UnsupportedModelError(
        f"{type(model).__module__}.{type(model).__qualname__} is not a model that bnfold knows",
        f"pass one of: {', '.join(kind.value for kind in ModelKind)}",
    )


def caffe_files(model: Any) -> tuple[Path, Path]:
    """The network and its weights: given as a pair, or side by side with one stem."""
    if isinstance(model, tuple):
        network, weights = model
        return Path(network), Path(weights)
    return Path(model), Path(model).with_suffix(".caffemodel")


def folded_beside(path: Path) -> Path:
    """Where a folded file goes if nobody says: model.folded.onnx beside model.onnx."""
    return path.with_name(f"{path.stem}.folded{path.suffix}")


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)
