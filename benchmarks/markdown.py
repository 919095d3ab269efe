"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its first column to the left and the others to the right."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(_escape(cell) for cell in line) + " |\n" for line in lines)


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def put(page: Path, name: str, text: str) -> None:
    """Replace what a page has between <!-- name --> and <!-- /name -->."""
    before, rest = page.read_text().split(f"<!-- {name} -->\n")
    after = rest.split(f"<!-- /{name} -->\n")[1]
    page.write_text(f"{before}<!-- {name} -->\n{text}<!-- /{name} -->\n{after}")
