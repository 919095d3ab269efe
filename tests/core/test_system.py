"""The vocabulary of the laws: scales, signs, shifts, and trials that leave no trace."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core.forest import Conflict
from bnfold.core.reasons import Reason
from bnfold.core.system import System, distinct


def one(value: float) -> np.ndarray:
    return np.array([value])


@pytest.fixture
def system():
    made = System()
    made.fresh(6)
    made.cause(-1, "test", Reason.BRANCHES)
    return made


def var(number: int) -> np.ndarray:
    return np.array([number])


class TestConflicts:
    def test_a_negative_factor_between_positive_scales(self, system):
        system.positive(np.array([1, 2]), 0)
        with pytest.raises(Conflict):
            system.scale_by(var(1), var(2), one(-2.0), 0)

    def test_a_plain_scale_is_not_two(self, system):
        system.plain_scale(var(1), 0)
        with pytest.raises(Conflict):
            system.scale_by(var(1), var(2), one(2.0), 0)
            system.plain_scale(var(2), 0)

    def test_plain_has_no_shift(self, system):
        system.plain(var(1), 0)
        with pytest.raises(Conflict):
            system.shift_map(var(1), var(2), one(0.0), one(0.3), 0)

    def test_same_means_both(self, system):
        system.same(var(1), var(2), 0)
        with pytest.raises(Conflict):
            system.shift_map(var(1), var(2), one(1.0), one(0.3), 0)

    def test_a_failed_trial_leaves_no_trace(self, system):
        system.sums.add(np.array([[1, 2, 3]]), np.array([[-1.0, 1.0, 1.0]]), 0)
        system.sums.settle()
        before = [
            [part.copy() for part in (f.parent, f.p, f.q, f.size)]
            for f in (system.magnitude, system.sign, system.shift)
        ]
        with pytest.raises(Conflict), system.trial():
            system.scale_by(var(1), var(2), one(-2.0), 0)
            system.no_shift(np.array([1, 2]), 0)
            system.shift_map(var(3), var(4), one(0.0), one(0.3), 0)
        after = [
            (f.parent, f.p, f.q, f.size) for f in (system.magnitude, system.sign, system.shift)
        ]
        for old, new in zip(before, after, strict=True):
            for left, right in zip(old, new, strict=True):
                np.testing.assert_array_equal(left, right)
        assert system.sums.waiting.all()

    def test_a_sum_is_settled_before_the_trial_ends(self, system):
        """3 = 1 + 2 with all three pinned: the contradiction belongs to this trial."""
        system.sums.add(np.array([[3, 1, 2]]), np.array([[-1.0, 1.0, 1.0]]), 0)
        system.no_shift(np.array([1, 2]), 0)
        with pytest.raises(Conflict), system.trial():
            system.shift.pin(var(3), one(0.5), 0)


class TestRelations:
    def test_scales_multiply_with_their_signs(self, system):
        system.scale_by(var(1), var(2), one(-2.0), 0)
        system.scale_by(var(2), var(3), one(-0.25), 0)
        system.plain_scale(var(3), 0)
        for number, value in ((1, 0.5), (2, -0.25), (3, 1.0)):
            magnitude, sign = system.magnitude.find(var(number)), system.sign.find(var(number))
            assert magnitude.root[0] == sign.root[0] == 0
            assert magnitude.p[0] * sign.p[0] == value

    def test_same_magnitude_leaves_the_sign_open(self, system):
        system.same_magnitude(var(1), var(2), 0)
        system.sign.relate(var(1), var(2), one(-1.0), one(0.0), 0)
        assert system.magnitude.find(var(1)).root == system.magnitude.find(var(2)).root

    def test_a_shift_map_with_factor_zero_is_a_value(self, system):
        system.shift_map(
            np.array([1, 2]), np.array([3, 3]), np.array([0.0, 2.0]), np.array([0.3, 1.0]), 0
        )
        system.no_shift(var(3), 0)
        assert system.shift.find(np.array([1, 2])).q.tolist() == [0.3, 1.0]

    def test_fresh_variables_are_free_and_new(self, system):
        made = system.fresh(3)
        assert made.tolist() == [7, 8, 9]
        assert system.shift.find(made).root.tolist() == made.tolist()

    def test_distinct_leaves_the_pinned_one_out(self):
        assert distinct(np.array([[3, 0, 3], [1, 0, 2]])).tolist() == [1, 2, 3]
        assert distinct(np.array([[0]])).tolist() == []


class TestAreSame:
    """Known to be equal: in scale, sign and shift."""

    def test_what_only_might_be(self):
        system = System()
        variables = system.fresh(4)
        cause = system.cause(0, "op", Reason.BRANCHES)
        system.same_magnitude(variables[:1], variables[1:2], cause)
        system.same_scale(variables[2:3], variables[3:], cause)
        assert not system.are_same(variables[::2], variables[1::2]).any()

    def test_what_the_laws_say(self):
        system = System()
        one, two, three = (system.fresh(2) for _ in range(3))
        cause = system.cause(0, "op", Reason.SHARED)
        system.same(one, two, cause)
        system.same(three, two, cause)
        assert system.are_same(one, three).all()
        assert not system.are_same(one, three[::-1]).any()

    def test_what_is_stored_as_it_is(self):
        system = System()
        one, two = system.fresh(1), system.fresh(1)
        cause = system.cause(0, "op", Reason.GRAPH_OUTPUT)
        system.plain(one, cause)
        system.shift_map(two, one, np.array([3.0]), np.array([0.0]), cause)
        system.plain_scale(two, cause)
        assert system.are_same(one, two).all()
