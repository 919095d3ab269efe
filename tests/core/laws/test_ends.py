"""Where a rescaling ends: signs, constants, what nothing is known of."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core import labels
from bnfold.core.reasons import Reason
from tests.core.interpreter import Network, assert_fold_is_exact
from tests.core.laws.networks import (
    A,
    B,
    bn,
    conv,
    goes,
    image,
    image_like,
    random,
    scale_only,
    scaled,
    shift_only,
    stays,
)


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

    def test_no_shift_comes_out(self):
        net = Network()
        x = net.sign(image(net), name="sign")
        stays(net, net.sigmoid(shift_only(net, x)), reason=Reason.ACTIVATION, blocker="sign")

    def test_what_is_pinned_stays_so(self):
        net = Network()
        x = net.concat(net.input(2, 1, 5, 5), scale_only(net, net.input(2, 3, 5, 5)))
        goes(net, conv(net, net.sign(x)))


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

    def test_a_scale_does_not_come_out_of_a_constant_that_is_0_in_part(self):
        net = Network()
        some = net.constant(np.array([0.0, 0.5]).reshape(1, 2, 1, 1), (2, 2, 5, 5))
        x = net.affine(net.concat(image(net, 1), some), [1.0, 1.5, -0.6], [0.4, 0, 0])
        stays(net, net.sigmoid(x), reason=Reason.NONLINEAR)

    def test_a_shift_alone_does_not_come_out_of_zeros(self):
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
