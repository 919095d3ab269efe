"""Maxima and means, over windows and axes."""

from __future__ import annotations

import pytest

from bnfold.core import graph as g
from bnfold.core.reasons import Reason
from tests.core.interpreter import Network
from tests.core.laws.networks import POSITIVE, B, bn, conv, goes, random, scale_only, stays


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
