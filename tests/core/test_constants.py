"""gamma = 0: the channel is a constant, made at its producer or taken in by its readers."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core import constants
from bnfold.core import graph as g
from bnfold.core.blame import Obstacle
from bnfold.core.reasons import Reason
from tests.core.interpreter import Network, assert_fold_is_exact, removed_names

RNG = np.random.default_rng(11)
KERNEL = RNG.standard_normal((3, 3, 1, 1))
WIDE = RNG.standard_normal((2, 3, 3, 3))
BIAS = np.array([0.4, -0.9, 1.3])
ZERO = [1.5, 0.0, -0.6]
SHIFT = [0.3, 0.7, -0.4]


def source(net: Network, **options) -> int:
    return net.conv(net.input(2, 3, 5, 5), KERNEL, BIAS, name="source", **options)


def bn(net: Network, x: int, scale=ZERO, shift=SHIFT, name: str = "bn", **options) -> int:
    return net.affine(x, scale, shift, name=name, **options)


def twice(net: Network) -> list[int]:
    """The results of two calls of one layer."""
    return [net.conv(net.input(2, 3, 5, 5), KERNEL, BIAS, tie="k") for _ in range(2)]


def reader(net: Network, x: int, **options) -> int:
    return net.conv(x, WIDE, [0.2, -0.5], name="reader", **options)


def removed(net: Network, *outputs: int, **how) -> list[str]:
    return removed_names(net, assert_fold_is_exact(net.output(*outputs), **how))


def reasons(net: Network, *outputs: int, **how) -> set[Reason]:
    plan = assert_fold_is_exact(net.output(*outputs), **how)
    assert not plan.removed
    return {obstacle.reason for obstacle in plan.kept.values()}


def behind_a_clip_and_a_step(net: Network, bounds: tuple[float, float]) -> int:
    """Two steps that together do nothing, but for a channel of gamma 0; what comes is returned."""
    x = net.clip(source(net), *bounds)
    x = net.affine(x, [2, 2, 2], [0.5, 0.6, 0.7], name="one")
    return net.sigmoid(net.affine(x, [0.5, 0, 0.5], [-0.25, 0.8, -0.35], name="two"))


class TestMustStay:
    def test_a_constant_does_not_cross_padding(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5))
        assert reasons(net, reader(net, x, padding=1)) == {Reason.PADDING}

    @pytest.mark.parametrize("value", [0.7, 6.7])
    def test_a_constant_above_zero_does_not_cross_padding_behind_a_clip(self, value):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, value, 0.0])
        x = reader(net, net.clip(x, 0, 6), padding=1)
        assert reasons(net, x, clip="always") == {Reason.PADDING}

    def test_a_negative_constant_does_not_cross_padding_without_a_clip(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, -0.7, 0.0])
        assert reasons(net, reader(net, x, padding=1)) == {Reason.PADDING}

    def test_one_reader_in_front_of_the_clip_and_one_behind(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, -0.7, 0.0])
        assert reasons(net, reader(net, x), reader(net, net.clip(x)))

    def test_one_tensor_with_the_constant_in_two_forms(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, -0.7, 0.0])
        x = net.concat(x, net.clip(x))
        assert reasons(net, net.conv(x, RNG.standard_normal((2, 6, 1, 1))))

    def test_a_sum_needs_the_zero_itself(self):
        """What is stored in its place is anything."""
        net = Network()
        x = net.input(2, 3, 5, 5)
        y = net.clip(bn(net, x, [1.0, 0.0, 1.0], [0.0, -0.7, 0.0]))
        assert reasons(net, reader(net, net.sum(x, y)), net.sigmoid(x))

    def test_a_gate_that_is_zero(self):
        """It is the factor of another value, which has to become 0."""
        net = Network()
        x, y = net.input(2, 3, 5, 5), net.input(2, 3, 5, 5)
        x = net.clip(bn(net, x, [1.0, 0.0, 1.0], [0.0, -0.7, 0.0]))
        y = net.clip(bn(net, y, [1.0, 1.0, 0.0], [0.0, 0.0, -0.7], name="other"))
        assert removed(net, reader(net, net.gate(x, y))) != ["bn", "other"]

    def test_the_blocker_is_named(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        plan = assert_fold_is_exact(net.output(reader(net, net.leaky(x, name="unknown"))))
        assert plan.kept[0] == Obstacle(Reason.ZERO_GAMMA, "unknown")

    def test_two_slopes_for_one_constant(self):
        """A factor of its own for each column."""
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, -0.7, 0.0])
        slopes = np.linspace(0.1, 0.5, 5).reshape(1, 1, 1, 5)
        x = net.add(
            g.Homogeneous(slopes),
            [x],
            [net.shape(x)],
            function=lambda values: [np.where(values[0] > 0, values[0], slopes * values[0])],
        )[0]
        assert reasons(net, reader(net, x))

    @pytest.mark.parametrize("bounds", [[(-1, 5), (0, 8)], [(0, 8), (-1, 5)]])
    @pytest.mark.parametrize("value", [-0.5, 6.0])
    def test_two_clips_that_make_two_constants_of_it(self, value, bounds):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), shift=[0.3, value, -0.4])
        outputs = [reader(net, net.clip(x, *both)) for both in bounds]
        assert reasons(net, *outputs, clip="always")

    def test_a_constant_that_is_returned(self):
        net = Network()
        x = bn(net, net.sigmoid(source(net)), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        assert reasons(net, x)

    def test_a_constant_with_a_reader_that_takes_none(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        assert reasons(net, reader(net, net.leaky(x)))

    def test_a_reader_that_takes_it_beside_one_that_does_not(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        assert reasons(net, reader(net, x), net.sigmoid(x))

    def test_the_reason_is_the_zero(self):
        """Nothing else is in the way: scale 1 and shift 0 in the other channels."""
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        assert reasons(net, reader(net, net.leaky(x))) == {Reason.ZERO_GAMMA}

    def test_a_producer_with_a_second_reader_is_not_zeroed(self):
        net = Network()
        x = source(net)
        assert reasons(net, net.leaky(bn(net, x)), net.leaky(x))

    def test_a_producer_that_is_returned_is_not_zeroed(self):
        net = Network()
        x = source(net)
        assert reasons(net, x, net.leaky(bn(net, x, [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])))

    def test_a_producer_that_is_returned_is_not_zeroed_for_a_reader(self):
        """Which takes the constant itself."""
        net = Network()
        x = source(net)
        plan = assert_fold_is_exact(net.output(x, reader(net, bn(net, x))))
        assert list(plan.removed) == [net.number("bn")]
        assert not plan.linear.keys() & {net.number("source")}

    def test_a_value_that_is_used_twice_is_not_zeroed_for_one(self):
        """Its first use needs gamma 0, its second 2: a reader takes the constant."""
        net = Network()
        x = source(net)
        x = net.affine(net.concat(x, x), [0.0, 1, 1, 2, 1, 1], [0.5] * 6, name="bn")
        plan = assert_fold_is_exact(net.output(net.conv(x, RNG.standard_normal((2, 6, 1, 1)))))
        assert not any(edit.zeroed.any() for edit in plan.linear.values())

    def test_a_refused_step_takes_no_constant(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        y = net.refused(x, Reason.NOT_CONSTANT)
        assert reasons(net, y) == {Reason.ZERO_GAMMA, Reason.NOT_CONSTANT}

    @pytest.mark.parametrize("channel", [0, 1])
    @pytest.mark.parametrize("weight", [g.Weight.FIXED, g.Weight.SIGNS])
    def test_a_reader_whose_weight_is_fixed_takes_no_constant(self, weight, channel):
        net = Network()
        scale, shift = np.ones(3), np.zeros(3)
        scale[channel], shift[channel] = 0.0, 0.7
        x = bn(net, net.input(2, 3, 5, 5), scale, shift)
        y = net.conv(x, np.sign(WIDE), [0.2, -0.5], weight=weight)
        assert reasons(net, net.conv(y, np.ones((1, 2, 1, 1)))) == {Reason.ZERO_GAMMA}

    @pytest.mark.parametrize("channel", [0, 1])
    def test_a_reader_that_is_called_twice_takes_no_constant(self, channel):
        net = Network()
        scale, shift = np.ones(3), np.zeros(3)
        scale[channel], shift[channel] = 0.0, 0.7
        x = bn(net, net.input(2, 3, 5, 5), scale, shift)
        one, two = net.conv(x, WIDE, tie="k"), net.conv(net.input(2, 3, 5, 5), WIDE, tie="k")
        assert reasons(net, one, two) == {Reason.ZERO_GAMMA}

    @pytest.mark.parametrize(
        ("scale", "shift"),
        [([1.0, 0.0, 1.0], [0.0, 0.5, 0.0]), ([1.0, 1.0, 0.0], [0.0, 0.0, 0.7])],
        ids=["another value", "another channel"],
    )
    def test_a_reader_whose_calls_get_different_constants(self, scale, shift):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        y = bn(net, net.input(2, 3, 5, 5), scale, shift, "other")
        one, two = net.conv(x, WIDE, tie="k"), net.conv(y, WIDE, tie="k")
        assert reasons(net, one, two) == {Reason.ZERO_GAMMA}

    @pytest.mark.parametrize("tie", ["bn", None])
    def test_a_reader_of_which_one_call_is_behind_a_clip(self, tie):
        """There the constant is 0."""
        net = Network()
        options = {"scale": [1.0, 0.0, 1.0], "shift": [0.0, -0.7, 0.0], "tie": tie}
        x, y = (bn(net, net.input(2, 3, 5, 5), **options) for _ in range(2))
        one, two = net.conv(x, WIDE, tie="k"), net.conv(net.clip(y), WIDE, tie="k")
        assert reasons(net, one, two) == {Reason.ZERO_GAMMA}

    def test_a_layer_that_reads_what_it_made(self):
        """The constant of the first call arrives in the second one alone."""
        net = Network()
        x = net.conv(net.sigmoid(net.input(2, 3, 5, 5)), KERNEL, BIAS, tie="k")
        x = bn(net, net.leaky(x), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        assert reasons(net, net.conv(x, KERNEL, BIAS, tie="k"))

    def test_a_producer_that_is_tied_is_not_zeroed(self):
        net = Network()
        x = source(net, tie="k")
        y = net.conv(net.input(2, 3, 5, 5), KERNEL, BIAS, tie="k")
        assert reasons(net, net.leaky(bn(net, x)), net.conv(y, WIDE))

    @pytest.mark.parametrize("other", ["zero elsewhere", "read twice", "returned", "unread"])
    def test_a_producer_of_which_one_call_makes_no_zeros(self, other):
        net = Network()
        x, y = twice(net)
        outputs = [net.leaky(bn(net, x, tie="bn"))]
        if other == "zero elsewhere":
            outputs.append(net.leaky(bn(net, y, [0.0, 1.5, -0.6], name="other")))
        elif other == "read twice":
            outputs += [net.leaky(bn(net, y, name="other", tie="bn")), net.sigmoid(y)]
        elif other == "returned":
            outputs += [net.leaky(bn(net, y, name="other", tie="bn")), y]
        assert reasons(net, *outputs)

    def test_a_producer_behind_another_step_of_which_one_call_has_a_second_reader(self):
        net = Network()
        x, y = (bn(net, each, [2, 3, 4], name="one", tie="one") for each in twice(net))
        outputs = [net.leaky(bn(net, each, name="two", tie="two")) for each in (x, y)]
        assert removed(net, *outputs, net.leaky(y)) == ["one", "one"]

    def test_a_clip_in_one_of_two_calls_that_leaves_no_zero(self):
        net = Network()
        x, y = twice(net)
        y = net.clip(y, 0.5, 2, room=False)
        outputs = [net.sigmoid(bn(net, each, [1, 0, 1], [0, 0.7, 0], tie="bn")) for each in (x, y)]
        assert reasons(net, *outputs)

    @pytest.mark.parametrize("bounds", [(0.5, 2), (-2, -0.5)])
    def test_a_clip_that_has_no_zero_makes_another_constant(self, bounds):
        """A producer of 0 would arrive as 0.5."""
        net = Network()
        x = bn(net, net.clip(source(net), *bounds), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        assert reasons(net, net.leaky(x), clip="always")

    @pytest.mark.parametrize("bounds", [(0.5, 2), (-2, -0.5)])
    def test_nor_does_it_behind_another_step(self, bounds):
        net = Network()
        assert removed(net, behind_a_clip_and_a_step(net, bounds), clip="always") == ["one"]

    def test_a_producer_behind_another_step_that_has_a_second_reader(self):
        """The one who reads the constant takes it."""
        net = Network()
        x = source(net)
        y = bn(net, bn(net, x, [2, 2, 2], name="one"), [0.5, 0, 0.5], name="two")
        plan = assert_fold_is_exact(net.output(net.leaky(x), reader(net, y)))
        assert removed_names(net, plan) == ["one", "two"]
        assert not any(edit.zeroed.any() for edit in plan.linear.values())

    @pytest.mark.parametrize("options", [{"weight": g.Weight.FIXED}, {"bias_editable": False}])
    def test_a_producer_that_cannot_be_edited_is_not_zeroed(self, options):
        net = Network()
        assert reasons(net, net.leaky(bn(net, source(net, **options))))

    def test_binary_weights_are_not_zeroed(self):
        net = Network()
        x = net.conv(net.input(2, 3, 5, 5), np.sign(KERNEL), BIAS, weight=g.Weight.SIGNS)
        assert reasons(net, net.sign(bn(net, x)))

    def test_a_constant_does_not_enter_a_step_that_cannot_be_edited(self):
        """a' = 0 would be needed, and a is not ours to change."""
        net = Network()
        x = bn(net, net.input(2, 2, 3, 3), [0.0, 2.0], [0.7, 0.3], "bn")
        x = net.affine(x, [3.0, 0.0], [0.2, 0.9], name="kept", factors=g.Parameter.FIXED)
        assert "bn" not in removed(net, x)

    def test_a_constant_does_not_enter_a_step_without_summands(self):
        """It may be a division, and there is no divisor that makes a 0."""
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        x = net.affine(
            x,
            [2.0, -3.0, 0.5],
            [0] * 3,
            name="quotient",
            removal=g.Removal.UNASKED,
            summands=g.Parameter.FIXED,
        )
        assert reasons(net, reader(net, x)) == {Reason.ZERO_GAMMA}

    def test_a_constant_does_not_enter_one_of_two_calls(self):
        """The other call reads other values with the same constants."""
        net = Network()
        x = bn(net, net.input(2, 2, 3, 3), [0.0, 1.0], [0.7, 0.0], "bn")
        x = net.affine(x, [3.0, 0.0], [0.2, 0.9], name="first", tie="m")
        y = net.conv(net.input(2, 2, 3, 3), KERNEL[:2, :2], BIAS[:2])
        y = net.affine(y, [3.0, 0.0], [0.2, 0.9], name="second", tie="m")
        removed(net, net.conv(x, WIDE[:, :2]), net.sigmoid(y))

    def test_a_reader_whose_bias_cannot_be_edited(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        assert reasons(net, reader(net, x, bias_editable=False)) == {Reason.ZERO_GAMMA}

    def test_a_step_that_is_called_for_other_values_too(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        options = {"tie": "m", "removal": g.Refusal(Reason.HOOK)}
        kept = net.affine(x, [2.0, 3.0, 0.5], SHIFT, name="kept", **options)
        again = net.affine(net.input(2, 3, 5, 5), [2.0, 3.0, 0.5], SHIFT, name="again", **options)
        assert removed(net, kept, again) == []

    def test_what_counts_zeros_makes_something_else_of_a_constant(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        assert removed(net, reader(net, net.mean_pool(x, 3, padding=1))) == []

    def test_constants_of_which_one_is_zero_in_what_counts_zeros(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [0.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        assert removed(net, reader(net, net.mean_pool(x, 3, padding=1))) == []

    def test_a_zero_beside_infinite_padding(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, 0.0, 0.0])
        x = net.pad(x, (0, 0, 1, 1), (0, 0, 1, 1), -np.inf)
        assert removed(net, reader(net, net.max_pool(x, 2))) == []

    def test_what_reads_a_concat_of_constants(self):
        """The concat is reached by two ways."""
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        x = net.concat(net.clip(x, 0, 6), net.max_pool(x, 1))
        x = net.conv(x, RNG.standard_normal((2, 6, 3, 3)), padding=1)
        assert removed(net, x, clip="always") == []

    def test_constants_of_which_one_has_to_stay_as_it_is(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [0.0, 0.0, 1.0], [0.7, 0.5, 0.0])
        one, others = net.split(x, 1)
        others = net.clip(others, 0, 6, room=False)
        assert removed(net, net.conv(one, WIDE[:, :1]), net.conv(others, WIDE[:, :2])) == []

    def test_slopes_that_are_too_many_to_follow(self, monkeypatch):
        """The walk ends there; the laws have followed them."""
        at_consumers, combine = constants.at_consumers, constants.lab.combine

        def walk(*given):
            with monkeypatch.context() as patch:
                patch.setattr(constants.lab, "combine", lambda arrays: None)
                made = at_consumers(*given)
            assert constants.lab.combine is combine
            return made

        monkeypatch.setattr(constants, "at_consumers", walk)
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.5, 0.0, 0.6], [0.0, -0.7, 0.0])
        assert removed(net, reader(net, net.leaky(x, known=True))) == []

    def test_constants_that_meet_in_other_channels(self):
        net = Network()
        scale, shift = [0.0, 1.0, 1.0, 1.0, 0.0, 1.0], [0.7, 0.0, 0.0, 0.0, 0.7, 0.0]
        rows = net.split(bn(net, net.input(2, 6, 4, 5), scale, shift), 3)
        x = net.reduce(net.concat(*rows, axis=2), g.Max, (2,), keeps_rank=True)
        assert removed(net, net.conv(x, KERNEL)) == []

    def test_a_producer_that_another_convolution_reads(self):
        net = Network()
        x = source(net)
        assert removed(net, net.sigmoid(bn(net, x)), net.conv(x, KERNEL)) == []

    @pytest.mark.parametrize("place", [0, 1])
    def test_rows_that_two_read_before_others_meet_them(self, place):
        net = Network()
        x, other = source(net), net.conv(net.input(2, 3, 5, 5), KERNEL, BIAS, name="other")
        y, z = net.sigmoid(bn(net, x, [1.0, 0.0, 1.0], [0.0] * 3)), net.conv(x, KERNEL)
        rows = [x, other] if place else [other, x]
        met = net.reduce(net.concat(*rows, axis=2), g.Max, (2,), keeps_rank=True)
        assert removed(net, y, z, net.conv(met, KERNEL)) == []

    def test_a_reader_that_pads_and_is_called_twice(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        one = net.conv(x, WIDE, tie="k", padding=1)
        two = net.conv(net.input(2, 3, 5, 5), WIDE, tie="k", padding=1)
        assert reasons(net, one, two) == {Reason.PADDING}

    @pytest.mark.parametrize("value", [0.0, 0.7])
    @pytest.mark.parametrize("more", [0, 1, 2, 3])
    def test_a_value_that_a_maximum_and_others_read(self, more, value):
        net = Network()
        x = source(net)
        outputs = [net.leaky(x) for _ in range(more)]
        y = net.sigmoid(bn(net, x, [1.0, 0.0, 1.0], [0.0, value, 0.0]))
        assert removed(net, net.reduce(x, g.Max, (1,), keeps_rank=True), y, *outputs) == []

    def test_who_is_named(self):
        """Nobody but the step itself, where its readers need different things."""
        net = Network()
        other = net.sigmoid(net.conv(net.input(2, 3, 5, 5), KERNEL, name="other"), name="s")
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, -0.7, 0.0], name="here")
        net.output(reader(net, x), net.conv(net.clip(x), WIDE, name="behind"), other)
        plan = assert_fold_is_exact(net)
        (obstacle,) = plan.kept.values()
        assert (obstacle.reason, obstacle.blocker) == (Reason.ZERO_GAMMA, None)

    def test_a_constant_behind_another_step_and_a_clip(self):
        """The clip may change the constant that the first step makes of 0."""
        net = Network()
        x = net.clip(bn(net, source(net), [1.5, 2.0, -0.6], [0.3, -0.7, 0.4], "one"), room=False)
        x = bn(net, x, [1.0, 0.0, 1.0], [0.0, 0.7, 0.0], name="two")
        assert removed(net, net.sigmoid(x)) == ["one"]

    def test_a_constant_behind_another_step_and_a_mean_that_counts_zeros(self):
        net = Network()
        x = net.mean_pool(bn(net, source(net), [1.5, 2.0, 0.6], [0.0, 0.7, 0.0], "one"), padding=1)
        x = bn(net, x, [1.0, 0.0, 1.0], [0.0, 0.7, 0.0], name="two")
        assert removed(net, net.sigmoid(x)) == ["one"]

    @pytest.mark.parametrize("kind", [g.Max, g.Mean])
    @pytest.mark.parametrize("first", [0, 1])
    def test_a_channel_that_others_meet(self, kind, first):
        """Zeros for one of them are none for all."""
        net = Network()
        x = net.reduce(source(net), kind, (1,), keeps_rank=True)
        scales = [[0.0, 1.5], [1.5, 0.0]][first]
        x = net.concat(x, net.conv(net.input(2, 3, 5, 5), KERNEL[:1], BIAS[:1]))
        assert removed(net, net.sigmoid(bn(net, x, scales, [0.3, 0.7]))) == ["bn"][: 1 * first]

    @pytest.mark.parametrize("kind", [g.Max, g.Mean])
    @pytest.mark.parametrize("scale", [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    @pytest.mark.parametrize("axes", [(1,), (1, 2)])
    def test_constants_that_meet_others(self, kind, scale, axes):
        """One of several constants is none of what comes of them."""
        net = Network()
        x = net.reduce(bn(net, net.input(2, 3, 5, 5), scale), kind, axes, keeps_rank=True)
        assert removed(net, net.conv(x, WIDE[:, :1, :1, :1], [0.2, -0.5])) == []

    @pytest.mark.parametrize("kind", [g.Max, g.Mean])
    @pytest.mark.parametrize("place", [0, 1])
    @pytest.mark.parametrize("axes", [(2,), (2, 3)])
    def test_rows_that_others_meet(self, kind, place, axes):
        net = Network()
        rows = [source(net), net.conv(net.input(2, 3, 4, 5), KERNEL, -BIAS)]
        x = net.concat(*(rows if place else rows[::-1]), axis=2)
        x = bn(net, net.reduce(x, kind, axes, keeps_rank=True))
        assert removed(net, net.sigmoid(x)) == []

    def test_a_constant_behind_another_step_that_is_read_twice(self):
        net = Network()
        x = bn(net, source(net), [1.5, 2.0, -0.6], name="one")
        y = bn(net, x, [1.0, 0.0, 1.0], [0.0, 0.7, 0.0], name="two")
        assert removed(net, net.leaky(x), net.leaky(y)) == ["one"]


@pytest.mark.parametrize("kind", [g.Max, g.Mean])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_constant_that_meets_its_like(kind, value):
    net = Network()
    x = bn(net, net.input(2, 3, 5, 5), [0.0, 0.0, 0.0], [value] * 3)
    x = net.reduce(x, kind, (1,), keeps_rank=True)
    assert removed(net, net.conv(x, WIDE[:, :1, :1, :1], [0.2, -0.5])) == ["bn"]


class TestAtProducer:
    def test_its_weights_become_zero(self):
        net = Network()
        plan = assert_fold_is_exact(net.output(net.sigmoid(bn(net, source(net)))))
        assert plan.linear[0].zeroed.tolist() == [False, True, False]
        assert plan.removed == {1: ("source",)}

    @pytest.mark.parametrize("tie", ["bn", None])
    def test_of_a_layer_that_is_called_twice(self, tie):
        """A program does not tell that the steps are one, too."""
        net = Network()
        x, y = twice(net)
        outputs = [net.sigmoid(bn(net, net.clip(x, -1, 2), tie=tie))]
        outputs.append(net.sigmoid(net.leaky(bn(net, y, name="other", tie=tie))))
        plan = assert_fold_is_exact(net.output(*outputs), clip="always")
        assert removed_names(net, plan) == ["bn", "other"]
        zeroed = [edit.zeroed.tolist() for edit in plan.linear.values()]
        assert zeroed == [[False, True, False]] * 2

    def test_of_a_layer_that_is_called_twice_in_a_row(self):
        net = Network()
        x = bn(net, net.conv(net.input(2, 3, 5, 5), KERNEL, BIAS, tie="k"), tie="bn")
        x = bn(net, net.conv(net.clip(x), KERNEL, BIAS, tie="k"), name="again", tie="bn")
        assert removed(net, net.sigmoid(x)) == ["bn", "again"]

    def test_of_a_layer_that_is_called_twice_behind_another_step(self):
        net = Network()
        x, y = (bn(net, each, [2, 3, 4], name="one", tie="one") for each in twice(net))
        outputs = [net.leaky(bn(net, each, name="two", tie="two")) for each in (x, y)]
        assert removed(net, *outputs) == ["one", "one", "two", "two"]

    def test_through_relu_and_pooling(self):
        net = Network()
        x = net.mean_pool(net.max_pool(net.clip(source(net))))
        x = bn(net, x, [1.5, 0.0, 0.6], [0.0, 0.7, 0.0])
        assert removed(net, net.sigmoid(x)) == ["bn"]

    @pytest.mark.parametrize("bounds", [(0, 2), (-2, 0), (-2, 0.5), (-0.5, 2)])
    def test_through_a_clip_that_leaves_zero(self, bounds):
        net = Network()
        x = bn(net, net.clip(source(net), *bounds), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        assert removed(net, net.leaky(x), clip="always") == ["bn"]

    @pytest.mark.parametrize("bounds", [(0, 2), (-2, 0), (-2, 0.5), (-0.5, 2)])
    def test_through_a_clip_that_leaves_zero_and_another_step(self, bounds):
        net = Network()
        assert removed(net, behind_a_clip_and_a_step(net, bounds), clip="always") == ["one", "two"]

    @pytest.mark.parametrize(
        "between",
        [
            lambda net, x: net.clip(x),
            lambda net, x: net.max_pool(x),
            lambda net, x: net.max_pool(x, padding=1),
            lambda net, x: net.mean_pool(net.clip(x)),
            lambda net, x: net.transpose(net.transpose(x, 0, 2, 3, 1), 0, 3, 1, 2),
            lambda net, x: net.concat(x, x, axis=2),
            lambda net, x: net.clip(x, 0.5, 0.9),
            lambda net, x: net.reduce(x, g.Max, (2, 3), keeps_rank=True),
        ],
    )
    def test_behind_another_step_and_what_leaves_its_constant(self, between):
        """The first step makes 0.7 of 0, and so does what follows."""
        net = Network()
        x = between(net, bn(net, source(net), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0], "one"))
        x = bn(net, x, [1.0, 0.0, 1.0], [0.0, -0.2, 0.0], "two")
        assert removed(net, net.leaky(x), clip="always") == ["one", "two"]

    def test_a_relu_and_padding_after_it(self):
        net = Network()
        x = net.clip(bn(net, source(net)), room=False)
        assert removed(net, reader(net, x, padding=1)) == ["bn"]

    def test_through_a_mean_that_counts_zeros(self):
        net = Network()
        x = bn(net, net.mean_pool(source(net), 3, padding=1), shift=[0.0, 0.0, 0.0])
        assert removed(net, net.sigmoid(x)) == ["bn"]

    def test_in_groups(self):
        net = Network()
        kernel = RNG.standard_normal((4, 1, 3, 3))
        x = net.conv(net.input(2, 2, 5, 5), kernel, padding=1, groups=2)
        x = bn(net, x, [1.5, 0.0, 0.0, -0.6], [0.3, 0.7, -0.2, -0.4])
        assert removed(net, net.sigmoid(x)) == ["bn"]

    def test_a_transposed_convolution(self):
        net = Network()
        x = net.conv_transpose(net.input(2, 3, 4, 4), KERNEL, BIAS, stride=2)
        assert removed(net, net.sigmoid(bn(net, x))) == ["bn"]

    def test_an_embedding(self):
        net = Network()
        x = net.embedding([[0, 1, 2], [2, 1, 1]], RNG.standard_normal((3, 3)))
        x = net.affine(x, ZERO, SHIFT, axis=2, name="bn")
        assert removed(net, net.matrix(x, KERNEL[:, :, 0, 0])) == ["bn"]

    def test_all_channels(self):
        net = Network()
        assert removed(net, net.sigmoid(bn(net, source(net), [0.0] * 3))) == ["bn"]

    def test_two_norms_in_a_row(self):
        net = Network()
        x = bn(net, source(net), name="one")
        x = bn(net, x, [0.0, 2.0, -1.0], name="two")
        assert removed(net, reader(net, x)) == ["one", "two"]

    def test_behind_another_step(self):
        """BatchNorm and Scale of Caffe: the first makes 0.7 of 0, the second forgets it."""
        net = Network()
        x = bn(net, source(net), [1.5, 2.0, -0.6], name="one")
        x = bn(net, x, [0.9, 0.0, -1.1], [0.1, 0.2, 0.3], name="two")
        assert removed(net, net.sigmoid(x)) == ["one", "two"]

    def test_behind_two_steps_of_which_one_is_zero_too(self):
        net = Network()
        x = bn(net, source(net), [1.5, 0.0, 2.0], name="one")
        x = bn(net, x, [0.9, 3.0, -1.1], [0.1, 0.2, 0.3], name="two")
        x = bn(net, x, [0.0, 0.0, 0.7], [0.4, 0.5, 0.6], name="three")
        assert removed(net, net.sigmoid(x)) == ["one", "two", "three"]

    def test_one_of_several_groups_of_a_shuffle(self):
        net = Network()
        x = net.shuffle(net.conv(net.input(2, 2, 3, 3), RNG.standard_normal((4, 2, 1, 1))), 2)
        x = bn(net, x, [1.5, 0.0, 2.0, -0.6], [0.3, 0.7, -0.2, -0.4])
        assert removed(net, net.sigmoid(x)) == ["bn"]


class TestAtConsumers:
    def test_a_reader_takes_the_constant_into_its_bias(self):
        net = Network()
        plan = assert_fold_is_exact(net.output(reader(net, bn(net, net.input(2, 3, 5, 5)))))
        edit = plan.linear[1]
        assert edit.input_inverse[1] == 0.0
        assert edit.input_shift[1] == -0.7
        assert plan.removed == {0: ("reader",)}

    @pytest.mark.parametrize("tie", ["bn", None])
    @pytest.mark.parametrize("value", [-0.7, 0.0, 0.7])
    def test_a_reader_that_is_called_twice(self, value, tie):
        net = Network()
        options = {"scale": [1.5, 0.0, 0.6], "shift": [0.3, value, -0.4], "tie": tie}
        x, y = (bn(net, net.input(2, 3, 5, 5), **options) for _ in range(2))
        outputs = (net.conv(net.clip(each), WIDE, [0.2, -0.5], tie="k") for each in (x, y))
        assert removed(net, *outputs) == ["bn", "bn"]

    def test_steps_that_do_not_go_together_are_tried_in_their_turn(self):
        """What is behind "goes" goes first, as "stays" is no reason to try both before it."""
        net = Network()
        stays = net.sigmoid(bn(net, net.sigmoid(net.input(2, 3, 5, 5)), name="stays"))
        one = bn(net, net.input(2, 3, 5, 5), [2, 3, 0], name="behind", tie="behind")
        two = bn(net, net.input(2, 3, 5, 5), name="goes")
        two = bn(net, two, [2, 3, 0], name="behind", tie="behind")
        readers = (reader(net, one), net.conv(two, WIDE, tie="of one call"))
        assert removed(net, stays, *readers) == ["behind", "goes", "behind"]

    def test_one_constant_for_both_calls_of_a_reader(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        y = net.max_pool(x)
        assert removed(net, net.conv(x, WIDE, tie="k"), net.conv(y, WIDE, tie="k")) == ["bn"]

    def test_two_readers_both_take_it(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5))
        y = net.conv(x, KERNEL, name="other")
        plan = assert_fold_is_exact(net.output(reader(net, x), y))
        assert plan.removed == {0: ("other", "reader")}

    @pytest.mark.parametrize("value", [0.0, 0.7, 6.0])
    def test_through_a_clip_that_leaves_the_constant(self, value):
        """Its bounds stay: what the clip makes of the channel, nobody looks at."""
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.0, 0.0, 1.0], [0.0, value, 0.0])
        plan = assert_fold_is_exact(net.output(reader(net, net.clip(x, 0, 6))), clip="always")
        assert list(plan.removed) == [0]
        assert not plan.clip

    def test_through_a_clip_that_gets_other_bounds(self):
        net = Network()
        x = net.clip(bn(net, net.input(2, 3, 5, 5)), 0, 6)
        plan = assert_fold_is_exact(net.output(reader(net, x)), clip="always")
        assert list(plan.removed) == [0]
        assert list(plan.clip) == [1]

    def test_a_producer_whose_bias_cannot_be_edited(self):
        net = Network()
        x = bn(net, source(net, bias_editable=False), [1.0, 0.0, 1.0], [0.3, 0.7, -0.4])
        plan = assert_fold_is_exact(net.output(reader(net, x)))
        assert plan.removed == {net.number("bn"): ("reader",)}

    def test_zero_crosses_padding(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), shift=[0.0, 0.0, 0.0])
        assert removed(net, reader(net, x, padding=1)) == ["bn"]

    def test_an_affine_step_that_stays(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), name="one")
        x = net.affine(x, [2.0, -3.0, 0.5], SHIFT, name="kept", removal=g.Refusal(Reason.HOOK))
        assert removed(net, x) == ["one"]

    def test_a_grouped_reader(self):
        net = Network()
        x = bn(net, net.input(2, 4, 5, 5), [1.5, 0.0, 0.0, 2.0], [0.3, 0.7, -0.2, 1.0])
        y = net.conv(x, RNG.standard_normal((4, 2, 3, 3)), groups=2)
        assert removed(net, y) == ["bn"]

    def test_all_channels(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [0.0] * 3)
        assert removed(net, reader(net, x)) == ["bn"]

    def test_a_second_reader_of_the_input(self):
        net = Network()
        x = source(net)
        y = bn(net, x, [1.0, 0.0, 1.0], [0.0, 0.7, 0.0])
        assert removed(net, reader(net, y), net.leaky(x)) == ["bn"]

    @pytest.mark.parametrize("room", [True, False])
    @pytest.mark.parametrize("value", [-0.7, 0.0, 0.7])
    def test_through_a_relu(self, value, room):
        """relu(-0.7) is 0; a relu without room asks nothing of a channel that nobody reads."""
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.5, 0.0, 0.6], [0.0, value, 0.0])
        plan = assert_fold_is_exact(net.output(reader(net, net.clip(x, room=room))))
        assert list(plan.removed) == [0]
        assert plan.linear[2].input_inverse[1] == 0.0
        assert plan.linear[2].input_shift[1] == min(0.0, -value)

    @pytest.mark.parametrize("padding", [0, 1])
    @pytest.mark.parametrize("room", [True, False])
    def test_a_relu_that_makes_a_zero_and_padding(self, room, padding):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.5, 0.0, 0.6], [0.0, -0.7, 0.0])
        assert removed(net, reader(net, net.clip(x, room=room), padding=padding)) == ["bn"]

    @pytest.mark.parametrize(("bounds", "value"), [((-0.5, 2), -3), ((-2, -0.5), 1), ((0, 6), 9)])
    def test_the_bound_of_a_clip_is_the_constant(self, bounds, value):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.5, 0.0, 0.6], [0.0, value, 0.0])
        assert removed(net, reader(net, net.clip(x, *bounds)), clip="always") == ["bn"]

    @pytest.mark.parametrize("value", [-0.7, 0.7])
    def test_through_a_slope(self, value):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.5, 0.0, 0.6], [0.0, value, 0.0])
        plan = assert_fold_is_exact(net.output(reader(net, net.leaky(x, known=True))))
        assert list(plan.removed) == [0]
        assert plan.linear[2].input_shift[1] == (-0.7 if value > 0 else 0.2 * 0.7)

    def test_a_zero_passes_an_unknown_slope(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.5, 0.0, 0.6], [0.0, 0.0, 0.0])
        assert removed(net, reader(net, net.leaky(x), padding=1)) == ["bn"]

    def test_the_other_channels_may_have_other_readers(self):
        net = Network()
        x = net.conv(net.input(2, 3, 5, 5), KERNEL, bias_editable=False)
        x = bn(net, x, [1.5, 0.0, 2.0], [0.0, 0.7, 0.0])
        constant, other = net.split(x, 2)
        assert removed(net, net.conv(constant, WIDE[:, :2]), net.sigmoid(other)) == ["bn"]

    def test_a_concat_of_two_that_hold_it(self):
        net = Network()
        x = bn(net, net.input(2, 3, 4, 4), [1.5, 0.0, 0.6], [0.0, 0.7, 0.0])
        x = net.concat(net.clip(x), net.max_pool(x, 1))
        x = net.conv(net.clip(x), RNG.standard_normal((2, 6, 1, 1)))
        assert removed(net, x, clip="always") == ["bn"]

    @pytest.mark.parametrize("value", [-0.7, 0.7])
    @pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1, 1)])
    def test_through_slopes_per_channel(self, shape, value):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.5, 0.0, 0.6], [0.0, value, 0.0])
        slopes = np.array([0.1, 0.2, 0.3]).reshape(shape)
        x = net.add(
            g.Homogeneous(slopes),
            [x],
            [net.shape(x)],
            function=lambda xs: [np.where(xs[0] > 0, xs[0], slopes * xs[0])],
        )[0]
        plan = assert_fold_is_exact(net.output(reader(net, x)))
        assert plan.linear[2].input_shift[1] == (-0.7 if value > 0 else 0.2 * 0.7)

    def test_a_factor_and_two_summands_without_a_clip(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.5, 0.0, 0.6], [0, 0, 0], name="factor")
        x = bn(net, x, [1, 1, 1], [0.0, -0.7, 0.0], name="one")
        x = bn(net, x, [1, 2, 1], [0.0, 0.2, 0.0], name="two")
        assert sorted(removed(net, reader(net, x))) == ["factor", "one", "two"]

    def test_a_factor_and_two_summands(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.5, 0.0, 0.6], [0, 0, 0], name="factor")
        x = bn(net, x, [1, 1, 1], [0.0, -0.7, 0.0], name="one")
        x = bn(net, x, [1, 2, 1], [0.0, 0.2, 0.0], name="two")
        x = reader(net, net.clip(x), padding=1)
        assert sorted(removed(net, x)) == ["factor", "one", "two"]

    @pytest.mark.parametrize("constants", [{"factors": g.Parameter.FIXED}, {}])
    def test_a_summand_behind_that_cannot_be_edited(self, constants):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.5, 0.0, 0.6], [0, 0, 0], name="factor")
        x = bn(net, x, [1, 1, 1], [0.0, -0.7, 0.0], name="summand", **constants)
        assert sorted(removed(net, reader(net, net.clip(x), padding=1))) == ["factor", "summand"]

    def test_a_factor_and_a_summand_as_two_steps(self):
        """And a relu and padding behind them; the summand alone could go at any time."""
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.5, 0.0, 0.6], [0, 0, 0], name="factor")
        x = bn(net, x, [1, 1, 1], [0.0, -0.7, 0.0], name="summand")
        x = reader(net, net.clip(x), padding=1)
        assert sorted(removed(net, x)) == ["factor", "summand"]

    def test_two_zeros_in_a_row(self):
        net = Network()
        x = bn(net, net.input(2, 3, 5, 5), [1.5, 0.0, 0.0], [0.1, 0.2, 0.3], name="one")
        x = bn(net, x, [0.0, 0.0, 0.6], [0.4, 0.5, 0.6], name="two")
        assert removed(net, reader(net, x)) == ["one", "two"]

    def test_a_step_behind_a_clip_behind_a_zero(self):
        net = Network()
        x = net.clip(bn(net, net.input(2, 3, 5, 5), [1.5, 0.0, 0.6], [0.1, -0.2, 0.3], name="one"))
        x = bn(net, x, [0.7, 0.9, -0.6], [0.4, 0.5, 0.6], name="two")
        assert sorted(removed(net, reader(net, x), clip="always")) == ["one", "two"]

    def test_behind_a_concat_and_pooling(self):
        net = Network()
        x = net.clip(bn(net, net.input(2, 3, 4, 4), [1.5, 0.0, 0.6], [0.1, -0.2, 0.3]))
        x = net.mean_pool(net.max_pool(net.concat(x, net.input(2, 1, 4, 4))))
        x = net.conv(x, RNG.standard_normal((2, 4, 1, 1)))
        assert removed(net, x, clip="always") == ["bn"]

    def test_a_zero_and_padding_of_its_own(self):
        net = Network()
        x = net.clip(bn(net, net.input(2, 3, 4, 4), [1.5, 0.0, 0.6], [0.0, -0.2, 0.0]))
        x = net.pad(x, (0, 0, 1, 2), (0, 0, 2, 1))
        assert removed(net, reader(net, x)) == ["bn"]

    def test_a_zero_in_a_pool_that_counts_padding(self):
        net = Network()
        x = net.clip(bn(net, net.input(2, 3, 4, 4), [1.5, 0.0, 0.6], [0.0, -0.2, 0.0]))
        assert removed(net, reader(net, net.mean_pool(x, 3, padding=1))) == ["bn"]

    def test_a_zero_behind_a_gate(self):
        """Squeeze and excite: 0 times anything."""
        net = Network()
        x = net.clip(bn(net, net.input(2, 3, 4, 4), [1.5, 0.0, 0.6], [0.0, -0.2, 0.0]))
        gate = net.sigmoid(net.conv(net.reduce(x, g.Mean, (2, 3), keeps_rank=True), KERNEL))
        assert removed(net, reader(net, net.gate(x, gate), padding=1)) == ["bn"]

    def test_a_bias_that_cannot_be_edited(self):
        """It need not be for a 0."""
        net = Network()
        x = net.clip(bn(net, net.input(2, 3, 4, 4), [1.5, 0.0, 0.6], [0.0, -0.2, 0.0]))
        assert removed(net, reader(net, x, bias_editable=False)) == ["bn"]

    def test_readers_in_branches(self):
        net = Network()
        x = bn(net, net.input(2, 3, 4, 4), [1.5, 0.0, 0.6], [0.0, -0.2, 0.0])
        outputs = [reader(net, net.clip(x), padding=1), net.conv(net.clip(x, 0, 6), KERNEL)]
        assert removed(net, *outputs, clip="always") == ["bn"]


