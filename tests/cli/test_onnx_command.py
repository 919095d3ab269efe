"""The command on ONNX files."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import onnx
import pytest

from bnfold.cli import main
from bnfold.frontends.onnx import apply
from tests.frontends.onnx.support import Sketch, assert_same, ops


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    s = Sketch("N", 3, "H", "W")
    s.conv(3, 4)
    s.bn(4)
    s.node("Relu")
    onnx.save(s.model(), "net.onnx")
    s = Sketch("N", 3, "H", "W")
    s.bn(3)
    s.conv(3, 4, pads=[1, 1, 1, 1])
    onnx.save(s.model(), "padded.onnx")
    return tmp_path


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -------------------------------------------------------------------- on its way to the disk


@pytest.mark.parametrize("options", [[], ["--no-check"]])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_does_not_reach_the_disk_gets_no_name(capsys, folder, monkeypatch, options, number):
    def fails(_: int) -> None:
        raise OSError(number, "no more of it")

    monkeypatch.setattr(os, "fsync", fails)
    before = listing(folder)
    assert main(["fold", "net.onnx", *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "net.folded.onnx could not be written: no more of it" in err
    assert listing(folder) == before


@pytest.mark.parametrize("are_there_threads", [True, False])
def test_a_name_waits_for_the_content(folder, monkeypatch, are_there_threads):
    """The folder, whose turn it is after the name, is the last thing that is flushed."""
    order: list[str] = []
    flush, move = os.fsync, Path.replace

    def flushed(descriptor: int) -> None:
        time.sleep(0.2)
        flush(descriptor)
        order.append("flushed")

    def moved(path: Path, target: Path) -> Path:
        order.append("named")
        return move(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", moved)
    if not are_there_threads:
        monkeypatch.setattr(threading.Thread, "start", refuse)
    assert main(["fold", "net.onnx", "--no-check"]) == 0
    assert order == ["flushed", "named", "flushed"]


def refuse(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


# -------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["net.onnx", "--eval"], 2, "--eval is for package.module:factory"),
        (["net.onnx", "net.caffemodel", "-o", "o.onnx"], 2, "-o names one file"),
        (["net.onnx", "-o", "net.pt2"], 2, "does not end in .onnx"),
        (["net.onnx", "-o", "net.onnx"], 2, "is the model itself"),
        (["net.onnx", "-o", "net.onnx", "--force"], 2, "is the model itself"),
        (["net.onnx", "-o", "padded.onnx"], 2, "exists and is not overwritten"),
        (["net.onnx", "--input", "1,3x8,8"], 2, "no shape of an input"),
        (["net.onnx", "--input", "y:1x3x8x8"], 2, "no input 'y'"),
        (["net.onnx", "--input", "x:1x4x8x8"], 2, "cannot have the shape"),
        (["absent.onnx"], 3, "no such file"),
    ],
)
def test_usage(capsys, folder, arguments, code, text):
    before = listing(folder)
    assert main(["fold", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and text in err and "Next: " in err
    assert listing(folder) == before


def test_a_fold_that_is_wrong_is_not_written(capsys, folder, monkeypatch):
    fold_bias = apply.fold_bias
    monkeypatch.setattr(apply, "fold_bias", lambda *parts: fold_bias(*parts) * 1.1)
    before = listing(folder)
    assert main(["fold", "net.onnx"]) == 70
    assert "does not compute the same" in capsys.readouterr().err
    assert listing(folder) == before


def test_without_onnx(folder):
    script = (
        "import sys; sys.modules['onnx'] = None; from bnfold.cli import main;"
        " sys.exit(main(['inspect', 'net.onnx']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (4, "")
    assert 'python -m pip install "bnfold[onnx]"' in done.stderr


def test_without_onnx_runtime_and_pytorch_nothing_is_verified(capsys, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "bnfold.frontends.onnx.run_exact", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["fold", "net.onnx"]) == 0
    out, err = capsys.readouterr()
    assert "nothing was verified: " in out and "onnxruntime is not installed" in out
    assert "bnfold[torch,onnx]" in err
    assert "net.folded.onnx" in listing(folder)


def test_without_onnx_runtime_float64_is_enough(capsys, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["fold", "net.onnx", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)["verify"]
    assert document["equal"] and document["truth"] == "float64"
    assert any("onnxruntime is not installed" in note for note in document["notes"])


def test_without_pytorch_numpy_runs_usual_networks_in_float64(capsys, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["fold", "net.onnx", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)["verify"]
    assert document["equal"] and document["truth"] == "float64" and document["layers"]


def test_without_pytorch_the_last_bits_of_the_inputs_decide(capsys, folder, monkeypatch):
    s = Sketch("N", 3, "H", "W")
    s.conv(3, 4)
    s.bn(4)
    s.node("Softplus")
    onnx.save(s.model(), "net.onnx")
    monkeypatch.delitem(sys.modules, "bnfold.frontends.onnx.run_exact", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["fold", "net.onnx", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)["verify"]
    assert document["equal"] and document["truth"] == "nudged" and document["layers"] == []


# -------------------------------------------------------------------- answered


def test_fold_writes_beside_the_model(capsys, folder):
    before = (folder / "net.onnx").read_bytes()
    assert main(["fold", "net.onnx"]) == 0
    out, err = capsys.readouterr()
    assert "1 of 1 BatchNormalization removed" in out
    assert "largest difference" in out
    assert "written: net.folded.onnx" in out
    assert err == ""
    assert listing(folder) == {"net.onnx", "padded.onnx", "net.folded.onnx"}
    assert (folder / "net.onnx").read_bytes() == before
    original, folded = onnx.load("net.onnx"), onnx.load("net.folded.onnx")
    assert ops(folded) == ["Conv", "Relu"]
    assert_same(original, folded, (2, 3, 7, 9))


def test_dry_run_inspect_and_strict_write_nothing(capsys, folder):
    before = listing(folder)
    assert main(["fold", "net.onnx", "--dry-run"]) == 0
    assert "largest difference" in capsys.readouterr().out
    assert main(["inspect", "net.onnx"]) == 0
    assert main(["fold", "padded.onnx", "--strict"]) == 1
    assert main(["inspect", "padded.onnx", "--strict"]) == 1
    assert "padding of conv" in capsys.readouterr().out
    assert listing(folder) == before


@pytest.mark.parametrize("shape", ["x:2x3x9x9", "2x3x9x9"])
def test_shapes_for_the_analysis(capsys, folder, shape):
    assert main(["fold", "net.onnx", "--input", shape, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["output"] == "net.folded.onnx"
    assert document["difference"]["relative"] <= 1e-5
    assert document["verify"]["equal"]
    dims = onnx.load("net.folded.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param for dim in dims] == ["N", "", "H", "W"]


@pytest.mark.parametrize("letter", ["n", "ñ"])
def test_into_a_pipe_each_batch_norm_has_one_line(capsys, folder, letter):
    s = Sketch(2, 3, 6, 6)
    long = "/".join([letter * 40] * 5)
    s.conv(3, 4, name=f"{long}/conv")
    s.bn(4, name=f"{long}/bn")
    Path("long.onnx").write_bytes(s.model().SerializeToString())
    assert main(["inspect", "long.onnx", "--table"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(letter)]
    assert len(lines) == 1
    assert lines[0].startswith(f"{long}/bn ") and lines[0].endswith(f"folded into {long}/conv")
