"""Indices that each run computes, or is given: the axes that they do not pick on go on."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

import bnfold
from tests.conformance.onnx_run import error, run_exactly
from tests.conformance.onnx_sketch import Sketch

X = (3, 4, 5)


def gathered(s, x):
    return s.node("Gather", x, s.input(2, name="i", element_type=TensorProto.INT64), axis=2)


def a_grid(s, x):
    indices = s.input(2, 3, name="i", element_type=TensorProto.INT64)
    picked = s.node("Gather", x, indices, axis=2)
    return s.node("Reshape", picked, s.integers("flat", 3, 4, 6))


def samples(s, x):
    return s.node("Gather", x, s.input(2, name="i", element_type=TensorProto.INT64))


def computed(s, x):
    score = s.node("ReduceMean", s.node("Tanh", "x"), axes=[0, 1], keepdims=0)
    s.node("TopK", score, s.integers("k", 2), outputs=["best", "where"])
    return s.node("Gather", x, "where", axis=-1)


def elements(s, x):
    indices = s.input(3, 4, 2, name="i", element_type=TensorProto.INT64)
    return s.node("GatherElements", x, indices, axis=2)


def of_pairs(s, x):
    indices = s.input(6, 2, name="i", element_type=TensorProto.INT64)
    last = s.node("Transpose", x, perm=[0, 2, 1])
    return s.node("GatherND", last, indices)


def of_pairs_per_sample(s, x):
    indices = s.input(3, 2, 1, name="i", element_type=TensorProto.INT64)
    last = s.node("Transpose", x, perm=[0, 2, 1])
    picked = s.node("GatherND", last, indices, batch_dims=1)
    return s.node("Transpose", picked, perm=[0, 2, 1])


def channels(s, x):
    return s.node("Gather", x, s.input(4, name="i", element_type=TensorProto.INT64), axis=1)


def elements_of_channels(s, x):
    indices = s.input(3, 4, 5, name="i", element_type=TensorProto.INT64)
    return s.node("GatherElements", x, indices, axis=1)


def with_channels(s, x):
    indices = s.input(4, 2, name="i", element_type=TensorProto.INT64)
    picked = s.node("GatherND", x, indices)
    return s.node("Transpose", picked, perm=[1, 0])


def feeds(model):
    for seed in (1, 2, 3):
        random = np.random.default_rng(seed)
        yield {
            value.name: random.standard_normal(X)
            if value.name == "x"
            else random.integers(0, 3, [d.dim_value for d in value.type.tensor_type.shape.dim])
            for value in model.graph.input
        }


def behind(draw, **options):
    s = Sketch(np.float64, opset=13, **options)
    x = s.conv(s.input(*X), 4, 4, 1, rank=1)
    s.output(s.bn(draw(s, x), 4))
    return s.model()


def in_front(draw):
    s = Sketch(np.float64, opset=13)
    picked = draw(s, s.bn(s.node("Sigmoid", s.input(*X)), 4))
    s.output(s.gemm(picked, 4, 3) if draw is of_pairs else s.conv(picked, 4, 3, 1, rank=1))
    return s.model()


def assert_right(model):
    folded, report = bnfold.fold(model, verify=False)
    for feed in feeds(model):
        assert error(run_exactly(model, feed), run_exactly(folded, feed)) < 1e-9
    assert bnfold.fold(folded, verify=False).model == folded
    return report


OTHER_AXES = (gathered, a_grid, samples, computed, elements, of_pairs, of_pairs_per_sample)


@pytest.mark.parametrize("draw", OTHER_AXES)
@pytest.mark.parametrize("build", [behind, in_front])
def test_what_is_picked_of_other_axes(build, draw):
    assert assert_right(build(draw)).kept == 0


@pytest.mark.parametrize("draw", [channels, elements_of_channels])
@pytest.mark.parametrize("build", [behind, in_front])
def test_what_is_picked_of_channels(build, draw):
    assert assert_right(build(draw)).kept == 1


def test_pairs_of_sample_and_channel():
    assert (
        assert_right(
            behind(
                lambda s, x: s.node(
                    "Expand",
                    s.node("Unsqueeze", with_channels(s, x), s.integers("at", 1)),
                    s.integers("to", 5, 4, 4),
                )
            )
        ).kept
        == 1
    )


def test_a_batch_of_any_size():
    s = Sketch(np.float64, opset=13)
    x = s.conv(s.input("n", 4, 5), 4, 4, 1, rank=1)
    picked = s.node("Gather", x, s.input("m", name="i", element_type=TensorProto.INT64), axis=2)
    s.output(s.bn(picked, 4))
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.kept == 0
    for samples, places in ((1, 1), (4, 7)):
        feed = {"x": np.random.randn(samples, 4, 5), "i": np.arange(places) % 5}
        assert error(run_exactly(model, feed), run_exactly(folded, feed)) < 1e-9
