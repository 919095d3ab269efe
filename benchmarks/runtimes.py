"""How much faster a folded network runs, over the runtimes: eager, compiled, ONNX Runtime.

For each network and runtime the original, what bnfold made of it, what today's tools made of it,
and the floor run in turn in one process. The floor is the network with its BatchNorms deleted: it
computes something else, but shows what no fold can beat.

    python -m benchmarks.runtimes --peers-python PATH   writes docs/benchmarks/runtimes.md and .json
    python -m benchmarks.runtimes --only timm:resnet50 --seconds 2 --without compile

Networks that are left out with --only keep the figures that the .json has of them. PATH is the
Python of an environment with onnxsim and onnxslim, see onnx_peers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

import bnfold
from benchmarks.markdown import table
from benchmarks.onnx_exports import export_torchscript
from benchmarks.onnx_patterns import peers_versions
from benchmarks.peers import (
    fold_with_bnfold,
    fold_with_torch_fx,
    with_plain_activations,
    without_batchnorm_nodes,
    without_batchnorms,
)
from benchmarks.process import run as run_process
from benchmarks.zoo import create
from bnfold.bench.machine import machine
from bnfold.bench.run import Sample, samples
from bnfold.bench.settings import Subject, Wishes
from bnfold.bench.timing import Budget, Estimate, ratio
from bnfold.frontends.onnx.runtimes import OPTIMISED, PLAIN, OnnxSubject
from bnfold.frontends.torch.runtimes import COMPILE, EAGER, TorchSubject

NETWORKS = ("timm:resnet50", "timm:densenet121", "timm:resnetv2_50", "timm:mobilenetv2_100")
RUNTIMES = (EAGER, COMPILE, PLAIN, OPTIMISED)
PEERS = ("onnxsim", "onnxslim")
_FOLDER = Path("docs/benchmarks")
_WORKER = Path(__file__).with_name("onnx_peers.py")
_NEAR = 0.01
"""A gain or loss below this is none."""

_HEAD = """# Latency over runtimes

One image of 224 x 224, float32, random weights and statistics (5% of the gammas negative). "Floor"
is the network with its BatchNorms deleted. All variants of a line run in turn in one process; a
ratio is the median of the ratios of all rounds, in brackets its 95% interval. Below 1, the folded
network is faster.

No network that computes the same can reach that floor everywhere: it adds no biases, and where a
BatchNorm had memory of its own it lets the ReLU overwrite what others still read. "Plain" has the
biases and copies of the folded network, but ReLUs where that has bounds per channel, and no
BatchNorm where that keeps one. So folded / plain is what bounds and kept BatchNorms cost, and the
rest up to folded / floor is biases and copies.

- eager: PyTorch. "Tools" is `torch.fx.experimental.optimization.fuse`.
- compile: `torch.compile`, each variant compiled. A BatchNorm is an elementwise step there, and
  runs in the loop of the ReLU behind it, so where the two meet there is little to gain.
