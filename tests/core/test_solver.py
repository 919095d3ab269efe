"""The order of removals, restarts, bans and the range of scales."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core import clip_price, solver
from bnfold.core import graph as g
from bnfold.core.blame import Obstacle
from bnfold.core.plan import make_plan
from bnfold.core.reasons import Reason
from tests.core.interpreter import Network, assert_fold_is_exact, removed_names

RNG = np.random.default_rng(5)
K = RNG.standard_normal((6, 3, 3, 1, 1))
A, B = [1.5, -0.6, 0.25], [0.3, -1.1, 0.8]
FIXED = {"removal": g.Removal.UNASKED, "factors": g.Parameter.FIXED, "summands": g.Parameter.FIXED}


def chain(names: str = "abc", **options) -> Network:
    """input -> bn -> bn -> ... -> output: all but one can go."""
    net = Network()
    x = net.input(2, 3, 4, 4)
    for name in names:
        x = net.affine(x, A, B, name=name, **options)
    return net.output(x)


def joint(room: bool) -> Network:
    """(x+y)+w and (x+w)+y are one value, and both want to pass an activation plainly."""
    net = Network()
    i = net.input(2, 3, 4, 4)
    x, y, w = (net.conv(i, K[k]) for k in range(3))
    one = net.clip(net.sum(net.sum(x, y), w), room=room)
    two = net.affine(net.sum(net.sum(x, w), y), np.abs(A), B, name="bn")
    two = net.clip(two, room=room)
    return net.output(net.conv(one, K[3]), net.conv(two, K[4]))


class TestTogether:
    """All steps in one go is only quicker: the plan is that of one after the other."""

    def one_by_one(self, monkeypatch):
        monkeypatch.setattr(solver, "_remove_together", lambda solution, options: False)

    @pytest.mark.parametrize("make", [lambda: chain("abcdefg"), lambda: joint(room=True)])
    def test_the_same_plan_either_way(self, monkeypatch, make):
        together = assert_fold_is_exact(make())
        self.one_by_one(monkeypatch)
        alone = assert_fold_is_exact(make())
        assert together.removed == alone.removed
        assert together.kept == alone.kept
        assert together.linear.keys() == alone.linear.keys()
        for number, edit in together.linear.items():
            np.testing.assert_allclose(edit.output_scale, alone.linear[number].output_scale)
            np.testing.assert_allclose(edit.output_shift, alone.linear[number].output_shift)

    def test_a_step_that_stays_has_its_own_blocker(self, monkeypatch):
        net = Network()
        x = net.affine(net.conv(net.input(2, 3, 4, 4), K[0]), A, B, name="goes")
        x = net.affine(net.clip(x, room=False), A, B, name="stays")
        net.output(x)
        together = assert_fold_is_exact(net)
        assert removed_names(net, together) == ["goes"]
        self.one_by_one(monkeypatch)
        assert make_plan(net.graph).kept == together.kept

    def test_a_long_chain_leaves_short_paths(self):
        plan = assert_fold_is_exact(chain("a" * 64))
        assert plan.solution is not None
        shift = plan.solution.binding.system.shift
        depth, at = 0, np.arange(len(shift.parent))
        while (shift.parent[at] != at).any():
            depth, at = depth + 1, shift.parent[at]
        assert depth <= 3


class TestBans:
    def test_a_banned_step_stays_for_the_reason_given(self):
        obstacle = Obstacle(Reason.OVERFLOW, "conv9")
        plan = assert_fold_is_exact(chain(), banned={0: obstacle})
        assert plan.kept == {0: obstacle}
        assert len(plan.removed) == 2

    def test_a_ban_holds_for_all_calls_of_a_module(self):
        net = Network()
        x = net.conv(net.input(2, 3, 4, 4), K[0])
        x = net.affine(x, A, B, tie="m")
        x = net.affine(net.conv(x, K[1]), A, B, tie="m")
        net.output(x)
        assert len(assert_fold_is_exact(net).removed) == 2
        plan = assert_fold_is_exact(net, banned={3: Obstacle(Reason.OVERFLOW, None)})
        assert not plan.removed

    def test_banning_all_changes_nothing_at_all(self):
        net = chain()
        plan = assert_fold_is_exact(
            net, banned=dict.fromkeys(range(3), Obstacle(Reason.HOOK, None))
        )
        assert not (plan.removed or plan.linear or plan.affine or plan.clip)


class TestOrder:
    def test_the_first_steps_win(self):
        net = chain()
        assert removed_names(net, assert_fold_is_exact(net)) == ["a", "b"]

    def test_the_decision_does_not_depend_on_the_run(self):
        assert make_plan(chain().graph).removed == make_plan(chain().graph).removed

    def test_what_one_removal_blocks_stays_and_the_next_is_tried(self):
        """Two parallel norms of two inputs meet in a sum; a third step after it is free."""
        net = Network()
        i, j = net.input(2, 3, 4, 4), net.input(2, 3, 4, 4)
        x = net.sum(net.affine(i, A, B, name="a"), net.affine(j, B, A, name="b"))
        x = net.conv(net.affine(x, A, B, name="c"), K[0])
        assert removed_names(net, assert_fold_is_exact(net.output(x))) == ["a", "c"]


class TestStiffSteps:
    """A step that would keep its factors or summands is tried first where one stays."""

    FACTOR = {"summands": g.Parameter.FIXED}
    SUMMAND = {"factors": g.Parameter.FIXED}
    NEITHER = {"factors": g.Parameter.FIXED, "summands": g.Parameter.FIXED}

    @pytest.mark.parametrize(
        "kinds",
        [
            ["bn", "neither"],
            ["neither", "bn"],
            ["bn", "factor", "summand"],
            ["summand", "factor", "bn"],
            ["factor", "bn", "summand"],
            ["bn", "neither", "neither", "summand"],
            ["neither", "bn", "factor", "bn2"],
        ],
    )
    def test_one_step_takes_all_others_in(self, kinds):
        net = Network()
        x = net.input(2, 3, 4, 4)
        for place, kind in enumerate(kinds):
            a = A if kind != "summand" else [1.0] * 3
            b = B if kind != "factor" else [0.0] * 3
            options = getattr(self, kind.upper(), {})
            x = net.affine(x, a, b, name=f"{kind} {place}", **options)
        plan = assert_fold_is_exact(net.output(net.sigmoid(x, name="sigmoid")))
        (kept,) = plan.kept
        assert net.graph.ops[kept].name.startswith("bn")
        assert plan.kept[kept] == Obstacle(Reason.NONLINEAR, "sigmoid")

    def test_with_zeros_among_the_factors(self):
        net = Network()
        x = net.conv(net.input(2, 3, 4, 4), K[0])
        x = net.affine(x, A, B, name="bn")
        x = net.affine(net.sigmoid(x), A, B, name="bn2")
        x = net.affine(x, [0.0, 2.0, 0.5], [0.0] * 3, name="zeros", **self.NEITHER)
        assert_fold_is_exact(net.output(net.conv(net.affine(x, A, B, name="bn3"), K[1])))


class TestRestarts:
    def test_a_step_that_must_not_be_edited_after_all_holds_from_the_start(self):
        """Its law of staying contradicts what went before it was refused."""
        net = Network()
        x = net.affine(net.input(2, 3, 4, 4), A, B, name="first")
        x = net.affine(
            x, B, A, name="second", factors=g.Parameter.FIXED, summands=g.Parameter.FIXED
        )
        plan = assert_fold_is_exact(net.output(net.sigmoid(x)))
        assert len(plan.removed) + len(plan.kept) == 2

    def test_kept_from_the_start_is_remembered(self):
        net = Network()
        x = net.affine(net.input(2, 3, 4, 4), A, B, name="first")
        x = net.affine(
            x, B, A, name="second", factors=g.Parameter.FIXED, summands=g.Parameter.FIXED
        )
        banned = {1: Obstacle(Reason.HOOK, None)}
        plan = assert_fold_is_exact(net.output(x), banned=banned)
        assert plan.solution is not None
        assert 1 in plan.solution.binding.kept_from_start
        assert not plan.removed

    def test_two_calls_one_refused_late(self):
        net = Network()
        x = net.affine(net.input(2, 3, 4, 4), A, B, name="before")
        x = net.affine(x, B, A, name="first", tie="m")
        y = net.affine(net.input(2, 3, 4, 4), B, A, name="second", tie="m")
        plan = assert_fold_is_exact(net.output(net.conv(x, K[0]), net.sigmoid(y)))
        assert {net.number("first"), net.number("second")} <= set(plan.kept)

    def test_sums_that_contradict_jointly_keep_a_step(self):
        plan = assert_fold_is_exact(joint(room=False))
        assert list(plan.removed) == []

    def test_sums_that_contradict_jointly_give_one_clip_bounds(self):
        """Both clips cannot stay plain; that is no reason to keep the step, or to fail."""
        net = joint(room=True)
        plan = assert_fold_is_exact(net)
        assert removed_names(net, plan) == ["bn"]
        assert len(plan.clip) == 1

    @pytest.mark.parametrize("mode", ["auto", "always", "never"])
    def test_joint_contradictions_in_every_mode(self, mode):
        assert_fold_is_exact(joint(room=True), clip=mode)

    def test_sums_that_contradict_jointly_without_any_activation(self):
        """Found by the removal itself, in the careful attempt."""
        net = Network()
        i = net.input(2, 3, 4, 4)
        x, y, w = (net.conv(i, K[k]) for k in range(3))
        one = net.affine(net.sum(net.sum(x, y), w), [1, 1, 1], B, name="a")
        two = net.affine(net.sum(net.sum(x, w), y), [1, 1, 1], A, name="b")
        plan = assert_fold_is_exact(net.output(net.leaky(one), net.leaky(two)))
        assert removed_names(net, plan) == ["a"]
        assert plan.kept[net.number("b")].reason is Reason.BRANCHES

    def test_the_law_of_staying_takes_part_in_joint_contradictions(self):
        """A kept step that passes its shift on pins what only the sums together contradict."""
        net = Network()
        i = net.input(2, 3, 4, 4)
        x, y, w = (net.conv(i, K[k]) for k in range(3))
        one = net.affine(net.sum(net.sum(x, y), w), [1, 1, 1], B, name="a")
        two = net.affine(
            net.sum(net.sum(x, w), y), [1, 1, 1], A, name="b", summands=g.Parameter.FIXED, tie="b"
        )
        assert_fold_is_exact(net.output(net.sigmoid(one), net.sigmoid(two)))


class TestRange:
    def net(self, gamma: float, **options) -> Network:
        net = Network()
        x = net.conv(net.input(2, 3, 4, 4), K[0])
        x = net.affine(x, [1.0, gamma, -2.0], B, name="bn", **options)
        x = net.conv(net.clip(x), K[1], name="next")
        return net.output(x)

    def test_a_scale_out_of_range_keeps_the_step_and_says_so(self):
        """The input is stored as it is, so the output would be stored 1e5 times too large."""
        net = Network()
        x = net.affine(net.input(2, 3, 4, 4), [1.0, 1e-5, -2.0], B, range_limit=1e4)
        plan = assert_fold_is_exact(net.output(net.conv(x, K[0])))
        assert plan.kept == {0: Obstacle(Reason.SCALE_RANGE, None)}

    def test_a_scale_within_range_does_not(self):
        net = Network()
        x = net.affine(net.input(2, 3, 4, 4), [1.0, 1e-5, -2.0], B, range_limit=1e6)
        plan = assert_fold_is_exact(net.output(net.conv(x, K[0])), tolerance=1e-9)
        assert list(plan.removed) == [0]

    def test_a_small_spread_makes_a_large_scale_harmless(self):
        net = Network()
        gamma = np.array([1.0, 1e-5, -2.0])
        spread = np.abs(gamma).reshape(1, 3, 1, 1)
        x = net.affine(net.input(2, 3, 4, 4), gamma, B, range_limit=1e4, spread=spread)
        plan = assert_fold_is_exact(net.output(net.conv(x, K[0])), tolerance=1e-9)
        assert list(plan.removed) == [0]

    def test_a_tiny_gamma_after_a_convolution_is_no_matter(self):
        plan = assert_fold_is_exact(self.net(1e-9, range_limit=10.0))
        assert list(plan.removed) == [1]

    def test_all_calls_of_a_module_out_of_range_stay(self):
        net = Network()
        x = net.affine(net.input(2, 3, 4, 4), [1.0, 1e-5, -2.0], B, range_limit=1e4, tie="m")
        x = net.conv(net.affine(net.conv(x, K[0]), [1.0, 1e-5, -2.0], B, tie="m"), K[1])
        plan = assert_fold_is_exact(net.output(x))
        assert {why.reason for why in plan.kept.values()} == {Reason.SCALE_RANGE}
        assert len(plan.kept) == 2

    @pytest.mark.parametrize(
        ("gamma", "why"),
        [([1.0, 2.0, -3.0], None), ([1e-5, 1.0, -3e4], Reason.SCALE_RANGE)],
    )
    def test_what_a_shortcut_would_let_go_and_store_out_of_range_says_so(self, gamma, why):
        """Without the shortcut an output is in the way, with it the sum's digits would drown."""
        net = Network()
        x = net.sum(*[net.input(2, 3, 4, 4)] * 2)
        wide = net.conv(x, RNG.standard_normal((3, 1, 3, 3)), groups=3, padding=1)
        long = net.conv(net.conv(x, K[0]), RNG.standard_normal((3, 3, 3, 3)), padding=1)
        short = net.affine(x, [1.0, 1.0, 1.0], B, name="short")
        inner = net.sum(short, net.sum(long, wide))
        outer = net.sum(inner, net.conv(x, RNG.standard_normal((3, 1, 1, 1)), groups=3))
        other = net.affine(net.affine(inner, A, B), [0.0, -1.0, 1.0], B, name="other")
        step = net.affine(outer, gamma, B, name="step")
        plan = assert_fold_is_exact(net.output(step, net.sum(other, other)), tolerance=1e-6)
        kept = {net.graph.ops[number].name: o.reason for number, o in plan.kept.items()}
        assert kept == {"other": Reason.GRAPH_OUTPUT, **({"step": why} if why else {})}


