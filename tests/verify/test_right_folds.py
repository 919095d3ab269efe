"""No false alarm: random networks of all kinds, folded and verified."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import float16, float32, float64, manual_seed

import bnfold
from bnfold.core.modes import ClipMode
from tests.frontends.caffe import test_random_nets
from tests.frontends.onnx.support import Sketch
from tests.frontends.torch.support import build, image
from tests.frontends.torch.test_random_modules import NAME, STEP, Random
from tests.property.onnx_graphs import Builder


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    modules=st.lists(NAME, min_size=3, max_size=9),
    program=st.lists(STEP, min_size=3, max_size=14),
    outputs=st.integers(1, 2),
    seed=st.integers(0, 1000),
    clip=st.sampled_from(["auto", "always", "never"]),
    dtype=st.sampled_from([float32, float32, float64, float16]),
)
def test_modules(modules, program, outputs, seed, clip, dtype):
    manual_seed(seed)
    model = build(Random(modules, program, outputs), seed).to(dtype)
    x = image(2, 3, 5, 4, seed=seed, dtype=dtype)
    result = bnfold.verify(model, bnfold.fold(model, x, clip=clip).model, x)
    assert result.equal and result.truth == "float64", str(result)


@pytest.mark.parametrize("seed", range(24))
def test_onnx_models(seed):
    builder = Builder(seed, data_type=onnx.TensorProto.FLOAT)
    model = builder.model(int(np.random.default_rng(seed).integers(4, 22)))
    folded = bnfold.fold(model, clip=get_args(ClipMode)[seed % 3]).model
    shapes = {"x": tuple(int(length) for length in builder.values["x"])}
    result = bnfold.verify(model, folded, shapes)
    assert result.equal and result.truth == "float64", str(result)


@pytest.mark.parametrize("seed", range(12))
def test_caffe_networks(tmp_path, seed):
    test_random_nets.assert_folds(tmp_path, seed)
    network, folded = tmp_path / "net.prototxt", tmp_path / "folded.prototxt"
    result = bnfold.verify(network, folded)
    assert result.equal and result.truth == "float64", str(result)


@pytest.mark.parametrize("seed", range(6))
def test_a_value_next_to_nothing_that_is_stored_with_a_shift(seed):
    """Each of 240 channels has one place, and v + t is near 0 in some, where v and t are not."""
    s = Sketch(2, 4, 6, 5, seed=seed)
    s.bn(4)
    s.node("Flatten", axis=0)
    s.node("Gemm", s.at, s.weight("w", 240, 3))
    model = s.model()
    folded = bnfold.fold(model).model
    assert [node.op_type for node in folded.graph.node] == ["Flatten", "Gemm"]
    assert bnfold.verify(model, folded, seed=seed).equal
