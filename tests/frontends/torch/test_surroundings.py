"""What a module's code keeps outside of it is as it was after a fold, and the fold begins there."""

from __future__ import annotations

import contextvars
import functools
import itertools
import logging
import os
import queue
import random
import sys
import threading
from array import array as array_of_numbers
from collections import ChainMap, OrderedDict, UserDict, defaultdict, deque
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.errors import NotProvenError, UnsupportedModelError
from bnfold.frontends.torch.surroundings import Surroundings
from tests.frontends.torch.support import assert_same, build, image, run
from tests.pairwise import pairwise

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


class Attributes(dict[str, int]):
    """As easydict, addict and their like have it: an attribute is an entry."""

    def __getattr__(self, name: str) -> int:
        return self[name]  # raises KeyError where others raise AttributeError

    def __setattr__(self, name: str, value: int) -> None:
        self[name] = value


class Recent(OrderedDict[int, int]):
    """Keeps its last entries, and has a way of its own to be changed."""

    def __setitem__(self, key: int, value: int) -> None:
        super().__setitem__(key, value)
        self.move_to_end(0)

    def clear(self) -> None:
        raise AssertionError("nobody may call it but the module")


class Listed(list[int]):
    def __len__(self) -> int:
        return 0

    def extend(self, more: Iterable[int]) -> None:
        raise AssertionError("nobody may call it but the module")


def table_of_defaults() -> Count:
    seen: defaultdict[str, int] = defaultdict(int)

    def count() -> float:
        seen["n"] += 1
        return seen["n"]

    return count


def table_of_counts() -> Count:
    seen: Counts[str] = Counts()

    def count() -> float:
        seen.update("n")
        return seen["n"]

    return count


def table_of_ones_own() -> Count:
    seen = Attributes(n=0)

    def count() -> float:
        seen.n += 1
        return seen.n

    return count


def table_in_order() -> Count:
    seen = Recent({0: 0, 5: 0})

    def count() -> float:
        seen[len(seen)] = 1
        return len(seen) + 100 * [*seen].index(0)

    return count


def list_of_ones_own() -> Count:
    seen = Listed()

    def count() -> float:
        seen.append(1)
        return seen.count(1)

    return count


def table_of_the_user() -> Count:
    seen = UserDict(n=0)

    def count() -> float:
        seen["n"] += 1
        return seen["n"]

    return count


def tables_in_a_row() -> Count:
    seen: ChainMap[str, int] = ChainMap({}, {"n": 0})

    def count() -> float:
        seen["n"] += 1
        return seen["n"]

    return count


def weak_table() -> Count:
    key, seen = Counter(), WeakKeyDictionary[Counter, int]()

    def count() -> float:
        seen[key] = seen.get(key, 0) + 1
        return seen[key]

    return count


def a_queue() -> Count:
    seen: queue.Queue[int] = queue.Queue()

    def count() -> float:
        seen.put(1)
        return seen.qsize()

    return count


def of_the_thread() -> Count:
    seen = threading.local()

    def count() -> float:
        seen.n = getattr(seen, "n", 0) + 1
        return seen.n  # type: ignore[no-any-return]

    return count


def plain_array() -> Count:
    seen = array_of_numbers("d", [0.0, 0.0])

    def count() -> float:
        seen[1] += 1
        return seen[1]

    return count


def bytes_that_grow() -> Count:
    seen = bytearray()

    def count() -> float:
        seen.append(1)
        return len(seen)

    return count


def array_of_objects() -> Count:
    seen = np.array([Counter()], dtype=object)
    return lambda: seen[0]()  # type: ignore[no-any-return]


def cache_of_results() -> Count:
    @functools.lru_cache
    def made(n: int) -> int:
        return n

    def count() -> float:
        return made(made.cache_info().currsize) + 1

    return count


def test_a_cache_keeps_what_it_had() -> None:
    """It can be emptied, and not be put back, so what a run adds stays."""
    count = cache_of_results()
    count()
    (made,) = (cell.cell_contents for cell in count.__closure__)  # type: ignore[attr-defined]
    bnfold.fold(build(Net(count, foldable=True)), image(1, 3, 4, 4), verify=False)
    hits = made.cache_info().hits
    assert made(0) == 0 and made.cache_info().hits == hits + 1


