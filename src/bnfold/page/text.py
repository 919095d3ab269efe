"""Text from a model's file on its way into the page: nothing in it is markup, nothing invisible.

A name may be `</script><img onerror=...>`, hold U+202E, which turns the words behind it round, or
a lone surrogate, which no UTF-8 has.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029\x7f"}
"""What may end a script element or a line of it; inside of a JSON string, this is the same."""


def printable(text: str) -> str:
    """Control, format and half characters replaced; blanks, too, but for the space."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def escape(text: str) -> str:
    """For the content of an element, or an attribute in double or single quotes."""
    return html.escape(printable(text), quote=True)


# fmt: off
_REGULAR = (
    32, 40, 46, 84, 64, 95, 78, 27, 39, 39, 50, 84, 32, 36, 32, 34, 64, 64, 64,
    64, 64, 64, 64, 64, 64, 64, 34, 34, 84, 84, 84, 53, 100, 68, 69, 70, 77, 63,
    58, 77, 75, 29, 29, 66, 56, 86, 75, 79, 60, 79, 69, 63, 61, 73, 68, 99, 69,
    61, 69, 39, 34, 39, 84, 50, 50, 61, 63, 55, 63, 62, 35, 63, 63, 28, 28, 58,
    28, 97, 63, 61, 63, 63, 41, 52, 39, 63, 59, 82, 59, 59, 52, 64, 34, 64, 84,
)
# fmt: on
"""Widths of ASCII's characters from the blank on, in 1/100 of the font's size, in DejaVu Sans: the
widest of the fonts that the page asks for, so that what fits in it fits in all of them."""
_BOLD = 1.2
"""How much wider bold letters are."""
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def width_of(text: str, font: float, *, bold: bool = False) -> float:
    """How long a text is, in the units of the font's size; never less than it is drawn."""
    return sum(map(_width, text)) / 100 * font * (_BOLD if bold else 1.0)


def head(text: str, room: float, font: float, *, bold: bool = False) -> str:
    """The start of a text, as much as fits."""
    many = _fitting(text, room, font * (_BOLD if bold else 1.0))
    return text if many == len(text) else text[:many] + _ELLIPSIS


def tail(text: str, room: float, font: float) -> str:
    """The end of a text: in `layer1.0.conv1`, that is what tells one from the other.

    It begins with a whole part of the path, if that leaves enough.
    """
    many = _fitting(reversed(text), room, font)
    if many == len(text):
        return text
    end = text[len(text) - many :]
    whole = min((place + 1 for place in map(end.find, "./") if place >= 0), default=0)
    return _ELLIPSIS + end[whole if whole <= many // 3 else 0 :]


def _width(character: str) -> int:
    return _REGULAR[ord(character) - 32] if " " <= character <= "~" else 100


def _fitting(characters: Iterable[str], room: float, font: float) -> int:
    """How many fit: all, or as many as leave room for an ellipsis."""
    with_ellipsis, many, used = 0, 0, 0.0
    for character in characters:
        used += _width(character) / 100 * font
        if used > room:
            return with_ellipsis
        many += 1
        if used + font <= room:
            with_ellipsis = many
    return many


def json_for_script(document: Any) -> str:
    """JSON for inside of a script element; as a JSON document it says the same."""
    text = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate(_UNSAFE)
