"""What `fold` and `verify` do with a verdict that is no yes and no no, and with nothing to run."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.cli import main
from tests.conformance.three_frontends import caffe_files, node, onnx_model, weights_of
from tests.frontends.caffe import build

NODES = [node("c", "conv", "data", channels=3, out=4, kernel=3), node("b", "bn", "c", channels=4)]
SHAPE = (2, 3, 6, 6)


def noisy() -> onnx.ModelProto:
    """Conv and BatchNormalization, and noise that is drawn in each run."""
    model = onnx_model(NODES, weights_of(NODES), SHAPE)
    (output,) = model.graph.output
    made = output.name
    noise = helper.make_node("RandomNormalLike", [made], ["noise"], scale=0.1)
    model.graph.node.extend([noise, helper.make_node("Add", [made, "noise"], ["y"])])
    model.graph.output[0].name = "y"
    return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(noisy(), "noisy.onnx")
    return tmp_path


def test_strict_writes_nothing(capsys, folder):
    assert main(["fold", "noisy.onnx", "--strict"]) == 1
    out, err = capsys.readouterr()
    assert "not proven equal, so nothing was written" in err and "nothing written" in out
    assert not (folder / "noisy.folded.onnx").exists()


def test_fold_writes_with_a_warning(capsys, folder):
    assert main(["fold", "noisy.onnx", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "warning: noisy.onnx: not proven" in err and "random numbers" in err
    document = json.loads(out)
    assert document["verify"]["verdict"] == "not proven" and not document["verify"]["equal"]
    assert (folder / "noisy.folded.onnx").exists()


def test_verify_says_no_without_saying_wrong(capsys, folder):
    assert main(["fold", "noisy.onnx"]) == 0
    capsys.readouterr()
    assert main(["verify", "noisy.onnx", "noisy.folded.onnx"]) == 1
    assert capsys.readouterr().out.startswith("not proven")


def test_a_model_that_did_not_change_is_not_run(capsys, folder, monkeypatch):
    thorough = importlib.import_module("bnfold.verify.thorough")
    monkeypatch.setattr(thorough, "verify", None)  # whoever calls it fails
    plain = onnx_model(NODES[:1], weights_of(NODES[:1]), SHAPE)
    onnx.save(plain, "plain.onnx")
    caffe_files(NODES[:1], weights_of(NODES[:1]), SHAPE, folder)
    for source in ("plain.onnx", "network.prototxt"):
        assert main(["fold", source]) == 0
        assert "the model did not change" in capsys.readouterr().out


def test_weights_that_are_stored_in_16_bits_are_named(capsys, folder):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 3, 3, 3)), rng.normal(size=4)
    statistics = rng.normal(size=4), rng.uniform(0.5, 2.0, 4), np.ones(1)
    layers = [("c", "Convolution", weights), ("b", "BatchNorm", statistics)]
    content = [
        build.layer(name, kind, *(build.blob(array, data="half") for array in arrays))
        for name, kind, arrays in layers
    ]
    Path("net.caffemodel").write_bytes(build.net(*content))
    Path("net.prototxt").write_text(
        'input: "x" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 }\n'
        'layer { name: "c" type: "Convolution" bottom: "x" top: "c"'
        " convolution_param { num_output: 4 kernel_size: 3 } }\n"
        'layer { name: "b" type: "BatchNorm" bottom: "c" top: "b" }\n'
    )
    assert main(["fold", "net.prototxt"]) == 0
    out, err = capsys.readouterr()
    assert "equal: " in out and "Weights are stored in float16" in err


def halves() -> onnx.ModelProto:
    """Convolution and BatchNormalization; the weight in float16, cast as it is read."""
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(4, 3, 3, 3)).astype(np.float16)}
    for name in ("g", "b", "m", "v"):
        constants[name] = rng.uniform(0.5, 1.5, 4).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "f"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("hides", ["", "torch"])
def test_onnx_weights_that_are_stored_in_16_bits_are_accepted(folder, hides):
    onnx.save(halves(), "halves.onnx")
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({hides.split()!r}))\n"
        "from bnfold.cli import main; sys.exit(main(['fold', 'halves.onnx']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "equal: " in done.stdout or "did not change" in done.stdout, done.stdout


def empty_batch() -> onnx.ModelProto:
    """A batch of 0 images, as the file has it: runtimes take nothing else."""
    return onnx_model(NODES, weights_of(NODES), (0, 3, 6, 6))


def test_a_file_that_declares_no_images_is_folded_and_the_next_step_is_named(capsys, folder):
    onnx.save(empty_batch(), "empty.onnx")
    assert main(["fold", "empty.onnx"]) == 0
    out, err = capsys.readouterr()
    assert "0 along axis 0" in out and "--fix-input data:" in err
    assert main(["verify", "empty.onnx", "empty.folded.onnx"]) == 2
    assert "--fix-input data:" in capsys.readouterr().err


def test_that_next_step_can_be_taken(capsys, folder):
    onnx.save(empty_batch(), "empty.onnx")
    assert main(["fold", "empty.onnx", "--fix-input", "data:2x3x6x6"]) == 0
    out, _ = capsys.readouterr()
    assert "was 0x3x6x6" in out and "equal: " in out