def logger() -> Count:
    seen = logging.getLogger("tests.surroundings")
    seen.n = 0  # type: ignore[attr-defined]

    def count() -> float:
        seen.n += 1  # type: ignore[attr-defined]
        return seen.n  # type: ignore[attr-defined,no-any-return]

    return count


settings = ModuleType("settings")
sys.modules["tests_surroundings_settings"] = settings


def imported() -> Count:
    settings.n = 0

    def count() -> float:
        settings.n += 1
        return settings.n  # type: ignore[no-any-return]

    return count


def imported_late() -> Count:
    settings.n = 0

    def count() -> float:
        import tests_surroundings_settings as ours  # type: ignore[import-not-found]

        ours.n += 1
        return ours.n  # type: ignore[no-any-return]

    return count


def set_in_a_package() -> Count:
    torch.backends.asked = 0  # type: ignore[attr-defined]

    def count() -> float:
        torch.backends.asked += 1  # type: ignore[attr-defined]
        return torch.backends.asked  # type: ignore[attr-defined,no-any-return]

    return count


def set_in_a_foreign_class() -> Count:
    nn.Identity.asked = 0  # type: ignore[assignment]

    def count() -> float:
        nn.Identity.asked += 1  # type: ignore[assignment,operator]
        return nn.Identity.asked  # type: ignore[return-value]

    return count


def environment() -> Count:
    os.environ["BNFOLD_TEST"] = "0"

    def count() -> float:
        os.environ["BNFOLD_TEST"] += "0"
        return len(os.environ["BNFOLD_TEST"])

    return count


def flag() -> Count:
    torch.use_deterministic_algorithms(False)

    def count() -> float:
        was = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        return float(was)

    return count


def flag_of_a_backend() -> Count:
    torch.backends.cudnn.benchmark = False

    def count() -> float:
        was = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        return float(was)

    return count


def dtype() -> Count:
    torch.set_default_dtype(torch.float32)

    def count() -> float:
        was = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return float(was is torch.float64)

    return count


@pytest.fixture(autouse=True)
def _flags_as_they_were() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    os.environ.pop("BNFOLD_TEST", None)


STATES = [
    *(number, tensor, array, a_list, a_window, a_set, a_table_in_a_table, turns, numbers, default),
    *(bound_next, bound_next_itself, bound_pop, bound_pop_itself),
    *(keyword, attribute_of_a_function, attribute_of_a_class, method, object_of_ones_own),
    *(with_slots, namespace, partial, a_global, a_global_tensor, context, drawn),
    *(drawn_by_pytorch, module),
    *(table_of_defaults, table_of_counts, table_of_ones_own, table_in_order, list_of_ones_own),
    *(table_of_the_user, tables_in_a_row, weak_table, a_queue, of_the_thread, plain_array),
    *(bytes_that_grow, array_of_objects, logger, imported, imported_late),
    *(set_in_a_package, set_in_a_foreign_class, environment, flag, flag_of_a_backend, dtype),
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


@pytest.mark.parametrize(("state", "foldable"), pairwise(STATES, [True, False], lambda state: ()))
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


class FirstIsOther(nn.Module):
    """Its first run takes another path, and it looks at a value: the reading without values, which
    has counted by then, is thrown away."""

    def __init__(self, count: Count, first: float) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)
        self.count, self.first = count, first

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        if self.count() == self.first:
            y = torch.sigmoid(y)
        if torch.isnan(x).any():
            raise ValueError("not a number")
        return self.conv(y)


@pytest.mark.parametrize("state", [*STATES, cache_of_results])
def test_a_reading_that_is_thrown_away_leaves_nothing(state: Callable[[], Count]) -> None:
    x = image(2, 3, 5, 5)

    def made() -> nn.Module:
        start()
        first = state()()
        start()
        torch.manual_seed(0)
        return build(FirstIsOther(state(), first))

    expected = made()
    runs = [run(expected, x) for _ in range(2)]
    net = made()
    folded, report = bnfold.fold(net, x)
    assert report.removed == 0
    for wanted in runs:
        assert_same(run(folded, x), wanted, 1e-9)


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


def test_a_generator_far_away_is_the_programs() -> None:
    """What runs a program holds some, and is reached from a global that the code names."""
    far: object = counting()
    for _ in range(10):
        far = [far]
    net = build(Net(lambda: float(far is None), foldable=True))
    assert bnfold.fold(net, image(1, 3, 4, 4)).report.removed == 1


