"""Caffemodels for tests, written and read on the wire format by the shortest route."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Blobs = Sequence[NDArray[np.float32]]


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def chunk(field: int, payload: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(payload)) + payload


def blob(
    values: NDArray[np.floating],
    *,
    legacy: bool = False,
    packed: bool = True,
    double: bool = False,
) -> bytes:
    """A BlobProto: data in field 5, or in 8 if in double precision; its shape behind it."""
    data = np.asarray(values, dtype="<f8" if double else "<f4", order="C")
    field, wire, form = (8, 1, "<d") if double else (5, 5, "<f")
    if legacy:
        shape = (1,) * (4 - data.ndim) + data.shape
        head = b"".join(varint(n << 3) + varint(size) for n, size in enumerate(shape, 1))
    else:
        head = chunk(7, chunk(1, b"".join(map(varint, data.shape))))
    if packed:
        return chunk(field, data.tobytes()) + head
    tag = varint(field << 3 | wire)
    return b"".join(tag + struct.pack(form, x) for x in data.reshape(-1)) + head


def caffemodel(layers: Mapping[str, tuple[str, Blobs]], **form: bool) -> bytes:
    """A NetParameter; `layers` maps a name to (type, blobs), `form` is that of `blob`."""
    out = [chunk(1, b"net")]
    for name, (kind, blobs) in layers.items():
        body = chunk(1, name.encode()) + chunk(2, kind.encode())
        body += b"".join(chunk(7, blob(b, **form)) for b in blobs)
        out.append(chunk(100, body))
    return b"".join(out)


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(field, wire type, value) of a message."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _read_varint(data, at)
            yield tag >> 3, kind, value
            continue
        if kind == 2:
            size, at = _read_varint(data, at)
        else:
            size = {1: 8, 5: 4}[kind]
        yield tag >> 3, kind, data[at : at + size]
        at += size


def read_caffemodel(data: bytes) -> dict[str, list[NDArray[np.float64]]]:
    """The blobs of each layer that has any, V2 or V1."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    for number, _, value in fields(data):
        if number not in (2, 100):
            continue
        name_field, blob_field = (1, 7) if number == 100 else (4, 6)
        name, blobs = "", []
        for inner, _, payload in fields(value):
            if inner == name_field:
                name = payload.decode()
            if inner == blob_field:
                blobs.append(_read_blob(payload))
        if blobs:
            found[name] = blobs
    return found


def _read_blob(data: bytes) -> NDArray[np.float64]:
    parts: dict[int, list[NDArray[np.float64]]] = {5: [], 8: []}
    shape, legacy = None, {}
    for number, _, value in fields(data):
        if number in (5, 8):
            parts[number].append(np.frombuffer(value, "<f4" if number == 5 else "<f8"))
        elif number == 7:
            shape = []
            for inner, wire, dims in fields(value):
                assert inner == 1
                at = 0
                while wire == 2 and at < len(dims):
                    size, at = _read_varint(dims, at)
                    shape.append(size)
                if wire == 0:
                    shape.append(dims)
        elif number <= 4:
            legacy[number] = value
    values = np.concatenate(parts[8] or parts[5] or [np.zeros(0)]).astype(np.float64)
    if shape is None:
        shape = [legacy.get(n, 0) for n in (1, 2, 3, 4)]
    return values.reshape(shape)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
