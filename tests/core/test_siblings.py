"""Linear ops whose outputs are concatenated: what must not be merged stands first.

`pair` has two convolutions of one tensor in a concat; each case changes one thing about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core.expression import Freedom
from bnfold.core.kernel import Kernel, stacked
from bnfold.core.merge import choices, find_merges
from bnfold.core.merge_again import can_merge_again
from bnfold.core.merged import Merge
from bnfold.core.plan import make_plan
from bnfold.core.reasons import MergeReason
from bnfold.core.unmerged import unmerged
from bnfold.core.window import Window
from tests.core.branches import Branches, compute, names
from tests.core.interpreter import run_all, run_op

Change = Callable[[Branches, int, int, int], int | None]


def pair(change: Change | None = None) -> Branches:
    """x -> 3x3, 3x3 -> concat; `change` may add to it, and may give another concat."""
    net = Branches()
    x = net.input(2, 4, 5, 5)
    first, second = net.conv(x, 3, name="a"), net.conv(x, 5, name="b", bias=False)
    whole = change(net, x, first, second) if change else None
    if whole is None:
        whole = net.concat(first, second, name="cat")
    net.output(net.clip(whole, name="relu"))
    return net


def beside(**options) -> Branches:
    """The same with another second convolution."""
    return pair(lambda net, x, a, b: net.concat(a, net.conv(x, 3, name="c", **options)))


def merges_of(net: Branches, freedom: Freedom | None = None) -> list[Merge]:
    """The merges of siblings, each checked: the concat of what is left is what it was."""
    merges = find_merges(net.graph, MappingProxyType(net.parts), freedom)
    rng = np.random.default_rng(3)
    values = run_all(net, [rng.standard_normal(net.shape(t)) for t, _ in net.graph.inputs])
    made: dict[tuple[int, int], np.ndarray] = {}
    for merge in merges:
        assert merge.concat is not None
        concat = net.graph.ops[merge.concat]
        assert (merge.enters is None) == (merge.concat in merge.gone) == (not merge.sums)
        stood = concat.outputs[0] if merge.enters is None else concat.inputs[merge.enters[1]]
        assert merge.output == stood
        result = compute(merge.kernel(), values[merge.source], net.parts[merge.carrier].axis)
        for number in merge.tail:
            (result,) = run_op(net, number, net.graph.ops[number], [result])
        if merge.enters is None:
            np.testing.assert_allclose(result, values[merge.output], atol=1e-12)
        else:
            made[merge.enters] = result
    for number, kept in {n: k for merge in merges for n, k in merge.sums.items()}.items():
        op = net.graph.ops[number]
        left = [made.get((number, at), values[op.inputs[at]]) for at in kept]
        (result,) = run_op(net, number, op, left)
        np.testing.assert_allclose(result, values[op.outputs[0]], atol=1e-12)
    taken = [n for merge in merges for n in {merge.carrier, *merge.gone}]
    assert len(taken) == len({*taken}), "in two merges"
    return merges


def test_two_convolutions_of_one_tensor() -> None:
    net = pair()
    assert names(net, merges_of(net)) == [("a", ("b", "cat"))]


class TestWhatSomebodyElseSees:
    def test_a_branch_that_is_an_output(self) -> None:
        assert not merges_of(pair(lambda net, x, a, b: net.output(a) and None))

    def test_a_branch_that_another_op_reads(self) -> None:
        def read(net, x, a, b):
            net.output(net.clip(b, name="other"))

        assert not merges_of(pair(read))

    def test_a_pin(self) -> None:
        net = pair(lambda net, x, a, b: net.graph.pin("pin", [a]))
        assert not find_merges(net.graph, net.parts)

    def test_a_branch_that_the_concat_reads_twice(self) -> None:
        assert not merges_of(pair(lambda net, x, a, b: net.concat(a, b, a)))

    def test_a_branch_in_two_concats(self) -> None:
        def twice(net, x, a, b):
            net.output(net.concat(a, net.conv(x, 2, name="d"), name="other"))

        assert not merges_of(pair(twice))

    def test_what_is_in_front_of_an_activation(self) -> None:
        def read(net, x, a, b):
            net.output(net.affine(a, [2.0, 1, 3], [1.0, 2, 3]))
            return net.concat(net.clip(a), net.clip(b))

        assert not merges_of(pair(read))


class TestGeometry:
    @pytest.mark.parametrize(
        "options",
        [
            {"kernel": (1, 1)},
            {"kernel": (3, 1)},
            {"dilation": 2, "padding": (2, 2)},
            {"padding": (0, 2), "after": (2, 0)},
            {"transposed": True},
            {"dtype": "float16"},
            {"tie": "shared"},
            {"weight": g.Weight.SIGNS},
            {"weight": g.Weight.FIXED},
            {"carries": False},
        ],
    )
    def test_one_that_is_of_another_kind(self, options) -> None:
        assert not merges_of(beside(**options))

    def test_one_stride_of_two(self) -> None:
        net = Branches()
        x = net.input(1, 2, 1, 1)
        net.output(net.concat(net.conv(x, 2, stride=2), net.conv(x, 2)))
        assert not merges_of(net)

    def test_groups(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        net.output(net.concat(*(net.conv(x, 4, groups=groups) for groups in (2, 2, 4, 4))))
        assert not merges_of(net)

    def test_another_input(self) -> None:
        def other(net, x, a, b):
            return net.concat(a, net.conv(net.input(2, 4, 5, 5), 3, name="c"))

        assert not merges_of(pair(other))

    def test_along_another_axis(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        net.output(net.concat(net.conv(x), net.conv(x), axis=2))
        assert not merges_of(net)

    def test_a_view_that_is_no_concat(self) -> None:
        def reversed_(net, x, a, b):
            return net.view(lambda xs: [np.concatenate(xs[::-1], axis=1)], a, b)[0]

        assert not merges_of(pair(reversed_))

    def test_an_op_that_is_no_part(self) -> None:
        net = pair()
        del net.parts[net.number("b")]
        assert not merges_of(net)

    @pytest.mark.parametrize("name", ["b", "cat"])
    def test_an_op_that_cannot_go(self, name: str) -> None:
        net = pair()
        kept = net.number(name)
        assert not merges_of(net, Freedom(can_go=lambda number: number != kept))

    def test_where_concats_stay_as_they_are(self) -> None:
        net = pair()
        freedom = Freedom(shortens_concats=False)
        assert not merges_of(net, freedom)
        (left,) = unmerged(net.graph, net.parts, freedom, [])
        assert (left.sum, left.reason) == (net.number("cat"), MergeReason.CODE)
        assert not unmerged(net.graph, net.parts, Freedom(), merges_of(net))


class TestActivations:
    def test_equal_ones(self) -> None:
        def clipped(net, x, a, b):
            return net.concat(net.clip(a, name="c"), net.clip(b, name="d"), name="cat")

        net = pair(clipped)
        (merge,) = merges_of(net)
        assert names(net, [merge]) == [("a", ("b", "d", "cat"))]
        assert merge.tail == (net.number("c"),)

    def test_several_behind_each_other(self) -> None:
        def two(net, x, a, b):
            each = (net.clip(net.leaky(y, known=True), -0.01, 6.0) for y in (a, b))
            return net.concat(*each)

        (merge,) = merges_of(pair(two))
        assert len(merge.tail) == 2

    @pytest.mark.parametrize("bounds", [(0.0, 6.0), (-1.0, 3.0), (-3.0, 3.0), None])
    def test_others(self, bounds) -> None:
        def unlike(net, x, a, b):
            return net.concat(net.clip(a, 0.0, 3.0), net.clip(b, *bounds) if bounds else b)

        assert not merges_of(pair(unlike))

    def test_more_of_them_behind_one(self) -> None:
        def longer(net, x, a, b):
            return net.concat(net.clip(a), net.clip(net.leaky(b, known=True)))

        assert not merges_of(pair(longer))

    @pytest.mark.parametrize(("slopes", "known"), [((0.1, 0.2), True), ((0.1, 0.1), False)])
    def test_slopes_that_differ_or_are_not_known(self, slopes, known) -> None:
        def unlike(net, x, a, b):
            each = zip((a, b), slopes, strict=True)
            return net.concat(*(net.leaky(y, slope, known=known) for y, slope in each))

        assert not merges_of(pair(unlike))

    def test_slopes_per_channel(self) -> None:
        def prelu(net, x, a, b):
            role = g.Homogeneous(np.array([0.1, 0.2, 0.3]).reshape(3, 1, 1))
            c = net.conv(x, 3, name="c")
            return net.concat(*(net.add(role, [y], [net.shape(y)])[0] for y in (a, c)))

        net = pair(prelu)
        assert not find_merges(net.graph, net.parts)

    def test_in_another_order(self) -> None:
        def turned(net, x, a, b):
            first, second = net.leaky(a, known=True), net.clip(b)
            return net.concat(net.clip(first), net.leaky(second, known=True))

        assert not merges_of(pair(turned))

    @pytest.mark.parametrize("is_clipped", [False, True])
    def test_what_is_not_known(self, is_clipped) -> None:
        def opaque(net, x, a, b):
            each = [net.sigmoid(y) for y in (a, b)]
            return net.concat(*(net.clip(y) for y in each) if is_clipped else each)

        assert not merges_of(pair(opaque))


class TestRuns:
    def test_with_something_in_between(self) -> None:
        assert not merges_of(pair(lambda net, x, a, b: net.concat(a, net.clip(x), b)))

    def test_with_others_around(self) -> None:
        def around(net, x, a, b):
            return net.concat(x, b, a, net.clip(x), name="cat")

        net = pair(around)
        (merge,) = merges_of(net)
        cat = net.number("cat")
        assert names(net, [merge]) == [("a", ("b",))]
        assert (merge.enters, dict(merge.sums)) == ((cat, 2), {cat: (0, 2, 3)})

    def test_beside_an_input_that_nothing_else_reads(self) -> None:
        def given(net, x, a, b):
            return net.concat(net.input(2, 2, 5, 5), a, b, name="cat")

        net = pair(given)
        assert names(net, merges_of(net)) == [("a", ("b",))]

    def test_of_a_later_tensor(self) -> None:
        """An op and the tensor that it reads have numbers of their own."""
        net = Branches()
        other, x = net.input(2, 2, 5, 5), net.input(2, 4, 5, 5)
        whole = net.concat(other, net.conv(x, 3, name="a"), net.conv(x, 2, name="b"), name="cat")
        net.output(net.clip(whole))
        (merge,) = merges_of(net)
        assert (merge.carrier, merge.source) == (net.number("a"), x)

    def test_what_is_taken_by_another_merge(self) -> None:
        """A convolution behind the branch becomes one with it, and is its sibling's no more."""

        def chained(net, x, a, b):
            return net.concat(net.conv(a, 2, kernel=(1, 1), padding=(0, 0), name="p"), b)

        net = pair(chained)
        (merge,) = find_merges(net.graph, net.parts)
        assert merge.concat is None
        assert {net.graph.ops[n].name for n in (merge.carrier, *merge.gone)} == {"a", "p"}

    def test_two_runs(self) -> None:
        def runs(net, x, a, b):
            y = net.clip(x)
            return net.concat(a, b, net.conv(y, 2, name="c"), net.conv(y, 1, name="d"), name="cat")

        net = pair(runs)
        assert names(net, merges_of(net)) == [("a", ("b",)), ("c", ("d",))]

    def test_three(self) -> None:
        net = pair(lambda net, x, a, b: net.concat(net.conv(x, 2, name="c"), b, a, name="cat"))
        assert names(net, merges_of(net)) == [("a", ("b", "c", "cat"))]

    def test_a_concat_in_a_concat_in_turn(self) -> None:
        def nested(net, x, a, b):
            return net.concat(net.concat(a, b, name="inner"), net.conv(x, 2, name="c"), name="cat")

        net = pair(nested)
        assert names(net, merges_of(net)) == [("a", ("b", "inner"))]

    def test_of_what_else_is_merged(self) -> None:
        """The sum comes first, and what comes of it is seen in the next round."""

        def summed(net, x, a, b):
            return net.concat(net.sum(a, net.conv(x, 3, name="c")), net.conv(x, 2), net.conv(x, 2))

        net = pair(summed)
        merges = find_merges(net.graph, net.parts)
        assert [merge.concat is None for merge in merges] == [True, False]

    def test_that_is_asked_again_of_what_was_merged(self) -> None:
        net = pair()
        plan = make_plan(net.graph)
        for is_merged in (True, False):
            again = can_merge_again(net.graph, plan, net.parts, Freedom(), is_merged=is_merged)
            assert again == is_merged


