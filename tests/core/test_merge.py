"""What is merged: what must not be stands first.

`branch` has two convolutions of one tensor in a sum; each case changes one thing about it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core.expression import Freedom
from bnfold.core.merge import choices, find_merges
from bnfold.core.reasons import Reason
from tests.core.branches import Branches, merges_of, names

Change = Callable[[np.ndarray], np.ndarray]


def branch(change: Callable[[Branches, int, int, int], int | None] | None = None) -> Branches:
    """x -> 3x3, 1x1 -> sum; `change` may add to it, and may give another sum."""
    net = Branches()
    x = net.input(2, 4, 5, 5)
    first, second = net.conv(x, name="wide"), net.conv(x, kernel=(1, 1), name="narrow")
    total = change(net, x, first, second) if change else None
    if total is None:
        total = net.sum(first, second, name="sum")
    net.output(net.clip(total, name="relu"))
    return net


def scaled(net: Branches, x: int, factor: float) -> int:
    """The tensor times a number."""
    return net.affine(x, [factor], [0.0])


def test_two_convolutions_of_one_tensor() -> None:
    net = branch()
    assert names(net, merges_of(net)) == [("wide", ("narrow", "sum"))]


class TestWhatSomebodyElseSees:
    def test_a_branch_that_is_an_output(self) -> None:
        net = branch(lambda net, x, first, second: net.output(first) and None)
        assert not merges_of(net)

    def test_a_branch_that_is_an_output_and_that_others_read(self) -> None:
        def read(net, x, first, second):
            net.output(first, net.clip(first), net.clip(first))

        assert not merges_of(branch(read))

    def test_a_branch_that_another_op_reads(self) -> None:
        def read(net, x, first, second):
            net.output(net.clip(first, name="other"))

        assert not merges_of(branch(read))

    def test_a_branch_that_the_sum_and_another_op_read(self) -> None:
        def read(net, x, a, b):
            net.output(net.clip(a, name="other"))
            return net.sum(a, b, a, name="sum")

        assert not merges_of(branch(read))

    def test_a_branch_that_two_sums_read(self) -> None:
        def read(net, x, a, b):
            net.output(net.clip(net.sum(a, net.conv(x, name="third"))))
            return net.sum(a, b, name="sum")

        assert not merges_of(branch(read))

    def test_a_shared_branch_that_is_an_output(self) -> None:
        def read(net, x, a, b):
            net.output(a)
            return net.sum(a, scaled(net, net.minus(b, a), 0.3))

        assert not merges_of(branch(read))

    def test_what_makes_a_branch_is_read_elsewhere(self) -> None:
        """What lies before the shared tensor is read by its maker once, however often that is."""

        def read(net, x, first, second):
            a = net.bn(first, name="bn")
            net.output(net.clip(first, name="other"))
            return net.sum(a, scaled(net, net.minus(second, a), 0.3))

        net = branch(read)
        assert names(net, merges_of(net)) == []

    def test_a_pin(self) -> None:
        assert not find(branch(lambda net, x, a, b: net.graph.pin("pin", [a])))

    def test_an_inner_sum_that_another_op_reads(self) -> None:
        def read(net, x, a, b):
            inner = net.sum(a, b, name="inner")
            net.output(net.clip(inner, name="other"))
            return net.sum(inner, net.conv(x, name="third"), name="sum")

        net = branch(read)
        assert names(net, merges_of(net)) == [("wide", ("narrow", "inner"))]


class TestOps:
    @pytest.mark.parametrize(
        "options",
        [
            pytest.param({"tie": "a"}, id="a weight that others have, too"),
            pytest.param({"weight": g.Weight.SIGNS}, id="a binary weight"),
            pytest.param({"weight": g.Weight.FIXED}, id="a computed weight"),
        ],
    )
    def test_a_weight_that_is_not_free(self, options) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        total = net.sum(net.conv(x, name="a", **options), net.conv(x, name="b"))
        net.output(total)
        assert not merges_of(net)

    def test_another_dtype(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        net.output(net.sum(net.conv(x, name="a"), net.conv(x, name="b", dtype="float16")))
        assert not merges_of(net)

    def test_an_op_that_is_no_part(self) -> None:
        net = branch()
        del net.parts[net.number("narrow")]
        assert not merges_of(net)

    def test_an_op_that_cannot_go(self) -> None:
        net = branch()
        kept = net.number("narrow")
        assert not merges_of(net, Freedom(can_go=lambda number: number != kept))

    @pytest.mark.parametrize(
        "branches",
        [
            (Branches.mean, lambda net, x: x),
            (Branches.mean, Branches.bn),
            (partial(Branches.linear_over, outs=4, axis=1), partial(Branches.conv, carries=False)),
            (
                partial(Branches.conv, kernel=(1, 1)),
                partial(Branches.conv, transposed=True, carries=False),
            ),
            2 * (partial(Branches.linear_over, outs=4, carries=False),),
        ],
    )
    def test_nobody_who_can_carry(self, branches) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        net.output(net.sum(*(each(net, x) for each in branches)))
        assert not merges_of(net)

    @pytest.mark.parametrize(
        "options",
        [
            {"removal": g.Refusal(Reason.HOOK)},
            {"factors": g.Parameter.UNKNOWN},
            {"summands": g.Parameter.UNKNOWN},
        ],
    )
    def test_a_step_that_has_to_stay(self, options) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        net.output(net.sum(net.bn(net.conv(x, name="a"), **options), net.conv(x, name="b")))
        assert not merges_of(net)

    def test_a_step_that_is_called_twice(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        total = net.sum(net.bn(net.conv(x, name="a"), tie=1), net.conv(x, name="b"))
        net.output(net.bn(net.clip(total), tie=1))
        assert not merges_of(net)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("place", [0, 1])
    def test_numbers_that_are_none(self, bad, place) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        constants = np.ones((2, 4))
        constants[place, 0] = bad
        scaled = net.affine(net.conv(x, name="a"), *constants)
        net.output(net.sum(scaled, net.conv(x, name="b")))
        assert not find(net)

    def test_a_step_with_constants_per_place(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        y = net.conv(x, name="a")
        role = g.AffineStep(np.ones((1, 4, 5, 1)) * 2, np.ones((1, 4, 5, 1)))
        (y,) = net.add(role, [y], [net.shape(y)])
        net.output(net.sum(y, net.conv(x, name="b")))
        assert not merges_of(net)

    @pytest.mark.parametrize("axis", [2, 3])
    @pytest.mark.parametrize("is_behind", [True, False])
    def test_a_step_along_another_axis(self, axis, is_behind) -> None:
        net = Branches()
        x = net.input(1, 2, 2, 2)
        y = net.conv(x, 2, (1, 1), name="a") if is_behind else x
        net.output(net.sum(net.bn(y, axis=axis), net.conv(x, 2, name="b")))
        assert not merges_of(net)


def find(net: Branches):
    """Without a run, where numbers are not finite."""

    return find_merges(net.graph, net.parts)


class TestSums:
    def test_other_sources(self) -> None:
        net = Branches()
        x, y = net.input(1, 4, 5, 5), net.input(1, 4, 5, 5)
        net.output(net.sum(net.conv(x, name="a"), net.conv(y, name="b")))
        assert not merges_of(net)

    def test_something_nonlinear_in_front_of_one(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        net.output(net.sum(net.conv(x, name="a"), net.conv(net.clip(x), name="b")))
        assert not merges_of(net)

    def test_strides_that_differ(self) -> None:
        net = Branches()
        x = net.input(1, 4, 6, 6)
        first = net.conv(x, kernel=(2, 2), padding=(0, 0), after=(1, 1), stride=1, name="a")
        half = net.conv(x, kernel=(1, 1), stride=6, name="b")
        net.output(net.sum(first, half))  # (6, 6) and (1, 1)
        assert not merges_of(net)

    @pytest.mark.parametrize("is_behind", [False, True])
    def test_sizes_that_are_equal_by_chance(self, is_behind) -> None:
        net = Branches()
        x = net.input(1, 4, 2, 2)
        first = net.conv(x, kernel=(2, 2), padding=(0, 0), name="a")
        total = net.sum(first, net.conv(x, kernel=(1, 1), stride=2, name="b"))
        net.output(net.conv(total, kernel=(1, 1), name="c") if is_behind else total)
        assert not merges_of(net)

    def test_a_broadcast_operand(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        pooled = net.conv(x, kernel=(5, 5), padding=(0, 0), name="whole")
        net.output(net.sum(net.conv(x, name="a"), net.conv(x, name="b"), pooled))
        assert not merges_of(net)

    def test_a_broadcast_operand_of_a_sum_with_something_behind(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        total = net.sum(net.conv(x, 1, name="a"), net.conv(x, name="b"))
        net.output(net.conv(total, kernel=(1, 1), name="c"))
        assert not merges_of(net)

    @pytest.mark.parametrize("factor", [0.0, np.inf])
    @pytest.mark.parametrize("place", [0, 1])
    def test_a_coefficient_that_nothing_can_make_up_for(self, factor, place) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        a, b = net.conv(x, name="a"), net.conv(x, name="b")
        factors = (factor, 1.0, 1.0) if place else (1.0, factor, 1.0)
        net.output(net.sum(a, b, net.clip(x), coefficients=factors))
        assert not find(net)

    def test_what_is_multiplied_by_0_in_all_of_a_sum(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        net.output(net.sum(net.conv(x, name="a"), net.conv(x, name="b"), coefficients=(1.0, 0.0)))
        assert names(net, merges_of(net)) == [("a", ("b", "sum2"))]

    def test_a_tensor_and_itself(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        net.output(net.sum(x, x))
        assert not merges_of(net)

    @pytest.mark.parametrize("is_raw", [True, False])
    def test_a_residual_with_something_behind(self, is_raw) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        shortcut = x if is_raw else net.conv(x, kernel=(1, 1), name="b")
        total = net.sum(net.conv(x, name="a"), shortcut)
        net.output(net.conv(total, kernel=(1, 1), name="c"))
        assert len(merges_of(net)) == 1

    @pytest.mark.parametrize("minuend", ["a mean", "the source"])
    def test_a_subtrahend_that_would_be_left_alone(self, minuend) -> None:
        """Nothing that is there in time can carry both."""
        net = Branches()
        x, other = net.input(1, 4, 5, 5), net.input(1, 4, 5, 5)
        first = net.mean(x) if minuend == "a mean" else x
        inner = net.minus(first, net.clip(other), name="inner")
        net.output(net.sum(inner, net.conv(x, name="b")))
        assert not merges_of(net)

    def test_two_subtrahends_that_would_be_left_alone(self) -> None:
        """(a - p) + (b - q)"""
        net = Branches()
        x, p, q = (net.input(1, 4, 5, 5) for _ in range(3))
        a, b = net.conv(x, name="a"), net.conv(x, name="b")
        net.output(net.sum(net.minus(a, net.clip(p)), net.minus(b, net.clip(q), name="second")))
        assert not merges_of(net)

    def test_what_costs_more_multiplications(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        deep, dense = net.conv(x, groups=4, name="deep"), net.conv(x, kernel=(1, 1), name="dense")
        net.output(net.sum(deep, dense))
        assert not merges_of(net)

    @pytest.mark.parametrize("channels", [1, 2])
    def test_what_costs_a_larger_weight(self, channels) -> None:
        """Two taps and a factor are as many multiplications as three taps."""
        net = Branches()
        x = net.input(1, channels, 5, 5)
        taps = net.conv(x, channels, (1, 2), dilation=2, groups=channels)
        net.output(net.sum(taps, net.bn(x)))
        assert not merges_of(net)

    @pytest.mark.parametrize("shape", [(), (2, 1)])
    @pytest.mark.parametrize(("dilation", "after", "count"), [(2, 1, 1), (3, 2, 0)])
    def test_steps_in_a_row_that_cost_as_much_as_one(self, shape, dilation, after, count) -> None:
        """Beside two taps they pay for a third one, and not for a fourth."""
        net = Branches()
        x = y = net.input(1, 2, 5)
        for _ in range(2):
            role = g.AffineStep(*net.draw.standard_normal((2, *shape)))
            (y,) = net.add(role, [y], [net.shape(y)])
        inner = net.conv(x, 4, (1,), groups=2, bias=False, name="inner")
        options = {"dilation": dilation, "padding": (1,), "after": (after,), "groups": 2}
        net.output(net.sum(net.conv(inner, 2, (2,), name="outer", **options), y, name="sum"))
        assert sum("sum" in gone for _, gone in names(net, merges_of(net))) == count

    def test_kernels_that_leave_corners_out(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        net.output(
            net.sum(net.conv(x, kernel=(1, 3), name="a"), net.conv(x, kernel=(3, 1), name="b"))
        )
        assert not merges_of(net)

    def test_dilations_whose_grid_is_larger(self) -> None:
        net = Branches()
        x = net.input(1, 4, 7, 7)
        net.output(net.sum(net.conv(x, name="a"), net.conv(x, dilation=2, name="b")))
        assert not merges_of(net)


class TestSubtrahends:
    """One that is left alone in a sum would be added: something else has to stay with it."""

    @pytest.mark.parametrize("kernel", [(3, 3), (1, 1)])
    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_behind_one(self, kernel, sign) -> None:
        """(a - other) + b: both are one where a was, whatever the window of a."""
        net = Branches()
        x = net.input(1, 4, 5, 5)
        other = net.clip(x, name="other")
        inner = net.minus(net.conv(x, kernel=kernel, name="a"), other, name="inner")
        total = net.sum(inner, net.conv(x, name="b"), coefficients=(1.0, sign), name="sum")
        net.output(net.clip(total, name="relu"))
        (merge,) = merges_of(net)
        assert (merge.carrier, merge.enters) == (net.number("a"), (net.number("inner"), 0))
        assert merge.sums == {net.number("sum"): (0,)}

    def test_behind_several(self) -> None:
        """((a - p) - (q + b)) + c"""
        net = Branches()
        x, p, q = (net.input(1, 4, 5, 5) for _ in range(3))
        a, b, c = (net.conv(x, name=name) for name in "abc")
        second = net.sum(net.clip(q), b, name="second")
        total = net.sum(net.minus(net.minus(a, net.clip(p), name="first"), second), c)
        net.output(net.clip(total, name="relu"))
        (merge,) = merges_of(net)
        assert merge.enters == (net.number("first"), 0) and len(merge.gone) == 2

    def test_in_a_mean(self) -> None:
        """(a + other) / 2 + b is (a + 2 b + other) / 2."""
        net = Branches()
        x = net.input(1, 4, 5, 5)
        mean = net.sum(net.conv(x, name="a"), net.clip(x), coefficients=(0.5, 0.5), name="mean")
        net.output(net.clip(net.sum(mean, net.conv(x, name="b"))))
        (merge,) = merges_of(net)
        assert merge.enters == (net.number("mean"), 0)

    def test_in_the_first_place_of_several(self) -> None:
        """(a - other + b) + c"""
        net = Branches()
        x = net.input(1, 4, 5, 5)
        a, b = net.conv(x, name="a"), net.conv(x, name="b")
        inner = net.sum(a, net.clip(x), b, coefficients=(1.0, -1.0, 1.0), name="inner")
        net.output(net.clip(net.sum(inner, net.conv(x, name="c"))))
        (merge,) = merges_of(net)
        assert merge.enters == (net.number("inner"), 0)

    def test_twice(self) -> None:
        """b - (a - other) + c is (a + b + c) + other, whoever carries."""
        net = Branches()
        x = net.input(1, 4, 5, 5)
        inner = net.minus(net.conv(x, name="a"), net.clip(x), name="inner")
        middle = net.minus(net.conv(x, name="b"), inner, name="middle")
        net.output(net.sum(middle, net.conv(x, name="c"), name="sum"))
        (merge,) = merges_of(net)
        assert (merge.enters, len(merge.gone)) == ((net.number("sum"), 1), 2)

    @pytest.mark.parametrize(("kernel", "is_raw"), [((3, 3), False), ((1, 1), True)])
    def test_what_costs_least_stays(self, kernel, is_raw) -> None:
        """(a + cheap - other) + b, where only b can carry: a and b are one."""
        net = Branches()
        x = net.input(1, 1, 1, 1)
        a = net.conv(x, 1, kernel, carries=False, name="a")
        cheap = x if is_raw else net.conv(x, 1, (1, 1), carries=False, name="cheap")
        inner = net.sum(a, cheap, net.clip(x), coefficients=(1.0, 1.0, -1.0))
        net.output(net.sum(inner, net.conv(x, 1, name="b")))
        assert names(net, merges_of(net)) == [("b", ("a",))]

    def test_one_alone_stays(self) -> None:
        """c + d - (a - other), where a cannot carry: c and d are one."""
        net = Branches()
        x = net.input(1, 4, 5, 5)
        inner = net.minus(net.conv(x, carries=False, name="a"), net.clip(x), name="inner")
        c, d = net.conv(x, name="c"), net.conv(x, name="d")
        net.output(net.sum(c, d, inner, coefficients=(1.0, 1.0, -1.0)))
        assert names(net, merges_of(net)) == [("c", ("d",))]

    @pytest.mark.parametrize("larger", ["a", "b"])
    def test_of_two_that_could_come_in_there(self, larger) -> None:
        """(a - other + b) + c + d, of x, y, x and y: it is that which saves more."""
        net = Branches()
        sources = {name: net.input(1, 4, 5, 5) for name in "ab"}
        kernels = {name: (3, 3) if name == larger else (1, 1) for name in "ab"}
        a, b = (net.conv(x, kernel=kernels[name], name=name) for name, x in sources.items())
        other = net.clip(net.input(1, 4, 5, 5))
        inner = net.sum(a, other, b, coefficients=(1.0, -1.0, 1.0), name="inner")
        others = [net.conv(x, kernel=kernels[name]) for name, x in sources.items()]
        net.output(net.clip(net.sum(inner, *others)))
        entered = {net.graph.ops[merge.carrier].name: merge.enters for merge in merges_of(net)}
        assert entered[larger] == (net.number("inner"), 0 if larger == "a" else 2)

    def test_of_two_that_could_come_in_there_where_one_has_grown(self) -> None:
        """(a - other + b) + c + y + norm(y), where y is made of what a reads."""
        net = Branches()
        x, z, other = (net.input(1, 4, 5, 5) for _ in range(3))
        y = net.conv(x, kernel=(1, 1), bias=False, name="front")
        a = net.conv(x, name="a")
        b, c = (net.conv(z, kernel=(1, 1), groups=4, name=name) for name in "bc")
        inner = net.sum(a, net.clip(other), b, coefficients=(1.0, -1.0, 1.0), name="inner")
        net.output(net.sum(inner, c, y, net.bn(y)))
        entered = {net.graph.ops[merge.carrier].name: merge.enters for merge in merges_of(net)}
        assert entered["a"] == (net.number("inner"), 0)

    def test_of_two_sources(self) -> None:
        """(a - c) + b + d, of x, y, x and y: one where a was, and one where d is."""
        net = Branches()
        x, y = net.input(1, 4, 5, 5), net.input(1, 4, 5, 5)
        inner = net.minus(net.conv(x, name="a"), net.conv(y, name="c"), name="inner")
        total = net.sum(net.sum(inner, net.conv(x, name="b")), net.conv(y, name="d"))
        net.output(net.clip(total, name="relu"))
        assert len(merges_of(net)) == 2

    def test_of_two_sources_of_which_the_other_saves_more(self) -> None:
        net = Branches()
        x, y = net.input(1, 4, 5, 5), net.input(1, 4, 5, 5)
        inner = net.minus(net.conv(x, name="a"), net.clip(x), name="inner")
        inner = net.sum(inner, net.conv(x, name="b"), name="middle")
        large = [net.conv(y, kernel=(5, 5), name=name) for name in "cd"]
        net.output(net.clip(net.sum(inner, *large, name="outer")))
        merges = {net.graph.ops[merge.carrier].name: merge for merge in merges_of(net)}
        assert merges.keys() == {"a", "c"}
        assert merges["a"].enters == (net.number("inner"), 0)

    def test_beside_a_branch(self) -> None:
        """(mean - other) + b + c: b and c are one, the mean stays."""
        net = Branches()
        x = net.input(1, 4, 5, 5)
        other = net.clip(x, name="other")
        inner = net.minus(net.mean(x), other, name="inner")
        total = net.sum(net.sum(inner, net.conv(x, name="b")), net.conv(x, name="c"))
        net.output(net.clip(total, name="relu"))
        assert [(carrier, gone) for carrier, (gone, *_) in names(net, merges_of(net))] == [
            ("b", "c")
        ]

    def test_behind_a_sum(self) -> None:
        """(a + b) - (other + c): a, b and c are one, where c was."""
        net = Branches()
        x = net.input(1, 4, 5, 5)
        first = net.sum(net.conv(x, name="a"), net.conv(x, name="b"), name="first")
        second = net.sum(net.clip(x, name="other"), net.conv(x, name="c"), name="second")
        net.output(net.clip(net.minus(first, second), name="relu"))
        assert merges_of(net)

    def test_of_another_source_in_between(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        y = net.clip(x, name="y")
        inner = net.minus(net.conv(x, name="a"), net.clip(y, name="other"), name="inner")
        more = net.minus(net.conv(x, name="b"), net.conv(y, name="c"), name="more")
        total = net.sum(net.sum(inner, more), net.conv(y, name="d"))
        net.output(net.clip(total, name="relu"))
        merges = names(net, merges_of(net))
        assert merges == [("a", ("b", "more")), ("c", ("more", "d"))]


class TestChains:
    def test_a_narrow_place_between_two(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        net.output(net.conv(net.conv(x, 1, (1, 1), name="in"), 4, (1, 1), name="out"))
        assert not merges_of(net)

    def test_a_narrow_place_in_front_of_a_stride(self) -> None:
        """Fewer multiplications, and a larger weight."""
        net = Branches()
        down = net.conv(net.input(1, 4, 6, 6), 1, (1, 1), name="down")
        net.output(net.conv(down, 4, (1, 1), stride=2, name="up"))
        assert not merges_of(net)

    def test_nobody_who_can_carry(self) -> None:
        net = Branches()
        up = net.conv(net.input(1, 4, 5, 5), 16, (1, 1), name="up", carries=False)
        net.output(net.conv(up, 4, (1, 1), name="down", carries=False))
        assert not merges_of(net)

    def test_another_dtype(self) -> None:
        net = Branches()
        up = net.conv(net.input(1, 4, 5, 5), 16, (1, 1), name="up", dtype="float16")
        net.output(net.conv(up, 4, (1, 1), name="down"))
        assert not merges_of(net)

    @pytest.mark.parametrize(("padding", "count"), [(1, 0), (0, 1)])
    def test_a_transposed_one_that_makes_fewer_places_than_it_reads(self, padding, count) -> None:
        """Or more of them: what comes behind it costs as much as it would cost itself, or less."""
        net = Branches()
        inner = net.conv(
            net.input(1, 1, 5), 1, (2,), padding=(padding,), transposed=True, name="inner"
        )
        net.output(net.conv(inner, 2, (1,), name="outer"))
        assert len(merges_of(net)) == count

    def test_a_matrix_along_the_channels(self) -> None:
        net = Branches()
        up = net.conv(net.input(1, 4, 5, 5), 16, name="up")
        net.output(net.linear_over(up, 4, axis=1, name="down"))
        (merge,) = merges_of(net)
        assert net.graph.ops[merge.carrier].name == "up"

    @pytest.mark.parametrize(
        ("shift", "padding", "count"),
        [((0, 1, 0, 0), 1, 0), ((0, 0, 0, 0), 1, 1), ((1, 2, 3, 4), 0, 1)],
    )
    def test_a_shift_in_front_of_one_with_padded_zeros(self, shift, padding, count) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        each = (net.affine(x, (2, -1, 3, 1), shift), x)
        net.output(net.sum(*(net.conv(y, padding=(padding, padding)) for y in each)))
        assert len(merges_of(net)) == count

    @pytest.mark.parametrize(("bias", "count"), [(True, 0), (False, 1)])
    def test_zeros_between_two_that_a_bias_would_fill(self, bias, count) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        inner = net.conv(x, kernel=(1, 1), bias=bias, name="inner")
        net.output(net.conv(inner, name="outer"))
        assert len(merges_of(net)) == count

    def test_a_shift_between_two_is_a_bias(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        inner = net.bn(net.conv(x, kernel=(1, 1), bias=False, name="inner"))
        net.output(net.conv(inner, name="outer"))
        assert not merges_of(net)

    def test_zeros_that_the_first_reads_across(self) -> None:
        net = Branches()
        x = net.input(1, 2, 9, 9)
        net.output(net.conv(net.conv(x, 8, bias=False, name="inner"), 2, name="outer"))
        assert not merges_of(net)

    def test_a_depthwise_and_a_pointwise_one(self) -> None:
        net = Branches()
        x = net.input(1, 8, 5, 5)
        net.output(net.conv(net.conv(x, 8, groups=8, name="deep"), 8, (1, 1), name="point"))
        assert not merges_of(net)

    def test_more_places_behind_the_second(self) -> None:
        """As large a weight, and more multiplications."""
        net = Branches()
        inner = net.conv(net.input(1, 2, 5, 5), 1, (1, 1), bias=False, name="inner")
        net.output(net.conv(inner, 1, (1, 2), padding=(0, 1), name="outer"))
        assert not merges_of(net)

    def test_a_step_without_axes_in_front(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        y = net.conv(x, kernel=(1, 1), name="a")
        role = g.AffineStep(*net.draw.standard_normal((2, 4, 1, 1)))
        (y,) = net.add(role, [y], [net.shape(y)], name="step")
        net.output(net.sum(y, net.conv(x, name="b"), name="sum"))
        assert names(net, merges_of(net)) == [("b", ("a", "step", "sum"))]

    def test_two_in_a_row_that_pay(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        inner = net.bn(net.conv(x, 16, (1, 1), name="inner"))
        net.output(net.conv(inner, 4, (3, 3), padding=(0, 0), name="outer"))
        assert names(net, merges_of(net)) == [("outer", ("inner", "bn"))]

    @pytest.mark.parametrize(
        ("channels", "gone"), [((8, 4, 16, 4), ("b", "c")), ((8, 2, 32, 8), ("c",))]
    )
    def test_three_in_a_row(self, channels, gone) -> None:
        """As many of them as save most."""
        net = Branches()
        first, *others = channels
        y = net.input(1, first, 5, 5)
        for name, outs in zip("abc", others, strict=True):
            y = net.conv(y, outs, (1, 1), name=name)
        net.output(y)
        assert names(net, merges_of(net)) == [("abc"[2 - len(gone)], gone)]

    def test_matrices_in_a_row(self) -> None:
        net = Branches()
        x = net.input(2, 3, 4)
        net.output(net.linear_over(net.linear_over(x, 16, name="up"), 4, name="down"))
        assert names(net, merges_of(net)) == [("up", ("down",))]


class TestCopies:
    """What makes the very tensor that it reads is in nobody's way."""

    def test_between_two(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        a = net.copy(net.copy(net.conv(x, kernel=(1, 1), bias=False, name="a"), "first"), "second")
        net.output(net.conv(a, name="b"))
        assert names(net, merges_of(net)) == [("b", ("a", "first", "second"))]

    def test_in_front_of_two(self) -> None:
        net = Branches()
        up = net.conv(net.copy(net.input(1, 4, 5, 5)), 16, (1, 1), name="up")
        net.output(net.conv(up, 4, (1, 1), name="down"))
        assert names(net, merges_of(net)) == [("up", ("copy", "down"))]

    @pytest.mark.parametrize("place", ["source", "branch", "inner sum", "shortcut"])
    def test_in_a_sum(self, place) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        a = net.conv(net.copy(net.copy(x)) if place == "source" else x, name="a")
        b, shortcut = net.conv(x, kernel=(1, 1), name="b"), x
        if place == "branch":
            b = net.copy(b)
        if place == "shortcut":
            shortcut = net.copy(x)
        inner = net.sum(a, b, name="inner")
        if place == "inner sum":
            inner = net.copy(inner)
        net.output(net.sum(inner, shortcut, name="sum"))
        ((carrier, gone),) = names(net, merges_of(net))
        assert carrier == "a" and {*gone} == {"copy", "b", "inner", "sum"}

    def test_in_front_of_both(self) -> None:
        net = Branches()
        x = net.copy(net.input(1, 4, 5, 5))
        net.output(net.sum(net.conv(x, name="a"), net.conv(x, name="b"), name="sum"))
        assert names(net, merges_of(net)) == [("a", ("b", "sum"))]

    def test_alone(self) -> None:
        """A tensor plus itself is two times that: an op more than there was."""
        net = Branches()
        x = net.input(1, 4, 5, 5)
        net.output(net.sum(net.copy(net.copy(x)), x))
        assert not merges_of(net)

    def test_behind_or_in_front_of_one(self) -> None:
        net = Branches()
        net.output(net.copy(net.conv(net.copy(net.input(1, 4, 5, 5)))))
        assert not merges_of(net)

    def test_that_somebody_reads(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        a = net.copy(net.conv(x, name="a"))
        net.output(net.sum(a, net.conv(x, name="b")), a)
        assert not merges_of(net)

    def test_beside_what_it_copies_alone(self) -> None:
        net = Branches()
        x = net.clip(net.input(1, 4, 5, 5), name="before")
        net.output(net.clip(net.sum(x, net.copy(x), name="sum"), name="relu"))
        assert not merges_of(net)

    def test_a_view_that_happens_to_move_nothing(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        net.output(net.sum(net.copy(net.conv(x), is_copy=False), net.conv(x)))
        assert not merges_of(net)

    def test_that_cannot_go(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        net.output(net.sum(net.copy(net.conv(x)), net.conv(x)))
        copy = net.number("copy")
        assert not find_merges(net.graph, net.parts, Freedom(lambda number: number != copy))


class TestInFrontOfBranches:
    """What makes the tensor that branches read has one reader once they are one."""

    def net(self, *, bias: bool = False, outs: int = 4) -> Branches:
        net = Branches()
        x = net.clip(net.input(1, 4, 5, 5), name="before")
        source = net.conv(x, outs, (1, 1), bias=bias, name="front")
        net.output(
            net.sum(
                net.conv(source, name="wide"),
                net.conv(source, kernel=(1, 1), name="narrow"),
                name="sum",
            )
        )
        return net

    def test_a_bias_before_padded_zeros(self) -> None:
        net = self.net(bias=True)
        assert names(net, merges_of(net)) == [("wide", ("narrow", "sum"))]

    def test_a_narrow_place_between(self) -> None:
        net = self.net(outs=1)
        assert names(net, merges_of(net)) == [("wide", ("narrow", "sum"))]

    def test_a_source_that_another_op_reads(self) -> None:
        net = self.net()
        (front,) = (op.outputs[0] for op in net.graph.ops if op.name == "front")
        net.output(net.clip(front, name="other"))
        assert names(net, merges_of(net)) == [("wide", ("narrow", "sum"))]

    @pytest.mark.parametrize("more", [0, 1])
    def test_a_source_that_is_an_output(self, more) -> None:
        net = Branches()
        front = net.conv(net.input(1, 4, 5, 5), kernel=(1, 1), bias=False, name="front")
        net.output(front, net.sum(*(net.conv(front, name="branch") for _ in range(2 + more))))
        (merge,) = merges_of(net)
        assert merge.source == front

    def test_a_source_that_a_sum_reads_on(self) -> None:
        net = Branches()
        front = net.conv(net.input(1, 4, 5, 5), kernel=(1, 1), bias=False, name="front")
        inner = net.sum(net.conv(front, name="a"), net.conv(front, name="b"), name="inner")
        net.output(net.clip(inner, name="relu"))
        net.output(net.clip(net.sum(net.clip(front, name="c"), front), name="other"))
        assert names(net, merges_of(net)) == [("a", ("b", "inner"))]

    def test_another_dtype(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        front = net.conv(x, kernel=(1, 1), bias=False, name="front", dtype="float16")
        net.output(net.sum(net.conv(front, name="a"), net.conv(front, name="b"), name="sum"))
        assert names(net, merges_of(net)) == [("a", ("b", "sum"))]

    def test_all_are_one(self) -> None:
        net = self.net()
        assert names(net, merges_of(net)) == [("wide", ("front", "narrow", "sum"))]

    def test_matrices(self) -> None:
        net = Branches()
        front = net.linear_over(net.input(2, 3, 4), 8, name="front")
        net.output(
            net.sum(
                net.linear_over(front, 4, name="a"), net.linear_over(front, 4, name="b"), name="sum"
            )
        )
        assert names(net, merges_of(net)) == [("front", ("a", "b", "sum"))]

    @pytest.mark.parametrize("front", [Branches.copy, Branches.bn])
    def test_a_step_or_a_copy_in_front_of_residuals(self, front) -> None:
        net = Branches()
        y = net.input(1, 4, 5, 5)
        for number in "12":
            y = front(net, net.clip(y), "front" + number)
            y = net.sum(y, net.conv(y, kernel=(1, 1), name="a" + number), name="sum" + number)
        net.output(y)
        assert names(net, merges_of(net)) == [
            ("a1", ("front1", "sum1")),
            ("a2", ("front2", "sum2")),
        ]

    def test_more_steps_than_are_looked_at(self) -> None:
        """Those in front of them are left to the fold."""
        net = Branches()
        y = net.input(1, 4, 5, 5)
        for number in range(9):
            y = net.bn(y, f"bn{number}")
        net.output(net.sum(y, net.bn(y), name="sum"))
        ((carrier, gone),) = names(net, merges_of(net))
        assert carrier != "bn0" and "bn0" not in gone

    def test_branches_of_few_places(self) -> None:
        """A large window of several stages costs little there, and no more weights than all."""
        net = Branches()
        x = net.input(1, 4, 5, 3)
        y = net.sum(net.conv(x, name="a"), net.conv(x, kernel=(1, 1), name="b"))
        net.output(net.sum(*(net.conv(y, padding=(0, 0), name=name) for name in "cd")))
        ((_, gone),) = names(net, merges_of(net))
        assert len(gone) == 5


class TestInFrontOfEqualBranches:
    """They save more with each other than with what makes their source: that comes in last."""

    def net(self, front: Mapping, branch: Mapping, size: int = 5) -> Branches:
        net = Branches()
        x = net.input(1, 4, size, size)
        for _ in range(9):  # so that no number of a tensor is one of channels
            x = net.clip(x)
        source = net.conv(x, **{"kernel": (1, 1), "bias": False, "name": "front", **front})
        net.output(net.sum(*(net.conv(source, name=name, **branch) for name in "ab"), name="sum"))
        return net

    @pytest.mark.parametrize(
        ("front", "branch", "size"),
        [
            pytest.param({"bias": True}, {}, 5, id="a bias before padded zeros"),
            pytest.param({"outs": 1}, {}, 5, id="a narrow place"),
            pytest.param({"outs": 1}, {"stride": 6}, 12, id="a larger weight"),
            pytest.param({"dtype": "float16"}, {}, 5, id="another dtype"),
        ],
    )
    def test_what_stays(self, front, branch, size) -> None:
        net = self.net(front, branch, size)
        assert names(net, merges_of(net)) == [("a", ("b", "sum"))]

    @pytest.mark.parametrize(
        ("front", "branch"),
        [
            ({}, {}),
            ({}, {"outs": 8, "stride": 2}),
            ({"outs": 3}, {"outs": 1}),
            ({"groups": 2}, {"groups": 2}),
            ({}, {"transposed": True}),
            ({"outs": 3}, {"outs": 1, "transposed": True}),
        ],
    )
    def test_what_comes_in(self, front, branch) -> None:
        net = self.net(front, branch)
        assert names(net, merges_of(net)) == [("a", ("front", "b", "sum"))]

    def test_what_none_of_them_can_carry(self) -> None:
        """A transposed convolution of one tap has no window of a convolution."""
        net = self.net({"kernel": (3, 3), "carries": False}, {"kernel": (1, 1), "transposed": True})
        assert names(net, merges_of(net)) == [("a", ("b", "sum"))]

    def test_two_in_a_row(self) -> None:
        net = Branches()
        source = net.input(1, 4, 5, 5)
        for name in ("first", "second"):
            source = net.conv(source, kernel=(1, 1), bias=False, name=name)
        net.output(net.sum(*(net.conv(source, name=name) for name in "ab"), name="sum"))
        assert names(net, merges_of(net)) == [("a", ("first", "second", "b", "sum"))]

    def test_one_block_behind_the_other(self) -> None:
        net = Branches()
        y = net.input(1, 4, 5, 5)
        for number in "12":
            source = net.conv(net.clip(y), kernel=(1, 1), bias=False, name="front" + number)
            each = (net.conv(source, name=name + number) for name in "ab")
            y = net.sum(*each, name="sum" + number)
        net.output(y)
        assert names(net, merges_of(net)) == [
            ("a1", ("front1", "b1", "sum1")),
            ("a2", ("front2", "b2", "sum2")),
        ]

    @pytest.mark.parametrize("branch", ["matrix", "conv"])
    @pytest.mark.parametrize("axis", [1, 3])
    def test_a_matrix(self, branch, axis) -> None:
        """It becomes one with what works along its own axis."""
        net = Branches()
        source = net.linear_over(net.input(1, 4, 5, 4), 4, axis=axis, bias=False, name="front")
        each = [
            net.linear_over(source, 8, axis=3, name=name)
            if branch == "matrix"
            else net.conv(source, 8, name=name)
            for name in "ab"
        ]
        net.output(net.sum(*each, name="sum"))
        ((_, gone),) = names(net, merges_of(net))
        assert ("b" in gone, len(gone)) == (True, 3 if (branch == "matrix") == (axis == 3) else 2)

    def test_a_convolution_in_front_of_matrices(self) -> None:
        net = Branches()
        source = net.conv(net.input(1, 4, 5, 5), bias=False, name="front")
        net.output(net.sum(*(net.linear_over(source, 8, axis=1, name=name) for name in "ab")))
        assert [carrier for carrier, _ in names(net, merges_of(net))] == ["a"]

    def test_that_go_with_a_branch_of_what_comes_before(self) -> None:
        """All come in where the first of them did."""
        net = Branches()
        x = net.input(1, 4, 5, 5)
        source = net.conv(x, kernel=(1, 1), bias=False, name="front")
        a, b, c = net.conv(source, name="a"), net.conv(x, name="b"), net.conv(source, name="c")
        net.output(net.sum(a, b, c, net.clip(x), name="sum"))
        (merge,) = merges_of(net)
        assert names(net, [merge]) == [("a", ("front", "b", "c"))]
        assert merge.enters == (net.number("sum"), 0)


class TestBlocks:
    """Of networks that people train, as their authors merge them."""

    def test_repvgg(self) -> None:
        net = Branches()
        x = net.input(2, 4, 6, 6)
        wide = net.bn(net.conv(x, bias=False, name="wide"), "bn1")
        narrow = net.bn(net.conv(x, kernel=(1, 1), bias=False, name="narrow"), "bn2")
        total = net.sum(net.sum(narrow, wide, name="one"), net.bn(x, "bn3"), name="two")
        net.output(net.clip(total))
        assert names(net, merges_of(net)) == [
            ("wide", ("bn1", "narrow", "bn2", "one", "bn3", "two"))
        ]

    @pytest.mark.parametrize("groups", [1, 4])
    def test_mobileone_with_a_stride(self, groups) -> None:
        net = Branches()
        x = net.input(2, 4, 7, 7)
        each = [
            net.bn(net.conv(x, stride=2, groups=groups, bias=False, name=f"conv{n}"), f"bn{n}")
            for n in range(4)
        ]
        each.append(net.conv(x, kernel=(1, 1), stride=2, groups=groups, name="scale"))
        total = each[0]
        for n, branch_ in enumerate(each[1:]):
            total = net.sum(total, branch_, name=f"sum{n}")
        net.output(total)
        (found,) = merges_of(net)
        assert net.graph.ops[found.carrier].name == "conv0"
        assert found.groups == groups

    def test_repmixer(self) -> None:
        """x + g * (mixer(x) - norm(x))"""
        net = Branches()
        x = net.input(2, 4, 6, 6)
        mixer = net.sum(net.conv(x, groups=4, name="mixer"), net.bn(x, "skip"))
        scaled = net.affine(net.minus(mixer, net.bn(x, "norm")), [0.1, -0.2, 0.3, 0.4], np.zeros(4))
        net.output(net.sum(x, scaled))
        (found,) = merges_of(net)
        assert (net.graph.ops[found.carrier].name, found.enters) == ("mixer", None)
        assert found.groups == 4
        assert len(found.gone) == len(net.graph.ops) - 1

    def test_asymmetric_block(self) -> None:
        net = Branches()
        x = net.input(2, 4, 6, 6)
        tall = net.conv(x, kernel=(3, 1), name="tall")
        flat = net.conv(x, kernel=(1, 3), name="flat")
        net.output(net.sum(net.sum(tall, flat), net.conv(x, name="square")))
        (found,) = merges_of(net)
        assert net.graph.ops[found.carrier].name == "square"

    def test_diverse_branch_block(self) -> None:
        net = Branches()
        x = net.input(2, 4, 6, 6)
        chain = net.conv(net.conv(x, kernel=(1, 1), bias=False, name="1x1"), name="kxk")
        means = net.mean(net.conv(x, kernel=(1, 1), bias=False, name="point"))
        plain = net.bn(net.conv(x, name="plain"))
        net.output(net.sum(chain, means, plain, net.conv(x, kernel=(1, 1), name="last")))
        (found,) = merges_of(net)
        assert net.graph.ops[found.carrier].name == "kxk"
        assert len(found.gone) == len(net.graph.ops) - 1

    def test_low_rank_adaptation(self) -> None:
        net = Branches()
        x = net.input(2, 3, 8)
        low = net.linear_over(net.linear_over(x, 2, name="down", bias=False), 8, name="up")
        net.output(net.sum(net.linear_over(x, 8, name="base"), low, coefficients=(1.0, 0.5)))
        (found,) = merges_of(net)
        assert len(found.gone) == len(net.graph.ops) - 1

    def test_transposed_ones(self) -> None:
        net = Branches()
        x = net.input(1, 4, 4, 4)
        options = {"stride": 2, "transposed": True, "padding": (1, 1)}
        net.output(net.sum(net.conv(x, name="a", **options), net.conv(x, name="b", **options)))
        assert names(net, merges_of(net)) == [("a", ("b", "sum2"))]

    def test_transposed_ones_of_one_tap(self) -> None:
        net = Branches()
        x = net.input(1, 4, 4, 4)
        each = [net.conv(x, kernel=(1, 1), transposed=True, name=name) for name in "ab"]
        net.output(net.sum(*each, name="sum"))
        assert names(net, merges_of(net)) == [("a", ("b", "sum"))]

    def test_transposed_ones_of_more_channels_and_fewer_places(self) -> None:
        net = Branches()
        x = net.input(1, 1, 5, 5)
        each = [net.conv(x, 4, transposed=True, padding=(2, 2), name=name) for name in "ab"]
        net.output(net.sum(*each, name="sum"))
        assert names(net, merges_of(net)) == [("a", ("b", "sum"))]


class TestAffine:
    @pytest.mark.parametrize("factors", [(1.0, 1.0), (1.0, -1.0), (-0.5, 1.0)])
    def test_x_and_its_batch_norm(self, factors) -> None:
        net = Branches()
        x = net.input(2, 4, 5, 5)
        net.output(net.sum(x, net.bn(x), coefficients=factors, name="sum"))
        found = merges_of(net)
        assert names(net, found) == [("bn", ("sum",))]
        assert found[0].is_affine

    def test_behind_one_number_for_all_channels(self) -> None:
        net = Branches()
        x = net.input(2, 4, 5, 5)
        (half,) = net.add(g.AffineStep(np.array(0.5), np.array(1.0)), [x], [net.shape(x)])
        net.output(net.sum(net.bn(net.sum(half, x)), net.conv(x, name="a")))
        ((carrier, gone),) = names(net, merges_of(net))
        assert carrier == "a" and len(gone) == 4

    def test_several(self) -> None:
        net = Branches()
        x = net.input(2, 4, 5, 5)
        net.output(net.sum(net.copy(x), net.bn(x, "a"), net.bn(x, "b"), name="sum"))
        assert names(net, merges_of(net)) == [("a", ("copy", "b", "sum"))]

    def test_constants_that_the_frontend_cannot_give(self) -> None:
        net = Branches()
        x = net.input(2, 4, 5, 5)
        net.output(net.sum(x, net.bn(x)))
        assert not merges_of(net, Freedom(carries_affine=lambda number: False))

    def test_constants_that_are_fixed(self) -> None:
        net = Branches()
        x = net.input(2, 4, 5, 5)
        net.output(net.sum(x, net.bn(x, factors=g.Parameter.FIXED), name="sum"))
        assert not merges_of(net)

    def test_one_number_for_all_channels(self) -> None:
        net = Branches()
        x = net.input(2, 4, 5, 5)
        (half,) = net.add(g.AffineStep(np.array(0.5), np.array(1.0)), [x], [net.shape(x)])
        net.output(net.sum(x, half))
        assert not merges_of(net)


class TestWhatOthersShare:
    """A tensor that is read several times, by linear ops alone, that do not all meet."""

    @staticmethod
    def gone(net: Branches) -> set[str]:
        return {net.graph.ops[n].name for m in merges_of(net) for n in (m.carrier, *m.gone)}

    def test_in_front_of_convolutions_that_do_not_meet(self) -> None:
        net = Branches()
        y = net.conv(net.input(1, 4, 5, 5), kernel=(1, 1), bias=False, name="front")
        net.output(net.clip(net.conv(y)), net.clip(net.conv(y)))
        assert not merges_of(net)

    def test_in_front_of_two_sums(self) -> None:
        net = Branches()
        y = net.conv(net.input(1, 4, 5, 5), kernel=(1, 1), bias=False, name="front")
        net.output(*(net.clip(net.sum(net.conv(y), net.conv(y))) for _ in range(2)))
        assert len(merges_of(net)) == 2 and "front" not in self.gone(net)

    def test_in_a_sum_that_others_share_in_turn(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        a, b, c = (net.conv(x, name=name) for name in "abc")
        net.output(net.clip(net.sum(a, net.conv(x, name="third"))))
        t = net.sum(a, b)
        net.output(net.clip(net.sum(t, scaled(net, net.minus(c, t), 0.3))))
        assert "a" not in self.gone(net)

    def test_in_a_sum_in_front_of_branches(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        a = net.conv(x, kernel=(1, 1), name="a")
        net.output(net.clip(net.sum(a, net.conv(x, name="third"))))
        y = net.sum(a, net.conv(x, kernel=(1, 1), name="b"))
        net.output(net.clip(net.sum(net.conv(y), y)))
        assert "a" not in self.gone(net)

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_behind_what_somebody_reads(self, order) -> None:
        net = Branches()
        x = net.conv(net.input(1, 4, 5, 5), kernel=(1, 1), bias=False, name="front")
        net.output(net.clip(x))
        t = net.bn(net.sum(x, net.bn(x)))
        u, v = scaled(net, net.sum(net.conv(t), net.conv(t)), 0.3), net.conv(t)
        net.output(net.clip(net.sum(*((u, v)[at] for at in order))))
        assert "front" not in self.gone(net)


class TestWhatOperandsShare:
    """A tensor that several operands of one sum are made of, and nobody else reads."""

    def merged(self, change) -> list[str]:
        net = branch(change)
        return sorted(net.graph.ops[m.carrier].name for m in merges_of(net))

    def test_twice(self) -> None:
        assert self.merged(lambda net, x, a, b: net.sum(a, a)) == ["wide"]

    def test_twice_in_sums_around_each_other(self) -> None:
        assert self.merged(lambda net, x, a, b: net.sum(net.sum(a, b), b)) == ["wide"]

    def test_on_the_way_from_one_to_the_other(self) -> None:
        """a + w (b - a)"""
        assert self.merged(lambda net, x, a, b: net.sum(a, scaled(net, net.minus(b, a), 0.3))) == [
            "wide"
        ]

    def test_by_three(self) -> None:
        """a + v (b - a) + w (c - a): of no two of its operands it is one alone."""

        def change(net, x, a, b):
            c = net.bn(net.conv(x, name="third"))
            steps = [scaled(net, net.minus(other, a), w) for other, w in ((b, 0.3), (c, 0.2))]
            return net.sum(net.sum(a, steps[0]), steps[1])

        assert self.merged(change) == ["wide"]

    def test_beside_what_somebody_else_reads(self) -> None:
        """The rest is not lost to an operand that only all of its readers could take along."""

        def change(net, x, a, b):
            net.output(net.clip(net.sum(a, x), name="other"))
            return net.sum(a, net.conv(x, name="third"), b)

        assert self.merged(change) == ["third"]

    def test_beside_a_shortcut_that_stays(self) -> None:
        def change(net, x, a, b):
            return net.sum(net.clip(x), a, scaled(net, net.minus(b, a), 0.3))

        assert self.merged(change) == ["wide"]

    def test_in_one_that_others_share(self) -> None:
        def change(net, x, a, b):
            inner = net.sum(a, scaled(net, net.minus(b, a), 0.3))
            return net.sum(inner, scaled(net, net.minus(net.conv(x, name="third"), inner), 0.2))

        assert self.merged(change) == ["wide"]

    def test_in_what_they_share(self) -> None:
        """d = b - a, of which (a + w d) and 0 (b - v d) are made."""

        def change(net, x, a, b):
            d = net.minus(b, a)
            ways = net.sum(a, scaled(net, d, 0.3)), net.minus(b, scaled(net, d, 0.7))
            return net.sum(*ways, coefficients=(1.0, 0.0))

        assert self.merged(change) == ["wide"]

    def test_it_costs_what_it_costs_once(self) -> None:
        """A row and a column are cheaper than what holds both; two rows and a column are not."""
        net = Branches()
        x = net.input(1, 4, 5, 5)
        a, b = net.conv(x, kernel=(1, 3), name="row"), net.conv(x, kernel=(3, 1), name="column")
        net.output(net.clip(net.sum(a, scaled(net, net.minus(b, a), 0.3))))
        assert not merges_of(net)

    def test_it_takes_room_once(self) -> None:
        net = Branches()
        x = net.input(1, 4, 9, 9)
        a = net.conv(x, kernel=(3, 5), padding=(1, 2), groups=4, name="a")
        net.output(net.clip(net.sum(a, scaled(net, net.minus(net.mean(x, 5, padding=2), a), 0.3))))
        assert not merges_of(net)

    def test_its_source_is_read_once_for_it(self) -> None:
        """So what makes that is one with all of the sum, and with what is added to it."""
        net = Branches()
        x = net.input(1, 4, 5, 5)
        y = net.conv(x, kernel=(1, 1), bias=False, name="front")
        a, b = net.conv(y, name="a"), net.conv(y, name="b")
        lerp = net.sum(a, scaled(net, net.minus(b, a), 0.3))
        net.output(net.clip(net.sum(lerp, net.conv(x, name="c"))))
        (merge,) = merges_of(net)
        assert merge.source == x and len(merge.gone) == 7


class TestPartOfASum:
    """A shortcut that is not linear stays."""

    @pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 1), (2, 1, 0)])
    @pytest.mark.parametrize("nested", ["left", "right", "flat"])
    def test_in_any_order(self, order, nested) -> None:
        net = Branches()
        x, other = net.input(1, 4, 5, 5), net.input(1, 4, 5, 5)
        made = [net.conv(x, name="a"), net.conv(x, name="b"), net.clip(other, name="relu")]
        p, q, r = (made[at] for at in order)
        if nested == "flat":
            net.output(net.sum(p, q, r))
        elif nested == "left":
            net.output(net.sum(net.sum(p, q), r))
        else:
            net.output(net.sum(p, net.sum(q, r)))
        (found,) = merges_of(net)
        assert {net.graph.ops[n].name for n in {found.carrier, *found.gone}} >= {"a", "b"}

    @pytest.mark.parametrize("factors", [(1.0, -1.0), (-1.0, 1.0), (0.5, 2.0)])
    def test_coefficients(self, factors) -> None:
        net = Branches()
        x, other = net.input(1, 4, 5, 5), net.input(1, 4, 5, 5)
        net.output(
            net.sum(
                net.conv(x, name="a"),
                net.clip(other),
                net.conv(x, name="b"),
                coefficients=(factors[0], 3.0, factors[1]),
            )
        )
        assert len(merges_of(net)) == 1

    def test_a_difference_that_is_left_as_its_subtrahend(self) -> None:
        """a - (b + relu) keeps the minuend's place for all; (a + b) - relu is a - relu."""
        net = Branches()
        x, other = net.input(1, 4, 5, 5), net.input(1, 4, 5, 5)
        inner = net.sum(net.conv(x, name="a"), net.conv(x, name="b"))
        net.output(net.minus(inner, net.clip(other)))
        assert len(merges_of(net)) == 1

    def test_two_sources_in_one_sum(self) -> None:
        net = Branches()
        x, y = net.input(1, 4, 5, 5), net.input(1, 4, 5, 5)
        net.output(
            net.sum(
                net.sum(net.conv(x, name="a"), net.conv(y, name="c")),
                net.sum(net.conv(x, name="b"), net.conv(y, name="d")),
            )
        )
        found = merges_of(net)
        assert sorted(net.graph.ops[merge.carrier].name for merge in found) == ["a", "c"]

    def test_what_saves_most(self) -> None:
        """A row goes with a longer one, or fits with two more rows, but not with both."""
        net = Branches()
        x = net.input(1, 1, 5, 5)
        rows = net.conv(x, 1, (2, 3), padding=(2, 1), after=(1, 1), name="rows")
        row = net.conv(x, 1, (1, 3), padding=(0, 1), after=(2, 1), name="row")
        long = net.conv(x, 1, (1, 5), padding=(0, 2), after=(2, 2), name="long")
        net.output(net.sum(rows, row, long))
        assert names(net, merges_of(net)) == [("long", ("row",))]

    def test_between_three_in_a_row(self) -> None:
        net = Branches()
        x, other = net.input(1, 4, 5, 5), net.input(1, 4, 5, 5)
        second = net.conv(net.conv(x, 16, (1, 1), name="first"), kernel=(1, 1), name="second")
        total = net.sum(*(net.conv(other, name=name) for name in "ab"), net.clip(other))
        net.output(total, net.conv(second, 16, (1, 1), name="third"))
        assert len(merges_of(net)) == 2

    def test_what_saves_most_before_what_it_goes_with(self) -> None:
        """Two long rows are one first, and the row goes with them then."""
        net = Branches()
        x = net.input(1, 1, 5, 5)
        source = net.conv(x, 1, (1, 1), bias=False, name="front")
        rows = net.conv(x, 1, (2, 3), padding=(2, 1), after=(1, 1), name="rows")
        row = net.conv(x, 1, (1, 3), padding=(0, 1), after=(2, 1), name="row")
        options = {"kernel": (1, 5), "padding": (0, 2), "after": (2, 2)}
        long = [net.conv(source, 1, name=name, **options) for name in ("long", "other")]
        net.output(net.sum(rows, row, *long))
        assert names(net, merges_of(net)) == [("long", ("front", "row", "other"))]

    def test_what_others_have_saved(self) -> None:
        """It does not pay for one that would cost more."""
        net = Branches()
        x = net.input(1, 4, 5, 5)
        deep = net.conv(x, kernel=(5, 5), groups=4, name="deep")
        net.output(net.sum(deep, *(net.conv(x, name=name) for name in "abc")))
        assert names(net, merges_of(net)) == [("a", ("b", "c"))]

    def test_the_cheapest_of_several_choices(self) -> None:
        """An identity goes with either; the depthwise and the dense one do not go together."""
        net = Branches()
        x = net.input(1, 4, 5, 5)
        deep, dense = net.conv(x, groups=4, name="deep"), net.conv(x, kernel=(1, 1), name="dense")
        net.output(net.sum(net.sum(deep, dense), net.bn(x)))
        (found,) = merges_of(net)
        assert net.graph.ops[found.carrier].name in ("deep", "dense")
        assert net.number("bn") in found.gone


class TestAtLength:
    def test_a_thousand_convolutions_in_a_row(self) -> None:
        net = Branches()
        x = net.input(1, 2, 1, 1)
        y = x
        for number in range(1000):
            y = net.conv(y, 2, (1, 1), name=f"conv{number}")
        net.output(y)
        assert find(net)

    def test_a_sum_of_very_many(self) -> None:
        net = Branches()
        x = net.input(1, 2, 1, 1)
        total = net.conv(x, 2, (1, 1), name="first")
        for number in range(300):
            total = net.sum(total, net.conv(x, 2, (1, 1), name=f"conv{number}"))
        net.output(total)
        assert len(find(net)) == 1

    def test_one_sum_of_many(self) -> None:
        """So many at a time: the rest is left to what looks again."""
        count = 65
        net = Branches()
        x = net.input(1, 2, 1, 1)
        net.output(net.sum(*(net.conv(x, 2, (1, 1), name=f"conv{k}") for k in range(count))))
        (merge,) = find(net)
        assert len({*merge.gone, merge.carrier}) >= 64


class TestChoices:
    """A chain whose first op saw no zeros may keep a shift in front of it."""

    @staticmethod
    def chain(net: Branches, x: int, **options) -> int:
        inner = net.conv(x, 8, (1, 1), bias=False, name="inner")
        return net.conv(inner, 4, bias=False, name="outer", **options)

    def found(self, build) -> list[list[str]]:
        net = Branches()
        x = net.input(1, 4, 6, 6)
        net.output(net.clip(build(net, x)))
        merges = find(net)
        return [
            sorted(net.graph.ops[merge.carrier].name for merge in chosen)
            for chosen in choices(net.graph, net.parts, merges)
        ]

    def test_without_it(self) -> None:
        def build(net, x):
            first = self.chain(net, x)
            relu = net.clip(first)
            return net.sum(net.conv(relu, name="a"), net.conv(relu, name="b"))

        assert self.found(build) == [["a", "outer"], ["a"], []]

    @pytest.mark.parametrize("options", [{}, {"transposed": True, "padding": (0, 0)}])
    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (Branches.conv, Branches.conv),
            (Branches.bn, Branches.conv),
            (Branches.conv, partial(Branches.conv, kernel=(1, 1))),
            (partial(Branches.linear_over, outs=4, axis=1), Branches.conv),
            2 * (partial(Branches.conv, kernel=(1, 1)),),
            2 * (partial(Branches.conv, transposed=True, padding=(0, 0)),),
            2 * (partial(Branches.linear_over, outs=4),),
        ],
    )
    def test_without_it_alone(self, options, first, second) -> None:
        """What is merged beside it sees the zeros that its parts saw, or none."""

        def build(net, x):
            relu = net.clip(self.chain(net, x, **options))
            return net.sum(first(net, relu, name="a"), second(net, relu, name="b"))

        both, alone, nothing = self.found(build)
        assert (both, len(alone), nothing) == ([*alone, "outer"], 1, [])

    def test_beside_an_op_that_sees_zeros_it_changes_nothing(self) -> None:
        def build(net, x):
            return net.sum(self.chain(net, x), net.conv(x, name="a"))

        assert self.found(build) == [["a"], []] or self.found(build) == [["outer"], []]

    def test_nothing_to_choose_from(self) -> None:
        assert self.found(lambda net, x: net.conv(x)) == [[]]


class TestOneOperand:
    """A sum of one hands it on times its coefficient."""

    def test_one_behind_the_other(self) -> None:
        """The operand of the second is an expression of each source once."""
        net = Branches()
        inner = net.sum(net.conv(net.input(1, 4, 5, 5), name="inner"), name="one")
        alone = net.sum(net.bn(inner, name="bn"), name="alone")
        net.output(net.conv(alone, name="outer"))
        assert not merges_of(net)

    def test_between_two(self) -> None:
        """No operand of it is the source itself, though it is one of its operand, too."""
        net = Branches()
        one = net.sum(net.conv(net.input(1, 4, 5, 5), 16, (1, 1), name="a"), name="one")
        net.output(net.conv(one, kernel=(1, 1), name="b"))
        assert names(net, merges_of(net)) == [("a", ("one", "b"))]

    def test_twice_in_a_row_around_two(self) -> None:
        net = Branches()
        x = net.input(1, 4, 5, 5)
        first = net.sum(net.conv(x, name="wide"), name="one")
        total = net.sum(first, net.conv(x, kernel=(1, 1), name="narrow"), name="sum")
        net.output(net.clip(net.sum(total, name="alone"), name="relu"))
        (merge,) = merges_of(net)
        assert merge.enters is None

    @pytest.mark.parametrize("coefficient", [-1.0, 0.5, 1.0])
    @pytest.mark.parametrize("merges", ["beside it", "into it"])
    def test_it_keeps_its_coefficient(self, coefficient, merges) -> None:
        """It was alone from the start: no other operand has left it."""
        net = Branches()
        x, r = net.input(1, 4, 5, 5), net.clip(net.input(1, 4, 5, 5))
        inner = r if merges == "beside it" else net.conv(x, name="a")
        other = net.conv(x, name="a") if merges == "beside it" else r
        alone = net.sum(inner, coefficients=(coefficient,), name="alone")
        net.output(net.sum(alone, other, net.conv(x, name="b"), name="sum"))
        gone = ("b",) if merges == "beside it" else ("alone", "b")
        assert names(net, merges_of(net)) == [("a", gone)]


class TestPadding:
    """An op of its own that pads, or that cuts a border off."""

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param({"value": 1.0}, id="ones"),
            pytest.param({"before": (0, 1, 1, 1)}, id="channels"),
            pytest.param({"before": (1, 0, 1, 1)}, id="samples"),
            pytest.param({"bias": True}, id="a bias in front of it"),
            pytest.param({"bn": True}, id="a BatchNorm in front of it"),
            pytest.param({"kernel": (3, 3)}, id="several taps in front of it"),
        ],
    )
    def test_it_stays(self, change) -> None:
        net = Branches()
        x = net.input(2, 4, 5, 5)
        kernel, before = change.get("kernel", (1, 1)), change.get("before", (0, 0, 1, 1))
        if any(before[:2]):
            net.padded(x, before, (0, 0, 1, 1))
            assert not net.parts
            return
        first = net.conv(x, 3, kernel, bias=change.get("bias", False), name="first")
        first = net.bn(first) if change.get("bn") else first
        padded = net.padded(first, before, (0, 0, 1, 1), change.get("value", 0.0))
        net.output(net.conv(padded, 4, (1, 1), name="last"))
        merges = merges_of(net)
        assert not [merge for merge in merges if merge.source == x]

    @pytest.mark.parametrize("padding", [(0, 0), (1, 1)])
    def test_in_front_of_a_convolution(self, padding) -> None:
        net = Branches()
        x = net.input(2, 4, 5, 5)
        padded = net.padded(x, (0, 0, 1, 2), (0, 0, 0, 1))
        net.output(net.conv(padded, padding=padding, name="conv"))
        (merge,) = merges_of(net)
        assert names(net, [merge]) == [("conv", ("pad",))]
        assert merge.window is not None
        assert merge.window.before == (1 + padding[0], 2 + padding[1])

    def test_behind_a_convolution_without_a_bias_in_a_sum(self) -> None:
        """The serial branch of a diverse branch block."""
        net = Branches()
        x = net.input(2, 4, 5, 5)
        padded = net.padded(net.conv(x, 4, (1, 1), bias=False, name="a"), (0, 0, 1, 1))
        serial = net.bn(net.conv(padded, padding=(0, 0), name="b"))
        pooled = net.bn(net.mean(net.bn(net.padded(x, (0, 0, 1, 1), name="other")), padding=0))
        net.output(net.sum(net.conv(x, name="c"), serial, pooled, name="sum"))
        (merge,) = merges_of(net)
        assert merge.source == x and len(merge.gone) == len(net.graph.ops) - 1

    def test_a_border_that_is_cut_off(self) -> None:
        """The branches of an asymmetric block without padding."""
        net = Branches()
        x = net.input(2, 4, 6, 6)
        square = net.conv(x, padding=(0, 0), name="square")
        tall = net.conv(net.padded(x, (0, 0, 0, -1), name="cut"), 4, (3, 1), padding=(0, 0))
        cut = net.padded(net.conv(x, 4, (1, 3), padding=(0, 0), name="flat"), (0, 0, -1, 0))
        net.output(net.sum(square, tall, cut, name="sum"))
        (merge,) = merges_of(net)
        assert merge.carrier == net.number("square")

    def test_a_convolution_cannot_cut(self) -> None:
        net = Branches()
        x = net.input(2, 4, 6, 6)
        net.output(net.conv(net.padded(x, (0, 0, -1, -1)), padding=(0, 0)))
        assert not merges_of(net)

    def test_behind_a_convolution_that_pads(self) -> None:
        net = Branches()
        x = net.input(2, 4, 6, 6)
        net.output(net.padded(net.conv(x, name="conv"), (0, 0, -1, -1)))
        (merge,) = merges_of(net)
        assert merge.window is not None and not merge.window.pads

    def test_it_costs_nothing(self) -> None:
        """So it pays for nothing: the pair of two depthwise taps has more of them as one."""
        net = Branches()
        x = net.input(1, 4, 5, 5)
        padded = net.padded(x, (0, 0, 3, 3))
        first = net.conv(padded, 4, (1, 3), padding=(0, 0), groups=4, bias=False, name="a")
        net.output(net.conv(first, 4, (3, 1), padding=(0, 0), groups=4, name="b"))
        assert names(net, merges_of(net)) == [("a", ("pad",))]


