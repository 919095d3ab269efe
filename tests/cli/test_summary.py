"""The screen at the end: narrow tables, and what an inspection shows."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from bnfold import FoldReport, Item, Kept, Reason, Removed
from bnfold.cli._summary import Ending, side_by_side, summary
from bnfold.frontend import Look
from bnfold.verify.result import VerifyResult


def kept(name: str, blocker: str) -> Item:
    return Item(name, "BatchNormalization", 8, 1, Kept(Reason.CLIP_COST, blocker))


BLOCK = "/features/denseblock1"
LONG = FoldReport(
    (
        kept(
            "/features/denseblock1/denselayer1/norm1/BN", "/features/denseblock1/denselayer1/relu"
        ),
        kept("/features/denseblock1/denselayer2/norm1/BN", "/other/relu"),
        Item("/features/conv/norm", "BatchNormalization", 8, 1, Removed(("/features/conv/c",))),
    )
)


def rows(width: int, report: FoldReport = LONG) -> list[str]:
    text = summary(Ending(report), width=width, table=True)
    assert max(map(len, text.splitlines())) <= width
    return [line for line in text.splitlines() if line.startswith("/features")]


@pytest.mark.parametrize("width", [60, 70, 80, 90])
def test_an_op_is_named_by_what_tells_it_from_the_step(width: int) -> None:
    first, second, third = rows(width)
    assert first.endswith("  clip-cost .../relu")
    assert "clip-cost /other/relu" in second
    assert third.endswith(("into .../c", "folded into /features/conv/c"))


def test_names_get_the_room_that_outcomes_leave() -> None:
    assert "denselayer1/norm1/BN  clip-cost" in rows(70, FoldReport(LONG.items[:1]))[0]
    assert "..." in rows(70)[0].split()[0]
    assert all("..." in line for line in rows(40))


def test_where_there_is_room_everything_is_said() -> None:
    assert f"kept: {BLOCK}/denselayer1/relu would need" in rows(300)[0]


@pytest.mark.parametrize(
    ("name", "blocker", "shown"),
    [
        ("layer1.0.bn2.norm.of.this.block", "layer1.0.bn2.norm.of.that.block", "...that.block"),
        ("bn", "a.relu.with.a.long.name", "a.relu.with"),
        ("/a", "/b/relu/with/a/long/name", "/b/relu"),
        ("block", "block", "block"),
        ("x.y", "x.y.relu.in.a.module", "relu.in.a.module"),
    ],
)
def test_nothing_is_left_out_that_is_not_shared(name: str, blocker: str, shown: str) -> None:
    (line,) = [
        line
        for line in summary(Ending(FoldReport((kept(name, blocker),))), width=60).splitlines()
        if line.startswith(name[:2]) and "clip-cost" in line
    ]
    assert shown in line


def test_an_inspection_counts_ops_and_bytes() -> None:
    counts = {"Conv": 2, "BatchNormalization": 1, "Relu": 3}, {"Conv": 2, "Relu": 3}
    text = summary(Ending(LONG.planned(), *counts, read=1_500_000), width=60)
    found = [line.split() for line in text.splitlines() if re.match(r"\w+ +\d", line)]
    assert [row for row in found if row[1] != "would"] == [
        ["BatchNormalization", "1", "0", "-1"],
        ["Conv", "2", "2"],
        ["Relu", "3", "3"],
        ["all", "6", "5", "-1"],
        ["file", "1.5", "MB"],
    ]


def test_what_a_model_takes_is_a_few_lines() -> None:
    facts = [f"input x{number}: float32 1x3x5x5" for number in range(20)]
    told = summary(Ending(LONG, facts=facts), width=60)
    assert "x6: float32" in told and "x7: float32" not in told
    assert "... and 13 more" in told
    assert "x7: float32" in summary(Ending(LONG, facts=facts[:8]), width=60)


def test_a_fold_that_leaves_no_op_shows_both_columns() -> None:
    text = summary(Ending(LONG, {"Identity": 1}, {"Conv": 1}), width=60)
    assert re.search(r"^op +before +after$", text, re.MULTILINE)


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_what_is_printed_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    verdict = VerifyResult(True, notes=("It is so. " * 20,), samples=2, truth="float64")
    for text in (str(LONG), str(verdict)):
        assert max(map(len, text.splitlines())) <= columns


def test_what_is_printed_elsewhere_does_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert str(LONG) == LONG.table(width=100)


def test_one_model_is_inspected_with_its_counts(tmp_path: Path, capsys) -> None:
    onnx = pytest.importorskip("onnx")
    from bnfold.cli import main

    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]>'
        " g (float[1, 3, 5, 5] x) => (float[1, 3, 5, 5] y) { z = Relu(x) y = Relu(z) }"
    )
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["inspect", str(tmp_path / "m.onnx")]) == 0
    out = capsys.readouterr().out
    size = (tmp_path / "m.onnx").stat().st_size
    lines = ["opset 17; IR version 8", "input x: float32 1x3x5x5", "output y: float32 1x3x5x5"]
    assert "\n".join(lines) in out
    assert re.search(r"^Relu +2 +2$", out, re.MULTILINE)
    assert re.search(rf"^file +{size} B$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("width", "names", "shown"),
    [
        (100, ["resnet18.onnx", "resnet50.onnx"], ["resnet18.onnx", "resnet50.onnx"]),
        (40, ["resnet18.onnx", "resnet50.onnx"], ["resnet18", "resnet50"]),
        (60, ["models/resnet18.onnx", "models/resnet50.onnx"], ["resnet18.onnx", "resnet50.onnx"]),
        (60, ["first/model.onnx", "second/model.onnx"], ["first/model.onnx", "second/model.onnx"]),
        (45, ["model.onnx", "model.pt2"], ["model.onnx", "model.pt2"]),
    ],
)
def test_models_side_by_side_are_told_apart(width, names, shown) -> None:
    looks = [Look(LONG.planned(), ({"BatchNormalization": 3}, {}), ())] * len(names)
    heading, *rows = side_by_side(names, looks, width).splitlines()
    assert heading.split() == shown
    assert max(map(len, rows)) <= width
