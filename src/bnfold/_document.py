"""The JSON documents of results: each names its schema, and is read back under that name only."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from typing import Any, ClassVar, Self


class Document(ABC):
    """A result that is written as JSON and read again."""

    __slots__ = ()
    schema: ClassVar[str]
    """Name and version of the JSON document."""

    @abstractmethod
    def _content(self) -> dict[str, Any]:
        """Plain data for JSON, but for the schema."""

    @classmethod
    @abstractmethod
    def _read(cls, data: dict[str, Any]) -> Self:
        """The inverse of `_content`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the schema."""
        return {"schema": self.schema, **self._content()}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """The inverse of `to_dict`. Raises ValueError for another schema."""
        schema = data.get("schema") if isinstance(data, dict) else data
        if schema != cls.schema or not isinstance(data, dict):
            raise ValueError(f"not a {cls.schema} document: {schema!r}")
        return cls._read(data)

    def to_json(self, indent: int | None = 2) -> str:
        """The result as a JSON document; in ASCII where the name of a file is no UTF-8."""
        text = json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)
        if text.isascii() or text.encode(errors="ignore").decode() == text:
            return text
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`. Raises ValueError for another schema."""
        return cls.from_dict(json.loads(text))


def told(holder: object, *names: str) -> dict[str, Any]:
    """These attributes, as plain data for JSON."""
    return {name: as_json(getattr(holder, name)) for name in names}


def as_json(value: Any) -> Any:
    """What a document holds in JSON's types; what has a `to_dict` says itself what it is."""
    if isinstance(value, tuple):
        return [as_json(part) for part in value]
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Enum):
        return value.value
    return value.to_dict() if hasattr(value, "to_dict") else value
