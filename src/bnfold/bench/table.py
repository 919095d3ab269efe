"""A result as text and as a table for notebooks. What is the same in all rows stands above."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from bnfold import _html
from bnfold.bench.chart import svg

if TYPE_CHECKING:
    from bnfold.bench.rows import BenchRow, Measurements

Columns = Mapping[str, "Callable[[BenchRow], str]"]

_SETTING: Columns = {
    "runtime": lambda row: row.runtime,
    "device": lambda row: row.device,
    "dtype": lambda row: row.dtype,
    "layout": lambda row: row.layout,
    "batch": lambda row: str(row.batch),
    "threads": lambda row: str(row.threads),
}
_FIGURES: Columns = {
    "variant": lambda row: row.variant,
    "median": lambda row: _milliseconds(row.median),
    "quartiles": lambda row: f"{_milliseconds(row.low)} - {_milliseconds(row.high)}",
    "ratio": lambda row: f"{row.ratio:.3f}",
    "95% interval": lambda row: f"{row.ratio_low:.3f} - {row.ratio_high:.3f}",
    "": lambda row: row.outcome,
}
_FIRST_TO_GO = ("quartiles", "95% interval")
"""Columns that a narrow terminal does without."""
_TO_THE_LEFT = ("runtime", "device", "dtype", "layout", "variant", "")
_BOLD, _GREEN, _YELLOW, _END = "\x1b[1m", "\x1b[32m", "\x1b[33m", "\x1b[0m"


def text(result: Measurements, *, color: bool, width: int) -> str:
    """A summary line, what all rows have in common, the table, the machine, the notes."""
    lines = _wrapped(result.summary, width)
    if color:
        lines = [f"{_BOLD}{line}{_END}" for line in lines]
    if result.rows:
        lines += [*_wrapped(_common_line(result), width), ""]
        lines += _table_lines(result, color=color, width=width)
        lines.append("")
    closing = [_listed(values) for values in (result.machine, result.versions) if values]
    closing += [f"note: {note}" for note in result.notes]
    return "\n".join([*lines, *(part for line in closing for part in _wrapped(line, width))])


def _wrapped(line: str, width: int) -> list[str]:
    """The line, broken between words if it is longer."""
    return wrap(
        line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    ) or [line]


def _table_lines(result: Measurements, *, color: bool, width: int) -> list[str]:
    columns = _columns(result)
    for name in _FIRST_TO_GO:
        if _width(result, columns) > width:
            columns.pop(name)
    if _width(result, columns) > width:
        return _grouped_lines(result, columns, color=color)
    return _lines(result.rows, columns, color=color)


def _grouped_lines(result: Measurements, columns: Columns, *, color: bool) -> list[str]:
    """The settings as headings above their rows, where there is no room for them in columns."""
    settings = {name: cell for name, cell in columns.items() if name in _SETTING}
    figures = {name: cell for name, cell in columns.items() if name not in _SETTING}
    head, *lines = _lines(result.rows, figures, color=color)
    groups: dict[str, list[str]] = {}
    for row, line in zip(result.rows, lines, strict=True):
        groups.setdefault(_words(row, settings), []).append(f"  {line}")
    grouped = [text for name, rows in groups.items() for text in (name, *rows)]
    return [f"  {head}", *grouped]


def _words(row: BenchRow, settings: Columns) -> str:
    return ", ".join(
        f"{name} {cell(row)}" if name in ("batch", "threads") else cell(row)
        for name, cell in settings.items()
    )


def _lines(rows: Sequence[BenchRow], columns: Columns, *, color: bool) -> list[str]:
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    table = [list(columns), *cells]
    sizes = [max(len(line[column]) for line in table) for column in range(len(columns))]
    lines = []
    for number, line in enumerate(table):
        padded = [
            cell.ljust(size) if name in _TO_THE_LEFT else cell.rjust(size)
            for name, cell, size in zip(columns, line, sizes, strict=True)
        ]
        shown = "  ".join(padded).rstrip()
        style = _style(rows[number - 1]) if color and number else ""
        lines.append(f"{style}{shown}{_END}" if style else shown)
    return lines


def _width(result: Measurements, columns: Columns) -> int:
    """Of the table, with two blanks between its columns."""
    sizes = [
        max(len(name), *(len(cell(row)) for row in result.rows)) for name, cell in columns.items()
    ]
    return sum(sizes) + 2 * (len(sizes) - 1)


def _style(row: BenchRow) -> str:
    if row.is_slower:
        return _YELLOW
    return _GREEN if row.outcome and row.is_faster else ""


def _columns(result: Measurements) -> dict[str, Callable[[BenchRow], str]]:
    """The settings that differ, then the figures."""
    varied = {
        name: cell for name, cell in _SETTING.items() if len({cell(row) for row in result.rows}) > 1
    }
    return {**varied, **_FIGURES}


def _common_line(result: Measurements) -> str:
    """The settings that are the same in all rows, in words."""
    row = result.rows[0]
    varied = _columns(result)
    same = _words(row, {name: cell for name, cell in _SETTING.items() if name not in varied})
    calls = sorted({row.calls for row in result.rows})
    spread = str(calls[0]) if len(calls) == 1 else f"{calls[0]} to {calls[-1]}"
    return f"{same}; {spread} calls each, in turn; times in ms"


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _milliseconds(seconds: float) -> str:
    """Four significant digits."""
    value = seconds * 1e3
    decimals = next((n for n, limit in ((1, 100.0), (2, 10.0), (3, 1.0)) if value >= limit), 4)
    return f"{value:.{decimals}f}"


def html(result: Measurements) -> str:
    """A self-contained fragment: the chart and the table; every name is escaped."""
    parts = []
    if result.rows:
        columns = _columns(result)
        rows = [[cell(row) for cell in columns.values()] for row in result.rows]
        common = _html.paragraphs([_common_line(result)])
        parts = [svg(result), common, _html.table(columns, rows)]
    closing = [_listed(values) for values in (result.machine, result.versions) if values]
    return _html.fragment(result.summary, *parts, _html.paragraphs((*closing, *result.notes)))
