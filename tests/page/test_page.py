"""The page as text, and the places of the boxes: no browser needed."""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise

import pytest

from bnfold import FoldReport
from bnfold.page.layout import HEIGHT, WIDTH, lay_out
from bnfold.page.text import escape, json_for_script, printable
from tests.page.support import NASTY, made_up, measured, page


@pytest.mark.parametrize("nasty", NASTY)
def test_no_name_ends_an_element_or_an_attribute(nasty: str) -> None:
    escaped = escape(nasty)
    assert not set("<>\"'\x1b\x00\r\n\u202e\u2028\ud800") & set(escaped)
    assert all(c.isprintable() for c in printable(nasty))
    text = json_for_script({nasty: nasty})
    assert not set("<>&\u2028\u2029") & set(text) and text.isascii()
    assert json.loads(text) == {nasty: nasty}


def test_hostile_names_everywhere() -> None:
    report = made_up(40, names=NASTY)
    html = report.to_html(title=NASTY[0], hashes={NASTY[1]: NASTY[2]})
    html.encode()
    assert html.count("<script") == 3 == html.count("</script")
    assert "<img" not in html and "<svg onload" not in html
    assert report._repr_html_().count("<img") == 0


def test_the_same_report_gives_the_same_bytes() -> None:
    assert page(made_up(60)) == page(made_up(60))


def test_a_large_network_stays_small() -> None:
    assert len(page(made_up(2000)).encode()) < 2_000_000


def test_a_report_without_anything() -> None:
    html = FoldReport(()).to_html()
    assert "No BatchNorm was found" in html and 'class="canvas"' not in html


def test_the_policy_names_the_hashes_of_what_runs() -> None:
    html = page(made_up(10))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None and "default-src &#x27;none" in policy[1].replace("'", "&#x27;")
    assert "unsafe" not in policy[1]


def test_the_libraries_are_what_was_published() -> None:
    vendor = files("bnfold.page") / "assets" / "vendor"
    packages = json.loads((vendor / "vendor.json").read_text())["packages"]
    named = {package["file"] for package in packages}
    assert named == {file.name for file in vendor.iterdir() if file.name.endswith(".js")}
    for package in packages:
        content = (vendor / package["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == package["sha256"]
        assert "opyright" in (vendor / f"{package['package']}.LICENSE").read_text()


@pytest.mark.parametrize("seed", range(20))
def test_boxes_do_not_overlap_and_lines_end_at_their_readers(seed: int) -> None:
    rng = random.Random(seed)
    inputs: list[list[int]] = []
    for number in range(rng.randrange(1, 160)):
        reach = range(max(0, number - rng.choice((2, 5, 60))), number)
        inputs.append(sorted(rng.sample(reach, min(len(reach), rng.choice((0, 1, 1, 2, 4))))))
    drawing = lay_out(inputs)
    assert len(set(drawing.boxes)) == len(inputs)
    boxes = sorted(drawing.boxes)
    for at, (x, y) in enumerate(boxes):
        assert 0 <= x <= drawing.width - WIDTH and 0 <= y <= drawing.height - HEIGHT
        for other_x, other_y in boxes[at + 1 :]:
            assert other_x - x >= WIDTH or abs(other_y - y) >= HEIGHT
    for number, read in enumerate(inputs):
        top = (drawing.boxes[number][0] + WIDTH // 2, drawing.boxes[number][1])
        for source in read:
            assert any(line[-1] == top for line in drawing.lines[source])
    for lines in drawing.lines.values():
        for line in lines:
            for (x, y), (next_x, next_y) in pairwise(line):
                assert x == next_x or y == next_y


def test_no_network_no_drawing() -> None:
    assert lay_out([]).boxes == ()


def test_a_latency_that_may_be_chance_is_no_gain() -> None:
    report = FoldReport((), (), (), {})
    bench = measured()
    first, folded = bench.rows
    assert "<dd>7.9% less time</dd>" in report.to_html(bench=bench)
    unsure = replace(bench, rows=(first, replace(folded, ratio=0.6, ratio_high=1.2)))
    assert "<dd>no difference</dd>" in report.to_html(bench=unsure)
    both = replace(bench, rows=(first, folded, replace(folded, batch=8, ratio=1.25)))
    assert "<dd>0.92\N{EN DASH}1.25</dd>" in report.to_html(bench=both)
