"""Which kind of model something is, told without importing a framework."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import onnx_ir
import pytest
import torch

import bnfold
from bnfold._kinds import ModelKind, caffe_files, folded_beside, kind_of
from bnfold.errors import ModelUnreadableError, UnsupportedModelError, UsageError


class Strange(torch.nn.Module):
    """A subclass is one too."""


@pytest.mark.parametrize(
    "thing", [3, None, "model.bin", Path("model"), ("a", "b", "c"), [], ("a", 1)]
)
def test_things_that_are_no_model(thing):
    with pytest.raises((UnsupportedModelError, ModelUnreadableError)):
        kind_of(thing)


@pytest.mark.parametrize(
    ("thing", "kind"),
    [
        (Strange(), ModelKind.MODULE),
        (onnx.ModelProto(), ModelKind.ONNX_PROTO),
        (onnx_ir.Model(onnx_ir.Graph([], [], nodes=[]), ir_version=8), ModelKind.ONNX_IR),
        ("model.onnx", ModelKind.ONNX_FILE),
        (Path("model.ONNX"), ModelKind.ONNX_FILE),
        ("net.prototxt", ModelKind.CAFFE_FILES),
        (("net.txt", Path("weights.bin")), ModelKind.CAFFE_FILES),
    ],
)
def test_kinds(thing, kind):
    assert kind_of(thing) is kind


def test_the_two_files_of_caffe():
    assert caffe_files("a/net.prototxt") == (Path("a/net.prototxt"), Path("a/net.caffemodel"))
    assert caffe_files(("net.txt", "w.bin")) == (Path("net.txt"), Path("w.bin"))


def test_the_place_beside_a_file():
    def beside(name: str, suffix: str) -> str:
        return folded_beside(Path(name), suffix).as_posix()

    assert beside("a/model.v1.onnx", ".onnx") == "a/model.v1.folded.onnx"
    assert beside("model", ".onnx") == "model.folded.onnx"
    assert beside("deploy.prototxt.txt", ".prototxt") == "deploy.folded.prototxt"
    assert caffe_files("d/deploy.prototxt.txt")[1] == Path("d/deploy.caffemodel")


def test_telling_imports_nothing():
    code = (
        "import sys; from bnfold._kinds import kind_of; kind_of('m.onnx'); kind_of(('a', 'b'))\n"
        "print(*{'torch', 'onnx', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("option", [{"also": [1]}, {"inplace": True}, {"output": "o.onnx"}])
def test_options_that_mean_nothing(option):
    with pytest.raises(UsageError, match="means nothing for this kind of model"):
        bnfold.fold(onnx.ModelProto(), **option)
