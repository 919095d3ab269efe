"""Random programs: Python as people write it around random networks, folded and compared.

    make fuzz-programs N=5000
    python -m benchmarks.programs --programs 5000 --seed 0 --jobs 2 --json FILE
    python -m benchmarks.programs --only state --only hooks.removes_itself
    python -m benchmarks.programs --rerun 17 --shrink
    python -m benchmarks.programs --no-verify

Each program comes from one number. Everything is counted, nothing stops the run; at the end some of
the failing ones are shrunk, and the exit code is 1. What is checked is in
tests/property/programs/check.py. --no-verify leaves out the fold's own check, so that what it reads
is tried alone: there a question that Python lets nobody hear (`type(self.bn)`) may go wrong.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.markdown import put, table

BATCH = 25
"""Programs that a process checks before it says so."""
PATIENCE = 120
"""Seconds after which a program hangs."""
TITLES = ("folded", "partly", "nothing", "refused", "stopped", "wrong", "crash", "changed")
FAILURES = ("wrong", "crash", "changed")


@dataclass(frozen=True)
class Seen:
    """What became of one program."""

    seed: int
    kind: str
    habits: tuple[str, ...]
    program: str
    message: str
    removed: int
    kept: int
    compared: int


def look(seed: int, only: Sequence[str], *, verify: bool, smaller: bool = False) -> Seen:
    """Check the program of a seed; with `smaller`, shrink it if it fails."""
    from tests.property.programs.check import check_seed
    from tests.property.programs.shrink import shrink

    signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(PATIENCE * (20 if smaller else 1))
    try:
        outcome = check_seed(seed, only, verify=verify)
        if smaller and outcome.failed:
            outcome = shrink(outcome)
    except TimeoutError:
        return Seen(seed, "crash", (), "", f"no end within {PATIENCE} s", 0, 0, 0)
    finally:
        signal.alarm(0)
    counts = outcome.removed, outcome.kept, outcome.compared
    names = tuple(outcome.program.habits)
    return Seen(seed, outcome.kind, names, str(outcome.program), outcome.message, *counts)


def _hangs(*_: Any) -> None:
    raise TimeoutError


def batch(seeds: Sequence[int], only: Sequence[str], verify: bool) -> list[Seen]:
    """Check the programs of these seeds."""
    import torch

    torch.set_num_threads(1)
    look(seeds[0], only, verify=verify)  # loads whatever is loaded late
    gc.collect()
    gc.freeze()  # a fold of a module collects garbage, which is slow among so many objects
    return [look(seed, only, verify=verify) for seed in seeds]


def run(seeds: Sequence[int], only: Sequence[str], jobs: int, *, verify: bool) -> Iterator[Seen]:
    """All of them, in processes of their own; a batch that ends its process is taken apart."""
    batches = [seeds[at : at + BATCH] for at in range(0, len(seeds), BATCH)]
    for at in range(0, len(batches), jobs):
        yield from _together(batches[at : at + jobs], only, verify)


def _together(
    batches: Sequence[Sequence[int]], only: Sequence[str], verify: bool
) -> Iterator[Seen]:
    with ProcessPoolExecutor(len(batches), mp_context=get_context("fork")) as pool:
        running = [(seeds, pool.submit(batch, seeds, only, verify)) for seeds in batches]
        for seeds, one in running:
            try:
                yield from one.result()
            except BrokenProcessPool:
                if len(batches) == len(seeds) == 1:
                    yield Seen(seeds[0], "crash", (), "", "the process ended", 0, 0, 0)
                    continue
                for seed in seeds:
                    yield from _together([[seed]], only, verify)


def _rows(seen: Sequence[Seen]) -> list[list[str]]:
    """One row for each kind of habit, and one for all: programs that have such a habit."""
    kinds = sorted({name.split(".")[0] for one in seen for name in one.habits})
    rows = []
    for kind in [*kinds, "all"]:
        among = [
            one
            for one in seen
            if kind == "all" or any(name.split(".")[0] == kind for name in one.habits)
        ]
        count = Counter(one.kind for one in among)
        rows.append([kind, f"{len(among):,}", *(f"{count[title]:,}" for title in TITLES)])
    return rows


def _failing(seen: Sequence[Seen]) -> list[str]:
    """Habits by the share of programs that fail where they take part."""
    drawn = Counter(name for one in seen for name in one.habits)
    failed = Counter(name for one in seen if one.kind in FAILURES for name in one.habits)
    worst = sorted(failed, key=lambda name: -failed[name] / drawn[name])
    return [f"{name}: {failed[name]} of {drawn[name]}" for name in worst]


def main(arguments: list[str]) -> int:
    """See the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--only", action="append", default=[], help="a kind or a name of habits")
    parser.add_argument("--no-verify", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--shrink", type=int, nargs="?", const=10, default=3, metavar="N")
    parser.add_argument("--rerun", type=int, action="append", metavar="SEED")
    parser.add_argument("--json", type=Path, default=Path("out/programs.json"))
    parser.add_argument("--docs", type=Path, help="the page whose table is to be replaced")
    options = parser.parse_args(arguments)
    verify = not options.no_verify
    begin, seen = time.perf_counter(), list[Seen]()
    seeds = options.rerun or range(options.seed, options.seed + options.programs)
    for number, one in enumerate(run(list(seeds), options.only, options.jobs, verify=verify), 1):
        seen.append(one)
        if one.kind in FAILURES or options.rerun:
            print(f"{one.kind} {one.seed}: {one.program}\n    {one.message:.300}", flush=True)
        if number % 100 == 0:
            count = ", ".join(f"{n} {kind}" for kind, n in Counter(s.kind for s in seen).items())
            print(f"{time.perf_counter() - begin:6.0f} s  {number}: {count}", flush=True)
    header = ["Programs with", "drawn", *TITLES]
    print(table(header, _rows(seen)), *_failing(seen)[:40], sep="\n")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps([vars(one) for one in seen], indent=1) + "\n")
    if options.docs is not None:
        put(options.docs, "programs", table(header, _rows(seen)))
    failed = [one.seed for one in seen if one.kind in FAILURES]
    for seed in failed[: options.shrink]:
        small = look(seed, options.only, verify=verify, smaller=True)
        print(f"\nthe smallest of {seed}: {small.kind}: {small.program}\n    {small.message:.300}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
