"""Does verify tell right folds from wrong ones, on real networks?

Each network is folded in each dtype and verified: it must be equal. Then faults are planted in the
float32 fold, one at a time: one weight of one channel is off by 1e-3 (relative, then absolute), at
random places among those that matter (an input channel that is not dead), and a bias is forgotten.

    python -m benchmarks.verify_models
    python -m benchmarks.verify_models --only timm:resnet50 --dtypes float32 --faults 20
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import time

import torch
from torch import Tensor, nn

import bnfold
from benchmarks.zoo import create
from bnfold.frontends.torch.runner import module_runner
from bnfold.verify.result import VerifyResult
from bnfold.verify.thorough import choose_samples, verify

NETWORKS = ("timm:resnet50", "timm:densenet121", "timm:resnetv2_50", "timm:mobilenetv2_100")
DTYPES = ("float32", "float16", "bfloat16")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a line per verification."""
    parser = argparse.ArgumentParser(description="Right folds accepted, faults found.")
    parser.add_argument("--only", nargs="+", default=list(NETWORKS))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES))
    parser.add_argument("--faults", type=int, default=6)
    parser.add_argument("--side", type=int, default=96, help="rows and columns of the image")
    options = parser.parse_args(arguments)
    for name in options.only:
        for dtype in options.dtypes:
            _measure(name, dtype, options.faults if dtype == "float32" else 0, options.side)
    return 0


def _measure(name: str, dtype: str, faults: int, side: int) -> None:
    made = create(name)
    model, _ = made if isinstance(made, tuple) else (made, None)
    model = model.to(getattr(torch, dtype))
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    x = x.to(getattr(torch, dtype))
    start = time.perf_counter()
    folded, report = bnfold.fold(model, x)
    middle = time.perf_counter()
    result = _verify(model, folded, x)
    end = time.perf_counter()
    print(
        f"{name} {dtype}: {report.summary}; fold {middle - start:.1f} s,"
        f" verify {end - middle:.1f} s: {_line(result)}",
        flush=True,
    )
    generator = random.Random(0)
    for number in range(faults):
        what = ("relative", "absolute", "bias")[number % 3]
        wrong = copy.deepcopy(folded)
        where = _plant(wrong, what, generator)
        print(f"  planted {what} in {where}: {_line(_verify(model, wrong, x))}", flush=True)


def _verify(model: nn.Module, folded: nn.Module, x: Tensor) -> VerifyResult:
    original = module_runner(model, x, "original")
    other = module_runner(folded, x, "folded")
    return verify(original, other, choose_samples(original.specs, 2, 0), seed=0)


def _line(result: VerifyResult) -> str:
    unequal = sum(not layer.equal for layer in result.layers)
    output = result.outputs[0]
    return (
        f"{result.summary} (error {output.error:.1e}, own {output.own_error:.1e};"
        f" {unequal} of {len(result.layers)} layers apart)"
    )


@torch.no_grad()
def _plant(model: nn.Module, what: str, generator: random.Random) -> str:
    modules = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    if what == "bias":
        modules = [(n, m) for n, m in modules if m.bias is not None and bool(m.bias.any())]
    name, module = generator.choice(modules)
    if what == "bias":
        module.bias.zero_()
        return name
    flat = module.weight.view(-1)
    at = generator.randrange(flat.numel())
    before = float(flat[at])
    flat[at] = before * 1.001 if what == "relative" else before + 1e-3
    size = float(module.weight.square().mean().sqrt())
    return f"{name}.weight[{at}] = {before:.1e} (RMS {size:.1e}, {flat.numel()} weights)"


if __name__ == "__main__":
    sys.exit(main())
