"""Which BatchNorms go: every listed network, by bnfold and by torch.fx, each in its own process.

    python -m benchmarks.coverage                        what is not done yet
    python -m benchmarks.coverage --only resnet50 --fresh
    python -m benchmarks.coverage --tool bnfold --fresh  after a change of bnfold
    python -m benchmarks.coverage --table                writes docs/benchmarks/coverage.md

Results are JSON lines, one per network and tool, appended as they come: an interrupted run goes on
where it stopped. What is measured, and how, stands in `coverage_worker` and `measure`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks.coverage_record import (
    Outcome,
    Record,
    append_record,
    drop_records,
    read_records,
)
from benchmarks.coverage_table import render
from benchmarks.measure import machine
from benchmarks.networks import Network, listed_networks, select
from benchmarks.peers import FOLDERS

_RESULTS = Path("benchmarks/results/coverage.jsonl")
_TABLE = Path("docs/benchmarks/coverage.md")


def main(arguments: list[str] | None = None) -> int:
    """Measure or render; the exit code is 1 where bnfold gave a wrong result or broke."""
    options = _parse(arguments)
    if options.table:
        _TABLE.parent.mkdir(parents=True, exist_ok=True)
        _TABLE.write_text(render(_listed(read_records(options.output))))
        print(_TABLE)
        return 0
    networks = select(options.only)
    if options.fresh:
        drop_records(options.output, [network.name for network in networks], options.tool)
    done = {(record.name, record.tool) for record in read_records(options.output)}
    jobs = [
        (network, tool)
        for network in networks
        for tool in options.tool
        if (network.name, tool) not in done
    ]
    print(f"{len(jobs)} measurements to make on {machine()}", file=sys.stderr)
    return _run(jobs, options.jobs, options.timeout, options.output)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Which BatchNorms go, network by network.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these networks")
    parser.add_argument("--tool", nargs="+", choices=tuple(FOLDERS), default=list(FOLDERS))
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one measurement")
    parser.add_argument("--output", type=Path, default=_RESULTS, help="the file of JSON lines")
    parser.add_argument("--fresh", action="store_true", help="measure again what is done")
    parser.add_argument("--table", action="store_true", help=f"only write {_TABLE}")
    options = parser.parse_args(arguments)
    if "bnfold" in options.tool and not options.table and find_spec("bnfold") is None:
        # Otherwise every network would be written down as failed, and count as done.
        parser.error("bnfold is not installed: pip install -e .[torch], or --tool torch_fx")
    return options


def _run(jobs: list[tuple[Network, str]], workers: int, timeout: float, output: Path) -> int:
    broken = 0
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(measure, network, tool, timeout) for network, tool in jobs]
        for number, future in enumerate(as_completed(futures), 1):
            record = future.result()
            append_record(output, record)
            print(f"[{number}/{len(jobs)}] {_summary(record)}", flush=True)
            if record.tool == "bnfold" and record.outcome not in (Outcome.FOLDED, Outcome.REFUSED):
                broken += 1
    return 1 if broken else 0


def measure(network: Network, tool: str, timeout: float) -> Record:
    """One network and tool in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.coverage_worker"]
    command += [network.name, network.family, tool]
    ended = partial(Record, network.name, network.family, tool)
    # glibc keeps an arena per thread and gives little back: with two, memory stays low.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return ended(Outcome.TIMEOUT, f"more than {timeout:.0f} s")
    lines = answer.stdout.strip().splitlines()
    if answer.returncode == 0 and lines:
        return Record.from_line(lines[-1])
    return ended(Outcome.CRASHED, _how_it_ended(answer.returncode))


def _how_it_ended(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _summary(record: Record) -> str:
    head = f"{record.name} {record.tool}: {record.outcome}"
    if record.after is None:
        return f"{head} ({record.detail})"
    numbers = [
        f"{title} {value:{form}}"
        for title, value, form in (
            ("float64", record.error_float64, ".1e"),
            ("float32", record.error_float32, ".1e"),
            ("seconds", record.seconds, ".2f"),
        )
        if value is not None
    ]
    text = ", ".join([f"{head} {record.before} -> {record.after}", *numbers])
    return f"{text} ({record.detail})" if record.detail else text


def _listed(records: list[Record]) -> list[Record]:
    """In the order of the list; what was tried besides it stays out of the table."""
    order = {network.name: number for number, network in enumerate(listed_networks())}
    known = [record for record in records if record.name in order]
    return sorted(known, key=lambda record: order[record.name])


if __name__ == "__main__":
    sys.exit(main())
