"""Why ops are not merged: one network per reason, and networks of which nothing is to be said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core.expression import Freedom
from bnfold.core.merge import find_merges
from bnfold.core.reasons import MergeReason, Reason
from bnfold.core.unmerged import unmerged
from tests.core.branches import Branches


def reasons(
    build: Callable[[Branches, int], int], freedom: Freedom | None = None
) -> list[tuple[str, MergeReason, str | None]]:
    """For each sum that is left: its name, why, and the op in the way."""
    net = Branches()
    x = net.input(1, 4, 6, 6)
    net.output(build(net, x))
    freedom = freedom or Freedom()
    ops = net.graph.ops
    merges = find_merges(net.graph, net.parts, freedom)
    return [
        (ops[left.sum].name, left.reason, None if left.blocker is None else ops[left.blocker].name)
        for left in unmerged(net.graph, net.parts, freedom, merges)
    ]


def two(net: Branches, x: int, **options: object) -> int:
    first = net.conv(x, name="a", **options)  # type: ignore[arg-type]
    return net.sum(first, net.conv(x, name="b"), name="sum")


class TestNothingIsSaid:
    def test_of_what_is_merged(self) -> None:
        assert not reasons(two)

    def test_of_a_residual_block(self) -> None:
        def build(net, x):
            inner = net.clip(net.conv(x, name="a"))
            return net.sum(net.conv(inner, name="b"), x, name="sum")

        assert not reasons(build)

    def test_of_affine_steps_alone(self) -> None:
        refused = g.Refusal(Reason.HOOK)
        assert not reasons(lambda net, x: net.sum(x, net.bn(x, removal=refused)))

    def test_behind_a_view_that_is_no_copy(self) -> None:
        def build(net, x):
            return net.sum(net.copy(net.conv(x), is_copy=False), net.conv(x))

        assert not reasons(build)

    def test_of_other_sources(self) -> None:
        def build(net, x):
            return net.sum(net.conv(net.clip(x)), net.conv(net.clip(x)))

        assert not reasons(build)

    def test_of_what_is_merged_beside_a_shortcut_that_stays(self) -> None:
        def build(net, x):
            relu = net.clip(net.input(1, 4, 6, 6))
            return net.sum(net.conv(x, name="a"), relu, net.conv(x, name="b"))

        assert not reasons(build)

    def test_of_what_is_merged_with_what_it_reads(self) -> None:
        def build(net, x):
            y = net.clip(x)
            return net.sum(net.conv(y, name="a"), y, name="sum")

        assert not reasons(build)

    def test_of_what_is_looked_up(self) -> None:
        """It is made of no tensor."""

        def build(net, x):
            words, places = (net.embedding([0, 1, 1], np.ones((2, 4)), name=n) for n in "ab")
            return net.sum(words, net.linear_over(places, 4), name="sum")

        assert not reasons(build)


class TestReasons:
    def test_read_elsewhere(self) -> None:
        def build(net, x):
            first = net.conv(x, name="a")
            net.output(first)
            return net.sum(first, net.conv(x, name="b"), name="sum")

        assert reasons(build) == [("sum", MergeReason.READ, "a")]

    @pytest.mark.parametrize("options", [{"tie": 1}, {"weight": g.Weight.FIXED}])
    def test_a_weight(self, options) -> None:
        assert reasons(lambda net, x: two(net, x, **options)) == [("sum", MergeReason.WEIGHT, "a")]

    @pytest.mark.parametrize("is_first", [True, False])
    def test_a_weight_beside_what_it_reads(self, is_first) -> None:
        def build(net, x):
            first = net.conv(x, name="a", weight=g.Weight.FIXED)
            return net.sum(*((first, x) if is_first else (x, first)), name="sum")

        assert reasons(build) == [("sum", MergeReason.WEIGHT, "a")]

    def test_what_is_added_to_itself_and_read_elsewhere(self) -> None:
        def build(net, x):
            first = net.conv(x, name="a")
            net.output(net.clip(first))
            return net.sum(first, first, name="sum")

        assert reasons(build) == [("sum", MergeReason.READ, "a")]

    def test_each_sum(self) -> None:
        """In order, whatever stands in between, and whatever is merged elsewhere."""

        def build(net, x):
            first = net.clip(two(net, x, tie=1), name="relu")
            merged = net.sum(net.conv(first), net.conv(first), name="merged")
            last = net.clip(merged)
            second = net.sum(net.conv(last, tie=2, name="c"), net.conv(last), name="second")
            return net.clip(second)

        assert reasons(build) == [
            ("sum", MergeReason.WEIGHT, "a"),
            ("second", MergeReason.WEIGHT, "c"),
        ]

    def test_a_step(self) -> None:
        def build(net, x):
            step = net.bn(net.conv(x, name="a"), removal=g.Refusal(Reason.HOOK))
            return net.sum(step, net.conv(x, name="b"), name="sum")

        assert reasons(build) == [("sum", MergeReason.STEP, "bn")]

    def test_a_step_that_other_runs_may_have_otherwise(self) -> None:
        def build(net, x):
            step = net.bn(net.conv(x, name="a"), factors=g.Parameter.UNKNOWN)
            return net.sum(step, net.conv(x, name="b"), name="sum")

        assert reasons(build) == [("sum", MergeReason.STEP, "bn")]

    def test_padding_behind_a_step(self) -> None:
        """The step is in nobody's way."""

        def build(net, x):
            inner = net.bn(net.conv(x, kernel=(1, 1), name="inner"))
            return net.sum(net.conv(inner, name="a"), net.conv(x, name="b"), name="sum")

        assert reasons(build) == [("sum", MergeReason.PADDING, "inner")]

    @pytest.mark.parametrize("is_code", [True, False])
    @pytest.mark.parametrize("place", [0, 1])
    def test_an_op_that_cannot_go(self, place, is_code) -> None:
        def build(net, x):
            parts = [net.conv(x, name="a"), net.conv(x, name="b")]
            return net.sum(*parts, name="sum")

        reason = MergeReason.CODE if is_code else MergeReason.READ
        freedom = Freedom(lambda number: number != place, shortens_concats=not is_code)
        assert reasons(build, freedom) == [("sum", reason, "ab"[place])]

    def test_an_op_that_is_no_part(self) -> None:
        def build(net, x):
            first = net.conv(x, name="a")
            net.parts.pop(net.number("a"))
            return net.sum(first, net.conv(x, name="b"), name="sum")

        assert reasons(build) == [("sum", MergeReason.GRID, "a")]

    def test_what_is_computed_of_nobody_knows_what(self) -> None:
        def build(net, x):
            step = net.refused(net.conv(x, name="a"), Reason.NOT_CONSTANT, name="refused")
            return net.sum(step, net.conv(x, name="b"), name="sum")

        assert reasons(build) == [("sum", MergeReason.STEP, "refused")]

    def test_behind_a_copy(self) -> None:
        def build(net, x):
            first = net.conv(x, name="a")
            net.output(first)
            return net.sum(net.copy(first), net.conv(x, name="b"), name="sum")

        assert reasons(build) == [("sum", MergeReason.READ, "a")]

    def test_padding_by_an_op_of_its_own(self) -> None:
        def build(net, x):
            inner = net.padded(net.conv(x, kernel=(1, 1), name="inner"), (0, 0, 1, 1))
            outer = net.conv(inner, padding=(0, 0), name="a")
            return net.sum(outer, net.conv(x, name="b"), name="sum")

        assert reasons(build) == [("sum", MergeReason.PADDING, "inner")]

    def test_padding(self) -> None:
        def build(net, x):
            inner = net.conv(x, kernel=(1, 1), name="inner")
            return net.sum(net.conv(inner, name="a"), net.conv(x, name="b"), name="sum")

        assert reasons(build) == [("sum", MergeReason.PADDING, "inner")]

    def test_a_bias_of_zeros_is_in_nobodys_way(self) -> None:
        def build(net, x):
            inner = net.conv(x, kernel=(1, 1), name="inner")
            number = net.number("inner")
            net.parts[number] = replace(net.parts[number], bias=lambda: np.zeros(4))
            return net.sum(net.conv(inner, name="a"), net.conv(x, name="b"), name="sum")

        assert reasons(build) == []

    def test_grid(self) -> None:
        def build(net, x):
            whole = net.conv(x, kernel=(6, 6), padding=(0, 0), name="a")
            return net.sum(whole, net.conv(x, name="b"), name="sum")

        assert reasons(build) == [("sum", MergeReason.GRID, None)]

    def test_channels_that_are_broadcast(self) -> None:
        def build(net, x):
            return net.sum(net.conv(x, 1, name="a"), net.conv(x, name="b"), name="sum")

        assert reasons(build) == [("sum", MergeReason.GRID, None)]

    def test_dtypes(self) -> None:
        assert reasons(lambda net, x: two(net, x, dtype="float16")) == [
            ("sum", MergeReason.GRID, None)
        ]

    def test_cost(self) -> None:
        def build(net, x):
            deep = net.conv(x, groups=4, name="a")
            return net.sum(deep, net.conv(x, kernel=(1, 1), name="b"), name="sum")

        assert reasons(build) == [("sum", MergeReason.COST, None)]

    def test_cost_beside_what_is_read(self) -> None:
        """Two taps would be three."""

        def build(net, x):
            return net.sum(net.conv(x, kernel=(1, 2), dilation=2, name="a"), x, name="sum")

        assert reasons(build) == [("sum", MergeReason.COST, None)]

    def test_a_minuend(self) -> None:
        def build(net, x):
            first = net.conv(x, name="a", carries=False)
            inner = net.minus(first, net.clip(net.input(1, 4, 6, 6)), name="inner")
            return net.sum(inner, net.conv(x, name="b"), name="sum")

        assert reasons(build) == [("sum", MergeReason.SUM, None)]

    @pytest.mark.parametrize("is_inner_first", [False, True])
    def test_sums_in_a_sum(self, is_inner_first) -> None:
        """Of three branches two meet before the third comes in."""

        def build(net, x):
            first = net.conv(net.bn(net.clip(net.input(1, 4, 6, 6))), name="other")
            a, b = net.conv(x, name="a"), net.conv(x, name="b")
            net.output(net.clip(b))
            inner = net.sum(*((a, first) if is_inner_first else (first, b)), name="inner")
            return net.sum(inner, b if is_inner_first else a, name="sum")

        assert reasons(build) == [("sum", MergeReason.READ, "b")]

    def test_two_in_the_inner_sum(self) -> None:
        def build(net, x):
            a, b = net.conv(x, name="a"), net.conv(x, name="b")
            net.output(net.clip(b))
            return net.sum(net.sum(a, b, name="inner"), net.input(1, 4, 6, 6), name="sum")

        assert reasons(build) == [("inner", MergeReason.READ, "b")]

    def test_an_inner_sum_that_somebody_reads(self) -> None:
        """What it holds is no operand of the other."""

        def build(net, x):
            inner = net.sum(net.conv(x, name="a"), net.input(1, 4, 6, 6), name="inner")
            net.output(net.clip(inner))
            return net.sum(inner, net.conv(x, name="b"), name="sum")

        assert not reasons(build)

    @pytest.mark.parametrize("is_code", [True, False])
    def test_what_could_be_merged(self, is_code) -> None:
        """Its frontend did not: a module's code, if it is one."""
        net = Branches()
        x = net.input(1, 4, 6, 6)
        net.output(net.sum(x, net.conv(x, name="a"), name="sum"))
        (left,) = unmerged(net.graph, net.parts, Freedom(shortens_concats=not is_code), [])
        assert left.reason is (MergeReason.CODE if is_code else MergeReason.SUM)

    def test_beside_what_is_merged(self) -> None:
        def build(net, x):
            read = net.conv(x, name="b")
            net.output(read)
            return net.sum(net.conv(x, name="a"), net.bn(x), read, name="sum")

        assert reasons(build) == [("sum", MergeReason.READ, "b")]
