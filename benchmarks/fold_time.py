"""How long folding takes and how much memory, against torch.fx: float32, one image of 224 x 224.

Time: both tools in turn in one process, capture and the copy of the model included, on a model
that has run before. Reported are medians and their ratio, see `timing`. Memory: each tool in a
fresh process, as a multiple of the weights, see `memory`.

    python -m benchmarks.fold_time          writes docs/benchmarks/fold_time.md and fold_time.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

import bnfold
from benchmarks.markdown import table
from benchmarks.measure import machine
from benchmarks.memory import FORWARD
from benchmarks.peers import FOLDERS
from benchmarks.timing import Ratio, interleave, median, ratio
from benchmarks.zoo import create

NETWORKS = ("timm:resnet50", "timm:densenet121", "torchvision:resnet50", "torchvision:densenet121")
_FOLDER = Path("docs/benchmarks")

_HEAD = """# Fold time and memory

A fold of bnfold (the copy of the model, capture by one real forward of a 224 x 224 image, solving)
against `torch.fx.experimental.optimization.fuse` (the copy, symbolic tracing), in float32.
Times are medians of {rounds} rounds in turn in one process, the ratio with its 95% interval
(bootstrap over rounds). Memory is how far the resident memory of a fresh process rises during the
fold, as a multiple of the weights: 1 is the copy itself. "Forward" is the same for one forward
pass alone; bnfold runs the network, without its convolutions, torch.fx does not. "Check" is what
proving the fold takes on top (`verify=True`, the default), in forward passes of the original.

Machine: {machine}. Made by `python -m benchmarks.fold_time`.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One network."""

    network: str
    seconds: dict[str, float]
    """Median of each tool."""
    ratio: Ratio
    """bnfold / torch.fx"""
    check: float
    """What the proof takes on top of the fold, in forward passes."""
    memory: dict[str, float | None]
    """Peak extra memory of each tool, and of a forward, / weights; None if not measurable."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write the two files."""
    parser = argparse.ArgumentParser(description="How long folding takes and how much memory.")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--output", type=Path, default=_FOLDER, help="folder for the two files")
    options = parser.parse_args(arguments)
    print(machine(), file=sys.stderr)
    rows = [measure(name, options.rounds) for name in options.only]
    page = _HEAD.format(rounds=options.rounds, machine=machine()) + "\n" + render(rows)
    print(page)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "fold_time.md").write_text(page)
    document = {
        "machine": asdict(machine()),
        "rounds": options.rounds,
        "rows": [asdict(row) for row in rows],
    }
    (options.output / "fold_time.json").write_text(json.dumps(document, indent=2) + "\n")
    return 0


def measure(name: str, rounds: int) -> Row:
    """Time in this process, memory in one more for each tool."""
    model, example = create(name, dtype=torch.float32, image=224, batch=1)
    actions = {tool: partial(fold, model, example) for tool, fold in FOLDERS.items()}
    alone = interleave(actions, rounds)
    checked = {
        "fold": actions["bnfold"],
        "proven": partial(bnfold.fold, model, example),
        FORWARD: partial(_forward, model, example),
    }
    check = {name: median(seconds) for name, seconds in interleave(checked, rounds).items()}
    return Row(
        network=name,
        seconds={tool: median(seconds) for tool, seconds in alone.items()},
        ratio=ratio(alone, "bnfold", "torch_fx"),
        check=(check["proven"] - check["fold"]) / check[FORWARD],
        memory={tool: _extra_memory(name, tool) for tool in (*FOLDERS, FORWARD)},
    )


@torch.no_grad()
def _forward(model: torch.nn.Module, example: torch.Tensor) -> None:
    model(example)


def _extra_memory(name: str, tool: str) -> float | None:
    command = [sys.executable, "-m", "benchmarks.memory", name, tool]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        print(answer.stderr, file=sys.stderr)
        return None
    return float(json.loads(answer.stdout.strip().splitlines()[-1])["ratio"])


def render(rows: list[Row]) -> str:
    """The table."""
    header = ["network", "bnfold, s", "torch.fx, s", "bnfold / torch.fx", "check, forward passes"]
    header += ["memory bnfold", "memory torch.fx", "memory forward"]
    body = [
        [
            row.network,
            f"{row.seconds['bnfold']:.3f}",
            f"{row.seconds['torch_fx']:.3f}",
            str(row.ratio),
            f"{row.check:.1f}",
            *("" if row.memory[t] is None else f"{row.memory[t]:.2f}x" for t in row.memory),
        ]
        for row in rows
    ]
    return table(header, body)


if __name__ == "__main__":
    sys.exit(main())
