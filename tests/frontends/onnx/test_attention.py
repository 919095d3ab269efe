"""Attention is a weighted mean of its values, where the weights are known to sum to 1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import bnfold
from tests.frontends.onnx.support import Sketch, assert_same, ops

Attend = Callable[[Sketch, str, str, str], str]
"""Of queries, keys and values, (batch, tokens, channels), the values' means."""


def scores(s: Sketch, q: str, k: str) -> str:
    return s.node("MatMul", q, s.node("Transpose", k, perm=[0, 2, 1]))


def plain(s: Sketch, q: str, k: str, v: str) -> str:
    return s.node("MatMul", s.node("Softmax", scores(s, q, k), axis=-1), v)


def from_the_right(s: Sketch, q: str, k: str, v: str) -> str:
    weights = s.node("Transpose", s.node("Softmax", scores(s, q, k), axis=2), perm=[0, 2, 1])
    mean = s.node("MatMul", s.node("Transpose", v, perm=[0, 2, 1]), weights)
    return s.node("Transpose", mean, perm=[0, 2, 1])


def down_the_columns(s: Sketch, q: str, k: str, v: str) -> str:
    columns = s.node("Softmax", scores(s, k, q), axis=1)
    return s.node("MatMul", s.node("Transpose", columns, perm=[0, 2, 1]), v)


def einsum(s: Sketch, q: str, k: str, v: str) -> str:
    weights = s.node("Softmax", s.node("Einsum", q, k, equation="bic, bjc -> bij"), axis=-1)
    return s.node("Einsum", weights, v, equation="bij,bjc->bic")


def einsum_from_the_right(s: Sketch, q: str, k: str, v: str) -> str:
    return s.node("Einsum", v, s.node("Softmax", scores(s, q, k)), equation="bjc,bij->bic")


def through_moves(s: Sketch, q: str, k: str, v: str) -> str:
    weights = s.node("Softmax", s.node("Cast", scores(s, q, k), to=TensorProto.DOUBLE))
    weights = s.node("Dropout", s.node("Identity", s.node("Cast", weights, to=TensorProto.FLOAT)))
    axis = s.constant("axis", np.array([1]))
    mean = s.node("MatMul", s.node("Unsqueeze", weights, axis), s.node("Unsqueeze", v, axis))
    return s.node("Squeeze", mean, axis)


def along_the_wrong_axis(s: Sketch, q: str, k: str, v: str) -> str:
    return s.node("MatMul", s.node("Softmax", scores(s, q, k), axis=1), v)


def masked_behind(s: Sketch, q: str, k: str, v: str) -> str:
    weights = s.node("Softmax", scores(s, q, k))
    few = s.node("Less", weights, s.constant("few", np.array(0.1)))
    return s.node("MatMul", s.node("Where", few, s.constant("zero", np.array(0.0)), weights), v)


def not_normalised(s: Sketch, q: str, k: str, v: str) -> str:
    return s.node("MatMul", s.node("Sigmoid", scores(s, q, k)), v)


def some_of_the_tokens(s: Sketch, q: str, k: str, v: str) -> str:
    first, end, axis = (s.constant(f"cut{n}", np.array([n])) for n in (1, 1 << 40, 2))
    weights = s.node("Slice", s.node("Softmax", scores(s, q, k)), first, end, axis)
    return s.node(
        "MatMul", weights, s.node("Slice", v, first, end, s.constant("a1", np.array([1])))
    )


def one_for_the_batch(s: Sketch, q: str, k: str, v: str) -> str:
    """The first value for all: an axis is broadcast."""
    zero = s.constant("first", np.array([0]))
    return s.node("MatMul", s.node("Softmax", scores(s, q, k)), s.node("Gather", v, zero, axis=0))


def summed_besides(s: Sketch, q: str, k: str, v: str) -> str:
    """Also over what is no axis of the values: the weights sum to the number of heads."""
    weights = s.node(
        "Unsqueeze", s.node("Softmax", scores(s, q, k)), s.constant("h", np.array([1]))
    )
    weights = s.node("Concat", weights, weights, axis=1)
    return s.node("Einsum", weights, v, equation="bhij,bjc->bic")


