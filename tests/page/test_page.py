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

from bnfold import FoldReport, Item, Kept, Reason, Removed
from bnfold.network import NetworkNode, State
from bnfold.outcomes import Merged
from bnfold.page.drawing import box_width, draw_svg
from bnfold.page.html import breakable
from bnfold.page.layout import HEIGHT, lay_out
from bnfold.page.text import escape, head, json_for_script, printable, tail, width_of
from tests.page.support import NASTY, made_up, measured, page, verified

WIDTH = 170
"""Of a box."""


@pytest.mark.parametrize("nasty", NASTY)
def test_no_name_ends_an_element_or_an_attribute(nasty: str) -> None:
    escaped = escape(nasty)
    assert not set("<>\"'\x1b\x00\r\n\u202e\u2028\ud800") & set(escaped)
    assert all(c.isprintable() for c in printable(nasty))
    text = json_for_script({nasty: nasty})
    assert not set("<>&\u2028\u2029") & set(text) and text.isascii()
    assert json.loads(text) == {nasty: nasty}


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        (
            "/stages/stages.0/conv_kxk/Conv",
            "/stages/<wbr>stages.<wbr>0/<wbr>conv_kxk/<wbr>Conv",
        ),
        ("layer1.0.downsample.1.norm", "layer1.<wbr>0.<wbr>downsample.<wbr>1.<wbr>norm"),
        ("a sentence that ends in a point.", "a sentence that ends in a point."),
        ("and in some more of them ...", "and in some more of them ..."),
        ("a/b", "a/b"),
        ("/stem/conv_1x1/conv, /stem/Add", "/stem/<wbr>conv_1x1/<wbr>conv, /stem/<wbr>Add"),
        ("//long/<b>&amp;/name/with/markup", "//long/<wbr>&lt;b&gt;&amp;amp;/<wbr>name/<wbr>"),
    ],
)
def test_where_a_long_name_is_broken(name: str, broken: str) -> None:
    assert breakable(name).startswith(broken)


def test_what_was_merged_is_in_the_lead() -> None:
    report = FoldReport(
        (Item("bn", "BatchNorm2d", 4, 1, Removed(("c",))),),
        merged=(Merged("c", "Conv", ("d", "e", "f")),),
    )
    assert '<p class="lead">1 of 1 BatchNorm2d removed; 3 ops merged into 1 Conv</p>' in (
        report.to_html()
    )


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
    drawing = lay_out(inputs, WIDTH)
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
    assert lay_out([], WIDTH).boxes == ()


def test_a_latency_that_may_be_chance_is_no_gain() -> None:
    report = FoldReport((), (), (), {})
    bench = measured()
    first, folded = bench.rows
    assert "<dd>7.9% less time</dd>" in report.to_html(bench=bench)
    unsure = replace(bench, rows=(first, replace(folded, ratio=0.6, ratio_high=1.2)))
    assert "<dd>no difference</dd>" in report.to_html(bench=unsure)
    both = replace(bench, rows=(first, folded, replace(folded, batch=8, ratio=1.25)))
    assert "<dd>0.92\N{EN DASH}1.25</dd>" in report.to_html(bench=both)


LONG = (
    "BatchNormalization",
    "GlobalAveragePool",
    "W" * 40,
    "native_batch_norm",
    "\u5c42" * 30,
    "i",
)


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("state", list(State))
def test_boxes_are_as_wide_as_their_words(kind: str, state: State) -> None:
    node = NetworkNode("n" * 300, kind, (), state)
    width = box_width([node])
    assert 150 <= width <= 240
    svg = draw_svg([node], title="", identity="before", items={}, width=width)
    shown = re.findall(r"<text([^>]*)>([^<]*)</text>", svg)
    (_, first), (_, name), *word = shown
    beside = width_of(word[0][1], 10) + 8 if word else 0
    assert width_of(first, 12, bold=True) + beside <= width - 14
    assert width_of(first, 18) <= width - 14
    assert width_of(name, 11) <= width - 14
    assert first == kind or (first.endswith("\N{HORIZONTAL ELLIPSIS}") and width > 225)


def test_the_usual_kinds_are_never_cut() -> None:
    kinds = ("BatchNormalization", "ConvTranspose2d", "AdaptiveAvgPool2d", "GlobalAveragePool")
    nodes = [NetworkNode("n", kind, (), state) for kind in kinds for state in State]
    svg = draw_svg(nodes, title="", identity="after", items={}, width=box_width(nodes))
    assert all(svg.count(f">{kind}<") == len(State) for kind in kinds)


@pytest.mark.parametrize(
    ("name", "room", "shown"),
    [
        ("conv1", 100, "conv1"),
        ("layer1.0.downsample.0", 200, "layer1.0.downsample.0"),
        ("layer1.0.downsample.0", 100, "\u2026downsample.0"),
        ("/layer1/layer1.0/conv2", 100, "\u2026layer1.0/conv2"),
        ("mobilenet0_batchnorm14", 100, "\u2026batchnorm14"),
        ("", 10, ""),
        ("abc", 0, "\u2026"),
    ],
)
def test_a_name_keeps_its_end(name: str, room: float, shown: str) -> None:
    found = tail(name, room, 11)
    assert found == shown or (shown[1:] and found.endswith(shown[3:]) and found[0] == "\u2026")
    assert width_of(found, 11) <= max(room, 11)
    assert head("GlobalAveragePool", 60, 12).endswith("\u2026")
    assert head("Conv", 60, 12) == "Conv"


