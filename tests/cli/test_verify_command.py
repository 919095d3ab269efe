"""`bnfold verify`: refusals first, then verdicts and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import bnfold
from bnfold.cli import main
from tests.conformance.three_frontends import Network, caffe_files, node, onnx_model, weights_of

NODES = [
    node("c", "conv", "data", channels=3, out=4, kernel=3, pad=1),
    node("b", "bn", "c", channels=4),
    node("r", "relu", "b"),
]
SHAPE = (2, 3, 6, 6)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One network as .onnx, .pt2 and .prototxt, folded and with a fault."""
    monkeypatch.chdir(tmp_path)
    weights = weights_of(NODES)
    proto, module = onnx_model(NODES, weights, SHAPE), Network(NODES, weights)
    onnx.save(proto, "net.onnx")
    folded = bnfold.fold(proto).model
    onnx.save(folded, "folded.onnx")
    (kernel,) = [t for t in folded.graph.initializer if len(t.dims) == 4]
    array = numpy_helper.to_array(kernel).copy()
    array[1, 2, 0, 1] += 1e-3
    kernel.CopyFrom(numpy_helper.from_array(array, kernel.name))
    onnx.save(folded, "wrong.onnx")
    torch.export.save(torch.export.export(module, (torch.randn(SHAPE),)), "net.pt2")
    caffe_files(NODES, weights, SHAPE, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["no.onnx", "net.onnx"], 3, "no such file"),
        (["net.onnx", "no.pt2"], 3, "no such file"),
        (["net.onnx", "net.onnx", "--data", "no.npz"], 3, "no such file"),
        (["net.onnx", "net.onnx", "--data", "bad.npz"], 2, "the model takes"),
        (["net.onnx", "net.onnx", "--mean", "0.5"], 2, "folder of images"),
        (["net.onnx", "net.onnx", "--mean", "x"], 2, "list of numbers"),
        (["net.onnx", "net.onnx", "--mean", "nan"], 2, "list of numbers"),
        (["net.onnx", "net.onnx", "--std", "0.2,0,0.2"], 2, "no pixels are left"),
        *(
            (["net.onnx", "net.onnx", "--samples", text], 2, "no number of samples, from 1 on")
            for text in ("0", "-1", "x", "1.5", "9" * 5000)
        ),
        (["net.onnx", "net.onnx", "--samples", "100000000"], 2, "use 1 to 10000"),
        (["net.onnx", "net.onnx", "--seed", "-5"], 2, "seed=-5 is below 0"),
        (["net.onnx", "net.onnx", "--seed", "x"], 2, "'x' is no whole number"),
        (["net.onnx"], 2, "required: FOLDED\n"),
        ([], 2, "required: ORIGINAL, FOLDED\n"),
        (["net.onnx", "net.onnx", "net.onnx"], 2, "3 words name 3"),
        (["network.prototxt", "network.caffemodel", "net.onnx", "net.onnx"], 2, "4 words name 3"),
        (["net.onnx", "net.onnx", "--weights", "a", "b"], 2, "--weights is for .prototxt"),
        (["net.onnx", "net.onnx", "--input", "data:1x4x6x6"], 2, "cannot have the shape"),
        (["net.onnx", "other.onnx"], 2, "input"),
        (["network.prototxt", "network.prototxt", "--weights", "a", "b"], 3, "no such file"),
        (["cli_nets:net", "net.onnx"], 2, "there is no module"),
    ],
)
def test_what_cannot_be_compared(capsys, folder, arguments, code, text):
    np.savez("bad.npz", data=np.zeros((2, 3, 6, 5)))
    onnx.save(onnx_model(NODES[:1], weights_of(NODES[:1]), (2, 3, 5, 6)), "other.onnx")
    assert main(["verify", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and text in err


def test_a_fault_is_an_answer(capsys, folder):
    assert main(["verify", "net.onnx", "wrong.onnx"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("not equal")
    assert "first layer where they part: c, channel 1" in out
    assert main(["verify", "net.onnx", "wrong.onnx", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "bnfold.verify/1" and document["parting"] == "c"


@pytest.mark.parametrize(
    "arguments",
    [
        ["net.onnx", "folded.onnx"],
        ["net.onnx", "folded.onnx", "--samples", "3", "--seed", "5", "--no-layers"],
        ["net.pt2", "folded.onnx"],
        ["net.onnx", "net.pt2"],
        ["network.prototxt", "folded.onnx"],
        ["network.prototxt", "network.prototxt", "--weights", *["network.caffemodel"] * 2],
        ["network.prototxt", "network.caffemodel", "folded.onnx"],
        ["net.onnx", "network.prototxt", "network.caffemodel"],
        ["network.caffemodel", "network.prototxt", "network.prototxt", "network.caffemodel"],
        ["net.onnx", "folded.onnx", "--data", "own.npz"],
    ],
)
def test_equal(capsys, folder, arguments):
    np.savez("own.npz", data=np.random.default_rng(0).normal(size=(6, 3, 6, 6)))
    assert main(["verify", *arguments]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("equal: largest difference") and err == ""


@pytest.mark.parametrize(
    "words", [["deploy.prototxt", "w.caffemodel"], ["w.caffemodel", "deploy.prototxt"]]
)
def test_weights_of_another_name(capsys, folder, words):
    Path("network.prototxt").rename("deploy.prototxt")
    Path("network.caffemodel").rename("w.caffemodel")
    assert main(["fold", "deploy.prototxt"]) == 3
    _, err = capsys.readouterr()
    assert "deploy.caffemodel: no such file. Next: name the weights behind the network: w." in err
    assert main(["fold", *words]) == 0
    assert "deploy.folded.caffemodel" in capsys.readouterr().out
    assert main(["verify", *words, "deploy.folded.prototxt"]) == 0


@pytest.mark.parametrize(
    ("others", "text"),
    [([], "name the .caffemodel"), (["a", "b", "c"], "network: a.caffemodel or 2 more")],
)
def test_missing_weights(capsys, folder, others, text):
    Path("network.caffemodel").unlink()
    for name in others:
        Path(f"{name}.caffemodel").write_bytes(b"")
    assert main(["inspect", "network.prototxt"]) == 3
    assert text in " ".join(capsys.readouterr().err.split())


def test_a_factory(capsys, folder, monkeypatch):
    (folder / "cli_verify_nets.py").write_text(
        "from torch import nn\n\n\ndef net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3)).eval()\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    factory = "cli_verify_nets:net"  # draws its weights anew in each call
    assert main(["verify", factory, factory, "--input", "1x3x6x6"]) == 1
    assert "part at 0" in capsys.readouterr().out
