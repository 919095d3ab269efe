"""What a model can be, and what a file can be."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum

from bnfold.errors import BnfoldError, ModelUnreadableError


class ModelKind(Enum):
    """What `fold` takes."""

    MODULE = "torch.nn.Module"
    PROGRAM = "torch.export.ExportedProgram"
    ONNX_PROTO = "onnx.ModelProto"
    ONNX_IR = "onnx_ir.Model"
    ONNX_FILE = "path of an .onnx file"
    CAFFE_FILES = "path of a .prototxt file, or the pair (prototxt, caffemodel)"

    @property
    def suffix(self) -> str:
        """What the name of a folded file ends in."""
        if self in (ModelKind.MODULE, ModelKind.PROGRAM):
            return ".pt2"
        return ".prototxt" if self is ModelKind.CAFFE_FILES else ".onnx"

    @property
    def is_file(self) -> bool:
        """Whether the model is read from a file, and the result written to one."""
        return self in (ModelKind.ONNX_FILE, ModelKind.CAFFE_FILES)


@dataclass(frozen=True, slots=True)
class Format:
    """What a file is."""

    name: str
    """For a sentence: 'a TensorFlow Lite model'."""
    next_step: str = ""
    """The way from there to a fold; empty for what bnfold reads."""
    kind: ModelKind | None = None
    """What bnfold reads it as; None for what it does not read."""

    def refusal(self, path: str | os.PathLike[str]) -> BnfoldError:
        """The error that says so."""
        return ModelUnreadableError(os.fspath(path), self.name, self.next_step)