def test_a_value_that_the_step_before_made_two_of_is_not_zeroed_for_one():
    net = Network()
    x = source(net)
    x = net.affine(net.concat(x, x), [1, 2, 3, -1, 0.5, 2], [0.1] * 6, name="one")
    x = net.affine(x, [0.0, 1, 1, 2, 1, 1], [0.5] * 6, name="two")
    assert removed(net, net.conv(x, RNG.standard_normal((2, 6, 1, 1)))) == ["one", "two"]


def test_a_step_that_stays_does_not_take_a_constant_with_a_factor_that_others_use():
    """Its factors run along the height: each serves the constant and the other channel."""
    net = Network()
    x = bn(net, source(net, bias_editable=False))
    x = net.affine(x, [0.0, 2.0, 3.0, 4.0, 5.0], [0.1] * 5, axis=2, name="rows")
    assert removed(net, net.conv(x, RNG.standard_normal((2, 3, 1, 1)))) == []


def test_the_network_is_walked_once_for_all_zero_gammas(monkeypatch):
    """Once for each step, a network of 150 took most of its time here."""
    walks = []
    read = constants.read
    monkeypatch.setattr(constants, "read", lambda binding: walks.append(1) or read(binding))
    net = Network()
    x = source(net)
    for number in range(4):
        x = net.conv(bn(net, x, name=f"bn{number}"), KERNEL, BIAS, name=f"conv{number}")
    assert len(removed(net, x)) == 4
    assert len(walks) == 1


class TestSomeConstants:
    def test_one_value_each(self):
        made = constants.some_constants(np.array([5, 3, 5]), np.array([1.0, 2.0, 1.0]))
        assert made is not None
        assert (made.variables.tolist(), made.values.tolist()) == ([3, 5], [2.0, 1.0])

    @pytest.mark.parametrize("variables", [[3, 5, 5], [5, 5, 7], [3, 5, 5, 7], [5, 5]])
    def test_two_values_for_one(self, variables):
        values = np.arange(len(variables), dtype=np.float64)
        assert constants.some_constants(np.array(variables), values) is None

    def test_equal_values_beside_others(self):
        made = constants.some_constants(np.array([3, 5, 5, 7]), np.array([9.0, 1.0, 1.0, 4.0]))
        assert made is not None and made.values.tolist() == [9.0, 1.0, 4.0]

    def test_none_at_all(self):
        made = constants.some_constants(np.zeros(0, dtype=np.int64), np.zeros(0))
        assert made is not None and made.variables.tolist() == []
