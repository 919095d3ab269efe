"""The errors per output and per layer, and the latency: what VerifyResult and BenchResult know."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bnfold.page.html import Cell, Column, paragraphs, row, section, table
from bnfold.page.text import escape

if TYPE_CHECKING:
    from bnfold.bench.result import BenchResult
    from bnfold.bench.rows import BenchRow
    from bnfold.verify.findings import LayerDifference, OutputDifference
    from bnfold.verify.result import VerifyResult

_OWN = Column("original, off by", is_number=True)
_OUTPUTS = (
    Column("output", css="code"),
    Column("dtype"),
    Column("largest difference", is_number=True),
    Column("relative", is_number=True),
    Column("cosine", is_number=True),
    Column("same class", is_number=True),
    Column("folded, off by", is_number=True),
    _OWN,
    Column("verdict"),
)
_LAYERS = (
    Column("layer", css="code"),
    Column("kind", css="kind"),
    Column("difference", is_number=True),
    Column("rounding alone", is_number=True),
    Column("verdict"),
)
_TIMES = (
    Column("variant"),
    Column("runtime"),
    Column("setting"),
    Column("time", css="bars"),
    Column("median (quartiles)", is_number=True),
    Column("of the original's", is_number=True),
    Column("outcome"),
)
_TRUTHS = {
    "float64": (
        "Rounding puts every result a little off, the original's as well. To see by how much, the"
        ' original is computed in float64, too: "off by" is how far each is from that (RMS). If'
        " the folded model is about as far off as the original, or less, only rounding has changed."
    ),
    "nudged": (
        "Rounding puts every result a little off, the original's as well. It cannot be computed in"
        ' float64 here, so that "original, off by" is how far it moves if its inputs and weights'
        ' change in their last bit, and "folded, off by" is how far the folded model is from the'
        " original (RMS). If these are about the same, only rounding has changed."
    ),
    "original": (
        'The two were compared directly: "folded, off by" is how far the folded model is from the'
        " original (RMS). Where the verdict is equal, a few roundings of numbers of this size"
        " explain it."
    ),
}
_LAYER_NOTE = (
    'Solid, "difference": how far each layer of the folded model is from the original\'s, relative'
    ' to its size. Dashed, "rounding alone": how far rounding the folded weights moves it.'
)


def verify_section(result: VerifyResult) -> str:
    """Does it compute the same?"""
    css = "good" if result.equal else "bad"
    body = paragraphs_with(result.summary, css)
    drawn = "given" if result.seed is None else "random"
    seed = "" if result.seed is None else f" (seed {result.seed})"
    inputs = "input" if result.samples == 1 else "inputs"
    caption = f"Both were run on {result.samples} {drawn} {inputs}{seed}."
    truth = "original" if result.scope else result.truth
    scope = f"{result.scope[0].upper()}{result.scope[1:]}." if result.scope else ""
    if result.outputs:
        columns = [column for column in _OUTPUTS if truth != "original" or column is not _OWN]
        body += paragraphs(filter(None, [_TRUTHS.get(truth), scope]))
        rows = (row(columns, _output(output, columns)) for output in result.outputs)
        body += table(columns, rows, caption=caption)
        body += paragraphs(output.detail for output in result.outputs if output.detail)
    body += _layers(result)
    runtimes = ", ".join(f"{name} {version}" for name, version in result.runtimes.items())
    body += paragraphs([f"Run by {runtimes}."] if runtimes else [])
    return section("verify", "Does it compute the same?", body + paragraphs(result.notes))


def paragraphs_with(text: str, css: str) -> str:
    """One paragraph in the colour of its message."""
    return paragraphs([text]).replace('class="note"', f'class="{css}"')


def _output(output: OutputDifference, columns: Sequence[Column]) -> list[str | Cell]:
    shape = "x".join(map(str, output.shape))
    cells: list[str | Cell] = [
        output.name,
        f"{output.dtype} {shape}".strip(),
        _number(output.max_absolute),
        _number(output.max_relative),
        f"{output.cosine:.9g}",
        "" if output.top1 is None else f"{output.top1:.1%}",
        _number(output.error),
        _number(output.own_error),
        _verdict(output.equal),
    ]
    return [cell for cell, column in zip(cells, _OUTPUTS, strict=True) if column in columns]


def _layers(result: VerifyResult) -> str:
    if not result.layers:
        return ""
    apart = sum(not layer.equal for layer in result.layers)
    caption = f"In the order of the network; {len(result.layers) - apart} of {len(result.layers)}"
    caption += " differ by no more than rounding."
    rows = map(_layer, result.layers)
    listed = table(_LAYERS, rows, caption=caption, css="slim", sortable=True)
    return f"<h3>Layer by layer</h3>{_plot(result.layers)}{listed}"


def _layer(layer: LayerDifference) -> str:
    own = "" if layer.own is None else _number(layer.own)
    verdict = "equal" if layer.equal else _verdict(layer.equal)
    cells = [layer.name, layer.kind, _number(layer.relative), own, verdict]
    return row(_LAYERS, cells, is_labelled=False)


def _verdict(is_equal: bool) -> Cell:
    word, css = ("equal", "good") if is_equal else ("not equal", "bad")
    return Cell("", f'<span class="{css}">{word}</span>')


def _number(value: float) -> str:
    return f"{value:.3g}"


# ---------------------------------------------------------------------------------------- the plot

_WIDE, _HIGH = 960, 190
_LEFT, _BOTTOM, _TOP = 76, 14, 14


def _plot(layers: Sequence[LayerDifference]) -> str:
    """The difference along the network, by powers of ten."""
    values = [layer.relative for layer in layers]
    values += [layer.own for layer in layers if layer.own is not None]
    positive = [value for value in values if 0 < value < math.inf]
    if len(layers) < 2 or not positive:
        return ""
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    high = max(high, low + 1)

    def height(value: float) -> float:
        part = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return round(_HIGH - _BOTTOM - min(part, 1.0) * (_HIGH - _BOTTOM - _TOP), 1)

    steps = max(1, (high - low) // 5)
    axis = "".join(
        f'<path class="axis" d="M{_LEFT} {height(10.0**power)}H{_WIDE}"/>'
        f'<text x="{_LEFT - 6}" y="{height(10.0**power) + 4}" text-anchor="end">1e{power}</text>'
        for power in range(low, high + 1, steps)
    )
    own = _curve([layer.own for layer in layers], height)
    folded = _curve([layer.relative for layer in layers], height)
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDE} {_HIGH}" role="img"'
        ' aria-label="Relative difference of each layer, in the order of the network; the table'
        f' below has the numbers">{axis}<path class="own" d="{own}"/>'
        f'<path class="folded" d="{folded}"/></svg>'
        f'<p class="note">{escape(_LAYER_NOTE)}</p>'
    )


def _curve(values: Sequence[float | None], height: Callable[[float], float]) -> str:
    step = (_WIDE - _LEFT) / max(1, len(values) - 1)
    parts: list[str] = []
    is_open = False
    for place, value in enumerate(values):
        if value is None or math.isnan(value):
            is_open = False
            continue
        parts.append(f"{'L' if is_open else 'M'}{round(_LEFT + place * step, 1)} {height(value)}")
        is_open = True
    return "".join(parts)


# ----------------------------------------------------------------------------------------- latency


def bench_section(result: BenchResult) -> str:
    """Is it faster?"""
    body = paragraphs([result.summary])
    if result.rows:
        longest = max(max(row.high, row.median) for row in result.rows)
        caption = (
            "Median time per call, with quartiles; the ratio with its 95% interval. Bars of all"
            " rows have one scale."
        )
        body += table(_TIMES, (_time(timed, longest) for timed in result.rows), caption=caption)
    machine = "; ".join(f"{name}: {value}" for name, value in result.machine.items())
    versions = ", ".join(f"{name} {value}" for name, value in result.versions.items())
    body += paragraphs(filter(None, (machine, versions, *result.notes)))
    return section("bench", "Is it faster?", body)


def _time(timed: BenchRow, longest: float) -> str:
    setting = (
        f"{timed.device}, {timed.dtype}, {timed.layout}, batch {timed.batch},"
        f" {timed.threads} thread{'s' * (timed.threads != 1)}"
    )
    ratio = ""
    if timed.variant != "original":
        ratio = f"{timed.ratio:.3f} ({timed.ratio_low:.3f}\N{EN DASH}{timed.ratio_high:.3f})"
    css = "bad" if timed.is_slower else "good" if timed.is_faster else ""
    return row(
        _TIMES,
        [
            timed.variant,
            timed.runtime,
            setting,
            Cell("", _bar(timed, longest)),
            f"{_time_text(timed.median)}"
            f" ({_time_text(timed.low)}\N{EN DASH}{_time_text(timed.high)})",
            ratio,
            Cell("", f'<span class="{css}">{timed.outcome}</span>'),
        ],
    )


def _bar(timed: BenchRow, longest: float) -> str:
    scale = 100 / longest if longest > 0 else 0.0
    css = ' class="folded"' if timed.variant == "folded" else ""
    low, high = timed.low * scale, timed.high * scale
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect{css} width="{timed.median * scale:.2f}" height="10"/>'
        f'<path class="range" vector-effect="non-scaling-stroke" d="M{low:.2f} 5H{high:.2f}"/>'
        "</svg>"
    )


def _time_text(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
