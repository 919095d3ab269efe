"""Protobuf's wire format: find fields and write them, without a schema.

    field = tag value          tag = varint of number << 3 | wire type
    wire type  0 varint   1 eight bytes   2 length and that many bytes   5 four bytes
               3 .. 4 a group: fields up to the end of the group

https://protobuf.dev/programming-guides/encoding/. Nothing is copied or allocated for what a length
claims: a claim past the end of what is there is an error with the byte where it stands.
"""

from __future__ import annotations

from typing import NamedTuple

from bnfold.errors import ModelUnreadableError

VARINT, EIGHT_BYTES, LENGTH, GROUP, END_GROUP, FOUR_BYTES = 0, 1, 2, 3, 4, 5
_MAX_GROUPS = 100
"""Groups in groups; protobuf itself stops at 100 levels."""
_NEXT_STEP = "check that it is a .caffemodel, and whole"


class WireField(NamedTuple):
    """Where one field stands."""

    number: int
    wire: int
    start: int
    """Of the tag."""
    value: int
    """Of the value; behind the length, if it has one."""
    end: int


class Wire:
    """A buffer of fields."""

    def __init__(self, content: memoryview, name: str) -> None:
        self.content = content
        self.name = name

    def error(self, offset: int, problem: str) -> ModelUnreadableError:
        """The error that names the place."""
        return ModelUnreadableError(self.name, f"byte {offset}: {problem}", _NEXT_STEP)

    def varint(self, offset: int, end: int) -> tuple[int, int]:
        """An unsigned number of up to 64 bits, and where it ends."""
        content = self.content
        value = shift = 0
        start = offset
        while offset < end:
            byte = content[offset]
            offset += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, offset
            shift += 7
            if shift > 63:
                raise self.error(start, "a number of more than 64 bits")
        raise self.error(start, "the file ends, or a field does, within a number")

    def field(self, offset: int, end: int) -> WireField:
        """The field that begins at `offset`, inside of something that ends at `end`."""
        tag, value = self.varint(offset, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise self.error(offset, f"{number} is no field number")
        if wire == GROUP:
            return WireField(number, wire, offset, value, self._end_of_group(offset, value, end))
        stop = self._end_of_value(wire, offset, value, end)
        if wire == LENGTH:
            length, value = self.varint(value, end)
            stop = value + length
        if stop > end:
            raise self.error(
                offset, f"a field of {stop - value} bytes where {end - value} are left"
            )
        return WireField(number, wire, offset, value, stop)

    def _end_of_value(self, wire: int, offset: int, value: int, end: int) -> int:
        if wire == VARINT:
            return self.varint(value, end)[1]
        if wire == EIGHT_BYTES:
            return value + 8
        if wire == FOUR_BYTES:
            return value + 4
        if wire == LENGTH:
            return value
        raise self.error(offset, f"there is no wire type {wire}")

    def _end_of_group(self, start: int, offset: int, end: int) -> int:
        depth = 1
        while depth:
            if offset >= end:
                raise self.error(start, "a group without its end")
            tag, value = self.varint(offset, end)
            wire = tag & 7
            if wire == GROUP:
                depth += 1
                offset = value
            elif wire == END_GROUP:
                depth -= 1
                offset = value
            else:
                offset = self.field(offset, end).end
            if depth > _MAX_GROUPS:
                raise self.error(start, f"groups nested more than {_MAX_GROUPS} deep")
        return offset


def varint_bytes(value: int) -> bytes:
    """A non-negative number as a varint."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def tag_bytes(number: int, wire: int) -> bytes:
    """The tag of a field."""
    return varint_bytes(number << 3 | wire)


def varint_field(number: int, value: int) -> bytes:
    """A whole field that holds a number."""
    return tag_bytes(number, VARINT) + varint_bytes(value)


def length_field(number: int, content: bytes) -> bytes:
    """A whole field that holds bytes."""
    return tag_bytes(number, LENGTH) + varint_bytes(len(content)) + content
