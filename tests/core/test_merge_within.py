"""Of a merge that cannot be written, the merges within are found."""

from __future__ import annotations

from bnfold.core.expression import Freedom
from bnfold.core.merge import find_merges
from bnfold.core.merge_within import MOST_ROUNDS, Fence, merges_within, without
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


def test_who_is_asked_once() -> None:
    asked: list[Merge] = []
    net = two_stages()
    assert merges_within(net.graph, net.parts, Freedom(), lambda m: asked.append(m) is None)
    assert len(asked) == 1


def test_what_can_be_written_beside_what_never_can() -> None:
    net = in_a_row(40)
    x = net.input(2, 4, 7, 7)
    net.output(net.sum(net.conv(x, name="a"), net.conv(x, name="b"), name="sum"))
    found = merges_within(
        net.graph, net.parts, Freedom(), lambda merge: net.number("sum") in merge.gone
    )
    assert names(net, found) == [("a", ("b", "sum"))]


def two_in_a_sum() -> tuple[Branches, list[Merge]]:
    """Two merges in a sum that keeps something else, and one elsewhere."""
    net = Branches()
    x, y = net.input(2, 4, 7, 7), net.input(2, 4, 7, 7)
    parts = [net.conv(x, name="a"), net.conv(y, name="c"), net.conv(x, name="b")]
    net.output(net.sum(*parts, net.conv(y, name="d"), net.clip(x), name="sum"))
    net.output(net.sum(net.conv(x, name="e"), net.conv(x, name="f"), name="other"))
    return net, find_merges(net.graph, net.parts)


def test_merges_of_one_sum_stay_together() -> None:
    net, merges = two_in_a_sum()
    carriers = {net.graph.ops[merge.carrier].name: merge for merge in merges}
    assert carriers.keys() == {"a", "c", "e"}
    assert without(merges, [carriers["c"]]) == [carriers["e"]]
    assert without(merges, [carriers["e"]]) == [m for m in merges if m is not carriers["e"]]
    assert without(merges, []) == merges


class TestFence:
    def test_around(self) -> None:
        freedom = Freedom(lambda n: n != 2, carries_affine=lambda n: n != 3)
        fenced = Fence({1}, {7}).around(freedom)
        assert [fenced.can_go(n) for n in range(4)] == [True, False, False, True]
        assert [fenced.carries_affine(n) for n in range(4)] == [True, False, True, False]
        assert fenced.ends == {7}

    def test_it_grows_by_what_lies_between(self) -> None:
        """Then by the op itself, as nothing else is left to forbid."""
        net = in_a_row(2)
        (merge,) = find_merges(net.graph, net.parts)
        fence = Fence()
        fence.narrow(net.graph, net.parts, merge)
        between = net.graph.ops[net.number("c1")].inputs
        assert (fence.banned, fence.ends, fence.size) == (set(), {*between}, 1)
        fence.narrow(net.graph, net.parts, merge)
        assert (fence.banned, fence.ends, fence.size) == ({net.number("c1")}, {*between}, 2)

    def test_it_keeps_what_it_has(self) -> None:
        net = in_a_row(3)
        (merge,) = find_merges(net.graph, net.parts)
        fence = Fence({40}, {41})
        fence.narrow(net.graph, net.parts, merge)
        assert fence.banned == {40} and len(fence.ends) == 2 and 41 in fence.ends
        assert fence.size == 3

    def test_branches_of_one_tensor(self) -> None:
        """Between them and their source lies nothing."""
        net = Branches()
        x = net.input(2, 4, 7, 7)
        net.output(net.sum(net.conv(x, name="a"), net.conv(x, name="b")))
        (merge,) = find_merges(net.graph, net.parts)
        fence = Fence()
        fence.narrow(net.graph, net.parts, merge)
        assert (fence.banned, fence.ends) == ({net.number("b")}, set())

    def test_steps_alone(self) -> None:
        net = Branches()
        x = net.input(2, 4, 7, 7)
        net.output(net.sum(x, net.bn(x, name="bn")))
        (merge,) = find_merges(net.graph, net.parts)
        fence = Fence()
        fence.narrow(net.graph, net.parts, merge)
        assert fence.banned == {net.number("bn")}

    def test_shut_out(self) -> None:
        net, merges = two_in_a_sum()
        fence = Fence({90})
        fence.shut_out(merges)
        assert fence.banned == {90, *(net.number(name) for name in "abcdef"), net.number("other")}
        assert not find_merges(net.graph, net.parts, fence.around(Freedom()))
