"""Where a removal would cost digits: stored values out of range, and shifts that drown values.

The values are set by hand and are powers of two where a border is met, so that the border itself
can be asked for. Everything in range comes first.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bnfold.core.binding import Binding
from bnfold.core.choose import Values, out_of_range, overgrown
from bnfold.core.laws import bind
from bnfold.core.plan import make_plan
from bnfold.core.reasons import Reason
from tests.core.interpreter import Network, assert_fold_is_exact, removed_names

RNG = np.random.default_rng(21)
K = RNG.standard_normal((4, 3, 3, 1, 1))
A, B = [1.5, -0.6, 0.25], [0.3, -1.1, 0.8]


def plain(binding: Binding) -> Values:
    """Everything stored as it is."""
    count = binding.system.count
    return Values(np.ones(count), np.ones(count), np.zeros(count))


def shaped(*values: float) -> np.ndarray:
    """(1, C, 1, 1)"""
    return np.array(values, dtype=np.float64).reshape(1, -1, 1, 1)


class TestScale:
    """Three channels, the middle one's output stored at the scale that is asked about."""

    def is_out(self, scale: float, gamma: float = 2.0, beta: float = 0.5, **options) -> bool:
        net = Network()
        x = net.affine(net.input(1, 3, 2, 2), [1.0, gamma, 1.0], [0.0, beta, 0.0], **options)
        net.output(net.conv(x, K[0]))
        binding = bind(net.graph)
        values, bound = plain(binding), binding.affine[0]
        values.scale[bound.outputs[1]] = scale
        return out_of_range(binding, [0], values) == [0]

    @pytest.mark.parametrize("scale", [1.0, 16.0, -16.0, 1 / 16, -1 / 16])
    def test_up_to_the_limit_in_both_directions(self, scale):
        assert not self.is_out(scale, range_limit=16.0)

    @pytest.mark.parametrize("scale", [17.0, -17.0, 1 / 17, -1 / 17])
    def test_and_not_beyond_it(self, scale):
        assert self.is_out(scale, range_limit=16.0)

    def test_a_wide_spread_does_not_count_against_it(self):
        assert not self.is_out(10.0, range_limit=16.0, spread=shaped(4, 4, 4))

    def test_a_small_spread_counts_for_it(self):
        assert not self.is_out(30.0, range_limit=16.0, spread=shaped(1, 0.5, 1))
        assert self.is_out(34.0, range_limit=16.0, spread=shaped(1, 0.5, 1))
        assert self.is_out(30.0, range_limit=16.0, spread=shaped(0.5, 1, 0.5))

    @pytest.mark.parametrize("scale", [np.nan, np.inf])
    def test_what_is_no_number_is_out_of_range(self, scale):
        assert self.is_out(scale)
        with np.errstate(invalid="ignore"):
            assert self.is_out(scale, spread=shaped(1, 0, 1))

    def test_a_channel_without_a_shift_is_no_constant(self):
        assert self.is_out(17.0, beta=0.0, range_limit=16.0)

    def test_a_constant_may_be_stored_at_any_scale(self):
        assert not self.is_out(17.0, gamma=0.0, range_limit=16.0)
        assert not self.is_out(1 / 17, gamma=0.0, range_limit=16.0)


class TestScaleElsewhere:
    """A tiny factor behind a step, or a sum: what it scales there is read by others, too."""

    def blamed(self, scale: float, tiny: float, between: str, *removed: str) -> set[str]:
        net = Network()
        i = net.input(1, 3, 4, 4)
        z = net.conv(i, K[0])
        if between == "sum":
            at = net.sum(z, net.conv(i, K[1]))
        else:
            at = net.affine(z, A, B, name="between")
        step = net.affine(at, [1.0, tiny, 1.0], B, name="step")
        net.output(net.conv(step, K[2]), net.conv(z, K[3]))
        binding = bind(net.graph)
        values = plain(binding)
        values.scale[binding.labels[z].reshape(-1)[1]] = scale
        numbers = [net.number(name) for name in removed]
        names = {net.number(name): name for name in removed}
        return {names[number] for number in out_of_range(binding, numbers, values)}

    @pytest.mark.parametrize("between", ["sum", "step"])
    def test_the_step_is_blamed(self, between):
        assert self.blamed(2.0**-41, 1e-13, between, "step") == {"step"}
        assert not self.blamed(2.0**-39, 1e-13, between, "step")

    def test_and_not_the_one_beside_that_value(self):
        assert self.blamed(2.0**-41, 1e-13, "step", "between", "step") == {"step"}

    def test_a_step_without_such_a_factor_is_not(self):
        assert not self.blamed(2.0**-41, 1e-3, "sum", "step")

    def test_it_stays_for_that(self):
        net = Network()
        z = net.conv(net.input(1, 3, 4, 4), K[0])
        at = net.affine(z, [1.0] * 3, B, name="between")
        step = net.affine(at, [1.0, 1e-13, 1.0], B, name="step")
        net.output(step, net.sigmoid(net.affine(z, A, B, name="other")))
        assert removed_names(net, assert_fold_is_exact(net, tolerance=1e-12)) == [
            "between",
            "other",
        ]


