"""Corners of the laws, one per line that nothing else in the tests would miss.

Found by breaking each line of `laws.py` on purpose (`make mutation`). As in `test_laws`, every case
is folded and compared, and says which steps went.
"""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core import labels, laws
from bnfold.core.reasons import Reason
from bnfold.core.weights import Layout
from tests.core.interpreter import Network, Weights, assert_fold_is_exact
from tests.core.test_laws import POSITIVE, A, B, bn, conv, goes, image, random, scale_only, stays


def shift_only(net: Network, x: int, name: str = "bn", *, axis: int = 1) -> int:
    count = net.shape(x)[axis]
    return net.affine(x, np.ones(count), B[count], axis=axis, name=name)


def scaled(net: Network, x: int, scale, name: str = "bn") -> int:
    return net.affine(x, scale, np.zeros(len(scale)), name=name)


def step(net: Network, x: int, scale, shift, *, name: str = "step", **role) -> int:
    """An affine step that must stay."""
    return net.affine(x, scale, shift, name=name, removal=g.Removal.UNASKED, **role)


def numbers(net: Network, x: int, scale: float, shift: float, **role) -> int:
    """One that must stay, with the same two numbers for all channels."""
    four = (1, 1, 1, 1)
    law = g.AffineStep(
        np.full(four, scale), np.full(four, shift), removal=g.Removal.UNASKED, **role
    )
    return net.add(law, [x], [net.shape(x)], name="step")[0]


