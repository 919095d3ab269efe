"""Which kind of model something is, told without importing a framework.

object      by the names of its classes
path        by its content, or its suffix where there is no such file yet; see `formats`
pair        (prototxt path, caffemodel path)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bnfold.errors import UnsupportedModelError
from bnfold.formats import ModelKind, kind_of_file

__all__ = ["ModelKind", "caffe_files", "folded_beside", "kind_of", "opened", "renamed"]


_CLASSES = {
    "torch.nn.modules.module.Module": ModelKind.MODULE,
    "torch.export.exported_program.ExportedProgram": ModelKind.PROGRAM,
    "onnx.onnx_ml_pb2.ModelProto": ModelKind.ONNX_PROTO,
    "onnx_ir.Model": ModelKind.ONNX_IR,
    "onnx_ir._core.Model": ModelKind.ONNX_IR,
}


def kind_of(model: Any) -> ModelKind:
    """The kind of a model. Raises UnsupportedModelError for anything else."""
    if isinstance(model, tuple) and len(model) == 2 and all(_is_path(part) for part in model):
        return ModelKind.CAFFE_FILES
    if _is_path(model):
        held = kind_of_file(model)
        if held is ModelKind.PROGRAM:
            raise UnsupportedModelError(
                f"{os.fspath(model)!r} is an exported program on the disk",
                "load it with torch.export.load and pass the program",
            )
        return held
    for base in type(model).__mro__:
        kind = _CLASSES.get(f"{base.__module__}.{base.__qualname__}")
        if kind is not None:
            return kind
    raise UnsupportedModelError(
        f"{type(model).__module__}.{type(model).__qualname__} is not a model that bnfold knows",
        f"pass one of: {', '.join(kind.value for kind in ModelKind)}",
    )


def opened(kind: ModelKind, model: Any) -> Any:
    """The model as a frontend takes it: a path, both paths, or what is in memory."""
    if kind is ModelKind.CAFFE_FILES:
        return caffe_files(model)
    return Path(model) if kind is ModelKind.ONNX_FILE else model


def caffe_files(model: Any) -> tuple[Path, Path]:
    """The network and its weights: given as a pair, or side by side with one stem."""
    if isinstance(model, tuple):
        network, weights = model
        return Path(network), Path(weights)
    network = Path(model)
    return network, network.with_name(f"{_stem(network, '.prototxt')}.caffemodel")


def renamed(path: Path, suffix: str) -> Path:
    """The path with the suffix that it should have: deploy.prototxt of deploy.prototxt.txt."""
    return path.with_name(f"{_stem(path, suffix)}{suffix}")


def folded_beside(path: Path, suffix: str) -> Path:
    """Where a folded file goes if nobody says: model.folded.onnx beside model.onnx."""
    return path.with_name(f"{_stem(path, suffix)}.folded{suffix}")


def _stem(path: Path, suffix: str) -> str:
    """The name without the suffix that it should have: deploy of deploy.prototxt.txt."""
    name = path.name.removesuffix(".txt") if path.stem.lower().endswith(suffix) else path.name
    return Path(name).stem


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)
