"""A model that comes on stdin: a file while the command works, since models are read in places."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bnfold.errors import BnfoldError, UsageError

STREAM = "-"
"""stdin as a SOURCE, stdout as an output."""
NAME = "stdin"
"""How such a model is called."""


@contextmanager
def spooled(words: Sequence[str]) -> Iterator[Path | None]:
    """Where the model of stdin lies meanwhile; None where no SOURCE is `-`. Raises UsageError."""
    if STREAM not in words:
        yield None
        return
    if words.count(STREAM) > 1:
        raise UsageError("stdin holds one model", "name a file for the other one")
    if sys.stdin is None:
        raise UsageError("stdin is closed, and holds no model", "name a file, or use a pipe")
    if sys.stdin.isatty():
        raise UsageError("stdin is a terminal, which holds no model", "name a file, or use a pipe")
    with tempfile.TemporaryDirectory() as folder, called(f"{folder}{os.sep}{NAME}", NAME):
        place = Path(folder) / NAME
        with place.open("xb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield place


@contextmanager
def called(path: str, name: str) -> Iterator[None]:
    """Errors speak of what the user knows, not of a file that is gone when they are read."""
    try:
        yield
    except BnfoldError as error:
        error.problem = error.problem.replace(path, name)
        raise
