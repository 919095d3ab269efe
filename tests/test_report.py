"""The report: counts, sentences, JSON and its schema, the console table, the notebook table."""

from __future__ import annotations

import dataclasses
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bnfold import FoldReport, FoldResult, Item, Kept, Reason, Removed
from bnfold.cli._summary import Ending, summary
from bnfold.outcomes import Merged
from bnfold.verify.result import VerifyResult
from tests.page.support import made_up

REPORT = FoldReport(
    (
        Item("stem.bn", "BatchNorm2d", 16, 1, Removed(("stem.conv",))),
        Item("block.norm", "FrozenBatchNorm2d", 8, 2, Removed(("a", "b", "c", "d", "e"))),
        Item("head.bn", "BatchNorm1d", 5, 1, Kept(Reason.GRAPH_OUTPUT, "output", "channel 3")),
        Item("tail.bn", "BatchNorm1d", 7, 0, Kept(Reason.NOT_REACHED)),
    ),
    clips=("stem.relu",),
    notes=("shapes are fixed",),
    versions={"torch": "2.13.0"},
)


def schema() -> dict[str, Any]:
    text = files("bnfold").joinpath("report.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "bnfold.report/2"),
        (("removed",), -1),
        (("extra",), 1),
        (("items", 0, "outcome"), "gone"),
        (("items", 0, "reason"), "padding"),
        (("items", 2, "reason"), None),
        (("items", 2, "reason"), "because"),
        (("items", 2, "into"), ["conv"]),
        (("items", 0, "channels"), "16"),
        (("difference",), {"absolute": 0.0}),
        (("network",), {"before": [{"name": "a"}]}),
        (("network",), {"before": [{"name": "a", "kind": "b", "state": "gone"}]}),
        (("network",), {"before": [{"name": "a", "kind": "b", "inputs": [-1]}]}),
        (("network",), {}),
    ],
)
def test_schema_rejects(path: tuple[Any, ...], value: Any) -> None:
    document = json.loads(REPORT.to_json())
    *way, last = path
    place = document
    for step in way:
        place = place[step]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema())


def test_the_schema_describes_a_network() -> None:
    report = made_up(60)
    document = json.loads(report.to_json())
    assert len(document["network"]["before"]) > 60
    jsonschema.validate(document, schema())
    del document["network"]  # documents from before there was one
    jsonschema.validate(document, schema())


@pytest.mark.parametrize("text", ["{}", '{"schema": "bnfold.report/2"}', "[]", "null", "[", "{"])
def test_another_document_is_not_read_as_a_report(text: str) -> None:
    with pytest.raises(ValueError):
        FoldReport.from_json(text)


def test_schema_itself_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def test_schema_lists_every_reason() -> None:
    listed = schema()["$defs"]["item"]["properties"]["reason"]["enum"]
    assert listed == [None, *(str(reason) for reason in Reason)]


def test_schema_accepts_the_report() -> None:
    jsonschema.validate(json.loads(REPORT.to_json()), schema())
    jsonschema.validate(FoldReport(()).to_dict(), schema())


def test_schema_accepts_what_the_command_adds() -> None:
    difference = {"absolute": 1e-7, "relative": 1e-8}
    for added in ({"output": None, "difference": None}, {"output": "a", "difference": difference}):
        jsonschema.validate({**REPORT.to_dict(), **added}, schema())


def test_json_round_trip() -> None:
    assert FoldReport.from_json(REPORT.to_json()) == REPORT
    assert FoldReport.from_json(REPORT.to_json(indent=None)) == REPORT


def test_counts() -> None:
    assert (REPORT.total, REPORT.removed, REPORT.kept) == (4, 2, 2)
    assert (FoldReport(()).total, FoldReport(()).removed, FoldReport(()).kept) == (0, 0, 0)


def test_items_tell_their_outcome() -> None:
    stem, _, head, tail = REPORT.items
    assert (stem.is_removed, stem.into, stem.reason, stem.blocker) == (
        True,
        ("stem.conv",),
        None,
        None,
    )
    assert (head.is_removed, head.into, head.reason, head.blocker) == (
        False,
        (),
        Reason.GRAPH_OUTPUT,
        "output",
    )
    assert (tail.reason, tail.blocker) == (Reason.NOT_REACHED, None)


