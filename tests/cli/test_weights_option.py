"""`--weights float32`: weights that a file holds in fewer bits than the network computes in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bnfold
from bnfold.cli import main
from bnfold.frontends.caffe.caffemodel import open_caffemodel
from tests.frontends.caffe import build
from tests.frontends.onnx.test_storage import FLOAT, embedding, kinds

TEXT = """
input: "x" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 }
layer { name: "c" type: "Convolution" bottom: "x" top: "c"
  convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "b" type: "BatchNorm" bottom: "c" top: "b" }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Caffe network in halves, and an ONNX model with a table in float16."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    layers = {
        "c": (rng.normal(size=(4, 3, 3, 3)), rng.normal(size=4)),
        "b": (rng.normal(size=4), rng.uniform(0.5, 2.0, 4), np.ones(1)),
    }
    content = [
        build.layer(name, "T", *(build.blob(array, data="half") for array in arrays))
        for name, arrays in layers.items()
    ]
    Path("net.prototxt").write_text(TEXT)
    Path("net.caffemodel").write_bytes(build.net(*content))
    onnx.save(embedding().model(), "table.onnx")
    return tmp_path


def stored(path: str = "net.folded.caffemodel") -> set[str]:
    return {blob.dtype.str for layer in open_caffemodel(path).layers for blob in layer.blobs}


def said(text: str) -> int:
    """How often the next step is named, however the lines are broken."""
    return " ".join(text.split()).count("--weights float32")


# -------------------------------------------------------------------- what is refused


class Net(nn.Module):
    """A convolution and a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))


def test_pytorch_has_no_other_storage(folder, capsys):
    x = torch.zeros(1, 3, 2, 2)
    program = torch.export.export(Net().eval(), (x,))
    for call in (
        lambda: bnfold.fold(Net().eval(), x, weights="float32"),
        lambda: bnfold.inspect(Net().eval(), x, weights="float32"),
        lambda: bnfold.fold(program, weights="float32"),
    ):
        with pytest.raises(bnfold.UsageError, match="in the dtype that it is stored in") as error:
            call()
        assert "model.float()" in str(error.value)
    torch.export.save(program, "net.pt2")
    for command in ("fold", "inspect"):
        assert main([command, "net.pt2", "--weights", "float32"]) == 2
        assert "--weights float32 means nothing here" in capsys.readouterr().err
    assert not Path("net.folded.pt2").exists()
    assert main(["fold", "net.pt2", "--weights", "stored"]) == 0


def test_other_values(folder, capsys):
    assert main(["fold", "net.prototxt", "--weights", "float64"]) == 2
    assert "'stored', 'float32'" in capsys.readouterr().err


# -------------------------------------------------------------------- what is said and done


@pytest.mark.parametrize("source", ["net.prototxt", "table.onnx"])
def test_the_default_names_the_next_step_in_the_summary_and_with_the_error(folder, capsys, source):
    assert main(["fold", source]) == 0
    out, err = capsys.readouterr()
    assert (said(out), said(err)) == (1, 1)
    assert "equal: " in out and "is off by" in err
    assert main(["fold", source, "--force", "-q"]) == 0
    out, err = capsys.readouterr()
    assert (out, said(err)) == ("", 1)


@pytest.mark.parametrize("source", ["net.prototxt", "table.onnx"])
def test_with_float32_nothing_is_rounded_and_nothing_said(folder, capsys, source):
    assert main(["fold", source, "--weights", "float32", "--json"]) == 0
    out, err = capsys.readouterr()
    assert said(out) == said(err) == 0
    document = json.loads(out)
    assert document["removed"] == 1 and document["difference"]["relative"] < 1e-6
    assert document["verify"]["equal"]


def test_the_files(folder):
    for source in ("net.prototxt", "table.onnx"):
        assert main(["fold", source, "-q"]) == 0
    assert stored() == {"<f2"}
    assert kinds(onnx.load("table.folded.onnx"))["table"] == onnx.TensorProto.FLOAT16
    for source in ("net.prototxt", "table.onnx"):
        assert main(["fold", source, "-q", "--force", "--weights", "float32"]) == 0
    assert stored() == {"<f4"}
    assert kinds(onnx.load("table.folded.onnx"))["table_folded"] == FLOAT


@pytest.mark.parametrize("source", ["net.prototxt", "table.onnx"])
def test_json_says_it_in_the_notes_and_the_verdict(folder, capsys, source):
    assert main(["fold", source, "--json", "--dry-run"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert sum(said(note) for note in document["notes"]) == 1
    assert sum(said(note) for note in document["verify"]["notes"]) == 1


@pytest.mark.parametrize("source", ["net.prototxt", "table.onnx"])
def test_inspect(folder, capsys, source):
    assert main(["inspect", source]) == 0
    assert said(capsys.readouterr().out) == 1
    assert main(["inspect", source, "--weights", "float32"]) == 0
    assert said(capsys.readouterr().out) == 0


@pytest.mark.parametrize("words", [("--jobs", "1"), ("--jobs", "2", "--no-verify")])
def test_many(folder, capsys, words):
    models = ("net.prototxt", "table.onnx")
    assert main(["fold", *models, "--weights", "float32", *words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    if "--no-verify" not in words:
        assert all(one["fold"]["difference"]["relative"] < 1e-6 for one in document["models"])
    assert stored() == {"<f4"}
    assert kinds(onnx.load("table.folded.onnx"))["table_folded"] == FLOAT


@pytest.mark.parametrize("source", ["net.prototxt", "table.onnx"])
def test_verify_of_the_pair(folder, capsys, source):
    suffix = Path(source).suffix
    folded = source.replace(suffix, f".folded{suffix}")
    assert main(["fold", source, "-q"]) == 0
    capsys.readouterr()
    assert main(["verify", source, folded]) == 0
    out, err = capsys.readouterr()
    assert said(out + err) == 1
    assert main(["fold", source, "-q", "--force", "--weights", "float32"]) == 0
    assert main(["verify", source, folded, "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["equal"] and document["outputs"][0]["max_relative"] < 1e-6
    assert said(out + err) == 0
