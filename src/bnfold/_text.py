"""Text for people: names that come from files, and lines that have to fit."""

from __future__ import annotations

import shutil
import sys


def printable(text: str, *, keep: str = "") -> str:
    """Without control characters, which a terminal would obey; `keep` names those that may stay."""
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)


def shortened(name: str, width: int) -> str:
    """A name with its middle left out, if it is longer than `width`."""
    name = printable(name)
    if len(name) <= width:
        return name
    room = max(width - 3, 2)
    return f"{name[: (room + 1) // 2]}...{name[len(name) - room // 2 :]}"


def columns(most: int = 100) -> int:
    """Of the terminal, if text is printed on one, but no more than `most`."""
    if sys.stdout is None or not sys.stdout.isatty():
        return most
    return max(40, min(shutil.get_terminal_size().columns, most))


def size(count: int) -> str:
    """Bytes for people: 97.5 MB."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.2f} GB"
