"""Read protobuf's text format without a schema, and edit it so that nothing else changes.

The text is cut into tokens and grouped into a light tree whose nodes know where they stand. An edit
replaces a stretch of the text; what no edit touches (comments, layout, fields of forks that no
schema knows) comes out byte for byte. Grammar:
https://protobuf.dev/reference/protobuf/textformat-spec/

    message = { field }      field = name [":"] value ["," | ";"]
    value   = scalar | "{" message "}" | "<" message ">" | "[" value { "," value } "]"

Bytes that are no UTF-8 survive as surrogates. Nothing here recurses, so nesting costs no stack.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bnfold.errors import ModelUnreadableError

MAX_BYTES = 1 << 26
"""A network of 1000 layers takes 700 kB of text: what is longer than 64 MB is no network."""

_MAX_TOKENS = 1_000_000
"""Words, numbers and signs of one file: a network of 1000 layers has 100,000, and the tree that is
made of them takes memory."""

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n\v\f]+|\#[^\n]*)
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<number>0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?)
      | (?P<string>"(?:[^"\\\n]|\\[^\n])*"|'(?:[^'\\\n]|\\[^\n])*')
      | (?P<symbol>[][{}<>:,;.\-/])""",
    re.VERBOSE,
)
_CLOSE = {"{": "}", "<": ">"}
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
        return _position(self.text, offset)

    def error(self, offset: int, problem: str, next_step: str = _NEXT_STEP) -> ModelUnreadableError:
        """The error that names the place."""
        line, column = self.position(offset)
        return ModelUnreadableError(
            self.name, f"line {line}, column {column}: {problem}", next_step
        )


def read_text(content: bytes, name: str) -> Document:
    """Parse the bytes of a file. Raises ModelUnreadableError with line and column."""
    if len(content) > MAX_BYTES:
        raise ModelUnreadableError(
            name, f"{len(content)} bytes are too many for a prototxt", "check which file this is"
        )
    text = content.decode("utf-8", "surrogateescape")
    return Document(name, text, _Parser(name, text).parse())


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


def _position(text: str, offset: int) -> tuple[int, int]:
    before = text[:offset]
    return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1


def _tokens(name: str, text: str) -> Iterator[tuple[str, str, int, int]]:
    """(kind, text, start, end) of all that is neither blank nor comment; last one 'end'."""
    offset, length = 0, len(text)
    if text.startswith("\ufeff"):  # a byte order mark, which some editors write
        offset = 1
    match = _TOKEN.match
    while offset < length:
        token = match(text, offset)
        if token is None:
            what = (
                "a string without its end"
                if text[offset] in "\"'"
                else f"{text[offset]!a} is unexpected"
            )
            raise _error(name, text, offset, what)
        kind = token.lastgroup
        assert kind is not None
        end = token.end()
        if kind != "space":
            if kind == "number" and end < length and (text[end].isalnum() or text[end] in "._"):
                raise _error(name, text, offset, "this is no number")
            yield kind, token.group(), offset, end
        offset = end
    yield "end", "the end of the file", length, length


def _error(name: str, text: str, offset: int, problem: str) -> ModelUnreadableError:
    line, column = _position(text, offset)
    return ModelUnreadableError(name, f"line {line}, column {column}: {problem}", _NEXT_STEP)


class _Parser:
    """Turns tokens into the tree, with a stack of its own."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.tokens = _tokens(name, text)
        self.kind, self.token, self.start, self.end = "", "", 0, 0
        self.last_end = self.start_of_name = self.count = 0
        self.root = Message(0, len(text))
        self.stack: list[tuple[Message, str, int]] = [(self.root, "", 0)]
        """Open messages: the message, what closes it, where it opened."""
        self.open_fields: list[Field] = []
        """The fields whose value is the message above, one per open message but the root."""

    def parse(self) -> Message:
        self._next()
        while self.kind != "end" or len(self.stack) > 1:
            message, close, opened = self.stack[-1]
            if self.kind == "end":
                line, _ = _position(self.text, opened)
                raise self._unexpected(f"{close!r} for the brace of line {line}")
            if close and self.token == close and self.kind == "symbol":
                self._close(message)
            else:
                self._field(message)
        return self.root

    def _next(self) -> None:
        self.last_end = self.end
        self.count += 1
        if self.count > _MAX_TOKENS:
            raise _error(self.name, self.text, self.start, f"more than {_MAX_TOKENS} tokens")
        self.kind, self.token, self.start, self.end = next(self.tokens)

    def _is(self, *symbols: str) -> bool:
        return self.kind == "symbol" and self.token in symbols

    def _unexpected(self, wanted: str) -> ModelUnreadableError:
        token = self.token if self.kind == "end" else ascii(self.token[:40])
        return _error(self.name, self.text, self.start, f"{wanted} is expected, not {token}")

    def _field(self, message: Message) -> None:
        field = Field(self._name(), self.start_of_name)
        message.fields.append(field)
        has_colon = self._is(":")
        if has_colon:
            self._next()
        if self._is("["):
            field.is_list = True
            self._next()
            if self._is("]"):
                self._next()
                self._finish(field)
                return
        elif not has_colon and not self._is("{", "<"):
            raise self._unexpected(f"a colon or a brace behind {field.name}")
        self._value(field)

    def _name(self) -> str:
        """A field name; [package.extension] counts as one."""
        self.start_of_name = self.start
        if self.kind == "word":
            name = self.token
            self._next()
            return name
        if not self._is("["):
            raise self._unexpected("the name of a field")
        while not self._is("]"):
            self._next()
            if self.kind not in ("word", "number") and not self._is(".", "/", "-", "]"):
                raise self._unexpected("']'")
        self._next()
        return self.text[self.start_of_name : self.last_end]

    def _value(self, field: Field) -> None:
        """A value, and those that follow it in a list; a message's are read when it is closed."""
        more = True
        while more:
            if self._is("{", "<"):
                inner = Message(self.end)
                field.values.append(inner)
                self.stack.append((inner, _CLOSE[self.token], self.start))
                self.open_fields.append(field)
                self._next()
                return
            field.values.append(self._scalar())
            more = self._has_more(field)

    def _scalar(self) -> Scalar:
        start = self.start
        parts = []
        if self.kind == "string":
            while self.kind == "string":  # adjacent strings are one
                parts.append(self.token)
                self._next()
            return Scalar("".join(parts), start, self.last_end)
        if self._is("-"):
            parts.append("-")
            self._next()
        if self.kind not in ("word", "number"):
            raise self._unexpected("a value")
        parts.append(self.token)
        self._next()
        return Scalar("".join(parts), start, self.last_end)

    def _has_more(self, field: Field) -> bool:
        """Whether another value of a list follows; if not, the field ends here."""
        if field.is_list and self._is(","):
            self._next()
            return True
        if field.is_list and not self._is("]"):
            raise self._unexpected("',' or ']'")
        if field.is_list:
            self._next()
        self._finish(field)
        return False

    def _finish(self, field: Field) -> None:
        field.end = self.last_end
        if self._is(",", ";"):
            self._next()

    def _close(self, message: Message) -> None:
        message.end = self.start
        self.stack.pop()
        self._next()
        field = self.open_fields.pop()
        if self._has_more(field):
            self._value(field)


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
