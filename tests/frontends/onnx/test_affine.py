"""Arithmetic with constants: what stays, and what takes in the step in front of it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import bnfold
from tests.frontends.onnx.support import Sketch, assert_same, ops

FACTORS = np.array([1.5, -0.4, 0.0]).reshape(3, 1, 1)
"""Per channel; nothing is left of the last one."""


def folded(s: Sketch, *shape: int):
    """The model and its report; the fold is exact."""
    model = s.model()
    made, report = bnfold.fold(model)
    assert_same(model, made, shape)
    return made, {item.name: item for item in report.items}


def test_a_product_of_the_input_in_front_of_a_sigmoid_stays():
    s = Sketch(2, 3, 4, 4)
    s.node("Mul", s.at, s.constant("factors", FACTORS), name="mul")
    s.node("Sigmoid")
    made, items = folded(s, 2, 3, 4, 4)
    assert not items["mul"].is_removed
    assert ops(made) == ["Mul", "Sigmoid"]


def test_of_two_products_between_an_input_and_an_output_one_stays():
    s = Sketch(2, 3, 4, 4)
    s.node("Mul", s.at, s.constant("some", FACTORS + 0.3), name="first")
    s.node("Mul", s.at, s.constant("others", [[[2.0]], [[-0.7]], [[0.3]]]), name="second")
    made, items = folded(s, 2, 3, 4, 4)
    assert items["first"].is_removed and not items["second"].is_removed
    assert ops(made) == ["Mul"]


def test_a_factor_that_meets_two_channels_takes_in_neither():
    s = Sketch(2, 3, 4, 4)
    x = s.at
    y = s.node("Mul", x, s.constant("some", FACTORS + 0.3), name="some_rows")
    s.node("Concat", y, x, axis=2)
    s.node("Mul", s.at, s.constant("factors", FACTORS), name="all_rows")
    s.node("Sigmoid")
    made, items = folded(s, 2, 3, 4, 4)
    assert not any(item.is_removed for item in items.values())
    assert ops(made) == ["Mul", "Concat", "Mul", "Sigmoid"]


@pytest.mark.parametrize("before", ["", "Relu", "Sigmoid"])
def test_a_batch_norm_takes_in_a_product_of_what_nothing_can_rescale(before):
    s = Sketch(2, 3, 4, 4)
    if before:
        s.node(before)
    s.node("Mul", s.at, s.constant("factors", FACTORS), name="mul")
    s.bn(3)
    made, items = folded(s, 2, 3, 4, 4)
    assert items["mul"].is_removed and not items["bn"].is_removed
    assert ops(made) == [*([before] if before else []), "BatchNormalization"]


@pytest.mark.parametrize(
    ("mean", "half"), [(100.0, False), (5.0, True), (100.0, True), (1e5, False)]
)
def test_a_mean_of_the_input_stays_where_the_reader_has_too_few_digits(mean, half):
    s = Sketch(2, 3, 4, 4)
    names = [
        s.constant(f"bn_{k}", np.full(3, v))
        for k, v in zip("gbmv", (1.0, 0.0, mean, 1.0), strict=True)
    ]
    s.node("BatchNormalization", s.at, *names, name="bn")
    if half:
        s.node("Cast", to=TensorProto.FLOAT16)
        s.node("Cast", to=TensorProto.FLOAT)
    s.conv(3, 4, 1)
    _, report = bnfold.fold(s.model(), verify=False)
    stays = mean > (16.0 if half else 1024.0)
    assert [str(item.reason) for item in report.items if not item.is_removed] == [
        "scale-range"
    ] * stays


@pytest.mark.parametrize("ir_version", [3, 4])
@pytest.mark.parametrize("are_inputs", [False, True])
def test_initializers_before_ir_4(ir_version, are_inputs):
    """They have to be inputs there; runtimes load them without that, too."""
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    s.bn(4)
    s.node("Relu")
    model = s.model(opset=8, ir_version=ir_version)
    if are_inputs:
        model.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims)
            for t in model.graph.initializer
        )
    made = bnfold.fold(model).model
    kept = are_inputs and ir_version >= 4  # a caller may override them
    assert ("BatchNormalization" in ops(made)) == kept
