"""What is free is chosen such that removed steps leave the values that training saw."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core.graph import Linear
from bnfold.core.plan import make_plan
from bnfold.core.reasons import Reason
from tests.core.interpreter import Network, assert_fold_is_exact

RNG = np.random.default_rng(3)
K = RNG.standard_normal((4, 3, 3, 1, 1))
A, B = [1.5, -0.6, 0.25], [0.3, -1.1, 0.8]


def values_of(net: Network, tensor: int) -> tuple[np.ndarray, np.ndarray]:
    """s and t of a tensor's channels."""
    solution = make_plan(net.graph).solution
    assert solution is not None
    labels = np.broadcast_to(solution.binding.labels[tensor], net.shape(tensor))[0, :, 0, 0]
    return solution.values.scale[labels], solution.values.shift[labels]


class TestScales:
    def test_a_convolution_before_a_norm_becomes_exactly_a_times_w(self):
        net = Network()
        x = net.affine(net.conv(net.input(1, 3, 4, 4), K[0]), A, B)
        y = net.clip(x)
        net.output(net.conv(y, K[1]))
        edit = assert_fold_is_exact(net).linear[0]
        assert edit.output_scale.tolist() == A
        scale, shift = values_of(net, x)
        assert scale.tolist() == [1.0] * 3
        assert shift.tolist() == [0.0] * 3

    def test_of_norms_in_a_row_the_last_is_stored_as_it_is(self):
        """All of them become one value; the others are no more."""
        net = Network()
        x = net.conv(net.input(1, 3, 4, 4), K[0])
        x = net.affine(x, [2.0, -0.5, 4.0], [0.3, 0.2, 0.1])
        y = net.affine(x, [0.25, -3.0, -2.0], [0.1, -0.4, 0.2])
        net.output(net.conv(y, K[1]))
        scale, shift = values_of(net, y)
        assert scale.tolist() == [1.0] * 3
        assert shift.tolist() == [0.0] * 3
        assert values_of(net, x)[0].tolist() == [0.25, -3.0, -2.0]

    def test_a_chain_of_norms_does_not_drift(self):
        """The middle of the chain is stored as it is; the ends are as far off as they must be."""
        net = Network()
        x = net.conv(net.input(1, 3, 4, 4), K[0])
        steps = []
        for _ in range(21):
            y = net.affine(x, [2.0, -0.5, 1.5], [0.3, 0.2, 0.1])
            x = net.sum(y, net.conv(x, K[2]))
            steps.append(y)
        net.output(net.conv(x, K[1]))
        assert len(make_plan(net.graph).removed) == 21
        logs = np.array([np.log2(np.abs(values_of(net, x)[0])) for x in steps])
        np.testing.assert_allclose(logs[10], 0.0, atol=1e-9)
        np.testing.assert_allclose(np.abs(logs[0]), 10 * np.abs(np.log2([2.0, 0.5, 1.5])))

    def test_the_median_is_one_that_occurs(self):
        """With two norms of one stream the lower one is stored as it is."""
        net = Network()
        x = net.conv(net.input(1, 3, 4, 4), K[0])
        one, two = net.affine(x, [0.5, 2.0, -4.0], B), net.affine(x, [2.0, 0.25, 1.0], B)
        net.output(net.conv(one, K[1]), net.conv(two, K[2]))
        scales = np.abs([values_of(net, one)[0], values_of(net, two)[0]])
        assert scales.min(axis=0).tolist() == [1.0, 1.0, 1.0]
        assert scales.max(axis=0).tolist() == [4.0, 8.0, 4.0]

    def test_a_class_without_a_removed_step_stays_as_it_is(self):
        net = Network()
        x = net.conv(net.input(1, 3, 4, 4), K[0])
        y = net.affine(net.conv(x, K[1]), A, B)
        net.output(net.conv(y, K[2]))
        scale, shift = values_of(net, x)
        assert scale.tolist() == [1.0] * 3
        assert shift.tolist() == [0.0] * 3
        assert 0 not in make_plan(net.graph).linear

    def test_pinned_values_are_exactly_plain(self):
        net = Network()
        x = net.input(1, 3, 4, 4)
        for scale in ([3.0, 0.7, -1.1], [0.1, 9.0, 2.3]):
            x = net.affine(x, scale, B)
        x = net.conv(x, K[0])
        net.output(x)
        assert values_of(net, x)[0].tolist() == [1.0] * 3

    def test_a_constant_that_its_readers_know_is_not_scaled(self):
        """The inverse is 0, so that nobody looks; whoever asks for the scale gets 1."""
        net = Network()
        x = net.affine(net.input(1, 3, 4, 4), [1.5, 0.0, 0.25], B, name="bn")
        net.output(net.affine(x, A, B, name="kept", removal=g.Refusal(Reason.HOOK)))
        edit = assert_fold_is_exact(net).affine[1]
        assert edit.scale.reshape(-1)[1] == 0.0
        assert edit.input_scale.reshape(-1)[1] == 1.0


