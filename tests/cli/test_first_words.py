"""What people type who do not know the command yet, or know another one."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest

import bnfold
from bnfold import _threads
from bnfold.cli import COMMANDS, main
from bnfold.cli._many import _begin
from bnfold.cli._torch_source import InputSpec
from tests.frontends.onnx.test_edit import network

USAGE = 2


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    onnx.save(network(), "a.onnx")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """On stderr, of a call that does nothing else."""
    assert main(words) == USAGE
    out, err = capsys.readouterr()
    assert out == "" and [path.name for path in Path().iterdir()] == ["a.onnx"]
    return err


def test_nothing(capsys) -> None:
    err = said(capsys)
    assert all(name in err for name in COMMANDS)
    assert max(map(len, err.splitlines())) <= 80


def test_a_model_alone(capsys) -> None:
    assert "bnfold fold a.onnx" in said(capsys, "a.onnx")
    assert "invalid choice: 'absent'" in said(capsys, "absent")


def test_an_output_behind_the_model(capsys) -> None:
    assert "out.onnx: no such file. Next: write -o out.onnx" in said(
        capsys, "fold", "a.onnx", "out.onnx"
    )
    assert main(["fold", "a.onnx", "-o", "out.onnx"]) == 0


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--overwrite-input-shape", "--fix-input"),
        ("--input-shapes", "--fix-input"),
        ("--target-opset=18", "--opset"),
        ("--outputs", "--to"),
        ("--save-as-external-data", "--external-data"),
        ("--model-check", "--no-verify"),
    ],
)
def test_options_of_other_tools(capsys, word, hint) -> None:
    err = said(capsys, "fold", "a.onnx", word)
    assert f"unrecognized arguments: {word} (here it is " in err and hint in err


def test_an_option_that_nobody_has(capsys) -> None:
    assert said(capsys, "fold", "a.onnx", "--absent").endswith("arguments: --absent\n")


# -------------------------------------------------------------------- sizes that one model says


@pytest.mark.parametrize("way", ["a.onnx b.onnx", "b.onnx a.onnx"])
def test_one_model_says_its_sizes_and_the_other_leaves_them_open(capsys, way) -> None:
    assert main(["fold", "a.onnx", "--fix-input", "1x3x9x8", "-o", "b.onnx"]) == 0
    assert main(["verify", *way.split()]) == 0
    assert bnfold.verify(*way.split()).equal
    assert "equal" in capsys.readouterr().out


def test_a_wrong_model_of_fixed_size_is_found() -> None:
    assert main(["fold", "a.onnx", "--fix-input", "1x3x9x8", "-o", "b.onnx"]) == 0
    made = onnx.load("b.onnx")
    next(node for node in made.graph.node if node.op_type == "Neg").op_type = "Abs"
    onnx.save(made, "b.onnx")
    assert main(["verify", "a.onnx", "b.onnx"]) == 1


# -------------------------------------------------------------------- processes at once


def test_a_process_among_others_has_its_share_of_the_processors(monkeypatch) -> None:
    monkeypatch.setattr(_threads, "_most", 0)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("bnfold.cli._many._is_over", None)
    _begin(None, 3)
    assert _threads.processors() == _threads.limited() == 3
    assert os.environ.pop("OMP_NUM_THREADS") == os.environ.pop("MKL_NUM_THREADS") == "3"


@pytest.mark.parametrize("text", ["1x3x8x8", "1,3,8,8"])
def test_sizes_of_a_module(text) -> None:
    assert InputSpec.parse(text) == InputSpec.parse(f"{text}:float32")
    assert InputSpec.parse(text).shape == (1, 3, 8, 8)
