"""Work that several threads take from one list.

Reading, multiplying and writing of arrays do not hold the interpreter's lock, so a few threads do
in parallel what one would do in turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from threading import Lock, Thread
from typing import Generic, TypeVar

Task = TypeVar("Task")


_most = 0
"""Threads that this process may have at work; 0 for as many as there are processors."""


def limit(threads: int) -> None:
    """Leave the other processors to others, as where several processes fold at once.

    Before PyTorch is imported, which asks the environment.
    """
    global _most
    _most = threads
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))


def limited() -> int:
    """What `limit` said; 0 if nothing."""
    return _most


def processors() -> int:
    """How many this process may use."""
    if _most:
        return _most
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share(tasks: Iterable[Task], work: Callable[[Iterator[Task]], None], *, threads: int) -> None:
    """Let every thread, this one among them, work through what is left of the tasks.

    The first error of any of them ends the tasks for all, and is raised here.
    """
    shared = _Tasks(tasks)

    def safely() -> None:
        try:
            work(shared)
        except BaseException as error:  # raised below, in the thread that asked
            shared.errors.append(error)

    others = [Thread(target=safely) for _ in range(threads - 1)]
    started = []
    try:
        for thread in others:
            thread.start()
            started.append(thread)
    except RuntimeError:  # no more threads are to be had: those that run do it all
        pass
    safely()
    for thread in started:
        thread.join()
    if shared.errors:
        raise shared.errors[0]


class _Tasks(Generic[Task]):
    """Each task goes to whoever asks next."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.tasks = iter(tasks)
        self.lock = Lock()
        self.errors: list[BaseException] = []

    def __iter__(self) -> Iterator[Task]:
        return self

    def __next__(self) -> Task:
        with self.lock:
            if self.errors:
                raise StopIteration
            return next(self.tasks)
