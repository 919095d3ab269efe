"""File to file, whole processes, start-up included: bnfold against the tools for ONNX files.

    python -m benchmarks.onnx_files --peers-python PATH       writes two files in docs/benchmarks

ResNet-50 and ResNet-152 (timm, random weights and statistics) are exported once, with their
BatchNorms. Then every tool reads the file and writes another, in turn, round by round. The floor
is onnx.load and onnx.save in a process of their own. A large model with external data follows, see
onnx_large. PATH is the Python of an environment with the tools; each runs as
`python onnx_peers.py TOOL IN OUT`, bnfold as `python -m bnfold fold IN -o OUT`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import onnx
import torch

from benchmarks.markdown import table
from benchmarks.measure import machine
from benchmarks.onnx_count import affine_steps
from benchmarks.onnx_exports import export_torchscript
from benchmarks.onnx_large import Large, measure_large
from benchmarks.onnx_patterns import peers_versions
from benchmarks.process import run
from benchmarks.timing import Ratio, interleave, median, ratio
from benchmarks.zoo import create

NETWORKS = ("timm:resnet50", "timm:resnet152")
_FOLDER = Path("docs/benchmarks")
_WORKER = Path(__file__).with_name("onnx_peers.py")
_FLOOR = "load + save"
_PEERS = ("onnxslim", "onnxsim", "onnxscript", "onnxoptimizer")

_HEAD = """# ONNX files: time and memory

Whole processes, start-up included, from a file to a file. Medians of {rounds} rounds in which all
tools run in turn; ratios are those of the medians, with 95% intervals (bootstrap over rounds).
"load + save" is `onnx.load` and `onnx.save` and nothing else. "Left" is how many affine steps the
written file still runs.

{versions}. Machine: {machine}, load average {load} at the start.
Made by `python -m benchmarks.onnx_files --peers-python PATH`.
"""

_LARGE = """
## A model of {gigabytes:.1f} GB

{batch_norms} blocks of a 3 x 3 convolution with 1024 channels and a BatchNorm, weights as external
data; every weight changes. The copy is `shutil.copyfile` of the data alone, within the kernel
(sendfile). In the page cache nobody waits for the disk (`os.fsync` does nothing); flushed is with
`os.fsync` of what was written. Whole processes, start-up included. Medians of {rounds} rounds in
turn; memory is the largest of all rounds. Before each run a process takes as much memory as the
run fills, and gives it back: on a virtual machine whose host takes idle memory away, the run would
otherwise be charged for getting it again, copy and fold alike.

| | in the page cache | flushed |
| :-- | --: | --: |
| fold | {seconds[fold]:.2f} s | {fold_flushed:.2f} s |
| copy of the data | {seconds[copy]:.2f} s | {copy_flushed:.2f} s |
| fold / copy | {ratio} | {ratio_flushed} |

| | |
| :-- | --: |
| peak memory, anonymous (RssAnon) | {anonymous:.0f} MB, {anonymous_part:.3f} of the file |
| peak memory, with pages of mapped files (VmHWM) | {resident:.0f} MB, {resident_part:.3f} of the \
file |
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One network."""

    network: str
    megabytes: float
    batch_norms: int
    seconds: dict[str, float]
    """Median of each tool."""
    ratios: dict[str, Ratio]
    """bnfold without the check / each tool"""
    left: dict[str, int]
    """Affine steps in what each tool wrote."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write the two files."""
    parser = argparse.ArgumentParser(description="Whole processes, ONNX file to file.")
    parser.add_argument("--peers-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--gigabytes", type=float, default=2.8, help="0 leaves the large one out")
    parser.add_argument("--large-rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=_FOLDER, help="folder for the two files")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    versions = peers_versions(options.peers_python)
    rows = [measure(name, options.rounds, options.peers_python, versions) for name in options.only]
    large = measure_large(options.gigabytes, options.large_rounds) if options.gigabytes else None
    named = {"onnx": onnx.__version__, **{k: v for k, v in versions.items() if k in _PEERS}}
    page = _HEAD.format(
        rounds=options.rounds,
        versions=", ".join(f"{tool} {version}" for tool, version in named.items()),
        machine=machine(),
        load=f"{load:.1f}",
    )
    page += "".join(f"\n## {row.network}\n\n{render(row)}" for row in rows)
    if large is not None:
        page += render_large(large, options.large_rounds)
    print(page)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "onnx_files.md").write_text(page)
    document = {
        "machine": asdict(machine()),
        "load": load,
        "versions": named,
        "rounds": options.rounds,
        "rows": [asdict(row) for row in rows],
        "large": None if large is None else asdict(large),
    }
    (options.output / "onnx_files.json").write_text(json.dumps(document, indent=2) + "\n")
    return 0


def measure(network: str, rounds: int, peers_python: str, peers: dict[str, str]) -> Row:
    """Export one network and let everyone fold it, in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "model.onnx"
        model, example = create(network, dtype=torch.float32, image=224, batch=1)
        exported = export_torchscript(model, example)
        onnx.save(exported, source)
        fold = [sys.executable, "-m", "bnfold", "fold", str(source), "--force", "-o"]
        floor = [sys.executable, str(_WORKER), "load+save", str(source), str(folder / "2.onnx")]
        commands = {
            "bnfold --no-check": [*fold, str(folder / "0.onnx"), "--no-check"],
            "bnfold": [*fold, str(folder / "1.onnx")],
            _FLOOR: floor,
        }
        for number, tool in enumerate(_PEERS, start=3):
            if tool in peers:
                target = str(folder / f"{number}.onnx")
                commands[tool] = [peers_python, str(_WORKER), tool, str(source), target]
        actions = {tool: partial(run, command) for tool, command in commands.items()}
        times = interleave(actions, rounds, warmup=1)
        return Row(
            network=network,
            megabytes=source.stat().st_size / 1e6,
            batch_norms=len(affine_steps(exported)),
            seconds={tool: median(seconds) for tool, seconds in times.items()},
            ratios={tool: ratio(times, "bnfold --no-check", tool) for tool in times},
            left={
                tool: len(affine_steps(onnx.load(folder / f"{number}.onnx")))
                for number, tool in enumerate(commands)
            },
        )


def render(row: Row) -> str:
    """A table, a line per tool."""
    body = [
        [
            tool,
            f"{seconds:.2f}",
            "" if tool == "bnfold --no-check" else str(row.ratios[tool]),
            str(row.left[tool]),
        ]
        for tool, seconds in row.seconds.items()
    ]
    head = f"{row.megabytes:.0f} MB, {row.batch_norms} BatchNorms.\n\n"
    return head + table(["tool", "seconds", "bnfold --no-check / it", "left"], body)


def render_large(large: Large, rounds: int) -> str:
    """The second part of the page."""
    return _LARGE.format(
        gigabytes=large.data_bytes / 1e9,
        batch_norms=large.batch_norms,
        rounds=rounds,
        seconds=large.seconds,
        fold_flushed=large.seconds["fold, flushed"],
        copy_flushed=large.seconds["copy, flushed"],
        ratio=large.ratio,
        ratio_flushed=large.ratio_flushed,
        anonymous=large.anonymous / 1e6,
        anonymous_part=large.anonymous / large.data_bytes,
        resident=large.resident / 1e6,
        resident_part=large.resident / large.data_bytes,
    )


if __name__ == "__main__":
    sys.exit(main())