class TestFixedLinear:
    def test_a_scale_does_not_come_out_of_fixed_rows(self):
        net = Network()
        x = net.embedding(
            [[0, 2]], random(4, 3), name="rows", weight=g.Weight.FIXED, bias_editable=False
        )
        x = net.affine(x, A[3], np.zeros(3), axis=2)
        stays(net, x, reason=Reason.FIXED_WEIGHT, blocker="rows")

    def test_a_scale_comes_out_of_free_rows(self):
        net = Network()
        x = net.embedding([[0, 2]], random(4, 3), bias_editable=False)
        plan = goes(net, net.sigmoid(net.affine(x, A[3], np.zeros(3), axis=2)))
        assert plan.linear[0].input_inverse.shape == (0,)

    def test_only_signs_come_out_of_binary_weights(self):
        net = Network()
        x = conv(net, net.input(2, 2, 5, 5), name="binary", weight=g.Weight.SIGNS)
        stays(net, scaled(net, x, [1, -2, 1]), reason=Reason.FIXED_WEIGHT, blocker="binary")

    def test_signs_come_out_of_binary_weights(self):
        net = Network()
        x = conv(net, net.input(2, 2, 5, 5), weight=g.Weight.SIGNS)
        goes(net, net.sigmoid(scaled(net, x, [1, -1, 1])))

    def test_signs_do_not_come_out_of_fixed_weights(self):
        net = Network()
        x = conv(net, net.input(2, 2, 5, 5), weight=g.Weight.FIXED)
        stays(net, scaled(net, x, [1, -1, 1]), reason=Reason.FIXED_WEIGHT)

    @pytest.mark.parametrize(("ins", "outs"), [(4, 2), (2, 4)])
    def test_one_scale_per_group_passes_fixed_weights(self, ins, outs):
        net = Network()
        x = scaled(net, net.input(2, ins, 5, 5), np.repeat([1.5, -0.6], ins // 2))
        x = conv(net, x, outs, groups=2, weight=g.Weight.FIXED, name="fixed")
        goes(net, conv(net, x))

    def test_two_scales_in_a_group_do_not(self):
        net = Network()
        x = scaled(net, net.input(2, 4, 5, 5), [1.5, 0.7, -0.6, -0.6])
        x = conv(net, x, 2, groups=2, weight=g.Weight.FIXED, name="fixed")
        stays(net, conv(net, x), reason=Reason.FIXED_WEIGHT, blocker="fixed")

    def test_a_bias_of_zero_takes_any_scale(self):
        net = Network()
        x = net.conv(
            net.input(2, 2, 5, 5), random(3, 2, 1, 1), [0.0, 1.0, 0.7], bias_editable=False
        )
        goes(net, net.sigmoid(scaled(net, x, [2.0, 1.0, 1.0])))

    @pytest.mark.parametrize("before", [True, False])
    def test_a_shift_needs_a_bias(self, before):
        net = Network()
        x = net.input(2, 3, 5, 5)
        x = shift_only(net, x) if before else x
        x = net.conv(x, random(3, 3, 1, 1), name="fixed", bias_editable=False)
        x = x if before else shift_only(net, x)
        stays(net, x, reason=Reason.FIXED_WEIGHT, blocker="fixed")

    def test_a_shift_passes_a_fixed_depthwise_that_multiplies_channels(self):
        net = Network()
        kernel = random(4, 1, 2, 2)
        x = net.conv(
            shift_only(net, net.input(2, 2, 5, 5)),
            kernel,
            groups=2,
            weight=g.Weight.FIXED,
            bias_editable=False,
            depthwise_sum=kernel.reshape(4, -1).sum(axis=1),
        )
        goes(net, conv(net, x))


class TestLinear:
    def test_channels_may_change_their_axis(self):
        """(N, C, L) to (N, L, O)"""
        net = Network()
        w = random(5, 3)

        def run(value, matrix):
            return np.swapaxes(value, 1, 2) @ matrix.T

        x = bn(net, net.input(2, 3, 4))
        weights = Weights(w, None, Layout.OUT_IN, 1, run)
        x = net.linear(x, g.Linear(3, 5, 1, 2), weights, (2, 4, 5), "linear")
        goes(net, net.sigmoid(net.affine(x, np.arange(1.0, 6), np.arange(5.0), axis=2, name="two")))

    def test_no_output_channels(self):
        net = Network()
        x = net.conv(bn(net, net.input(2, 3, 4, 4)), np.zeros((0, 3, 1, 1)))
        assert_fold_is_exact(net.output(x, net.sigmoid(bn(net, image(net), "two"))))


class TestFixedStep:
    """Steps that stay and have no room for other constants."""

    FIXED = {"factors": g.Parameter.FIXED, "summands": g.Parameter.FIXED}

    def test_a_scale_does_not_pass_a_summand(self):
        net = Network()
        x = scaled(net, net.input(2, 3, 4, 4), [2, 1, 1])
        x = step(net, x, [1] * 3, [0.5, 0, 0], **self.FIXED)
        stays(net, conv(net, x), reason=Reason.FIXED_WEIGHT, blocker="step")

    def test_a_scale_passes_where_nothing_is_added(self):
        net = Network()
        x = scaled(net, net.input(2, 3, 4, 4), [2, 1, 1])
        goes(net, conv(net, step(net, x, [1] * 3, [0, 0.5, 1.0], **self.FIXED)))

    def test_a_scale_does_not_pass_a_summand_that_may_be_another(self):
        net = Network()
        x = scale_only(net, net.input(2, 3, 4, 4))
        x = step(net, x, [1] * 3, [0] * 3, **{**self.FIXED, "summands": g.Parameter.UNKNOWN})
        stays(net, conv(net, x), reason=Reason.FIXED_WEIGHT, blocker="step")

    def test_a_shift_does_not_pass_a_factor_that_may_be_another(self):
        net = Network()
        x = shift_only(net, net.input(2, 3, 4, 4))
        x = step(net, x, [1, 2, 0], [0] * 3, **{**self.FIXED, "factors": g.Parameter.UNKNOWN})
        stays(net, conv(net, x), reason=Reason.FIXED_WEIGHT, blocker="step")

    def test_a_scale_passes_a_factor_that_may_be_another(self):
        net = Network()
        x = scale_only(net, net.input(2, 3, 4, 4))
        goes(
            net,
            conv(
                net,
                step(net, x, [1, 2, 0], [0] * 3, **{**self.FIXED, "factors": g.Parameter.UNKNOWN}),
            ),
        )

    @pytest.mark.parametrize("scale", [[1, 2, 1], [2, -3, 0.5], [1, 1, 1]])
    def test_a_shift_passes_known_factors(self, scale):
        net = Network()
        x = shift_only(net, net.input(2, 3, 4, 4))
        goes(net, conv(net, step(net, x, scale, [0.5, 0, -1], **self.FIXED)))

    def test_it_may_go_itself(self):
        net = Network()
        x = net.affine(net.input(2, 3, 4, 4), [1] * 3, B[3], **self.FIXED)
        goes(net, conv(net, x))

    def test_a_scale_goes_into_factors_alone(self):
        net = Network()
        x = scale_only(net, net.input(2, 3, 4, 4))
        goes(net, net.sigmoid(step(net, x, [1] * 3, B[3], summands=g.Parameter.FIXED)))

    def test_a_shift_goes_into_summands_alone(self):
        net = Network()
        x = shift_only(net, net.input(2, 3, 4, 4))
        goes(net, net.sigmoid(step(net, x, [1] * 3, B[3], factors=g.Parameter.FIXED)))

    def test_a_constant_channel_has_any_scale(self):
        net = Network()
        x = step(net, net.input(2, 3, 4, 4), [0, 2, 1], B[3], factors=g.Parameter.FIXED)
        goes(net, net.sigmoid(scaled(net, x, [3, 1, 1])))

    def test_it_may_have_more_axes_than_its_input(self):
        net = Network()
        x = shift_only(net, net.input(3), axis=0)
        ones, shift = np.ones((4, 1)), random(4, 1)
        law = g.AffineStep(ones, shift, removal=g.Removal.UNASKED, **self.FIXED)
        (x,) = net.add(law, [x], [(4, 3)])
        goes(net, net.matrix(x, random(2, 3)))

    def test_its_channels_are_told_from_the_axis_it_adds(self):
        net = Network()
        x = shift_only(net, net.input(3), axis=0)
        law = g.AffineStep(np.ones((4, 1)), random(4, 1), removal=g.Removal.UNASKED, **self.FIXED)
        (x,) = net.add(law, [x], [(4, 3)])
        x = net.reduce(x, g.Mean, (0,), keeps_rank=True)
        goes(net, net.matrix(x, random(2, 3)))

    def test_constants_of_more_axes_than_the_input(self):
        net = Network()
        x = bn(net, net.input(3), axis=0)
        law = g.AffineStep(random(2, 3), random(2, 3), removal=g.Removal.UNASKED)
        (x,) = net.add(law, [x], [(2, 3)])
        goes(net, net.matrix(x, random(2, 3)))

    def test_constants_of_fewer_axes_than_the_input(self):
        net = Network()
        law = g.AffineStep(np.array(A[3]).reshape(3, 1, 1), np.array(B[3]).reshape(3, 1, 1))
        (x,) = net.add(law, [net.input(2, 3, 4, 4)], [(2, 3, 4, 4)])
        goes(net, conv(net, x))


class TestSharedConstants:
    """One number for all channels, or for all calls."""

    PRODUCT, SUM = {"summands": g.Parameter.FIXED}, {"factors": g.Parameter.FIXED}

    @pytest.mark.parametrize("before", [scale_only, shift_only])
    def test_one_pair_of_numbers_does_not_take_in_three(self, before):
        net = Network()
        x = numbers(net, before(net, net.input(2, 3, 4, 4)), 2.0, 0.5)
        stays(net, net.sigmoid(x), reason=Reason.FIXED_WEIGHT, blocker="step")

    def test_one_factor_does_not_take_in_three(self):
        net = Network()
        x = numbers(net, scale_only(net, net.input(2, 3, 4, 4)), 2.0, 0.0, **self.PRODUCT)
        stays(net, net.sigmoid(x), reason=Reason.NONLINEAR)

    def test_one_summand_does_not_take_in_three(self):
        net = Network()
        x = numbers(net, shift_only(net, net.input(2, 3, 4, 4)), 1.0, 0.5, **self.SUM)
        stays(net, net.sigmoid(x), reason=Reason.NONLINEAR)

    def test_one_summand_lets_no_scale_pass(self):
        net = Network()
        x = numbers(net, scale_only(net, net.input(2, 3, 4, 4)), 1.0, 0.5, **self.SUM)
        stays(net, conv(net, x), reason=Reason.FIXED_WEIGHT, blocker="step")

    @pytest.mark.parametrize("before", [bn, scale_only, shift_only])
    def test_one_factor_lets_three_pass(self, before):
        net = Network()
        x = numbers(net, before(net, net.input(2, 3, 4, 4)), -2.0, 0.0, **self.PRODUCT)
        goes(net, conv(net, x))

    def test_one_summand_lets_three_shifts_pass(self):
        net = Network()
        x = numbers(net, shift_only(net, net.input(2, 3, 4, 4)), 1.0, 0.5, **self.SUM)
        goes(net, conv(net, x))

    def test_factors_of_one_channel_each_take_in_three(self):
        net = Network()
        x = step(net, scale_only(net, net.input(2, 3, 4, 4)), [2, 3, -1], [0] * 3, **self.PRODUCT)
        goes(net, net.sigmoid(x))

    def test_summands_of_one_channel_each_take_in_three(self):
        net = Network()
        x = step(net, shift_only(net, net.input(2, 3, 4, 4)), [1] * 3, [2, 3, -1], **self.SUM)
        goes(net, net.sigmoid(x))

    def test_one_number_takes_in_one(self):
        net = Network()
        x = net.affine(net.input(2, 3, 4, 4), [-0.7] * 3, [0.4] * 3)
        goes(net, net.sigmoid(numbers(net, x, 2.0, 0.5)))

    def test_one_number_does_not_make_three(self):
        net = Network()
        x = numbers(net, net.input(2, 3, 4, 4), 2.0, 0.5)
        assert not assert_fold_is_exact(net.output(bn(net, x))).removed

    def test_one_number_does_not_make_three_of_three(self):
        net = Network()
        x = numbers(net, image(net), 2.0, 0.5)
        assert not assert_fold_is_exact(net.output(bn(net, x))).removed

    def test_one_number_that_is_fixed_lets_three_scales_pass(self):
        net = Network()
        x = scale_only(net, net.input(2, 3, 4, 4))
        goes(net, conv(net, numbers(net, x, 2.0, 0.0, **TestFixedStep.FIXED)))

    @pytest.mark.parametrize("before", [True, False])
    @pytest.mark.parametrize("at", [0, 1, 2])
    def test_what_one_of_three_calls_needs_does_not_go(self, before, at):
        net = Network()
        outputs = []
        for call in range(3):
            x = net.input(2, 3, 4, 4)
            x = bn(net, x) if before and call == at else x
            x = step(net, x, [2, 3, -1], B[3], name=f"call{call}", tie="one")
            x = bn(net, x) if not before and call == at else x
            outputs.append(x)
        plan = assert_fold_is_exact(net.output(*outputs))
        assert not plan.removed
        if before:
            (obstacle,) = plan.kept.values()
            assert obstacle.reason is Reason.SHARED
            assert obstacle.blocker in {"call0", "call1", "call2"}

    @pytest.mark.parametrize("before", [True, False])
    def test_what_all_calls_need_goes(self, before):
        net = Network()
        outputs = []
        for call in range(3):
            x = net.input(2, 3, 4, 4)
            x = bn(net, x, f"bn{call}") if before else x
            x = step(net, x, [2, 3, -1], B[3], name=f"call{call}", tie="one")
            outputs.append(net.sigmoid(x if before else bn(net, x, f"bn{call}")))
        assert_fold_is_exact(net.output(*outputs))


class TestOpaque:
    def test_a_step_that_is_not_constant(self):
        net = Network()
        x = scale_only(net, net.input(2, 3, 4, 4))
        x = net.refused(x, Reason.BATCH_STATISTICS, name="batch")
        plan = assert_fold_is_exact(net.output(conv(net, x)))
        assert not plan.removed
        assert {(o.reason, o.blocker) for o in plan.kept.values()} == {
            (Reason.NONLINEAR, "batch"),
            (Reason.BATCH_STATISTICS, None),
        }

    def test_more_outputs_than_inputs_and_of_another_rank(self):
        net = Network()
        x = scale_only(net, net.input(2, 3, 4, 4))

        def function(values):
            top = np.tanh(values[0])
            return [top.mean(axis=(2, 3)), top]

        y, z = net.add(g.Opaque(), [x], [(2, 3), (2, 3, 4, 4)], name="two", function=function)
        y, z = net.matrix(y, random(2, 3)), conv(net, z)
        stays(net, y, z, reason=Reason.NONLINEAR, blocker="two")

    def test_too_many_combinations_of_a_step_are_not_followed(self, monkeypatch):
        monkeypatch.setattr(labels, "MAX_PAIRS", 3)
        net = Network()
        law = g.AffineStep(random(1, 3, 4, 1), random(1, 3, 4, 1), removal=g.Removal.UNASKED)
        x = scaled(net, net.input(2, 3, 4, 4), A[3], "before")
        (x,) = net.add(law, [x], [(2, 3, 4, 4)], name="step")
        plan = assert_fold_is_exact(net.output(conv(net, x)))
        assert {(o.reason, o.blocker) for o in plan.kept.values()} == {(Reason.NONLINEAR, "step")}

    def test_too_many_combinations_of_a_sum_are_not_followed(self, monkeypatch):
        net = Network()
        x = bn(net, net.input(2, 2, 4, 4), "bn")
        y = net.sum(net.concat(x, net.input(2, 1, 4, 4)), image_like(net), name="sum")
        net.output(conv(net, y))
        monkeypatch.setattr(labels, "MAX_PAIRS", 2)
        plan = assert_fold_is_exact(net)
        assert {(o.reason, o.blocker) for o in plan.kept.values()} == {(Reason.NONLINEAR, "sum")}


def image_like(net: Network) -> int:
    return conv(net, net.input(2, 2, 4, 4), 3, name="other")


class TestClip:
    def test_a_positive_scale_passes_a_minimum_with_zero(self):
        net = Network()
        x = scale_only(net, net.input(2, 3, 4, 4), positive=True)
        goes(net, conv(net, net.clip(x, -np.inf, 0.0, room=False)))

    def test_a_clip_without_bounds_asks_for_nothing(self):
        net = Network()
        x = bn(net, net.input(2, 3, 4, 4))
        goes(net, conv(net, net.clip(x, -np.inf, np.inf, room=False)))


class TestReduction:
    @pytest.mark.parametrize("kind", [g.Max, g.Mean])
    def test_axes_in_front_of_the_channels(self, kind):
        """(N, H, W, C) to (N, C)"""
        net = Network()
        x = net.affine(net.input(2, 4, 5, 3), POSITIVE[3], B[3], axis=3)
        goes(net, net.matrix(net.reduce(x, kind, (1, 2)), random(2, 3)))

    def test_two_outputs_of_a_maximum(self):
        net = Network()
        x = net.affine(net.input(2, 3, 4, 5), POSITIVE[3], B[3])

        def function(values):
            top = values[0].max(axis=(2, 3))
            return [top, top]

        y, z = net.add(g.Max((2, 3), False), [x], [(2, 3), (2, 3)], function=function)
        goes(net, net.matrix(y, random(2, 3)), net.matrix(z, random(4, 3)))


class TestSum:
    def test_a_part_that_is_pinned_does_not_pin_the_rest(self):
        net = Network()
        parts = [net.concat(image(net, 2), net.input(2, 1, 5, 5)) for _ in range(2)]
        x = net.affine(net.sum(*parts), [1.5, -0.6, 1.0], [0.3, -1.1, 0.0])
        goes(net, net.sigmoid(x))

    def test_every_operand_of_four_brings_its_shift(self):
        net = Network()
        terms = [
            net.affine(net.input(2, 3, 4, 4), [1] * 3, [0.3 * k, -1.1, k], name=f"bn{k}")
            for k in range(1, 5)
        ]
        goes(net, conv(net, net.sum(*terms, coefficients=(1, -2, 0.5, 3))))

    @pytest.mark.parametrize("first", [True, False])
    def test_operands_of_fewer_axes(self, first):
        net = Network()
        x = bn(net, net.input(3, 1, 1), axis=0)
        y = image(net)
        goes(net, conv(net, net.sum(x, y) if first else net.sum(y, x)))

    def test_numbers_alone(self):
        net = Network()
        y = net.sum(net.input(3, 1, 1), net.sigmoid(net.input(2, 3, 4, 4)))
        y = net.pad(y, (0, 0, 0, 1), (0, 0, 0, 0))
        goes(net, conv(net, bn(net, y)))


class TestGate:
    @pytest.mark.parametrize("first", [True, False])
    def test_the_value_may_be_the_smaller_one(self, first):
        net = Network()
        x = scale_only(net, net.input(2, 3, 1, 1))
        gate = net.sigmoid(net.input(2, 3, 5, 5))
        goes(net, conv(net, net.gate(x, gate) if first else net.gate(gate, x)))

    @pytest.mark.parametrize("first", [True, False])
    def test_the_value_may_have_fewer_axes(self, first):
        net = Network()
        x = net.affine(net.input(3, 1, 1), A[3], [0] * 3, axis=0)
        gate = net.sigmoid(net.input(2, 3, 5, 5))
        goes(net, conv(net, net.gate(x, gate) if first else net.gate(gate, x)))

    def test_of_two_alike_the_first_is_the_value(self):
        net = Network()
        x = scale_only(net, net.input(2, 3, 5, 5))
        goes(net, conv(net, net.gate(x, image(net))))

    def test_a_gate_that_is_pinned_in_part(self):
        net = Network()
        gate = net.concat(image(net, 1), net.sigmoid(net.input(2, 2, 5, 5)))
        x = scale_only(net, net.input(2, 3, 1, 1))
        y = net.gate(gate, x, name="gate")
        stays(net, conv(net, y), reason=Reason.NONLINEAR, blocker="gate")


class TestPad:
    @pytest.mark.parametrize(
        "sides",
        [((0, 0, 0, 0), (0, 0, 0, 2)), ((0, 0, 1, 0), (0, 0, 0, 0)), ((0,) * 4, (0, 0, 0, 1))],
    )
    def test_one_side_is_enough(self, sides):
        net = Network()
        x = net.pad(shift_only(net, net.input(2, 3, 3, 3)), *sides, name="pad")
        stays(net, conv(net, x), reason=Reason.PADDING, blocker="pad")

    def test_a_positive_norm_does_not_pass_a_border_of_another_value(self):
        net = Network()
        x = net.affine(net.input(2, 3, 3, 3), POSITIVE[3], B[3])
        x = net.pad(x, (0, 0, 1, 0), (0, 0, 0, 0), 1.5, name="pad")
        stays(net, conv(net, x), reason=Reason.PADDING, blocker="pad")

    def test_added_channels_of_another_value_are_not_rescaled(self):
        net = Network()
        x = net.pad(image(net, 2), (0, 0, 0, 0), (0, 1, 0, 0), 1.5)
        stays(net, net.sigmoid(scale_only(net, x)), reason=Reason.NONLINEAR)

    @pytest.mark.parametrize("value", [0.0, 1.5])
    def test_added_channels_between_cropped_ones(self, value):
        net = Network()
        x = net.pad(bn(net, net.input(2, 4, 3, 3)), (0, -1, 0, 0), (0, -1, 0, 0))
        goes(net, conv(net, net.pad(x, (0, 2, 0, 0), (0, 3, 0, 0), value)))

    def test_a_border_in_front_of_added_channels(self):
        """(N, H, W, C)"""
        net = Network()
        x = net.affine(net.input(2, 3, 3, 3), A[3], [0] * 3, axis=3)
        x = net.pad(x, (0, 1, 0, 0), (0, 0, 0, 2))
        goes(net, net.matrix(x, random(2, 5)))

    def test_channels_added_to_values_that_are_all_their_own(self):
        net = Network()
        x = net.affine(net.input(2, 12), np.arange(1.0, 13), np.arange(12.0))
        (x,) = net.view(lambda values: [values[0].reshape(2, 3, 4)], x)
        x = net.pad(x, (0, 0, 0), (0, 2, 0))
        (x,) = net.view(lambda values: [values[0].reshape(2, 20)], x)
        goes(net, net.matrix(x, random(2, 20)))


class TestSign:
    def test_no_shift_comes_out(self):
        net = Network()
        x = net.sign(image(net), name="sign")
        stays(net, net.sigmoid(shift_only(net, x)), reason=Reason.ACTIVATION, blocker="sign")

    def test_what_is_pinned_stays_so(self):
        net = Network()
        x = net.concat(net.input(2, 1, 5, 5), scale_only(net, net.input(2, 3, 5, 5)))
        goes(net, conv(net, net.sign(x)))


class TestConstant:
    def test_a_scale_does_not_come_out_of_a_constant_that_is_0_in_part(self):
        net = Network()
        some = net.constant(np.array([0.0, 0.5]).reshape(1, 2, 1, 1), (2, 2, 5, 5))
        x = net.affine(net.concat(image(net, 1), some), [1.0, 1.5, -0.6], [0.4, 0, 0])
        stays(net, net.sigmoid(x), reason=Reason.NONLINEAR)

    def test_a_shift_does_not_come_out_of_zeros(self):
        net = Network()
        x = net.concat(image(net, 2), net.constant(0.0, (2, 1, 5, 5), name="zeros"))
        stays(net, shift_only(net, x), reason=Reason.NONLINEAR, blocker="zeros")

    @pytest.mark.parametrize("shape", [(1,), (3,), (2, 3)])
    def test_zeros_of_any_rank(self, shape):
        net = Network()
        x = net.affine(net.input(2, 3), A[3] if 3 in shape else [-0.7] * 3, B[3], axis=1)
        zeros = net.constant(0.0, shape)
        goes(net, net.matrix(net.sum(x, zeros), random(2, 3)))

    def test_zeros_along_one_axis_have_a_scale_each(self):
        net = Network()
        (x,) = net.view(lambda v: [v[0].reshape(-1)], net.matrix(net.input(1, 2), random(1, 2)))
        x = net.concat(x, net.constant(0.0, (2,)), axis=0)
        goes(net, net.sigmoid(net.affine(x, A[3], [0.3, 0.0, 0.0], axis=0)))

    def test_a_zero_without_axes_is_stored_as_it_is(self):
        net = Network()
        x = net.sum(shift_only(net, net.input(2, 3)), net.constant(0.0, ()))
        goes(net, net.matrix(x, random(2, 3)))

    def test_no_elements(self):
        net = Network()
        x = net.concat(bn(net, net.input(2, 3, 4, 4)), net.constant(0.0, (2, 0, 4, 4)))
        goes(net, conv(net, x))


class TestZeroGamma:
    def test_a_constant_goes_into_a_step_that_reads_the_channels_backwards(self, monkeypatch):
        monkeypatch.setattr(labels, "SMALL", 0)  # as for many channels: combinations are sorted
        net = Network()
        x = net.affine(net.input(2, 3, 4, 4), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0], name="bn")
        (x,) = net.view(lambda values: [values[0][:, ::-1]], x)
        goes(net, net.sigmoid(step(net, x, A[3], B[3])))


def test_an_empty_tensor_goes_through_every_op():
    """A crop to nothing, as some detection heads have it: no values, no constraints."""
    net = Network()
    x = bn(net, conv(net, net.input(1, 3, 4, 4)))
    (y,) = net.view(lambda values: [values[0][:, :, :0]], x)
    y = net.sum(net.sign(net.clip(y)), net.leaky(y))
    goes(net, y, conv(net, x))


def test_a_usual_network_gets_exactly_the_room_that_it_needs():
    """Arrays that grow on the way are held twice, and what they have too much stays."""
    net = Network()
    one = conv(net, net.input(2, 3, 4, 4), 1)
    x = conv(net, bn(net, one), 4)
    y = net.leaky(net.sum(one, x, bn(net, conv(net, x, 4))))
    y = net.sum(x, y)
    net.output(conv(net, net.concat(x, net.clip(y)), 2))
    system = laws.bind(net.graph).system
    for forest in (system.magnitude, system.sign, system.shift):
        assert len(forest.parent) == system.count
