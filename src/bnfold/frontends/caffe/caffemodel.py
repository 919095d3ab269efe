"""Read a .caffemodel where it lies: which layers it holds, and where their blobs are.

Only the fields that every Caffe shares are looked at; forks give the others colliding numbers.

    NetParameter       layers = 2 (V1)   layer = 100
    LayerParameter     name = 1   type = 2   blobs = 7
    V1LayerParameter   layer = 1 (V0)   name = 4   type = 5   blobs = 6
    V0LayerParameter   name = 1   type = 2   blobs = 50
    BlobProto          num, channels, height, width = 1 .. 4   data = 5   shape = 7
                       double_data = 8   raw_data_type = 10, raw_data = 12 (NVCaffe)

https://github.com/BVLC/caffe/blob/master/src/caffe/proto/caffe.proto. The file is mapped, not
loaded: what is not looked at never takes memory.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import ModelUnreadableError
from bnfold.frontends.caffe.wire import EIGHT_BYTES, FOUR_BYTES, LENGTH, VARINT, Wire, WireField

NET_LAYERS_V1, NET_LAYER = 2, 100
BLOB_DATA, BLOB_SHAPE, BLOB_DOUBLE_DATA = 5, 7, 8
BLOB_RAW_TYPE, BLOB_RAW_DATA = 10, 12
_RAW_TYPES = {0: "<f8", 1: "<f4", 2: "<f2"}
MAX_AXES = 32
"""As in Caffe (kMaxBlobAxes)."""
_MAX_COUNT = 2**31 - 1
"""As in Caffe, which counts in 32 bits (Blob::Reshape)."""
_MAX_NAME = 1 << 16
_MAX_PARTS = 200_000
"""Layers, blobs and pieces of blobs in one file: far more than any network has."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fields:
    """The field numbers of one version of a layer."""

    name: int
    type: int
    blobs: int


V0, V1, V2 = Fields(1, 2, 50), Fields(4, 5, 6), Fields(1, 2, 7)
_V0_IN_V1 = 1


class Run(NamedTuple):
    """A stretch of the file that holds values of a blob."""

    start: int
    end: int
    stride: int
    """Bytes from one value to the next: larger than a value where each has a tag of its own."""


@dataclasses.dataclass(slots=True)
class Blob:
    """The place and form of one array."""

    wire: Wire
    name: str
    """The layer and which of its blobs: for errors."""
    start: int
    """Of the BlobProto's content."""
    end: int
    shape: tuple[int, ...] = ()
    is_legacy: bool = False
    """The shape is written as num, channels, height and width."""
    number: int = BLOB_DATA
    """Field that holds the values."""
    dtype: np.dtype[Any] = dataclasses.field(default_factory=lambda: np.dtype("<f4"))
    runs: tuple[Run, ...] = ()

    @property
    def count(self) -> int:
        """How many values the shape wants."""
        return math.prod(self.shape)

    @property
    def is_packed(self) -> bool:
        """Whether the values lie side by side, as all of today's writers do it."""
        return all(run.stride == self.dtype.itemsize for run in self.runs)

    def check(self) -> None:
        """Raise ModelUnreadableError unless it holds as many values as its shape says."""
        size = self.dtype.itemsize
        held = sum((run.end - run.start) // run.stride for run in self.runs)
        broken = any((run.end - run.start) % run.stride for run in self.runs)
        largest = math.prod(max(1, abs(size)) for size in self.shape)
        if broken or held != self.count or min(self.shape, default=0) < 0 or largest > _MAX_COUNT:
            shape = " x ".join(map(str, self.shape)) or "()"
            raise self.wire.error(
                self.start,
                f"{self.name} is {shape}, but holds {held} values of {size} bytes"
                f"{' and a part of one' if broken else ''}",
            )

    def read(self) -> NDArray[Any]:
        """The values in the file's own dtype and shape; without a copy, where that can be."""
        self.check()
        parts = [self._read_run(run) for run in self.runs]
        flat = parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, self.dtype), *parts])
        return flat.reshape(self.shape)

    def _read_run(self, run: Run) -> NDArray[Any]:
        content, size = self.wire.content, self.dtype.itemsize
        if run.stride == size:
            return np.frombuffer(content[run.start : run.end], dtype=self.dtype)
        rows = np.frombuffer(content[run.start : run.end], dtype=np.uint8)
        values = rows.reshape(-1, run.stride)[:, run.stride - size :]
        return np.ascontiguousarray(values).reshape(-1).view(self.dtype)


