"""A whole fold of Caffe files, process start to exit, against copying the files.

    python -m benchmarks.caffe_files          writes docs/benchmarks/caffe_files.md and .json

What is timed are processes, in turn. `copy` starts Python, imports NumPy and copies both files;
`ready` also imports what a fold imports; `fold` starts Python and folds the one pair of files into
the other by `bnfold.fold`; `command` does the same by the command `bnfold fold --no-check`, which
prints its table. Memory is the high-water mark of resident memory (VmHWM) that each process reads
from the kernel at its end: what the kernel tells the parent (ru_maxrss) includes the moment between
fork and exec. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.markdown import table
from benchmarks.measure import machine
from benchmarks.timing import Times, interleave, median, ratio
from tests.conformance.caffe_models import MODELS, CaffeModel

_FOLDER = Path("docs/benchmarks")
_NETWORKS = ("open_nsfw", "mobilenetv2-mod11g-imagenet", "yoloface-50k")
_START, _COPY, _READY, _FOLD, _COMMAND = "start", "copy", "ready", "fold", "command"
_TELL = """
import sys
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0], file=sys.stderr)
"""
"""Ends each process: its high-water mark in kB."""

_HEAD = """# Time and memory of folding Caffe files

`bnfold.fold` of a prototxt and a caffemodel, as a whole process: Python starts, reads both files,
folds, writes both, exits. Beside it a process that starts Python, imports NumPy and copies the two
files; one that also imports what a fold imports ("ready and copy"), so that the second ratio leaves
out bnfold's own start-up; and one that only imports NumPy. The fold flushes both files to the disk
(fsync), the copies do not. Medians of {rounds} rounds in turn; the ratio with its 95% interval
(bootstrap over rounds). Memory is the peak resident memory of the process, all of Python included.
"Command" is `bnfold fold --no-check`, which also prints the table. "CPU" is the median of the
processor time, user and system: it says the same with less noise where others use the machine.

{table}

Machine: {machine}; load average at the start {load:.1f}. Made by
`python -m benchmarks.caffe_files`.
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Folding Caffe files against copying them.")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--output", type=Path, default=_FOLDER, help="folder for the two files")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    rows, document = [], []
    for model in MODELS:
        if model.name not in _NETWORKS:
            continue
        if model.missing:
            print(f"{model.name}: {model.missing}", file=sys.stderr)
            continue
        times, used = measure(model, options.rounds)
        rows.append(_row(model, times, used))
        details = {name: asdict(one) for name, one in used.items()}
        document.append({"network": model.name, "seconds": times, "used": details})
    head = [
        *("network", "caffemodel", "NumPy alone, s", "copy, s", "ready and copy, s", "fold, s"),
        *("fold / copy", "fold / ready and copy", "copy, CPU s", "fold, CPU s"),
        *("command, s", "command / copy", "memory copy", "memory fold"),
    ]
    page = _HEAD.format(
        rounds=options.rounds, table=table(head, rows), machine=machine(), load=load
    )
    print(page)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "caffe_files.md").write_text(page, encoding="utf-8")
    data = {"machine": asdict(machine()), "networks": document}
    (options.output / "caffe_files.json").write_text(json.dumps(data) + "\n", encoding="utf-8")
    return 0


@dataclass(slots=True)
class Used:
    """What the runs of one command took."""

    memory: list[int] = field(default_factory=list)
    """Peaks, in bytes."""
    processor: list[float] = field(default_factory=list)
    """Seconds, user and system."""


def measure(model: CaffeModel, rounds: int) -> tuple[Times, dict[str, Used]]:
    """Seconds per round, and what each process used."""
    with tempfile.TemporaryDirectory() as folder:
        commands = _commands(model, Path(folder))
        used = {name: Used() for name in commands}
        times = interleave({n: partial(_run, c, used[n]) for n, c in commands.items()}, rounds)
    return times, used


def _commands(model: CaffeModel, folder: Path) -> dict[str, list[str]]:
    files = [str(model.network), str(model.weights)]
    copies = [str(folder / f"copy{Path(file).suffix}") for file in files]
    target = str(folder / "folded.prototxt")
    copy = f"import numpy, shutil; [shutil.copy(*pair) for pair in zip({files!r}, {copies!r})]"
    fold = f"import bnfold; bnfold.fold({tuple(files)!r}, output={target!r}, force=True)"
    command = ["fold", *files, "-o", target, "--force", "--no-check"]
    run = f"from bnfold.cli import main; main({command!r})"
    ready = f"import bnfold.api, bnfold.frontends.caffe.lift\n{copy}"
    sources = {_START: "import numpy", _COPY: copy, _READY: ready, _FOLD: fold, _COMMAND: run}
    return {name: [sys.executable, "-c", f"{code}\n{_TELL}"] for name, code in sources.items()}


def _run(command: list[str], used: Used) -> None:
    # An installed package has its bytecode: let the first rounds write it for a checkout, too.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{command} failed: {done.stderr}")
    used.memory.append(1024 * int(done.stderr.split()[-1]))
    used.processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _row(model: CaffeModel, times: Times, used: dict[str, Used]) -> list[str]:
    processor = {name: median(one.processor) for name, one in used.items()}
    memory = {name: median(one.memory) for name, one in used.items()}
    return [
        model.name,
        f"{model.weights.stat().st_size / 1e6:.1f} MB",
        *(f"{median(times[name]):.3f}" for name in (_START, _COPY, _READY, _FOLD)),
        *(str(ratio(times, _FOLD, name)) for name in (_COPY, _READY)),
        *(f"{processor[name]:.3f}" for name in (_COPY, _FOLD)),
        f"{median(times[_COMMAND]):.3f}",
        str(ratio(times, _COMMAND, _COPY)),
        *(f"{memory[name] / 1e6:.0f} MB" for name in (_COPY, _FOLD)),
    ]


if __name__ == "__main__":
    sys.exit(main())
