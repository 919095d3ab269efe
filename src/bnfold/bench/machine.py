"""The machine in neutral words: what explains a figure, and nothing that names the machine."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from bnfold._version import __version__

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_CPU_INFO = Path("/proc/cpuinfo")

BUSY = 0.5
"""Load per core above which the figures are doubtful."""


def machine() -> dict[str, str]:
    """Processor, cores, governor and load, as far as the system says."""
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(cores()),
        "governor": _read(_GOVERNOR).strip(),
    }
    if hasattr(os, "getloadavg"):
        facts["load average"] = f"{os.getloadavg()[0]:.1f}"
    return {name: value for name, value in facts.items() if value}


def cores() -> int:
    """How many this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_note() -> str | None:
    """A warning where other work was running before the measurement began."""
    if not hasattr(os, "getloadavg"):
        return None
    load = os.getloadavg()[0]
    if load <= BUSY * cores():
        return None
    return f"the machine was busy at the start (load average {load:.1f} on {cores()} cores)"


def versions() -> dict[str, str]:
    """Of what is here in any case."""
    return {"bnfold": __version__, "python": platform.python_version()}


def _processor() -> str:
    for line in _read(_CPU_INFO).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor()


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
