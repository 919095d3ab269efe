"""Of a merge that cannot be written, the merges within are found."""

from __future__ import annotations

from bnfold.core.expression import Freedom
from bnfold.core.merge_within import MOST_ROUNDS, merges_within
from bnfold.core.merged import Merge
from tests.core.branches import Branches, merges_of, names


def two_stages() -> Branches:
    """Two convolutions of x in a sum, two of that sum in another: one convolution, all in all."""
    net = Branches()
    x = net.input(2, 4, 7, 7)
    inner = net.sum(net.conv(x, name="a"), net.conv(x, kernel=(1, 1), name="b"), name="inner")
    left = net.conv(inner, 1, padding=(0, 0), name="c")
    right = net.conv(inner, 1, padding=(0, 0), name="d")
    net.output(net.sum(left, right, name="outer"))
    return net


def within(net: Branches, at_most: int) -> list[tuple[str, tuple[str, ...]]]:
    """What is found where no more than so many ops can go at once."""
    found = merges_within(net.graph, net.parts, Freedom(), lambda merge: len(merge.gone) <= at_most)
    return sorted(names(net, found))


def in_a_row(count: int) -> Branches:
    """So many 1x1 convolutions, each of what the one before makes."""
    net = Branches()
    at = net.input(2, 4, 5, 5)
    for number in range(count):
        at = net.conv(at, kernel=(1, 1), name=f"c{number}")
    net.output(at)
    return net


def test_all_in_one() -> None:
    net = two_stages()
    assert len(merges_of(net)) == 1
    assert within(net, 5) == names(net, merges_of(net))


def test_each_stage_for_itself() -> None:
    assert within(two_stages(), 2) == [("a", ("b", "inner")), ("c", ("d", "outer"))]


def test_nothing_that_can_be_written() -> None:
    assert within(two_stages(), 1) == []


def test_the_search_ends() -> None:
    asked: list[Merge] = []
    net = in_a_row(40)

    def refuse(merge: Merge) -> bool:
        asked.append(merge)
        return False

    assert merges_within(net.graph, net.parts, Freedom(), refuse) == []
    assert len(asked) >= MOST_ROUNDS


def test_what_is_left_out_of_a_chain_merges_alone() -> None:
    found = within(in_a_row(4), 2)
    assert found and all(len(gone) <= 2 for _, gone in found)