class TestShifts:
    def test_the_first_removed_step_has_no_shift(self):
        net = Network()
        x = net.conv(net.input(1, 3, 4, 4), K[0])
        one = net.affine(x, A, B)
        two = net.affine(x, np.roll(A, 1), np.roll(B, 1))
        net.output(net.conv(one, K[1]), net.conv(two, K[2]))
        assert values_of(net, one)[1].tolist() == [0.0] * 3
        assert values_of(net, two)[1].all()

    def test_shifts_that_cancel_are_exactly_zero(self):
        """An op does not get a bias that it does not need."""
        net = Network()
        x = net.affine(net.input(1, 3, 4, 4), [1, 1, 1], [0.5, 0.75, -0.25])
        x = net.affine(x, [1, 1, 1], [0.25, -0.5, 0.125])
        x = net.affine(x, [1, 1, 1], [-0.75, -0.25, 0.125])
        net.output(net.conv(x, K[0]))
        plan = assert_fold_is_exact(net)
        assert len(plan.removed) == 3
        assert not plan.linear

    @pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
    def test_shifts_that_cancel_up_to_rounding_are_exactly_zero(self, size):
        """a * (b / a) - b is not 0 in floating point, as with these numbers."""
        net = Network()
        x = net.conv(net.input(1, 3, 4, 4), K[0])
        y = net.affine(x, [1.5, -0.6, -0.6], np.multiply(size, [0.9, 0.7, 0.9]))
        net.output(net.conv(net.clip(y), K[1]))
        plan = assert_fold_is_exact(net)
        assert len(plan.removed) == 1
        first, second = (n for n, op in enumerate(net.graph.ops) if isinstance(op.role, Linear))
        assert plan.linear[first].output_shift.all()
        assert second not in plan.linear

    @pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
    def test_a_small_rest_is_no_rounding(self, size):
        net = Network()
        x = net.conv(net.input(1, 3, 4, 4), K[0])
        b = np.array([size, -size, size])
        one = net.affine(x, [1, 1, 1], b)
        two = net.affine(x, [1, 1, 1], b * (1 - 1e-11))
        net.output(net.conv(one, K[1]), net.conv(two, K[2]))
        assert values_of(net, one)[1].tolist() == [0.0] * 3
        np.testing.assert_allclose(values_of(net, two)[1], b * 1e-11, rtol=1e-4)

    @pytest.mark.parametrize("seed", range(8))
    def test_a_bound_of_zero_stays_zero(self, seed):
        """What reads it may tell 1e-17 from 0: a sign, a reciprocal."""
        rng = np.random.default_rng(seed)
        net = Network()
        x = net.conv(net.input(1, 3, 4, 4), K[0])
        for _ in range(rng.integers(2, 5)):
            x = net.affine(x, rng.uniform(0.3, 1.5, 3), rng.uniform(-1, 1, 3))
        x = net.affine(x, [1, 1, 1], rng.uniform(-1, 1, 3))
        clipped = net.clip(x)
        net.output(net.affine(clipped, -rng.uniform(0.1, 1.5, 3), [0.0] * 3))
        assert values_of(net, clipped)[1].tolist() == [0.0] * 3
        assert_fold_is_exact(net)

    def test_the_first_step_counts_even_if_it_goes_last(self):
        """A zero gamma that its readers have to take is looked at after all others."""
        net = Network()
        x = net.conv(net.input(1, 3, 4, 4), K[0])
        one = net.affine(x, [-1.5, 0.0, 0.25], B, name="one")
        two = net.affine(x, [0.5, -2.0, -4.0], np.roll(B, 1), name="two")
        net.output(net.conv(one, K[1]), net.conv(two, K[2]))
        solution = make_plan(net.graph).solution
        assert solution is not None
        assert solution.removed == [net.number("two"), net.number("one")]
        scale, shift = values_of(net, one)
        assert shift[[0, 2]].tolist() == [0.0, 0.0]
        assert (scale > 0).all()

    @pytest.mark.parametrize("shared", [0, 1, 2])
    @pytest.mark.parametrize("count", [2, 3])
    def test_what_a_sum_has_to_be_given_goes_where_nobody_else_reads(self, shared, count):
        """Behind a tiny gamma the shift would drown what others read: one operand is its own."""
        net = Network()
        x = net.input(1, 3, 4, 4)
        terms = [net.conv(x, kernel) for kernel in K[:count]]
        total = terms[0]
        for term in terms[1:]:
            total = net.sum(total, term)
        step = net.affine(total, [1e-6, -0.6, 1.0], B)
        others = [net.affine(t, A, B) for n, t in enumerate(terms) if n != shared % count]
        net.output(step, *(net.sigmoid(other) for other in others))
        for number, term in enumerate(terms):
            assert np.any(values_of(net, term)[1]) == (number == shared % count)
        assert_fold_is_exact(net, tolerance=1e-12)

    def test_waiting_sums_are_solved(self):
        net = Network()
        i = net.input(1, 3, 4, 4)
        x, y = net.conv(i, K[0]), net.conv(i, K[1])
        z = net.affine(net.sum(x, y), A, B)
        net.output(net.conv(z, K[2]), net.conv(net.clip(z), K[3]))
        (s_x, t_x), (s_y, t_y) = values_of(net, x), values_of(net, y)
        assert s_x.tolist() == s_y.tolist()
        np.testing.assert_allclose(t_x + t_y, np.divide(B, A))
