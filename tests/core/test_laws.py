"""One class per law: what must not fold stands first, what must fold after it.

Each case is a small network with random weights and constants that differ per channel, some
negative. `stays` and `goes` fold it, compare the outputs, and say which steps were removed.
"""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core.plan import Plan
from bnfold.core.reasons import Reason
from bnfold.core.weights import Layout
from tests.core.interpreter import Network, assert_fold_is_exact, removed_names

A = {1: [-0.7], 2: [1.5, -0.6], 3: [1.5, -0.6, 0.25], 4: [1.5, -0.6, 0.25, 2.0]}
B = {1: [0.4], 2: [0.3, -1.1], 3: [0.3, -1.1, 0.8], 4: [0.3, -1.1, 0.8, -0.2]}
POSITIVE = {2: [1.5, 0.6], 3: [1.5, 0.6, 0.25], 4: [1.5, 0.6, 0.25, 2.0]}


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape) + 31 * len(shape)).standard_normal(shape)


def bn(net: Network, x: int, name: str = "bn", *, axis: int = 1, **options) -> int:
    """A BatchNorm with both signs of gamma."""
    count = net.shape(x)[axis]
    return net.affine(x, A[count], B[count], axis=axis, name=name, **options)


def scale_only(net: Network, x: int, name: str = "bn", *, positive: bool = False) -> int:
    """An affine step without a shift."""
    count = net.shape(x)[1]
    return net.affine(x, (POSITIVE if positive else A)[count], np.zeros(count), name=name)


def conv(net: Network, x: int, outs: int = 3, taps: int = 1, name: str = "conv", **options) -> int:
    """A convolution with a bias."""
    ins = net.shape(x)[1] // options.get("groups", 1)
    kernel = random(outs, ins, *(taps,) * (len(net.shape(x)) - 2))
    return net.conv(x, kernel, random(outs), name=name, **options)


def image(net: Network, channels: int = 3) -> int:
    """The output of a convolution: anything may be stored here."""
    return conv(net, net.input(2, 2, 5, 5), channels, name="source")


def stays(net: Network, *outputs: int, reason: Reason, blocker: str | None = None, **how) -> Plan:
    """No step goes; the (only) reason and the op that is named."""
    plan = assert_fold_is_exact(net.output(*outputs), **how)
    assert not plan.removed
    assert {obstacle.reason for obstacle in plan.kept.values()} == {reason}
    if blocker is not None:
        assert {obstacle.blocker for obstacle in plan.kept.values()} == {blocker}
    return plan


def goes(net: Network, *outputs: int, **how) -> Plan:
    """Every step goes."""
    plan = assert_fold_is_exact(net.output(*outputs), **how)
    assert not plan.kept
    assert plan.removed
    return plan


