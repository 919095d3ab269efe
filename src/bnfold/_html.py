"""What a notebook shows of a result: self-contained fragments, with everything in them escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def fragment(summary: str, *parts: str) -> str:
    """The summary, and the parts below it."""
    return f"<div><p><b>{escape(summary)}</b></p>{''.join(parts)}</div>"


def table(headings: Iterable[str], rows: Iterable[Sequence[str]], *, style: str = "") -> str:
    """A table; `style` is that of its headings."""
    tag = f"th style='{style}'" if style else "th"
    head = "".join(f"<{tag}>{escape(heading)}</th>" for heading in headings)
    cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def paragraphs(lines: Iterable[str]) -> str:
    """One for each line."""
    return "".join(f"<p>{escape(line)}</p>" for line in lines)
