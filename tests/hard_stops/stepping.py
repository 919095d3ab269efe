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

_STEPS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")

_SCRIPT = """
import sys
from tests.hard_stops.stepping import stop_at
stop_at(*sys.argv[1:4])
sys.argv = ["bnfold", *sys.argv[4:]]
import runpy
runpy.run_module("bnfold", run_name="__main__")
"""


def stop_at(folder: str, step: int | str, number: int | str) -> None:
    """Send this process a signal before its n-th step in a folder; none for a negative n."""
    left = int(step) if int(step) >= 0 else sys.maxsize

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if not _is_step(event, arguments, folder):
            return
        left -= 1
        if left == -1 and int(number):
            os.kill(os.getpid(), int(number))
        if _COUNTED:
            os.write(2, b"step\n")

    sys.addaudithook(hook)


_COUNTED = bool(os.environ.get("BNFOLD_COUNT_STEPS"))


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
    call = [sys.executable, "-c", _SCRIPT, str(folder), str(step), str(int(number)), *arguments]
    return subprocess.run(call, capture_output=True, text=True, check=False, env=environment())


def count_steps(folder: Path, arguments: list[str]) -> int:
    """How many steps an undisturbed run has."""
    call = [sys.executable, "-c", _SCRIPT, str(folder), "0", "0", *arguments]
    done = subprocess.run(
        call,
        capture_output=True,
        text=True,
        check=True,
        env={**environment(), "BNFOLD_COUNT_STEPS": "1"},
    )
    return done.stderr.count("step\n")


def environment() -> dict[str, str]:
    """The child finds the tests and the package that this process has."""
    places = [str(Path.cwd()), *(path for path in sys.path if path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
