"""The result as data, words, table and chart."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from bnfold.bench.result import BenchResult
from bnfold.bench.rows import BenchRow

ROW = BenchRow(
    variant="original",
    runtime="eager",
    device="cpu",
    dtype="float32",
    layout="contiguous",
    batch=1,
    threads=2,
    calls=40,
    median=0.0123456,
    low=0.012,
    high=0.014,
    ratio=1.0,
    ratio_low=1.0,
    ratio_high=1.0,
)


def row(variant: str, ratio: float, low: float, high: float, **changes: object) -> BenchRow:
    return replace(
        ROW,
        variant=variant,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        **changes,  # type: ignore[arg-type]
    )


FASTER = row("folded", 0.912, 0.9, 0.93, median=0.0112)
SLOWER = row("folded", 1.2, 1.1, 1.3, batch=8)
RESULT = BenchResult(
    (ROW, FASTER, row("torch.fx", 1.4, 1.3, 1.5), replace(ROW, batch=8), SLOWER),
    {"processor": "A & B <C>", "cores": "2"},
    {"bnfold": "0"},
    ("floor cannot be run in eager: RuntimeError: <no>",),
)


@pytest.mark.parametrize(
    ("ratio", "low", "high"),
    [
        (1.3, 0.99, 1.5),  # the interval holds 1
        (1.009, 1.005, 1.02),  # beyond doubt, but not worth a word
        (1.0, 1.0, 1.0),
        (0.9, 0.8, 1.1),
    ],
)
def test_neither_slower_nor_faster(ratio: float, low: float, high: float) -> None:
    folded = row("folded", ratio, low, high)
    assert not folded.is_slower
    assert not folded.is_faster
    assert folded.outcome == "no difference"
    assert not BenchResult((ROW, folded)).is_slower


def test_only_the_folded_model_can_make_it_slower() -> None:
    assert not BenchResult((ROW, row("torch.fx", 2.0, 1.9, 2.1), FASTER)).is_slower
    assert RESULT.is_slower
    assert SLOWER.outcome == "20.0% more time"
    assert FASTER.outcome == "8.8% less time"
    assert ROW.outcome == ""


def test_summary() -> None:
    assert BenchResult(()).summary == "nothing was measured"
    assert BenchResult((ROW, FASTER)).summary == (
        "folded takes 0.912 of the original's time (0.900-0.930): 8.8% less time"
    )
    assert RESULT.summary == (
        "folded takes 0.912 to 1.200 of the original's time: faster in 1 of 2 settings, slower in 1"
    )


def test_json_there_and_back() -> None:
    assert BenchResult.from_json(RESULT.to_json()) == RESULT
    assert json.loads(RESULT.to_json())["schema"] == "bnfold.bench/1"


@pytest.mark.parametrize("text", ["{}", "[]", '{"schema": "bnfold.report/1"}'])
def test_another_document_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"bnfold\.bench/1"):
        BenchResult.from_json(text)


def test_table_names_what_differs_in_columns_and_the_rest_above() -> None:
    lines = RESULT.table().splitlines()
    assert (
        lines[1]
        == "eager, cpu, float32, contiguous, threads 2; 40 calls each, in turn; times in ms"
    )
    assert lines[3].split()[:3] == ["batch", "variant", "median"]
    figures = "1 folded 11.20 12.00 - 14.00 0.912 0.900 - 0.930 8.8% less time"
    assert " ".join(lines[5].split()) == figures
    assert lines[-1] == "note: floor cannot be run in eager: RuntimeError: <no>"
    assert "\x1b" not in RESULT.table()


def test_a_narrow_table_leaves_columns_out_and_colour_marks_outcomes() -> None:
    narrow = RESULT.table(width=60)
    assert "quartiles" not in narrow
    assert "0.912" in narrow
    coloured = RESULT.table(color=True).splitlines()
    assert coloured[5].startswith("\x1b[32m")
    assert coloured[8].startswith("\x1b[33m")


def test_chart_is_a_document_of_its_own_and_says_all_in_text() -> None:
    tree = ET.fromstring(RESULT.chart())
    space = "{http://www.w3.org/2000/svg}"
    titles = [element.text or "" for element in tree.iter(f"{space}title")]
    assert tree.get("role") == "img"
    assert RESULT.summary in titles[0] == tree.get("aria-label")
    assert titles[2] == "folded: 11.2 ms, ratio 0.912 (0.900 to 0.930)"
    bars = list(tree.iter(f"{space}rect"))
    widths = [float(bar.get("width", "0")) for bar in bars]
    assert len(bars) == len(RESULT.rows)
    assert widths[1] / widths[0] == pytest.approx(0.912, abs=1e-3)
    assert "prefers-color-scheme:dark" in RESULT.chart()
    assert "http" not in RESULT.chart().replace("http://www.w3.org/2000/svg", "")


def test_chart_stays_within_its_frame_whatever_the_ratio() -> None:
    wild = BenchResult((ROW, row("folded", 50.0, 20.0, 90.0)))
    tree = ET.fromstring(wild.chart())
    for bar in tree.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(bar.get("x", "0")) + float(bar.get("width", "0")) <= 720 - 150 + 0.1
    ET.fromstring(BenchResult(()).chart())


def test_a_notebook_shows_chart_and_table_and_every_name_is_escaped() -> None:
    shown = RESULT._repr_html_()
    assert "<svg" in shown
    assert "<td>0.912</td>" in shown
    assert "A &amp; B &lt;C&gt;" in shown
    assert "<no>" not in shown
    assert "<C>" not in BenchResult((row("<C>", 1.0, 1.0, 1.0),)).chart()
