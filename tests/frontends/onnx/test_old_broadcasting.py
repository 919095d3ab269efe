"""Before opset 7 the second operand is spread out on request, from an axis that the node names.

y = Mul(x, c, broadcast=1, axis=1)        c: (C,), along the channels of x: (N, C, H, W)
"""

from __future__ import annotations

import numpy as np
import pytest

import bnfold
from bnfold.core.reasons import Reason
from tests.conformance.onnx_sketch import Sketch
from tests.frontends.onnx.merging import ops

X = (2, 4, 4, 4)
PER_CHANNEL = {"broadcast": 1, "axis": 1}


def along_the_width(s, x):
    return s.node("Relu", s.node("Mul", x, s.tensor("m", s.gammas(4)), name="step", broadcast=1))


def the_activation_comes_second(s, x):
    ones = s.tensor("m", s.uniform(*X))
    return s.node("Relu", s.node("Div", ones, x, name="step"))


@pytest.mark.parametrize("draw", [along_the_width, the_activation_comes_second])
def test_what_does_not_lie_along_the_channels_stays(draw):
    model = drawn(draw)
    made, report = bnfold.fold(model)
    assert report.removed == 0
    assert ops(made) == ops(model)


def test_activations_that_are_spread_out_are_followed_by_nobody():
    s = Sketch(np.float32, opset=6)
    x = s.input(*X)
    y = s.input(4, name="y")
    made = s.node("Add", s.conv(x, 4, 4, kernel=1), y, name="sum", **PER_CHANNEL)
    s.output(s.bn(made, 4, is_test=1))
    _, report = bnfold.fold(s.model())
    (item,) = report.items
    assert item.reason in (Reason.NONLINEAR, Reason.GRAPH_OUTPUT)


def mul_and_add(s, x):
    x = s.node("Mul", x, s.tensor("m", s.gammas(4)), **PER_CHANNEL)
    return s.node("Relu", s.node("Add", x, s.tensor("a", s.uniform(4)), **PER_CHANNEL))


def constants_with_axes_of_one(s, x):
    """DenseNet of the model zoo: behind a BatchNormalization, (C, 1, 1)."""
    x = s.bn(x, 4, is_test=1)
    x = s.node("Mul", x, s.tensor("m", s.gammas(4).reshape(4, 1, 1)), broadcast=1)
    return s.node("Add", x, s.tensor("a", s.uniform(4, 1, 1)), broadcast=1)


def an_axis_from_the_back(s, x):
    x = s.node("Div", x, s.tensor("m", s.gammas(4)), broadcast=1, axis=-3)
    return s.node("Sub", x, s.tensor("a", s.uniform(4)), **PER_CHANNEL)


def a_single_number(s, x):
    x = s.node("Mul", x, s.tensor("m", s.round(-0.5)), broadcast=1)
    return s.bn(x, 4, is_test=1)


def a_residual_sum(s, x):
    y = s.bn(s.conv(x, 4, 4, pad=1, name="second"), 4, name="inner", is_test=1)
    return s.bn(s.node("Add", x, y), 4, is_test=1)


def a_gate_and_what_follows(s, x):
    gate = s.node("Sigmoid", s.conv(x, 4, 4, kernel=1, name="gate"))
    x = s.node("Mul", s.node("Mul", x, gate), s.tensor("m", s.gammas(4)), **PER_CHANNEL)
    return s.conv(x, 4, 2, name="last")


def a_dead_channel_behind_slopes_per_channel(s, x):
    gamma = s.gammas(4, positive=True)
    gamma[1] = 0
    x = s.bn(s.node("Sigmoid", x), 4, gamma=gamma, mean=[0] * 4, beta=[0, -2, 0, 0], is_test=1)
    return s.conv(s.node("PRelu", x, s.tensor("slope", s.uniform(4))), 4, 3, name="last")


@pytest.mark.parametrize("merge", ["auto", "never"])
@pytest.mark.parametrize(
    "draw",
    [
        mul_and_add,
        constants_with_axes_of_one,
        an_axis_from_the_back,
        a_single_number,
        a_residual_sum,
        a_gate_and_what_follows,
        a_dead_channel_behind_slopes_per_channel,
    ],
)
def test_all_go(draw, merge):
    model = drawn(draw)
    made, report = bnfold.fold(model, merge=merge, verify=False)
    assert report.kept == 0
    assert not {"BatchNormalization", "Div", "Sub"} & {*ops(made)}
    assert bnfold.verify(model, made).equal


def drawn(draw):
    s = Sketch(np.float32, opset=6)
    s.output(draw(s, s.conv(s.input(*X), 4, 4, kernel=1, name="first")))
    return s.model()
