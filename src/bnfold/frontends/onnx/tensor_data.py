"""The content of large tensors: where it lies, and how to get it, when it is asked for.

A model larger than memory is folded in the memory of its largest tensors: nothing here holds more
than one tensor, and what does not change goes from file to file without being looked at.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bnfold._threads import processors, share
from bnfold.core.weights import multiply

_BLOCK = 1 << 23
"""Bytes copied at a time."""


@dataclass(frozen=True, slots=True)
class FileData:
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
    start = file.tell()
    try:
        while done < count:
            copied = os.copy_file_range(source.fileno(), file.fileno(), count - done, offset + done)
            if not copied:
                break
            done += copied
    except OSError:  # another file system, or no such call; real trouble shows when writing
        pass
    file.seek(start + done)
    return done


@dataclass(frozen=True, slots=True)
class MemoryData:
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
class ComputedData:
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
class ScaledData:
    """A tensor times factors, worked through in blocks of rows: in, multiplied, out."""

    source: FileData | MemoryData
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
        made = np.empty(self.nbytes, np.uint8)

        def put(place: int, content: memoryview) -> None:
            made[place : place + len(content)] = content

        self._work(iter(self._starts()), put)
        return made

    def write_to(self, file: IO[bytes]) -> None:
        """Write them, where the file is at; large ones by several threads."""
        file.flush()  # the threads write through files of their own
        first = file.tell()
        threads = min(processors(), _MOST_THREADS, max(1, len(self._starts()) // _WORTH_A_THREAD))
        share(self._starts(), partial(self._write_some, file.name, first), threads=threads)
        file.seek(first + self.nbytes)

    def _write_some(self, path: str | Path, first: int, starts: Iterator[int]) -> None:
        with Path(path).open("r+b", buffering=0) as file:

            def put(place: int, content: memoryview) -> None:
                file.seek(first + place)
                while content:
                    content = content[file.write(content) :]

            self._work(starts, put)

    @property
    def _step(self) -> int:
        """Rows of a block."""
        return max(1, _ROWS // max(1, self.nbytes // self.shape[0]))

    def _starts(self) -> range:
        """The first row of each block."""
        return range(0, self.shape[0], self._step)

    def _work(self, starts: Iterator[int], put: Callable[[int, memoryview], None]) -> None:
        """Multiply blocks and put their bytes in their place, until there are no more."""
        rows, *rest = self.shape
        buffer = np.empty((min(self._step, rows), *rest), self.dtype)
        with self.source.open() as source:
            for start in starts:
                block = buffer[: min(self._step, rows - start)]
                self._multiply(source, start, block)
                put(start * (self.nbytes // rows), block.reshape(-1).view(np.uint8).data)

    def _multiply(self, source: Any, start: int, block: NDArray[Any]) -> None:
        """Rows from `start` on, times their factors. Raises Overflow."""
        place = start * (self.nbytes // self.shape[0])
        factor = self.factor
        if len(factor) > 1:
            factor = factor[start : start + len(block)]
        _fill(source, place, block)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            multiply(block, factor, block)
            if is_finite(block):
                return
            _fill(source, place, block)
            if is_finite(block):
                raise self.overflow
            multiply(block, factor, block)


_ROWS = 1 << 20
"""Bytes of a block of rows: it stays in the cache between being read, multiplied and written."""
_WORTH_A_THREAD = 3
"""Blocks that are to be had for each thread."""
_MOST_THREADS = 4
"""One file is written to in turn: more threads have nothing to do."""


def _fill(source: Any, place: int, block: NDArray[Any]) -> None:
    """Read a block's bytes from a place on."""
    view = block.reshape(-1).view(np.uint8).data
    source.seek(place)
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


TensorData = FileData | MemoryData | ComputedData | ScaledData
