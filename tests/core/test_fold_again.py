"""When the network that a plan makes is looked at again."""

from __future__ import annotations

import pytest

from bnfold.core.fold_again import may_fold_again
from bnfold.core.plan import make_plan
from tests.core.interpreter import Network
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
