"""The tree of a text in protobuf's text format, and edits of the text.

Every node knows where it stands. An edit replaces a stretch of the text; what no edit touches
(comments, layout, fields of forks that no schema knows) comes out byte for byte. Bytes that are no
UTF-8 survive as surrogates.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bnfold.errors import ModelUnreadableError

_NEXT_STEP = "correct it there, or get the file again"


class Scalar(NamedTuple):
    """A number, a word or a string, as it is written."""

    text: str
    """The tokens without what stands between them: a sign in front, adjacent strings."""
    start: int
    end: int

    @property
    def is_string(self) -> bool:
        """Whether it is in quotes."""
        return self.text[0] in "\"'"

    @property
    def string(self) -> str:
        """What the quotes hold, escapes resolved; a word or number as it is."""
        return _unquote(self.text) if self.is_string else self.text


@dataclasses.dataclass(slots=True)
class Message:
    """The fields between two braces, or of the whole file."""

    start: int
    """Where its first field could stand: behind the opening brace."""
    end: int = 0
    """Where the closing brace is, or the file ends."""
    fields: list[Field] = dataclasses.field(default_factory=list)

    def named(self, name: str) -> Iterator[Field]:
        """Its fields of this name, in order."""
        return (field for field in self.fields if field.name == name)

    def messages(self, name: str) -> list[Message]:
        """The messages in fields of this name, in order."""
        return [v for field in self.named(name) for v in field.values if isinstance(v, Message)]

    def scalars(self, name: str) -> list[Scalar]:
        """The scalars in fields of this name, in order; those of a list one by one."""
        return [v for field in self.named(name) for v in field.values if isinstance(v, Scalar)]

    def scalar(self, name: str) -> Scalar | None:
        """The last scalar of this name, which is the one that counts; None if there is none."""
        scalars = self.scalars(name)
        return scalars[-1] if scalars else None


@dataclasses.dataclass(slots=True)
class Field:
    """A name and its value, or its values if they stand in a list."""

    name: str
    start: int
    """Where the name begins."""
    end: int = 0
    """Where its value ends, a separator behind it not included."""
    values: list[Scalar | Message] = dataclasses.field(default_factory=list)
    is_list: bool = False
    """Whether the values stand in brackets."""


@dataclasses.dataclass(slots=True)
class Document:
    """A parsed file."""

    name: str
    """What to call it in errors."""
    text: str
    root: Message

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column, from 1."""
        return position_of(self.text, offset)

    def error(self, offset: int, problem: str, next_step: str = _NEXT_STEP) -> ModelUnreadableError:
        """The error that names the place."""
        return error_at(self.name, self.text, offset, problem, next_step)


def position_of(text: str, offset: int) -> tuple[int, int]:
    """Line and column, from 1."""
    before = text[:offset]
    return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1


def error_at(
    name: str, text: str, offset: int, problem: str, next_step: str = _NEXT_STEP
) -> ModelUnreadableError:
    """The error that names a place in a text."""
    line, column = position_of(text, offset)
    return ModelUnreadableError(name, f"line {line}, column {column}: {problem}", next_step)


def encode(text: str) -> bytes:
    """The bytes of a text that `read_text` decoded, or of a part of it."""
    return text.encode("utf-8", "surrogateescape")


class Edits:
    """Replacements of stretches of one text. No two may overlap."""

    def __init__(self) -> None:
        self._replacements: list[tuple[int, int, str]] = []

    def replace(self, start: int, end: int, text: str) -> None:
        """Put `text` where [start, end) is now."""
        self._replacements.append((start, end, text))

    def insert(self, offset: int, text: str) -> None:
        """Put `text` in front of `offset`; insertions at one place keep their order."""
        self._replacements.append((offset, offset, text))

    def apply(self, text: str) -> str:
        """The edited text."""
        parts, done = [], 0
        for start, end, new in sorted(self._replacements, key=lambda edit: edit[:2]):
            assert start >= done, "two edits overlap"
            parts += [text[done:start], new]
            done = end
        return "".join([*parts, text[done:]])


def quoted(string: str, like: Scalar) -> str:
    """A string in the quotes of another one."""
    quote = like.text[0] if like.is_string else '"'
    escaped = string.replace("\\", "\\\\").replace(quote, "\\" + quote)
    return quote + escaped.replace("\n", "\\n").replace("\r", "\\r") + quote


_ESCAPE = re.compile(
    r"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL
)
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_QUOTED = re.compile(r"""(["'])((?:[^\\]|\\.)*?)\1""", re.DOTALL)


def _unquote(text: str) -> str:
    """Adjacent strings as one, escapes resolved; no escape reaches from one into the next."""
    parts = []
    for _, body in _QUOTED.findall(text):
        done = 0
        for match in _ESCAPE.finditer(body):
            parts += [encode(body[done : match.start()]), _escaped(match)]
            done = match.end()
        parts.append(encode(body[done:]))
    return b"".join(parts).decode("utf-8", "surrogateescape")


def _escaped(match: re.Match[str]) -> bytes:
    octal, byte, short, long, other = match.groups()
    if octal:
        return bytes([int(octal, 8) & 0xFF])
    if byte:
        return bytes([int(byte, 16)])
    if short or long:
        return chr(min(int(short or long, 16), 0x10FFFF)).encode("utf-8", "surrogatepass")
    return _SIMPLE.get(other, other).encode("utf-8", "surrogateescape")


def fields_of(messages: Iterable[Message]) -> Message:
    """Several messages of one field as the one that protobuf makes of them."""
    merged = Message(0)
    for message in messages:
        merged.fields += message.fields
    return merged