- onnxruntime: all of its optimisations off. "Tools" is the faster of onnxsim and onnxslim.
- onnxruntime optimised: its optimisations on, the default. It folds a BatchNorm behind a
  convolution by itself, and makes any other a depthwise convolution that takes in the ReLU behind
  it; so the original is near the floor before anybody folds. A ReLU with bounds per channel
  (a Max) runs by itself there and leaves the blocked layout, so an ONNX model keeps a BatchNorm
  that could go only at that price ([why](../design/0003-reading-onnx.md#what-bounds-cost)). Where
  BatchNorms stay (DenseNet-121, ResNetV2-50), folded / plain is what they cost, and that depends
  on the memory that others leave to this machine: for DenseNet-121, 1.006 and 1.08 in one hour.

One file loaded twice differs by up to 1.2% in ONNX Runtime, with intervals that do not overlap: its
memory lies elsewhere. So intervals are those of one loading, and ratios nearer to 1 say nothing.

{machines}
Versions: {versions}. Made by `python -m benchmarks.runtimes --peers-python PATH`.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One network in one runtime."""

    network: str
    runtime: str
    threads: int
    rounds: int
    machine: str
    milliseconds: Mapping[str, float]
    """Median of each variant."""
    ratios: Mapping[str, Mapping[str, float]]
    """Folded over each other variant: value, low, high."""
    notes: tuple[str, ...] = ()
    """What could not be run."""

    def ratio(self, variant: str) -> Estimate | None:
        """Folded over that variant."""
        found = self.ratios.get(variant)
        return None if found is None else Estimate(**found)

    @property
    def tools(self) -> str | None:
        """The fastest of today's tools."""
        tools = [name for name in ("torch.fx", *PEERS) if name in self.ratios]
        return min(tools, key=lambda name: self.milliseconds[name], default=None)

    @property
    def words(self) -> str:
        """What folding does here."""
        found = self.ratio("original")
        assert found is not None
        if found.high < 1 and found.value < 1 - _NEAR:
            return f"{1 - found.value:.1%} less time"
        if found.low > 1 and found.value > 1 + _NEAR:
            return f"slower by {found.value - 1:.1%}"
        return "gains nothing"


def measure(
    network: str, threads: int, budget: Budget, runtimes: tuple[str, ...], peers: str | None
) -> Iterator[Row]:
    """One row for each runtime."""
    model, example = create(network, dtype=torch.float32, image=224, batch=1)
    wishes = Wishes(threads=(threads,))
    in_torch = tuple(name for name in (EAGER, COMPILE) if name in runtimes)
    if in_torch:
        variants, missing = _modules(model, example)
        subject = TorchSubject(variants, example, runtimes=in_torch, wishes=wishes)
        yield from _rows(network, subject, budget, missing)
    in_onnx = tuple(name for name in (PLAIN, OPTIMISED) if name in runtimes)
    if in_onnx:
        with tempfile.TemporaryDirectory() as folder:
            files, missing = _files(model, example, Path(folder), peers)
            onnx_subject = OnnxSubject(files, None, runtimes=in_onnx, wishes=wishes)
            yield from _rows(network, onnx_subject, budget, missing)


def _modules(model: nn.Module, example: Tensor) -> tuple[dict[str, Any], list[str]]:
    variants: dict[str, Any] = {"original": model, "folded": fold_with_bnfold(model, example)}
    makers: dict[str, Callable[[], nn.Module]] = {
        "torch.fx": lambda: fold_with_torch_fx(model, example),
        "floor": lambda: without_batchnorms(model),
        "plain": lambda: with_plain_activations(variants["folded"]),
    }
    return variants, _make(variants, makers)


def _files(
    model: nn.Module, example: Tensor, folder: Path, peers: str | None
) -> tuple[dict[str, Any], list[str]]:
    original = folder / "original.onnx"
    onnx.save(export_torchscript(model, example), original)
    bnfold.fold(original, output=folder / "folded.onnx")
    variants: dict[str, Any] = {"original": original, "folded": folder / "folded.onnx"}

    def peer(tool: str) -> Path:
        target = folder / f"{tool}.onnx"
        run_process([str(peers), str(_WORKER), tool, str(original), str(target)])
        return target

    def floor() -> Path:
        target = folder / "floor.onnx"
        onnx.save(export_torchscript(without_batchnorms(model), example), target)
        return target

    def plain() -> Path:
        target = folder / "plain.onnx"
        onnx.save(without_batchnorm_nodes(onnx.load(variants["folded"])), target)
        return target

    makers: dict[str, Callable[[], Any]] = {"floor": floor, "plain": plain}
    if peers is not None:
        makers |= {tool: (lambda tool=tool: peer(tool)) for tool in PEERS}  # type: ignore[misc]
    return variants, _make(variants, makers)


def _make(variants: dict[str, Any], makers: Mapping[str, Callable[[], Any]]) -> list[str]:
    """Add what can be made; what cannot is a result of the benchmark."""
    missing = []
    for name, make in makers.items():
        try:
            variants[name] = make()
        except Exception as error:  # a tool that fails
            missing.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}"[:120])
    return missing


def _rows(network: str, subject: Subject, budget: Budget, missing: list[str]) -> Iterator[Row]:
    for sample in samples(subject, budget, missing):
        row = _row(network, sample, tuple(missing))
        print(f"{network} {row.runtime}: {_figures(row)}", file=sys.stderr, flush=True)
        yield row


def _row(network: str, sample: Sample, notes: tuple[str, ...]) -> Row:
    seconds = sample.seconds
    others = [name for name in seconds if name != "folded"]
    return Row(
        network=network,
        runtime=sample.runtime,
        threads=sample.setting.threads,
        rounds=len(seconds["folded"]),
        machine=", ".join(f"{k} {v}" for k, v in machine().items() if k != "load average"),
        milliseconds={name: 1e3 * float(sorted(s)[len(s) // 2]) for name, s in seconds.items()},
        ratios={name: asdict(ratio(seconds["folded"], seconds[name])) for name in others},
        notes=notes,
    )


def _figures(row: Row) -> str:
    times = ", ".join(f"{name} {value:.1f} ms" for name, value in row.milliseconds.items())
    return f"{times}; folded / original {row.ratio('original')}, / floor {row.ratio('floor')}"


def render(rows: list[Row]) -> str:
    """The table, and below it what could not be run."""
    header = ["network", "runtime", "threads", "original, ms", "folded, ms"]
    header += ["folded / original", "folded / tools", "folded / floor", "folded / plain"]
    header += ["folding"]
    body = []
    for row in rows:
        tool = row.tools
        cells = [row.network, row.runtime, str(row.threads)]
        cells += [f"{row.milliseconds[name]:.1f}" for name in ("original", "folded")]
        cells += [str(row.ratio("original"))]
        cells += [f"{tool}: {row.ratio(tool)}" if tool else "none could be run"]
        cells += [str(row.ratio("floor") or ""), str(row.ratio("plain") or ""), row.words]
        body.append(cells)
    notes = {f"- {row.network}, {note}\n" for row in rows for note in row.notes}
    return table(header, body) + ("\n" + "".join(sorted(notes)) if notes else "")


def _versions(peers: Mapping[str, str]) -> str:
    found = {"bnfold": bnfold.__version__, "PyTorch": str(torch.__version__)}
    found["onnxruntime"] = onnxruntime.__version__
    found |= {name: peers[name] for name in PEERS if name in peers}
    return ", ".join(f"{name} {version}" for name, version in found.items())


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write the two files."""
    parser = argparse.ArgumentParser(description="How much faster, over the runtimes.")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(NETWORKS))
    parser.add_argument("--without", nargs="+", choices=RUNTIMES, default=[])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=6.0, help="per network and runtime")
    parser.add_argument("--peers-python", metavar="PATH")
    parser.add_argument("--output", type=Path, default=_FOLDER, help="folder for the two files")
    options = parser.parse_args(arguments)
    peers = peers_versions(options.peers_python) if options.peers_python else {}
    runtimes = tuple(name for name in RUNTIMES if name not in options.without)
    budget = Budget(seconds=options.seconds)
    options.output.mkdir(parents=True, exist_ok=True)
    data, page = options.output / "runtimes.json", options.output / "runtimes.md"
    rows = _read(data)
    for network in options.only:
        for row in measure(network, options.threads, budget, runtimes, options.peers_python):
            rows[row.network, row.runtime] = row
        # After each network, so that what was measured is there whatever happens to the next.
        ordered = [rows[n, r] for n in NETWORKS for r in RUNTIMES if (n, r) in rows]
        ordered += [row for key, row in rows.items() if key[0] not in NETWORKS]
        document = {"versions": _versions(peers), "rows": [asdict(row) for row in ordered]}
        data.write_text(json.dumps(document, indent=2) + "\n")
        machines = "".join(f"Machine: {name}.\n" for name in {row.machine: 0 for row in ordered})
        page.write_text(
            _HEAD.format(machines=machines, versions=_versions(peers)) + "\n" + render(ordered)
        )
    print(page.read_text())
    return 0


def _read(file: Path) -> dict[tuple[str, str], Row]:
    if not file.exists():
        return {}
    found = json.loads(file.read_text())["rows"]
    rows = [Row(**{**row, "notes": tuple(row["notes"])}) for row in found]
    return {(row.network, row.runtime): row for row in rows}


if __name__ == "__main__":
    sys.exit(main())