def test_sentences() -> None:
    stem, block, head, tail = (item.sentence for item in REPORT.items)
    assert stem == "folded into stem.conv"
    assert block == "folded into a, b, c and 2 more"
    assert head.startswith("kept: ") and "output" in head and head.endswith("(channel 3)")
    assert tail.startswith("kept: ") and "{" not in tail


def test_what_is_planned_is_told_as_such() -> None:
    report = dataclasses.replace(REPORT, merged=(Merged("c", "Conv", ("d", "e")),)).planned()
    stem, block, *kept = (item.sentence for item in report.items)
    assert stem == "would be folded into stem.conv"
    assert block == "would be folded into a, b, c and 2 more"
    stays = [item.sentence.replace("kept: ", "would stay: ", 1) for item in REPORT.items[2:]]
    assert kept == stays and kept
    assert report.summary == REPORT.summary.replace("removed", "would be removed")
    assert report.merged_summary == "2 ops would be merged into 1 Conv"
    alone = Item("bn", "BatchNorm2d", 4, 1, Removed(()), is_planned=True)
    assert alone.sentence == "would be removed"
    shown = [
        report.table(),
        report.table(color=True),
        report._repr_html_(),
        report.to_html(),
        summary(Ending(report), width=60),
        summary(Ending(report), width=80, table=True),
    ]
    for text in shown:
        told = " ".join(text.split())
        assert "would be removed" in told and "would become max(x, c)" in told
        for done in (r"\bremoved", r"\bfolded into", r"\bmerged into"):
            assert not re.search(rf"(?<!would be ){done}", _words(text)), done
        assert not re.search(r"\bbecame|\bkept\b|\btook a\b", _words(text))


def _words(text: str) -> str:
    """What is read of a page: without its style and its script, and the names of its parts."""
    text = re.sub(r"<(style|script).*?</\1>|\x1b\[\d+m", "", text, flags=re.S)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def test_a_plan_is_equal_to_what_was_done_and_is_still_one_when_read_back() -> None:
    report = REPORT.planned()
    assert report == REPORT
    document = json.loads(report.to_json())
    jsonschema.validate(document, schema())
    assert document == {**json.loads(REPORT.to_json()), "planned": True}
    assert str(FoldReport.from_json(report.to_json())) == str(report) != str(REPORT)
    assert str(FoldReport.from_json(REPORT.to_json())) == str(REPORT)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_a_sentence_that_takes_its_blocker(reason: Reason) -> None:
    with_blocker = Item("n", "BatchNorm2d", 1, 1, Kept(reason, "layer4.conv")).sentence
    without = Item("n", "BatchNorm2d", 1, 1, Kept(reason)).sentence
    assert "{" not in with_blocker + without and "None" not in with_blocker + without
    assert ("layer4.conv" in with_blocker) == (with_blocker != without)


def test_summary_counts_by_kind() -> None:
    assert (
        REPORT.summary == "0 of 2 BatchNorm1d, 1 of 1 BatchNorm2d, 1 of 1 FrozenBatchNorm2d removed"
    )
    assert FoldReport(()).summary == "no BatchNorm found"


def test_table_says_everything() -> None:
    table = REPORT.table(width=200)
    for item in REPORT.items:
        line = next(line for line in table.splitlines() if line.startswith(item.name))
        assert item.kind in line and str(item.channels) in line and item.sentence in line
    assert REPORT.summary in table
    assert "1 activation became max(x, c) or min(x, c), one constant per channel" in table
    assert "shapes are fixed" in table
    assert str(REPORT) == REPORT.table()


def test_table_has_colour_only_when_asked() -> None:
    assert "\x1b" not in REPORT.table()
    assert "\x1b[" in REPORT.table(color=True)


def test_narrow_table_folds_and_loses_nothing() -> None:
    table = REPORT.table(width=40)
    assert max(len(line) for line in table.splitlines()) <= 40
    assert "…" not in table


@pytest.mark.parametrize("nasty", ["\x1b[2J", "a\nb", "a\rb", "\x9b31m", "\u202egnp"])
def test_control_characters_do_not_reach_the_terminal(nasty: str) -> None:
    items = (
        Item(nasty, f"Batch{nasty}", 3, 1, Removed((nasty,))),
        Item("x", "BatchNorm2d", 3, 1, Kept(Reason.PADDING, nasty, nasty)),
    )
    table = FoldReport(items, notes=(nasty,)).table(width=200)
    assert nasty not in table
    assert not set("\x1b\r\x9b\u202e") & set(table)


