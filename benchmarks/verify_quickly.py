"""Does the quick judge of `bnfold fold` find the faults that the full one finds?

Networks are exported to ONNX and folded; then faults are planted in the folded model, one at a
time, and both judges are asked: one weight of one channel off by 1e-3 (of itself, then absolute), a
bias forgotten in one channel, a channel that is dead. A right fold must be "equal" to both.

    python -m benchmarks.verify_quickly                                  small random networks
    python -m benchmarks.verify_quickly --networks timm:resnet50 --faults 6 --side 96
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from onnx import ModelProto, numpy_helper
from torch import nn

import bnfold
from benchmarks.onnx_exports import export_torchscript
from benchmarks.randomize import randomize_statistics
from benchmarks.zoo import create
from bnfold.frontends.onnx.fold import prepare
from bnfold.frontends.onnx.read import read_proto
from bnfold.frontends.onnx.runner import model_runner
from bnfold.verify.quick import run_ahead
from bnfold.verify.runner import NotExactError

_FAULTS = ("relative", "absolute", "bias", "dead")
Found = dict[str, bool]


def main(arguments: list[str] | None = None) -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description="Faults found by the quick and the full judge.")
    parser.add_argument("--networks", nargs="*", default=[])
    parser.add_argument("--random", type=int, default=25, help="small random networks")
    parser.add_argument("--faults", type=int, default=4, help="planted in each")
    parser.add_argument("--side", type=int, default=0, help="of images; 0: from 32 to 192")
    parser.add_argument("--kinds", nargs="+", choices=_FAULTS, default=list(_FAULTS))
    parser.add_argument("--off", type=float, default=1e-3, help="how far a weight is off")
    parser.add_argument("--quick-only", action="store_true", help="ask the full judge for none")
    options = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    for name, original, side in _models(options):
        folded = bnfold.fold(original, clip="always").model
        for what, model in [("right", folded), *_planted(folded, options, name)]:
            found = _judges(original, model, full=not options.quick_only)
            counts["models" if what == "right" else "faults"] += 1
            for judge, is_doubted in found.items():
                counts[f"{judge}: {'right doubted' if what == 'right' else 'found'}"] += is_doubted
            print(f"{name} {side}: {what}: {found}", flush=True)
    print(dict(counts))
    return 0


def _models(options: argparse.Namespace) -> Iterator[tuple[str, ModelProto, int]]:
    for name in options.networks:
        side = options.side or 224
        made, example = create(name, dtype=torch.float32, image=side, batch=1)
        yield name, export_torchscript(made, example), side
    for seed in range(0 if options.networks else options.random):
        side = options.side or (32, 64, 96, 128, 192)[seed % 5]
        example = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
        model = _network(seed).eval()
        randomize_statistics(model, seed, inputs=example)
        yield f"random {seed}", export_torchscript(model, example), side


def _network(seed: int) -> nn.Module:
    """Convolutions of all sorts, with their BatchNorms and activations."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    layers: list[nn.Module] = []
    width = 3
    for at in range(rng.randint(3, 10)):
        out = rng.choice((8, 16, 24, 48))
        groups = rng.choice((1, 1, 2, 4)) if width % 4 == 0 else 1
        if at and rng.random() < 0.2:
            out, groups = width, width
        kernel = rng.choice((1, 3, 3, 5))
        stride = 2 if at % 3 == 0 else 1
        layers += [
            nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups, bias=at % 2 == 0),
            nn.BatchNorm2d(out),
            rng.choice((nn.ReLU(), nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.Sigmoid())),
        ]
        width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def _planted(
    folded: ModelProto, options: argparse.Namespace, name: str
) -> Iterator[tuple[str, ModelProto]]:
    rng = random.Random(name)
    for number in range(options.faults):
        wrong = ModelProto()
        wrong.CopyFrom(folded)
        what = options.kinds[number % len(options.kinds)]
        yield f"{what} in {_plant(wrong, what, options.off, rng)}", wrong


def _plant(model: ModelProto, what: str, off: float, rng: random.Random) -> str:
    nodes = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    if what == "bias":
        nodes = [node for node in nodes if len(node.input) > 2]
    node = rng.choice(nodes)
    name = node.input[2 if what == "bias" else 1]
    [tensor] = [t for t in model.graph.initializer if t.name == name]
    array = numpy_helper.to_array(tensor).copy()
    at = rng.randrange(array.size)
    flat = array.reshape(-1)
    before = flat[at]
    if what == "dead":
        array[np.unravel_index(at, array.shape)[0]] = 0.0
    else:
        flat[at] = {"relative": before * (1 + off), "absolute": before + off, "bias": 0.0}[what]
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return f"{node.name or node.output[0]}[{at}] = {before:.1e}"


def _judges(original: ModelProto, folded: ModelProto, *, full: bool) -> Found:
    """Whether each judge doubts that they are equal."""
    first, second = model_runner(original, None, "original"), model_runner(folded, None, "folded")
    found = {}
    try:
        folding = prepare(read_proto(original), None, clip="always")
        quick = run_ahead(first)
        if quick is not None:
            guesses = [folding.rescalings]
            found["quick"] = quick.judge(second, guesses) is None
    except NotExactError:
        pass
    if full:
        shapes = {spec.name: spec.shape for spec in first.specs}
        found["full"] = not bnfold.verify(original, folded, shapes, samples=1).equal
    return found


if __name__ == "__main__":
    sys.exit(main())
