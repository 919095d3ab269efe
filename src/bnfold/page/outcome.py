"""What became of each BatchNorm: the table, why the rest stayed, and ops before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bnfold._next_steps import next_step
from bnfold._text import size
from bnfold.network import op_counts
from bnfold.page.html import Cell, Column, paragraphs, row, section, table
from bnfold.page.text import escape

if TYPE_CHECKING:
    from bnfold.outcomes import Item, Outcomes
    from bnfold.page.data import Facts

_ITEMS = (
    Column("BatchNorm", css="code"),
    Column("kind", css="kind"),
    Column("channels", is_number=True),
    Column("outcome"),
    Column("what happened"),
)
_REASONS = (
    Column("reason", css="code short"),
    Column("steps", is_number=True),
    Column("meaning"),
    Column("in the way", css="code"),
    Column("hint"),
)
_MERGED = (
    Column("op", css="code"),
    Column("kind", css="kind"),
    Column("does the work of", css="code"),
)
_UNMERGED = (
    Column("sum", css="code"),
    Column("reason", css="code short"),
    Column("meaning"),
)
_OPS = (
    Column("type", css="code"),
    Column("before", is_number=True),
    Column("after", is_number=True),
    Column("change", is_number=True),
)
_BLOCKERS = 5
"""So many blockers are named per reason."""


def items_section(report: Outcomes) -> str:
    """Every step, with filters."""
    if not report.items:
        body = "<p>No BatchNorm was found.</p>"
        return section("items", _became(report), body + paragraphs(report.notes))
    drawn = {node.item for node in report.network.before} if report.network else set()
    rows = (_item(number, item, item.name in drawn) for number, item in enumerate(report.items))
    happened = "what would happen" if report.is_planned else _ITEMS[-1].heading
    columns = (*_ITEMS[:-1], replace(_ITEMS[-1], heading=happened))
    listed = table(columns, rows, caption="In the order of the network.", sortable=True)
    clips = f"{report.clips_summary}." if report.clips else ""
    body = (
        f"{_filters(report)}"
        f'<p class="count" role="status" id="shown">{len(report.items)} of {len(report.items)}'
        f" shown</p>{listed}"
    )
    notes = [note for note in (clips, *report.notes) if note]
    return section("items", _became(report), body + paragraphs(notes))


def _became(report: Outcomes) -> str:
    became = "would become" if report.is_planned else "became"
    return f"What {became} of each BatchNorm"


def sentence(item: Item) -> str:
    """The outcome in words, beside a chip for it, with every op that took it in."""
    if not item.into:
        return item.sentence.removeprefix("kept: ").removeprefix("would stay: ")
    return f"{'would be ' if item.is_planned else ''}folded into {', '.join(item.into)}"


def _item(number: int, item: Item, is_drawn: bool) -> str:
    css = "removed" if item.is_removed else "kept"
    attributes = f' id="item-{number}"'
    if item.reason is not None:
        attributes += f' data-reason="{item.reason}"'
    if is_drawn:
        attributes += " data-drawn"
    cells: list[str | Cell] = [
        item.name,
        item.kind,
        str(item.channels),
        Cell("", f'<span class="chip {css}">{_chips(item)[css]}</span>'),
        sentence(item),
    ]
    return row(_ITEMS, cells, attributes)


def _chips(about: Outcomes | Item) -> Mapping[str, str]:
    """What became of a step in a word or two."""
    if about.is_planned:
        return {"removed": "would go", "kept": "would stay"}
    return {"removed": "removed", "kept": "kept"}


def _filters(report: Outcomes) -> str:
    kinds = sorted({item.kind for item in report.items})
    reasons = sorted({str(item.reason) for item in report.items if item.reason is not None})
    selects = _select("outcome", "Outcome", list(_chips(report).values()))
    if reasons:
        selects += _select("reason", "Reason", reasons)
    if len(kinds) > 1:
        selects += _select("kind", "Kind", kinds)
    return (
        '<form class="filters" role="search" aria-label="Filter the table">'
        '<label>Search<input type="search" name="search" autocomplete="off" spellcheck="false"'
        f' placeholder="name, kind, op"></label>{selects}'
        '<button type="reset">Show all</button></form>'
    )


def _select(name: str, label: str, options: Sequence[str]) -> str:
    listed = "".join(
        f'<option value="{escape(option)}">{escape(option)}</option>' for option in options
    )
    return (
        f'<label>{label}<select name="{name}"><option value="">all</option>{listed}</select>'
        "</label>"
    )


def merged_section(report: Outcomes) -> str:
    """Which ops became one; nothing if none did."""
    if not report.merged and not report.unmerged:
        return ""
    rows = (
        row(_MERGED, [merged.into, merged.kind, ", ".join(merged.parts)])
        for merged in report.merged
    )
    caption = "Linear ops of one tensor that met in a sum or a concat, and linear ops in a row."
    body = ""
    if report.merged:
        body = f"<p>{report.merged_summary}.</p>{table(_MERGED, rows, caption=caption)}"
    if report.unmerged:
        lines = (
            row(_UNMERGED, [left.name, str(left.reason), left.sentence]) for left in report.unmerged
        )
        caption = "Sums and concats of linear ops of one tensor that stay several ops."
        body += table(_UNMERGED, lines, caption=caption)
    done = "would be" if report.is_planned else "was"
    return section("merged", f"What {done} merged", body)


def reasons_section(report: Outcomes) -> str:
    """Why the rest stayed: one row per reason; nothing if nothing stayed."""
    kept = [item for item in report.items if item.reason is not None]
    if not kept:
        return ""
    counted = Counter(str(item.reason) for item in kept)
    rows = []
    for reason, many in counted.most_common():
        group = [item for item in kept if item.reason == reason]
        assert group[0].reason is not None
        meaning = group[0].reason.sentence.format(blocker="the layer named beside it")
        blockers = Counter(item.blocker for item in group if item.blocker)
        named = [f"{name} ({times})" for name, times in blockers.most_common(_BLOCKERS)]
        if len(blockers) > _BLOCKERS:
            named.append(f"and {len(blockers) - _BLOCKERS} more")
        (step, _), *_ = Counter(map(next_step, group)).most_common(1)
        rows.append(row(_REASONS, [reason, str(many), meaning, ", ".join(named), step]))
    caption = "The reasons, the most frequent first; in brackets how many steps a layer holds up."
    stayed = "would stay" if report.is_planned else "stayed"
    return section("kept", f"Why the rest {stayed}", table(_REASONS, rows, caption=caption))


def ops_section(before: Mapping[str, int], after: Mapping[str, int], facts: Facts) -> str:
    """How many ops of each type there are before and after: what changed comes first."""
    kinds = sorted(
        before.keys() | after.keys(),
        key=lambda kind: (
            before.get(kind, 0) == after.get(kind, 0),
            -before.get(kind, 0),
            kind,
        ),
    )
    rows = [_ops_row(kind, before.get(kind, 0), after.get(kind, 0)) for kind in kinds]
    rows.append(_ops_row("all", sum(before.values()), sum(after.values())))
    if facts.sizes is not None:
        read, written = facts.sizes
        cells = ["file", size(read), "" if written is None else size(written), ""]
        rows.append(row(_OPS, cells, is_labelled=False))
    caption = (
        "Nodes of an ONNX file, layers of a Caffe net, calls of modules and functions in PyTorch."
    )
    if facts.ops is None:
        caption = (
            "Counted in the drawing; where several runs were analysed, all of them."
            " An activation that became max(x, c) or min(x, c) counts as what it was."
        )
    return section("ops", "Ops before and after", table(_OPS, rows, caption=caption, css="slim"))


def _ops_row(kind: str, before: int, after: int) -> str:
    change = f"{after - before:+d}".replace("-", "\N{MINUS SIGN}") if after != before else ""
    return row(_OPS, [kind, str(before), str(after), change], is_labelled=False)


def ops_of(report: Outcomes, facts: Facts) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """By type, before and after: as they were counted in the files, or else in the drawing."""
    if facts.ops is not None:
        return facts.ops
    if report.network is None:
        return {}, {}
    return op_counts(report.network.before), op_counts(report.network.after)
