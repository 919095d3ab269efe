"""The union-find over affine maps: value[left] = p * value[right] + q, with undo."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from bnfold.core.forest import Conflict, Forest, each_once


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def shifts(count: int = 12) -> Forest:
    forest = Forest(0.0)
    forest.extend(count)
    return forest


def scales(count: int = 12) -> Forest:
    forest = Forest(1.0)
    forest.extend(count)
    return forest


def tie(forest: Forest, left: int, right: int, p: float, q: float = 0.0, cause: int = -1) -> None:
    forest.relate(ints(left), ints(right), floats(p), floats(q), cause)


def pin(forest: Forest, variable: int, value: float, cause: int = -1) -> None:
    forest.pin(ints(variable), floats(value), cause)


def value_of(forest: Forest, variable: int) -> float:
    """The value of a variable that is known."""
    found = forest.find(ints(variable))
    assert found.root[0] == 0, "not known"
    return float(found.p[0] * forest.pinned_value + found.q[0])


def state(forest: Forest) -> list[list[float]]:
    return [
        part.tolist() for part in (forest.parent, forest.p, forest.q, forest.size, forest.cause)
    ]


class TestConflicts:
    """What cannot hold is refused, with the constraints that speak against it."""

    def test_two_values_for_one_variable(self):
        forest = shifts()
        pin(forest, 3, 2.0, cause=5)
        with pytest.raises(Conflict) as caught:
            pin(forest, 3, 2.5, cause=6)
        assert caught.value.causes == [6, 5]

    def test_a_value_against_a_relation(self):
        forest = shifts()
        tie(forest, 2, 3, -2.0, 0.5, cause=1)
        pin(forest, 3, 4.0, cause=2)
        with pytest.raises(Conflict) as caught:
            pin(forest, 2, -7.0, cause=3)
        assert caught.value.causes[0] == 3
        assert 2 in caught.value.causes

    def test_parallel_relations_with_another_offset(self):
        forest = shifts()
        tie(forest, 2, 3, -2.0, 0.5)
        with pytest.raises(Conflict):
            tie(forest, 2, 3, -2.0, 0.75)

    def test_another_factor_between_two_scales(self):
        forest = scales()
        tie(forest, 2, 3, 2.0)
        with pytest.raises(Conflict):
            tie(forest, 2, 3, 3.0)

    def test_a_sign_that_is_pinned_both_ways(self):
        forest = scales()
        tie(forest, 2, 3, -1.0)
        pin(forest, 3, 1.0)
        with pytest.raises(Conflict):
            pin(forest, 2, 1.0)

    def test_a_conflict_inside_one_block(self):
        forest = shifts()
        with pytest.raises(Conflict):
            forest.relate(ints(1, 2, 1), ints(2, 3, 3), floats(2, 3, 6), floats(1, -1, 0), cause=0)

    def test_factors_too_close_to_solve_and_too_far_to_be_equal(self):
        forest = shifts()
        tie(forest, 2, 3, 2.0, 0.5)
        with pytest.raises(Conflict):
            tie(forest, 2, 3, 2.0 * (1 + 1e-8), 0.75)


class TestRelate:
    def test_maps_compose_along_a_chain(self):
        forest = shifts()
        tie(forest, 1, 2, 2.0, 1.0)
        tie(forest, 2, 3, -0.5, 3.0)
        pin(forest, 3, 4.0)
        assert value_of(forest, 2) == -0.5 * 4 + 3
        assert value_of(forest, 1) == 2.0 * (-0.5 * 4 + 3) + 1

    def test_knowledge_flows_against_the_arrow(self):
        forest = shifts()
        tie(forest, 1, 2, -4.0, 1.0)
        pin(forest, 1, 9.0)
        assert value_of(forest, 2) == -2.0

    def test_two_classes_meet_in_their_middles(self):
        forest = shifts()
        tie(forest, 1, 2, 2.0, 1.0)
        tie(forest, 3, 4, -3.0, 0.5)
        tie(forest, 2, 4, 5.0, -1.0)
        pin(forest, 4, 0.5)
        assert value_of(forest, 2) == 1.5
        assert value_of(forest, 1) == 4.0
        assert value_of(forest, 3) == pytest.approx(-1.0)

    def test_saying_the_same_twice_is_no_conflict(self):
        forest = shifts()
        for _ in range(3):
            tie(forest, 1, 2, 2.0, 1.0)
            tie(forest, 2, 1, 0.5, -0.5)
        assert forest.find(ints(1)).root[0] == forest.find(ints(2)).root[0]

    def test_two_different_lines_determine_the_root(self):
        """t1 = 2*t2 + 1 and t1 = -t2 + 7 meet in t2 = 2."""
        forest = shifts()
        tie(forest, 1, 2, 2.0, 1.0)
        tie(forest, 1, 2, -1.0, 7.0)
        assert value_of(forest, 2) == pytest.approx(2.0)
        assert value_of(forest, 1) == pytest.approx(5.0)

    def test_scales_have_no_such_solution(self):
        """2*s = 3*s has only s = 0, which is no scale."""
        forest = scales()
        tie(forest, 1, 2, 2.0)
        with pytest.raises(Conflict):
            tie(forest, 1, 2, 3.0)

    def test_a_variable_that_maps_to_itself(self):
        forest = shifts()
        tie(forest, 4, 4, 3.0, -1.0)
        assert value_of(forest, 4) == pytest.approx(0.5)

    def test_duplicates_in_a_block_all_hold(self):
        forest = shifts()
        forest.relate(
            ints(1, 1, 1, 2), ints(2, 3, 4, 4), floats(2, -3, 0.5, 0.25), np.zeros(4), cause=0
        )
        pin(forest, 1, 6.0)
        assert [value_of(forest, k) for k in (2, 3, 4)] == [3.0, -2.0, 12.0]

    def test_pairs_given_both_ways_round_make_no_cycle(self):
        forest = shifts()
        forest.relate(
            ints(1, 2, 3, 4), ints(2, 1, 4, 3), floats(2, 0.5, -1, -1), np.zeros(4), cause=0
        )
        pin(forest, 2, 3.0)
        assert value_of(forest, 1) == 6.0
        assert forest.find(ints(3)).root[0] == forest.find(ints(4)).root[0]

    def test_an_empty_block_changes_nothing(self):
        forest = shifts()
        before = state(forest)
        forest.relate(ints(), ints(), floats(), floats(), cause=0)
        assert state(forest) == before

    def test_against_a_dense_solution(self):
        """Random trees of relations, linked in random blocks."""
        generator = np.random.default_rng(5)
        for _ in range(20):
            truth = generator.standard_normal(60)
            truth[0] = 0.0
            forest = shifts(60)
            left = generator.permutation(np.arange(1, 60))
            right = generator.integers(0, 60, 59)
            p = generator.choice([-2.0, -0.5, 0.25, 1.0, 3.0], 59)
            q = truth[left] - p * truth[right]
            for part in np.array_split(np.arange(59), 4):
                forest.relate(left[part], right[part], p[part], q[part], cause=0)
            found = forest.find(np.arange(60))
            np.testing.assert_allclose(found.p * truth[found.root] + found.q, truth, atol=1e-9)


class TestPins:
    def test_a_scale_is_pinned_to_any_value(self):
        forest = scales()
        tie(forest, 1, 2, 4.0)
        pin(forest, 2, 0.5)
        assert value_of(forest, 1) == 2.0

    def test_a_known_class_stays_under_variable_zero(self):
        """However large the class that is linked to it."""
        forest = shifts()
        pin(forest, 1, 3.0)
        for k in range(2, 11):
            tie(forest, k, 11, 1.0, float(k))
        tie(forest, 11, 1, 2.0, 1.0)
        assert value_of(forest, 5) == 12.0
        assert forest.parent[0] == 0


class TestUndo:
    def test_rollback_restores_every_array(self):
        forest = shifts()
        tie(forest, 1, 2, 2.0, 1.0, cause=3)
        before = state(forest)
        mark = forest.mark()
        forest.relate(
            ints(2, 3, 4, 4), ints(5, 4, 6, 7), floats(2, -1, 3, 5), floats(1, 2, 3, 4), 9
        )
        pin(forest, 7, 1.0, cause=4)
        assert state(forest) != before
        forest.rollback(mark)
        assert state(forest) == before

    def test_rollback_after_a_conflict_halfway_through_a_block(self):
        forest = shifts()
        pin(forest, 1, 1.0)
        before, mark = state(forest), forest.mark()
        with pytest.raises(Conflict):
            forest.relate(ints(2, 3, 1), ints(1, 1, 2), floats(2, 3, 2), np.zeros(3), cause=0)
        assert state(forest) != before
        forest.rollback(mark)
        assert state(forest) == before

    def test_marks_nest(self):
        forest = shifts()
        outer = forest.mark()
        tie(forest, 1, 2, 2.0)
        middle = state(forest)
        inner = forest.mark()
        tie(forest, 2, 3, 5.0)
        forest.rollback(inner)
        assert state(forest) == middle
        forest.rollback(outer)
        assert forest.parent.tolist() == list(range(12))

    def test_growing_keeps_what_is_known(self):
        forest = shifts(3)
        tie(forest, 1, 2, 2.0, 1.0)
        mark = forest.mark()
        forest.extend(50)
        tie(forest, 49, 1, -1.0)
        pin(forest, 2, 3.0)
        assert value_of(forest, 49) == -7.0
        forest.rollback(mark)
        assert forest.find(ints(49)).root[0] == 49


class TestLongChains:
    def test_a_chain_of_ten_thousand_stays_shallow_and_exact(self):
        count = 10_001
        forest = shifts(count)
        links = np.arange(1, count - 1)
        forest.relate(links, links + 1, np.ones(len(links)), np.full(len(links), 0.5), cause=0)
        pin(forest, count - 1, 0.0)
        assert value_of(forest, 1) == 0.5 * (count - 2)

    def test_links_one_by_one_stay_shallow(self):
        forest = scales(2000)
        for k in range(1, 1999):
            tie(forest, k, k + 1, 1.01 if k % 2 else 1 / 1.01)
        assert max(len(forest.path(k)) for k in range(1, 2000)) <= 11


def test_the_largest_summand_of_an_offset():
    """x = 2 y + 3, y = 5 z - 7, z = 1: x = 10 z - 14 + 3."""
    forest = shifts()
    for variable in (6, 7):  # the larger class keeps its root: y and z stay roots of their own
        tie(forest, variable, 3, 1.0)
    tie(forest, 2, 3, 5.0, -7.0)
    tie(forest, 1, 2, 2.0, 3.0)
    found = forest.find(ints(1))
    largest = float(forest.largest_offset(ints(1))[0])
    assert largest >= abs(float(found.q[0]))
    assert forest.largest_offset(ints(3)).tolist() == [0.0]


def test_each_value_once_and_in_order() -> None:
    assert each_once(np.array([3, 1, 3, 0, 1])).tolist() == [0, 1, 3]
    assert each_once(np.zeros(0, dtype=np.int64)).tolist() == []


def test_a_plan_imports_no_masked_arrays() -> None:
    """They cost every fold of a small model a good part of its time."""
    code = """
