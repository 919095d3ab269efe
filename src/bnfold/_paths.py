"""What lies at a path: nothing at a name that none can have, too long or with a null character."""

from __future__ import annotations

import os
from pathlib import Path


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder of that name is there; nothing is called by the empty name."""
    try:
        return bool(os.fspath(path)) and Path(path).is_dir()
    except (OSError, ValueError):
        return False


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a regular file is there: no folder, no pipe, no device."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether anything is there."""
    try:
        return bool(os.fspath(path)) and Path(path).exists()
    except (OSError, ValueError):
        return False
