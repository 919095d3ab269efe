"""SIGTERM and SIGHUP end the command as Ctrl-C does: by an exception that cleans up on its way.

An impatient second signal would stop the cleaning, so for a while it counts as the first one again.
Signals that somebody has ignored for us (nohup) stay ignored.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_GRACE = 3.0
"""Seconds in which further signals change nothing."""


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 and the number, as shells have it."""
        return 128 + self.number


@contextmanager
def signals_raise() -> Iterator[None]:
    """Raise Stopped for signals that would end the process; elsewhere than in its main thread, do
    nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -_GRACE

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _GRACE:
            last = now
            raise Stopped(number)

    known = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
    ends = (signal.SIG_DFL, signal.default_int_handler)
    before = {signum: signal.getsignal(signum) for signum in known}
    for signum, handler in before.items():
        if handler in ends:
            signal.signal(signum, stop)
    try:
        yield
    finally:
        for signum, handler in before.items():
            if handler in ends:
                signal.signal(signum, handler)
