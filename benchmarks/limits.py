"""How the solver's time and memory grow with the network: depth, width, three kinds of network.

    chain       convolution, BatchNorm, ReLU
    residual    x + convolution(ReLU(BatchNorm(x))): one scale, shifts that add up over the depth
    dense       each layer (1 x 1, as a DenseNet's) reads all that came before: the input itself
                grows with the square

Every size runs in a process of its own (peak memory is the process's, less that of an empty
network). Time is processor time of `make_plan` alone: no framework, no weights. The slope of a line
through the larger half of the points, on log-log paper, is the exponent.

    python -m benchmarks.limits      writes docs/benchmarks/limits.md, limits.json and limits.svg
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown import table
from bnfold.core import graph as g
from bnfold.core.plan import make_plan

_FOLDER = Path("docs/benchmarks")
_SIDE = 8
SERIES: dict[str, tuple[tuple[str, int, int], ...]] = {
    "depth, chain": tuple(("chain", n, 16) for n in (100, 300, 1000, 3000, 10_000, 30_000)),
    "depth, residual": tuple(("residual", n, 16) for n in (100, 300, 1000, 3000, 10_000, 30_000)),
    "depth, dense": tuple(("dense", n, 4) for n in (30, 100, 300, 1000)),
    "width, chain": tuple(("chain", 10, n) for n in (100, 1000, 10_000, 30_000, 100_000, 300_000)),
    "width, residual": tuple(
        ("residual", 10, n) for n in (100, 1000, 10_000, 30_000, 100_000, 300_000)
    ),
}


class Network:
    """A graph under construction; gammas of both signs."""

    def __init__(self) -> None:
        self.graph = g.Graph()
        self.rng = np.random.default_rng(0)

    def norm(self, x: int, channels: int, name: str) -> int:
        """A BatchNorm."""
        sign = self.rng.choice([-1, 1], channels)
        scale = (self.rng.uniform(0.5, 2, channels) * sign).reshape(1, channels, 1, 1)
        shift = self.rng.normal(size=(1, channels, 1, 1))
        return self._add(name, g.AffineStep(scale, shift, channels=channels), [x], channels)

    def conv(self, x: int, ins: int, outs: int, name: str, *, is_padded: bool = True) -> int:
        """A convolution."""
        return self._add(name, g.Linear(ins, outs, 1, 1, crosses_zeros=is_padded), [x], outs)

    def relu(self, x: int, channels: int, name: str) -> int:
        """With room for bounds per channel."""
        return self._add(name, g.Clip(0.0, np.inf), [x], channels)

    def sum(self, x: int, y: int, channels: int, name: str) -> int:
        """Of two."""
        return self._add(name, g.Sum((1.0, 1.0)), [x, y], channels)

    def concat(self, x: int, y: int, channels: int, name: str) -> int:
        """Of two, along the channels."""
        return self._add(name, g.View(lambda v: [np.concatenate(v, axis=1)]), [x, y], channels)

    def _add(self, name: str, role: g.Role, inputs: list[int], channels: int) -> int:
        return self.graph.add(name, role, inputs, [(1, channels, _SIDE, _SIDE)])[0]


def build(kind: str, depth: int, width: int) -> g.Graph:
    """A network of so many blocks and channels (dense: channels per block)."""
    net = Network()
    channels = width
    x = net.conv(net.graph.input((1, 3, _SIDE, _SIDE), "x"), 3, width, "stem")
    for block in range(depth):
        if kind == "chain":
            x = net.norm(net.conv(x, width, width, f"conv{block}"), width, f"bn{block}")
            x = net.relu(x, width, f"relu{block}")
            continue
        y = net.relu(net.norm(x, channels, f"bn{block}"), channels, f"relu{block}")
        y = net.conv(y, channels, width, f"conv{block}", is_padded=kind != "dense")
        if kind == "residual":
            x = net.sum(x, y, width, f"sum{block}")
            continue
        channels += width
        x = net.concat(x, y, channels, f"concat{block}")
    net.graph.output(net.conv(x, channels, 2, "head"), "y")
    return net.graph


def measure(kind: str, depth: int, width: int) -> dict[str, Any]:
    """One size, here and now."""
    make_plan(build(kind, 1, 2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    graph = build(kind, depth, width)
    start = time.process_time()
    plan = make_plan(graph)
    seconds = time.process_time() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "kind": kind,
        "depth": depth,
        "width": width,
        "nodes": len(graph.ops),
        "channels": sum(step.channels for _, _, step in graph.steps()),
        "removed": len(plan.removed),
        "kept": len(plan.kept),
        "seconds": seconds,
        "megabytes": (after - before) / 1024,
    }


def exponent(rows: list[dict[str, Any]], column: str) -> float:
    """The slope of log(column) over log(channels of all BatchNorms), larger half of the points."""
    half = rows[len(rows) // 2 :] if len(rows) > 4 else rows[-2:]
    x, y = (np.log([row[name] for row in half]) for name in ("channels", column))
    return float(np.polyfit(x, y, 1)[0])


def main(arguments: list[str] | None = None) -> int:
    """Measure all sizes, or one in this process."""
    parser = argparse.ArgumentParser(description="How time and memory grow.")
    parser.add_argument("--one", nargs=3, metavar=("KIND", "DEPTH", "WIDTH"))
    options = parser.parse_args(arguments)
    if options.one:
        kind, depth, width = options.one
        print(json.dumps(measure(kind, int(depth), int(width))))
        return 0
    results = {}
    for name, sizes in SERIES.items():
        results[name] = [_in_process(*size) for size in sizes]
        print(name, f"{exponent(results[name], 'seconds'):.2f}", flush=True)
    _write(results)
    return 0


def _in_process(kind: str, depth: int, width: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.limits", "--one", kind, str(depth), str(width)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(finished.stdout)
    return row


def _write(results: dict[str, list[dict[str, Any]]]) -> None:
    (_FOLDER / "limits.json").write_text(json.dumps(results, indent=1) + "\n")
    header = ["series", "blocks", "width", "nodes", "BatchNorm channels", "removed", "s", "MB"]
    rows = [
        [
            name,
            *(f"{row[key]:,}" for key in ("depth", "width", "nodes", "channels")),
            f"{row['removed']:,} of {row['removed'] + row['kept']:,}",
            f"{row['seconds']:.2f}",
            f"{row['megabytes']:.0f}",
        ]
        for name, series in results.items()
        for row in series
    ]
    slopes = [
        [name, *(f"{exponent(series, column):.2f}" for column in ("seconds", "megabytes"))]
        for name, series in results.items()
    ]
    text = "# Limits: how the solver grows\n\n![Seconds over channels](limits.svg)\n\n"
    text += "Exponents (1 is linear in the channels of all BatchNorms together):\n\n"
    text += table(["series", "time", "memory"], slopes) + "\n" + table(header, rows)
    text += "\nMade by `python -m benchmarks.limits`; processor time, one thread.\n"
    (_FOLDER / "limits.md").write_text(text)
    _plot(results)


def _plot(results: dict[str, list[dict[str, Any]]]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "limits"  # the same picture from the same numbers
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, series in results.items():
        label = f"{name}: exponent {exponent(series, 'seconds'):.2f}"
        x, y = ([row[key] for row in series] for key in ("channels", "seconds"))
        axes.loglog(x, y, marker="o", label=label)
    axes.set_xlabel("channels of all BatchNorms")
    axes.set_ylabel("seconds to solve")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(_FOLDER / "limits.svg", metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