class TestShift:
    """y = a * x + b of mean `center` and deviation `spread`; the limit is 16 times the value."""

    def is_over(
        self,
        a: float,
        b: float,
        *,
        x: float = 0.0,
        y: float = 0.0,
        reads_x: bool = False,
        reads_y: bool = False,
        **options,
    ) -> bool:
        """Whether the step drowns a value that is stored with the shift `x` or `y`."""
        net = Network()
        i = net.input(1, 3, 2, 2)
        source = net.conv(i, K[0])
        result = net.affine(source, [1, a, 1], [0, b, 0], growth_limit=16.0, **options)
        if reads_x:
            net.sigmoid(source)
        if reads_y:
            net.sigmoid(result)
        binding = bind(net.graph)
        values, bound = plain(binding), binding.affine[1]
        values.shift[bound.inputs[1]] = x
        values.shift[bound.outputs[1]] = y
        return overgrown(binding, [1], values) == [1]

    # The mean of x is (14 - 6) / 2 = 4, its deviation 4 / 2 = 2: up to 16 * (4 + 2) = 96.
    UP = {"spread": shaped(1, 4, 1), "center": shaped(0, 14, 0)}
    # Here the mean of x is -4, and its deviation 2.
    DOWN = {"spread": shaped(1, 4, 1), "center": shaped(0, -2, 0)}

    @pytest.mark.parametrize("shift", [0, 90, -98])
    def test_an_input_may_grow_up_to_the_limit(self, shift):
        assert not self.is_over(2, 6, x=shift, reads_x=True, **self.UP)
        assert not self.is_over(-2, 6, x=-shift, reads_x=True, **self.UP)
        assert not self.is_over(2, 6, x=-shift, reads_x=True, **self.DOWN)

    @pytest.mark.parametrize("shift", [91, -99])
    def test_an_input_may_not_grow_beyond_it(self, shift):
        assert self.is_over(2, 6, x=shift, reads_x=True, **self.UP)
        assert self.is_over(-2, 6, x=-shift, reads_x=True, **self.UP)
        assert self.is_over(2, 6, x=-shift, reads_x=True, **self.DOWN)

    @pytest.mark.parametrize("shift", [0, 270, -298])
    def test_an_output_may_grow_up_to_the_limit(self, shift):
        """16 * (14 + 4) = 288."""
        assert not self.is_over(2, 6, y=shift, reads_y=True, **self.UP)

    @pytest.mark.parametrize("shift", [271, -299])
    def test_an_output_may_not_grow_beyond_it(self, shift):
        assert self.is_over(2, 6, y=shift, reads_y=True, **self.UP)

    @pytest.mark.parametrize("a", [2, -2])
    def test_digits_that_the_output_never_had_cannot_be_lost(self, a):
        """x is 4 +- 2, so that y = 2 * x - 8 has the digits of 12: 16 * 12 = 192."""
        step = {"spread": shaped(1, 4, 1), "center": shaped(0, 0, 0)}
        assert not self.is_over(a, -4 * a, y=188, reads_y=True, **step)
        assert self.is_over(a, -4 * a, y=189, reads_y=True, **step)

    def test_what_nobody_else_reads_may_grow(self):
        assert not self.is_over(2, 6, x=1e6, y=2e6, **self.UP)
        assert not self.is_over(2, 6, x=1e6, y=0, reads_y=True, **self.UP)
        assert not self.is_over(2, 6, x=0, y=2e6, reads_x=True, **self.UP)

    def test_a_constant_has_no_digits(self):
        with np.errstate(all="raise"):
            assert not self.is_over(0, 6, x=1e6, y=1e6, reads_x=True, reads_y=True, **self.UP)

    def test_a_channel_without_a_shift_is_no_constant(self):
        """x and y are 0 +- 1 there."""
        assert self.is_over(1, 0, x=16, reads_x=True)
        assert not self.is_over(1, 0, x=15, reads_x=True)

    def test_without_statistics_x_is_taken_as_0_and_1(self):
        assert not self.is_over(2, 6, x=-15, reads_x=True)
        assert self.is_over(2, 6, x=-16, reads_x=True)
        assert not self.is_over(2, 6, y=120, reads_y=True)  # 16 * (6 + 2)
        assert self.is_over(2, 6, y=121, reads_y=True)

    def test_without_a_center_the_mean_of_y_is_its_shift(self):
        assert not self.is_over(2, 6, x=-30, reads_x=True, spread=shaped(1, 4, 1))
        assert self.is_over(2, 6, x=-31, reads_x=True, spread=shaped(1, 4, 1))


