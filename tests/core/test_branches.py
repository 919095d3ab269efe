"""A sum taken apart into branches: how far each goes back, and what of it may go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnfold.core import branches as branches_of_sums
from bnfold.core import graph as g
from bnfold.core import labels
from bnfold.core.branches import Branch, Branches, leaves_of, paths_of
from bnfold.core.laws import bind
from bnfold.core.reasons import Reason
from tests.core.interpreter import Network

SHAPE = (1, 3, 4, 4)
ONES, HALVES = np.ones(3), np.full(3, 0.5)
FACTOR = {"removal": g.Removal.UNASKED, "factors": g.Parameter.FIXED, "summands": g.Parameter.FIXED}


def of(net: Network, *, banned: frozenset[int] = frozenset()) -> Branches:
    return Branches(bind(net.graph), banned)


def of_sum(net: Network, **how: Any) -> tuple[Branch, ...]:
    """The branches of the sum named "sum"."""
    number = net.number("sum")
    role = net.graph.ops[number].role
    assert isinstance(role, g.Sum)
    return of(net, **how).of(number, role)


def one(net: Network, x: int, **how: Any) -> Branch:
    """The branch that x is, beside an input."""
    net.output(net.clip(net.sum(net.input(*SHAPE), x, name="sum")))
    return of_sum(net, **how)[1]


def source(net: Network) -> int:
    return net.clip(net.input(*SHAPE), name="source")


def same(net: Network, x: int, function: Any = list) -> int:
    return net.view(function, x)[0]


def test_an_operand_alone() -> None:
    net = Network()
    x = source(net)
    branch = one(net, x)
    assert (branch.chain, branch.ops, branch.free, branch.position) == ([x], [], 0, 1)
    assert (branch.factor, branch.inner, branch.below) == (1.0, -1, ())


def test_coefficients_and_an_operand_times_0() -> None:
    net = Network()
    a, b, c = (net.input(*SHAPE) for _ in "abc")
    net.output(net.clip(net.sum(a, b, c, coefficients=(2.0, 0.0, -3.0), name="sum")))
    assert [(b.factor, b.position) for b in of_sum(net)] == [(2.0, 0), (-3.0, 2)]


class TestChains:
    def test_steps_that_may_go(self) -> None:
        net = Network()
        x = source(net)
        y = net.affine(x, HALVES, ONES, name="one")
        branch = one(net, net.affine(y, HALVES, ONES, name="two"))
        assert branch.chain[1:] == [y, x]
        assert branch.ops == [net.number("two"), net.number("one")] and branch.free == 2

    def test_behind_one_that_stays_none_is_free(self) -> None:
        net = Network()
        x = net.affine(source(net), HALVES, ONES, name="one")
        x = net.affine(x, HALVES, ONES, name="kept", removal=g.Refusal(Reason.HOOK))
        branch = one(net, net.affine(x, HALVES, ONES, name="two"))
        assert len(branch.chain) == 4 and branch.free == 1

    def test_banned_steps_stay(self) -> None:
        net = Network()
        x = net.affine(source(net), HALVES, ONES, name="one")
        x = net.affine(x, HALVES, ONES, name="two")
        branch = one(net, x, banned=frozenset({net.number("two")}))
        assert len(branch.chain) == 3 and branch.free == 0

    @pytest.mark.parametrize("scale", [[0.5, 0.0, 2.0], [0.0, 0.0, 0.0]])
    def test_a_step_that_stays_and_forgets_a_channel_ends_it(self, scale) -> None:
        net = Network()
        x = net.affine(source(net), scale, ONES, removal=g.Refusal(Reason.HOOK))
        assert one(net, x).ops == []

    def test_a_step_that_stays_and_adds_nothing(self) -> None:
        net = Network()
        x = net.affine(source(net), HALVES, [0.0] * 3, removal=g.Refusal(Reason.HOOK))
        assert len(one(net, x).ops) == 1

    def test_what_is_not_affine_ends_it(self) -> None:
        net = Network()
        assert one(net, net.sigmoid(net.affine(source(net), HALVES, ONES))).ops == []

    def test_a_step_of_unknown_constants_does_not_go(self) -> None:
        net = Network()
        x = net.affine(source(net), HALVES, ONES, name="a", factors=g.Parameter.UNKNOWN)
        net.output(net.clip(x))
        assert not of(net).may_go(net.number("a"))

    def test_which_may_go(self) -> None:
        net = Network()
        x = net.affine(source(net), HALVES, ONES, name="wanted")
        x = net.affine(x, HALVES, ONES, name="unasked", removal=g.Removal.UNASKED)
        net.output(net.clip(net.affine(x, HALVES, ONES, name="banned")))
        found = of(net, banned=frozenset({net.number("banned")}))
        names = ("source", "wanted", "unasked", "banned")
        assert [name for name in names if found.may_go(net.number(name))] == ["wanted"]


class TestFactors:
    """Steps that nobody asks about, that stay as they are, and that everything passes."""

    def free(self, scale: Any = HALVES, shift: Any = (0.0, 0.0, 0.0), **role: Any) -> int:
        net = Network()
        branch = one(net, net.affine(source(net), scale, shift, **{**FACTOR, **role}))
        return branch.free

    def test_a_product(self) -> None:
        assert self.free() == 1

    def test_what_does_nothing(self) -> None:
        assert self.free(scale=ONES) == 1

    @pytest.mark.parametrize(
        ("scale", "role", "passed"),
        [
            (ONES, {}, 1),
            (HALVES, {}, 0),
            ([1.0, 1.0, 0.5], {}, 0),
            (ONES, {"factors": g.Parameter.EDITABLE}, 0),
        ],
    )
    def test_what_is_too_large_to_follow(self, scale, role, passed, monkeypatch) -> None:
        """It has no variables then."""
        monkeypatch.setattr(labels, "MAX_PAIRS", 2)
        net = Network()
        branch = one(net, net.affine(source(net), scale, [0.0] * 3, **{**FACTOR, **role}))
        assert (branch.free, len(branch.ops)) == (passed, passed)

    def test_what_adds_something_is_none(self) -> None:
        assert self.free(shift=[0.0, 0.1, 0.0]) == 0

    def test_what_forgets_a_channel_is_none(self) -> None:
        assert self.free(scale=[0.5, 0.0, 0.5]) == 0

    @pytest.mark.parametrize("edited", ["factors", "summands"])
    def test_what_is_edited_is_none(self, edited) -> None:
        assert self.free(**{edited: g.Parameter.EDITABLE}) == 0

    def test_what_is_edited_where_it_can_be_is_none(self) -> None:
        both = dict.fromkeys(("factors", "summands"), g.Parameter.EDITABLE)
        assert self.free(**both) == 0

    def test_a_reported_one_is_none(self) -> None:
        assert self.free(removal=g.Refusal(Reason.HOOK)) == 0

    def test_a_module_that_is_called_twice_is_none(self) -> None:
        assert self.free(tie="m") == 0

    def test_one_of_unknown_constants_is_none(self) -> None:
        assert self.free(factors=g.Parameter.UNKNOWN) == 0


class TestInnerSums:
    def two_deep(self, **between: Any) -> Network:
        """3 * a + bn(2 * (bn(b) - c))"""
        net = Network()
        a, b, c = (net.clip(net.input(*SHAPE), name=name) for name in "abc")
        b = net.affine(b, HALVES, ONES, name="first")
        b = net.affine(b, HALVES, ONES, name="second")
        inner = net.sum(b, c, coefficients=(2.0, -2.0), name="inner")
        step = net.affine(inner, HALVES, ONES, name="step", **between)
        step = net.affine(step, HALVES, ONES, name="last", **between)
        net.output(net.clip(net.sum(a, step, coefficients=(3.0, 1.0), name="sum")))
        return net

    def test_what_is_below(self) -> None:
        net = self.two_deep()
        first, second = of_sum(net)
        assert first.below == () and second.inner == net.number("inner")
        assert [(b.factor, b.position, len(b.ops)) for b in second.below] == [
            (2.0, 0, 2),
            (-2.0, 1, 0),
        ]
        assert (second.free, second.position, len(second.ops)) == (2, 1, 2)

    def test_leaves(self) -> None:
        first, second = of_sum(self.two_deep())
        assert [*leaves_of((first, second))] == [first, *second.below]

    def test_paths(self) -> None:
        net = self.two_deep()
        branches = of_sum(net)
        numbers = {name: net.number(name) for name in ("sum", "inner", "step", "last")}
        found = [path for _, path in paths_of(branches, numbers["sum"])]
        behind = ((numbers["step"], 0), (numbers["last"], 0), (numbers["sum"], 1))
        assert found == [
            ((numbers["sum"], 0),),
            ((numbers["inner"], 0), *behind),
            ((numbers["inner"], 1), *behind),
        ]
        assert [leaf for leaf, _ in paths_of(branches, 0)] == [*leaves_of(branches)]

    def test_behind_a_step_that_stays_it_is_not_ours(self) -> None:
        net = self.two_deep(removal=g.Refusal(Reason.HOOK))
        _, second = of_sum(net)
        assert second.below == () and second.inner == -1

    @pytest.mark.parametrize("place", ["sum", "behind the step", "returned"])
    def test_what_somebody_else_reads_is_not_ours(self, place) -> None:
        net = Network()
        inner = net.sum(net.input(*SHAPE), net.input(*SHAPE), name="inner")
        step = net.affine(inner, HALVES, ONES)
        net.output(net.clip(net.sum(net.input(*SHAPE), step, name="sum")))
        read = step if place == "behind the step" else inner
        net.output(read if place == "returned" else net.sigmoid(read))
        _, second = of_sum(net)
        assert second.below == () and second.inner == -1


class TestViews:
    def test_copies_are_passed(self) -> None:
        net = Network()
        x = source(net)
        y = same(net, net.affine(x, HALVES, ONES))
        branch = one(net, y)
        assert branch.chain[-1] == x and branch.free == 2

    @pytest.mark.parametrize(
        "function",
        [
            lambda xs: [xs[0][:, ::-1]],
            lambda xs: [np.swapaxes(xs[0], 2, 3)],
            lambda xs: [np.broadcast_to(xs[0][:, :1], xs[0].shape)],
        ],
    )
    def test_what_moves_something_is_not(self, function) -> None:
        net = Network()
        assert one(net, same(net, net.affine(source(net), HALVES, ONES), function)).ops == []

    def test_another_shape_is_not(self) -> None:
        net = Network()
        x = net.view(lambda xs: [np.reshape(xs[0], (1, 3, 16))], source(net))[0]
        net.output(net.clip(net.sum(x, net.input(1, 3, 16), name="sum")))
        assert of_sum(net)[0].ops == []

    def test_one_of_several_outputs_is_not(self) -> None:
        net = Network()
        first, second = net.view(lambda xs: [xs[0], xs[0]], source(net))
        net.output(net.clip(second))
        assert one(net, first).ops == []

    def test_one_of_several_inputs_is_not(self) -> None:
        net = Network()
        first = net.view(lambda xs: [xs[0]], source(net), net.input(*SHAPE))[0]
        assert one(net, first).ops == []

    def test_labels_that_are_not_spread_out(self) -> None:
        """A view may answer with fewer elements that say the same."""
        net = Network()
        thin = g.View(lambda xs: [np.asarray(xs[0])[0]])
        x = net.add(thin, [source(net)], [SHAPE], function=list)[0]
        assert len(one(net, x).ops) == 1

    def test_each_is_asked_once(self) -> None:
        asked = []
        net = Network()
        x = same(net, source(net), lambda xs: asked.append(1) or xs)
        net.output(net.clip(x), net.clip(net.sum(net.input(*SHAPE), x, name="sum")))
        found = of(net)
        before = len(asked)
        assert [*found.sources(x)] == [x, net.graph.ops[net.number("source")].outputs[0]]
        assert [*found.sources(x)] and len(asked) == before + 1

    @pytest.mark.parametrize(("most", "passed"), [(48, 1), (47, 0)])
    def test_large_ones_are_not_asked(self, most, passed, monkeypatch) -> None:
        monkeypatch.setattr(branches_of_sums, "_MOST_ELEMENTS", most)
        net = Network()
        assert len(one(net, same(net, source(net))).ops) == passed

    def test_sources(self) -> None:
        net = Network()
        x = source(net)
        y = same(net, x)
        z = same(net, y)
        turned = same(net, z, lambda xs: [xs[0][:, ::-1]])
        net.output(net.clip(turned))
        found = of(net)
        assert [*found.sources(z)] == [z, y, x]
        assert [*found.sources(turned)] == [turned]
        given = net.graph.inputs[0][0]
        assert [*found.sources(given)] == [given]
