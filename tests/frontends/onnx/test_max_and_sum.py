"""A Max or Min of an activation and one number is a clip; a ReduceSum is so many times a mean."""

from __future__ import annotations

import numpy as np
import pytest

import bnfold
from bnfold.core.reasons import Reason
from tests.conformance.onnx_run import error, feeds, run, run_exactly
from tests.conformance.onnx_sketch import Sketch
from tests.frontends.onnx.merging import ops

X = (2, 4, 6, 6)


def drawn(draw, dtype=np.float64, shape=X, **options):
    s = Sketch(dtype, **options)
    s.output(draw(s, s.node("Sigmoid", s.input(*shape), name="first")))
    return s.model()


def folded(draw, shape=X, *, sizes=None, clip="always", **options):
    """In float64 and in float32; a second fold changes nothing."""
    for dtype, compute, most in ((np.float32, run, 3e-5), (np.float64, run_exactly, 1e-9)):
        model = drawn(draw, dtype, shape, **options)
        made, report = bnfold.fold(model, clip=clip, verify=False)
        for feed in feeds(model, sizes):
            assert error(compute(model, feed), compute(made, feed)) < most
        assert bnfold.fold(made, clip=clip, verify=False).model == made
    return made, report


def number(s, value, name="bound", shape=()):
    return s.tensor(name, s.round(np.full(shape, value)))


# -------------------------------------------------------------------- Max and Min


def a_bound_that_widens(s, x):
    x = s.node("Mul", s.node("Flatten", x), s.tensor("m", s.gammas(144)), name="step")
    x = s.node("Max", x, number(s, 0.0, shape=(1, 1, 1)))
    return s.node("MatMul", x, s.tensor("w", s.uniform(144, 3)))


def a_bound_per_place(s, x):
    x = s.node("Max", s.bn(x, 4, name="step"), s.tensor("bound", s.uniform(6)))
    return s.conv(x, 4, 3)


def two_activations(s, x):
    x = s.node("Max", s.bn(x, 4, name="step"), s.node("Tanh", x))
    return s.conv(x, 4, 3)


@pytest.mark.parametrize("draw", [a_bound_that_widens, a_bound_per_place, two_activations])
def test_of_more_than_one_number_nothing_is_known(draw):
    _, report = folded(draw)
    (item,) = report.items
    assert item.reason is Reason.NONLINEAR


def test_padding_behind_lets_no_shift_pass():
    def draw(s, x):
        x = s.node("Max", s.bn(x, 4), number(s, 0.0))
        return s.conv(x, 4, 3, pad=1)

    _, report = folded(draw)
    (item,) = report.items
    assert item.reason is Reason.PADDING


def a_max(s, x):
    return s.conv(s.node("Max", s.bn(x, 4), number(s, 0.0)), 4, 3)


def a_max_whose_number_comes_first(s, x):
    return s.conv(s.node("Max", number(s, 0.1, shape=(1,)), s.bn(x, 4)), 4, 3)


def a_min(s, x):
    return s.conv(s.node("Min", s.bn(x, 4), number(s, 0.1, shape=(1, 1, 1, 1))), 4, 3)


def a_relu6_of_two(s, x):
    x = s.node("Max", s.bn(x, 4), number(s, 0.0))
    return s.conv(s.node("Min", x, number(s, 6.0, "six")), 4, 3)


def a_step_behind(s, x):
    x = s.node("Max", s.conv(x, 4, 4, name="front", pad=1), number(s, 0.0))
    return s.conv(s.bn(x, 4), 4, 3, pad=1)


def a_number_of_a_constant_node(s, x):
    bound = s.node("Neg", number(s, 0.2))
    return s.conv(s.node("Max", s.bn(x, 4), bound), 4, 3)


@pytest.mark.parametrize(
    "draw",
    [
        a_max,
        a_max_whose_number_comes_first,
        a_min,
        a_relu6_of_two,
        a_step_behind,
        a_number_of_a_constant_node,
    ],
)
def test_a_batch_norm_beside_a_bound_goes(draw):
    made, report = folded(draw)
    assert report.kept == 0
    assert "BatchNormalization" not in ops(made)
    _, never = folded(draw, clip="never")
    assert never.kept == 1


def test_siblings_with_a_bound_each_are_one():
    def draw(s, x):
        zero = number(s, 0.0)
        a = s.node("Max", zero, s.conv(x, 4, 3, name="a"))
        b = s.node("Max", s.conv(x, 4, 2, name="b"), zero)
        return s.node("Concat", a, b, axis=1)

    made, report = folded(draw)
    assert len(report.merged) == 1
    assert ops(made) == ["Sigmoid", "Conv", "Max"]


# -------------------------------------------------------------------- ReduceSum


def reduced(s, x, *axes, name="sum", **options):
    listed = [s.integers(f"{name}_axes", *axes)] if s.opset >= 13 else []
    given = {} if s.opset >= 13 else {"axes": axes}
    return s.node("ReduceSum", s.bn(x, 4), *listed, name=name, **given, **options)


def over_an_image(s, x):
    return s.conv(reduced(s, x, 2, 3), 4, 3, kernel=1)


def over_an_image_and_no_axes_left(s, x):
    return s.gemm(s.bn(reduced(s, x, -1, -2, keepdims=0), 4, name="behind"), 4, 3)


def over_the_width(s, x):
    return s.conv(reduced(s, x, 3), 4, 3, kernel=1)


def twice(s, x):
    y = reduced(s, x, 2)
    y = s.node("ReduceSum", y, s.integers("more", 3), name="other")
    return s.conv(y, 4, 3, kernel=1)


FORMS = [over_an_image, over_an_image_and_no_axes_left, over_the_width, twice]


@pytest.mark.parametrize("shape", [X, ("N", 4, 6, 6)])
@pytest.mark.parametrize("draw", FORMS)
def test_a_shift_passes_where_the_number_of_elements_is_known(draw, shape):
    _, report = folded(draw, shape, sizes={"N": 3})
    assert report.kept == 0


def test_and_where_axes_are_attributes():
    _, report = folded(over_an_image, opset=11)
    assert report.kept == 0


@pytest.mark.parametrize("draw", [over_an_image, over_the_width])
def test_none_passes_where_it_is_not(draw):
    _, report = folded(draw, (2, 4, "H", "W"), sizes={"H": 3, "W": 5})
    assert report.kept == 1


def test_a_scale_passes_all_the_same():
    def draw(s, x):
        x = s.node("Mul", x, s.channels("c", 4), name="step")
        x = s.node("ReduceSum", x, s.integers("axes", 2, 3))
        return s.conv(x, 4, 3, kernel=1)

    _, report = folded(draw, (2, 4, "H", "W"), sizes={"H": 3, "W": 5})
    assert report.kept == 0


def test_a_mean_inside_of_a_sum_is_no_source_of_a_merge():
    """Two convolutions of a sum are one, and read the sum."""

    def draw(s, x):
        x = s.node("ReduceSum", x, s.integers("axes", 2, 3))
        a, b = (s.conv(x, 4, 4, kernel=1, name=name) for name in "ab")
        return s.node("Add", a, b)

    made, report = folded(draw)
    assert len(report.merged) == 1
    assert ops(made) == ["Sigmoid", "ReduceSum", "Conv"]
