"""The report of a run of random networks."""

from __future__ import annotations

import json

from benchmarks.fuzz import Found, _document, _report


def test_a_report_is_written_with_all_counts(tmp_path, capsys):
    found = Found(networks=3, messages=["wrong: by 1"], failing=[(7, "all")], seconds=90.0)
    found.folded.update({"torch": 3, "onnx": 2})
    found.failures["wrong"] += 1
    total = Found()
    total.add(found)
    total.add(found)
    _report(total, 5, tmp_path / "new" / "fuzz.json")
    written = json.loads((tmp_path / "new" / "fuzz.json").read_text())
    assert written["seed"] == 5
    assert written["networks"] == 6
    assert written["folded"] == {"torch": 6, "onnx": 4}
    assert written["failures"] == {"wrong": 2}
    assert "wrong 2" in capsys.readouterr().out
    row = _document(total, 5, ("torch", "onnx")).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")] == [
        *("", "6 drawn", "6", "4", "2", "0", "0", "0", "5", "3 min", "")
    ]