@dataclasses.dataclass(slots=True)
class StoredLayer:
    """One layer of the file, with where it is and what it holds."""

    name: str
    type: str | int
    """A name, or a number of V1's enum."""
    path: tuple[WireField, ...]
    """The field of the layer and, for V0, the field inside of it that holds the blobs."""
    fields: Fields
    blobs: list[Blob] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Caffemodel:
    """A file of weights."""

    name: str
    """Its path, for errors."""
    wire: Wire
    layers: list[StoredLayer] = dataclasses.field(default_factory=list)
    """Those that Caffe reads, in the order of the file."""

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.wire.content)

    def by_name(self) -> dict[str, int]:
        """Index of the layer of each name; the last of several is the one that Caffe ends with."""
        return {layer.name: index for index, layer in enumerate(self.layers)}


def open_caffemodel(path: str | os.PathLike[str]) -> Caffemodel:
    """Map the file and find its layers. Raises ModelUnreadableError."""
    file, name = Path(path), str(path)
    try:
        if not file.is_file():
            raise ModelUnreadableError(
                name, "no such file" if not file.exists() else "no file", _name_one(file.parent)
            )
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise ModelUnreadableError(
            name, error.strerror or str(error), "name a .caffemodel"
        ) from error
    return read_caffemodel(content, name)


def _name_one(folder: Path) -> str:
    """What to do where there are no weights of the network's own name."""
    found = sorted(path.name for path in folder.glob("*.caffemodel") if path.is_file())
    if not found:
        return "name the .caffemodel that holds its weights"
    more = f" or {len(found) - 1} more" if len(found) > 1 else ""
    return f"name the weights behind the network: {found[0]}{more}"


def read_caffemodel(content: bytes | mmap.mmap, name: str) -> Caffemodel:
    """Find the layers in the content of a file. Raises ModelUnreadableError."""
    view = memoryview(content)
    if bytes(view[:8]) == b"\x89HDF\r\n\x1a\n":
        raise ModelUnreadableError(
            name, "weights in HDF5", "load the network in Caffe and save it as .caffemodel"
        )
    return _Reader(Wire(view, name)).read()


