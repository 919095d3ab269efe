"""`bnfold bench`: what it refuses, what it prints, and its exit status."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bnfold.bench import call
from bnfold.bench.result import BenchResult
from bnfold.bench.rows import BenchRow
from bnfold.cli import main

ROW = BenchRow(
    "original", "eager", "cpu", "float32", "contiguous", 1, 1, 9, 0.01, 0.01, 0.01, 1.0, 1.0, 1.0
)
FASTER = replace(ROW, variant="folded", ratio=0.9, ratio_low=0.8, ratio_high=0.95)
SLOWER = replace(ROW, variant="folded", ratio=1.2, ratio_low=1.1, ratio_high=1.3)


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(build(), (torch.rand(1, 3, 6, 6),)), file)
    return file


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `bnfold.bench` was called with; it answers with `result`."""
    seen: dict[str, Any] = {"result": BenchResult((ROW, FASTER))}

    def bench(model: Any, folded: Any = None, inputs: Any = None, **options: Any) -> BenchResult:
        seen.update(model=model, folded=folded, inputs=inputs, **options)
        result = seen["result"]
        if isinstance(result, BaseException):
            raise result
        assert isinstance(result, BenchResult)
        return result

    monkeypatch.setattr(call, "bench", bench)
    return seen


FACTORY = f"{__name__}:build"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["net.onnx", "--compile"], "--compile is for PyTorch models"),
        (["net.onnx", "--fx"], "--fx is for PyTorch models"),
        (["net.onnx", "--eval"], "--eval is for package.module:factory"),
        (["net.pt2", "--optimised"], "--optimised is for ONNX models"),
        (["net.pt2", "--input", "1x3"], "--input and --eval are for package.module:factory"),
        (["net.pt2", "net.onnx"], "name two of one kind"),
        (["deploy.prototxt"], "caffe time -model"),
        (["net.caffemodel"], "name the network first"),
        (["net.pt2", "--chart", "chart.png"], "does not end in .svg"),
        *(
            (["net.pt2", option, text], f"argument {option}: '{text}' is no list of numbers of")
            for option in ("--batch", "--threads")
            for text in ("many", "0", "-1", "1,,2", "1.5", "")
        ),
        (["net.pt2", "--threads", "1,5000000"], "use numbers from 1 to 1024"),
        *(
            (["net.pt2", "--rounds", text], "is no number of rounds, from 1 on")
            for text in ("x", "0", "-3", "1.5")
        ),
        (["net.pt2", "--rounds", "1000000000"], "would not come to an end"),
        *((["net.pt2", "--seconds", text], "is no number") for text in ("x", "nan", "inf")),
        (["net.pt2", "--seconds", "-1"], "leave nothing to measure"),
        (["net.pt2", "--seconds", "1e30"], "would not come to an end"),
        ([], "the following arguments are required: A"),
    ],
)
def test_usage(
    arguments: list[str],
    problem: str,
    program: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(program.parent)
    for name in ("net.onnx", "deploy.prototxt", "net.caffemodel"):
        Path(name).write_bytes(b"\0")
    assert main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert problem in err
    assert out == ""


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "nowhere.onnx"]) == 3
    assert main(["bench", "nowhere.pt2"]) == 3
    assert "no such file" in capsys.readouterr().err


def test_slower_is_one_and_the_chart_is_there(
    program: Path, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    asked["result"] = BenchResult((ROW, SLOWER))
    chart = program.parent / "chart.svg"
    assert main(["bench", str(program), str(program), "--chart", str(chart)]) == 1
    assert "20.0% more time" in capsys.readouterr().out
    assert chart.read_text().startswith("<svg")


@pytest.mark.parametrize("place", ["chart.svg", "chart.png", "folder.svg", "nowhere/chart.svg"])
def test_where_the_chart_cannot_go(
    program: Path, asked: dict[str, Any], capsys: pytest.CaptureFixture[str], place: str
) -> None:
    """Nothing is measured, nothing is overwritten, and the option that is meant is named."""
    (program.parent / "chart.svg").write_text("mine")
    (program.parent / "folder.svg").mkdir()
    assert main(["bench", str(program), "--chart", str(program.parent / place)]) == 2
    error = capsys.readouterr().err
    assert "model" not in asked and (program.parent / "chart.svg").read_text() == "mine"
    assert " -o" not in error
    assert ("--chart" in error) == (place != "chart.png")


def test_json_is_the_result(
    program: Path, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(program), "--json"]) == 0
    assert BenchResult.from_json(capsys.readouterr().out) == asked["result"]


def test_options_reach_the_call(asked: dict[str, Any]) -> None:
    options = "--batch 1,8 --threads 1,2 --dtype float32,bfloat16 --channels-last --compile --fx"
    more = "--rounds 7 --clip never --input 2x3x6x6"
    assert main(["bench", FACTORY, *options.split(), *more.split()]) == 0
    assert (asked["batch"], asked["threads"]) == ((1, 8), (1, 2))
    assert (asked["dtype"], asked["layout"]) == (("float32", "bfloat16"), "channels_last")
    assert asked["runtimes"] == ("eager", "compile")
    assert (asked["against"], asked["rounds"], asked["clip"]) == (("torch.fx",), 7, "never")
    assert asked["inputs"][0][0].shape == (2, 3, 6, 6)
    assert asked["folded"] is None


def test_ctrl_c(program: Path, asked: dict[str, Any]) -> None:
    asked["result"] = KeyboardInterrupt()
    assert main(["bench", str(program)]) == 130


def test_a_real_run(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its figures are whatever they are; only that they are there is looked at."""
    assert main(["bench", str(program), "--rounds", "3", "--json"]) in (0, 1)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["variant"], row["calls"]) for row in rows] == [("original", 3), ("folded", 3)]
