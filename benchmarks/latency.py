"""How much faster a folded network runs: eager PyTorch, CPU, one image of 224 x 224, float32.

For each network four of them run in turn in one process: the original, what bnfold made of it,
what torch.fx made of it, and the floor: the network with its BatchNorms deleted, which computes
something else but shows what no fold can beat. Reported are ratios of medians, see `timing`.

    python -m benchmarks.latency            writes docs/benchmarks/latency.md and latency.json
    python -m benchmarks.latency --only resnet50 --rounds 20
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.markdown import table
from benchmarks.measure import machine
from benchmarks.peers import fold_with_bnfold, fold_with_torch_fx, without_batchnorms
from benchmarks.timing import Ratio, interleave, median, ratio
from benchmarks.zoo import create

NETWORKS = ("timm:resnet50", "timm:densenet121", "timm:resnetv2_50", "timm:mobilenetv2_100")
_COMPARED_WITH = {
    "original": "folded / original",
    "torch_fx": "folded / torch.fx",
    "floor": "folded / floor",
}
_FOLDER = Path("docs/benchmarks")

_HEAD = """# Latency: how much faster a folded network runs

Eager PyTorch on the CPU, one image of 224 x 224, float32. "Original" is the network in eval mode,
"torch.fx" what `torch.fx.experimental.optimization.fuse` makes of it, "floor" the network with its
BatchNorms deleted. All run in turn in one process; a ratio is that of the medians of {rounds}
rounds, in brackets its 95% interval (bootstrap over rounds). Below 1, the folded network is faster.

Machine: {machine}. Made by `python -m benchmarks.latency`.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One network with one number of threads."""

    network: str
    threads: int
    milliseconds: dict[str, float]
    """Median of each variant that there is."""
    ratios: dict[str, Ratio]
    """Folded over each of the others."""
    missing: dict[str, str] = field(default_factory=dict)
    """Variants that could not be made, and the error."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write the two files."""
    parser = argparse.ArgumentParser(description="How much faster a folded network runs.")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(NETWORKS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--output", type=Path, default=_FOLDER, help="folder for the two files")
    options = parser.parse_args(arguments)
    print(machine(), file=sys.stderr)
    rows: list[Row] = []
    for name in options.only:
        for row in measure(name, options.threads, options.rounds):
            print(_progress(row), file=sys.stderr, flush=True)
            rows.append(row)
    page = _HEAD.format(rounds=options.rounds, machine=machine()) + "\n" + render(rows)
    print(page)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "latency.md").write_text(page)
    document = {
        "machine": asdict(machine()),
        "rounds": options.rounds,
        "rows": [asdict(row) for row in rows],
    }
    (options.output / "latency.json").write_text(json.dumps(document, indent=2) + "\n")
    return 0


def measure(name: str, thread_counts: list[int], rounds: int) -> list[Row]:
    """One row for each number of threads."""
    model, example = create(name, dtype=torch.float32, image=224, batch=1)
    variants, missing = _variants(model, example)
    before = torch.get_num_threads()
    rows = []
    try:
        for threads in thread_counts:
            torch.set_num_threads(threads)
            actions = {
                key: partial(_forward, variant, example) for key, variant in variants.items()
            }
            times = interleave(actions, rounds)
            ratios = {
                key: ratio(times, "folded", key)
                for key in _COMPARED_WITH
                if key in times and "folded" in times
            }
            milliseconds = {key: 1e3 * median(seconds) for key, seconds in times.items()}
            rows.append(Row(name, threads, milliseconds, ratios, missing))
    finally:
        torch.set_num_threads(before)
    return rows


def _variants(model: nn.Module, example: Tensor) -> tuple[dict[str, nn.Module], dict[str, str]]:
    makers: dict[str, Callable[[], nn.Module]] = {
        "original": lambda: model,
        "folded": lambda: fold_with_bnfold(model, example),
        "torch_fx": lambda: fold_with_torch_fx(model, example),
        "floor": lambda: without_batchnorms(model),
    }
    variants: dict[str, nn.Module] = {}
    missing: dict[str, str] = {}
    for key, make in makers.items():
        try:
            variant = make()
            _forward(variant, example)
        except Exception as error:  # a tool that fails is a result of the benchmark
            missing[key] = f"{type(error).__name__}: {str(error).splitlines()[0]}"[:120]
            continue
        variants[key] = variant
    return variants, missing


def _forward(model: nn.Module, example: Tensor) -> None:
    with torch.inference_mode():
        model(example)


def render(rows: list[Row]) -> str:
    """The table, and below it what is missing and why."""
    header = ["network", "threads", "original, ms", "folded, ms", *_COMPARED_WITH.values()]
    body = [
        [
            row.network,
            str(row.threads),
            _milliseconds(row, "original"),
            _milliseconds(row, "folded"),
            *(_ratio_or_reason(row, key) for key in _COMPARED_WITH),
        ]
        for row in rows
    ]
    failures = {
        f"- {row.network}, {key}: {reason}" for row in rows for key, reason in row.missing.items()
    }
    return table(header, body) + "".join(f"\n{line}" for line in sorted(failures)) + "\n"


def _milliseconds(row: Row, key: str) -> str:
    return f"{row.milliseconds[key]:.1f}" if key in row.milliseconds else "failed"


def _ratio_or_reason(row: Row, key: str) -> str:
    if key in row.ratios:
        return str(row.ratios[key])
    failed = key if key in row.missing else "folded"
    return f"{failed} failed"


def _progress(row: Row) -> str:
    times = ", ".join(f"{key} {value:.1f} ms" for key, value in row.milliseconds.items())
    return f"{row.network}, {row.threads} threads: {times} {row.missing or ''}"


if __name__ == "__main__":
    sys.exit(main())
