"""Read a layer's options from its text: numbers, flags and words, with Caffe's merging rules.

A message that is given twice is one message with the fields of both; of a field that is not
repeated, the last one counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bnfold.errors import ModelUnreadableError
from bnfold.frontends.caffe.text_tree import Document, Message, Scalar, fields_of

_FLAGS = {"true": True, "t": True, "1": True, "True": True} | {
    "false": False,
    "f": False,
    "0": False,
    "False": False,
}
_INTEGER = re.compile(r"(-?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))")
_NUMBER = re.compile(r"-?(?:[0-9.]+(?:[eE][+-]?[0-9]+)?[fF]?|inf|infinity|nan)", re.IGNORECASE)


class Options:
    """The fields of a message, all parts of it taken together."""

    def __init__(self, document: Document, message: Message) -> None:
        self.document = document
        self.message = message

    def part(self, name: str) -> Options:
        """The message inside, empty if there is none."""
        return Options(self.document, fields_of(self.message.messages(name)))

    def parts(self, name: str) -> list[Options]:
        """The messages inside, one by one."""
        return [Options(self.document, message) for message in self.message.messages(name)]

    def has(self, *names: str) -> bool:
        """Whether any of these fields is there."""
        return any(field.name in names for field in self.message.fields)

    def text(self, name: str, default: str = "") -> str:
        """A string."""
        scalar = self.message.scalar(name)
        return default if scalar is None else scalar.string

    def texts(self, name: str) -> list[str]:
        """The strings of a repeated field."""
        return [scalar.string for scalar in self.message.scalars(name)]

    def flag(self, name: str, *, default: bool) -> bool:
        """A flag."""
        scalar = self.message.scalar(name)
        if scalar is None:
            return default
        if scalar.text not in _FLAGS:
            raise self._wrong(scalar, name, "true or false")
        return _FLAGS[scalar.text]

    def integer(self, name: str, default: int) -> int:
        """A whole number."""
        scalar = self.message.scalar(name)
        return default if scalar is None else self._integer(scalar, name)

    def integers(self, name: str) -> list[int]:
        """The whole numbers of a repeated field."""
        return [self._integer(scalar, name) for scalar in self.message.scalars(name)]

    def number(self, name: str, default: float) -> float:
        """A number."""
        scalar = self.message.scalar(name)
        return default if scalar is None else self._number(scalar, name)

    def numbers(self, name: str) -> list[float]:
        """The numbers of a repeated field."""
        return [self._number(scalar, name) for scalar in self.message.scalars(name)]

    def word(self, name: str, default: str, numbered: Mapping[int, str]) -> str:
        """A word of an enum, which may be written as its number."""
        scalar = self.message.scalar(name)
        if scalar is None:
            return default
        if scalar.text.isdigit():
            return numbered.get(int(scalar.text), scalar.text)
        return scalar.string

    def wrong(self, name: str, wanted: str) -> ModelUnreadableError:
        """The error for a field that is there, and is none that Caffe takes."""
        scalar = self.message.scalar(name)
        assert scalar is not None
        return self._wrong(scalar, name, wanted)

    def _integer(self, scalar: Scalar, name: str) -> int:
        match = _INTEGER.fullmatch(scalar.text)
        if match is None:
            raise self._wrong(scalar, name, "a whole number")
        sign, hexadecimal, octal, decimal = match.groups()
        digits, base = (hexadecimal, 16) if hexadecimal else (octal or decimal, 8 if octal else 10)
        value = int(digits, base) if len(digits) <= 25 else 1 << 80
        if value >= 1 << 63:
            raise self._wrong(scalar, name, "a whole number of 64 bits")
        return -value if sign else value

    def _number(self, scalar: Scalar, name: str) -> float:
        text = scalar.text
        if _INTEGER.fullmatch(text) and "x" in text.lower():
            return float(self._integer(scalar, name))
        try:
            if _NUMBER.fullmatch(text) is None:
                raise ValueError
            return float(text if text.lower().endswith("inf") else text.rstrip("fF"))
        except ValueError:
            raise self._wrong(scalar, name, "a number") from None

    def _wrong(self, scalar: Scalar, name: str, wanted: str) -> ModelUnreadableError:
        problem = f"{name} should be {wanted}, not {scalar.text[:40]!a}"
        return self.document.error(scalar.start, problem)