class TestBorders:
    """Something else around a tensor than zeros."""

    @staticmethod
    def block(*, bias: bool = False, bn: bool = True, change: Change = lambda b: b) -> Branches:
        """1x1, BatchNorm, what this makes of zeros around it, 3x3; beside a 3x3."""
        net = Branches()
        x = net.input(2, 4, 5, 5)
        made = net.conv(x, 4, (1, 1), bias=bias, name="first")
        made = net.bn(made) if bn else made
        op = net.graph.ops[-1]
        part = net.parts.get(len(net.graph.ops) - 1)
        shift = part.bias() if part and part.bias else getattr(op.role, "shift", np.zeros(4))
        padded = net.bordered(made, change(shift.reshape(-1)))
        second = net.conv(padded, padding=(0, 0), name="second")
        net.output(net.sum(second, net.conv(x, name="wide"), name="sum"))
        return net

    @pytest.mark.parametrize(
        "change",
        [
            lambda border: border * (1 + 1e-9),
            lambda border: border[::-1],
            lambda border: 0.0 * border,
            lambda border: border + np.array([0.0, 0.0, 0.0, np.nan]),
        ],
    )
    def test_something_else_than_is_made_of_zeros(self, change) -> None:
        assert not merges_of(self.block(change=change))

    def test_what_only_the_nearest_makes_of_zeros(self) -> None:
        """A bias of the first is none of zeros: its output is the source, which is one reader's."""
        (merge,) = merges_of(self.block(bias=True))
        assert merge.carrier != 0 and 0 not in merge.gone

    @pytest.mark.parametrize("options", [{}, {"bias": True, "bn": False}])
    def test_what_is_made_of_zeros(self, options) -> None:
        net = self.block(**options)
        (merge,) = merges_of(net)
        assert merge.carrier == net.number("wide") and merge.source == 0
        assert len(merge.gone) == len(net.graph.ops) - 1

    def test_what_is_read_without_its_border(self) -> None:
        net = self.block()
        inner = net.graph.ops[net.number("border")].inputs[0]
        net.output(net.clip(inner))
        assert not merges_of(net)

    def test_several_taps_in_front(self) -> None:
        net = Branches()
        x = net.input(2, 4, 5, 5)
        first = net.conv(x, name="first")
        bias = net.parts[0].bias
        assert bias is not None
        net.output(net.conv(net.bordered(first, bias()), padding=(0, 0)))
        assert not merges_of(net)


@pytest.mark.parametrize(
    ("negative", "count"),
    [(None, 0), (0.5, 0), ([1.0, 1.0, 0.9, 1.0], 0), (1.0, 1), ([1.0] * 4, 1)],
)
def test_an_activation_of_slope_1_is_in_nobodys_way(negative, count) -> None:
    net = Branches()
    x = net.input(2, 4, 5, 5)
    first = net.conv(x, 4, (1, 1), name="first")
    slopes = None if negative is None else np.array(negative).reshape(-1, 1, 1)

    def function(values):
        return [np.where(values[0] < 0, (0.5 if slopes is None else slopes) * values[0], values[0])]

    shape = net.shape(first)
    act = net.add(g.Homogeneous(slopes), [first], [shape], name="act", function=function)[0]
    net.output(net.conv(act, padding=(0, 0), name="last"))
    assert len(merges_of(net)) == count
