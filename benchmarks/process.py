"""A command as a process of its own: how long it takes, and how much memory it has at most.

    resident     VmHWM: pages in memory at once, those of mapped files among them. The kernel takes
                 mapped pages back when it needs memory, so they are no demand.
    anonymous    RssAnon, sampled: memory that the process asked for and that has no file behind it
                 (swap apart). This is what a model larger than memory must keep small.

Linux only: read from /proc while the process runs.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_EVERY = 0.002
"""Seconds between two looks."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of a command cost."""

    seconds: float
    resident: int
    """Bytes."""
    anonymous: int
    """Bytes."""


def run(command: Sequence[str]) -> None:
    """Run it, silently. Raises CalledProcessError where it fails.

    Modules are compiled once, as they are where a tool is installed, whatever this process does.
    """
    unwanted = "PYTHONDONTWRITEBYTECODE"
    environment = {key: value for key, value in os.environ.items() if key != unwanted}
    subprocess.run(command, check=True, capture_output=True, env=environment)


def measure(command: Sequence[str]) -> Cost:
    """Run it and look at it all the while. Raises CalledProcessError where it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    status = Path(f"/proc/{process.pid}/status")
    resident = anonymous = 0
    while process.poll() is None:
        values = _read(status)
        resident = max(resident, values.get("VmHWM", 0))
        anonymous = max(anonymous, values.get("RssAnon", 0))
        time.sleep(_EVERY)
    seconds = time.perf_counter() - start
    assert process.stderr is not None
    message = process.stderr.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=message)
    return Cost(seconds, resident, anonymous)


def _read(status: Path) -> dict[str, int]:
    """The sizes in a status file, in bytes; none of a process that has ended."""
    try:
        lines = status.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    pairs = (line.split(":") for line in lines if line.endswith(" kB"))
    return {key: 1024 * int(value.split()[0]) for key, value in pairs}
