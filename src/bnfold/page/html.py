"""Small pieces of HTML; what they are given as text is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bnfold.page.text import escape


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table."""

    text: str
    """What it says, not escaped."""
    extra: str = ""
    """Markup behind it."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    heading: str
    is_number: bool = False
    css: str = ""


def section(identity: str, heading: str, body: str) -> str:
    """A part of the page."""
    return f'<section id="{identity}"><h2>{escape(heading)}</h2>{body}</section>'


def table(
    columns: Sequence[Column],
    rows: Iterable[str],
    *,
    caption: str,
    css: str = "cards",
    sortable: bool = False,
) -> str:
    """A table; `cards` become a list on a phone, `slim` ones are narrow enough. See `row`."""
    heads = []
    for column in columns:
        number = ' class="number"' if column.is_number else ""
        text = escape(column.heading)
        inner = f'<button type="button">{text}</button>' if sortable else text
        order = ' aria-sort="none"' if sortable else ""
        heads.append(f'<th scope="col"{number}{order}>{inner}</th>')
    return (
        f'<table class="{css}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def row(
    columns: Sequence[Column],
    cells: Sequence[str | Cell],
    attributes: str = "",
    *,
    is_labelled: bool = True,
) -> str:
    """One row; its first cell names it. In cards, every cell is labelled."""
    parts = []
    for number, (column, given) in enumerate(zip(columns, cells, strict=True)):
        cell = Cell(given) if isinstance(given, str) else given
        css = " ".join(filter(None, ("number" if column.is_number else "", column.css)))
        marks = f' class="{css}"' if css else ""
        content = breakable(cell.text) + cell.extra
        if number == 0:
            parts.append(f'<th scope="row"{marks}>{content}</th>')
        else:
            label = f' data-label="{escape(column.heading)}"' if is_labelled else ""
            parts.append(f"<td{label}{marks}>{content}</td>")
    return f"<tr{attributes}>{''.join(parts)}</tr>"


def breakable(text: str) -> str:
    """Escaped; a long name is broken behind a slash or a point, before it is broken anywhere."""
    escaped = escape(text)
    if len(text) < _LONG:
        return escaped
    return re.sub(r"(?<=[^\s/.][/.])(?=[^\s/.])", "<wbr>", escaped)


_LONG = 24
"""Characters of a name that may have to be broken."""


def paragraphs(texts: Iterable[str]) -> str:
    """Notes."""
    return "".join(f'<p class="note">{escape(text)}</p>' for text in texts)


def count(number: int, singular: str, plural: str | None = None) -> str:
    """`1 op`, `2 ops`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"