def test_ops_and_sizes_are_those_of_the_files() -> None:
    report = made_up(40)
    ops = ({"Conv": 9, "BatchNormalization": 7, "Identity": 2}, {"Conv": 9, "Identity": 2})
    html = report.to_html(ops=ops, sizes=(102_500_000, 99_000_000))
    assert "<dd>18 \N{RIGHTWARDS ARROW} 11</dd>" in html
    assert "<dd>102.5 \N{RIGHTWARDS ARROW} 99.0 MB</dd>" in html
    rows = re.findall(r'<th scope="row" class="code">(\w+)</th><td class="number">', html)
    assert rows[:5] == ["BatchNormalization", "Conv", "Identity", "all", "file"]
    data = re.search(r'id="data">(.*?)</script>', html)
    assert data is not None
    document = json.loads(data[1])
    assert document["ops"] == {"before": ops[0], "after": ops[1]}
    assert (document["bytes"], document["bytes_written"]) == (102_500_000, 99_000_000)
    assert FoldReport.from_json(json.dumps(document["report"])).network == report.network


def test_sizes_where_the_unit_changes_or_nothing_is_written() -> None:
    report = made_up(10)
    assert "<dd>1.0 MB \N{RIGHTWARDS ARROW} 900.0 kB</dd>" in report.to_html(sizes=(10**6, 900_000))
    assert "<dd>2.0 kB</dd>" in report.to_html(sizes=(2000, None))
    assert "<dt>file</dt>" not in report.to_html()


def test_the_legend_names_what_is_drawn() -> None:
    html = made_up(6).to_html()
    assert "</svg>removed</li>" in html and "</svg>kept</li>" not in html
    assert "</svg>kept</li>" in made_up(60).to_html()


def test_one_long_kind_or_name_does_not_widen_every_box() -> None:
    usual = [NetworkNode(f"layer{n}.conv", "Conv2d", (), State.EDITED) for n in range(30)]
    rare = [
        NetworkNode("max_pool2d_with_indices in maxpool", "max_pool2d_with_indices"),
        NetworkNode("a.very.long.path.to.a.layer", "Conv2d"),
    ]
    plain = [NetworkNode(f"layer{n}.relu", "ReLU") for n in range(30)]
    assert box_width([*usual, *plain, *rare]) == box_width([*usual, *plain])
    step = NetworkNode("n", "FrozenBatchNorm2dOfMine", (), State.KEPT)
    assert box_width([*usual, step]) > box_width(usual)


@pytest.mark.parametrize("truth", ["float64", "nudged", "original"])
def test_every_way_to_measure_errors_is_explained(truth: str) -> None:
    report = made_up(10)
    html = replace(report, verdict=replace(verified(report), truth=truth)).to_html()
    assert "folded, off by</th>" in html
    assert ("original, off by</th>" in html) == (truth != "original")
    (note,) = re.findall(r'<p class="note">([^<]*off by[^<]*)</p>', html)
    assert ("float64" in note) == (truth != "original") and "rounding" in note
    assert "Both were run on 4 random inputs (seed 0)." in html


def test_a_kept_step_is_named_once_as_kept() -> None:
    html = made_up(60).to_html()
    assert '<span class="chip kept">kept</span>' in html
    assert "kept: " not in html.split('id="items"')[1].split("</section>")[0]


def test_reasons_say_what_to_do() -> None:
    kept = Item("bn", "BatchNorm2d", 8, 1, Kept(Reason.CLIP_COST, "relu"))
    assert "--clip always removes them" in FoldReport((kept,)).to_html()
    unusual = Item("bn", "BatchNorm2d", 8, 1, Kept(Reason.ZERO_GAMMA, "conv"))
    text = FoldReport((unusual,)).to_html().replace("<wbr>", "")
    assert "see docs/reasons.md#zero-gamma" in text


def test_an_inspection_says_what_would_be() -> None:
    """Chips, filters, boxes and legend; and the ops of the file, not of the drawing."""
    report = made_up(60).planned()
    text = report.to_html(ops=({"Conv": 7, "BatchNormalization": 2}, {"Conv": 7}))
    assert '<span class="chip removed">would go</span>' in text
    assert '<span class="chip kept">would stay</span>' in text
    assert re.findall(r'<option value="(would [a-z]+)">', text) == ["would go", "would stay"]
    assert set(re.findall(r'<text class="w">([a-z ]+)</text>', text)) >= {"would go", "would stay"}
    legend = text[text.index('class="legend"') : text.index('<div class="canvas"')]
    assert "would go" in legend and "would stay" in legend and "would get one bound" in legend
    words = re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", text, flags=re.S)
    assert not re.search(r"\bremoved\b(?<!would be removed)|\bkept\b|\btook a\b", words)
    assert "what would happen" in words and "what happened" not in words
    assert "9 \N{RIGHTWARDS ARROW} 7" in words
    assert '<div class="canvas" data-planned' in text
    assert "data-planned tabindex" not in made_up(60).to_html()
