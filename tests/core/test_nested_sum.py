"""A sum with the sums in it: its operands, their ways, and what they are multiplied by."""

from __future__ import annotations

import pytest

from bnfold.core import graph as g
from bnfold.core.expression import Freedom
from bnfold.core.expressions import Expressions
from bnfold.core.nested_sum import NestedSum
from tests.core.branches import Branches

SHAPE = (1, 4, 5, 5)


def nested(net: Branches, name: str = "outer") -> NestedSum:
    return NestedSum(Expressions.of(net.graph, net.parts, Freedom()), net.number(name))


def three_deep() -> Branches:
    """2 * (3 * (5 * a + 7 * b) - c) - d, of inputs with the numbers 0 to 3."""
    net = Branches()
    a, b, c, d = (net.input(*SHAPE) for _ in "abcd")
    inner = net.sum(a, b, coefficients=(5.0, 7.0), name="inner")
    middle = net.sum(inner, c, coefficients=(3.0, -1.0), name="middle")
    net.output(net.sum(middle, d, coefficients=(2.0, -1.0), name="outer"))
    return net


def test_operands() -> None:
    found = [(o.tensor, o.coefficient, o.place) for o in nested(three_deep()).operands]
    assert found == [
        (0, 30.0, (0, 0)),
        (1, 42.0, (0, 1)),
        (2, -2.0, (1, 1)),
        (3, -1.0, (2, 1)),
    ]


def test_the_inner_sums_come_first() -> None:
    assert nested(three_deep()).sums == [0, 1, 2]


def test_ways() -> None:
    ways = nested(three_deep())
    assert [*ways.way((0, 1))] == [(0, 1), (1, 0), (2, 0)]
    assert [*ways.way((2, 1))] == [(2, 1)]


def test_all_are_kept() -> None:
    sums = nested(three_deep())
    kept = sums.kept(())
    assert kept == {0: (0, 1), 1: (0, 1), 2: (0, 1)}
    assert sums.coefficients(kept) == {
        **{(0, 0): 30.0, (0, 1): 42.0, (1, 0): 6.0, (1, 1): -2.0},
        **{(2, 0): 2.0, (2, 1): -1.0},
    }


def test_one_that_is_left_alone_is_multiplied_by_1() -> None:
    sums = nested(three_deep())
    kept = sums.kept({(0, 0)})
    assert kept == {0: (1,), 1: (0, 1), 2: (0, 1)}
    made = sums.coefficients(kept)
    assert made[0, 1] == 6.0 and (0, 0) not in made
    assert sums.coefficients(sums.kept({(0, 0), (1, 1)}))[0, 1] == 2.0
    assert sums.coefficients(sums.kept({(1, 1)}))[0, 1] == 14.0


def test_a_sum_that_keeps_none_is_gone() -> None:
    sums = nested(three_deep())
    kept = sums.kept({(0, 0), (0, 1)})
    assert kept == {1: (1,), 2: (0, 1)}
    assert sums.coefficients(kept) == {(1, 1): 2.0, (2, 0): 2.0, (2, 1): -1.0}


@pytest.mark.parametrize("why", ["read", "returned", "read twice", "broadcast", "no sum"])
def test_what_is_no_inner_sum(why: str) -> None:
    net = Branches()
    a, b, c = net.input(*SHAPE), net.input(*SHAPE), net.input(*SHAPE)
    if why == "broadcast":
        b = net.input(1, 4, 1, 1)
    inner = net.gate(a, b) if why == "no sum" else net.sum(a, b, name="inner")
    outer = net.sum(inner, inner if why == "read twice" else c, name="outer")
    net.output(net.clip(outer))
    if why == "read":
        net.output(net.clip(inner))
    if why == "returned":
        net.output(inner)
    found = nested(net)
    assert len(found.sums) == 1 and found.operands[0].tensor == inner


def test_a_sum_that_is_broadcast_in_the_outer_one_is_one_with_it() -> None:
    """Whether the outer sum broadcasts is for others to ask."""
    net = Branches()
    a, b = net.input(1, 4, 1, 1), net.input(1, 4, 1, 1)
    inner = net.sum(a, b, name="inner")
    net.output(net.clip(net.sum(inner, net.input(*SHAPE), name="outer")))
    assert isinstance(net.graph.ops[net.number("outer")].role, g.Sum)
    assert len(nested(net).operands) == 3


def test_the_order_is_that_of_the_places() -> None:
    """Also where the inner sum comes in behind others."""
    net = Branches()
    a, b, c, d = (net.input(*SHAPE) for _ in "abcd")
    inner = net.sum(a, b, name="inner")
    net.output(net.clip(net.sum(c, inner, d, name="outer")))
    assert [o.place for o in nested(net).operands] == [(0, 0), (0, 1), (1, 0), (1, 2)]
