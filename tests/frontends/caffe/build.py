"""Write caffemodels for the tests, in every form that the wire format allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bnfold.frontends.caffe.wire import (
    EIGHT_BYTES,
    FOUR_BYTES,
    length_field,
    tag_bytes,
    varint_bytes,
    varint_field,
)


def shape_field(shape: Sequence[int], *, form: str = "packed") -> bytes:
    """The shape of a blob: 'packed', 'unpacked', or 'legacy' (num, channels, height, width)."""
    if form == "legacy":
        four = (1,) * (4 - len(shape)) + tuple(shape)
        return b"".join(varint_field(n + 1, size) for n, size in enumerate(four))
    if form == "unpacked":
        return length_field(7, b"".join(varint_field(1, size) for size in shape))
    return length_field(7, length_field(1, b"".join(map(varint_bytes, shape))))


def data_field(values: Any, *, form: str = "packed") -> bytes:
    """The values of a blob: 'packed', 'unpacked', 'split', 'double', 'double-unpacked', 'half'."""
    flat = np.asarray(values).reshape(-1)
    if form == "packed":
        return length_field(5, flat.astype("<f4").tobytes())
    if form == "split":
        half = len(flat) // 2
        return data_field(flat[:half]) + data_field(flat[half:])
    if form == "unpacked":
        tag = tag_bytes(5, FOUR_BYTES)
        return b"".join(tag + one.tobytes() for one in flat.astype("<f4"))
    if form == "double":
        return length_field(8, flat.astype("<f8").tobytes())
    if form == "double-unpacked":
        tag = tag_bytes(8, EIGHT_BYTES)
        return b"".join(tag + one.tobytes() for one in flat.astype("<f8"))
    assert form == "half"
    return varint_field(10, 2) + length_field(12, flat.astype("<f2").tobytes())


def blob(values: Any, *, shape: str = "packed", data: str = "packed", extra: bytes = b"") -> bytes:
    """A BlobProto."""
    array = np.asarray(values)
    return shape_field(array.shape, form=shape) + data_field(array, form=data) + extra


def layer(name: str, kind: str, *blobs: bytes, extra: bytes = b"") -> bytes:
    """A LayerParameter as a field of the net."""
    content = length_field(1, name.encode()) + length_field(2, kind.encode()) + extra
    return length_field(100, content + b"".join(length_field(7, one) for one in blobs))


def layer_v1(name: str, kind: int, *blobs: bytes) -> bytes:
    """A V1LayerParameter as a field of the net."""
    content = length_field(4, name.encode()) + varint_field(5, kind)
    return length_field(2, content + b"".join(length_field(6, one) for one in blobs))


def layer_v0(name: str, kind: str, *blobs: bytes) -> bytes:
    """A V0LayerParameter in its V1LayerParameter as a field of the net."""
    content = length_field(1, name.encode()) + length_field(2, kind.encode())
    inner = content + b"".join(length_field(50, one) for one in blobs)
    return length_field(2, length_field(1, inner) + length_field(3, b"top"))


def net(*layers: bytes, name: str = "net") -> bytes:
    """A NetParameter."""
    return length_field(1, name.encode()) + b"".join(layers)
