"""The content of large tensors: where it lies, and how to get it, when it is asked for.

A model larger than memory is folded in the memory of its largest tensors: nothing here holds more
than one tensor, and what does not change goes from file to file without being looked at.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 23
"""Bytes copied at a time."""


@dataclass(frozen=True, slots=True)
class FileBulk:
    """A part of a file."""

    path: Path
    offset: int
    nbytes: int

    def read(self) -> NDArray[np.uint8]:
        """Its bytes."""
        return np.fromfile(self.path, dtype=np.uint8, count=self.nbytes, offset=self.offset)

    def open(self) -> Any:
        """A reader of its bytes, from the first on."""
        return _Part(self.path, self.offset)

    def write_to(self, file: IO[bytes]) -> None:
        """Copy it, within the kernel where that can be done."""
        with self.path.open("rb") as source:
            done = _copy_range(source, self.offset, self.nbytes, file)
            source.seek(self.offset + done)
            left = self.nbytes - done
            while left:
                block = source.read(min(_BLOCK, left))
                if not block:
                    raise OSError(f"{self.path} became shorter while it was read")
                file.write(block)
                left -= len(block)


def _copy_range(source: IO[bytes], offset: int, count: int, file: IO[bytes]) -> int:
    """How many bytes the kernel copied; 0 where it cannot."""
    if not hasattr(os, "copy_file_range") or count < _BLOCK:
        return 0
    done = 0
    file.flush()
    try:
        while done < count:
            copied = os.copy_file_range(source.fileno(), file.fileno(), count - done, offset + done)
            if not copied:
                break
            done += copied
    except OSError:  # another file system, or no such call; real trouble shows when writing
        pass
    file.seek(0, os.SEEK_END)
    return done


@dataclass(frozen=True, slots=True)
class MemoryBulk:
    """Bytes that are in memory already."""

    content: bytes | memoryview

    @property
    def nbytes(self) -> int:
        """How many there are."""
        return len(self.content)

    def read(self) -> NDArray[np.uint8]:
        """Its bytes."""
        return np.frombuffer(self.content, dtype=np.uint8)

    def open(self) -> Any:
        """A reader of its bytes, from the first on."""
        return io.BytesIO(self.content)

    def write_to(self, file: IO[bytes]) -> None:
        """Write them."""
        file.write(self.content)


@dataclass(frozen=True, slots=True)
class ComputedBulk:
    """A tensor that is computed when it is asked for, and not kept."""

    nbytes: int
    compute: Callable[[], NDArray[Any]]

    def read(self) -> NDArray[np.uint8]:
        """Its bytes."""
        array = np.ascontiguousarray(self.compute())
        assert array.nbytes == self.nbytes
        return array.reshape(-1).view(np.uint8)

    def write_to(self, file: IO[bytes]) -> None:
        """Compute and write them."""
        file.write(self.read().data)


@dataclass(frozen=True, slots=True, eq=False)
class ScaledBulk:
    """A tensor times factors, worked through in blocks of rows: in, multiplied, out."""

    source: FileBulk | MemoryBulk
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    factor: NDArray[np.float64]
    """Broadcastable to the shape, of the same rank."""
    overflow: Exception
    """Raised where a product does not fit the dtype."""

    @property
    def nbytes(self) -> int:
        """As many as before."""
        return self.source.nbytes

    def read(self) -> NDArray[np.uint8]:
        """Its bytes."""
        return np.concatenate([block.reshape(-1).view(np.uint8).copy() for block in self.blocks()])

    def write_to(self, file: IO[bytes]) -> None:
        """Write them, a block at a time."""
        for block in self.blocks():
            file.write(block.data)

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Runs of rows; each is gone when the next one comes."""
        rows, *rest = self.shape
        step = max(1, _ROWS // max(1, self.nbytes // rows))
        buffer = np.empty((min(step, rows), *rest), self.dtype)
        with self.source.open() as source:
            for start in range(0, rows, step):
                block = buffer[: min(step, rows - start)]
                _fill(source, block)
                factor = self.factor[start : start + step] if len(self.factor) > 1 else self.factor
                with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                    np.multiply(block, factor, out=block, casting="same_kind")
                if not is_finite(block):
                    with self.source.open() as again:
                        again.seek(start * (self.nbytes // rows))
                        _fill(again, block)
                    if is_finite(block):
                        raise self.overflow
                    np.multiply(block, factor, out=block, casting="same_kind")
                yield block


_ROWS = 1 << 20
"""Bytes of a block of rows: it stays in the cache between being read, multiplied and written."""


def _fill(source: Any, block: NDArray[Any]) -> None:
    view = block.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        count = source.readinto(view[done:])
        if not count:
            raise OSError("a file became shorter while it was read")
        done += count


def is_finite(array: NDArray[Any]) -> bool:
    """Whether no entry is inf or NaN; looking at the extremes takes a tenth of isfinite's time."""
    return not array.size or bool(np.isfinite(array.min()) and np.isfinite(array.max()))


class _Part:
    """A file from some place on."""

    def __init__(self, path: Path, offset: int) -> None:
        self.file = path.open("rb", buffering=0)
        self.offset = offset
        self.file.seek(offset)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def seek(self, place: int) -> None:
        self.file.seek(self.offset + place)

    def readinto(self, view: memoryview) -> int:
        return self.file.readinto(view) or 0


Bulk = FileBulk | MemoryBulk | ComputedBulk | ScaledBulk
