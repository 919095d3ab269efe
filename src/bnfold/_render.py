"""Show a report: a table for the console and one for notebooks.

Where a line would be wider than the screen, names are shortened in the middle, outcomes go on in
the next line, between words; where there is little room, kind and channels are left out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bnfold import _html
from bnfold._text import printable, shortened

if TYPE_CHECKING:
    from bnfold.outcomes import Item, Outcomes

_HEADINGS = ("BatchNorm", "kind", "channels", "outcome")
_ROOM = 50
"""Columns that a name and its outcome have to have beside kind and channels."""
_BOLD, _DIM, _GREEN, _YELLOW = "1", "2", "32", "33"


def text(report: Outcomes, *, color: bool, width: int) -> str:
    """A summary line, the table, and the notes."""

    def painted(text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if color else text

    lines = [painted(line, _BOLD) for line in _wrapped(printable(report.summary), width)]
    if report.items:
        rows = [_HEADINGS, *map(_cells, report.items)]
        codes = [_DIM, *(_GREEN if item.is_removed else _YELLOW for item in report.items)]
        columns = _columns(rows, width)
        for number, (row, code) in enumerate(zip(rows, codes, strict=True)):
            cells = [row[column] for column in columns]
            for *first, outcome in _lines(cells, columns):
                if number == 0:
                    lines.append(painted("  ".join((*first, outcome)), code))
                else:
                    lines.append("  ".join((*first, painted(outcome, code))).rstrip())
    lines += [part for line in _closing(report) for part in _wrapped(line, width)]
    return "\n".join(lines)


def _cells(item: Item) -> tuple[str, ...]:
    cells = (item.name, item.kind, str(item.channels), item.sentence)
    return tuple(printable(text) for text in cells)


def _columns(rows: Sequence[Sequence[str]], width: int) -> dict[int, int]:
    """Which columns are shown, and how wide they are."""
    longest = {column: max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))}
    beside = longest[1] + longest[2] + 4
    if sum(longest.values()) + 6 <= width:
        return longest
    if width - beside < _ROOM:
        del longest[1], longest[2]
        beside = 0
    room = width - beside - 2
    name = min(longest[0], max(12, room * 2 // 5, room - longest[3]))
    return {**longest, 0: name, 3: room - name}


def _lines(cells: Sequence[str], columns: dict[int, int]) -> list[tuple[str, ...]]:
    """The lines of one row: all but the last cell stand in the first one."""
    padded = []
    for cell, (column, length) in zip(cells[:-1], columns.items(), strict=False):
        short = shortened(cell, length)
        padded.append(
            short.rjust(length) if _HEADINGS[column] == "channels" else short.ljust(length)
        )
    outcome = _wrapped(cells[-1], columns[3]) or [""]
    empty = [" " * len(cell) for cell in padded]
    return [(*padded, outcome[0]), *((*empty, more) for more in outcome[1:])]


def _wrapped(text: str, width: int) -> list[str]:
    """Broken between words; a name that is too long alone is shortened."""
    if len(text) <= width:
        return [text]
    words = " ".join(shortened(word, width) for word in text.split())
    return textwrap.wrap(words, width, break_long_words=False, break_on_hyphens=False)


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
