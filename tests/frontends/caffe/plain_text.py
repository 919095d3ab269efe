"""A second, plain reader of prototxt for tests: text to nested lists of fields, nothing kept.

It shares no line with the package's own reader, so that the two can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')"""
    r"""|(?P<mark>[{}<>:;,\[\]])|(?P<word>[^\s{}<>:;,\[\]#"']+)""",
    re.DOTALL,
)


@dataclass
class Message:
    """Fields in order: (name, value), where a value is text or another message."""

    entries: list[tuple[str, str | Message]] = field(default_factory=list)

    def all(self, name: str) -> list[str | Message]:
        return [value for key, value in self.entries if key == name]

    def texts(self, name: str) -> list[str]:
        return [value for value in self.all(name) if isinstance(value, str)]

    def messages(self, name: str) -> list[Message]:
        return [value for value in self.all(name) if isinstance(value, Message)]

    # What bnfold.frontends.caffe.run_step.Fields asks for.

    def has(self, *names: str) -> bool:
        return any(key in names for key, _ in self.entries)

    def integer(self, name: str, default: int) -> int:
        return ([default, *self.integers(name)])[-1]

    def integers(self, name: str) -> list[int]:
        return [int(text, 0) for text in self.texts(name)]

    def number(self, name: str, default: float) -> float:
        return ([default, *self.numbers(name)])[-1]

    def numbers(self, name: str) -> list[float]:
        return [float(text.rstrip("fF")) for text in self.texts(name)]

    def flag(self, name: str, *, default: bool) -> bool:
        return ([default, *(text in ("true", "True", "t", "1") for text in self.texts(name))])[-1]

    def text(self, name: str, default: str = "") -> str:
        return ([default, *self.texts(name)])[-1]

    def word(self, name: str, default: str, numbered: Mapping[int, str]) -> str:
        text = self.text(name, default)
        return numbered[int(text)] if text.isdigit() else text

    def part(self, name: str) -> Message:
        return Message([entry for part in self.messages(name) for entry in part.entries])


def parse(text: str) -> Message:
    tokens = [
        (kind, match[kind])
        for match in _TOKEN.finditer(text.lstrip("\ufeff"))
        for kind in ("string", "mark", "word")
        if match[kind] is not None
    ]
    message, rest = _fields(tokens, 0)
    assert rest == len(tokens), tokens[rest : rest + 5]
    return message


def _fields(tokens: list[tuple[str, str]], at: int) -> tuple[Message, int]:
    message = Message()
    while at < len(tokens) and tokens[at][1] not in ("}", ">"):
        if tokens[at][1] in (";", ","):
            at += 1
            continue
        name = tokens[at][1]
        at += 1
        if tokens[at] == ("mark", ":"):
            at += 1
        if tokens[at] == ("mark", "["):
            at += 1
            while tokens[at] != ("mark", "]"):
                if tokens[at] == ("mark", ","):
                    at += 1
                    continue
                value, at = _value(tokens, at)
                message.entries.append((name, value))
            at += 1
            continue
        value, at = _value(tokens, at)
        message.entries.append((name, value))
    return message, at


def _value(tokens: list[tuple[str, str]], at: int) -> tuple[str | Message, int]:
    kind, text = tokens[at]
    if kind == "mark":
        assert text in "{<", text
        message, end = _fields(tokens, at + 1)
        assert tokens[end][1] in "}>"
        return message, end + 1
    if kind == "word":
        return text, at + 1
    parts = []
    while at < len(tokens) and tokens[at][0] == "string":  # adjacent strings are one
        parts.append(tokens[at][1][1:-1])
        at += 1
    return "".join(parts), at
