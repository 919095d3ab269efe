"""What a fold opens for merging, told by its plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core import merge_again
from bnfold.core.expression import Freedom
from bnfold.core.merge import find_merges
from bnfold.core.merge_again import can_merge_again
from bnfold.core.plan import Plan, make_plan
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


def test_a_shared_weight_beside_one_that_is_not() -> None:
    net = Branches()
    x, y = net.input(2, 4, 5, 5), net.input(2, 4, 5, 5)
    net.output(net.clip(net.bn(net.conv(y, name="alone"), "first")))
    net.output(net.clip(net.bn(net.conv(x, name="one", tie="w"), "second")))
    plan = make_plan(net.graph)
    assert {*plan.linear} == {net.number("alone"), net.number("one")}
    assert can_merge_again(net.graph, plan, net.parts, Freedom(), is_merged=False)


@pytest.mark.parametrize("name", ["a", "b", "end"])
def test_one_op_that_stays(name: str) -> None:
    """The ops behind what goes have other numbers then."""
    net = parted()
    plan, number = make_plan(net.graph), net.number(name)
    freedom = Freedom(lambda n: n != number)
    again = can_merge_again(net.graph, plan, net.parts, freedom, is_merged=False)
    assert again == (name == "end")


def left_of(net: Branches, plan: Plan, monkeypatch: Any) -> Any:
    """What is looked for merges in: graph, parts and freedom."""
    seen: list[Any] = []
    monkeypatch.setattr(merge_again, "find_merges", lambda *given: seen.append(given))
    freedom = Freedom(lambda n: n % 2 == 0, carries_affine=lambda n: n % 3 == 0)
    assert not can_merge_again(net.graph, plan, net.parts, freedom, is_merged=True)
    return seen[0]


def test_what_is_left(monkeypatch: Any) -> None:
    net = parted()
    graph, parts, freedom = left_of(net, make_plan(net.graph), monkeypatch)
    ops = net.graph.ops
    assert [op.name for op in graph.ops] == [op.name for op in ops if op.name != "bn"]
    assert graph.ops[-2].inputs == (ops[net.number("a")].outputs[0], ops[2].outputs[0])
    assert graph.inputs == net.graph.inputs and graph.outputs == net.graph.outputs
    assert [parts[n].weight for n in (0, 1, 3)] == [net.parts[n].weight for n in (0, 1, 4)]
    assert parts.keys() == {0, 1, 3}
    assert [freedom.can_go(n) for n in range(6)] == [n % 2 == 0 for n in (0, 1, 2, 4, 5, 6)]
    assert [freedom.carries_affine(n) for n in range(6)] == [n % 3 == 0 for n in (0, 1, 2, 4, 5, 6)]


def test_an_output_that_a_step_made(monkeypatch: Any) -> None:
    net = Branches()
    made = net.conv(net.input(2, 4, 5, 5), name="a")
    net.output(net.bn(net.bn(made, "one"), "two"))
    graph, _, _ = left_of(net, make_plan(net.graph), monkeypatch)
    assert [tensor for tensor, _, _ in graph.outputs] == [made]


def test_steps_that_stay_have_their_new_numbers(monkeypatch: Any) -> None:
    net = Branches()
    x = net.bn(net.input(2, 4, 5, 5), "one")
    kept = net.affine(x, [2.0, 3.0, 4.0, 5.0], [0.1] * 4, name="kept", removal=g.Removal.UNASKED)
    other = net.affine(net.clip(kept), [2.0] * 4, [0.5] * 4, removal=g.Removal.UNASKED)
    net.output(net.clip(other))
    plan = make_plan(net.graph)
    assert plan.removed.keys() == {0} and plan.affine.keys() == {1}
    graph, _, _ = left_of(net, plan, monkeypatch)
    step, _, unchanged, _ = (op.role for op in graph.ops)
    assert np.array_equal(step.scale, plan.affine[1].scale)
    assert np.array_equal(step.shift, plan.affine[1].shift)
    assert not np.array_equal(step.scale, step.shift)
    assert unchanged is net.graph.ops[3].role


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_a_bias_that_an_op_gets(bias: bool, shift: float, monkeypatch: Any) -> None:
    net = Branches()
    made = net.conv(net.input(2, 4, 5, 5), 6, name="a", bias=bias)
    net.output(net.clip(net.affine(made, [2.0] * 6, [shift] * 6)))
    _, parts, _ = left_of(net, make_plan(net.graph), monkeypatch)
    if shift:
        assert parts[0].bias().all()
    else:
        assert parts[0].bias is net.parts[0].bias
