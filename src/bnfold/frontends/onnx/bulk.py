"""The content of large tensors: where it lies, and how to get it, when it is asked for.

A model larger than memory is folded in the memory of its largest tensors: nothing here holds more
than one tensor, and what does not change goes from file to file without being looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable
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


Bulk = FileBulk | MemoryBulk | ComputedBulk
