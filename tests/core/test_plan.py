"""Edits, the ops that took a step in, and the way back from an overflow."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core.plan import AffineEdit, ClipEdit, ban_overflow, make_plan
from bnfold.core.reasons import Reason
from tests.core.interpreter import Network, assert_fold_is_exact

RNG = np.random.default_rng(9)
K = RNG.standard_normal((4, 3, 3, 1, 1))
A, B = [1.5, -0.6, 0.25], [0.3, -1.1, 0.8]


class TestNothingToDo:
    def test_an_empty_network(self):
        plan = make_plan(Network().graph)
        assert not (plan.removed or plan.kept or plan.linear or plan.affine or plan.clip)

    def test_a_network_without_affine_steps_is_not_edited(self):
        net = Network()
        x = net.clip(net.conv(net.input(1, 3, 4, 4), K[0]), 0, 6)
        x = net.sum(x, net.conv(x, K[1]))
        plan = assert_fold_is_exact(net.output(net.max_pool(x)))
        assert not (plan.linear or plan.affine or plan.clip)

    def test_a_kept_step_far_from_any_removal_is_not_edited(self):
        net = Network()
        x = net.affine(net.input(1, 3, 4, 4), A, B, name="kept")
        x = net.sigmoid(net.leaky(x))
        x = net.affine(net.conv(x, K[0]), A, B, name="gone")
        plan = assert_fold_is_exact(net.output(net.leaky(x)))
        assert not plan.affine
        assert set(plan.linear) == {3}

    def test_a_constant_that_is_not_editable_is_not_rounded_anew(self):
        """s_y / s_x is 1, and 1/s_x times s_y is not always."""
        for seed in range(20):
            a = np.random.default_rng(seed).uniform(0.5, 2.0)
            net = Network()
            x = net.affine(net.input(1, 3, 4, 4), [a] * 3, [0, 0, 0], name="gone")
            x = net.affine(
                x, A, B, name="kept", removal=g.Removal.UNASKED, factors=g.Parameter.FIXED
            )
            plan = assert_fold_is_exact(net.output(net.conv(net.leaky(x), K[0])))
            for edit in plan.affine.values():
                assert edit.scale.reshape(-1).tolist() == A

    def test_a_summand_that_is_not_editable_is_not_rounded_anew(self):
        """b - a * t_x + t_y is b, and in floating point, in the last channel, it is not."""
        net = Network()
        x = net.affine(net.input(1, 3, 4, 4), [2.6, 0.6, 2.3], [-0.7, -0.5, -0.3], name="gone")
        step = {"removal": g.Removal.UNASKED, "summands": g.Parameter.FIXED}
        x = net.affine(x, [0.8, 2.2, 2.1], [0.4, 1.0, -0.1], name="kept", **step)
        plan = assert_fold_is_exact(net.output(net.conv(x, K[0])))
        (edit,) = plan.affine.values()
        assert edit.shift.reshape(-1).tolist() == [0.4, 1.0, -0.1]

    def three_steps(self, last: list[float]) -> Network:
        """Factors whose product, as the solver multiplies them, is 1 up to rounding."""
        net = Network()
        x = net.affine(net.input(1, 3, 4, 4), [0.1, 0.7, 3.0], [0, 0, 0])
        x = net.affine(x, [103.0, 49.0, 98.0], [0, 0, 0])
        return net.output(net.conv(net.affine(x, last, [0, 0, 0]), K[0]))

    LAST = [1 / (0.1 * 103), 1 / (0.7 * 49), 1 / (3 * 98)]

    def test_scales_that_cancel_up_to_rounding_cost_no_edit(self):
        plan = assert_fold_is_exact(self.three_steps(self.LAST))
        assert len(plan.removed) == 3
        assert not plan.linear

    def test_only_a_sign_is_left_of_them(self):
        plan = assert_fold_is_exact(self.three_steps([-last for last in self.LAST]))
        assert plan.linear[3].input_inverse.tolist() == [-1.0] * 3

    @pytest.mark.parametrize("little", [1e-11, -1e-11])
    def test_a_scale_near_1_is_not_1(self, little):
        net = Network()
        x = net.affine(net.input(1, 3, 4, 4), [1 + little] * 3, [0, 0, 0])
        plan = assert_fold_is_exact(net.output(net.conv(x, K[0])))
        np.testing.assert_allclose(plan.linear[1].input_inverse - 1, little, rtol=1e-4)

    def test_an_identity_step_costs_no_edit(self):
        net = Network()
        x = net.affine(net.conv(net.input(1, 3, 4, 4), K[0]), [1, 1, 1], [0, 0, 0])
        plan = assert_fold_is_exact(net.output(x))
        assert list(plan.removed) == [1]
        assert not plan.linear


class TestInto:
    def into(self, net: Network, step: str) -> tuple[str, ...]:
        return assert_fold_is_exact(net).removed[net.number(step)]

    def test_the_convolution_before(self):
        net = Network()
        x = net.conv(net.input(1, 3, 4, 4), K[0], name="before")
        x = net.affine(x, A, B, name="bn")
        net.output(net.conv(net.clip(x), K[1], name="after"))
        assert self.into(net, "bn") == ("before",)

    def test_the_convolution_after(self):
        net = Network()
        x = net.affine(net.input(1, 3, 4, 4), A, B, name="bn")
        net.output(net.conv(x, K[1], name="after"))
        assert self.into(net, "bn") == ("after",)

    def test_all_convolutions_after(self):
        net = Network()
        x = net.affine(net.input(1, 3, 4, 4), A, B, name="bn")
        net.output(net.conv(net.clip(x), K[0], name="one"), net.conv(x, K[1], name="two"))
        assert self.into(net, "bn") == ("one", "two")

    def test_what_made_the_operands_of_a_sum(self):
        net = Network()
        i = net.input(1, 3, 4, 4)
        x = net.sum(net.conv(i, K[0], name="one"), net.conv(i, K[1], name="two"))
        net.output(net.sigmoid(net.affine(x, A, B, name="bn")))
        assert self.into(net, "bn") == ("one", "two")

    def test_an_affine_step_that_stays(self):
        net = Network()
        x = net.affine(net.input(1, 3, 4, 4), A, B, name="gone")
        net.output(net.affine(x, A, B, name="kept"))
        assert self.into(net, "gone") == ("kept",)

    def test_both_sides_of_a_concat(self):
        net = Network()
        i = net.input(1, 3, 4, 4)
        one = net.conv(i, K[0][:1], name="one")
        two = net.conv(i, K[1][:2], name="two")
        x = net.affine(net.concat(one, two), A, B, name="bn")
        net.output(net.conv(net.leaky(x), K[2], name="after"))
        assert self.into(net, "bn")


class TestOverflow:
    def net(self) -> Network:
        net = Network()
        x = net.conv(net.input(1, 3, 4, 4), K[0], name="one")
        x = net.leaky(net.affine(x, A, B, name="first"))
        x = net.conv(x, K[1], name="two")
        return net.output(net.leaky(net.affine(x, A, B, name="second")))

    def test_the_steps_behind_an_edit_are_banned(self):
        net = self.net()
        banned = ban_overflow(make_plan(net.graph), [net.number("two")])
        assert set(banned) == {net.number("second")}
        assert banned[net.number("second")].reason is Reason.OVERFLOW
        assert banned[net.number("second")].blocker == "two"

    def test_a_step_in_front_of_an_edit_is_banned(self):
        """The other branch has nothing to do with it."""
        net = Network()
        x = net.input(1, 3, 4, 4)
        y, z = net.affine(x, A, B, name="one"), net.affine(x, B, A, name="other")
        net.output(net.conv(y, K[0], name="reader"), net.conv(z, K[1]))
        banned = ban_overflow(make_plan(net.graph), [net.number("reader")])
        assert set(banned) == {net.number("one")}

    def test_a_step_of_the_same_stream_is_banned(self):
        """What the last convolution reads is no step's output, but of a class with both steps'."""
        net = self.net()  # another stream
        i = net.input(1, 3, 4, 4)
        x = net.conv(i, K[0])
        y, z = net.affine(x, B, A, name="bn1"), net.affine(x, A, B, name="bn2")
        y = net.sum(net.split(y, 1)[0], net.conv(i, K[1][:1]))
        net.output(net.conv(y, K[2][:, :1], name="reader"), net.conv(z, K[3]))
        banned = ban_overflow(make_plan(net.graph), [net.number("reader")])
        assert set(banned) == {net.number("bn1"), net.number("bn2")}

    def test_a_step_behind_a_sum_with_what_is_stored_as_it_is(self):
        """The input pins the scale of all of them: a step elsewhere may have to go with it."""
        net = Network()
        i = net.input(1, 3, 4, 4)
        x = net.sum(net.affine(i, A, B, name="bn"), net.conv(i, K[0]))
        net.output(net.conv(x, K[1], name="reader"))
        plan = assert_fold_is_exact(net)
        assert list(plan.removed) == [net.number("bn")]
        assert set(ban_overflow(plan, [net.number("reader")])) == {net.number("bn")}

    @pytest.mark.parametrize(
        ("scale", "shift", "expected"),
        [
            (1.0, 0.0, {"one"}),
            (1.0, 0.5, {"one", "other"}),
            (4.0, 0.0, {"one", "other"}),
            (0.25, 0.0, {"one", "other"}),
            (-1.0, 0.0, {"one", "other"}),
            (0.0, 0.0, {"one", "other"}),
        ],
    )
    def test_a_step_that_changed_nothing_there_is_not_banned(self, scale, shift, expected):
        net = Network()
        x, y = net.split(net.input(1, 3, 4, 4), 2)
        x = net.affine(x, [2.0, 3.0], [0.5, 0.6], name="one")
        y = net.affine(y, [scale], [shift], name="other")
        net.output(net.conv(net.concat(x, y), K[0], name="reader"))
        plan = assert_fold_is_exact(net)
        assert len(plan.removed) == 2
        banned = ban_overflow(plan, [net.number("reader")])
        assert {net.graph.ops[number].name for number in banned} == expected

    def test_a_step_in_front_of_bounds_that_do_not_fit_is_banned(self):
        net = Network()
        x = net.input(1, 3, 4, 4)
        y, z = net.affine(x, A, B, name="one"), net.affine(x, B, A, name="other")
        y = net.clip(y, -1.0, 2.0, name="act")
        net.output(net.conv(y, K[0], name="reader"), net.conv(z, K[1]))
        plan = make_plan(net.graph, clip="always")
        assert list(plan.clip) == [net.number("act")]
        banned = ban_overflow(plan, [net.number("act")])
        assert set(banned) == {net.number("one")}
        assert banned[net.number("one")].blocker == "act"
        assert not make_plan(net.graph, clip="always", banned=banned).clip

    def test_a_step_behind_bounds_that_do_not_fit_is_banned(self):
        net = Network()
        x = net.clip(net.conv(net.input(1, 3, 4, 4), K[0]), -1.0, 2.0, name="act")
        net.output(net.leaky(net.affine(x, A, B, name="bn")))
        plan = make_plan(net.graph, clip="always")
        assert set(ban_overflow(plan, [net.number("act")])) == {net.number("bn")}

    @pytest.mark.parametrize(
        ("lower", "upper", "largest", "fits"),
        [
            ([-1.0, -2.0], [np.inf, np.inf], 2.0, True),
            ([-1.0, -2.5], [np.inf, np.inf], 2.0, False),
            ([-np.inf, -np.inf], [2.5, 1.0], 2.0, False),
            ([-np.inf, -1.0], [1.0, np.inf], 2.0, True),
            ([-np.inf, -np.inf], [np.inf, np.inf], 2.0, True),
            ([-np.inf, -9.0], [1.0, np.inf], 2.0, False),
        ],
    )
    def test_bounds_fit_where_no_finite_one_becomes_infinite(self, lower, upper, largest, fits):
        assert ClipEdit(np.array(lower), np.array(upper)).fits(largest) == fits

    def test_a_plan_under_the_ban_leaves_the_op_alone(self):
        net = self.net()
        banned = ban_overflow(make_plan(net.graph), [net.number("one")])
        plan = assert_fold_is_exact(net, banned=banned)
        assert net.number("one") not in plan.linear
        assert list(plan.removed) == [net.number("second")]

    def test_all_calls_of_a_module_are_banned_together(self):
        net = Network()
        x = net.conv(net.input(1, 3, 4, 4), K[0], name="one")
        x = net.leaky(net.affine(x, A, B, tie="m"))
        x = net.conv(x, K[1], name="two")
        net.output(net.leaky(net.affine(x, A, B, tie="m")))
        banned = ban_overflow(make_plan(net.graph), [net.number("two")])
        assert set(banned) == {1, 4}

    def test_repeated_bans_come_to_an_end(self):
        net = self.net()
        banned = {}
        for _ in range(5):
            plan = assert_fold_is_exact(net, banned=banned)
            if not plan.linear:
                break
            banned |= ban_overflow(plan, list(plan.linear))
        assert not plan.linear
        assert not plan.removed


class TestEdits:
    def test_a_bias_is_asked_for_only_where_it_is_needed(self):
        net = Network()
        x = net.affine(net.input(1, 3, 4, 4), A, [0.0] * 3)
        y = net.affine(net.input(1, 3, 4, 4), A, B)
        net.output(net.conv(x, K[0], name="scaled"), net.conv(y, K[1], name="shifted"))
        plan = assert_fold_is_exact(net)
        assert not plan.linear[net.number("scaled")].needs_bias
        assert plan.linear[net.number("scaled")].rescales
        assert plan.linear[net.number("shifted")].needs_bias

    def test_a_kept_step_takes_its_neighbours_in(self):
        net = Network()
        x = net.affine(net.input(1, 3, 4, 4), A, B, name="gone")
        net.output(net.affine(x, [2.0, -1.0, 0.5], [1.0, 0.0, -1.0], name="kept"))
        edit = assert_fold_is_exact(net).affine[1]
        np.testing.assert_allclose(edit.scale.reshape(-1), np.multiply(A, [2.0, -1.0, 0.5]))
        np.testing.assert_allclose(
            edit.shift.reshape(-1), np.add(np.multiply(B, [2.0, -1.0, 0.5]), [1.0, 0.0, -1.0])
        )
        assert edit.scale.shape == (1, 3, 1, 1)
        np.testing.assert_allclose(edit.input_scale.reshape(-1), 1 / np.array(A))
        np.testing.assert_allclose(edit.input_shift.reshape(-1), -np.array(B))

    @pytest.mark.parametrize("bounds", [(-np.inf, 6.0), (0.0, np.inf), (0.0, 6.0)])
    @pytest.mark.parametrize(
        ("scale", "shift"),
        [([1, 1, 1], [0.5, 0, 0]), ([-0.5, 1, 1], [0, 0, 0]), ([0.5, 1, 1], [0, 0, 0])],
    )
    def test_one_channel_is_enough_for_other_bounds(self, scale, shift, bounds):
        net = Network()
        x = net.clip(net.affine(net.input(1, 3, 4, 4), scale, shift, name="bn"), *bounds)
        plan = assert_fold_is_exact(net.output(net.conv(x, K[0])), clip="always")
        assert list(plan.removed) == [0]
        moved = not (scale[0] > 0 and shift == [0, 0, 0] and bounds == (0.0, np.inf))
        assert bool(plan.clip) == moved


class TestMovedMean:
    """What a kept BatchNorm subtracts: its mean, or the mean of what is stored."""

    MEAN = np.array([3.0, -2.0, 0.5])

    def edit(self, *scale: float) -> AffineEdit:
        """(1, 3, 1, 1), with the shifts 1, 2 and 4."""
        one = np.ones((1, 3, 1, 1))
        shift = np.array([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
        return AffineEdit(one, one, np.reshape(scale, (1, 3, 1, 1)), shift)

    @pytest.mark.parametrize("scale", [1.0, -1.0, 1e6, 0.125, -0.125])
    def test_it_stays_where_it_takes_no_digits(self, scale):
        assert self.edit(1.0, scale, 2.0).moved_mean(self.MEAN).tolist() == self.MEAN.tolist()

    @pytest.mark.parametrize("scale", [0.12, -0.12, 1e-3])
    def test_it_moves_with_an_input_that_is_stored_much_smaller(self, scale):
        moved = self.edit(1.0, scale, 2.0).moved_mean(self.MEAN)
        assert moved.tolist() == [4.0, 0.0, 9.0]
        moved = self.edit(scale, scale, scale).moved_mean(self.MEAN)
        np.testing.assert_allclose(moved, [scale * 4.0, 0.0, scale * 4.5])
