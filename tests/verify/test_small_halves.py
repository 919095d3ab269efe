"""Below its normal numbers float16 has fewer digits: what rounding does there is no fault."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import bnfold
from bnfold.frontends.onnx.run_rounding import rounded_again
from bnfold.frontends.torch.run_values import round_again
from bnfold.verify.verdict import unit

HALF = onnx.TensorProto.FLOAT16


def network(factor: float) -> onnx.ModelProto:
    """Sigmoids, convolution, a factor per channel, ReLU and convolution in float16."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(4, 3, 3, 3)),
        "b": rng.normal(size=4),
        "f": factor * rng.uniform(0.5, 2.0, (1, 4, 1, 1)),
        "v": rng.normal(size=(2, 4, 1, 1)),
        "c": rng.normal(size=2),
    }
    names = ["x", *(f"sigmoid{number}" for number in range(6))]
    nodes = [
        *(helper.make_node("Sigmoid", [a], [b], b) for a, b in pairwise(names)),
        helper.make_node("Conv", [names[-1], "w", "b"], ["first"], "first"),
        helper.make_node("Mul", ["first", "f"], ["scaled"], "scaled"),
        helper.make_node("Relu", ["scaled"], ["relu"], "relu"),
        helper.make_node("Conv", ["relu", "v", "c"], ["y"], "last"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", HALF, (2, 3, 8, 8))],
        [helper.make_tensor_value_info("y", HALF, None)],
        [numpy_helper.from_array(a.astype(np.float16), n) for n, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("factor", [1e-3, 1e-5, 1e-6])
def test_a_weight_that_is_off_is_found(factor):
    original = network(factor)
    made, _ = bnfold.fold(original)
    weight = next(tensor for tensor in made.graph.initializer if list(tensor.dims) == [4, 3, 3, 3])
    array = numpy_helper.to_array(weight).copy()
    array[1, 2, 0, 0] += 3 * np.abs(array[1]).max()
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    assert not bnfold.verify(original, made).equal


@pytest.mark.parametrize("factor", [1e-3, 1e-5, 1e-6, 1e-7])
def test_weights_that_lost_digits_are_right(factor):
    original = network(factor)
    folded, report = bnfold.fold(original)
    assert report.removed == 1
    result = bnfold.verify(original, folded)
    assert result.equal, result


def test_infinite_bounds_stay():
    own = torch.tensor([-torch.inf, torch.inf, 1e-7], dtype=torch.float16)
    for draw in range(4):
        wide = own.double()
        round_again(own, wide, torch.Generator().manual_seed(draw))
        assert wide[0] == -torch.inf and wide[1] == torch.inf and wide[2].isfinite()


def test_draws_are_as_far_off_as_rounding_is():
    sizes = np.array([1.0, 2.0**-14, 2.0**-20, 2.0**-24, 0.0]).repeat(4000)
    most = unit("float16") * np.maximum(sizes, 2.0**-14)
    own = sizes.astype(np.float16)
    by_onnx = rounded_again("w", own, HALF, 1)
    wide = torch.zeros(own.shape, dtype=torch.float64)
    round_again(torch.from_numpy(own), wide, torch.Generator().manual_seed(0))
    for drawn in (by_onnx, wide.numpy()):
        gaps = np.abs(drawn - sizes).reshape(5, -1) / most.reshape(5, -1)
        assert (gaps <= 1.0 + 1e-6).all()
        assert np.allclose(gaps.mean(axis=1), 0.5, atol=0.05)
