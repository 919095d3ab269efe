"""Collecting garbage during a fold, without looking through what was there before.

Whether a tensor outlives a run is known once what only reference cycles hold is collected (see
`outputs.escaped`). A collection looks through every object of the process: a third of a second
where PyTorch and a few libraries are loaded, and a module may be run a hundred times; and a fold
makes enough objects for Python to do so once by itself. The cycles that matter are made by the
runs, or are part of the copy that is run, so they are new.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_ours: list[None] = []
"""One entry while they are set aside."""


@contextmanager
def old_objects_set_aside() -> Iterator[None]:
    """While this is open, collections look through what has been made since alone.

    Does nothing inside of another one, or where somebody has frozen objects already: they could
    not be told from ours.
    """
    if _ours or gc.get_freeze_count():  # which counts them one by one
        yield
        return
    gc.collect(1)  # young garbage would be old afterwards, and stay for longer
    gc.freeze()
    _ours.append(None)
    try:
        yield
    finally:
        gc.collect()  # what is left of this would be old now, and stay until all is looked through
        _ours.clear()
        gc.unfreeze()
