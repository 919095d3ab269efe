"""Bounds of a Clip that are none, and new ones that no dtype holds."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

import bnfold
from bnfold import Reason
from tests.frontends.onnx.support import Sketch, assert_same, ops

LOWEST = -float(np.finfo(np.float32).max)
SHAPE = (2, 4, 6, 6)


def between(
    lower: float, upper: float, *, opset: int = 13, positive: bool = False, half: bool = False
):
    """A BatchNorm, a Clip, a convolution; None is a bound that is left out."""
    s = Sketch(*SHAPE, data_type=TensorProto.FLOAT16 if half else TensorProto.FLOAT)
    s.bn(4, name="norm")
    if positive:
        for tensor in s.initializers:
            if tensor.name == "norm_g":
                tensor.raw_data = np.array([0.7, 1.3, 2.0, 0.4], s.dtype).tobytes()
            elif tensor.name in ("norm_b", "norm_m"):
                tensor.raw_data = np.zeros(4, s.dtype).tobytes()
    if opset < 11:
        s.node("Clip", s.at, name="clip", min=lower, max=upper)
    else:
        s.node("Clip", s.at, s.constant("l", lower), s.constant("u", upper), name="clip")
    s.conv(4, 3, name="conv")
    return s.model(opset=opset)


# -------------------------------------------------------------------- must stay


@pytest.mark.parametrize(
    ("lower", "upper"), [(-60000.0, 6.0), (-6.0, 60000.0), (-60000.0, 60000.0), (-60000.0, 0.0)]
)
@pytest.mark.parametrize("clip", ["always", "auto", "never"])
def test_a_bound_that_no_half_holds_keeps_the_batch_norm(lower, upper, clip):
    model = between(lower, upper, half=True)
    folded, report = bnfold.fold(model, clip=clip)
    assert ops(folded) == ["BatchNormalization", "Clip", "Conv"]
    if clip == "always":
        assert (report.items[0].reason, report.items[0].blocker) == (Reason.OVERFLOW, "clip")
        assert "clip" in report.items[0].sentence
    assert bnfold.inspect(model, clip=clip).items == report.items
    assert_same(model, folded, SHAPE, tolerance=2e-3)


@pytest.mark.parametrize(("lower", "upper"), [(-3e38, 6.0), (-6.0, 3e38), (-3.4e38, 3.4e38)])
def test_a_bound_that_no_float_holds_keeps_the_batch_norm(lower, upper):
    model = between(lower, upper)
    folded, report = bnfold.fold(model, clip="always")
    assert ops(folded) == ["BatchNormalization", "Clip", "Conv"]
    assert report.items[0].reason is Reason.OVERFLOW
    assert_same(model, folded, SHAPE)


def test_only_the_batch_norm_in_front_of_such_a_clip_stays():
    s = Sketch(*SHAPE)
    s.bn(4, name="first")
    s.node("Clip", s.at, s.constant("l", -3e38), s.constant("u", 6.0), name="clip")
    s.conv(4, 4, name="conv")
    s.bn(4, name="second")
    s.node("Relu", name="relu")
    model = s.model()
    folded, report = bnfold.fold(model, clip="always")
    assert [(item.name, item.reason) for item in report.items if item.reason] == [
        ("first", Reason.OVERFLOW)
    ]
    assert_same(model, folded, SHAPE)


# -------------------------------------------------------------------- goes


@pytest.mark.parametrize("opset", [8, 10, 11, 13, 21])
@pytest.mark.parametrize(
    ("lower", "upper"), [(LOWEST, 6.0), (-1.0, -LOWEST), (LOWEST, -LOWEST), (LOWEST, -0.25)]
)
def test_a_bound_at_the_end_of_float32_is_none(lower, upper, opset):
    model = between(lower, upper, opset=opset)
    folded, report = bnfold.fold(model, clip="always")
    assert report.removed == 1
    assert_same(model, folded, SHAPE)
    assert bnfold.verify(model, folded).equal
    assert bnfold.fold(folded, clip="always").model == folded


@pytest.mark.parametrize(("lower", "upper"), [(-65504.0, 6.0), (-1.0, 65504.0)])
def test_a_bound_at_the_end_of_float16_is_none(lower, upper):
    model = between(lower, upper, half=True)
    folded, report = bnfold.fold(model, clip="always")
    assert report.removed == 1
    assert_same(model, folded, SHAPE, tolerance=1e-2)


@pytest.mark.parametrize(("lower", "upper"), [(0.0, -LOWEST), (LOWEST, 0.0), (LOWEST, -LOWEST)])
@pytest.mark.parametrize("opset", [9, 13])
def test_a_scale_passes_a_bound_of_zero_as_it_passes_a_relu(lower, upper, opset):
    model = between(lower, upper, opset=opset, positive=True)
    folded, report = bnfold.fold(model, clip="never")
    assert report.removed == 1
    assert ops(folded) == ["Clip", "Conv"]
    assert_same(model, folded, SHAPE)
