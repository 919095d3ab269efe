"""What a fold opens for merging, told by its plan."""

from __future__ import annotations

import pytest

from bnfold.core.expression import Freedom
from bnfold.core.merge import find_merges
from bnfold.core.merge_again import can_merge_again
from bnfold.core.plan import make_plan
from tests.core.branches import Branches


def parted(*, reader: bool = False, steps: bool = True) -> Branches:
    """a(x) + bn(b(x) + c(y)): two sums with a step between them."""
    net = Branches()
    x, y = net.input(2, 4, 5, 5), net.input(2, 4, 5, 5)
    inner = net.sum(net.conv(x, name="b"), net.conv(y, name="c"), name="inner")
    if reader:
        net.output(net.clip(inner, name="other"))
    step = net.bn(inner, "bn") if steps else net.clip(inner, name="relu")
    net.output(net.clip(net.sum(net.conv(x, name="a"), step, name="outer"), name="end"))
    return net


def can(net: Branches) -> bool:
    assert not find_merges(net.graph, net.parts)
    return can_merge_again(net.graph, make_plan(net.graph), net.parts, Freedom(), is_merged=False)


def test_two_sums_that_a_step_parted() -> None:
    assert can(parted())


def test_nothing_goes() -> None:
    assert not can(parted(steps=False))


def test_a_sum_that_somebody_reads() -> None:
    assert not can(parted(reader=True))


@pytest.mark.parametrize("is_open", [False, True])
def test_ops_that_stay(is_open: bool) -> None:
    net = parted()
    plan = make_plan(net.graph)
    freedom = Freedom(lambda n: is_open)
    again = can_merge_again(net.graph, plan, net.parts, freedom, is_merged=False)
    assert again == is_open


def test_a_weight_that_is_shared_no_more() -> None:
    net = Branches()
    x, y = net.input(2, 4, 5, 5), net.input(2, 4, 5, 5)
    step = net.bn(net.conv(x, name="one", tie="w"), "bn")
    net.output(net.clip(net.sum(step, net.conv(x, name="two"), name="sum"), name="end"))
    net.output(net.clip(net.conv(y, name="other"), name="relu"))
    plan = make_plan(net.graph)
    assert plan.removed
    assert can_merge_again(net.graph, plan, net.parts, Freedom(), is_merged=False)
