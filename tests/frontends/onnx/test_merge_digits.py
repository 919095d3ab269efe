"""What the numbers of a merged node may not be: too large for their dtype, or too small."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

import bnfold
from tests.frontends.onnx.support import Sketch, assert_same, ops

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


@pytest.mark.parametrize("op", ["Add", "Sub"])
@pytest.mark.parametrize(
    ("dtype", "factor", "gamma", "mean"),
    [
        (HALF, 300.0, 1.0, 300.0),  # factor * mean is what does not fit
        (HALF, 3000.0, 1.0, 30.0),
        (HALF, 40000.0, 40000.0, 0.0),
        (FLOAT, 6e19, 0.67, 4e29),
    ],
)
def test_a_batch_norm_that_would_take_in_too_much(op, dtype, factor, gamma, mean):
    s = Sketch(1, 2, 2, 2, data_type=dtype)
    product = s.node("Mul", "x", s.constant("c", np.array([factor, 1.0]).reshape(2, 1, 1)))
    parts = zip("gbmv", ([gamma, 1.0], [0.0, 0.0], [mean, 0.0], [1.0, 1.0]), strict=True)
    norm = s.node("BatchNormalization", "x", *[s.constant(k, v) for k, v in parts], name="bn")
    s.node(op, product, norm)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert not report.merged and ops(folded) == ops(model)


@pytest.mark.parametrize(("size", "merged"), [(3e-2, 1), (3e-3, 1), (1e-3, 0), (1e-4, 0)])
def test_a_chain_of_small_weights_in_half_precision(size, merged):
    """Their product lies among the subnormal numbers, which have few digits."""
    s = Sketch(1, 16, 4, 4, data_type=HALF)
    for name in "ab":
        weight = s.constant(name, s.rng.normal(size=(16, 16, 1, 1)) * size)
        s.node("Conv", s.at, weight, name=name)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert len(report.merged) == merged
    assert_same(model, folded, (1, 16, 4, 4), tolerance=1e-2 if size > 1e-3 else 0.0)


def test_single_precision_reaches_far_lower():
    s = Sketch(1, 4, 4, 4)
    for name in "ab":
        weight = s.constant(name, s.rng.normal(size=(4, 4, 1, 1)) * 1e-10)
        s.node("Conv", s.at, weight, name=name)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert len(report.merged) == 1
    assert_same(model, folded, (1, 4, 4, 4))
