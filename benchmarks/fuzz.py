"""Random networks, built as PyTorch module, ONNX model and Caffe files, folded and compared.

    make fuzz N=10000
    python -m benchmarks.fuzz --networks 10000 --seed 0 --frontend all --jobs 2 --json FILE

Networks are drawn until each frontend has folded as many as asked for. Every second batch is drawn
within what Caffe can express, as Caffe has no layer for much of the rest. Everything is counted,
nothing stops the run; at the end the smallest network that fails is looked for in each batch that
had one, and the exit code is 1. What is checked is in tests/property/networks/check.py.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.markdown import put, table

BATCH = 100
"""Networks drawn from one seed."""


@dataclass
class Found:
    """What a batch, or a whole run, has seen."""

    networks: int = 0
    folded: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    merged: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    """wrong, disagreement, unsteady, crashed"""
    messages: list[str] = field(default_factory=list)
    failing: list[tuple[int, str]] = field(default_factory=list)
    """Seeds and kinds of the batches that failed."""
    seconds: float = 0.0

    def add(self, other: Found) -> None:
        """Take in another one."""
        self.networks += other.networks
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        self.messages += other.messages[: max(0, 20 - len(self.messages))]
        self.failing += other.failing
        self.seconds += other.seconds


_COUNTERS = ("folded", "removed", "merged", "kept", "compared", "kinds", "skipped", "failures")


def batch(seed: int, within: str, frontends: tuple[str, ...], *, shrink: bool = False) -> Found:
    """Draw and check BATCH networks. With `shrink`, the first failure is shrunk and raised."""
    import torch
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    from tests.property.networks.check import Tally, check
    from tests.property.networks.strategy import networks

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # a fold of a module collects garbage, which is slow among so many objects
    found, tally, start = Found(), Tally(), time.perf_counter()

    @seeded(seed)
    @settings(
        max_examples=BATCH,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(networks(within=within), st.sampled_from(("never", "always", "auto")))  # type: ignore[arg-type]
    def look(network: Any, clip: Any) -> None:
        try:
            check(network, clip, frontends=frontends, tally=tally)
        except Exception as error:
            if shrink:
                raise
            kind = _KINDS.get(type(error).__name__, "crashed")
            found.failures[kind] += 1
            found.messages.append(f"{kind}: {error!r:.300} in {network!r} with clip={clip!r}")

    look()
    gc.unfreeze()
    for name in ("networks", *_COUNTERS[:-1]):
        setattr(found, name, getattr(tally, name))
    found.failing = [(seed, within)] if found.failures else []
    found.seconds = time.perf_counter() - start
    return found


_KINDS = {
    "WrongResultError": "wrong",
    "DisagreementError": "disagreement",
    "UnsteadyError": "unsteady",
}


def _batches(seed: int, frontends: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    number = 0
    while True:
        only_caffe = frontends == ("caffe",)
        in_turn = number % 2 == 1 and "caffe" in frontends
        yield seed * 1_000_003 + number, "caffe" if only_caffe or in_turn else "all"
        number += 1


def run(count: int, seed: int, frontends: tuple[str, ...], jobs: int) -> Found:
    """Batches until each frontend has its networks."""
    total = Found()
    begin = time.perf_counter()
    plan = _batches(seed, frontends)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        while min(total.folded[name] for name in frontends) < count:
            running = [pool.submit(batch, *next(plan), frontends) for _ in range(jobs)]
            for one in running:
                total.add(found := one.result())
                for message in found.messages:
                    print(message, flush=True)
            failed = ", ".join(f"{n} {kind}" for kind, n in total.failures.items()) or "0 failures"
            done = ", ".join(f"{name} {total.folded[name]}" for name in frontends)
            print(f"{time.perf_counter() - begin:6.0f} s  {done}: {failed}", flush=True)
    return total


def _report(total: Found, seed: int, path: Path | None) -> None:
    print(f"networks {total.networks}, seed {seed}, {total.seconds:.0f} s of work")
    for kind in ("wrong", "crashed", "disagreement", "unsteady"):
        print(f"{kind:>14} {total.failures[kind]}")
    for name in ("folded", "removed", "merged", "compared", "kept", "skipped", "kinds"):
        counts = ", ".join(f"{key} {n}" for key, n in getattr(total, name).most_common())
        print(f"{name}: {counts}")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"seed": seed, **vars(total)}, indent=1) + "\n")


def _document(total: Found, seed: int, frontends: tuple[str, ...]) -> str:
    """The table in docs/reliability.md."""
    failures = ("wrong", "crashed", "disagreement", "unsteady")
    header = [
        "Networks folded in",
        *frontends,
        *(_TITLES[kind] for kind in failures),
        "seed",
        "time",
    ]
    counts = [f"{total.folded[name]:,}" for name in frontends]
    found = [str(total.failures[kind]) for kind in failures]
    row = [f"{total.networks:,} drawn", *counts, *found, str(seed), f"{total.seconds / 60:.0f} min"]
    return table(header, [row])


_TITLES = {
    "wrong": "wrong",
    "crashed": "crashed",
    "disagreement": "disagreements",
    "unsteady": "changed by a second fold",
}


def main(arguments: list[str]) -> int:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frontend", choices=("all", "torch", "onnx", "caffe"), default="all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, default=Path("out/fuzz.json"))
    parser.add_argument("--docs", type=Path, help="the page whose table is to be replaced")
    options = parser.parse_args(arguments)
    everything = ("torch", "onnx", "caffe")
    frontends = everything if options.frontend == "all" else (options.frontend,)
    total = run(options.networks, options.seed, frontends, options.jobs)
    _report(total, options.seed, options.json)
    if options.docs is not None:
        put(options.docs, "fuzz", _document(total, options.seed, frontends))
    for seed, within in total.failing[:3]:
        try:
            batch(seed, within, frontends, shrink=True)
        except Exception as error:
            print(f"\nthe smallest of batch {seed}: {error!r}")
            print("\n".join(getattr(error, "__notes__", [])))
    return 1 if total.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
