"""Read protobuf's text format without a schema.

The text is cut into tokens and grouped into a light tree whose nodes know where they stand, see
`text_tree`. Grammar: https://protobuf.dev/reference/protobuf/textformat-spec/

    message = { field }      field = name [":"] value ["," | ";"]
    value   = scalar | "{" message "}" | "<" message ">" | "[" value { "," value } "]"

Nothing here recurses, so nesting costs no stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from bnfold.errors import ModelUnreadableError
from bnfold.frontends.caffe.text_tree import (
    Document,
    Field,
    Message,
    Scalar,
    error_at,
    position_of,
)

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


def read_text(content: bytes, name: str) -> Document:
    """Parse the bytes of a file. Raises ModelUnreadableError with line and column."""
    if len(content) > MAX_BYTES:
        raise ModelUnreadableError(
            name, f"{len(content)} bytes are too many for a prototxt", "check which file this is"
        )
    text = content.decode("utf-8", "surrogateescape")
    return Document(name, text, _Parser(name, text).parse())


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
            raise error_at(name, text, offset, what)
        kind = token.lastgroup
        assert kind is not None
        end = token.end()
        if kind != "space":
            if kind == "number" and end < length and (text[end].isalnum() or text[end] in "._"):
                raise error_at(name, text, offset, "this is no number")
            yield kind, token.group(), offset, end
        offset = end
    yield "end", "the end of the file", length, length


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
                line, _ = position_of(self.text, opened)
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
            raise error_at(self.name, self.text, self.start, f"more than {_MAX_TOKENS} tokens")
        self.kind, self.token, self.start, self.end = next(self.tokens)

    def _is(self, *symbols: str) -> bool:
        return self.kind == "symbol" and self.token in symbols

    def _unexpected(self, wanted: str) -> ModelUnreadableError:
        token = self.token if self.kind == "end" else ascii(self.token[:40])
        return error_at(self.name, self.text, self.start, f"{wanted} is expected, not {token}")

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
