"""Random ONNX models: what comes out of a fold computes the same, and the report says the truth."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.api import ClipMode
from tests.conformance.onnx_run import run, run_exactly
from tests.property.onnx_graphs import Builder

BATCHES = 20
PER_BATCH = 15


@pytest.mark.parametrize("batch", range(BATCHES))
def test_folded_models_compute_the_same(batch):
    for seed in range(batch * PER_BATCH, (batch + 1) * PER_BATCH):
        check(seed)


def check(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps, clip = int(rng.integers(4, 22)), get_args(ClipMode)[seed % 3]
    builder = Builder(seed, data_type=onnx.TensorProto.FLOAT)
    model = builder.model(steps)
    onnx.checker.check_model(model, full_check=True)
    folded, report = bnfold.fold(model, clip=clip)
    onnx.checker.check_model(folded, full_check=True)
    left = [node.name for node in folded.graph.node if node.op_type == "BatchNormalization"]
    kept = [i for i in report.items if i.kind == "BatchNormalization" and not i.is_removed]
    assert len(left) == len(kept), (seed, str(report))
    x = rng.normal(size=builder.values["x"]).astype(np.float32)
    for expected, actual in zip(run(model, {"x": x}), run(folded, {"x": x}), strict=True):
        assert same(expected, actual, 1e-3), seed


def same(expected: np.ndarray, actual: np.ndarray, tolerance: float) -> bool:
    scale = np.abs(expected).max(initial=0.0)
    return expected.shape == actual.shape and bool(
        np.allclose(expected, actual, rtol=tolerance, atol=tolerance * scale + 1e-30)
    )


@pytest.mark.parametrize("batch", range(5))
def test_folded_models_compute_the_same_exactly(batch):
    """In float64, where a small mistake does not hide behind rounding; one image at a time."""
    for seed in range(1000 + batch * 10, 1010 + batch * 10):
        builder = Builder(seed, data_type=onnx.TensorProto.DOUBLE, batch=1, wide=False)
        model = builder.model(int(np.random.default_rng(seed).integers(4, 18)))
        folded, _ = bnfold.fold(model, clip=get_args(ClipMode)[seed % 3])
        feed = {"x": np.random.default_rng(seed).normal(size=builder.values["x"])}
        for expected, actual in zip(
            run_exactly(model, feed), run_exactly(folded, feed), strict=True
        ):
            assert same(expected, actual, 1e-9), seed
