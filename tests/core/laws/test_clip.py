"""Clips, and what passes positive scales alone."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core.reasons import Reason
from tests.core.interpreter import Network, assert_fold_is_exact
from tests.core.laws.networks import POSITIVE, A, B, bn, conv, goes, image, scale_only, stays


class TestClip:
    def test_a_plain_clip_holds_a_shift_back(self):
        net = Network()
        x = bn(net, net.input(2, 3, 4, 4))
        x = net.clip(x, room=False, name="relu")
        stays(net, conv(net, x), reason=Reason.ACTIVATION, blocker="relu")

    def test_a_plain_clip_holds_a_negative_scale_back(self):
        net = Network()
        x = net.clip(scale_only(net, net.input(2, 3, 4, 4)), room=False, name="relu")
        stays(net, conv(net, x), reason=Reason.ACTIVATION, blocker="relu")

    @pytest.mark.parametrize("bounds", [(0, 6), (-1, 1)])
    def test_two_plain_bounds_hold_any_scale_back(self, bounds):
        net = Network()
        x = scale_only(net, net.input(2, 3, 4, 4), positive=True)
        x = net.clip(x, *bounds, room=False, name="relu6")
        stays(net, conv(net, x), reason=Reason.ACTIVATION, blocker="relu6")

    def test_calls_with_other_channels_share_no_bounds(self):
        net = Network()
        x = net.clip(bn(net, net.input(2, 3, 4, 4)), tie="relu", name="first")
        y = net.clip(net.input(2, 2, 4, 4), tie="relu", name="second")
        net.output(net.sigmoid(y))
        stays(net, conv(net, x), reason=Reason.ACTIVATION, blocker="first")

    @pytest.mark.parametrize("tie", ["bn", None])
    def test_calls_on_other_values_share_no_bounds(self, tie):
        net = Network()
        calls = [conv(net, net.input(2, 3, 4, 4), name=f"conv{n}") for n in range(2)]
        calls = [net.clip(x, tie="relu", name=f"relu{n}") for n, x in enumerate(calls)]
        calls = [bn(net, x, f"bn{n}", tie=tie) for n, x in enumerate(calls)]
        stays(net, *(net.leaky(x) for x in calls), reason=Reason.ACTIVATION)

    def test_calls_behind_two_steps_share_no_bounds(self):
        net = Network()
        x = net.input(2, 3, 4, 4)
        one, two = bn(net, x, "one"), net.affine(x, B[3], A[3], name="two")
        outputs = [conv(net, net.clip(each, tie="relu", name="relu")) for each in (one, two)]
        stays(net, *outputs, reason=Reason.ACTIVATION, blocker="relu")

    def test_calls_behind_a_step_along_another_axis_share_no_bounds(self):
        net = Network()
        x = net.input(2, 3, 3, 3)
        one, two = (net.affine(x, A[3], B[3], axis=axis, name=f"{axis}") for axis in (1, 2))
        net.output(*(net.leaky(net.clip(each, tie="relu")) for each in (one, two)))
        assert not assert_fold_is_exact(net).removed

    def test_calls_with_channels_in_another_order_share_no_bounds(self):
        net = Network()
        one, two = (bn(net, net.input(2, 3, 4, 4), tie="bn") for _ in range(2))
        first, rest = net.split(two, 1)
        outputs = [conv(net, net.clip(x, tie="relu")) for x in (one, net.concat(rest, first))]
        stays(net, *outputs, reason=Reason.ACTIVATION)

    def test_no_bounds_along_an_axis_of_other_lengths(self):
        net = Network()
        for name in ("first", "second"):
            x = net.affine(net.input(2, 3, 4, 4), [2, 3, 4, 5], [1, 0, 2, 3], axis=2, tie="bn")
            x = net.clip(x, tie="relu", stored_alike=(2,), name=name)
            net.output(net.affine(x, [2, 3, 4, 5], [1, 0, 2, 3], axis=2, removal=g.Removal.UNASKED))
        plan = assert_fold_is_exact(net)
        assert not plan.clip and not plan.removed

    def test_bounds_of_several_calls_that_cost_more_than_they_save(self):
        net = Network()
        calls = (bn(net, net.input(2, 3, 4, 4), tie="bn") for _ in range(2))
        calls = (net.clip(x, tie="relu", name="relu", one_sided_cost=2.0) for x in calls)
        stays(net, *(conv(net, x) for x in calls), reason=Reason.CLIP_COST, blocker="relu")

    def test_never_means_never(self):
        net = Network()
        x = net.clip(bn(net, net.input(2, 3, 4, 4)), name="relu")
        plan = stays(net, conv(net, x), reason=Reason.CLIP_COST, blocker="relu", clip="never")
        assert not plan.clip

    def test_bounds_that_cost_more_than_the_step_are_not_bought(self):
        net = Network()
        x = net.clip(bn(net, net.input(2, 3, 4, 4)), name="relu", one_sided_cost=2.0)
        stays(net, conv(net, x), reason=Reason.CLIP_COST, blocker="relu")

    def test_bounds_never_become_wrong_for_a_graph_output(self):
        net = Network()
        x = net.clip(bn(net, net.input(2, 3, 4, 4)))
        stays(net, x, reason=Reason.GRAPH_OUTPUT)

    def test_a_positive_scale_passes_a_plain_relu(self):
        net = Network()
        x = scale_only(net, net.input(2, 3, 4, 4), positive=True)
        plan = goes(net, conv(net, net.clip(x, room=False)))
        assert not plan.clip

    @pytest.mark.parametrize(
        "bounds", [(0, np.inf), (-np.inf, 2), (0, 6), (-1, 1.5), (-np.inf, np.inf)]
    )
    def test_any_rescaling_passes_where_there_is_room(self, bounds):
        net = Network()
        x = net.clip(bn(net, net.input(2, 3, 4, 4)), *bounds, name="clip")
        plan = goes(net, conv(net, x), clip="always")
        assert bool(plan.clip) is bool(np.isfinite(bounds).any())

    def test_the_bounds_move_with_the_value(self):
        """x = (y - b)/a: max(y, 0) bounds x at -b/a, from above where a < 0."""
        net = Network()
        x = net.clip(bn(net, net.input(2, 3, 4, 4)), name="relu")
        edit = goes(net, conv(net, x)).clip[net.number("relu")]
        bound = -np.divide(B[3], A[3])
        np.testing.assert_allclose(edit.lower.reshape(-1), [bound[0], -np.inf, bound[2]])
        np.testing.assert_allclose(edit.upper.reshape(-1), [np.inf, bound[1], np.inf])

    def test_calls_on_what_one_layer_makes_share_bounds(self):
        net = Network()
        calls = [conv(net, net.input(2, 3, *size), tie="k") for size in ((4, 4), (7, 5))]
        calls = [bn(net, net.clip(x, tie="relu"), tie="bn") for x in calls]
        plan = goes(net, *(net.leaky(net.max_pool(x)) for x in calls))
        assert len(plan.clip) == 2
        assert len(plan.clipped) == 1

    @pytest.mark.parametrize("scale", [A[3], [1.5, 0.0, -0.6]])
    def test_calls_behind_one_step_share_bounds(self, scale):
        """It goes in all calls or in none."""
        net = Network()
        calls = [net.affine(net.input(2, 3, 4, 4), scale, B[3], tie="bn") for _ in range(2)]
        outputs = (conv(net, net.clip(x, tie="relu"), tie="k") for x in calls)
        assert len(goes(net, *outputs).clip) == 2

    def test_calls_behind_two_steps_in_a_row_share_bounds(self):
        net = Network()
        calls = [bn(net, net.input(2, 3, 4, 4), "one", tie="one") for _ in range(2)]
        calls = [net.affine(x, B[3], A[3], name="two", tie="two") for x in calls]
        assert goes(net, *(conv(net, net.clip(x, tie="relu")) for x in calls)).clip

    def test_calls_without_room_have_a_scale_each(self):
        net = Network()
        calls = [scale_only(net, net.input(2, 3, 4, 4), positive=True) for _ in range(2)]
        calls[1] = net.affine(calls[1], [0.7, 3.0, 5.0], [0.0] * 3)
        assert not goes(net, *(conv(net, net.clip(x, tie="relu")) for x in calls)).clip

    def test_bounds_of_several_calls_that_cost_less_than_they_save(self):
        net = Network()
        calls = (bn(net, net.input(2, 3, 4, 4), tie="bn") for _ in range(2))
        calls = (net.clip(x, 0, 6, tie="relu", two_sided_cost=0.5) for x in calls)
        assert goes(net, *(conv(net, x) for x in calls)).clip

    def test_bounds_that_cost_less_than_the_step_are_bought(self):
        net = Network()
        x = net.clip(bn(net, net.input(2, 3, 4, 4)), name="relu", one_sided_cost=0.5)
        assert goes(net, conv(net, x)).clip

    def test_a_clip_stays_plain_wherever_it_can(self):
        net = Network()
        x = net.clip(bn(net, image(net)))
        assert not goes(net, conv(net, x)).clip

    def test_one_costly_clip_may_serve_two_steps(self):
        net = Network()
        left, right = bn(net, net.input(2, 2, 4, 4), "one"), bn(net, net.input(2, 2, 4, 4), "two")
        x = net.clip(net.concat(left, right), 0, 6, two_sided_cost=0.4)
        goes(net, conv(net, x))

    def test_a_positive_scale_passes_a_minimum_with_zero(self):
        net = Network()
        x = scale_only(net, net.input(2, 3, 4, 4), positive=True)
        goes(net, conv(net, net.clip(x, -np.inf, 0.0, room=False)))

    def test_a_clip_without_bounds_asks_for_nothing(self):
        net = Network()
        x = bn(net, net.input(2, 3, 4, 4))
        goes(net, conv(net, net.clip(x, -np.inf, np.inf, room=False)))


class TestHomogeneous:
    def test_a_negative_gamma_does_not_pass(self):
        net = Network()
        x = net.leaky(scale_only(net, net.input(2, 3, 4, 4)), name="leaky")
        stays(net, conv(net, x), reason=Reason.ACTIVATION, blocker="leaky")

    def test_a_shift_does_not_pass(self):
        net = Network()
        x = net.affine(net.input(2, 3, 4, 4), POSITIVE[3], B[3])
        stays(net, conv(net, net.leaky(x)), reason=Reason.ACTIVATION)

    def test_a_shift_does_not_come_back_from_behind(self):
        net = Network()
        x = net.leaky(net.input(2, 3, 4, 4), name="leaky")
        stays(net, bn(net, x), reason=Reason.GRAPH_OUTPUT)

    def test_a_positive_scale_passes(self):
        net = Network()
        x = net.leaky(scale_only(net, net.input(2, 3, 4, 4), positive=True))
        goes(net, conv(net, x, taps=3, padding=1))

    def test_any_norm_goes_into_the_convolution_before(self):
        net = Network()
        goes(net, net.leaky(bn(net, image(net))))
