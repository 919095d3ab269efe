"""The result as a document: JSON there and back, a table, a fragment of HTML."""

from __future__ import annotations

import json
import math
import re

import pytest

from bnfold.verify.findings import LayerDifference, OutputDifference
from bnfold.verify.result import VerifyResult


def result(*, equal: bool = True) -> VerifyResult:
    output = OutputDifference(
        "logits", "float32", (2, 10), 1e-6, 2e-7, 3e-7, 4e-7, 1.0, 0.5, 5e-7, 6e-7, 7e-6, equal
    )
    broken = OutputDifference(
        "<b>", "int64", (), math.inf, 2.0, math.nan, 4.0, -1.0, None, 5.0, 6.0, 0.0, False, "why"
    )
    layers = (
        LayerDifference("conv1", "Conv2d", 1e-7, None, True),
        LayerDifference("conv2", "Conv2d", math.inf, 1e-7, equal, 1e-6, 3),
    )
    return VerifyResult(
        equal,
        (output,) if equal else (output, broken),
        layers,
        None if equal else "conv2",
        2,
        0,
        "float64",
        {"torch": "2"},
        ("a note",),
    )


def test_another_schema_is_refused():
    with pytest.raises(ValueError, match=r"not a bnfold\.verify/1 document"):
        VerifyResult.from_json('{"schema": "bnfold.report/1"}')


@pytest.mark.parametrize("equal", [True, False])
def test_json_there_and_back(equal):
    there = result(equal=equal).to_json()
    json.loads(there, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert VerifyResult.from_json(there).to_json() == there
    back = VerifyResult.from_json(there)
    assert back.outputs[0] == result(equal=equal).outputs[0]
    assert back.layers == result(equal=equal).layers


def test_the_table_says_what_is_wrong():
    text = result(equal=False).table()
    assert text.splitlines()[0] == "not equal in logits, <b>; they part at conv2"
    assert "NOT EQUAL" in text
    assert "first layer where they part: conv2, channel 3" in text
    assert "\x1b" not in text
    assert "\x1b" in result(equal=False).table(color=True)


def test_the_table_of_an_equal_pair():
    text = result().table()
    assert text.startswith("equal: largest difference 1e-06 absolute, 3e-07 relative")
    assert "50.0%" in text
    assert "a note" in text


@pytest.mark.parametrize("width", [40, 60, 80, 100])
@pytest.mark.parametrize("color", [False, True])
def test_the_table_fits(width, color):
    text = re.sub(r"\x1b\[[\d;]+m", "", result(equal=False).table(width=width, color=color))
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    for part in ("logits", "NOT EQUAL", "1.0e-06", "50.0%", "conv2", "a note", "max abs"):
        assert part in words


def test_names_are_escaped():
    assert "<b>" not in result(equal=False)._repr_html_().replace("<p><b>", "")