class TestLinear:
    def test_a_shift_does_not_cross_zero_padding(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5))
        y = conv(net, x, taps=3, padding=1, name="padded")
        stays(net, y, reason=Reason.PADDING, blocker="padded")

    @pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 1}, {"taps": 3}])
    def test_a_shift_does_not_enter_a_transposed_convolution(self, options):
        net = Network()
        options = dict(options)  # parameters outlive the test
        taps = options.pop("taps", 1)
        x = bn(net, net.input(2, 3, 4, 4))
        y = net.conv_transpose(x, random(3, 2, taps, taps), random(2), name="up", **options)
        stays(net, y, reason=Reason.PADDING, blocker="up")

    def test_a_shift_does_not_cross_only_one_padded_reader(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5))
        y, z = conv(net, x), conv(net, x, taps=3, padding=1, name="padded")
        stays(net, y, z, reason=Reason.PADDING, blocker="padded")

    @pytest.mark.parametrize("length", [5, 4])
    def test_a_norm_over_the_length_does_not_enter_the_channels(self, length):
        """(N, L, C): also where L is C."""
        net = Network()
        x = bn(net, net.input(2, 3, 4), "bn", axis=1)
        y = net.matrix(x, random(length, 4), random(length), name="linear")
        stays(net, y, reason=Reason.BRANCHES, blocker="linear")

    def test_a_norm_over_the_length_does_not_come_out_of_the_channels(self):
        net = Network()
        y = net.matrix(net.input(2, 4, 3), random(4, 3), random(4))
        y = bn(net, y, axis=1)
        stays(net, net.sigmoid(y), reason=Reason.NONLINEAR)

    def test_a_tied_weight_is_not_edited_for_one_use_only(self):
        net = Network()
        kernel, bias = random(3, 3, 1, 1), random(3)
        x, y = net.input(2, 3, 4, 4), net.input(2, 3, 4, 4)
        first = net.conv(x, kernel, bias, tie="k", name="first")
        second = net.conv(y, kernel, bias, tie="k", name="second")
        plan = stays(net, bn(net, first), second, reason=Reason.GRAPH_OUTPUT)
        assert not plan.linear

    def test_a_tied_weight_with_different_norms_keeps_one(self):
        net = Network()
        kernel, bias = random(3, 3, 1, 1), random(3)
        x, y = net.input(2, 3, 4, 4), net.input(2, 3, 4, 4)
        first = net.affine(net.conv(x, kernel, bias, tie="k"), A[3], B[3], name="one")
        second = net.affine(net.conv(y, kernel, bias, tie="k"), B[3], A[3], name="two")
        plan = assert_fold_is_exact(net.output(first, second))
        assert removed_names(net, plan) == ["one"]
        assert plan.kept[net.number("two")].reason is Reason.SHARED

    def test_a_fixed_weight_takes_no_scale(self):
        net = Network()
        y = conv(net, net.input(2, 3, 4, 4), weight=g.Weight.FIXED, name="fixed")
        stays(net, bn(net, y), reason=Reason.FIXED_WEIGHT, blocker="fixed")

    def test_a_fixed_bias_takes_no_shift(self):
        net = Network()
        y = conv(net, net.input(2, 3, 4, 4), bias_editable=False, name="fixed")
        stays(net, bn(net, y), reason=Reason.FIXED_WEIGHT, blocker="fixed")

    def test_a_fixed_bias_takes_no_scale(self):
        net = Network()
        y = conv(net, net.input(2, 3, 4, 4), bias_editable=False, name="fixed")
        stays(net, scale_only(net, y), reason=Reason.FIXED_WEIGHT, blocker="fixed")

    def test_a_blur_with_padding_takes_no_shift(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5))
        x = net.depthwise_fixed(x, random(3, 1, 3, 3), padding=1, name="blur")
        stays(net, conv(net, x), reason=Reason.PADDING, blocker="blur")

    @pytest.mark.parametrize(
        "options",
        [
            {"taps": 1},
            {"taps": 3, "padding": 1},
            {"taps": 3, "padding": 2, "dilation": 2},
            {"taps": 2, "stride": 2},
        ],
    )
    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_a_norm_after_a_convolution(self, options, groups):
        net = Network()
        x = conv(net, net.input(2, 4, 6, 7), 4, groups=groups, **options)
        plan = goes(net, bn(net, x))
        assert plan.removed == {1: ("conv",)}

    @pytest.mark.parametrize("space", [(6,), (5, 4), (4, 3, 4)])
    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_a_norm_before_a_convolution_without_padding(self, space, groups):
        net = Network()
        x = bn(net, net.input(2, 4, *space))
        plan = goes(net, conv(net, x, 4, 3, groups=groups))
        assert plan.removed == {0: ("conv",)}

    @pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
    def test_a_norm_before_padding_that_repeats_values(self, mode):
        net = Network()
        x = bn(net, net.input(2, 4, 5, 5))
        goes(net, conv(net, x, 2, 3, padding=1, padding_mode=mode))

    def test_a_scale_crosses_zero_padding(self):
        net = Network()
        x = scale_only(net, net.input(2, 3, 5, 5))
        goes(net, conv(net, x, taps=3, padding=1))

    def test_a_shift_of_zero_by_cancellation_crosses_zero_padding(self):
        net = Network()
        x = net.affine(net.input(2, 3, 5, 5), A[3], B[3], name="one")
        x = net.affine(x, [1, 1, 1], np.negative(B[3]), name="two")
        goes(net, conv(net, x, taps=3, padding=1))

    @pytest.mark.parametrize("groups", [1, 2, 4])
    @pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2}])
    def test_a_norm_after_a_transposed_convolution(self, groups, options):
        net = Network()
        kernel = random(4, 4 // groups, 3, 3)
        x = net.conv_transpose(net.input(2, 4, 4, 4), kernel, random(4), groups=groups, **options)
        goes(net, bn(net, x))

    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_a_norm_before_a_pointwise_transposed_convolution(self, groups):
        net = Network()
        x = bn(net, net.input(2, 4, 4, 4))
        goes(net, net.conv_transpose(x, random(4, 1, 1, 1), groups=groups))

    @pytest.mark.parametrize("layout", [Layout.OUT_IN, Layout.IN_OUT])
    def test_norms_around_a_matrix(self, layout):
        net = Network()
        x = bn(net, net.input(2, 5, 3), "before", axis=2)
        weight = random(4, 3) if layout is Layout.OUT_IN else random(3, 4)
        y = net.matrix(x, weight, layout=layout)
        goes(net, bn(net, y, "after", axis=2))

    def test_a_norm_over_the_length_goes_where_the_length_is_read(self):
        net = Network()
        x = net.matrix(net.input(2, 4, 3), random(4, 3))
        x = bn(net, x, axis=1)
        goes(net, net.matrix(net.transpose(x, 0, 2, 1), random(2, 4)))

    def test_two_norms_over_different_axes_both_go(self):
        """The second has a constant that meets several variables; that is no demand if it goes."""
        net = Network()
        x = bn(net, net.input(2, 3, 4), "channels", axis=2)
        x = bn(net, x, "length", axis=1)
        goes(net, net.matrix(net.flatten(x), random(2, 12)))

    def test_a_norm_after_an_embedding(self):
        net = Network()
        x = net.embedding([[0, 2, 1], [1, 1, 0]], random(3, 4))
        goes(net, net.sigmoid(bn(net, x, axis=2)))

    def test_a_tied_weight_whose_uses_agree(self):
        net = Network()
        kernel, bias = random(3, 3, 1, 1), random(3)
        sums = []
        for name in ("one", "two"):
            y = net.conv(net.input(2, 3, 4, 4), kernel, bias, tie="k")
            sums.append(bn(net, y, name))
        goes(net, *sums)

    def test_a_tied_weight_around_a_norm(self):
        net = Network()
        kernel, bias = random(3, 3, 1, 1), random(3)
        x = net.conv(image(net), kernel, bias, tie="k")
        x = bn(net, x, "one")
        x = net.conv(x, kernel, bias, tie="k")
        plan = assert_fold_is_exact(net.output(conv(net, bn(net, x, "two"), 2)))
        assert removed_names(net, plan) == ["one", "two"]

    def test_a_fixed_depthwise_weight_carries_a_shift_through(self):
        net = Network()
        x = bn(net, net.input(2, 3, 6, 6))
        x = net.depthwise_fixed(x, random(3, 1, 3, 3), stride=2)
        goes(net, conv(net, x))

    def test_a_high_pass_swallows_a_shift(self):
        net = Network()
        kernel = np.tile([1.0, -2.0, 1.0], (3, 1, 1))
        x = net.affine(net.input(2, 3, 6), [1, 1, 1], B[3], name="bn")
        goes(net, net.depthwise_fixed(x, kernel))

    def test_binary_weights_stay_binary(self):
        """sign(a*y + b) with y = sum W*x + B: only the bias and signs change."""
        net = Network()
        signs = np.sign(random(3, 3, 3, 3))
        x = net.sign(image(net), name="first")
        x = net.conv(x, signs, random(3), weight=g.Weight.SIGNS, name="binary")
        plan = goes(net, conv(net, net.sign(bn(net, x), name="second")))
        edit = plan.linear[net.number("binary")]
        np.testing.assert_array_equal(np.abs(edit.output_scale), 1.0)
        np.testing.assert_allclose(edit.output_shift, np.divide(B[3], A[3]))


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
        stays(net, conv(net, x), reason=Reason.FIXED_WEIGHT, blocker="fixed")

    def test_a_fixed_summand_passes_no_scale(self):
        net = Network()
        fixed = {
            "removal": g.Removal.UNASKED,
            "factors": g.Parameter.FIXED,
            "summands": g.Parameter.FIXED,
        }
        x = bn(net, net.input(2, 3, 4, 4), "bn")
        x = net.affine(x, [1, 1, 1], [0, 0.5, 0], name="fixed", **fixed)
        stays(net, conv(net, x), reason=Reason.FIXED_WEIGHT, blocker="fixed")

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


class TestMax:
    def test_a_negative_gamma_does_not_pass(self):
        net = Network()
        x = net.max_pool(bn(net, net.input(2, 3, 4, 4)), name="pool")
        stays(net, conv(net, x), reason=Reason.ACTIVATION, blocker="pool")

    def test_values_that_meet_need_one_rescaling(self):
        net = Network()
        x = net.affine(net.input(2, 3, 4), POSITIVE[3], B[3])
        x = net.reduce(x, g.Max, (1,), name="max")
        stays(net, net.matrix(x, random(2, 4)), reason=Reason.BRANCHES, blocker="max")

    @pytest.mark.parametrize("padding", [0, 1])
    def test_a_shift_passes_border_and_all(self, padding):
        net = Network()
        x = net.affine(net.input(2, 3, 4, 4), POSITIVE[3], B[3])
        goes(net, conv(net, net.max_pool(x, padding=padding)))

    @pytest.mark.parametrize("keeps_rank", [True, False])
    def test_a_reduction_over_space(self, keeps_rank):
        net = Network()
        x = net.affine(net.input(2, 3, 4, 4), POSITIVE[3], B[3])
        x = net.reduce(x, g.Max, (2, 3), keeps_rank=keeps_rank)
        goes(net, conv(net, x) if keeps_rank else net.matrix(x, random(2, 3)))


class TestMean:
    def test_a_shift_does_not_pass_counted_zeros(self):
        net = Network()
        x = net.mean_pool(bn(net, net.input(2, 3, 4, 4)), padding=1, name="pool")
        stays(net, conv(net, x), reason=Reason.PADDING, blocker="pool")

    def test_values_that_meet_need_one_rescaling(self):
        net = Network()
        x = net.reduce(bn(net, net.input(2, 3, 4)), g.Mean, (1,), name="mean")
        stays(net, net.matrix(x, random(2, 4)), reason=Reason.BRANCHES, blocker="mean")

    def test_a_negative_scale_passes_counted_zeros(self):
        net = Network()
        x = net.mean_pool(scale_only(net, net.input(2, 3, 4, 4)), padding=1)
        goes(net, conv(net, x))

    @pytest.mark.parametrize("keeps_rank", [True, False])
    def test_any_norm_passes_a_mean_over_space(self, keeps_rank):
        net = Network()
        x = bn(net, net.input(2, 3, 4, 4))
        x = net.reduce(x, g.Mean, (2, 3), keeps_rank=keeps_rank)
        goes(net, conv(net, x) if keeps_rank else net.matrix(x, random(2, 3)))

    def test_any_norm_passes_windows(self):
        net = Network()
        goes(net, conv(net, net.mean_pool(bn(net, net.input(2, 3, 4, 4)), 3)))


class TestSum:
    def test_branches_with_different_scales_keep_one(self):
        net = Network()
        y = net.sum(net.input(2, 3, 4, 4), bn(net, net.input(2, 3, 4, 4)), name="sum")
        stays(net, conv(net, y), reason=Reason.BRANCHES, blocker="sum")

    def test_a_broadcast_channel_has_one_scale(self):
        net = Network()
        x = net.conv(net.input(2, 2, 4, 4), random(1, 2, 1, 1))
        y = net.sum(x, bn(net, net.input(2, 3, 4, 4)), name="sum")
        stays(net, conv(net, y), reason=Reason.BRANCHES, blocker="sum")

    def test_a_pinned_branch_pins_the_scale_of_the_other(self):
        net = Network()
        x = bn(net, net.input(2, 3, 4, 4))
        y = net.sum(net.sigmoid(net.input(2, 3, 4, 4)), x, name="sum")
        stays(net, conv(net, y), reason=Reason.BRANCHES, blocker="sum")

    def test_three_readers_of_two_sums_that_contradict(self):
        """(x+y)+w and (x+w)+y are one value: what follows only one of them cannot go."""
        net = Network()
        x, y, w = (image(net) for _ in range(3))
        one = net.sum(net.sum(x, y), w)
        two = net.affine(net.sum(net.sum(x, w), y), [1, 1, 1], B[3], name="bn")
        stays(net, net.leaky(one), net.leaky(two), reason=Reason.BRANCHES)

    @pytest.mark.parametrize("coefficients", [(1, 1), (1, -1), (-0.5, 2), (1, 0)])
    def test_norms_on_both_branches_go_into_their_convolutions(self, coefficients):
        net = Network()
        one, two = bn(net, image(net), "one"), bn(net, image(net), "two")
        y = net.sum(one, two, coefficients=coefficients)
        goes(net, net.sigmoid(y))

    @pytest.mark.parametrize("coefficients", [(1, 1), (1, -1), (-0.5, 2)])
    def test_a_norm_after_a_sum_goes_into_both(self, coefficients):
        net = Network()
        y = net.sum(image(net), image(net), coefficients=coefficients)
        goes(net, net.sigmoid(bn(net, y)))

    def test_an_operand_with_coefficient_zero_has_no_say(self):
        net = Network()
        x = bn(net, net.input(2, 3, 4, 4))
        y = net.sum(net.sigmoid(net.input(2, 3, 4, 4)), x, coefficients=(0, 1))
        goes(net, conv(net, y))

    def test_four_operands_with_coefficients(self):
        net = Network()
        terms = [bn(net, image(net), f"bn{k}") for k in range(4)]
        y = net.sum(*terms, coefficients=(1, -2, 0.5, 3))
        goes(net, net.sigmoid(bn(net, y, "after")))

    def test_one_operand_with_a_coefficient(self):
        net = Network()
        y = net.sum(bn(net, net.input(2, 3, 4, 4)), coefficients=(-2.5,))
        goes(net, conv(net, y))

    def test_a_value_plus_itself(self):
        net = Network()
        x = bn(net, net.input(2, 3, 4, 4))
        goes(net, conv(net, net.sum(x, x)))

    def test_a_value_minus_itself(self):
        net = Network()
        x = bn(net, net.input(2, 3, 4, 4))
        goes(net, conv(net, net.sum(x, x, coefficients=(1, -1)), 3, 3, padding=1))

    def test_a_shift_alone_passes_a_sum_with_a_pinned_branch(self):
        net = Network()
        x = net.affine(net.input(2, 3, 4, 4), [1, 1, 1], B[3])
        goes(net, conv(net, net.sum(net.sigmoid(net.input(2, 3, 4, 4)), x)))

    def test_a_broadcast_vector(self):
        net = Network()
        x = net.reduce(image(net), g.Mean, (2, 3), keeps_rank=True)
        y = net.sum(bn(net, conv(net, x), "one"), bn(net, image(net), "two"))
        goes(net, net.sigmoid(bn(net, y, "after")))

    def test_a_residual_stream(self):
        """Pre-activation: norms read the stream, convolutions add to it."""
        net = Network()
        x = image(net)
        for block in range(3):
            y = conv(net, net.clip(bn(net, x, f"one{block}"), room=True))
            y = conv(net, net.clip(bn(net, y, f"two{block}")), taps=3, padding=1)
            x = net.sum(x, y)
        plan = assert_fold_is_exact(net.output(conv(net, net.clip(bn(net, x, "last")))))
        assert not plan.kept


class TestGate:
    def test_a_shift_does_not_pass(self):
        net = Network()
        x = bn(net, net.input(2, 3, 4, 4))
        y = net.gate(x, net.sigmoid(net.input(2, 3, 1, 1)), name="gate")
        stays(net, conv(net, y), reason=Reason.NONLINEAR, blocker="gate")

    def test_a_norm_does_not_pass_on_the_side_of_the_gate(self):
        net = Network()
        gate = bn(net, net.input(2, 3, 1, 1))
        y = net.gate(image(net), gate, name="gate")
        stays(net, conv(net, y), reason=Reason.NONLINEAR, blocker="gate")

    def test_a_square_lets_nothing_pass(self):
        net = Network()
        x = scale_only(net, net.input(2, 3, 4, 4))
        stays(net, conv(net, net.gate(x, x, name="square")), reason=Reason.NONLINEAR)

    @pytest.mark.parametrize("first", [True, False])
    def test_a_scale_passes_on_the_side_of_the_value(self, first):
        net = Network()
        x = scale_only(net, net.input(2, 3, 4, 4))
        gate = net.sigmoid(net.input(2, 3, 1, 1))
        y = net.gate(x, gate) if first else net.gate(gate, x)
        goes(net, conv(net, y))

    @pytest.mark.parametrize("first", [True, False])
    def test_the_larger_operand_is_the_value(self, first):
        net = Network()
        x = scale_only(net, net.input(2, 3, 4, 4))
        gate = conv(net, net.input(2, 2, 1, 1))
        y = net.gate(x, gate) if first else net.gate(gate, x)
        goes(net, conv(net, y))

    @pytest.mark.parametrize("first", [True, False])
    def test_an_operand_that_is_stored_as_it_is_is_the_gate(self, first):
        """However large it is."""
        net = Network()
        x = net.affine(image(net), A[3], np.zeros(3), name="bn")
        x = net.reduce(x, g.Mean, (2, 3), keeps_rank=True)
        gate = net.sigmoid(net.input(2, 3, 5, 5))
        y = net.gate(x, gate) if first else net.gate(gate, x)
        goes(net, conv(net, scale_only(net, y, "after")))


class TestView:
    def test_a_concat_does_not_mix_its_parts(self):
        """One part goes into its convolution, the other has none."""
        net = Network()
        x = bn(net, net.concat(image(net, 2), net.input(2, 2, 5, 5), axis=1))
        stays(net, net.sigmoid(x), reason=Reason.NONLINEAR)

    def test_a_flattened_image_has_one_rescaling_per_pixel(self):
        net = Network()
        x = net.flatten(image(net, 1))
        x = net.affine(x, np.arange(1.0, 26), np.arange(25.0))
        stays(net, net.sigmoid(x), reason=Reason.NONLINEAR)

    def test_a_shuffle_before_groups_moves_the_channels(self):
        net = Network()
        x = net.shuffle(bn(net, net.input(2, 4, 3, 3)), 2)
        goes(net, conv(net, x, 4, groups=2))

    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_a_norm_after_concat_split_and_shuffle(self, groups):
        net = Network()
        left, right = image(net, 3), image(net, 1)
        parts = net.split(net.concat(left, right), 1)
        x = net.shuffle(net.concat(parts[1], parts[0]), 2)
        goes(net, conv(net, bn(net, x), 4, groups=groups))

    def test_norms_before_a_concat(self):
        net = Network()
        x = net.concat(bn(net, net.input(2, 1, 4, 4), "one"), bn(net, net.input(2, 3, 4, 4), "two"))
        goes(net, conv(net, x))

    def test_a_norm_before_a_flatten(self):
        net = Network()
        x = net.flatten(bn(net, net.input(2, 3, 2, 2)))
        goes(net, net.matrix(x, random(2, 12)))

    def test_a_norm_after_a_flatten(self):
        net = Network()
        x = net.affine(net.flatten(net.input(2, 3, 2, 2)), np.arange(1.0, 13), np.arange(12.0))
        goes(net, net.matrix(x, random(2, 12)))

    def test_a_slice_of_a_norm(self):
        net = Network()
        (x,) = net.view(lambda values: [values[0][:, 1::2]], bn(net, net.input(2, 4, 3, 3)))
        goes(net, conv(net, x))

    def test_tokens(self):
        """(N, C, H, W) to (N, H*W, C)."""
        net = Network()
        x = bn(net, net.input(2, 3, 2, 3))
        (x,) = net.view(lambda v: [np.swapaxes(v[0].reshape(*v[0].shape[:2], -1), 1, 2)], x)
        goes(net, net.matrix(x, random(2, 3)))


class TestPad:
    @pytest.mark.parametrize("value", [0.0, 1.5])
    def test_a_shift_does_not_pass_a_border(self, value):
        net = Network()
        x = bn(net, net.input(2, 3, 3, 3))
        x = net.pad(x, (0, 0, 1, 0), (0, 0, 0, 2), value, name="pad")
        stays(net, conv(net, x), reason=Reason.PADDING, blocker="pad")

    def test_a_scale_does_not_pass_a_border_of_another_value(self):
        net = Network()
        x = net.pad(scale_only(net, net.input(2, 3, 3, 3)), (0, 0, 1, 1), (0,) * 4, 1.5, name="pad")
        stays(net, conv(net, x), reason=Reason.PADDING, blocker="pad")

    def test_a_negative_scale_does_not_pass_a_border_of_minus_infinity(self):
        net = Network()
        x = net.pad(scale_only(net, net.input(2, 3, 3, 3)), (0, 0, 1, 1), (0,) * 4, -np.inf)
        x = net.max_pool(x)
        stays(net, conv(net, x), reason=Reason.PADDING)

    def test_a_norm_does_not_come_out_of_added_channels(self):
        net = Network()
        x = net.pad(image(net, 2), (0, 1, 0, 0), (0, 0, 0, 0), 0.0, name="pad")
        stays(net, net.sigmoid(bn(net, x)), reason=Reason.PADDING, blocker="pad")

    def test_a_scale_passes_a_border_of_zeros(self):
        net = Network()
        x = net.pad(scale_only(net, net.input(2, 3, 3, 3)), (0, 0, 1, 0), (0, 0, 0, 2))
        goes(net, conv(net, x))

    def test_a_shift_passes_a_border_of_minus_infinity(self):
        net = Network()
        x = net.affine(net.input(2, 3, 3, 3), POSITIVE[3], B[3])
        x = net.max_pool(net.pad(x, (0, 0, 1, 1), (0, 0, 1, 1), -np.inf))
        goes(net, conv(net, x))

    @pytest.mark.parametrize("value", [0.0, 1.5])
    def test_a_norm_passes_beside_added_channels(self, value):
        net = Network()
        x = bn(net, net.input(2, 2, 3, 3))
        x = net.pad(x, (0, 1, 0, 0), (0, 2, 0, 0), value)
        goes(net, conv(net, x))

    def test_a_scale_comes_out_of_added_zeros(self):
        """The shortcut of a narrow ResNet: zeros have any scale."""
        net = Network()
        x = net.pad(image(net, 2), (0, 0, 0, 0), (0, 1, 0, 0))
        goes(net, net.sigmoid(net.affine(x, A[3], [0.3, -1.1, 0.0])))

    def test_cropping_lets_all_pass(self):
        net = Network()
        x = net.pad(bn(net, net.input(2, 4, 4, 4)), (0, -1, -1, 0), (0, 0, 0, -2))
        goes(net, conv(net, x))


class TestSign:
    def test_a_shift_does_not_enter(self):
        net = Network()
        x = net.sign(bn(net, net.input(2, 3, 4, 4)), name="sign")
        stays(net, conv(net, x), reason=Reason.ACTIVATION, blocker="sign")

    def test_a_negative_scale_does_not_enter_a_comparison(self):
        net = Network()
        x = net.sign(scale_only(net, net.input(2, 3, 4, 4)), odd=False, name="compare")
        stays(net, conv(net, x), reason=Reason.ACTIVATION, blocker="compare")

    def test_a_negative_scale_does_not_enter_what_is_returned(self):
        net = Network()
        x = net.sign(scale_only(net, net.input(2, 3, 4, 4)))
        stays(net, x, reason=Reason.GRAPH_OUTPUT)

    def test_nothing_comes_out(self):
        net = Network()
        x = net.sign(image(net), name="sign")
        stays(net, bn(net, x), reason=Reason.ACTIVATION, blocker="sign")

    def test_a_positive_scale_vanishes(self):
        net = Network()
        x = scale_only(net, net.input(2, 3, 4, 4), positive=True)
        plan = goes(net, net.sign(x, odd=False))
        assert not plan.linear

    def test_a_negative_scale_flips_an_odd_sign(self):
        net = Network()
        x = net.sign(scale_only(net, net.input(2, 3, 4, 4)))
        plan = goes(net, conv(net, x, name="reader"))
        edit = plan.linear[net.number("reader")]
        assert edit.input_inverse.tolist() == np.sign(A[3]).tolist()


class TestOpaque:
    def test_nothing_passes(self):
        net = Network()
        x = net.sigmoid(bn(net, net.input(2, 3, 4, 4)), name="sigmoid")
        stays(net, conv(net, x), reason=Reason.NONLINEAR, blocker="sigmoid")

    def test_nothing_comes_out(self):
        net = Network()
        x = bn(net, net.sigmoid(image(net), name="sigmoid"))
        stays(net, x, reason=Reason.GRAPH_OUTPUT)

    def test_norms_on_both_sides_go_the_other_way(self):
        net = Network()
        x = bn(net, net.sigmoid(bn(net, image(net), "one")), "two")
        goes(net, conv(net, x))


class TestConstant:
    def test_a_norm_does_not_come_out_of_a_constant(self):
        net = Network()
        x = net.concat(image(net, 2), net.constant(0.5, (2, 1, 5, 5)))
        stays(net, net.sigmoid(bn(net, x)), reason=Reason.NONLINEAR)

    def test_a_shift_does_not_come_out_of_zeros(self):
        net = Network()
        x = net.concat(image(net, 2), net.constant(0.0, (2, 1, 5, 5)))
        stays(net, net.sigmoid(bn(net, x)), reason=Reason.NONLINEAR)

    def test_a_scale_does_not_pass_a_sum_with_a_constant(self):
        net = Network()
        x = scale_only(net, net.input(2, 3, 5, 5))
        y = net.sum(x, net.constant(random(1, 3, 1, 1), (1, 3, 1, 1)), name="sum")
        stays(net, conv(net, y), reason=Reason.BRANCHES, blocker="sum")

    def test_a_norm_passes_a_concat_with_a_constant(self):
        net = Network()
        x = bn(net, net.input(2, 2, 5, 5))
        x = net.concat(x, net.constant(random(1, 1, 5, 5), (2, 1, 5, 5)))
        goes(net, conv(net, x))

    def test_a_shift_passes_a_sum_with_a_constant(self):
        net = Network()
        x = net.affine(net.input(2, 3, 5, 5), [1, 1, 1], B[3])
        y = net.sum(x, net.constant(random(1, 3, 1, 1), (1, 3, 1, 1)))
        goes(net, conv(net, y))

    def test_a_norm_passes_a_sum_with_zeros(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5))
        goes(net, conv(net, net.sum(x, net.constant(0.0, (2, 3, 5, 5)))))

    def test_a_scale_comes_out_of_zeros(self):
        net = Network()
        x = net.concat(image(net, 2), net.constant(0.0, (2, 1, 5, 5)))
        goes(net, net.sigmoid(net.affine(x, A[3], [0.3, -1.1, 0.0])))
