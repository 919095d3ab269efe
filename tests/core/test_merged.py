"""Which tensors a merge leaves as they were: what compares a network with its fold counts on it."""

from __future__ import annotations

from tests.core.branches import Branches, merges_of


def changed(net: Branches) -> set[str]:
    """The ops that make what is another tensor, or none, after the one merge of a network."""
    (merge,) = merges_of(net)
    tensors = merge.changed(net.graph)
    return {op.name for op in net.graph.ops if set(op.outputs) & tensors}


def test_all_but_the_sum() -> None:
    net = Branches()
    x = net.input(1, 4, 5, 5)
    a, b = net.bn(net.conv(x, bias=False, name="a"), "bn"), net.conv(x, name="b")
    net.output(net.clip(net.sum(a, b, name="sum")))
    assert changed(net) == {"a", "bn", "b"}


def test_what_lies_in_a_row() -> None:
    net = Branches()
    x = net.input(1, 4, 5, 5)
    point = net.conv(x, kernel=(1, 1), bias=False, name="point")
    net.output(net.clip(net.conv(point, name="wide")))
    assert changed(net) == {"point"}


def test_a_sum_that_keeps_another_operand() -> None:
    net = Branches()
    x = net.input(1, 4, 5, 5)
    a, b = net.conv(x, name="a"), net.conv(x, name="b")
    net.output(net.sum(a, net.clip(x, name="other"), b, name="sum"))
    assert changed(net) == {"a", "b"}


def test_sums_on_the_way_to_the_last() -> None:
    """One of them holds all of what is merged, where it held a part; another one holds less."""
    net = Branches()
    x = net.input(1, 4, 5, 5)
    a, b, c = (net.conv(x, name=name) for name in "abc")
    one = net.sum(a, net.clip(x, name="other"), name="one")
    two = net.sum(b, net.clip(x, name="third"), name="two")
    three = net.sum(one, two, name="three")
    four = net.sum(three, c, name="four")
    net.output(net.sum(four, net.clip(x, name="fourth"), name="five"))
    assert changed(net) == {"a", "b", "c", "one", "two", "three"}