class TestClipModes:
    def residual(self, cost: float) -> Network:
        """Three pre-activation norms of one stream: each needs bounds of its own."""
        net = Network()
        x = net.conv(net.input(2, 3, 4, 4), K[0])
        for k in range(3):
            y = net.clip(net.affine(x, A, np.roll(B, k), name=f"bn{k}"), one_sided_cost=cost)
            x = net.sum(x, net.conv(y, K[k + 1]))
        return net.output(net.sigmoid(x))

    def test_never_keeps_what_needs_bounds(self):
        plan = assert_fold_is_exact(self.residual(0.0), clip="never")
        assert not plan.clip
        assert plan.kept
        assert {why.reason for why in plan.kept.values()} <= {Reason.CLIP_COST, Reason.BRANCHES}

    def test_always_buys_bounds_at_any_cost(self):
        plan = assert_fold_is_exact(self.residual(100.0), clip="always")
        assert not plan.kept
        assert plan.clip

    def test_auto_weighs(self):
        assert not assert_fold_is_exact(self.residual(100.0)).clip
        assert not assert_fold_is_exact(self.residual(0.5)).kept
        assert not assert_fold_is_exact(self.residual(0.0)).kept

    def test_auto_stops_asking_in_time(self, monkeypatch):
        assert not assert_fold_is_exact(self.residual(0.5)).kept
        monkeypatch.setattr(clip_price, "_MOST_ASKED", -1)
        plan = assert_fold_is_exact(self.residual(0.5))
        never = assert_fold_is_exact(self.residual(0.5), clip="never")
        assert plan.kept == never.kept
        assert plan.removed == never.removed

    def test_auto_asks_nobody_else_where_the_clips_that_are_met_cost_enough(self, monkeypatch):
        never = assert_fold_is_exact(self.residual(3.0), clip="never")
        calls = []
        look = clip_price.Market.look
        monkeypatch.setattr(
            clip_price.Market, "look", lambda market: calls.append(1) or look(market)
        )
        plan = assert_fold_is_exact(self.residual(3.0))
        assert plan.kept == never.kept
        assert len(calls) == 1  # before anything is tried
        assert_fold_is_exact(self.residual(0.5))
        assert len(calls) > 2

    def test_auto_removes_at_least_what_never_does(self):
        never = set(assert_fold_is_exact(self.residual(0.5), clip="never").removed)
        assert never <= set(assert_fold_is_exact(self.residual(0.5)).removed)

    def test_the_solution_lists_the_clips_that_stayed_plain(self):
        net = self.residual(0.5)
        solution = solver.solve(net.graph, clip="never")
        clips = {
            number for number in range(len(net.graph.ops)) if "clip" in net.graph.ops[number].name
        }
        assert solution.plain == clips


