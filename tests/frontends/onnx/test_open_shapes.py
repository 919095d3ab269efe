"""Open dimensions: what is decided must hold for every value of them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import bnfold
from bnfold.errors import UsageError
from tests.frontends.onnx.support import Sketch, assert_same, ops

# -------------------------------------------------------------------- kept


def test_channels_that_move_with_the_batch():
    """(N, 4) -> (2, 2 N): which channel a column holds depends on N."""
    s = Sketch("N", 3)
    s.node("Gemm", s.at, s.weight("w", 3, 4), s.weight("b", 4))
    s.node("Reshape", s.at, s.constant("shape", np.array([2, -1])))
    s.node("Unsqueeze", s.at, s.constant("axis", np.array([0])))
    s.bn(2)
    model = s.model()
    for given in (None, {"x": (2, 3)}):
        folded, report = bnfold.fold(model, given)
        assert report.kept == 1
        for batch in (1, 2, 3, 5):
            assert_same(model, folded, (batch, 3))


def test_a_constant_that_the_size_decides():
    """x * H, spelled by Shape: a number, but another one for every input."""
    s = Sketch(2, 3, "H", 6)
    s.conv(3, 4, 1)
    made = s.at
    shape = s.node("Shape", "x")
    height = s.node("Gather", shape, s.constant("two", np.array(2)), axis=0)
    s.node("Mul", made, s.node("Cast", height, to=TensorProto.FLOAT))
    s.bn(4)
    model = s.model()
    for given in (None, {"x": (2, 3, 8, 6)}):
        folded, report = bnfold.fold(model, given)
        assert not report.notes
        for height in (2, 3, 8, 9):
            assert_same(model, folded, (2, 3, height, 6))


def test_channels_that_the_size_picks():
    """x[:, H // 200 :][:, :2]: the same channels for small images, others for large ones."""
    s = Sketch(1, 3, "H", 4)
    s.conv(3, 8, 1)
    s.bn(8)
    made = s.at
    height = s.node("Gather", s.node("Shape", "x"), s.constant("at", np.array([2])), axis=0)
    start = s.node("Div", height, s.constant("step", np.array([200])))
    end = s.node("Add", start, s.constant("two", np.array([2])))
    s.node("Slice", made, start, end, s.constant("axis", np.array([1])))
    s.bn(2, name="bn2")
    s.node("ReduceMean", axes=[2, 3])
    model = s.model()
    folded, report = bnfold.fold(model)
    assert [item.is_removed for item in report.items] == [True, False]
    for size in (4, 230, 640, 1100):
        assert_same(model, folded, (1, 3, size, 4))


def test_a_rank_that_is_not_known():
    s = Sketch(2, 3, 6, 6)
    s.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    s.bn(3)
    s.node("Sigmoid")
    item = bnfold.inspect(s.model()).items[0]
    assert not item.is_removed
    assert "--input" in item.sentence


@pytest.mark.parametrize(
    ("pins", "text"),
    [
        ({"y": (1, 3, 8, 8)}, "no input 'y'"),
        ({"x": (1, 3, 8)}, "cannot have the shape 1x3x8"),
        ({"x": (1, 4, 8, 8)}, "cannot have the shape 1x4x8x8"),
        ({"x": (0, 3, 8, 8)}, "cannot have the shape 0x3x8x8"),
    ],
)
def test_pins_that_do_not_fit(pins, text):
    s = Sketch("N", 3, "H", "W")
    s.conv(3, 4)
    with pytest.raises(UsageError, match=text):
        bnfold.inspect(s.model(), pins)


# -------------------------------------------------------------------- removed


@pytest.mark.parametrize("shape", [("N", 3, 8, 8), ("N", 3, "H", "W"), (None, None, None, None)])
def test_images_of_any_size(shape):
    s = Sketch(*shape)
    s.conv(3, 4, pads=[1, 1, 1, 1])
    s.bn(4)
    s.node("Relu")
    s.node("Reshape", s.at, s.constant("cut", np.array([0, 2, 2, -1])))
    s.node("Transpose", perm=[0, 2, 1, 3])
    s.node("Reshape", s.at, s.constant("back", np.array([0, 4, -1])))
    s.bn(4, name="bn2")
    s.node("ReduceMean", axes=[2], keepdims=0)
    s.node("Gemm", s.at, s.weight("w", 4, 3))
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.kept == 0
    for size in ((1, 3, 8, 8), (3, 3, 8, 8)):
        assert_same(model, folded, size)


def test_a_target_that_is_computed_from_the_input():
    """x.reshape(x.shape[0], 2, -1), as exporters write it."""
    s = Sketch("N", 3, 6, 6)
    s.conv(3, 4)
    made = s.at
    first = s.node("Gather", s.node("Shape", made), s.constant("zero", np.array(0)), axis=0)
    first = s.node("Unsqueeze", first, s.constant("axes", np.array([0])))
    rest = s.constant("rest", np.array([4, -1]))
    target = s.node("Concat", first, rest, axis=0)
    s.node("Reshape", made, target)
    s.bn(4)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    assert "BatchNormalization" not in ops(folded)
    for batch in (1, 4):
        assert_same(model, folded, (batch, 3, 6, 6))


def test_pins_are_for_the_analysis_alone():
    s = Sketch("N", 3, 6, 6)
    s.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    s.conv(3, 4)
    s.bn(4)
    model = s.model()
    folded, report = bnfold.fold(model, {"x": (1, 3, 6, 6)})
    assert report.removed == 1
    assert folded.graph.input == model.graph.input
    assert_same(model, folded, (5, 3, 6, 6))


def test_a_size_that_is_the_only_one_has_to_be_given():
    """(N, 3, H, 6) with H declared open, and a Squeeze that takes H = 1 only."""
    s = Sketch("N", 3, "H", 6)
    s.conv(3, 4, 1)
    s.node("Squeeze", s.at, s.constant("axis", np.array([2])))
    s.bn(4)
    model = s.model()
    assert bnfold.fold(model).report.removed == 0
    folded, report = bnfold.fold(model, {"x": (2, 3, 1, 6)})
    assert report.removed == 1
    assert "for the given shapes only" in report.notes[0]
    assert_same(model, folded, (2, 3, 1, 6))
