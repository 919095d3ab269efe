"""Does verify accept right folds, and find faults, where there is no float64 to compare with?

Random ONNX models are folded and verified as if PyTorch were not installed: integer inputs,
operators that only ONNX Runtime knows, and plain ones. Then a weight of the fold is changed.

    python -m benchmarks.verify_without_truth
    python -m benchmarks.verify_without_truth --models 1000 --faults 0.001
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import get_args

import numpy as np
import onnx
from onnx import numpy_helper

import bnfold
from bnfold.core.modes import ClipMode
from tests.verify.without_truth import FORMS, draw


def main(arguments: list[str] | None = None) -> int:
    """Count verdicts and print them."""
    parser = argparse.ArgumentParser(description="Right folds accepted, faults found.")
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--faults", type=float, default=0.01, help="how far a weight is off")
    options = parser.parse_args(arguments)
    sys.modules["torch"] = None  # type: ignore[assignment]  # as if it were not installed
    right: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for seed in range(options.first, options.first + options.models):
        model, shapes = draw(seed)
        folded, report = bnfold.fold(model, clip=get_args(ClipMode)[seed % 3])
        result = bnfold.verify(model, folded, shapes)
        right[result.verdict] += 1
        if not result.equal:
            print(seed, FORMS[seed % len(FORMS)], report.summary, result.summary, flush=True)
        if _plant(folded, seed, options.faults):
            wrong[bnfold.verify(model, folded, shapes).verdict] += 1
    print(f"right folds: {dict(right)}")
    print(f"one weight off by {options.faults} of itself: {dict(wrong)}")
    return int(right["not equal"] > 0)


def _plant(model: onnx.ModelProto, seed: int, off: float) -> bool:
    """One number of a convolution or matrix is off; False where there is none."""
    rng = np.random.default_rng(seed)
    read = {n.input[1] for n in model.graph.node if n.op_type in ("Conv", "Gemm", "ConvTranspose")}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in read]
    if not weights:
        return False
    tensor = weights[int(rng.integers(len(weights)))]
    array = numpy_helper.to_array(tensor).copy()
    at = int(np.argmax(np.abs(array)))
    array.reshape(-1)[at] *= 1.0 + off
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return True


if __name__ == "__main__":
    sys.exit(main())