import sys
from bnfold.core import graph as g
from bnfold.core.plan import make_plan
import subprocess
import sys

import numpy as np
graph = g.Graph()
x = graph.input((1, 2, 3, 3), "x")
(y,) = graph.add("conv", g.Linear(2, 2, 1, 1), [x], [(1, 2, 3, 3)])
constants = np.array([2.0, -3.0]).reshape(1, 2, 1, 1)
(z,) = graph.add("bn", g.AffineStep(constants, constants), [y], [(1, 2, 3, 3)])
graph.output(z, "z")
assert make_plan(graph).removed
assert "numpy.ma" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


class TestShorten:
    """Links of one call may form a chain; shortened, they hang under their root."""

    def chain(self, forest: Forest, count: int) -> int:
        """x1 = 2*x0' + 1, x2 = 2*x1 + 1, ... related in one call; the mark before it."""
        mark = forest.mark()
        left, right = np.arange(2, 2 + count), np.arange(1, 1 + count)
        forest.relate(left, right, np.full(count, 2.0), np.full(count, 1.0), 4)
        return mark

    def test_values_stay_and_paths_have_one_step(self):
        forest = shifts()
        mark = self.chain(forest, 9)
        before = forest.find(np.arange(12))
        assert (forest.parent[forest.parent] != forest.parent).any()
        forest.shorten(mark)
        after = forest.find(np.arange(12))
        assert (forest.parent[forest.parent] == forest.parent).all()
        assert before.root.tolist() == after.root.tolist()
        assert before.p.tolist() == after.p.tolist()
        assert before.q.tolist() == after.q.tolist()

    def test_links_through_a_root_that_has_got_a_parent_since(self):
        forest = shifts()
        mark = self.chain(forest, 4)
        pin(forest, 3, 9.0)
        forest.shorten(mark)
        assert [value_of(forest, k) for k in (1, 2, 3, 4, 5)] == [1.5, 4.0, 9.0, 19.0, 39.0]

    def test_only_what_came_after_the_mark(self):
        forest = shifts()
        self.chain(forest, 4)
        before = state(forest)
        forest.shorten(forest.mark())
        assert state(forest) == before

    def test_undone_all_the_same(self):
        forest = shifts()
        tie(forest, 2, 7, -3.0, 0.5)
        before = state(forest)
        mark = self.chain(forest, 6)
        forest.shorten(mark)
        forest.rollback(mark)
        assert state(forest) == before
