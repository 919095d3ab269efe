"""Linear ops: convolutions, transposed ones, matrices, embeddings."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core.reasons import Reason
from bnfold.core.weights import Layout
from tests.core.interpreter import Network, Weights, assert_fold_is_exact, removed_names
from tests.core.laws.networks import (
    A,
    B,
    bn,
    conv,
    goes,
    image,
    random,
    scale_only,
    scaled,
    shift_only,
    stays,
)


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
