"""Show a report: a table for the console (by rich) and one for notebooks."""

from __future__ import annotations

import io
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnfold.report import FoldReport

_HEADINGS = ("BatchNorm", "kind", "channels", "outcome")


def text(report: FoldReport, *, color: bool, width: int) -> str:
    """A summary line, the table, and the notes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    sink = io.StringIO()
    console = Console(file=sink, width=width, force_terminal=color, no_color=not color)
    console.print(Text(_printable(report.summary), style="bold"))
    if report.items:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in _HEADINGS:
            table.add_column(
                heading, justify="right" if heading == "channels" else "left", overflow="fold"
            )
        for item in report.items:
            style = "green" if item.is_removed else "yellow"
            cells = (item.name, item.kind, str(item.channels), item.sentence)
            *first, outcome = (_printable(cell) for cell in cells)
            table.add_row(*(Text(cell) for cell in first), Text(outcome, style=style))
        console.print(table)
    if report.clips:
        count = len(report.clips)
        activations = "1 activation" if count == 1 else f"{count} activations"
        console.print(Text(f"{activations} got bounds per channel"))
    for note in report.notes:
        console.print(Text(_printable(note)))
    return "\n".join(line.rstrip() for line in sink.getvalue().splitlines())


def _printable(cell: str) -> str:
    """Names come from files: no control characters on the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cell)


def html(report: FoldReport) -> str:
    """A self-contained fragment; every name is escaped."""
    head = "".join(f"<th style='text-align:left'>{heading}</th>" for heading in _HEADINGS)
    rows = "".join(
        f"<tr><td>{escape(item.name)}</td><td>{escape(item.kind)}</td>"
        f"<td>{item.channels}</td><td>{escape(item.sentence)}</td></tr>"
        for item in report.items
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in report.notes)
    return (
        f"<div><p><b>{escape(report.summary)}</b></p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{notes}</div>"
    )
