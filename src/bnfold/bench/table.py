"""A result as text and as a table for notebooks. What is the same in all rows stands above."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnfold.bench.result import BenchResult, BenchRow

_SETTING: Mapping[str, Callable[[BenchRow], str]] = {
    "runtime": lambda row: row.runtime,
    "device": lambda row: row.device,
    "dtype": lambda row: row.dtype,
    "layout": lambda row: row.layout,
    "batch": lambda row: str(row.batch),
    "threads": lambda row: str(row.threads),
}
_FIGURES: Mapping[str, Callable[[BenchRow], str]] = {
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


def text(result: BenchResult, *, color: bool, width: int) -> str:
    """A summary line, what all rows have in common, the table, the machine, the notes."""
    lines = [f"{_BOLD}{result.summary}{_END}" if color else result.summary]
    if result.rows:
        lines += [_common_line(result), ""]
        lines += _table_lines(result, color=color, width=width)
        lines.append("")
    lines += [_listed(values) for values in (result.machine, result.versions) if values]
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def _table_lines(result: BenchResult, *, color: bool, width: int) -> list[str]:
    columns = _columns(result)
    for name in _FIRST_TO_GO:
        if _width(result, columns) > width:
            columns.pop(name)
    cells = [[cell(row) for cell in columns.values()] for row in result.rows]
    table = [list(columns), *cells]
    sizes = [max(len(line[at]) for line in table) for at in range(len(columns))]
    lines = []
    for number, line in enumerate(table):
        padded = [
            cell.ljust(size) if name in _TO_THE_LEFT else cell.rjust(size)
            for name, cell, size in zip(columns, line, sizes, strict=True)
        ]
        shown = "  ".join(padded).rstrip()
        style = _style(result.rows[number - 1]) if color and number else ""
        lines.append(f"{style}{shown}{_END}" if style else shown)
    return lines


def _width(result: BenchResult, columns: Mapping[str, Callable[[BenchRow], str]]) -> int:
    return sum(
        2 + max(len(name), *(len(cell(row)) for row in result.rows))
        for name, cell in columns.items()
    )


def _style(row: BenchRow) -> str:
    if row.is_slower:
        return _YELLOW
    return _GREEN if row.outcome and row.is_faster else ""


def _columns(result: BenchResult) -> dict[str, Callable[[BenchRow], str]]:
    """The settings that differ, then the figures."""
    varied = {
        name: cell for name, cell in _SETTING.items() if len({cell(row) for row in result.rows}) > 1
    }
    return {**varied, **_FIGURES}


def _common_line(result: BenchResult) -> str:
    """The settings that are the same in all rows, in words."""
    row = result.rows[0]
    varied = _columns(result)
    parts = [
        f"{name} {cell(row)}" if name in ("batch", "threads") else cell(row)
        for name, cell in _SETTING.items()
        if name not in varied
    ]
    calls = sorted({row.calls for row in result.rows})
    spread = str(calls[0]) if len(calls) == 1 else f"{calls[0]} to {calls[-1]}"
    return f"{', '.join(parts)}; {spread} calls each, in turn; times in ms"


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _milliseconds(seconds: float) -> str:
    """Four significant digits."""
    value = seconds * 1e3
    decimals = next((n for n, limit in ((1, 100.0), (2, 10.0), (3, 1.0)) if value >= limit), 4)
    return f"{value:.{decimals}f}"


def html(result: BenchResult) -> str:
    """A self-contained fragment: the chart and the table; every name is escaped."""
    parts = [f"<p><b>{escape(result.summary)}</b></p>"]
    if result.rows:
        columns = _columns(result)
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(cell(row))}</td>' for cell in columns.values())}</tr>"
            for row in result.rows
        )
        parts += [
            result.chart(),
            f"<p>{escape(_common_line(result))}</p>",
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
        ]
    closing = [_listed(values) for values in (result.machine, result.versions) if values]
    parts += [f"<p>{escape(line)}</p>" for line in (*closing, *result.notes)]
    return f"<div>{''.join(parts)}</div>"
