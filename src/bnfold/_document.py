"""The JSON documents of results: each names its schema, and is read back under that name only."""

from __future__ import annotations

import json
from typing import Any


def dump(document: dict[str, Any], indent: int | None) -> str:
    """The document as text; where a name of a file is no UTF-8, all in ASCII."""
    text = json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)
    if text.isascii() or text.encode(errors="ignore").decode() == text:
        return text
    return json.dumps(document, indent=indent, allow_nan=False)


def checked(document: Any, schema: str) -> dict[str, Any]:
    """The document, if it is one of this schema. Raises ValueError."""
    found = document.get("schema") if isinstance(document, dict) else document
    if found != schema or not isinstance(document, dict):
        raise ValueError(f"not a {schema} document: {found!r}")
    return document
