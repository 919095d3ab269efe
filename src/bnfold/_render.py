"""Show a report: a table for the console (by rich) and one for notebooks."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from bnfold import _html
from bnfold._text import printable

if TYPE_CHECKING:
    from bnfold.outcomes import Item, Outcomes

_HEADINGS = ("BatchNorm", "kind", "channels", "outcome")


def text(report: Outcomes, *, color: bool, width: int) -> str:
    """A summary line, the table, and the notes."""
    plain = None if color else _without_rich(report, width)
    if plain is not None:
        return plain
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    sink = io.StringIO()
    console = Console(file=sink, width=width, force_terminal=color, no_color=not color)
    console.print(Text(printable(report.summary), style="bold"))
    if report.items:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in _HEADINGS:
            table.add_column(
                heading, justify="right" if heading == "channels" else "left", overflow="fold"
            )
        for item in report.items:
            style = "green" if item.is_removed else "yellow"
            *first, outcome = _cells(item)
            table.add_row(*(Text(cell) for cell in first), Text(outcome, style=style))
        console.print(table)
    for line in _closing(report):
        console.print(Text(line))
    return "\n".join(line.rstrip() for line in sink.getvalue().splitlines())


def _cells(item: Item) -> list[str]:
    return [printable(text) for text in (item.name, item.kind, str(item.channels), item.sentence)]


def _without_rich(report: Outcomes, width: int) -> str | None:
    """What rich would print, where nothing has to be wrapped: importing it takes its time."""
    rows = [_cells(item) for item in report.items]
    if rows:
        rows.insert(0, list(_HEADINGS))
    lengths = [
        max((len(row[column]) for row in rows), default=0) for column in range(len(_HEADINGS))
    ]
    lines = [printable(report.summary)]
    for name, kind, channels, outcome in rows:
        padded = (name.ljust(lengths[0]), kind.ljust(lengths[1]), channels.rjust(lengths[2]))
        lines.append("  ".join((*padded, outcome)))
    lines += _closing(report)
    fits = all(len(line) <= width and line.isascii() for line in lines)
    return "\n".join(line.rstrip() for line in lines) if fits else None


def _closing(report: Outcomes) -> list[str]:
    """What stands below the table."""
    lines = [printable(report.merged_summary)] if report.merged else []
    if report.clips:
        lines.append(report.clips_summary)
    if report.verdict is not None:
        runs = "1 run" if report.verdict.samples == 1 else f"{report.verdict.samples} runs"
        outcome = "equal" if report.verdict.equal else printable(report.verdict.summary)
        lines.append(f"original and folded, compared in {runs}: {outcome}")
    elif report.unverified is not None and report.removed:
        lines.append(printable(f"nothing was verified: {report.unverified}"))
    return lines + [printable(note) for note in report.notes]


def html(report: Outcomes) -> str:
    """A self-contained fragment; every name is escaped, and has no control characters."""
    table = _html.table(_HEADINGS, map(_cells, report.items), style="text-align:left")
    return _html.fragment(printable(report.summary), table, _html.paragraphs(_closing(report)))
