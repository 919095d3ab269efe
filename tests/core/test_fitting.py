"""A plan is made again until it can be written."""

from __future__ import annotations

import pickle
from collections.abc import Mapping

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core.blame import Obstacle
from bnfold.core.fitting import Fitting, MustStay, Overflow, Unwritable
from bnfold.core.plan import Plan, make_plan
from bnfold.core.reasons import Reason

TAKEN = Obstacle(Reason.OTHER_PHASE, "somebody")


def two_steps() -> g.Graph:
    """Conv, BatchNorm, Conv, BatchNorm: both BatchNorms can go, ops 1 and 3."""
    graph = g.Graph()
    at = graph.input((1, 2), "x")
    for number in range(2):
        (at,) = graph.add(f"conv{number}", g.Linear(2, 2, 1, 1), [at], [(1, 2)])
        step = g.AffineStep(np.array([[-2.0, 3.0]]), np.array([[0.5, 1.0]]))
        (at,) = graph.add(f"bn{number}", step, [at], [(1, 2)])
    graph.output(at, "y")
    return graph


def fitting(made: list[Mapping[int, Obstacle]]) -> Fitting:
    graph = two_steps()

    def decide(bans: Mapping[int, Obstacle]) -> Plan:
        made.append(dict(bans))
        return make_plan(graph, banned=bans)

    return Fitting(decide)


def test_a_plan_that_is_written_is_made_once() -> None:
    made: list[Mapping[int, Obstacle]] = []
    fit = fitting(made)
    assert fit.attempt(lambda plan: sorted(plan.removed)) == [1, 3]
    assert fit.attempt(lambda plan: sorted(plan.removed)) == [1, 3]
    assert made == [{}]


def test_steps_that_must_stay_are_banned_one_after_the_other() -> None:
    made: list[Mapping[int, Obstacle]] = []
    fit = fitting(made)

    def write(plan: Plan) -> set[int]:
        if plan.removed:
            raise MustStay({min(plan.removed): TAKEN})
        return set(plan.kept)

    assert fit.attempt(write) == {1, 3}
    assert made == [{}, {1: TAKEN}, {1: TAKEN, 3: TAKEN}]
    assert fit.plan.kept == {1: TAKEN, 3: TAKEN}


def test_an_overflow_bans_the_steps_behind_it() -> None:
    fit = fitting([])

    def write(plan: Plan) -> set[int]:
        if 1 in plan.removed:
            raise Overflow(0)
        return set(plan.removed)

    assert fit.attempt(write) == {3}
    assert fit.plan.kept[1] == Obstacle(Reason.OVERFLOW, "conv0")


def test_an_attempt_inside_an_attempt_bans_for_both() -> None:
    fit = fitting([])

    def inner(plan: Plan) -> int:
        if 1 in plan.removed:
            raise MustStay({1: TAKEN})
        return len(plan.removed)

    def outer(plan: Plan) -> int:
        count = fit.attempt(inner)
        if 3 in fit.plan.removed:
            raise MustStay({3: TAKEN})
        return count

    assert fit.attempt(outer) == 0
    assert fit.bans == {1: TAKEN, 3: TAKEN}


def test_an_overflow_that_no_step_explains_is_a_mistake_of_ours() -> None:
    fit = fitting([])
    fit.attempt(lambda plan: None)

    def write(plan: Plan) -> None:
        raise Overflow(0)

    with pytest.raises(AssertionError, match="no removed step touches it"):
        fit.attempt(write)


def test_other_errors_pass() -> None:
    def write(plan: Plan) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        fitting([]).attempt(write)


def test_an_overflow_crosses_to_another_process() -> None:
    again = pickle.loads(pickle.dumps(Overflow(3, 5)))
    assert isinstance(again, Unwritable)
    assert again.ops == (3, 5)
