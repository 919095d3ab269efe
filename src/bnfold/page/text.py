"""Text from a model's file on its way into the page: nothing in it is markup, nothing invisible.

A name may be `</script><img onerror=...>`, hold U+202E, which turns the words behind it round, or
a lone surrogate, which no UTF-8 has.
"""

from __future__ import annotations

import html
import json
from typing import Any

_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029\x7f"}
"""What may end a script element or a line of it; inside of a JSON string, this is the same."""


def printable(text: str) -> str:
    """Control, format and half characters replaced; blanks, too, but for the space."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def escape(text: str) -> str:
    """For the content of an element, or an attribute in double or single quotes."""
    return html.escape(printable(text), quote=True)


def shorten(text: str, length: int) -> str:
    """The start of a text."""
    return text if len(text) <= length else f"{text[: length - 1]}\N{HORIZONTAL ELLIPSIS}"


def tail(text: str, length: int) -> str:
    """The end of a text: in `layer1.0.conv1`, that is what tells one from the other."""
    return text if len(text) <= length else f"\N{HORIZONTAL ELLIPSIS}{text[1 - length :]}"


def json_for_script(document: Any) -> str:
    """JSON for inside of a script element; as a JSON document it says the same."""
    text = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate(_UNSAFE)
