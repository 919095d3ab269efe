"""Write a caffemodel again: what does not change is copied from the old file, byte for byte.

A layer whose arrays change is written anew around them, with its other fields as they were. An
array keeps the form that it had: packed or not, float, double or raw half; on request a raw half
becomes floats, in the field that every Caffe reads. The new bytes are made when they are written,
so that no more than one array is in memory at a time.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold._output_files import part_beside, put_in_place, sync_file
from bnfold._storage import Weights
from bnfold.errors import ModelUnreadableError, UsageError
from bnfold.frontends.caffe.caffemodel import (
    BLOB_DATA,
    BLOB_DOUBLE_DATA,
    BLOB_RAW_DATA,
    BLOB_RAW_TYPE,
    BLOB_SHAPE,
    Blob,
    Caffemodel,
    StoredLayer,
)
from bnfold.frontends.caffe.wire import (
    EIGHT_BYTES,
    FOUR_BYTES,
    LENGTH,
    Wire,
    WireField,
    length_field,
    tag_bytes,
    varint_bytes,
    varint_field,
)

_DATA_FIELDS = (BLOB_DATA, BLOB_DOUBLE_DATA, BLOB_RAW_DATA)
_MAX_SIZE = 2**31 - 1
"""Protobuf reads no larger message."""
_BLOCK = 1 << 24
_FLOAT = np.dtype("<f4")
"""What Caffe computes in."""

Make = Callable[[], NDArray[Any]]
"""Computes an array: the new content of a blob."""


@dataclasses.dataclass(slots=True)
class Changes:
    """What becomes of the layers of a file."""

    arrays: dict[tuple[int, int], Make] = dataclasses.field(default_factory=dict)
    """New content, per index of the layer and of its blob."""
    born: dict[int, NDArray[Any]] = dataclasses.field(default_factory=dict)
    """An array that a layer gets behind those that it has, per index of the layer."""
    replaced: dict[int, list[NDArray[Any]]] = dataclasses.field(default_factory=dict)
    """Arrays that a layer gets instead of all that it has, per index of the layer."""
    dropped: set[int] = dataclasses.field(default_factory=set)
    """Indices of layers that go."""
    weights: Weights = "stored"
    """How arrays that change are stored."""

    def form(self, like: Blob) -> Form:
        """How a new array is stored that was, or whose layer's first array was, like that."""
        if self.weights == "float32" and like.dtype.itemsize < _FLOAT.itemsize:
            return Form(BLOB_DATA, _FLOAT, is_packed=True)
        return Form(like.number, like.dtype, is_packed=like.is_packed)

    def rounded(self, model: Caffemodel) -> list[str]:
        """The dtype of each new array that is stored in less than float32."""
        likes = [model.layers[index].blobs[place] for index, place in self.arrays]
        likes += [model.layers[index].blobs[0] for index in (*self.born, *self.replaced)]
        dtypes = [self.form(like).dtype for like in likes]
        return [str(dtype) for dtype in dtypes if dtype.itemsize < _FLOAT.itemsize]


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """How the values of an array are stored."""

    number: int
    """The field that holds them."""
    dtype: np.dtype[Any]
    is_packed: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """Some bytes of the new file: copied from the old one, or made."""

    length: int
    make: Callable[[], Any]


def rewrite(model: Caffemodel, changes: Changes) -> Iterator[Any]:
    """The bytes of the new file, piece by piece."""
    pieces = list(_file(model, changes))
    size = sum(piece.length for piece in pieces)
    if size > _MAX_SIZE:
        raise ModelUnreadableError(
            model.name, f"the folded file would have {size} bytes", "Caffe reads up to 2 GB"
        )
    for piece in pieces:
        yield piece.make()


def write_pair(network: Path, text: bytes, weights: Path, content: Iterable[Any]) -> None:
    """Write both files whole, or neither. Raises UsageError if they cannot be written.

    Both are complete before either appears, and the network appears last: weights without a network
    are no model. Files that are replaced come back if that fails.
    """
    moves = [(part_beside(path), path) for path in (weights, network)]
    replaces = any(os.path.lexists(path) for _, path in moves)
    try:
        for (part, _), pieces in zip(moves, (content, [text]), strict=True):
            with part.open("xb") as file:
                for piece in pieces:
                    file.write(piece)
                sync_file(file, replaces=replaces)
        put_in_place(*moves)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"{network} and {weights.name} could not be written: {reason}",
            "choose another place with -o",
        ) from error
    finally:
        for part, _ in moves:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _file(model: Caffemodel, changes: Changes) -> Iterator[_Piece]:
    by_start = {layer.path[0].start: index for index, layer in enumerate(model.layers)}
    changed = {index for index, _ in changes.arrays} | set(changes.born) | changes.dropped
    changed |= set(changes.replaced)
    done = 0
    for start in sorted(start for start, index in by_start.items() if index in changed):
        layer = model.layers[by_start[start]]
        yield from _copy(model, done, start)
        done = layer.path[0].end
        if by_start[start] not in changes.dropped:
            yield from _layer(model, layer, by_start[start], changes)
    yield from _copy(model, done, model.size)


