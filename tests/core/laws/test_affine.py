"""Affine steps: those that may go, those that stay and let others pass, shared constants."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core import labels
from bnfold.core.reasons import Reason
from tests.core.interpreter import Network, assert_fold_is_exact, removed_names
from tests.core.laws.networks import (
    A,
    B,
    bn,
    conv,
    goes,
    image,
    numbers,
    random,
    scale_only,
    scaled,
    shift_only,
    stays,
    step,
)


class TestAffine:
    def test_it_does_not_go_into_a_value_that_comes_in_and_goes_out(self):
        net = Network()
        stays(net, bn(net, net.input(2, 3, 4, 4)), reason=Reason.GRAPH_OUTPUT, blocker="output0")

    def test_it_does_not_go_past_a_second_reader(self):
        net = Network()
        x = image(net)
        stays(net, bn(net, x), x, reason=Reason.GRAPH_OUTPUT)

    def test_a_hook_holds_a_value(self):
        net = Network()
        x = image(net)
        net.output(x, reason=Reason.HOOK)
        stays(net, net.sigmoid(bn(net, x)), reason=Reason.HOOK, blocker="output0")

    def test_a_refused_step_stays_with_its_reason(self):
        net = Network()
        x = bn(net, image(net), removal=g.Refusal(Reason.MODULE_DOES_MORE))
        stays(net, x, reason=Reason.MODULE_DOES_MORE)

    def test_statistics_of_the_batch_let_nothing_through(self):
        net = Network()
        x = bn(net, image(net), "before")
        x = net.refused(x, Reason.BATCH_STATISTICS)
        plan = assert_fold_is_exact(net.output(x))
        assert removed_names(net, plan) == ["before"]

    def test_a_step_that_cannot_be_edited_passes_no_scale_of_its_own(self):
        net = Network()
        fixed = {
            "removal": g.Removal.UNASKED,
            "factors": g.Parameter.FIXED,
            "summands": g.Parameter.FIXED,
        }
        x = bn(net, net.input(2, 3, 4, 4), "bn")
        x = net.affine(x, A[3], B[3], name="fixed", **fixed)
        x = conv(net, x, taps=3, padding=1)
        stays(net, x, reason=Reason.FIXED_WEIGHT, blocker="fixed")

    def test_two_calls_that_cannot_both_go_both_stay(self):
        net = Network()
        x = bn(net, image(net), "first", tie="bn")
        y = bn(net, net.input(2, 3, 5, 5), "second", tie="bn")
        stays(net, x, y, reason=Reason.GRAPH_OUTPUT)

    def test_a_kept_module_called_twice_is_edited_alike(self):
        """The second call cannot go, so nothing may be folded into the first alone."""
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), "before")
        x = bn(net, x, "first", tie="bn")
        y = bn(net, net.input(2, 3, 5, 5), "second", tie="bn")
        plan = assert_fold_is_exact(net.output(x, y))
        assert not plan.removed

    def test_a_chain_goes_into_the_convolution_before(self):
        net = Network()
        x = image(net)
        for name in ("one", "two", "three"):
            x = bn(net, x, name)
        assert len(goes(net, x).removed) == 3

    def test_a_chain_between_fixed_ends_leaves_one(self):
        net = Network()
        x = net.input(2, 3, 4, 4)
        for name in ("one", "two", "three"):
            x = bn(net, x, name)
        plan = assert_fold_is_exact(net.output(x))
        assert len(plan.removed) == 2
        assert len(plan.affine) == 1

    def test_a_scale_passes_a_fixed_factor(self):
        net = Network()
        fixed = {
            "removal": g.Removal.UNASKED,
            "factors": g.Parameter.FIXED,
            "summands": g.Parameter.FIXED,
        }
        x = scale_only(net, net.input(2, 3, 4, 4))
        x = net.affine(x, A[3], [0, 0, 0], name="fixed", **fixed)
        goes(net, conv(net, x))

    def test_a_shift_passes_a_fixed_summand(self):
        net = Network()
        fixed = {
            "removal": g.Removal.UNASKED,
            "factors": g.Parameter.FIXED,
            "summands": g.Parameter.FIXED,
        }
        x = net.affine(net.input(2, 3, 4, 4), [1, 1, 1], B[3])
        x = net.affine(x, [1, 1, 1], A[3], name="fixed", **fixed)
        goes(net, conv(net, x))

    def test_one_editable_constant_is_enough_for_what_it_can_hold(self):
        net = Network()
        x = net.affine(net.input(2, 3, 4, 4), [1, 1, 1], B[3], name="bn")
        x = net.affine(
            x, A[3], [0, 0, 0], name="kept", removal=g.Removal.UNASKED, factors=g.Parameter.FIXED
        )
        plan = goes(net, x)
        assert plan.affine[1].shift.reshape(-1).tolist() == pytest.approx(
            np.multiply(A[3], B[3]).tolist()
        )

    def test_two_calls_of_one_module_both_go(self):
        net = Network()
        x = bn(net, image(net), "first", tie="bn")
        goes(net, bn(net, conv(net, x), "second", tie="bn"))


class TestFixedStep:
    """Steps that stay and have no room for other constants."""

    FIXED = {"factors": g.Parameter.FIXED, "summands": g.Parameter.FIXED}

    def test_a_scale_makes_a_shift_of_a_summand_that_no_zero_padding_takes(self):
        net = Network()
        x = scaled(net, net.input(2, 3, 4, 4), [2, 1, 1])
        x = step(net, x, [1] * 3, [0.5, 0, 0], **self.FIXED)
        x = conv(net, x, taps=3, padding=1)
        stays(net, x, reason=Reason.FIXED_WEIGHT, blocker="step")

    def test_nor_does_another_reader(self):
        net = Network()
        x = scaled(net, net.input(2, 3, 4, 4), [2, 1, 1])
        x = step(net, x, [1] * 3, [0.5, 0, 0], **self.FIXED)
        stays(net, conv(net, x), net.sigmoid(x), reason=Reason.FIXED_WEIGHT)

    def test_nor_an_activation_without_room(self):
        net = Network()
        x = scaled(net, net.input(2, 3, 4, 4), [2, 1, 1])
        x = step(net, x, [1] * 3, [0.5, 0, 0], **self.FIXED)
        x = conv(net, net.clip(x, room=False))
        stays(net, x, reason=Reason.FIXED_WEIGHT, blocker="step")

    @pytest.mark.parametrize("factor", [1, -1, 3])
    def test_a_scale_passes_a_summand_as_a_shift(self, factor):
        net = Network()
        x = step(net, bn(net, net.input(2, 3, 4, 4)), [factor] * 3, A[3], **self.FIXED)
        goes(net, conv(net, x, taps=3))

    def test_a_scale_passes_summands_and_clips_in_a_row(self):
        net = Network()
        x = net.clip(bn(net, net.sigmoid(image(net))))
        for _ in range(2):
            x = step(net, x, [1] * 3, [1.0] * 3, **self.FIXED)
            x = net.clip(bn(net, x))
        goes(net, conv(net, x), clip="always")

    def test_what_can_go_goes_where_another_one_cannot(self):
        net = Network()
        plain, padded = (net.sigmoid(net.input(2, 3, 4, 4)) for _ in range(2))
        for name, x in (("one", plain), ("two", padded)):
            x = step(net, bn(net, x, name), [1] * 3, B[3], **self.FIXED)
            taps = {"taps": 3, "padding": 1} if name == "two" else {}
            net.output(conv(net, x, **taps))
        plan = assert_fold_is_exact(net)
        assert removed_names(net, plan) == ["one"]

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
        stays(net, net.sigmoid(x), reason=Reason.NONLINEAR)

    def test_one_factor_does_not_take_in_three(self):
        net = Network()
        x = numbers(net, scale_only(net, net.input(2, 3, 4, 4)), 2.0, 0.0, **self.PRODUCT)
        stays(net, net.sigmoid(x), reason=Reason.NONLINEAR)

    def test_one_summand_does_not_take_in_three(self):
        net = Network()
        x = numbers(net, shift_only(net, net.input(2, 3, 4, 4)), 1.0, 0.5, **self.SUM)
        stays(net, net.sigmoid(x), reason=Reason.NONLINEAR)

    def test_one_summand_lets_three_scales_pass_where_shifts_are_taken(self):
        net = Network()
        x = numbers(net, scale_only(net, net.input(2, 3, 4, 4)), 1.0, 0.5, **self.SUM)
        goes(net, conv(net, x))

    def test_one_summand_lets_no_scale_pass_to_zero_padding(self):
        net = Network()
        x = numbers(net, scale_only(net, net.input(2, 3, 4, 4)), 1.0, 0.5, **self.SUM)
        x = conv(net, x, taps=3, padding=1)
        stays(net, x, reason=Reason.FIXED_WEIGHT, blocker="step")

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


class TestZeroGamma:
    def test_a_constant_goes_into_a_step_that_reads_the_channels_backwards(self, monkeypatch):
        monkeypatch.setattr(labels, "SMALL", 0)  # as for many channels: combinations are sorted
        net = Network()
        x = net.affine(net.input(2, 3, 4, 4), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0], name="bn")
        (x,) = net.view(lambda values: [values[0][:, ::-1]], x)
        goes(net, net.sigmoid(step(net, x, A[3], B[3])))
