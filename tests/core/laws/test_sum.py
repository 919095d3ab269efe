"""Sums, and products of two values."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core.reasons import Reason
from tests.core.interpreter import Network, assert_fold_is_exact
from tests.core.laws.networks import A, B, bn, conv, goes, image, random, scale_only, stays


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
