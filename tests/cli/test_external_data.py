"""`bnfold fold --external-data`: the weights of an ONNX model in a file of their own."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import bnfold
from bnfold.cli import main
from tests.frontends.onnx.support import Sketch

USAGE = 2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    s = Sketch(1, 16, 6, 6)
    s.conv(16, 32)
    s.bn(32)
    s.node("Relu")
    s.conv(32, 64, name="second")
    onnx.save(s.model(), "net.onnx")
    onnx.save(s.model(), "split.onnx", save_as_external_data=True, location="split.bin")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], words: list[str], *said: str) -> None:
    before = {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    assert main(words) == USAGE
    err = capsys.readouterr().err
    assert all(text in err for text in said), err
    after = {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    assert after == before


@pytest.mark.parametrize("name", ["net.onnx", "split.onnx"])
@pytest.mark.parametrize("check", [[], ["--no-verify"]])
def test_weights_lie_beside_the_model(folder: Path, name: str, check: list[str], capsys) -> None:
    assert main(["fold", name, "-o", "out.onnx", "--external-data", "--strict", *check]) == 0
    assert "written: out.onnx.data" in capsys.readouterr().out
    message, data = Path("out.onnx").stat().st_size, Path("out.onnx.data").stat().st_size
    assert data > 4 * 64 * 32 * 9 > 10 * message
    held = onnx.load("out.onnx", load_external_data=False).graph.initializer
    assert {tensor.data_location for tensor in held if len(tensor.dims) == 4} == {
        onnx.TensorProto.EXTERNAL
    }
    assert bnfold.verify(name, "out.onnx").equal


def test_without_it_they_are_where_they_were(folder: Path) -> None:
    assert main(["fold", "net.onnx", "-o", "out.onnx"]) == 0
    assert not Path("out.onnx.data").exists()


def test_many_models(folder: Path) -> None:
    assert main(["fold", "net.onnx", "split.onnx", "--output-dir", "out", "--external-data"]) == 0
    names = {path.name for path in Path("out").iterdir()}
    assert names == {"net.onnx", "net.onnx.data", "split.onnx", "split.onnx.data"}


def test_a_dry_run_writes_neither(folder: Path) -> None:
    before = set(folder.iterdir())
    assert main(["fold", "net.onnx", "--external-data", "--dry-run"]) == 0
    assert set(folder.iterdir()) == before


def test_what_lies_there_is_not_overwritten_unasked(folder: Path, capsys) -> None:
    words = ["fold", "net.onnx", "-o", "out.onnx", "--external-data"]
    Path("out.onnx.data").write_bytes(b"mine")
    refused(capsys, words, "out.onnx.data exists and is not overwritten")
    assert main([*words, "--force"]) == 0
    assert Path("out.onnx.data").read_bytes() != b"mine"


def test_a_pipe_holds_one_file(folder: Path, capsys) -> None:
    words = ["fold", "net.onnx", "-o", "-", "--external-data"]
    refused(capsys, words, "external data is a second file", "-o FILE")


def test_other_kinds_of_model_have_none(folder: Path, capsys) -> None:
    Path("deploy.prototxt").write_text('name: "net" input: "data" input_dim: 1')
    Path("deploy.caffemodel").write_bytes(b"")
    refused(capsys, ["fold", "deploy.prototxt", "--external-data"], "--external-data is for .onnx")