def test_a_generator_that_an_object_holds_for_others() -> None:
    """A hook leads to what trains the module, and that to its batches."""
    trainer = SimpleNamespace(batches=counting(), log=[])
    net = build(Net(float, foldable=True))
    net.conv.register_forward_hook(lambda module, inputs, output: trainer.log.clear())
    bnfold.fold(net, image(1, 3, 4, 4))
    assert next(trainer.batches) == 1.0


@pytest.mark.parametrize("make", [dict, lambda pairs: dict(pairs).items(), set, reversed])
def test_an_iterator_that_nobody_moves_stays_the_very_one(make: Callable[[Any], Any]) -> None:
    net = build(Net(float, foldable=True))
    net.held = iter(make([(1, 2), (3, 4)]))
    before = net.held
    bnfold.fold(net, image(1, 3, 4, 4))
    assert net.held is before and len(list(before)) == 2


def test_a_generator_that_is_at_its_end_does_no_harm() -> None:
    values = (number for number in [1.0])
    assert list(values) == [1.0]
    net = build(Net(lambda: len(list(values)), foldable=True))
    assert bnfold.fold(net, image(1, 3, 4, 4)).report.removed == 1


def test_foreign_code_is_left_alone() -> None:
    surroundings = Surroundings(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    assert not surroundings._notes


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


# ------------------------------------------------------------- what the module itself holds


class Locked(nn.Module):
    """It cannot be copied, so it is run itself; its first run takes another path."""

    def __init__(self, held: object, step: Callable[[Any], object], *, looks: bool) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.bn, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)
        self.held, self.step, self.looks = held, step, looks
        self.first = said(held)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        if said(self.held) == self.first:
            y = torch.sigmoid(y)
        self.step(self)
        if self.looks and torch.isnan(x).any():
            raise ValueError("not a number")
        return self.conv(y)


def said(held: Any) -> str:
    """What it holds, in words."""
    if isinstance(held, Counter | Slotted):
        return str(held.n)
    if isinstance(held, nn.Module):
        return said(held.seen)
    if isinstance(held, Iterator):
        return str(held.__reduce__()[1:])  # the address is another one
    if isinstance(held, list | dict | deque | tuple) and type(held) is not Attributes:
        return str([*map(said, held.values() if isinstance(held, dict) else held)])
    return repr(held)


def put(net: Any) -> None:
    net.held[len(net.held)] = 1


def counted(net: Any) -> None:
    net.held.n += 1


def appended(net: Any) -> None:
    net.held.append(1)


def added(net: Any) -> None:
    net.held += 1


def outside() -> object:
    """A module that is a part of no other."""
    part = nn.Linear(1, 1)
    part.seen = [1]
    return (part,)


HELD: list[tuple[Callable[[], object], Callable[[Any], object]]] = [
    (lambda: 0, lambda net: setattr(net, "held", net.held + 1)),
    (list, appended),
    (dict, put),
    (set, lambda net: net.held.add(len(net.held))),
    (lambda: deque([1], maxlen=4), appended),
    (lambda: Recent({0: 0, 5: 0}), put),
    (lambda: Attributes(n=0), counted),
    (lambda: defaultdict(int), put),
    (Counts, lambda net: net.held.update("n")),
    (Counter, counted),
    (Slotted, counted),
    (lambda: SimpleNamespace(n=0), counted),
    (lambda: {"a": [Counter()]}, lambda net: net.held["a"][0]()),
    (lambda: torch.zeros(1), added),
    (lambda: np.zeros(100), added),
    (lambda: array_of_numbers("i", [0]), appended),
    (bytearray, appended),
    (lambda: iter(range(100)), lambda net: next(net.held)),
    (outside, lambda net: net.held[0].seen.append(1)),
]


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("number", range(len(HELD)))
def test_a_module_that_cannot_be_copied(number: int, looks: bool) -> None:
    make, step = HELD[number]

    def made() -> Locked:
        torch.manual_seed(0)
        return build(Locked(make(), step, looks=looks))  # type: ignore[return-value]

    x, expected, net = image(2, 3, 5, 5), made(), made()
    runs = [run(expected, x) for _ in range(2)]
    assert bnfold.inspect(net, x).removed == 0
    assert said(net.held) == net.first
    folded, _ = bnfold.fold(net, x, inplace=True)
    assert folded is net and said(net.held) == net.first
    for wanted in runs:
        assert_same(run(folded, x), wanted, 1e-9)
