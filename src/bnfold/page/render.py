"""The page as a whole: the sections that there is something to say in, the style, and the script.

A Content-Security-Policy lets nothing run and nothing load but the style sheet and the two scripts
of this file, by their hashes: should a name from a model ever get past the escaping, it is dead.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from string import Template
from typing import TYPE_CHECKING

from bnfold._text import size
from bnfold._version import __version__
from bnfold.page.data import page_data
from bnfold.page.drawing import box_width, draw_svg, legend, words_of
from bnfold.page.html import Column, count, row, section, table
from bnfold.page.layout import HEIGHT
from bnfold.page.outcome import (
    items_section,
    merged_section,
    ops_of,
    ops_section,
    reasons_section,
)
from bnfold.page.proof import bench_section, verify_section
from bnfold.page.text import escape, json_for_script

if TYPE_CHECKING:
    from bnfold.network import Network
    from bnfold.outcomes import Outcomes
    from bnfold.page.data import Facts

_FILES = (Column("file", css="code"), Column("sha256", css="code"))
_VERSIONS = (Column("what"), Column("version"))


def render(report: Outcomes, facts: Facts) -> str:
    """See `FoldReport.to_html`."""
    verdict, bench = report.verdict, facts.bench
    before, after = ops_of(report, facts)
    parts = {
        "Drawing": _network_section(report),
        f"Why the rest {'would stay' if report.is_planned else 'stayed'}": reasons_section(report),
        "Table": items_section(report),
        "Merged": merged_section(report),
        "Ops": ops_section(before, after, facts) if before else "",
        "Errors": "" if verdict is None else verify_section(verdict),
        "Latency": "" if bench is None else bench_section(bench),
        "Files and versions": _origin_section(report, facts.hashes),
    }
    shown = {name: part for name, part in parts.items() if part}
    links = (
        f'<a href="#{part.split(chr(34), 2)[1]}">{escape(name)}</a>' for name, part in shown.items()
    )
    planned = _PLANNED if report.is_planned else ""
    early, script, style = _asset("early.js"), _script(), _style(report)
    policy = (
        f"default-src 'none'; script-src {_hash(early)} {_hash(script)}; style-src {_hash(style)};"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )
    return Template(_asset("page.html")).substitute(
        policy=policy,
        version=__version__,
        title=escape(f"{facts.title or 'bnfold report'}: {report.summary}"),
        style=style,
        early=early,
        heading=escape(facts.title or ("A network" if report.is_planned else "A folded network")),
        summary=escape("; ".join(filter(None, (report.summary, report.merged_summary, planned)))),
        tiles=_tiles(report, facts),
        navigation="".join(links),
        sections="\n".join(shown.values()),
        data=json_for_script(page_data(report, facts)),
        script=script,
    )


def _style(report: Outcomes) -> str:
    """The style sheet, with the sizes of the drawing's boxes."""
    width = 0 if report.network is None else box_width(report.network.before, words_of(report))
    return f":root {{ --box: {width}px; --high: {HEIGHT}px; }}\n{_asset('page.css')}"


@cache
def _asset(name: str) -> str:
    return (resources.files("bnfold.page") / "assets" / name).read_text("utf-8")


@cache
def _script() -> str:
    """The libraries, each behind its licence, and our own."""
    packages = json.loads(_asset("vendor/vendor.json"))["packages"]
    parts = []
    for package in packages:
        notice = _asset(f"vendor/{package['package']}.LICENSE").strip().replace("*/", "* /")
        parts.append(f"/* {package['package']} {package['version']}\n{notice} */")
        parts.append(_asset(f"vendor/{package['file']}").strip())
    return "\n".join([*parts, _asset("page.js")])


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


_PLANNED = "this is what a fold would do, none has been made"
_TO = "\N{RIGHTWARDS ARROW}"
_ANSWERS = {"equal": "yes", "not equal": "no", "not proven": "not proven"}