@pytest.mark.parametrize("color", [False, True])
def test_names_are_no_markup_for_the_console(color: bool) -> None:
    report = FoldReport((Item("[red]x[/red]", "BatchNorm2d", 3, 1, Removed(("[link]",))),))
    table = report.table(color=color, width=200)
    assert "[red]x[/red]" in table and "[link]" in table


def test_html_escapes_names() -> None:
    nasty = "<script>alert('&')</script>"
    items = (
        Item(nasty, nasty, 3, 1, Removed((nasty,))),
        Item("x", "BatchNorm2d", 3, 1, Kept(Reason.PADDING, nasty, nasty)),
    )
    fragment = FoldReport(items, notes=(nasty,))._repr_html_()
    assert "<script" not in fragment
    assert "&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;" in fragment


def test_html_shows_every_item() -> None:
    fragment = REPORT._repr_html_()
    assert fragment.count("<tr>") == 1 + REPORT.total
    for item in REPORT.items:
        assert f"<td>{item.name}</td>" in fragment


@pytest.mark.parametrize("width", [40, 60, 80, 100, 10_000])
def test_names_are_shortened_and_never_broken(width: int) -> None:
    stem = "features.denseblock4.denselayer16"
    removed = Removed((f"{stem}.conv1", f"{stem}.conv2"))
    report = FoldReport(
        (
            Item(f"{stem}.norm1", "BatchNormAct2d", 64, 1, removed),
            Item(f"{stem}.norm2", "BatchNormAct2d", 128, 1, Kept(Reason.PADDING, f"{stem}.conv3")),
        ),
        notes=("A note that is long. " * 8,),
    )
    lines = report.table(width=width).splitlines()
    assert max(map(len, lines)) <= width
    told = " ".join(" ".join(lines).split())
    assert "folded into" in told and "kept: its shift would have to cross" in told
    for word in told.split():  # whole, or with its beginning and its end
        if "." in word.strip(".") and not word.startswith(stem):
            assert re.fullmatch(r"f[\w.]*\.\.\.[\w.]*(norm\d|conv\d),?|\w*long\.", word), word
    assert ("BatchNormAct2d" in lines[2]) == (width >= 80)
    colored = report.table(width=width, color=True)
    assert re.sub(r"\x1b\[\d+m", "", colored).splitlines() == lines


def test_a_prompt_echoes_a_report_in_a_line() -> None:
    assert repr(REPORT) == f"<FoldReport: {REPORT.summary}>"
    assert "would be removed" in repr(REPORT.planned())
    assert repr(VerifyResult(True)) == f"<VerifyResult: {VerifyResult(True).summary}>"


def test_names_that_are_no_text() -> None:
    """Caffe's names are bytes: what is no UTF-8 can be sent as JSON and shown in a notebook."""
    item = Item("a\udcff\x1b]0;b", "BN", 1, 1, Removed(("c",)))
    report = FoldReport((item,))
    assert report.to_json().encode()
    assert FoldReport.from_json(report.to_json()) == report
    fragment = report._repr_html_()
    assert fragment.encode()
    assert "\x1b" not in fragment


def test_a_notebook_shows_the_report_of_a_result():
    result = FoldResult("a model", REPORT)
    assert result._repr_html_() == REPORT._repr_html_()
    assert "a model" not in result._repr_html_()


class Endless:
    """A model whose own text is pages long."""

    def __repr__(self) -> str:
        return "(layer): Conv2d\n" * 1000


def test_what_is_printed_of_a_result_is_the_report():
    assert str(FoldResult(Endless(), REPORT)) == str(REPORT)


@pytest.mark.parametrize(
    ("model", "name"),
    [(Endless(), "Endless"), (Path("net.folded.onnx"), "net.folded.onnx"), (Path("\x1b"), "")],
)
def test_a_prompt_echoes_a_line(model: object, name: str) -> None:
    line = repr(FoldResult(model, REPORT))
    assert line.startswith(f"<FoldResult of {name}") and REPORT.summary in line
    assert "\n" not in line and "\x1b" not in line
