"""What a module's code keeps outside of it is as it was after a fold, and the fold begins there."""

from __future__ import annotations

import contextvars
import functools
import itertools
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.errors import NotProvenError, UnsupportedModelError
from bnfold.frontends.torch.surroundings import Surroundings
from tests.frontends.torch.support import assert_same, build, image, run

Count = Callable[[], float]
"""Moves on, and tells how often it was asked."""
TOTAL = 0
SEEN = torch.zeros(1, dtype=torch.float64)
TURN: contextvars.ContextVar[int] = contextvars.ContextVar("turn", default=0)


def number() -> Count:
    n = 0

    def count() -> float:
        nonlocal n
        n += 1
        return n

    return count


def tensor() -> Count:
    seen = torch.zeros(1)

    def count() -> float:
        return seen.add_(1).item()

    return count


def array() -> Count:
    seen = np.zeros(3)

    def count() -> float:
        seen[1] += 1
        return float(seen[1])

    return count


def a_list() -> Count:
    seen: list[int] = []

    def count() -> float:
        seen.append(1)
        return len(seen)

    return count


def a_window() -> Count:
    seen: deque[float] = deque([0.5, 1.5], maxlen=4)

    def count() -> float:
        seen.append(sum(seen))
        return seen[-1]

    return count


def a_set() -> Count:
    seen: set[int] = set()

    def count() -> float:
        seen.add(len(seen))
        return len(seen)

    return count


def a_table_in_a_table() -> Count:
    seen: dict[str, dict[str, int]] = {"runs": {}}

    def count() -> float:
        seen["runs"]["n"] = seen["runs"].get("n", 0) + 1
        return seen["runs"]["n"]

    return count


def turns() -> Count:
    parts = itertools.cycle([1.0, 2.0, 3.0, 5.0])
    return lambda: next(parts)


def numbers() -> Count:
    parts = iter([float(n) for n in range(1000)])
    return lambda: next(parts)


def bound_next() -> Count:
    following = itertools.count(1.0, 2.0).__next__
    return lambda: following()


def bound_next_itself() -> Count:
    return itertools.count(1.0, 2.0).__next__


def bound_pop() -> Count:
    following = [float(n) for n in range(1000)].pop
    return lambda: following()


def bound_pop_itself() -> Count:
    return [float(n) for n in range(1000)].pop


def default() -> Count:
    def count(seen: list[int] = [0]) -> float:  # noqa: B006  # people do
        seen[0] += 1
        return seen[0]

    return count


def keyword() -> Count:
    def count(*, seen: dict[str, int] = {"n": 0}) -> float:  # noqa: B006
        seen["n"] += 1
        return seen["n"]

    return count


def attribute_of_a_function() -> Count:
    def count() -> float:
        count.n += 1  # type: ignore[attr-defined]
        return count.n  # type: ignore[attr-defined,no-any-return]

    count.n = 0  # type: ignore[attr-defined]
    return count


class Counter:
    total: ClassVar[int] = 0

    def __init__(self) -> None:
        self.n = 0

    def __call__(self) -> float:
        self.n += 1
        return self.n


class Slotted:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0

    def __call__(self) -> float:
        self.n += 1
        return self.n


def attribute_of_a_class() -> Count:
    def count() -> float:
        Counter.total += 1
        return Counter.total

    return count


def method() -> Count:
    return Counter().__call__


def object_of_ones_own() -> Count:
    counter = Counter()
    return lambda: counter()


def with_slots() -> Count:
    counter = Slotted()
    return lambda: counter()


def namespace() -> Count:
    seen = SimpleNamespace(n=0)

    def count() -> float:
        seen.n += 1
        return seen.n  # type: ignore[no-any-return]

    return count


def partial() -> Count:
    def count(seen: list[int]) -> float:
        seen.append(1)
        return len(seen)

    return functools.partial(count, [])


def a_global() -> Count:
    def count() -> float:
        global TOTAL
        TOTAL += 1
        return TOTAL

    return count


def a_global_tensor() -> Count:
    return lambda: SEEN.add_(1).item()


def context() -> Count:
    def count() -> float:
        TURN.set(TURN.get() + 1)
        return TURN.get()

    return count


def drawn() -> Count:
    generator = random.Random(3)
    return lambda: generator.random()


def drawn_by_pytorch() -> Count:
    generator = torch.Generator().manual_seed(3)
    return lambda: torch.rand((), generator=generator).item()


def module() -> Count:
    norm = nn.Linear(1, 1).double()
    norm.register_buffer("seen", torch.zeros(1))

    def count() -> float:
        norm.seen += 1
        return float(norm.seen)

    return count


STATES = [
    *(number, tensor, array, a_list, a_window, a_set, a_table_in_a_table, turns, numbers, default),
    *(bound_next, bound_next_itself, bound_pop, bound_pop_itself),
    *(keyword, attribute_of_a_function, attribute_of_a_class, method, object_of_ones_own),
    *(with_slots, namespace, partial, a_global, a_global_tensor, context, drawn),
    *(drawn_by_pytorch, module),
]


class Net(nn.Module):
    def __init__(self, count: Count, *, foldable: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.count, self.foldable = count, foldable

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y if self.foldable else torch.sigmoid(y)) + self.count()


