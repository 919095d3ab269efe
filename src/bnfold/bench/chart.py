"""A result as a bar chart: an SVG that needs no script, no font and no network.

One group of bars for each runtime and setting, one bar for each variant. The bar is as long as the
ratio to the original, whose own bar ends at the line of 1; the whisker is the 95% interval. It
follows the reader's light or dark mode, and reads out as text: a title, and a line for each bar.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from bnfold.bench.rows import FOLDED, ORIGINAL

if TYPE_CHECKING:
    from bnfold.bench.rows import BenchRow, Measurements

_WIDTH = 720
_LEFT, _RIGHT = 150, 150
"""Room for names on the left, and for figures on the right."""
_BAR, _STEP = 16, 24
"""Height of a bar, and from one to the next."""
_HEAD, _GAP = 26, 16
"""Height of a group's heading, and the gap between groups."""
_LONGEST = 2.5
"""Bars end here; the figure beside them says how long they would be."""

# The classes have a prefix: style inside an SVG holds for the whole page it is put on.
_STYLE = """
.bnfold-bench{font:13px system-ui,sans-serif;color-scheme:light dark}
.bnfold-bench text{fill:#1c2128}
.bnfold-bench .quiet{fill:#57606a}
.bnfold-bench .original{fill:#8c959f}
.bnfold-bench .folded{fill:#0969da}
.bnfold-bench .other{fill:#bf8700}
.bnfold-bench .line{stroke:#57606a;stroke-dasharray:3 3}
.bnfold-bench .whisker{stroke:#1c2128;stroke-width:1.5;fill:none}
@media (prefers-color-scheme:dark){
.bnfold-bench text{fill:#e6edf3}
.bnfold-bench .quiet{fill:#9198a1}
.bnfold-bench .original{fill:#6e7681}
.bnfold-bench .folded{fill:#4493f8}
.bnfold-bench .other{fill:#d29922}
.bnfold-bench .line{stroke:#9198a1}
.bnfold-bench .whisker{stroke:#e6edf3}
}
"""


def svg(result: Measurements) -> str:
    """The chart as an SVG document."""
    groups = [
        (setting, list(rows)) for setting, rows in groupby(result.rows, key=lambda row: row.setting)
    ]
    longest = min(_LONGEST, max([1.0, *(row.ratio_high for row in result.rows)]))
    parts: list[str] = []
    top = 0.0
    for _, rows in groups:
        parts += _group(rows, top, longest)
        top += _HEAD + len(rows) * _STEP + _GAP
    height = max(top - _GAP, _HEAD) + 4
    title = escape(f"Time relative to the original. {result.summary}", quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}"'
        f' width="{_WIDTH}" height="{height:.0f}" style="max-width:100%;height:auto"'
        f' class="bnfold-bench" role="img" aria-label="{title}">'
        f"<title>{title}</title><style>{_STYLE}</style>{''.join(parts)}</svg>"
    )


def _group(rows: list[BenchRow], top: float, longest: float) -> Iterator[str]:
    x_of_one = _x(1.0, longest)
    yield f'<text class="quiet" x="0" y="{top + 16:.0f}">{escape(_heading(rows[0]))}</text>'
    below = top + _HEAD
    for row in rows:
        yield from _bar(row, below, longest)
        below += _STEP
    yield (
        f'<line class="line" x1="{x_of_one:.1f}" x2="{x_of_one:.1f}"'
        f' y1="{top + _HEAD - 4:.0f}" y2="{below - 4:.0f}"/>'
    )


def _bar(row: BenchRow, top: float, longest: float) -> Iterator[str]:
    kind = {ORIGINAL: "original", FOLDED: "folded"}.get(row.variant, "other")
    middle = top + _BAR / 2
    end = _x(row.ratio, longest)
    figures = f"{row.median * 1e3:.4g} ms"
    if row.variant != ORIGINAL:
        figures += f" \N{MULTIPLICATION SIGN}{row.ratio:.3f}"
    interval = f"{row.ratio_low:.3f} to {row.ratio_high:.3f}"
    spoken = f"{row.variant}: {row.median * 1e3:.4g} ms, ratio {row.ratio:.3f} ({interval})"
    yield f"<g><title>{escape(spoken)}</title>"
    yield f'<text x="12" y="{middle + 4:.0f}">{escape(row.variant)}</text>'
    yield (
        f'<rect class="{kind}" x="{_LEFT}" y="{top:.0f}"'
        f' width="{max(end - _LEFT, 0):.1f}" height="{_BAR}" rx="2"/>'
    )
    if row.variant != ORIGINAL:
        low, high = _x(row.ratio_low, longest), _x(row.ratio_high, longest)
        yield (f'<path class="whisker" d="M{low:.1f} {middle - 4:.0f}v8m0-4H{high:.1f}m0-4v8"/>')
    yield f'<text x="{_WIDTH - _RIGHT + 12}" y="{middle + 4:.0f}">{escape(figures)}</text></g>'


def _x(ratio: float, longest: float) -> float:
    """Where a ratio lies."""
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(max(ratio, 0.0), longest) / longest


def _heading(row: BenchRow) -> str:
    threads = "1 thread" if row.threads == 1 else f"{row.threads} threads"
    return f"{row.runtime}, {row.device}, {row.dtype}, {row.layout}, batch {row.batch}, {threads}"
