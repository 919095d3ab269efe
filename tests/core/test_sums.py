"""Sums of three shifts: they wait, become relations, and are solved together at the end."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core.forest import Conflict, Forest
from bnfold.core.sums import Sums, simplify, solve_waiting


def setup(*rows: tuple[int, int, int], coefficients=(-1.0, 1.0, 1.0)) -> tuple[Forest, Sums]:
    """Sums z = x + y for each row (z, x, y)."""
    forest = Forest(0.0)
    forest.extend(20)
    sums = Sums(forest)
    for row in rows:
        sums.add(np.array([row]), np.array([coefficients]), cause=100 + row[0])
    return forest, sums


def tie(forest: Forest, left: int, right: int, p: float, q: float = 0.0) -> None:
    forest.relate(np.array([left]), np.array([right]), np.array([p]), np.array([q]), -1)


def pin(forest: Forest, variable: int, value: float) -> None:
    forest.pin(np.array([variable]), np.array([value]), -1)


def known(forest: Forest, variable: int) -> float | None:
    found = forest.find(np.array([variable]))
    return float(found.q[0]) if found.root[0] == 0 else None


def all_values(forest: Forest, sums: Sums, preferred: np.ndarray | None = None) -> np.ndarray:
    roots = solve_waiting(sums, np.zeros(20) if preferred is None else preferred)
    found = forest.find(np.arange(20))
    return found.p * roots[found.root] + found.q


class TestConflicts:
    def test_three_known_sides_that_do_not_add_up(self):
        forest, sums = setup((1, 2, 3))
        for variable, value in ((1, 5.0), (2, 2.0), (3, 4.0)):
            pin(forest, variable, value)
        with pytest.raises(Conflict) as caught:
            sums.settle()
        assert caught.value.causes[0] == 101

    def test_two_sides_related_so_that_nothing_fits(self):
        """z = x + y, z = x + 1 and y = 0."""
        forest, sums = setup((1, 2, 3))
        tie(forest, 1, 2, 1.0, 1.0)
        pin(forest, 3, 0.0)
        with pytest.raises(Conflict):
            sums.settle()

    def test_two_waiting_sums_that_only_contradict_jointly(self):
        """z = x + y, w = x + y, w = z + 1: neither settles, together they cannot hold."""
        forest, sums = setup((1, 2, 3), (4, 2, 3))
        tie(forest, 4, 1, 1.0, 1.0)
        sums.settle()
        assert sums.waiting.all()
        with pytest.raises(Conflict):
            solve_waiting(sums, np.zeros(20))

    def test_a_joint_contradiction_over_four_sums(self):
        """(x + y) + w and (x + w) + y, the one 0 and the other 0.3."""
        forest, sums = setup((5, 1, 2), (6, 5, 3), (7, 1, 3), (8, 7, 2))
        pin(forest, 6, 0.0)
        pin(forest, 8, 0.3)
        sums.settle()
        assert sums.waiting.any()
        with pytest.raises(Conflict):
            solve_waiting(sums, np.zeros(20))

    def test_rollback_makes_settled_sums_wait_again(self):
        forest, sums = setup((1, 2, 3))
        sums.settle()
        marks = forest.mark(), sums.mark()
        pin(forest, 2, 1.0)
        sums.settle()
        assert not sums.waiting.any()
        forest.rollback(marks[0])
        sums.rollback(marks[1])
        assert sums.waiting.all()
        pin(forest, 2, 4.0)
        pin(forest, 3, -1.0)
        sums.settle()
        assert known(forest, 1) == 3.0

    def test_after_a_rollback_a_sum_is_looked_at_again(self):
        """In the trial its side 2 had another root; what counts now is its own."""
        forest, sums = setup((1, 2, 3))
        sums.settle()
        marks = forest.mark(), sums.mark()
        tie(forest, 8, 9, 1.0, 1.0)  # the larger class, so 8 becomes the root of 2
        tie(forest, 2, 9, 1.0, 1.0)
        sums.settle()
        forest.rollback(marks[0])
        sums.rollback(marks[1])
        pin(forest, 2, 4.0)
        sums.settle()
        assert not sums.waiting.any()
        pin(forest, 3, -1.0)
        assert known(forest, 1) == 3.0


class TestSettle:
    def test_three_open_sides_wait(self):
        forest, sums = setup((1, 2, 3))
        sums.settle()
        assert sums.waiting.all()
        assert [known(forest, k) for k in (1, 2, 3)] == [None] * 3

    def test_one_known_side_makes_a_relation(self):
        forest, sums = setup((1, 2, 3))
        pin(forest, 3, 0.5)
        sums.settle()
        assert not sums.waiting.any()
        pin(forest, 1, 2.0)
        assert known(forest, 2) == 1.5

    def test_two_known_sides_make_a_value(self):
        forest, sums = setup((1, 2, 3), coefficients=(-1.0, 2.0, -3.0))
        pin(forest, 1, 7.0)
        pin(forest, 3, -1.0)
        sums.settle()
        assert known(forest, 2) == 2.0

    def test_three_known_sides_that_add_up(self):
        forest, sums = setup((1, 2, 3))
        for variable, value in ((1, 6.0), (2, 2.0), (3, 4.0)):
            pin(forest, variable, value)
        sums.settle()
        assert not sums.waiting.any()

    def test_sides_of_one_class_are_merged(self):
        """z = x + y with y = 2x: z = 3x."""
        forest, sums = setup((1, 2, 3))
        tie(forest, 3, 2, 2.0)
        sums.settle()
        pin(forest, 1, 6.0)
        assert known(forest, 2) == 2.0

    def test_sides_of_one_class_may_cancel(self):
        """z = x + y with y = -x + 5: z = 5, whatever x is."""
        forest, sums = setup((1, 2, 3))
        tie(forest, 3, 2, -1.0, 5.0)
        sums.settle()
        assert known(forest, 1) == 5.0
        assert known(forest, 2) is None

    def test_a_small_side_beside_a_large_known_one_is_no_rounding(self):
        """z = x + y with x = 1e7 * 0 + 3 and y = 1e-8 * w: w is what is left of z, times 1e8."""
        forest, sums = setup((1, 2, 3))
        pin(forest, 0, 0.0)
        tie(forest, 2, 0, 1e7, 3.0)
        tie(forest, 4, 6, 1.0)  # so that the root is of their class
        tie(forest, 3, 4, 1e-8)
        sums.settle()
        pin(forest, 1, 5.0)
        assert known(forest, 4) == pytest.approx(2e8)

    def test_sides_of_very_different_units(self):
        """z = x + y with x = 1e7 * v and y = 1e-8 * w, all open: none of them is dropped."""
        forest, sums = setup((1, 2, 3))
        for first, second in ((5, 7), (4, 6)):
            tie(forest, first, second, 1.0)
        tie(forest, 2, 5, 1e7)
        tie(forest, 3, 4, 1e-8)
        sums.settle()
        pin(forest, 1, 5.0)
        pin(forest, 5, 1e-7)
        sums.settle()
        assert known(forest, 4) == pytest.approx(4e8)

    def test_all_sides_of_one_class(self):
        """t = t + t, so t = 0."""
        forest, sums = setup((1, 1, 1))
        sums.settle()
        assert known(forest, 1) == 0.0

    def test_one_settled_sum_settles_the_next(self):
        forest, sums = setup((3, 2, 1), (5, 4, 3), (7, 6, 5))
        for variable, value in ((1, 1.0), (2, 10.0), (4, 100.0), (6, 1000.0)):
            pin(forest, variable, value)
        sums.settle()
        assert known(forest, 7) == 1111.0

    def test_rows_of_one_block_that_share_sides(self):
        forest, sums = setup()
        rows = np.array([[1, 2, 3], [4, 2, 3], [5, 1, 4]])
        sums.add(rows, np.tile([-1.0, 1.0, 1.0], (3, 1)), cause=7)
        pin(forest, 3, 0.25)
        pin(forest, 2, 1.0)
        sums.settle()
        assert [known(forest, k) for k in (1, 4, 5)] == [1.25, 1.25, 2.5]


class TestSolveWaiting:
    def test_nothing_waits(self):
        _, sums = setup()
        preferred = np.arange(20.0) + 1
        np.testing.assert_array_equal(solve_waiting(sums, preferred)[1:], preferred[1:])
        assert solve_waiting(sums, preferred)[0] == 0.0

    def test_a_private_side_is_computed_from_the_others(self):
        """The peel: a tree of sums, solved from its leaves, with maps in between."""
        forest, sums = setup((1, 2, 3), (4, 5, 6))
        tie(forest, 5, 1, -2.0, 0.5)
        sums.settle()
        values = all_values(forest, sums, np.linspace(0.1, 2.0, 20))
        assert values[1] == pytest.approx(values[2] + values[3])
        assert values[4] == pytest.approx(values[5] + values[6])
        assert values[5] == pytest.approx(-2 * values[1] + 0.5)
        assert np.abs(values).max() > 0.1

    def test_sums_that_share_all_sides_are_solved_together(self):
        """The dense core: x + y = z, x - y = w, with w and z tied by a map."""
        forest, sums = setup((1, 2, 3))
        sums.add(np.array([[4, 2, 3]]), np.array([[-1.0, 1.0, -1.0]]), cause=1)
        tie(forest, 4, 1, 3.0, -2.0)
        sums.settle()
        assert sums.waiting.all()
        values = all_values(forest, sums, np.linspace(1.0, 2.0, 20))
        assert values[1] == pytest.approx(values[2] + values[3])
        assert values[4] == pytest.approx(values[2] - values[3])
        assert values[4] == pytest.approx(3 * values[1] - 2)

    def test_consistent_repetition_is_no_conflict(self):
        forest, sums = setup((1, 2, 3), (1, 3, 2), (1, 2, 3))
        sums.settle()
        values = all_values(forest, sums, np.linspace(1.0, 2.0, 20))
        assert values[1] == pytest.approx(values[2] + values[3])

    def test_what_only_rounding_keeps_from_0_is_0(self):
        """-z + k x + y = 0 for three k: x = 0, y = z. What is left of x is no contradiction."""
        _, sums = setup()
        for k in (1.0, -2.72739157, 1.21538372):
            sums.add(np.array([[3, 1, 2]]), np.array([[-1.0, k, 1.0]]), cause=1)
        sums.settle()
        for x in np.random.default_rng(0).normal(size=50):
            preferred = np.zeros(20)
            preferred[1] = x
            values = solve_waiting(sums, preferred)
            assert values[1] == 0.0
            assert values[2] == pytest.approx(values[3], rel=1e-12, abs=1e-15)

    def test_a_contradiction_between_small_values_is_seen_from_far_off(self):
        """c x + y = p z + q four times, q small: a preference of 1e6 is no excuse."""
        forest, sums = setup()
        for variable, c, p, q in (
            (4, 1.0, 1.0, 2e-5),
            (5, -1.0, 2.0, 2e-5),
            (6, 3.0, -1.0, -1e-5),
            (7, 2.0, 0.5, 2e-4),
        ):
            sums.add(np.array([[variable, 1, 2]]), np.array([[-1.0, c, 1.0]]), cause=1)
            tie(forest, variable, 3, p, q)
        sums.settle()
        assert sums.waiting.all()
        for far in (0.0, 1.0, 1e6):
            with pytest.raises(Conflict):
                solve_waiting(sums, np.full(20, far))

    def test_components_do_not_touch_each_other(self):
        """One contradicts itself; the other alone would be fine."""
        forest, sums = setup((1, 2, 3), (4, 2, 3), (11, 12, 13), (14, 12, 13))
        tie(forest, 14, 11, 1.0, 0.0)
        tie(forest, 4, 1, 1.0, 0.0)
        sums.settle()
        preferred = np.zeros(20)
        preferred[[2, 3]] = 1.0, 2.0
        values = all_values(forest, sums, preferred)
        assert values[1] == pytest.approx(values[2] + values[3])
        assert values[[11, 12, 13, 14]].tolist() == [0.0] * 4

    @pytest.mark.parametrize("seed", range(20))
    def test_against_a_known_solution(self, seed):
        """Random sums through a known assignment are solved, peel and core alike."""
        generator = np.random.default_rng(seed)
        truth = generator.standard_normal(20)
        truth[0] = 0.0
        forest, sums = setup()
        for _ in range(9):
            row = generator.choice(np.arange(1, 16), 3, replace=False)
            factors = generator.choice([-2.0, 0.5, 1.0, 3.0], 3)
            factors[2] = -(factors[:2] @ truth[row[:2]]) / truth[row[2]]
            sums.add(row[None], factors[None], cause=0)
        for _ in range(3):
            left, right = generator.choice(np.arange(1, 16), 2, replace=False)
            tie(forest, left, right, 2.0, truth[left] - 2 * truth[right])
        sums.settle()
        values = all_values(forest, sums)
        held = (sums.coefficients * values[sums.variables]).sum(axis=1)
        scale = (np.abs(sums.coefficients) * np.abs(values[sums.variables])).sum(axis=1)
        assert (np.abs(held) <= 1e-9 * (1 + scale)).all()


class TestSimplify:
    def simplify(self, roots, coefficients):
        one = np.array([1.0])
        return simplify(np.array([roots]), np.array([coefficients]), one, one).coefficients[0]

    def test_different_roots_stay_apart(self):
        assert self.simplify([3, 4, 5], [1.0, 2.0, -3.0]).tolist() == [1.0, 2.0, -3.0]

    def test_known_roots_drop_out(self):
        assert self.simplify([3, 0, 5], [1.0, 2.0, -3.0]).tolist() == [1.0, 0.0, -3.0]

    def test_equal_roots_merge(self):
        assert self.simplify([3, 4, 3], [1.0, 2.0, 4.0]).tolist() == [5.0, 2.0, 0.0]

    def test_a_rest_of_rounding_is_nothing(self):
        assert self.simplify([3, 4, 3], [0.3, 2.0, -(0.1 + 0.2)]).tolist() == [0.0, 2.0, 0.0]