def _tiles(report: Outcomes, facts: Facts) -> str:
    bench = facts.bench
    goes, stays = ("would go", "would stay") if report.is_planned else ("removed", "kept")
    tiles = [(goes, f"{report.removed} of {report.total}"), (stays, str(report.kept))]
    if report.clips:
        tiles.append(("activations with bounds", str(len(report.clips))))
    before, after = (sum(counts.values()) for counts in ops_of(report, facts))
    if before:
        tiles.append(("ops", f"{before} {_TO} {after}"))
    if facts.sizes is not None:
        tiles.append(("file", _change(*facts.sizes)))
    if report.verdict is not None:
        tiles.append(("computes the same", _ANSWERS[report.verdict.verdict]))
    folded = [] if bench is None else [row for row in bench.rows if row.variant == "folded"]
    if len(folded) == 1:
        tiles.append(("latency", folded[0].outcome))
    elif folded:
        ratios = [row.ratio for row in folded]
        ends = dict.fromkeys((f"{min(ratios):.2f}", f"{max(ratios):.2f}"))
        tiles.append(("of the original's time", "\N{EN DASH}".join(ends)))
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _change(read: int, written: int | None) -> str:
    """Bytes before and after; a unit that both have is said once."""
    if written is None:
        return size(read)
    before, after = size(read), size(written)
    if before.split()[1] == after.split()[1]:
        before = before.split()[0]
    return f"{before} {_TO} {after}"


def _network_section(report: Outcomes) -> str:
    network = report.network
    if network is None or not network.before:
        return ""
    items = {item.name: number for number, item in enumerate(report.items)}
    before, after, words = network.before, network.after, words_of(report)
    width = box_width(before, words)
    drawings = draw_svg(
        before,
        title=f"Before: {count(len(before), 'box', 'boxes')}",
        identity="before",
        items=items,
        width=width,
        words=words,
    ).replace('class="network', 'class="network on', 1)
    drawings += draw_svg(
        after,
        title=f"After: {count(len(after), 'box', 'boxes')}",
        identity="after",
        items=items,
        width=width,
        words=words,
    )
    body = (
        f"{_toolbar(network)}{legend(before, words)}"
        f'<div class="canvas"{" data-planned" if report.is_planned else ""} tabindex="0"'
        ' role="application" aria-label="The network"'
        f' aria-describedby="keys">{drawings}</div>'
        '<p class="details" role="status" id="details">Choose a box to read about it.</p>'
        '<p class="help mouse">Drag to move, Ctrl and wheel to zoom, click a box to read about'
        ' it.</p><p class="help touch">Two fingers move and zoom, where it fills the window one'
        " finger moves; tap a box to read about it.</p>"
        '<details class="help mouse"><summary>Keys</summary><p id="keys">With the drawing in focus:'
        " arrows move, + and \N{MINUS SIGN} zoom, 0 shows all, N and P step through the ops,"
        " K goes to the next one that stays or blocks, B switches before and after, W fills the"
        " window, Enter goes to the table.</p></details>"
    )
    return section("network", "The network, before and after", body)


def _toolbar(network: Network) -> str:
    buttons = [
        '<button type="button" data-do="before" aria-pressed="true">Before</button>',
        '<button type="button" data-do="after" aria-pressed="false">After</button>',
    ]
    if any(node.state == "kept" or node.blocker for node in network.before):
        buttons.append('<button type="button" data-do="kept">Next that stays or blocks</button>')
    buttons += [
        '<button type="button" data-do="in" class="apart" aria-label="Zoom in">+</button>',
        '<button type="button" data-do="out" aria-label="Zoom out">\N{MINUS SIGN}</button>',
        '<button type="button" data-do="all">Show all</button>',
        '<button type="button" data-do="whole" aria-pressed="false">Fill the window</button>',
    ]
    return f'<div class="toolbar" role="group" aria-label="Drawing">{"".join(buttons)}</div>'


def _origin_section(report: Outcomes, hashes: Mapping[str, str]) -> str:
    body = ""
    if hashes:
        rows = (row(_FILES, [name, digest]) for name, digest in hashes.items())
        body += table(_FILES, rows, caption="What was read and what was written.")
    versions = {"bnfold": __version__, **report.versions}
    rows = (row(_VERSIONS, [name, version]) for name, version in versions.items())
    body += table(_VERSIONS, rows, caption="What took part.")
    return section("origin", "Files and versions", body)