@pytest.mark.parametrize("foldable", [True, False])
@pytest.mark.parametrize("state", STATES)
def test_both_go_on_from_where_the_given_one_stood(
    state: Callable[[], Count], foldable: bool
) -> None:
    """Also where nothing is removed, and so nothing is proven."""
    x = image(2, 3, 5, 5)
    for is_folded in (True, False):
        start()
        expected = build(Net(state(), foldable=foldable))
        runs = [run(expected, x) for _ in range(4)]
        start()
        net = build(Net(state(), foldable=foldable))
        assert_same(run(net, x), runs[0], 1e-9)
        folded, report = bnfold.fold(net, x)
        assert report.removed <= foldable
        assert report.removed == foldable or state in ASKED
        for wanted in runs[1:]:
            assert_same(run(folded if is_folded else net, x), wanted, 1e-9)


def start() -> None:
    """What all of them share."""
    global TOTAL
    TOTAL = Counter.total = 0
    SEEN.zero_()
    TURN.set(0)


ASKED = (tensor, a_global_tensor, drawn_by_pytorch, module)
"""Values of tensors, which the path may hang on."""


def test_what_was_put_in_is_taken_out_again() -> None:
    class Holder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            type(self).seen = x  # type: ignore[attr-defined]
            box.append(x)
            late["x"] = x
            return x

    box: list[Tensor] = []
    late: dict[str, Tensor] = {}
    holder = Holder()
    with Surroundings(holder).restoring():
        holder(torch.ones(1))
        assert box and late
    assert not box and not late and not hasattr(Holder, "seen")


def test_an_empty_cell_is_empty_again() -> None:
    def make() -> tuple[nn.Module, Callable[[], bool]]:
        class Late(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                nonlocal made
                made = x
                return x

        def is_made() -> bool:
            try:
                return made is not None
            except NameError:
                return False

        if False:
            made = None
        return Late(), is_made

    late, is_made = make()
    surroundings = Surroundings(late)
    late(torch.ones(1))
    assert is_made()
    surroundings.restore()
    assert not is_made()


def test_objects_stay_the_very_ones() -> None:
    """Who else holds them goes on with them."""
    count = a_list()
    net = build(Net(count, foldable=True))
    (seen,) = (cell.cell_contents for cell in count.__closure__)  # type: ignore[attr-defined]
    bnfold.fold(net, image(1, 3, 4, 4))
    assert count.__closure__[0].cell_contents is seen and seen == []  # type: ignore[attr-defined]


def test_also_where_the_fold_is_refused() -> None:
    def both() -> Count:
        counter, lock = number(), threading.Lock()

        def count() -> float:
            with lock:
                return counter() + random.SystemRandom().random()

        count.counter = counter  # type: ignore[attr-defined]
        return count

    count = both()
    with pytest.raises(NotProvenError):
        bnfold.fold(build(Net(count, foldable=True)), image(1, 3, 4, 4))
    assert count.counter() == 1  # type: ignore[attr-defined]


def counting() -> Iterator[float]:
    yield from itertools.count(1.0)


ENDLESS = counting()


def in_a_closure(module: nn.Module) -> Callable[[], float]:
    values = counting()
    return lambda: next(values)


def in_an_attribute(module: nn.Module) -> Callable[[], float]:
    module.values = counting()
    return lambda: next(module.values)


def in_a_list(module: nn.Module) -> Callable[[], float]:
    module.held = [counting()]
    return lambda: next(module.held[0])


def in_a_default(module: nn.Module) -> Callable[[], float]:
    def count(values: Iterator[float] = counting()) -> float:  # noqa: B008
        return next(values)

    return count


def in_a_global(module: nn.Module) -> Callable[[], float]:
    return lambda: next(ENDLESS)


def a_method_of_one(module: nn.Module) -> Callable[[], float]:
    values = counting()
    return values.__next__


PLACES = [in_a_closure, in_an_attribute, in_a_list, in_a_default, in_a_global, a_method_of_one]


@pytest.mark.parametrize("place", PLACES)
def test_a_generator_is_not_moved(place: Callable[[nn.Module], Callable[[], float]]) -> None:
    """It cannot be put back, so nothing is run."""
    net = build(Net(float, foldable=True))
    net.count = place(net)
    before = net.count()
    with pytest.raises(UnsupportedModelError, match=r"generator \(counting\)") as raised:
        bnfold.fold(net, image(1, 3, 4, 4))
    assert "inplace=True" in str(raised.value)
    assert net.count() == before + 1


def test_a_generator_that_is_at_its_end_does_no_harm() -> None:
    values = (number for number in [1.0])
    assert list(values) == [1.0]
    net = build(Net(lambda: len(list(values)), foldable=True))
    assert bnfold.fold(net, image(1, 3, 4, 4)).report.removed == 1


def test_foreign_code_is_left_alone() -> None:
    surroundings = Surroundings(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    assert not surroundings._undo


@pytest.mark.parametrize("inplace", [True, False])
def test_weights_of_the_model_are_no_surroundings(inplace: bool) -> None:
    """A fold in place writes to them, and whoever holds one besides."""

    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.call = functools.partial(torch.nn.functional.conv2d, weight=self.conv.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.call(x)) + self.bn(self.conv(x))

    net, x = build(Held()), image(2, 3, 4, 4)
    expected = run(net, x)
    folded, _ = bnfold.fold(net, x, inplace=inplace)
    assert_same(expected, run(folded, x), 1e-9)