class TestForms:
    @pytest.mark.parametrize(
        ("shape", "options"),
        [
            ((1, 3, 7), {"kernel": (3,)}),
            ((1, 3, 4, 3, 3), {"kernel": (3, 1, 3)}),
            ((1, 3, 6, 6), {"kernel": (1, 1), "stride": 2}),
            ((1, 1, 6, 6), {"kernel": (2, 3), "padding": (0, 1)}),
            ((1, 3, 3, 3), {"transposed": True, "stride": 2, "padding": (1, 1)}),
            ((1, 3, 9, 9), {"dilation": 2}),
        ],
    )
    def test_convolutions(self, shape: Sequence[int], options) -> None:
        net = Branches()
        x = net.input(*shape)
        net.output(net.concat(*(net.conv(x, outs, **options) for outs in (2, 3, 1))))
        (merge,) = merges_of(net)
        assert len(merge.kernel().bias) == 6

    @pytest.mark.parametrize("shape", [(2, 5), (2, 3, 5)])
    def test_matrices(self, shape: Sequence[int]) -> None:
        net = Branches()
        x = net.input(*shape)
        each = [net.linear_over(x, outs, bias=outs > 2) for outs in (2, 3)]
        net.output(net.concat(*each, axis=len(shape) - 1))
        assert len(merges_of(net)) == 1

    def test_matrices_along_another_axis(self) -> None:
        net = Branches()
        x = net.input(2, 3, 5)
        net.output(net.concat(net.linear_over(x, 2), net.linear_over(x, 2), axis=1))
        assert not merges_of(net)

    def test_stacked(self) -> None:
        rng = np.random.default_rng(1)
        window = Window.pointwise(2)
        kernels = [
            Kernel(window, 1, rng.standard_normal((outs, 2, 1, 1)), rng.standard_normal(outs))
            for outs in (2, 1)
        ]
        x = rng.standard_normal((1, 2, 3, 3))
        each = np.concatenate([compute(kernel, x) for kernel in kernels], axis=1)
        np.testing.assert_allclose(compute(stacked(kernels), x), each)


def test_that_nothing_is_tried_without_siblings_alone() -> None:
    net = pair()
    merges = find_merges(net.graph, net.parts)
    assert [len(chosen) for chosen in choices(net.graph, net.parts, merges)] == [1, 0]


def test_that_less_is_tried_without_siblings() -> None:
    def summed(net, x, a, b):
        net.output(net.sum(net.conv(x, 3, name="c"), net.conv(x, 3, name="d")))

    net = pair(summed)
    merges = find_merges(net.graph, net.parts)
    tried = [len(chosen) for chosen in choices(net.graph, net.parts, merges)]
    assert (len(merges), tried) == (2, [2, 1, 0])