class TestWhoDidIt:
    """Two steps of one stream: the shift of one may be what the other has to live with."""

    def found(self, steps: list[dict[str, float]], shift: float) -> list[int]:
        """Which of the steps is to stay if the stream is stored with this shift."""
        net = Network()
        x = net.conv(net.input(1, 3, 2, 2), K[0])
        for step in steps:
            net.affine(
                x,
                [1, step["a"], 1],
                [0, step["b"], 0],
                spread=shaped(1, step["spread"], 1),
                center=shaped(0, step["center"], 0),
                growth_limit=16.0,
            )
        net.sigmoid(x)
        binding = bind(net.graph)
        values, bound = plain(binding), binding.affine[1]
        values.shift[bound.inputs[1]] = shift
        return overgrown(binding, [1, 2], values)

    MILD = {"a": 1, "b": 3, "spread": 1, "center": 3}
    # x is 4 +- 2; stored without its shift, y = 2 * x + b makes x grow up to 96 where |b| is 188.
    FITS = {"a": 2, "b": 180, "spread": 4, "center": 188}
    OVER = {"a": 2, "b": 181, "spread": 4, "center": 189}
    FITS_DOWN = {"a": -2, "b": -180, "spread": 4, "center": -188}
    OVER_DOWN = {"a": 2, "b": -197, "spread": 4, "center": -189}

    def test_nothing_has_grown(self):
        assert self.found([self.MILD, self.OVER], 0.0) == []

    @pytest.mark.parametrize("step", [FITS, FITS_DOWN])
    def test_if_none_does_it_alone_all_of_them_did(self, step):
        assert self.found([self.MILD, step], 1000.0) == [1, 2]

    @pytest.mark.parametrize("step", [OVER, OVER_DOWN])
    def test_the_one_that_does_it_alone_is_the_one(self, step):
        assert self.found([self.MILD, step], 1000.0) == [2]
        assert self.found([step, self.MILD], 1000.0) == [1]


@pytest.mark.parametrize("pooling", ["max_pool", "mean_pool"])
def test_an_op_that_only_passes_values_on_reads_no_digits(pooling):
    """The first step and the pooling see the stream, and only the second step reads the pooling."""
    net = Network()
    x = net.conv(net.input(2, 3, 4, 4), K[0])
    step = {"spread": np.full((1, 3, 1, 1), 1e-6), "center": np.full((1, 3, 1, 1), 0.3)}
    one = net.affine(x, [1e-6, 2e-6, 1e-6], [0.3] * 3, name="one", **step)
    two = net.affine(getattr(net, pooling)(x), [1e-6] * 3, [0.3] * 3, name="two", **step)
    net.output(net.conv(one, K[1]), net.conv(two, K[2]))
    plan = assert_fold_is_exact(net, tolerance=1e-8)
    assert removed_names(net, plan) == ["one", "two"]


def test_a_zero_gamma_makes_no_warning():
    net = Network()
    x = net.affine(net.conv(net.input(2, 3, 4, 4), K[0]), [1.5, 0.0, 0.25], B, name="bn")
    with np.errstate(all="raise"):
        plan = assert_fold_is_exact(net.output(net.conv(x, K[1])))
    assert removed_names(net, plan) == ["bn"]


class TestAddedUp:
    """What a tiny gamma demands of the operands of a sum in front of it, which others read."""

    TINY = [1.0, 1e-6, -0.5]

    def network(self, reader: str, between: str = "") -> Network:
        """sum of what is fixed and of `q`; `q` is read by another op as well."""
        net = Network()
        i = net.input(1, 3, 4, 4)
        fixed, q = net.conv(i, K[0]), net.conv(i, K[1])
        total = net.sum(fixed, q)
        if between == "sum":
            total = net.sum(total, net.sigmoid(net.conv(i, K[2])))
        elif between == "factor":
            total = net.affine(total, [2.0, 0.5, -3.0], [0.0, 0.0, 0.0], name="factor")
        step = net.affine(total, self.TINY, B, name="step")
        others = {
            "conv": lambda: net.conv(q, K[3]),
            "sum": lambda: net.conv(net.sum(q, fixed), K[3]),
            "step": lambda: net.conv(net.affine(q, A, B, name="other"), K[3]),
            "none": lambda: net.sigmoid(i),
            "sum for it": lambda: net.conv(
                net.affine(net.sum(q, fixed), self.TINY, B, name="other"), K[3]
            ),
        }
        net.output(net.conv(step, K[2]), net.sigmoid(fixed), others[reader]())
        return net

    @pytest.mark.parametrize("between", ["", "sum", "factor"])
    @pytest.mark.parametrize("reader", ["conv", "sum", "step"])
    def test_the_step_stays(self, reader, between):
        net = self.network(reader, between)
        plan = make_plan(net.graph)
        assert plan.kept[net.number("step")].reason is Reason.SCALE_RANGE
        assert_fold_is_exact(net, tolerance=1e-12)

    @pytest.mark.parametrize("reader", ["none", "sum for it"])
    def test_it_goes_where_nobody_needs_the_digits(self, reader):
        net = self.network(reader)
        assert "step" in removed_names(net, make_plan(net.graph))

    def test_a_factor_in_front_of_it_is_no_hiding_place(self):
        net = Network()
        q = net.conv(net.input(1, 3, 4, 4), K[0])
        step = net.affine(net.affine(q, [2.0] * 3, [0.0] * 3), self.TINY, B, name="step")
        net.output(net.conv(step, K[1]), net.conv(q, K[2]))
        assert net.number("step") in make_plan(net.graph).kept
        assert_fold_is_exact(net, tolerance=1e-12)


