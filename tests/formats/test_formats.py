"""Every file gets a useful answer: what it is, and the way from there to a fold."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from bnfold.cli import main
from bnfold.errors import BnfoldError
from bnfold.formats import ModelKind, identify, kind_of_file


def zipped(**members: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return sink.getvalue()


def saved(write: Callable[[io.BytesIO], object]) -> bytes:
    sink = io.BytesIO()
    write(sink)
    return sink.getvalue()


def safetensors() -> bytes:
    from safetensors.numpy import save

    return save({"conv.weight": np.zeros((2, 3), dtype=np.float32)})


def scripted() -> bytes:
    module = torch.jit.trace(nn.Linear(2, 2).eval(), torch.zeros(1, 2))
    return saved(lambda sink: torch.jit.save(module, sink))


def tensorflow_graph() -> bytes:
    node = b"\x0a\x01x\x12\x0bPlaceholder"
    return b"\x0a" + bytes([len(node)]) + node + b"\x22\x03\x08\xb6\x07"


def core_ml() -> bytes:
    return b"\x08\x04" + b"\x12\x02\x0a\x00" + b"\xa2\x1f\x02\x0a\x00"  # field 500


FOREIGN = {
    "model.tflite": (lambda: b"\x1c\0\0\0TFL3" + bytes(40), "TensorFlow Lite", "tf2onnx"),
    "model.h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5", "format='onnx'"),
    "model.keras": (
        lambda: zipped(**{"config.json": b"{}", "model.weights.h5": b""}),
        "Keras",
        "format='onnx'",
    ),
    "model.torchscript": (scripted, "TorchScript", "Python module it was made from"),
    "scripted.pt": (scripted, "TorchScript", "Python module it was made from"),
    "weights.pth": (
        lambda: saved(lambda sink: torch.save(nn.Linear(2, 2).state_dict(), sink)),
        "a pickle",
        "package.module:factory",
    ),
    "old.pt": (
        lambda: saved(
            lambda sink: torch.save(
                nn.Linear(2, 2).state_dict(), sink, _use_new_zipfile_serialization=False
            )
        ),
        "a pickle",
        "torch.export.save",
    ),
    "model.safetensors": (safetensors, "safetensors", "bnfold.fold"),
    "model.xml": (
        lambda: b'<?xml version="1.0"?>\n<net name="r" version="11">\n</net>\n',
        "OpenVINO",
        "fold the model that it was made from",
    ),
    "model.param": (lambda: b"7767517\n2 2\nInput data 0 1 data\n", "ncnn", "pnnx"),
    "model.param.bin": (lambda: b"\x5d\x88\x76\x00" + bytes(16), "ncnn", "pnnx"),
    "model.engine": (lambda: b"ftrt" + bytes(40), "TensorRT", "compiled for one device"),
    "odd.engine": (lambda: b"\x01\xff" * 20, "TensorRT", "compiled for one device"),
    "model.gguf": (lambda: b"GGUF\x03\0\0\0", "GGUF", "no BatchNorm"),
    "frozen.pb": (tensorflow_graph, "TensorFlow graph", "tf2onnx"),
    "graph.pbtxt": (lambda: b'node {\n  name: "x"\n}\n', "TensorFlow graph", "tf2onnx"),
    "model.mlmodel": (core_ml, "Core ML", "made from"),
    "model.pte": (lambda: b"\x18\0\0\0ET12" + bytes(20), "ExecuTorch", "made from"),
    "yolo.cfg": (lambda: b"# yolo\n[net]\nbatch=1\n", "Darknet", "ONNX"),
    "net-symbol.json": (lambda: b'{\n "nodes": []}', "MXNet", "mx2onnx"),
    "model.json": (lambda: b'{"format": "layers-model"}', "TensorFlow.js", "tfjs"),
    "solver.prototxt": (lambda: b'net: "train.prototxt"\nbase_lr: 0.1\n', "solver", "net: line"),
    "model.py": (lambda: b"import torch\n\n\ndef make():\n    pass\n", "Python", "factory"),
    "model.onnx.gz": (lambda: b"\x1f\x8b\x08" + bytes(20), "compressed", "unpack"),
    "model.zip": (lambda: zipped(**{"a/model.onnx": b"x"}), "zip", "unpack"),
    "arrays.npz": (lambda: saved(lambda sink: np.savez(sink, x=np.ones(2))), ".npz", "--data"),
    "lfs.onnx": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS", "lfs pull"),
    "page.onnx": (lambda: b"<!DOCTYPE html><html></html>", "web page", "download the file"),
    "empty.onnx": (lambda: b"", "empty file", "downloaded"),
    "runs.so": (lambda: b"\x7fELF" + bytes(20), "compiled code", "made from"),
    "unknown": (lambda: b"\x03\x01\x00\xff\xfe" * 9, "no format that bnfold knows", "ONNX"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_called_by_its_format(name, tmp_path, capsys, monkeypatch):
    make, called, step = FOREIGN[name]
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(make())
    for command in ("fold", "inspect"):
        assert main([command, name]) == 3
        out, err = capsys.readouterr()
        assert out == ""
        assert name in err
        assert called in err
        assert step in err
        assert "pip install" not in err
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("member", "called"),
    [
        ("saved_model.pb", "SavedModel"),
        ("Manifest.json", "Core ML"),
        ("model.safetensors", "weights of PyTorch"),
        ("pytorch_model-00001-of-00002.bin", "weights of PyTorch"),
        ("readme.md", "a folder"),
    ],
)
def test_a_folder_is_called_by_what_lies_in_it(member, called, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / member).write_bytes(b"x")
    assert main(["inspect", str(folder)]) == 3
    assert called in capsys.readouterr().err


@pytest.mark.parametrize("address", ["https://host/model.onnx", "s3://bucket/m.onnx", "hf://a/b"])
def test_an_address(address, capsys):
    assert main(["fold", address]) == 2
    assert "download it" in capsys.readouterr().err


def test_a_mistyped_path_names_the_one_that_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("resnet50.onnx").write_bytes(b"x")
    assert main(["fold", "resnet5O.onnx"]) == 3
    assert "did you mean resnet50.onnx" in capsys.readouterr().err
    assert main(["fold", "resnet50"]) == 3
    assert "did you mean resnet50.onnx" in capsys.readouterr().err


def test_a_pipe_is_not_read(tmp_path):
    import os

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(BnfoldError):
        kind_of_file(pipe)


# -------------------------------------------------------------------- what bnfold reads


def small_onnx() -> onnx.ModelProto:
    tensor = onnx.helper.make_tensor_value_info
    statistics = [
        onnx.numpy_helper.from_array(np.array([2.0, -3.0], dtype=np.float32), name)
        for name in ("scale", "shift", "mean")
    ]
    statistics.append(onnx.numpy_helper.from_array(np.array([1.5, 4.0], np.float32), "var"))
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1)
    weight = onnx.numpy_helper.from_array(kernel, "w")
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
        onnx.helper.make_node(
            "BatchNormalization", ["y", "scale", "shift", "mean", "var"], ["z"], name="bn"
        ),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [tensor("x", 1, [1, 3, 4, 4])],
        [tensor("z", 1, [1, 2, 4, 4])],
        [weight, *statistics],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)


@pytest.mark.parametrize("name", ["model", "model.bin", "net.ort.model", "weights.pt", "MODEL.TXT"])
def test_onnx_under_any_name(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(small_onnx().SerializeToString())
    assert kind_of_file(name) is ModelKind.ONNX_FILE
    assert main(["fold", name, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["removed"] == 1
    assert document["output"].endswith(".folded.onnx")
    assert "BatchNormalization" not in {n.op_type for n in onnx.load(document["output"]).graph.node}


NETWORK = """
name: "net"
input: "data"
input_dim: 1 input_dim: 3 input_dim: 4 input_dim: 4
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 2 kernel_size: 1 } }
"""


@pytest.mark.parametrize("name", ["deploy.prototxt.txt", "deploy.txt", "deploy", "net.pt"])
def test_a_prototxt_under_any_name(name, tmp_path):
    path = tmp_path / name
    path.write_text(NETWORK)
    assert kind_of_file(path) is ModelKind.CAFFE_FILES


def test_a_program_under_any_name(tmp_path):
    program = torch.export.export(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),))
    path = tmp_path / "program.pt2"
    torch.export.save(program, path)
    other = path.rename(tmp_path / "program.bin")
    assert kind_of_file(other) is ModelKind.PROGRAM


def test_a_caffemodel_is_told_from_its_content(tmp_path, capsys):
    path = tmp_path / "weights"
    layer = b"\x0a\x04conv\x12\x0bConvolution"
    path.write_bytes(b"\x0a\x03net" + b"\xa2\x06" + bytes([len(layer)]) + layer)
    assert main(["fold", str(path)]) == 2
    assert "name the network first" in capsys.readouterr().err


def test_looking_imports_no_framework(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"\x1c\0\0\0TFL3")
    code = (
        "import sys; from bnfold.cli import main; main(['fold', sys.argv[1]])\n"
        "print(*{'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.stdout.strip() == ""
    assert "TensorFlow Lite" in done.stderr


@pytest.mark.parametrize("seed", range(200))
def test_noise_is_never_an_accident(seed, tmp_path):
    draw = np.random.default_rng(seed)
    path = tmp_path / "noise"
    path.write_bytes(draw.integers(0, 256, draw.integers(1, 400), dtype=np.uint8).tobytes())
    found = identify(path)
    assert found is None or found.name