MEANS = [plain, from_the_right, down_the_columns, einsum, einsum_from_the_right, through_moves]
OTHERS = [
    *(along_the_wrong_axis, masked_behind, not_normalised, some_of_the_tokens),
    *(one_for_the_batch, summed_besides),
]


def network(attend: Attend, *shape: int | str, opset: int = 17) -> onnx.ModelProto:
    """Behind it a BatchNorm that no Relu lets through: it goes into the values or not at all."""
    s = Sketch(*shape)
    q, k = (s.node("MatMul", "x", s.weight(f"{name}_w", 4, 3)) for name in "qk")
    v = s.node("Add", s.node("MatMul", "x", s.weight("v_w", 4, 6)), s.weight("v_b", 6))
    s.node("Transpose", attend(s, q, k, v), perm=[0, 2, 1])
    s.bn(6)
    s.node("Sigmoid")
    return s.model(opset=opset)


@pytest.mark.parametrize("attend", MEANS)
@pytest.mark.parametrize("shape", [(2, 5, 4), ("batch", 5, 4), ("batch", "tokens", 4)])
def test_a_step_behind_goes_into_the_values(attend, shape):
    model = network(attend, *shape)
    folded = bnfold.fold(model, verify=False)
    assert (folded.report.removed, folded.report.kept) == (1, 0)
    assert "BatchNormalization" not in ops(folded.model)
    assert_same(model, folded.model, (2, 5, 4))
    if shape[0] == "batch":
        assert_same(model, folded.model, (3, 5, 4))
    if shape[1] == "tokens":
        assert_same(model, folded.model, (1, 8, 4))


@pytest.mark.parametrize("attend", OTHERS)
@pytest.mark.parametrize("shape", [(2, 5, 4), ("batch", "tokens", 4)])
def test_a_step_behind_stays(attend, shape):
    model = network(attend, *shape)
    folded = bnfold.fold(model, verify=False)
    assert folded.report.removed == 0
    assert_same(model, folded.model, (2, 5, 4))


@pytest.mark.parametrize(("axis", "removed"), [(1, 0), (2, 1), (-1, 1)])
def test_an_old_softmax_sums_over_all_axes_from_its_own_on(axis, removed):
    def attend(s: Sketch, q: str, k: str, v: str) -> str:
        return s.node("MatMul", s.node("Softmax", scores(s, q, k), axis=axis), v)

    model = network(attend, 2, 5, 4, opset=11)
    folded = bnfold.fold(model, verify=False)
    assert folded.report.removed == removed
    assert_same(model, folded.model, (2, 5, 4))


def test_heads_that_share_an_axis_with_the_channels():
    s = Sketch("batch", 6, 4)
    parts = [s.node("MatMul", "x", s.weight(f"{name}_w", 4, 6)) for name in "qkv"]
    parts[2] = s.node("Add", parts[2], s.weight("v_b", 6))
    heads = s.constant("heads", np.array([0, 6, 2, 3]))
    q, k, v = (s.node("Transpose", s.node("Reshape", p, heads), perm=[0, 2, 1, 3]) for p in parts)
    weights = s.node("Softmax", s.node("MatMul", q, s.node("Transpose", k, perm=[0, 1, 3, 2])))
    mean = s.node("Transpose", s.node("MatMul", weights, v), perm=[0, 2, 1, 3])
    s.node(
        "Transpose",
        s.node("Reshape", mean, s.constant("flat", np.array([0, 6, 6]))),
        perm=[0, 2, 1],
    )
    s.bn(6)
    s.node("Sigmoid")
    model = s.model()
    folded = bnfold.fold(model, verify=False)
    assert (folded.report.removed, folded.report.kept) == (1, 0)
    assert_same(model, folded.model, (3, 6, 4))
