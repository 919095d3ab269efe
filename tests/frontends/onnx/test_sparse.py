"""Sparse initializers are neither looked at nor edited, and the reason says so."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

import bnfold
from bnfold.core.reasons import Reason
from tests.frontends.onnx.support import Sketch, assert_same, ops


def with_sparse(sketch: Sketch, name: str) -> ModelProto:
    """The model with one of its initializers stored sparsely."""
    model = sketch.model()
    dense = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(dense)
    model.graph.initializer.remove(dense)
    sparse = model.graph.sparse_initializer.add()
    places = np.flatnonzero(array)
    sparse.values.CopyFrom(numpy_helper.from_array(array.reshape(-1)[places], name))
    sparse.indices.CopyFrom(numpy_helper.from_array(places))
    sparse.dims.extend(array.shape)
    return model


@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
def test_a_sparse_weight_is_what_keeps_a_batch_norm(op):
    s = Sketch(1, 4, 6, 6) if op == "Conv" else Sketch(2, 4)
    s.node(op, "x", s.weight("w", *((4, 4, 3, 3) if op == "Conv" else (4, 4))), name="op")
    s.bn(4)
    model = with_sparse(s, "w")
    folded, report = bnfold.fold(model)
    (item,) = report.items
    assert (item.reason, item.blocker) == (Reason.FIXED_WEIGHT, "op")
    assert ops(folded) == ops(model)


def test_sparse_parameters_of_a_batch_norm():
    s = Sketch(1, 4, 6, 6)
    s.conv(4, 4)
    s.bn(4)
    folded, report = bnfold.fold(with_sparse(s, "bn_g"))
    (item,) = report.items
    assert "sparse" in item.sentence
    assert ops(folded) == ["Conv", "BatchNormalization"]


def test_what_follows_a_sparse_weight_folds():
    s = Sketch(1, 4, 6, 6)
    s.conv(4, 4, name="first")
    s.node("Relu")
    s.conv(4, 4, name="second")
    s.bn(4)
    model = with_sparse(s, "first_w")
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    assert ops(folded) == ["Conv", "Relu", "Conv"]
    assert_same(model, folded, (1, 4, 6, 6))


def test_sparse_parameters_in_a_constant_node():
    s = Sketch(1, 4, 6, 6)
    s.conv(4, 4)
    s.bn(4)
    model = with_sparse(s, "bn_g")
    constant = helper.make_node(
        "Constant", [], ["bn_g"], sparse_value=model.graph.sparse_initializer[0]
    )
    del model.graph.sparse_initializer[:]
    model.graph.node.insert(0, constant)
    folded, report = bnfold.fold(model)
    (item,) = report.items
    assert "sparse" in item.sentence
    assert folded == model


@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
def test_a_sparse_weight_in_a_constant_node(op):
    s = Sketch(1, 4, 6, 6) if op == "Conv" else Sketch(2, 4)
    s.node(op, "x", s.weight("w", *((4, 4, 3, 3) if op == "Conv" else (4, 4))), name="op")
    s.bn(4)
    model = with_sparse(s, "w")
    constant = helper.make_node(
        "Constant", [], ["w"], sparse_value=model.graph.sparse_initializer[0]
    )
    del model.graph.sparse_initializer[:]
    model.graph.node.insert(0, constant)
    folded, report = bnfold.fold(model)
    (item,) = report.items
    assert (item.reason, item.blocker) == (Reason.FIXED_WEIGHT, "op")
    assert folded == model