class TestDeadChannels:
    """A gamma of 1e-39 behind another step: between the two, nothing is stored."""

    TINY = (1.5, 1.4e-39, -0.5)

    def names(self, build, tiny=TINY, **options) -> list[str]:
        net = Network()
        x = net.affine(net.conv(net.input(2, 3, 4, 4), K[0]), A, B, name="bn", **options)
        net.output(*build(net, net.affine(x, tiny, B, name="scale", **options), x))
        return removed_names(net, assert_fold_is_exact(net))

    @pytest.mark.parametrize(
        "tiny", [TINY, (1.5, -1.4e-39, -0.5), (1e-39, -1e-30, 1e-20), (1e-300, 1.0, 1.0)]
    )
    def test_however_many_and_of_any_sign(self, tiny):
        assert self.names(lambda net, y, _: [net.conv(y, K[1])], tiny) == ["bn", "scale"]

    @pytest.mark.parametrize("between", ["clip", "leaky", "max_pool", "mean_pool"])
    def test_through_what_passes_values_on(self, between):
        def build(net, y, _):
            return [net.conv(getattr(net, between)(y), K[1])]

        assert self.names(build) == ["bn", "scale"]

    def test_before_padding(self):
        kernel = RNG.standard_normal((3, 3, 3, 3))
        assert self.names(lambda net, y, _: [net.conv(y, kernel, padding=1)]) == ["bn", "scale"]

    def test_in_a_narrow_range(self):
        assert self.names(lambda net, y, _: [net.conv(y, K[1])], range_limit=2.0**8) == [
            "bn",
            "scale",
        ]

    def test_what_another_op_reads_is_stored(self):
        def build(net, y, x):
            return [net.conv(net.sum(net.conv(y, K[1]), net.leaky(x)), K[2])]

        assert self.names(build) == ["bn"]

    def test_what_is_added_to_a_stream_is_stored_there(self):
        """x would be stored at 1e-39 of its size, in the stream, too."""
        net = Network()
        x = net.conv(net.input(2, 3, 4, 4), K[0])
        y = net.affine(x, [1e-39] * 3, [0.0] * 3, name="bn")
        net.output(net.conv(net.sum(x, net.conv(y, K[1])), K[2]))
        assert removed_names(net, assert_fold_is_exact(net)) == []


class TestNarrowReaders:
    """The input has the mean 100 and the deviation 1; a cast to a dtype of few digits follows."""

    def is_kept(self, mean: float = 100.0, deviation: float = 1.0, *, own: bool, **limits) -> bool:
        net = Network()
        x = net.input(1, 3, 2, 2)
        a = 1 / deviation
        statistics = {"spread": shaped(1, 1, 1), "center": shaped(0, 0, 0)}
        y = net.affine(net.sigmoid(x) if own else x, [a] * 3, [-mean * a] * 3, **statistics)
        net.output(net.conv(y, K[0]))
        last = len(net.graph.ops) - 1
        op = net.graph.ops[last]
        net.graph.ops[last] = replace(op, role=replace(op.role, **limits))
        return bool(make_plan(net.graph).kept)

    @pytest.mark.parametrize("own", [False, True])
    def test_the_digits_of_the_reader_count(self, own):
        assert not self.is_kept(own=own)
        assert not self.is_kept(mean=10.0, own=own, growth_limit=16.0)
        assert self.is_kept(own=own, growth_limit=16.0)

    @pytest.mark.parametrize("own", [False, True])
    def test_the_range_of_the_reader_counts(self, own):
        assert not self.is_kept(0.0, 1e5, own=own)
        assert not self.is_kept(0.0, 100.0, own=own, growth_limit=16.0, range_limit=256.0)
        assert self.is_kept(0.0, 1e5, own=own, growth_limit=16.0, range_limit=256.0)
