"""`Thread.start`, told to a run that may be broken off: a thread that waits for it would wait on.

And Python waits for each thread before it ends, so the process of whoever folds would never end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def thread_starts_heard(note: Callable[[], object]) -> Iterator[None]:
    """While this is open, `note` is called before this thread starts another one."""
    original = threading.Thread.start
    own = threading.get_ident()  # the patch is global; other threads go on as before

    def start(thread: threading.Thread) -> None:
        if threading.get_ident() == own:
            note()
        original(thread)

    threading.Thread.start = start  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        threading.Thread.start = original  # type: ignore[method-assign]
