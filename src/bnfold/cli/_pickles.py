"""Tell a pickle by its first bytes or its name, without opening it as one."""

from __future__ import annotations

from pathlib import Path

_SUFFIXES = frozenset((".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib"))


def is_pickle(file: Path) -> bool:
    """Whether the file is a pickle: protocol 2 and later say so, older ones have only a name."""
    with file.open("rb") as stream:
        head = stream.read(2)
    is_marked = len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5
    return is_marked or file.suffix.lower() in _SUFFIXES
