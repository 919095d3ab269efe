"""`bnfold bench`: rows as they are measured, what Ctrl-C leaves, a closed stdout."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bnfold.bench import call
from bnfold.bench.result import BenchResult
from bnfold.bench.rows import BenchRow
from bnfold.cli import _output, main
from bnfold.cli._signals import Stopped

ROW = BenchRow(
    "original", "eager", "cpu", "float32", "contiguous", 1, 1, 9, 0.01, 0.01, 0.01, 1.0, 1.0, 1.0
)


def rows(batch: int, runtime: str = "eager") -> tuple[BenchRow, BenchRow]:
    original = replace(ROW, batch=batch, runtime=runtime)
    faster = {"ratio": 0.9, "ratio_low": 0.8, "ratio_high": 0.95, "median": 0.009}
    return original, replace(original, variant="folded", **faster)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval()
    file = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(net, (torch.rand(1, 3, 6, 6),)), file)
    return file


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let `bench` find these batches, then end in that way; what was printed when is returned."""

    def plan(*batches: int, end: BaseException | None = None) -> list[str]:
        seen: list[str] = []

        def bench(model: Any, *_: Any, found: Callable[[BenchResult], object], **__: Any) -> Any:
            done: tuple[BenchRow, ...] = ()
            for batch in batches:
                done += rows(batch)
                found(BenchResult(done))
                seen.append(sys.stdout.getvalue())  # type: ignore[attr-defined]
            if end is not None:
                raise end
            return BenchResult(done)

        monkeypatch.setattr(call, "bench", bench)
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        return seen

    return plan


def printed() -> str:
    return str(sys.stdout.getvalue())  # type: ignore[attr-defined]


def test_rows_are_printed_when_they_are_there(
    measured: Callable[..., list[str]], program: Path
) -> None:
    seen = measured(1, 8)
    assert main(["bench", str(program), "--batch", "1,8"]) == 0
    assert seen[0] == "batch 1: original 10 ms\nbatch 1: folded 9 ms, 0.900\n"
    assert seen[1] == seen[0] + "batch 8: original 10 ms\nbatch 8: folded 9 ms, 0.900\n"
    assert printed().startswith(seen[1] + "\nfolded takes 0.900 to 0.900")


def test_where_one_setting_is_measured_only_the_table_is_printed(
    measured: Callable[..., list[str]], program: Path
) -> None:
    seen = measured(1)
    assert main(["bench", str(program), "--batch", "1"]) == 0
    assert seen == [""]
    assert printed().startswith("folded takes")


def test_json_is_one_document(measured: Callable[..., list[str]], program: Path) -> None:
    seen = measured(1, 8)
    assert main(["bench", str(program), "--batch", "1,8", "--json"]) == 0
    assert seen == ["", ""]
    assert len(json.loads(printed())["rows"]) == 4


@pytest.mark.parametrize(("end", "status"), [(KeyboardInterrupt(), 130), (Stopped(15), 143)])
def test_ctrl_c_keeps_what_was_measured(
    end: BaseException, status: int, measured: Callable[..., list[str]], program: Path
) -> None:
    chart = program.with_name("chart.svg")
    measured(1, 8, end=end)
    options = ["--batch", "1,8,32", "--chart", str(chart)]
    assert main(["bench", str(program), *options]) == status
    table = printed().partition("\n\n")[2]
    assert "faster in 2 of 2 settings" in table
    assert "note: interrupted; these were measured until then" in table
    assert chart.read_text(encoding="utf-8").startswith("<svg")


def test_ctrl_c_keeps_what_was_measured_as_json(
    measured: Callable[..., list[str]], program: Path
) -> None:
    measured(1, end=KeyboardInterrupt())
    assert main(["bench", str(program), "--batch", "1,8", "--json"]) == 130
    document = json.loads(printed())
    assert len(document["rows"]) == 2
    assert document["notes"] == ["interrupted; these were measured until then"]


def test_ctrl_c_before_anything_was_measured(
    measured: Callable[..., list[str]], program: Path
) -> None:
    chart = program.with_name("chart.svg")
    measured(end=KeyboardInterrupt())
    assert main(["bench", str(program), "--batch", "1,8", "--chart", str(chart)]) == 130
    assert printed() == ""
    assert not chart.exists()


def test_an_error_on_the_way_is_still_an_error(
    measured: Callable[..., list[str]], program: Path
) -> None:
    measured(1, end=RuntimeError("no"))
    assert main(["bench", str(program), "--batch", "1,8"]) == 70
    assert "note: interrupted" not in printed()


def test_rows_make_room_for_themselves_on_a_terminal(
    measured: Callable[..., list[str]], program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Line:
        cleared = 0

        def clear(self) -> None:
            self.cleared += 1

    line = Line()
    monkeypatch.setattr(_output, "_lines", [line])
    measured(1, 8)
    main(["bench", str(program), "--batch", "1,8"])
    assert line.cleared == 4  # two rows, the gap, the table


# -------------------------------------------------------------------- as wide as the terminal

WIDE = BenchResult(
    tuple(
        replace(row, threads=threads)
        for batch in (1, 16)
        for threads in (1, 2)
        for runtime in ("onnxruntime", "onnxruntime optimised")
        for row in rows(batch, runtime)
    ),
    {"processor": "A processor with a long name and many cores", "cores": "2"},
    {"bnfold": "1", "numpy": "2.4", "onnx": "1.2", "onnxruntime": "1.3", "python": "3.11"},
    ("the machine is busy: its load was 4.2 while two cores were there to be measured on",),
)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
@pytest.mark.parametrize("result", [WIDE, BenchResult(rows(1)), BenchResult(rows(1) + rows(8))])
@pytest.mark.parametrize("color", [True, False])
def test_a_table_fits(width: int, result: BenchResult, color: bool) -> None:
    text = re.sub(r"\x1b\[\d+m", "", result.table(color=color, width=width))
    assert max(map(len, text.splitlines())) <= max(width, 44)
    assert text.count("10.0% less time") + text.count("10.0% less\n") >= len(result.rows) // 2
    assert text.count("original  ") >= len(result.rows) // 2


def test_settings_are_headings_where_there_is_no_room() -> None:
    lines = WIDE.table(width=60).splitlines()
    at = lines.index("onnxruntime optimised, batch 16, threads 2")
    assert lines[at + 1].split() == ["original", "10.00", "1.000"]
    assert lines[at + 2].split() == ["folded", "9.000", "0.900", "10.0%", "less", "time"]
    heads = [line for line in lines if line.split() == ["variant", "median", "ratio"]]
    assert len(heads) == 1