class _Reader:
    """Walks the file once."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.parts = 0

    def read(self) -> Caffemodel:
        model = Caffemodel(self.wire.name, self.wire)
        old: list[StoredLayer] = []
        offset, end = 0, len(self.wire.content)
        while offset < end:
            field = self.wire.field(offset, end)
            offset = field.end
            if field.wire != LENGTH:
                continue
            if field.number == NET_LAYER:
                model.layers.append(self._layer(field, V2))
            elif field.number == NET_LAYERS_V1:
                old.append(self._layer(field, V1))
        if old:  # where there are both, Caffe's upgrade takes the old ones alone
            model.layers = old
        return model

    def _count(self, offset: int) -> None:
        self.parts += 1
        if self.parts > _MAX_PARTS:
            raise self.wire.error(offset, f"more than {_MAX_PARTS} layers, blobs and parts of them")

    def _layer(self, whole: WireField, fields: Fields) -> StoredLayer:
        self._count(whole.start)
        layer = StoredLayer("", "", (whole,), fields)
        inner: WireField | None = None
        blobs = []
        offset = whole.value
        while offset < whole.end:
            field = self.wire.field(offset, whole.end)
            offset = field.end
            if fields is V1 and field.number == _V0_IN_V1 and field.wire == LENGTH:
                inner = field
            elif field.number == fields.name and field.wire == LENGTH:
                layer.name = self._string(field)
            elif field.number == fields.type and field.wire == LENGTH:
                layer.type = self._string(field)
            elif field.number == fields.type and field.wire == VARINT:
                layer.type = self.wire.varint(field.value, field.end)[0]
            elif field.number == fields.blobs and field.wire == LENGTH:
                blobs.append(field)
        if inner is not None:
            old = self._layer(inner, V0)
            return StoredLayer(old.name, old.type, (whole, inner), V0, old.blobs)
        layer.blobs = [self._blob(field, f"{layer.name!r}[{n}]") for n, field in enumerate(blobs)]
        return layer

    def _string(self, field: WireField) -> str:
        if field.end - field.value > _MAX_NAME:
            raise self.wire.error(field.start, f"a name of more than {_MAX_NAME} bytes")
        return bytes(self.wire.content[field.value : field.end]).decode("utf-8", "surrogateescape")

    def _blob(self, whole: WireField, name: str) -> Blob:
        self._count(whole.start)
        blob = Blob(self.wire, name, whole.value, whole.end)
        legacy = [0, 0, 0, 0]
        shape: list[int] = []
        runs: dict[int, list[Run]] = {BLOB_DATA: [], BLOB_DOUBLE_DATA: [], BLOB_RAW_DATA: []}
        raw_type = 0
        offset = whole.value
        while offset < whole.end:
            field = self.wire.field(offset, whole.end)
            offset = field.end
            if field.number <= 4 and field.wire == VARINT:
                legacy[field.number - 1] = _signed(self.wire.varint(field.value, field.end)[0])
                blob.is_legacy = True
            elif field.number == BLOB_SHAPE and field.wire == LENGTH:
                shape += self._dims(field)
            elif field.number == BLOB_RAW_TYPE and field.wire == VARINT:
                raw_type = self.wire.varint(field.value, field.end)[0]
            elif field.number in runs:
                run = self._run(field, whole.end)
                if run is not None:
                    self._count(run.start)
                    runs[field.number].append(run)
                    offset = max(offset, run.end)
        # The old fields win over the shape, double_data over data, as in Blob::FromProto.
        blob.shape = tuple(legacy if blob.is_legacy else shape)
        if runs[BLOB_RAW_DATA]:
            if raw_type not in _RAW_TYPES:
                raise self.wire.error(whole.start, f"{name} has raw data of type {raw_type}")
            blob.number, blob.dtype = BLOB_RAW_DATA, np.dtype(_RAW_TYPES[raw_type])
            last = runs[BLOB_RAW_DATA][-1]  # not repeated: the last one counts
            runs[BLOB_RAW_DATA] = [Run(last.start, last.end, blob.dtype.itemsize)]
        elif any(run.end > run.start for run in runs[BLOB_DOUBLE_DATA]):
            blob.number, blob.dtype = BLOB_DOUBLE_DATA, np.dtype("<f8")
        blob.runs = tuple(runs[blob.number])
        return blob

    def _dims(self, field: WireField) -> list[int]:
        """The numbers of a BlobShape: dim = 1, packed or not."""
        dims: list[int] = []
        offset = field.value
        while offset < field.end:
            inner = self.wire.field(offset, field.end)
            offset = inner.end
            if inner.number != 1 or inner.wire not in (VARINT, LENGTH):
                continue
            place = inner.value
            while place < inner.end:
                value, place = self.wire.varint(place, inner.end)
                dims.append(_signed(value))
                if len(dims) > MAX_AXES:
                    raise self.wire.error(field.start, f"a shape of more than {MAX_AXES} axes")
        return dims

    def _run(self, field: WireField, end: int) -> Run | None:
        """The values that begin with this field: a packed field, or all that follow alike."""
        size = {BLOB_DATA: 4, BLOB_DOUBLE_DATA: 8, BLOB_RAW_DATA: 1}[field.number]
        if field.wire == LENGTH:
            return Run(field.value, field.end, size)
        if (field.number, field.wire) not in (
            (BLOB_DATA, FOUR_BYTES),
            (BLOB_DOUBLE_DATA, EIGHT_BYTES),
        ):
            return None
        tag = field.value - field.start
        if tag > 1:  # a tag written longer than it has to be: take this value alone
            return Run(field.value, field.end, size)
        stride = size + tag
        return Run(field.start, self._end_of_run(field.start, end, stride), stride)

    def _end_of_run(self, start: int, end: int, stride: int) -> int:
        """Where the values that begin with the same tag end; looks ahead no further than needed."""
        content = self.wire.content
        offset, ahead = start, 64
        while True:
            count = min(ahead, (end - offset) // stride)
            block = content[offset : offset + count * stride]
            tags = np.frombuffer(block, dtype=np.uint8)[::stride]
            others = np.flatnonzero(tags != content[start])
            alike = int(others[0]) if len(others) else count
            offset += alike * stride
            if alike < ahead:
                return offset
            ahead *= 2


def _signed(value: int) -> int:
    """A varint as the int64 that it stands for."""
    return value - (1 << 64) if value >= 1 << 63 else value
