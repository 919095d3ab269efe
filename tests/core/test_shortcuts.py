"""Sums that see one tensor several times: x + bn(x), conv(x) + bn(x), and what is made of them."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core.blame import Obstacle
from bnfold.core.plan import ban_overflow, make_plan
from bnfold.core.reasons import Reason
from bnfold.core.rescaling import PlanRescalings
from bnfold.core.weights import Layout
from tests.core.interpreter import Network, apply_plan, assert_fold_is_exact, removed_names
from tests.core.laws.networks import A, B, bn, conv, goes, image, random, stays

FIXED = {"removal": g.Removal.UNASKED, "factors": g.Parameter.FIXED, "summands": g.Parameter.FIXED}


def pinned(net: Network, channels: int = 3) -> int:
    """A tensor that has to be stored as it is."""
    return net.sigmoid(net.input(2, channels, 5, 5))


def same(net: Network, x: int, *, name: str = "same", taps: int = 3, **options) -> int:
    """A convolution of x that keeps its shape."""
    dilation = options.get("dilation", 1)
    options = {"padding": dilation * (taps // 2), **options}
    return conv(net, x, net.shape(x)[1], taps, name, **options)


class TestAffineOfOneTensor:
    """x + bn(x) and its kind: all terms are affine steps of x."""

    def test_the_difference_keeps_nothing_of_the_input(self):
        """x - bn(x) would become x - x."""
        net = Network()
        x = pinned(net)
        z = net.sum(x, bn(net, x), coefficients=(1.0, -1.0), name="sum")
        stays(net, conv(net, z), reason=Reason.BRANCHES, blocker="sum")

    def test_a_difference_that_nearly_cancels_keeps_too_little(self):
        net = Network()
        x = pinned(net)
        z = net.sum(x, bn(net, x), coefficients=(1.0, -0.99), name="sum")
        stays(net, conv(net, z), reason=Reason.BRANCHES, blocker="sum")

    @pytest.mark.parametrize("factor", [-1.0, -1.0 + 1e-9])
    def test_what_the_network_itself_cancels_cannot_be_recovered(self, factor):
        """In one channel x + bn(x) is a constant, or what is left of it is rounding."""
        net = Network()
        x = pinned(net)
        z = net.sum(x, net.affine(x, [1.5, factor, 0.3], B[3], name="bn"), name="sum")
        stays(net, conv(net, z), reason=Reason.BRANCHES, blocker="sum")

    def test_both_are_pinned(self):
        net = Network()
        x = pinned(net)
        stays(net, net.sum(x, bn(net, x)), reason=Reason.GRAPH_OUTPUT)

    def test_the_sum_goes_through_a_function(self):
        net = Network()
        x = pinned(net)
        z = net.sigmoid(net.sum(x, bn(net, x)), name="act")
        stays(net, conv(net, z), reason=Reason.NONLINEAR, blocker="act")

    def test_a_step_behind_a_gamma_of_zero_does_not_name_itself(self):
        net = Network()
        x = conv(net, pinned(net))
        y = net.affine(x, [0.0, 1.3, 0.25], [0.0, -0.8, 0.3], name="first")
        z = net.affine(y, [0.0, 0.25, 1.0], [-0.8, 0.0, 0.3], name="second")
        inner = net.sum(z, x, name="inner")
        outer = net.sum(inner, y, coefficients=(1.0, -1.0), name="outer")
        plan = assert_fold_is_exact(net.output(conv(net, outer)))
        assert plan.kept[net.number("second")] == Obstacle(Reason.BRANCHES, "outer")

    def test_two_tensors_are_not_one(self):
        net = Network()
        z = net.sum(pinned(net), bn(net, pinned(net)), name="sum")
        stays(net, conv(net, z), reason=Reason.BRANCHES, blocker="sum")

    @pytest.mark.parametrize("function", ["flip", "clip", "pool"])
    def test_a_tensor_that_shares_its_variables_is_another_one(self, function):
        net = Network()
        x = pinned(net)
        other = {
            "flip": lambda: net.transpose(x, 0, 1, 3, 2),
            "clip": lambda: net.clip(x, 0.0, 0.4),
            "pool": lambda: net.max_pool(x, 3, padding=1),
        }[function]()
        z = net.sum(other, bn(net, x), name="sum")
        stays(net, conv(net, z), reason=Reason.BRANCHES, blocker="sum")

    def test_a_shift_would_cross_zero_padding(self):
        net = Network()
        x = pinned(net)
        z = conv(net, net.sum(x, bn(net, x)), taps=3, padding=1, name="padded")
        stays(net, z, reason=Reason.PADDING, blocker="padded")

    def test_statistics_of_the_batch_are_not_constant(self):
        net = Network()
        x = pinned(net)
        z = net.sum(x, net.refused(x, Reason.BATCH_STATISTICS), name="sum")
        stays(net, conv(net, z), reason=Reason.BATCH_STATISTICS)

    @pytest.mark.parametrize(
        "known", [{"factors": g.Parameter.UNKNOWN}, {"summands": g.Parameter.UNKNOWN}]
    )
    def test_constants_that_may_change_are_not_built_on(self, known):
        net = Network()
        x = pinned(net)
        y = net.affine(bn(net, x), [1.0] * 3, [0.0] * 3, **{**FIXED, **known})
        plan = assert_fold_is_exact(net.output(conv(net, net.sum(x, y))))
        assert not plan.removed

    def test_a_banned_step_stays(self):
        net = Network()
        x = pinned(net)
        net.output(conv(net, net.sum(x, bn(net, x))))
        why = Obstacle(Reason.SHARED, "other")
        plan = assert_fold_is_exact(net, banned={net.number("bn"): why})
        assert plan.kept == {net.number("bn"): why}
        assert not plan.removed

    def test_one_module_at_two_sums_of_which_one_cannot_do_without(self):
        net = Network()
        x = pinned(net)
        y = net.sum(x, bn(net, x, tie="bn"))
        z = net.sum(y, bn(net, y, tie="bn"))
        plan = assert_fold_is_exact(net.output(conv(net, net.sigmoid(z))))
        assert not plan.removed

    def test_a_hook_inside_sees_its_value(self):
        net = Network()
        x = pinned(net)
        y = bn(net, x)
        net.output(y, reason=Reason.HOOK)
        stays(net, conv(net, net.sum(x, y)), reason=Reason.HOOK)

    # What must fold.

    @pytest.mark.parametrize("coefficients", [(1, 1), (0.5, 2.0), (1, -0.3), (-1, -1), (3, -1)])
    def test_a_sum_with_coefficients(self, coefficients):
        net = Network()
        x = pinned(net)
        z = net.sum(x, bn(net, x), coefficients=coefficients)
        goes(net, conv(net, z))

    @pytest.mark.parametrize(
        "gammas", [[1.0] * 3, [0.0, 1.0, -2.0], [1e-12, 1.0, 1e6], [-0.999] * 3]
    )
    def test_corners_of_gamma(self, gammas):
        net = Network()
        x = pinned(net)
        goes(net, conv(net, net.sum(x, net.affine(x, gammas, B[3]))))

    def test_the_reader_takes_it_in(self):
        net = Network()
        x = pinned(net)
        plan = goes(net, conv(net, net.sum(x, bn(net, x)), name="head"))
        assert plan.removed == {net.number("bn"): ("head",)}
        assert list(plan.linear) == [net.number("head")]
        np.testing.assert_allclose(
            plan.linear[net.number("head")].input_inverse, (1 + np.array(A[3])) / 2
        )

    def test_two_batch_norms(self):
        net = Network()
        x = pinned(net)
        y = net.affine(x, [0.2, 1.7, -3.0], [1.0, 0.0, -2.0])
        goes(net, conv(net, net.sum(bn(net, x), y)))

    def test_steps_in_a_row(self):
        net = Network()
        x = pinned(net)
        y = net.affine(bn(net, x), [0.2, 1.7, -3.0], [1.0, 0.0, -2.0])
        goes(net, conv(net, net.sum(y, x)))

    def test_steps_that_stay_multiply(self):
        net = Network()
        x = pinned(net)
        y = net.affine(bn(net, x), [0.5], [0.0], **FIXED)
        half = net.affine(x, [2.0], [0.0], **FIXED)
        goes(net, conv(net, net.sum(half, y)))

    def test_a_step_that_does_nothing_is_seen_through(self):
        net = Network()
        x = pinned(net)
        y = net.affine(bn(net, x), [1.0], [0.0], **FIXED)
        goes(net, conv(net, net.sum(x, y)))

    def test_a_copy_is_the_tensor(self):
        net = Network()
        x = pinned(net)
        (copied,) = net.view(list, x)
        goes(net, conv(net, net.sum(copied, bn(net, x))))

    @pytest.mark.parametrize("again", [False, True])
    def test_sums_inside_sums(self, again):
        net = Network()
        x = pinned(net)
        inner = net.sum(x, bn(net, x))
        if again:
            inner = net.affine(inner, [0.4, 3.0, -1.0], [0.2, 0.0, 1.0])
        goes(net, conv(net, net.sum(bn(net, x), inner)))

    def test_sums_of_sums_in_a_row(self):
        net = Network()
        x = pinned(net)
        for _ in range(4):
            x = net.sum(x, bn(net, x))
        goes(net, conv(net, x))

    def test_a_third_operand_that_is_free(self):
        net = Network()
        x = pinned(net)
        goes(net, conv(net, net.sum(x, bn(net, x), image(net))))

    def test_a_third_operand_that_is_pinned(self):
        net = Network()
        x = pinned(net)
        z = net.sum(x, bn(net, x), pinned(net), name="sum")
        stays(net, conv(net, z), reason=Reason.BRANCHES, blocker="sum")

    def test_somebody_reads_the_batch_norm_too(self):
        net = Network()
        x = image(net)
        y = bn(net, x)
        goes(net, conv(net, net.sum(x, y)), conv(net, y))

    def test_a_tensor_that_others_read_is_stored_as_it_is(self):
        net = Network()
        x = image(net)
        plan = goes(net, conv(net, net.sum(x, bn(net, x))), net.sigmoid(x))
        assert net.number("source") not in plan.linear

    def test_other_calls_of_the_module_go_along(self):
        net = Network()
        x = pinned(net)
        y = bn(net, image(net), tie="bn")
        goes(net, conv(net, net.sum(x, bn(net, x, tie="bn"))), conv(net, y))

    def test_one_channel_is_broadcast(self):
        net = Network()
        x = net.sigmoid(net.input(2, 1, 5, 5))
        y = net.affine(x, [0.7], [0.3])
        goes(net, conv(net, net.sum(x, y, image(net))))

    def test_on_the_last_axis(self):
        net = Network()
        x = net.sigmoid(net.input(2, 7, 4))
        goes(net, net.matrix(net.sum(x, bn(net, x, axis=2)), random(3, 4)))

    @pytest.mark.parametrize("clip", ["auto", "always", "never"])
    def test_a_relu_behind_it(self, clip):
        net = Network()
        x = pinned(net)
        z = net.clip(net.sum(x, bn(net, x)), name="relu")
        net.output(conv(net, z))
        plan = assert_fold_is_exact(net, clip=clip)
        assert len(plan.removed) == (clip != "never")

    def test_a_relu_with_bounds_that_cost_more_than_they_save(self):
        net = Network()
        x = pinned(net)
        z = net.clip(net.sum(x, bn(net, x)), name="relu", one_sided_cost=2.0)
        stays(net, conv(net, z), reason=Reason.CLIP_COST, blocker="relu")

    def test_a_relu_with_bounds_that_cost_less_than_they_save(self):
        net = Network()
        x = pinned(net)
        z = net.clip(net.sum(x, bn(net, x)), name="relu", one_sided_cost=0.5)
        goes(net, conv(net, z))


class TestCentreTap:
    """conv(x) + bn(x): the kernel's centre takes the difference."""

    def must_not(self, net: Network, x: int, beside: int) -> None:
        z = net.sigmoid(net.sum(beside, bn(net, x), name="sum"))
        plan = assert_fold_is_exact(net.output(conv(net, z)))
        assert not plan.removed
        assert all(edit.added is None for edit in plan.linear.values())

    def test_another_tensor_is_read(self):
        net = Network()
        x = pinned(net)
        self.must_not(net, x, same(net, pinned(net)))

    @pytest.mark.parametrize("outs", [1, 3])
    def test_other_channels_are_read(self, outs):
        net = Network()
        x = pinned(net)
        kernel = random(3, 3, 1, 1)
        y = net.conv(x, kernel[:outs], random(outs))
        (turned,) = net.view(lambda values: [np.roll(values[0], 1, axis=1)], x)
        self.must_not(net, x, y if outs == 1 else net.conv(turned, kernel, random(3)))

    def test_an_even_kernel_has_no_centre(self):
        net = Network()
        x = pinned(net)
        y = conv(net, x, 3, 2, padding=1)
        (cropped,) = net.view(lambda values: [values[0][:, :, 1:, 1:]], y)
        self.must_not(net, x, cropped)

    def test_a_stride_reads_other_places(self):
        net = Network()
        x = net.sigmoid(net.input(2, 3, 1, 1))
        self.must_not(net, x, same(net, x, stride=2))

    @pytest.mark.parametrize("weight", [g.Weight.FIXED, g.Weight.SIGNS])
    def test_a_weight_that_cannot_be_edited(self, weight):
        net = Network()
        x = pinned(net)
        kernel = np.sign(random(3, 3, 3, 3))
        self.must_not(net, x, net.conv(x, kernel, random(3), padding=1, weight=weight))

    def test_single_elements_that_cannot_be_edited(self):
        net = Network()
        x = pinned(net)
        self.must_not(net, x, same(net, x, centre=None))

    def test_a_weight_with_two_uses(self):
        net = Network()
        x = pinned(net)
        other = same(net, pinned(net), tie="kernel")
        net.output(net.sigmoid(other))
        self.must_not(net, x, same(net, x, tie="kernel"))

    def test_somebody_reads_the_convolution_too(self):
        net = Network()
        x = pinned(net)
        y = same(net, x)
        net.output(net.sigmoid(y))
        self.must_not(net, x, y)

    def test_a_function_in_between(self):
        net = Network()
        x = pinned(net)
        self.must_not(net, x, net.sigmoid(same(net, x)))

    def test_a_bias_that_cannot_take_the_shift(self):
        net = Network()
        x = pinned(net)
        self.must_not(net, x, same(net, x, bias_editable=False))

    def test_a_gamma_so_small_that_the_rest_would_drown(self):
        net = Network()
        x = pinned(net)
        y = net.affine(x, [1e-5, -2e-5, 1e-5], B[3], name="bn")
        z = net.sigmoid(net.sum(same(net, x), y))
        plan = assert_fold_is_exact(net.output(conv(net, z)))
        assert not plan.removed

    # What must fold.

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"groups": 3},
            {"taps": 1},
            {"taps": 5},
            {"dilation": 2},
            {"padding_mode": "wrap"},
            {"padding_mode": "reflect"},
        ],
    )
    def test_kinds_of_convolutions(self, options):
        if options.get("padding_mode") == "wrap":
            options = {"padding_mode": "circular"}
        net = Network()
        x = pinned(net)
        plan = goes(net, conv(net, net.sigmoid(net.sum(same(net, x, **options), bn(net, x)))))
        edit = plan.linear[net.number("same")]
        np.testing.assert_allclose(edit.added, np.array(A[3]) - 1)
        assert plan.removed == {net.number("bn"): ("same",)}

    def test_groups_of_several_channels(self):
        net = Network()
        x = pinned(net, 4)
        goes(net, conv(net, net.sigmoid(net.sum(same(net, x, groups=2), bn(net, x)))))

    @pytest.mark.parametrize("space", [(5,), (4, 5), (3, 4, 5)])
    def test_any_number_of_axes(self, space):
        net = Network()
        x = net.sigmoid(net.input(2, 3, *space))
        goes(net, net.sigmoid(net.sum(same(net, x), bn(net, x))))

    @pytest.mark.parametrize("groups", [1, 2])
    def test_a_transposed_convolution(self, groups):
        net = Network()
        x = pinned(net, 4)
        kernel = random(4, 4 // groups, 3, 3)
        y = net.conv_transpose(x, kernel, random(4), padding=1, groups=groups)
        goes(net, net.sigmoid(net.sum(y, bn(net, x))))

    @pytest.mark.parametrize("layout", [Layout.OUT_IN, Layout.IN_OUT])
    def test_a_matrix_product(self, layout):
        net = Network()
        x = net.sigmoid(net.input(2, 7, 3))
        y = net.matrix(x, random(3, 3), random(3), layout=layout)
        goes(net, net.sigmoid(net.sum(y, bn(net, x, axis=2))))

    @pytest.mark.parametrize("coefficients", [(1, 1), (2, -1), (-0.5, 3), (1, -1)])
    def test_coefficients(self, coefficients):
        net = Network()
        x = pinned(net)
        z = net.sum(same(net, x), bn(net, x), coefficients=coefficients)
        goes(net, conv(net, net.sigmoid(z)))

    @pytest.mark.parametrize("gammas", [[1.0] * 3, [0.0, 1.0, -2.0], [-1.0, 1e-2, 50.0]])
    def test_corners_of_gamma(self, gammas):
        net = Network()
        x = pinned(net)
        y = net.affine(x, gammas, B[3])
        goes(net, conv(net, net.sigmoid(net.sum(same(net, x), y))))

    def test_an_input_whose_own_scale_is_free_needs_no_addition(self):
        """The identity branch of RepVGG: nothing is added to the kernel."""
        net = Network()
        x = image(net)
        plan = goes(net, net.sigmoid(net.sum(same(net, x), bn(net, x))))
        assert plan.linear[net.number("same")].added is None

    def test_x_and_its_batch_norm_and_a_convolution(self):
        net = Network()
        x = pinned(net)
        z = net.sum(x, bn(net, x), same(net, x), coefficients=(1, -1, 1))
        goes(net, conv(net, net.sigmoid(z)))

    def test_two_convolutions(self):
        net = Network()
        x = pinned(net)
        y, z = same(net, x), same(net, x, taps=1, name="pointwise")
        plan = goes(net, net.sigmoid(net.sum(net.sum(bn(net, x), y), z)))
        assert sum(edit.added is not None for edit in plan.linear.values()) == 1

    @pytest.mark.parametrize("gammas", [[0.3, -1.2, 2.0], [0.3, 0.0, 2.0]])
    def test_a_batch_norm_behind_the_convolution(self, gammas):
        net = Network()
        x = pinned(net)
        y = net.affine(same(net, x), gammas, [0.1, 0.2, -0.3])
        goes(net, conv(net, net.sigmoid(net.sum(y, bn(net, x)))))

    @pytest.mark.parametrize("gammas", [[0.3, 0.0, 2.0], [0.0] * 3])
    def test_two_steps_behind_the_convolution(self, gammas):
        """As in Caffe: the constant of a gamma of 0 is made by the convolution before both."""
        net = Network()
        x = pinned(net)
        y = net.affine(same(net, x), [0.7, 1.1, -0.6], [0.2, -0.4, 0.5])
        y = net.affine(y, gammas, [0.1, 0.2, -0.3])
        goes(net, conv(net, net.sigmoid(net.sum(y, bn(net, x)))))

    def test_a_step_behind_the_convolution_that_stays(self):
        net = Network()
        x = pinned(net)
        y = net.affine(same(net, x), [0.3, -1.2, 2.0], [0.1, 0.2, -0.3], removal=g.Removal.UNASKED)
        goes(net, conv(net, net.sigmoid(net.sum(y, bn(net, x)))))

    def test_a_repmixer(self):
        """x + g * (mixer(x) - norm(x)) of FastViT, the mixer with an identity branch of its own."""
        net = Network()
        x = pinned(net)
        branches = [bn(net, same(net, x)), bn(net, same(net, x, taps=1, name="one")), bn(net, x)]
        mixed = net.sum(net.sum(*branches[:2]), branches[2])
        norm = net.affine(bn(net, x, name="norm"), [1.0], [0.0], **FIXED)
        inner = net.sum(mixed, norm, coefficients=(1, -1))
        scaled = net.affine(inner, [1e-2, -0.3, 0.2], np.zeros(3), name="scale")
        goes(net, conv(net, net.sum(x, scaled)), net.sigmoid(x))

    def test_a_step_behind_the_sum_goes_too(self):
        net = Network()
        x = pinned(net)
        z = net.sum(same(net, x), bn(net, x))
        goes(net, net.sigmoid(net.affine(z, [0.3, -1.2, 2.0], [0.1, 0.2, -0.3])))

    def test_a_step_behind_a_sum_goes_into_all_of_its_parts(self):
        """A BatchNorm that cannot be taken out can still take in its share."""
        net = Network()
        x = pinned(net)
        z = net.sum(same(net, x, centre=None), bn(net, x, removal=g.Removal.UNASKED))
        z = net.affine(z, [0.3, -1.2, 2.0], [0.1, 0.2, -0.3], name="lab")
        net.output(net.sigmoid(z))
        assert removed_names(net, assert_fold_is_exact(net)) == ["lab"]

    def test_what_is_inside_holds_nothing_of_its_own(self):
        net = Network()
        x = pinned(net)
        y, step = same(net, x), bn(net, x)
        z = net.sum(y, step)
        net.output(net.sigmoid(z))
        rescalings = PlanRescalings(make_plan(net.graph))
        assert not rescalings.of(y).known.any()
        assert not rescalings.of(step).known.any()
        assert rescalings.of(z).known.all()
        assert rescalings.of(x).known.all()


class TestWhole:
    def test_nothing_that_goes_today_is_given_up_for_it(self):
        """Together the two steps in the sum could go, but then not the three behind it."""
        net = Network()
        x = pinned(net)
        z = net.sum(x, bn(net, x), name="sum")
        for name in ("b", "c"):
            z = net.affine(z, A[3], B[3], name=name)
        net.output(z)
        plan = assert_fold_is_exact(net)
        assert len(plan.removed) == 2

    def test_a_step_in_front_that_has_no_way_to_stay_keeps_its_removal(self):
        """With the sum as a whole, its input would need a shift that the first step cannot take."""
        net = Network()
        x = net.sigmoid(net.input(2, 3, 5, 5))
        u = net.affine(x, [1.0] * 3, B[3], summands=g.Parameter.FIXED, name="first")
        steps = [net.affine(u, [1.0] * 3, shift) for shift in ([0.2, 0.5, -0.3], [1.0, 2.0, 3.0])]
        y = conv(net, net.sum(*steps), taps=3, padding=1)
        z = net.leaky(y)
        seen = [net.affine(z, [-1.3] * 3, shift) for shift in (A[3], B[3])]
        net.output(conv(net, net.sum(*seen, z), name="head"))
        plan = assert_fold_is_exact(net)
        assert net.number("first") in plan.removed
        again = make_plan(apply_plan(net, plan).graph)
        assert not again.removed

    def test_a_second_fold_changes_nothing(self):
        net = Network()
        x = pinned(net)
        z = net.sum(same(net, x), bn(net, x), x)
        folded = net.output(net.sigmoid(z))
        folded = apply_plan(net, make_plan(net.graph))
        again = make_plan(folded.graph)
        assert not (again.removed or again.linear or again.affine or again.clip)

    def test_an_overflow_at_the_centre_keeps_the_step(self):
        net = Network()
        x = pinned(net)
        net.output(net.sigmoid(net.sum(same(net, x), bn(net, x))))
        banned = ban_overflow(make_plan(net.graph), [net.number("same")])
        assert banned == {net.number("bn"): Obstacle(Reason.OVERFLOW, "same")}
        plan = assert_fold_is_exact(net, banned=banned)
        assert not plan.removed

    def test_an_overflow_at_the_reader_keeps_the_step(self):
        net = Network()
        x = pinned(net)
        net.output(conv(net, net.sum(x, bn(net, x)), name="head"))
        banned = ban_overflow(make_plan(net.graph), [net.number("head")])
        assert list(banned) == [net.number("bn")]


class TestMoved:
    """x + bn(x.mT).mT: what lies elsewhere in between comes back to its place."""

    def tokens(self, net: Network, length: int = 5, channels: int = 3) -> int:
        return net.sigmoid(net.input(2, length, channels))

    def head(self, net: Network, x: int) -> int:
        channels = net.shape(x)[-1]
        return net.matrix(x, random(4, channels), random(4), name="head")

    def test_what_does_not_come_back_is_another_tensor(self):
        """Of 3 rows of 3 channels: a sum with the transposed."""
        net = Network()
        x = self.tokens(net, 3, 3)
        z = net.sum(x, bn(net, net.transpose(x, 0, 2, 1)), name="sum")
        stays(net, self.head(net, z), reason=Reason.BRANCHES)

    def test_nor_what_comes_back_in_another_order(self):
        net = Network()
        x = self.tokens(net, 4, 4)
        y = bn(net, net.transpose(x, 0, 2, 1))
        (back,) = net.view(lambda values: [values[0].reshape(values[0].shape[0], 4, 4)], y)
        stays(net, self.head(net, net.sum(x, back)), reason=Reason.BRANCHES)

    def test_nor_a_part(self):
        net = Network()
        x = self.tokens(net, 4, 3)
        y = bn(net, net.transpose(x, 0, 2, 1))
        (again,) = net.view(lambda values: [values[0][..., [0, 1, 1, 3]]], y)
        stays(
            net, self.head(net, net.sum(x, net.transpose(again, 0, 2, 1))), reason=Reason.BRANCHES
        )

    def test_nor_by_chance_where_an_axis_has_one_entry(self):
        """With two rows a reshape in place of a transpose is something else."""
        net = Network()
        x = self.tokens(net, 1, 3)
        y = bn(net, net.transpose(x, 0, 2, 1))
        (back,) = net.view(lambda values: [values[0].reshape(-1, 1, 3)], y)
        stays(net, self.head(net, net.sum(x, back)), reason=Reason.BRANCHES)

    def test_transposed(self):
        net = Network()
        x = self.tokens(net)
        y = net.transpose(bn(net, net.transpose(x, 0, 2, 1)), 0, 2, 1)
        goes(net, self.head(net, net.sum(x, y, coefficients=(2.0, 0.5))))

    def test_as_many_rows_as_channels(self):
        net = Network()
        x = self.tokens(net, 3, 3)
        y = net.transpose(bn(net, net.transpose(x, 0, 2, 1)), 0, 2, 1)
        goes(net, self.head(net, net.sum(y, x)))

    def test_in_rows(self):
        net = Network()
        x = self.tokens(net)
        (rows,) = net.view(lambda values: [values[0].reshape(-1, 3)], x)
        (back,) = net.view(lambda values: [values[0].reshape(2, 5, 3)], bn(net, rows))
        goes(net, self.head(net, net.sum(x, back)))

    def test_several_steps_in_several_places(self):
        net = Network()
        x = self.tokens(net)
        y = bn(net, net.transpose(bn(net, x, "inner", axis=2), 0, 2, 1))
        y = bn(net, net.transpose(y, 0, 2, 1), "outer", axis=2)
        goes(net, self.head(net, net.sum(x, y)))

    def test_a_step_per_row(self):
        """Its constants lie along another axis than those of the channels."""
        net = Network()
        x = self.tokens(net, 4, 3)
        y = net.affine(net.transpose(x, 0, 2, 1), A[4], B[4], axis=2, name="bn")
        z = net.sum(x, net.transpose(y, 0, 2, 1))
        stays(net, self.head(net, z), reason=Reason.BRANCHES)

    def test_behind_what_is_said_of_other_lengths(self):
        net = Network()
        x = self.tokens(net)
        (turned,) = net.view(lambda values: [np.transpose(values[0], (0, 2, 1))], x)

        def alike(tensor: int, axis: int) -> int:
            role = g.Alike((axis,))
            (made,) = net.add(
                role, [tensor], [net.shape(tensor)], function=lambda values: [*values]
            )
            return made

        y = bn(net, alike(turned, 2))
        goes(net, self.head(net, net.sum(x, alike(net.transpose(y, 0, 2, 1), 1))))

    def test_the_tap_of_a_matrix(self):
        net = Network()
        x = self.tokens(net)
        linear = net.matrix(x, random(3, 3), random(3), name="linear", centre=())
        y = net.transpose(bn(net, net.transpose(x, 0, 2, 1)), 0, 2, 1)
        goes(net, self.head(net, net.sigmoid(net.sum(linear, y))))