class TestGrowth:
    """y = 1e-6 * x + 0.3 stored in place of x: the shift is 3e5, and x is a few units."""

    STEP = {"spread": np.full((1, 3, 1, 1), 1e-6), "center": np.full((1, 3, 1, 1), 0.3)}
    GAMMA, SHIFT = [1e-6] * 3, [0.3] * 3

    def stream(self, gamma: list[float], **options) -> Network:
        """A pre-activation block: the stream is read by the BatchNorm and by the sum."""
        net = Network()
        x = net.conv(net.input(2, 3, 4, 4), K[0])
        kernel = RNG.standard_normal((3, 3, 3, 3))
        y = net.clip(net.affine(x, gamma, self.SHIFT, name="bn", **options))
        y = net.conv(y, kernel, padding=1)
        return net.output(net.conv(net.sum(x, y), K[1]))

    def test_a_shift_that_drowns_what_others_read_keeps_the_step(self):
        plan = assert_fold_is_exact(self.stream(self.GAMMA, **self.STEP))
        assert {why.reason for why in plan.kept.values()} == {Reason.SCALE_RANGE}

    def test_one_channel_is_enough(self):
        spread = np.array([1.0, 1e-6, 1.0]).reshape(1, 3, 1, 1)
        step = {**self.STEP, "spread": spread}
        plan = assert_fold_is_exact(self.stream([1.0, 1e-6, 1.0], **step))
        assert len(plan.kept) == 1

    def test_the_limit_is_the_dtypes(self):
        network = self.stream(self.GAMMA, growth_limit=2.0**30, **self.STEP)
        assert not assert_fold_is_exact(network, tolerance=1e-8).kept

    def test_a_moderate_shift_does_no_harm(self):
        step = {**self.STEP, "spread": np.full((1, 3, 1, 1), 0.1)}
        assert not assert_fold_is_exact(self.stream([0.1] * 3, **step)).kept

    def test_what_only_the_step_reads_may_grow(self):
        """Behind a convolution of its own, y is what is stored: the digits of y are all there."""
        net = Network()
        x = net.conv(net.input(2, 3, 4, 4), K[0])
        y = net.clip(net.affine(x, self.GAMMA, self.SHIFT, **self.STEP))
        assert not assert_fold_is_exact(net.output(net.conv(y, K[1]))).kept

    @pytest.mark.parametrize(("mean", "stays"), [(1000.0, False), (-1000.0, False), (1e5, True)])
    def test_the_convolution_behind_would_read_the_mean_of_the_input(self, mean, stays):
        net = Network()
        step = {"spread": np.ones((1, 3, 1, 1)), "center": np.zeros((1, 3, 1, 1))}
        y = net.affine(net.max_pool(net.input(2, 3, 4, 4)), [1.0] * 3, [-mean] * 3, **step)
        plan = assert_fold_is_exact(net.output(net.conv(y, K[0])), tolerance=1e-9)
        assert [why.reason for why in plan.kept.values()] == [Reason.SCALE_RANGE] * stays

    def test_a_large_mean_of_what_was_computed_does_no_harm(self):
        """x = 1e5 + noise is stored as it is: the BatchNorm had no more digits of it."""
        net = Network()
        step = {"spread": np.ones((1, 3, 1, 1)), "center": np.zeros((1, 3, 1, 1))}
        y = net.affine(net.sigmoid(net.input(2, 3, 4, 4)), [1.0] * 3, [-1e5] * 3, **step)
        assert not assert_fold_is_exact(net.output(net.conv(y, K[0])), tolerance=1e-9).kept

    def test_of_two_readers_the_one_that_does_it_stays(self):
        net = Network()
        x = net.conv(net.input(2, 3, 4, 4), K[0])
        usual = {"spread": np.ones((1, 3, 1, 1)), "center": np.zeros((1, 3, 1, 1))}
        kernels = RNG.standard_normal((2, 3, 3, 3, 3))
        y = net.clip(net.affine(x, [1.0] * 3, B, name="usual", **usual))
        z = net.clip(net.affine(x, self.GAMMA, self.SHIFT, name="tiny", **self.STEP))
        y, z = net.conv(y, kernels[0], padding=1), net.conv(z, kernels[1], padding=1)
        network = net.output(net.conv(net.sum(x, net.sum(y, z)), K[1]))
        plan = assert_fold_is_exact(network)
        assert removed_names(network, plan) == ["usual"]

    def test_of_two_readers_the_one_that_does_it_stays_though_the_other_one_shows_it(self):
        """Only the removed steps read the stream; the output of the usual one is what suffers."""
        net = Network()
        x = net.conv(net.input(2, 3, 4, 4), K[0])
        usual = {"spread": np.ones((1, 3, 1, 1)), "center": np.zeros((1, 3, 1, 1))}
        y = net.conv(net.affine(x, [1.0] * 3, B, name="usual", **usual), K[1])
        z = net.sigmoid(net.affine(x, self.GAMMA, self.SHIFT, name="tiny", **self.STEP))
        network = net.output(y, z)
        plan = assert_fold_is_exact(network)
        assert removed_names(network, plan) == ["usual"]

    @pytest.mark.parametrize("tie", ["one weight", None])
    def test_what_another_call_of_the_weight_makes_is_drowned_too(self, tie):
        net = Network()
        x = net.conv(net.input(2, 3, 4, 4), K[0], [0.0] * 3, tie=tie)
        y = net.sigmoid(net.affine(x, self.GAMMA, self.SHIFT, name="tiny", **self.STEP))
        z = net.conv(net.conv(net.input(2, 3, 4, 4), K[0], [0.0] * 3, tie=tie), K[1])
        network = net.output(y, z)
        plan = assert_fold_is_exact(network)
        assert removed_names(network, plan) == ([] if tie else ["tiny"])

    @pytest.mark.parametrize("tie", ["one module", None])
    def test_what_another_call_of_a_step_that_stays_makes_is_drowned_too(self, tie):
        net = Network()
        call = {"removal": g.Removal.UNASKED, "tie": tie}
        x = net.affine(net.input(2, 3, 4, 4), A, B, name="first", **call)
        y = net.sigmoid(net.affine(x, self.GAMMA, self.SHIFT, name="tiny", **self.STEP))
        z = net.conv(net.affine(net.input(2, 3, 4, 4), A, B, name="second", **call), K[1])
        network = net.output(y, z)
        plan = assert_fold_is_exact(network)
        assert removed_names(network, plan) == ([] if tie else ["tiny"])

    def test_what_meets_the_same_constant_is_drowned_too(self):
        """A step that stays behind a concatenation in height is edited alike for both halves."""
        net = Network()
        x = net.concat(*(net.conv(net.input(2, 3, 2, 4), kernel) for kernel in K[:2]), axis=2)
        x = net.affine(x, A, B, name="both", removal=g.Removal.UNASKED)
        upper, lower = net.split(x, 2, axis=2)
        tiny = net.sigmoid(net.affine(lower, self.GAMMA, self.SHIFT, name="tiny", **self.STEP))
        plan = assert_fold_is_exact(net.output(tiny, net.conv(upper, K[2])))
        assert not plan.removed

    def test_what_is_compared_with_it_is_drowned_too(self):
        """The largest of all channels is stored as each of them is."""
        net = Network()
        x = net.conv(net.input(2, 3, 4, 4), K[0])
        _, others = net.split(x, 1)
        step = {key: value[:, 1:] for key, value in self.STEP.items()}
        tiny = net.affine(others, self.GAMMA[1:], self.SHIFT[1:], name="tiny", **step)
        largest = net.reduce(x, g.Max, (1,), keeps_rank=True)
        largest = net.conv(largest, RNG.standard_normal((2, 1, 1, 1)))
        plan = assert_fold_is_exact(net.output(net.sigmoid(tiny), largest))
        assert not plan.removed

    def test_what_is_not_compared_with_it_is_not(self):
        net = Network()
        first, others = net.split(net.conv(net.input(2, 3, 4, 4), K[0]), 1)
        step = {key: value[:, 1:] for key, value in self.STEP.items()}
        tiny = net.affine(others, self.GAMMA[1:], self.SHIFT[1:], name="tiny", **step)
        largest = net.reduce(first, g.Max, (1,), keeps_rank=True)
        largest = net.conv(largest, RNG.standard_normal((2, 1, 1, 1)))
        assert not assert_fold_is_exact(net.output(net.sigmoid(tiny), largest)).kept
