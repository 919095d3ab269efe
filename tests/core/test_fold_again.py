"""When the network that a plan makes is looked at again."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core.blame import Obstacle
from bnfold.core.fold_again import may_fold_again
from bnfold.core.left import left_of
from bnfold.core.modes import ClipMode
from bnfold.core.plan import make_plan
from bnfold.core.reasons import Reason
from tests.core.interpreter import Network, apply_plan, assert_fold_is_exact, removed_names
from tests.core.test_constants import bn, source

KEPT = [0.3, -0.7, 0.4]


def may(net: Network, *outputs: int) -> bool:
    net.output(*outputs)
    return may_fold_again(net.graph, make_plan(net.graph))


def two_steps(second: list[float], *, first: bool = True) -> bool:
    net = Network()
    x = source(net)
    x = net.leaky(bn(net, x, name="first") if first else x)
    return may(net, net.leaky(bn(net, x, second, KEPT, "second")))


def test_a_zero_that_stays_behind_a_step_that_went() -> None:
    assert two_steps([1.5, 0.0, 0.7])


def test_a_step_without_a_zero() -> None:
    assert not two_steps([1.5, 0.2, 0.7])


def test_nothing_went() -> None:
    assert not two_steps([1.5, 0.0, 0.7], first=False)


def test_nothing_stays() -> None:
    net = Network()
    assert not may(net, net.sigmoid(bn(net, source(net))))


@pytest.mark.parametrize("gamma", [1e-30, 1.0])
def test_a_value_that_would_be_out_of_range(gamma: float) -> None:
    net = Network()
    x = bn(net, net.input(2, 3, 5, 5), [gamma, 0.5, 2.0], KEPT, "far")
    y = net.sigmoid(bn(net, source(net)))
    assert may(net, net.conv(x, [[[[1.0]]] * 3]), y) == (gamma < 1)


FIXED = g.Parameter.FIXED


def a_quotient_beside_its_source() -> Network:
    """y = (a + a / c) + e: the last step goes first, at the price of the sum."""
    net = Network()
    a = bn(net, net.input(2, 3, 5, 5), [-0.9, 0.6, 1.4], KEPT, "a")
    quotient = net.affine(a, [1.9, -1.1, 0.8], [0, 0, 0], name="quotient", summands=FIXED)
    total = net.sum(a, quotient, name="total")
    return net.output(net.affine(total, [1, 1, 1], [0.9] * 3, name="last", factors=FIXED))


def test_a_sum_that_was_given_up_for_a_step_behind() -> None:
    net = a_quotient_beside_its_source()
    plan = assert_fold_is_exact(net)
    assert removed_names(net, plan) == ["last"]
    assert may_fold_again(net.graph, plan)
    folded = apply_plan(net, plan)
    again = make_plan(folded.graph)
    assert removed_names(folded, again) == ["quotient"]
    assert not may_fold_again(folded.graph, again)


def test_what_does_not_fit_its_dtype_is_not_looked_at_again() -> None:
    net = a_quotient_beside_its_source()
    stays = Obstacle(Reason.OVERFLOW, None)
    plan = make_plan(net.graph, banned={net.number("quotient"): stays})
    assert plan.removed
    assert not may_fold_again(net.graph, plan)


@pytest.mark.parametrize("clip", ["auto", "always", "never"])
def test_what_is_left_has_the_constants_that_the_plan_gives(clip: ClipMode) -> None:
    net = Network()
    a = bn(net, net.input(2, 3, 5, 5), [-0.9, 0.0, 1.4], KEPT, "a", spread=SPREAD, center=CENTER)
    net.output(net.affine(a, [2.0, -3.0, 4.0], [1.0, 2.0, 3.0], name="b"))
    plan = make_plan(net.graph, clip=clip)
    left, numbers = left_of(net.graph, plan)
    ((old,), (step,)) = numbers.values(), (op.role for op in left.ops)
    assert net.graph.ops[old].name == "a"
    assert isinstance(step, g.AffineStep) and step.spread is not None and step.center is not None
    assert step.scale.reshape(-1) == pytest.approx([-1.8, 0.0, 5.6])
    assert step.spread.reshape(-1) == pytest.approx([0.8, 0.0, 8.0])
    # What comes in has the mean (center - shift) / scale.
    means = [(0.5 - KEPT[0]) / -0.9, 0.0, (0.6 - KEPT[2]) / 1.4]
    expected = [s * m + t for s, m, t in zip([-1.8, 0, 5.6], means, [1.6, 4.1, 4.6], strict=True)]
    assert step.center.reshape(-1) == pytest.approx(expected)


SPREAD = np.array([0.4, 0.0, 2.0]).reshape(1, 3, 1, 1)
CENTER = np.array([0.5, -0.7, 0.6]).reshape(1, 3, 1, 1)
