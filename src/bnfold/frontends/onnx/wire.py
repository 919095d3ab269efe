"""Take large tensors out of a serialised model, and put them back, without decoding them.

    ModelProto:   graph = 7          GraphProto: initializer = 5        TensorProto: raw_data = 9

A message is a row of fields: a tag (number * 8 + wire type), then a value, by wire type a varint
(0), 8 bytes (1), a length and that many bytes (2), or 4 bytes (5). What is cut out is the content
of `raw_data` of large initializers; what is left is small and parsed as usual.
https://protobuf.dev/programming-guides/encoding, and onnx.proto for the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_BYTES = 2

Buffer = bytes | memoryview


class WireError(ValueError):
    """The bytes are no message: cut off, or something else."""


class Sized(Protocol):
    """What `assemble` puts into a tensor's raw_data."""

    @property
    def nbytes(self) -> int:
        """How many bytes it will be."""


Content = TypeVar("Content", bound=Sized)


@dataclass(frozen=True, slots=True)
class Field:
    """Where a field lies in a buffer."""

    number: int
    kind: int
    """The wire type."""
    start: int
    """Of the tag."""
    content: int
    """Of the value, behind the length if it has one."""
    end: int


@dataclass(slots=True)
class Split:
    """A model without the content of large tensors."""

    skeleton: bytes
    """A serialised ModelProto."""
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Offset and length of the raw_data that was cut out, per number of the initializer."""


def split(buffer: Buffer, threshold: int) -> Split:
    """Cut out what is at least `threshold` bytes long. Raises WireError."""
    head: list[Buffer] = []
    result = Split(b"")
    graphs = 0
    for part in fields(buffer, 0, len(buffer)):
        if part.number != _GRAPH or part.kind != _BYTES:
            head.append(buffer[part.start : part.end])
            continue
        graphs += 1
        graph = _split_graph(buffer, part, result, threshold)
        head += [_tag(_GRAPH), _varint(sum(map(len, graph))), *graph]
    if graphs > 1:  # two parts of one graph: legal, never seen, and nothing to be clever about
        return Split(bytes(buffer))
    result.skeleton = b"".join(head)
    return result


def _split_graph(buffer: Buffer, graph: Field, result: Split, threshold: int) -> list[Buffer]:
    parts: list[Buffer] = []
    number = 0
    kept = graph.content
    for part in fields(buffer, graph.content, graph.end):
        if part.number != _INITIALIZER or part.kind != _BYTES:
            continue
        number += 1
        if part.end - part.content < threshold:
            continue
        raw = [f for f in fields(buffer, part.content, part.end) if f.number == _RAW_DATA]
        if len(raw) != 1 or raw[0].kind != _BYTES or raw[0].end - raw[0].content < threshold:
            continue
        (data,) = raw
        result.spans[number - 1] = (data.content, data.end - data.content)
        rest = part.end - part.content - (data.end - data.start)
        parts += [buffer[kept : part.start], _tag(_INITIALIZER), _varint(rest)]
        parts += [buffer[part.content : data.start], buffer[data.end : part.end]]
        kept = part.end
    parts.append(buffer[kept : graph.end])
    return parts


def assemble(skeleton: bytes, contents: Mapping[int, Content]) -> Iterator[Buffer | Content]:
    """The serialised model, piece by piece, with the content back in its initializers."""
    for part in fields(skeleton, 0, len(skeleton)):
        if part.number != _GRAPH or not contents:
            yield skeleton[part.start : part.end]
            continue
        parts = list(_assemble_graph(skeleton, part, contents))
        total = sum(len(p) if isinstance(p, bytes | memoryview) else p.nbytes for p in parts)
        yield _tag(_GRAPH) + _varint(total)
        yield from parts


def _assemble_graph(
    skeleton: bytes, graph: Field, contents: Mapping[int, Content]
) -> Iterator[Buffer | Content]:
    number = 0
    for part in fields(skeleton, graph.content, graph.end):
        if part.number != _INITIALIZER:
            yield skeleton[part.start : part.end]
            continue
        data = contents.get(number)
        number += 1
        if data is None:
            yield skeleton[part.start : part.end]
            continue
        head = _tag(_RAW_DATA) + _varint(data.nbytes)
        yield _tag(_INITIALIZER)
        yield _varint(part.end - part.content + len(head) + data.nbytes)
        yield skeleton[part.content : part.end]
        yield head
        yield data


def fields(buffer: Buffer, start: int, end: int) -> Iterator[Field]:
    """The fields of the message between two places. Raises WireError."""
    offset = start
    while offset < end:
        tag, content = _read_varint(buffer, offset, end)
        number, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            length, content = _read_varint(buffer, content, end)
            stop = content + length
        elif kind == 0:
            _, stop = _read_varint(buffer, content, end)
        elif kind in (1, 5):
            stop = content + (8 if kind == 1 else 4)
        else:
            raise WireError(f"a field of unknown type at byte {offset}")
        if stop > end or not number:
            raise WireError(f"a field at byte {offset} goes past the end")
        yield Field(number, kind, offset, content, stop)
        offset = stop


def _read_varint(buffer: Buffer, offset: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while offset < end and shift < 70:
        byte = buffer[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
        shift += 7
    raise WireError(f"a number at byte {offset} goes past the end")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(number: int) -> bytes:
    return _varint(number << 3 | _BYTES)
