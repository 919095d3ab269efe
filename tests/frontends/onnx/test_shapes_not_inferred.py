"""Operators of which shape inference says nothing, though they make what is like their input."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import bnfold
from tests.conformance.onnx_sketch import Sketch
from tests.frontends.onnx.merging import ops

X = (2, 4, 6, 6)


def drawn(draw, opset, shape=X):
    s = Sketch(np.float32, opset=opset, ir=10)
    s.output(draw(s, s.input(*shape)), shape=[])
    s.outputs[0].type.tensor_type.ClearField("shape")
    return helper.make_model(
        helper.make_graph(s.nodes, "sketch", s.inputs, s.outputs, s.initializers),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=s.ir,
    )


def group_norm(s, x, name="norm"):
    channels = 2 if s.opset < 21 else 4  # before, scales are per group
    scale, bias = (s.tensor(f"{name}_{n}", s.uniform(channels)) for n in "sb")
    return s.node("GroupNormalization", x, scale, bias, name=name, num_groups=2)


def behind_a_group_norm(s, x):
    return s.conv(s.bn(group_norm(s, x), 4), 4, 3)


def behind_two(s, x):
    y = s.node("MeanVarianceNormalization", x, name="one")
    y = s.node("MeanVarianceNormalization", s.bn(y, 4, name="inner"), name="other")
    return s.conv(s.bn(y, 4), 4, 3)


def an_activation_between(s, x):
    y = s.node("Relu", group_norm(s, x))
    return s.conv(s.bn(y, 4), 4, 3)


def behind_mean_and_variance(s, x):
    y = s.node("MeanVarianceNormalization", x)
    return s.conv(s.bn(y, 4), 4, 3)


FORMS = [behind_a_group_norm, an_activation_between, behind_mean_and_variance]


@pytest.mark.parametrize("shape", [X, ("N", 4, "H", "W")])
@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("draw", FORMS)
def test_a_batch_norm_behind_goes(draw, opset, shape):
    model = drawn(draw, opset, shape)
    made, report = bnfold.fold(model, {"x": X} if shape is not X else None)
    assert (report.removed, report.kept) == (1, 0)
    assert "BatchNormalization" not in ops(made)


def test_one_between_two_stays_and_the_reason_names_no_shape():
    _, report = bnfold.fold(drawn(behind_two, 21))
    inner, last = report.items
    assert last.is_removed
    assert inner.blocker == "other"


def test_with_mean_and_variance_too_nothing_is_taken_for_known():
    """Of old a second output says that it normalises with the statistics of the batch."""
    s = Sketch(np.float32, opset=5, ir=4)
    x = s.input(*X)
    y = s.conv(x, 4, 4)
    names = [s.tensor(f"p{n}", s.uniform(4, low=0.5)) for n in range(4)]
    s.node("BatchNormalization", y, *names, name="bn", outputs=["y", "mean", "var"],
           consumed_inputs=[0, 0, 0, 1, 1])  # fmt: skip
    s.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    model = helper.make_model(
        helper.make_graph(s.nodes, "sketch", s.inputs, s.outputs, s.initializers),
        opset_imports=[helper.make_opsetid("", 5)],
        ir_version=4,
    )
    made, report = bnfold.fold(model)
    assert report.removed == 0
    assert made == model


def test_before_there_was_inference_for_activations():
    """Opset 5: of a Relu, an Add and a BatchNormalization nothing is inferred."""

    def draw(s, x):
        y = s.bn(x, 4, is_test=1, consumed_inputs=[0, 0, 0, 1, 1])
        y = s.node("Relu", s.conv(y, 4, 4, kernel=1))
        y = s.node("Add", y, s.node("Sigmoid", y))
        y = s.bn(y, 4, name="second", is_test=1, consumed_inputs=[0, 0, 0, 1, 1])
        return s.conv(y, 4, 3, name="last")

    model = drawn(draw, 5)
    made, report = bnfold.fold(model, verify=False)
    assert (report.removed, report.kept) == (2, 0)
    assert ops(made) == ["Conv", "Relu", "Sigmoid", "Add", "Conv"]


def test_axes_of_what_is_empty_in_most_sizes_are_padded():
    def draw(s, x):
        cut = [s.integers(f"cut{n}", number) for n, number in enumerate((-4, 6, 2))]
        y = s.node("Slice", s.bn(s.conv(x, 4, 4), 4), *cut)
        return s.node("Pad", y, s.integers("pads", 1, 1), "", s.integers("axes", 2))

    _, report = bnfold.fold(drawn(draw, 18, ("N", 4, "H", "W")), verify=False)
    assert len(report.items) == 1