def _copy(model: Caffemodel, start: int, end: int) -> Iterator[_Piece]:
    """A stretch of the old file, in blocks: what has been written can leave memory."""
    for offset in range(start, end, _BLOCK):
        yield _stretch(model.wire, offset, min(offset + _BLOCK, end))


def _stretch(wire: Wire, start: int, end: int) -> _Piece:
    return _Piece(end - start, lambda: wire.content[start:end])


def _layer(model: Caffemodel, layer: StoredLayer, index: int, changes: Changes) -> Iterator[_Piece]:
    """The layer's field with new arrays; for V0 the field is in a field."""
    pieces = list(_content(model, layer, index, changes))
    for depth in reversed(range(len(layer.path))):
        whole = layer.path[depth]
        pieces = list(_wrap(whole.number, pieces))
        if depth:
            outer = layer.path[depth - 1]
            before = _copy(model, outer.value, whole.start)
            pieces = [*before, *pieces, *_copy(model, whole.end, outer.end)]
    yield from pieces


def _wrap(number: int, pieces: list[_Piece]) -> Iterator[_Piece]:
    length = sum(piece.length for piece in pieces)
    yield _bytes(tag_bytes(number, LENGTH) + varint_bytes(length))
    yield from pieces


def _bytes(content: bytes) -> _Piece:
    return _Piece(len(content), lambda: content)


def _content(
    model: Caffemodel, layer: StoredLayer, index: int, changes: Changes
) -> Iterator[_Piece]:
    inner = layer.path[-1]
    offset = done = inner.value
    position = -1
    while offset < inner.end:
        field = model.wire.field(offset, inner.end)
        offset = field.end
        if field.number != layer.fields.blobs or field.wire != LENGTH:
            continue
        position += 1
        if index in changes.replaced:
            yield from _copy(model, done, field.start)
            done = field.end
            if position == 0:
                for array in changes.replaced[index]:
                    new = _new_blob(layer.blobs[0], changes, array)
                    yield from _wrap(field.number, new)
            continue
        make = changes.arrays.get((index, position))
        if make is not None:
            yield from _copy(model, done, field.start)
            yield from _wrap(field.number, list(_blob(layer.blobs[position], changes, make)))
            done = field.end
        if position == len(layer.blobs) - 1 and index in changes.born:
            yield from _copy(model, done, field.end)
            done = field.end
            new = _new_blob(layer.blobs[0], changes, changes.born[index])
            yield from _wrap(field.number, new)
    yield from _copy(model, done, inner.end)


def _blob(blob: Blob, changes: Changes, make: Make) -> Iterator[_Piece]:
    """The blob with other values; the first field that held some holds all of them now."""
    wire, form = blob.wire, changes.form(blob)
    offset, is_written = blob.start, False
    while offset < blob.end:
        field = wire.field(offset, blob.end)
        offset = field.end
        if field.number == BLOB_RAW_TYPE and form.number != BLOB_RAW_DATA:
            continue
        if field.number not in _DATA_FIELDS:
            yield _stretch(wire, field.start, field.end)
        elif not is_written and _holds_values(blob, field):
            is_written = True
            yield from _values(form, blob.count, make)


def _holds_values(blob: Blob, field: WireField) -> bool:
    """Whether this field is of those that count."""
    return field.number == blob.number


def _values(form: Form, count: int, make: Make) -> Iterator[_Piece]:
    """The fields of some values."""
    size = form.dtype.itemsize
    if form.is_packed:
        yield _bytes(tag_bytes(form.number, LENGTH) + varint_bytes(count * size))
        yield _Piece(count * size, lambda: _flat(form, make).data.cast("B"))
        return
    tag = tag_bytes(form.number, EIGHT_BYTES if size == 8 else FOUR_BYTES)
    stride = len(tag) + size

    def tagged() -> Any:
        rows = np.empty((count, stride), dtype=np.uint8)
        rows[:, : len(tag)] = np.frombuffer(tag, dtype=np.uint8)
        rows[:, len(tag) :] = _flat(form, make).view(np.uint8).reshape(count, size)
        return rows.data.cast("B")

    yield _Piece(count * stride, tagged)


def _flat(form: Form, make: Make) -> NDArray[Any]:
    with np.errstate(over="ignore", under="ignore"):
        return np.ascontiguousarray(make().reshape(-1), dtype=form.dtype)


def _new_blob(like: Blob, changes: Changes, values: NDArray[Any]) -> list[_Piece]:
    """A blob in the form of another one."""
    form = changes.form(like)
    if like.is_legacy:
        four = (1,) * (4 - values.ndim) + values.shape
        shape = b"".join(varint_field(n + 1, size) for n, size in enumerate(four))
    else:
        dims = b"".join(varint_bytes(size) for size in values.shape)
        shape = length_field(BLOB_SHAPE, length_field(1, dims))
    if form.number == BLOB_RAW_DATA:
        raw = {8: 0, 4: 1, 2: 2}[form.dtype.itemsize]
        shape += varint_field(BLOB_RAW_TYPE, raw)
    return [_bytes(shape), *_values(form, values.size, lambda: values)]
