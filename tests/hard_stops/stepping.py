"""Stop a run at a chosen step of its work on files: before it opens, moves or removes the n-th one.

Python announces these steps to audit hooks, so a process can send itself a signal right there, and
no step is missed by chance. What lies between them (the writing itself) is hit by the clock.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.hard_stops import forks

_STEPS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")


def stop_at(folder: str, step: int, number: int, tell: bool = False) -> None:
    """Send this process a signal before its n-th step in a folder, or 0; `tell` each on stderr."""
    left = step

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if not _is_step(event, arguments, folder):
            return
        left -= 1
        if left == -1 and number:
            os.kill(os.getpid(), number)
        if tell:
            os.write(2, b"step\n")

    sys.addaudithook(hook)


def _is_step(event: str, arguments: tuple[object, ...], folder: str) -> bool:
    """Whether something in the folder is about to change."""
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        return bool(writes) and str(path).startswith(folder)
    return event in _STEPS and str(arguments[0]).startswith(folder)


def run(
    folder: Path, arguments: list[str], step: int, number: int = signal.SIGKILL
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, stopped before the step."""
    return forks.run(stop_at, (str(folder), step, int(number)), arguments)


def count_steps(folder: Path, arguments: list[str]) -> int:
    """How many steps an undisturbed run has."""
    done = forks.run(stop_at, (str(folder), 0, 0, True), arguments)
    assert done.returncode == 0, done.stderr
    return done.stderr.count("step\n")


def environment() -> dict[str, str]:
    """The child finds the tests and the package that this process has."""
    places = [str(Path.cwd()), *(path for path in sys.path if path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
