"""Programs that do something else on their third run, or later: counters, caches, warm-ups.

Each is run nine times in a row beside its fold, both as they were made.
"""

from __future__ import annotations

import itertools
import types
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold import Reason
from bnfold.frontends.torch.left_behind import moved, traces_of
from tests.frontends.torch.support import assert_same, image, randomize, reasons
from tests.pairwise import pairwise
from tests.tolerances import RELATIVE

X = image(2, 3, 5, 5)
LATER = [image(2, 3, 5, 5, seed=seed) for seed in range(9)]


class Net(nn.Module):
    """Convolution, BatchNorm, a head with another one, and what a case does with them."""

    def __init__(self, act: Callable[[Net, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.head, self.last = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.register_buffer("ticks", torch.zeros((), dtype=torch.long))
        self.register_buffer("time", torch.zeros(1))
        self.act, self.step, self.shape = act, 0, None
        self.past: list[Tensor] = []
        self.frames: deque[Tensor] = deque(maxlen=4)
        self.turns = itertools.cycle([0, 0, 1])
        self.place = types.SimpleNamespace(step=0)
        self.slots, self.array = Slots(), np.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, self.conv(x), x)

    def normal(self, y: Tensor) -> Tensor:
        return self.last(self.head(self.bn(y).relu()))

    def plain(self, y: Tensor) -> Tensor:
        return self.last(self.head(y.relu()))


class Filled(Net):
    """With more places, behind the words of a vocabulary."""

    def __init__(self, act: Callable[[Net, Tensor, Tensor], Tensor]) -> None:
        super().__init__(act)
        self.words = {f"word {number}": [number] for number in range(30_000)}
        self.far, self.link = Link(0), Link(30)
        self.steps, self.hits, self.bins = iter(range(1, 1000)), torch.zeros(20), np.zeros(200)
        self.objects = np.array([Link(0)], dtype=object)
        self.plain_array, self.bytes = array("i", [0]), bytearray(1)
        self.counts, self.numbers = Counter(step=0), {0}


class Slots:
    __slots__ = ("step",)

    def __init__(self) -> None:
        self.step = 0


def every_third(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.step += 1
    return s.plain(y) if s.step % 3 == 0 else s.normal(y)


def every_fifth(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.step = (s.step + 1) % 5
    return s.plain(y) if s.step == 4 else s.normal(y)


def adds_every_third(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.step += 1
    return s.normal(y) + y if s.step % 3 == 0 else s.normal(y)


def warms_up(s: Net, y: Tensor, x: Tensor) -> Tensor:
    if s.step < 4:
        s.step += 1
        return s.normal(y)
    return s.plain(y)


def in_a_buffer(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.ticks += 1
    return s.normal(y) if int(s.ticks) % 3 else s.plain(y)


def in_a_fractional_buffer(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.time.add_(0.5)
    return s.plain(y) if (s.time % 2 == 0).item() else s.normal(y)


def by_the_length(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.past = [*s.past[-3:], y]
    return s.plain(sum(s.past) / 4) if len(s.past) == 4 else s.normal(y)


def by_frames(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.frames.append(s.bn(y))
    if len(s.frames) < 4:
        return s.plain(s.frames[-1])
    return s.plain(torch.stack([*s.frames]).mean(0))


def by_turns(s: Net, y: Tensor, x: Tensor) -> Tensor:
    return s.plain(y) if next(s.turns) else s.normal(y)


def in_an_object(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.place.step += 1
    return s.plain(y) if s.place.step % 3 == 0 else s.normal(y)


def in_slots(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.slots.step += 1
    return s.plain(y) if s.slots.step % 4 == 0 else s.normal(y)


def in_numpy(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.array += 1
    return s.plain(y) if s.array[0] % 3 == 0 else s.normal(y)


def one_size_often(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.step = s.step + 1 if s.shape == x.shape else 0
    s.shape = x.shape
    return s.plain(y) if s.step >= 3 else s.normal(y)


def resets_eps(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.step += 1
    s.bn.eps = 1.0 if s.step >= 3 else s.bn.eps
    return s.normal(y)


def trains_later(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.step += 1
    s.bn.train(s.step > 3)
    return s.normal(y)


def goes_later(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.step += 1
    s.bn = nn.Identity() if s.step >= 3 else s.bn
    return s.normal(y)


def learns_later(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.step += 1
    if s.step > 3:
        s.bn.running_mean.mul_(0.9).add_(y.mean((0, 2, 3)) * 0.1)
    return s.normal(y)


def writes_later(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.step += 1
    if s.step == 3:
        s.bn.weight.data.mul_(2.0)
    return s.normal(y)


def weighs_later(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.step += 1
    return s.normal(y) * (1.0 if s.step < 4 else float(s.head.weight.abs().mean()))


def asks_the_weight_first(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.step += 1
    factor = 1.0 if s.step < 4 else float(s.bn.weight.abs().mean())
    return s.normal(y) * factor


def computes_with_the_weight_later(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.step += 1
    return s.normal(y) if s.step < 4 else s.normal(y) + s.head.bias.exp().mean()


class Link:
    def __init__(self, depth: int) -> None:
        self.step, self.inner = 0, Link(depth - 1) if depth else None


def behind_a_vocabulary(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.far.step += 1
    return s.plain(y) if s.far.step % 3 == 0 else s.normal(y)


def deep_inside(s: Net, y: Tensor, x: Tensor) -> Tensor:
    link = s.link
    while link.inner is not None:
        link = link.inner
    link.step += 1
    return s.plain(y) if link.step % 3 == 0 else s.normal(y)


def in_an_iterator(s: Net, y: Tensor, x: Tensor) -> Tensor:
    return s.plain(y) if next(s.steps) % 3 == 0 else s.normal(y)


def in_a_long_tensor(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.hits[17] += 1
    return s.plain(y) if int(s.hits[17]) % 3 == 0 else s.normal(y)


def in_a_long_array(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.bins[170] += 1
    return s.plain(y) if s.bins[170] % 3 == 0 else s.normal(y)


def in_an_array_of_objects(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.objects[0].step += 1
    return s.plain(y) if s.objects[0].step % 3 == 0 else s.normal(y)


def in_a_plain_array(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.plain_array[0] += 1
    return s.plain(y) if s.plain_array[0] % 3 == 0 else s.normal(y)


def in_bytes(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.bytes[0] += 1
    return s.plain(y) if s.bytes[0] % 3 == 0 else s.normal(y)


def in_a_table_of_ones_own(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.counts["step"] += 1
    return s.plain(y) if s.counts["step"] % 3 == 0 else s.normal(y)


def in_a_set(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.numbers = {max(s.numbers) + 1}
    return s.plain(y) if s.numbers == {3} else s.normal(y)


PROGRAMS = [
    *(behind_a_vocabulary, deep_inside, in_an_iterator, in_a_long_tensor, in_a_long_array),
    *(in_an_array_of_objects, in_a_plain_array, in_bytes, in_a_table_of_ones_own, in_a_set),
    *(weighs_later, asks_the_weight_first, computes_with_the_weight_later),
    *(every_third, every_fifth, adds_every_third, warms_up, in_a_buffer, in_a_fractional_buffer),
    *(by_the_length, by_frames, by_turns, in_an_object, in_slots, in_numpy, one_size_often),
    *(resets_eps, trains_later, goes_later, learns_later, writes_later),
]


FAR = PROGRAMS[:10]


def net(act: Callable[[Net, Tensor, Tensor], Tensor]) -> Net:
    torch.manual_seed(0)
    return randomize((Filled if act in FAR else Net)(act)).double()


def outputs(model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return [model(x) for x in LATER]


WAYS: dict[str, dict[str, bool]] = {
    "proven": {},
    "unproven": {"verify": False},
    "in place": {"inplace": True},
}


@pytest.mark.parametrize(("act", "way"), pairwise(PROGRAMS, [*WAYS], lambda act: ()))
def test_right_in_every_run(act, way):
    options = WAYS[way]
    expected = outputs(net(act))
    model = net(act)
    folded, report = bnfold.fold(model, X, **options)
    assert report.kept, "not all are there in every run"
    assert_same(expected, outputs(folded), RELATIVE["float64"])
    if folded is not model:
        assert_same(expected, outputs(model), 0.0)


# ------------------------------------------------------------- what lies outside of the module


OUTSIDE = [0]


class Outside(Net):
    count = 0

    def __init__(self, act, steps: list[int]) -> None:
        super().__init__(act)
        self.tick = lambda: steps.append(0) or len(steps)


def by_closure(s: Outside, y: Tensor, x: Tensor) -> Tensor:
    return s.normal(y) if s.tick() % 3 else s.plain(y)


def by_class(s: Outside, y: Tensor, x: Tensor) -> Tensor:
    Outside.count += 1
    return s.normal(y) if Outside.count % 3 else s.plain(y)


def by_global(s: Outside, y: Tensor, x: Tensor) -> Tensor:
    OUTSIDE[0] += 1
    return s.normal(y) if OUTSIDE[0] % 3 else s.plain(y)


def by_default(s: Outside, y: Tensor, x: Tensor, steps: list[int] = OUTSIDE) -> Tensor:
    steps[0] += 1
    return s.normal(y) if steps[0] % 3 else s.plain(y)


@pytest.mark.parametrize("act", [by_closure, by_class, by_global, by_default])
def test_counters_outside_of_the_module(act):
    """What holds them is no part of the copy that is run; the BatchNorms stay."""
    model = randomize(Outside(act, [])).double()
    _, report = bnfold.fold(model, X, verify=False)
    assert report.removed == 0


# ------------------------------------------------------------- what changes nothing


@contextmanager
def steps_made(model: Net) -> Iterator[None]:
    before = model.step
    yield
    assert model.step == before


def counts_only(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.step += 1
    return s.normal(y)


def adds_its_count(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.step += 1
    return s.last(s.head(s.bn(y) + max(0, s.step - 3)))


def keeps_its_last(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.past = [s.bn(y)]
    return s.plain(s.past[0])


def settles(s: Net, y: Tensor, x: Tensor) -> Tensor:
    s.step = min(s.step + 1, 5)
    return s.normal(y)


@pytest.mark.parametrize(
    ("act", "unseen"),
    [(counts_only, True), (adds_its_count, True), (keeps_its_last, False), (settles, False)],
)
def test_a_count_that_decides_nothing_keeps_nothing(act, unseen):
    """All goes; where the runs never repeat, a note says how many were seen."""
    expected, model = outputs(net(act)), net(act)
    with steps_made(model):
        folded, report = bnfold.fold(model, X)
    assert report.kept <= 1
    assert "last" not in reasons(report)
    assert any("12 runs in a row" in note and "step" in note for note in report.notes) == unseen
    assert_same(expected, outputs(folded), RELATIVE["float64"])


def test_a_run_that_cannot_be_repeated_so_often():
    def fills(s: Net, y: Tensor, x: Tensor) -> Tensor:
        s.past.append(y)
        if len(s.past) > 5:
            raise RuntimeError("full")
        return s.normal(y)

    folded, report = bnfold.fold(net(fills), X)
    assert "last" not in reasons(report)
    with torch.no_grad():
        assert_same([net(fills)(X)], [folded(X)], RELATIVE["float64"])


# ------------------------------------------------------------- before the ways part


class Neuron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.potential: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.potential = x if self.potential is None else self.potential * 0.5 + x
        return (self.potential >= 1.0).to(x.dtype)


class Twice(nn.Module):
    """A state that the first run makes, and one more call of a part of what went before."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part, self.state = part, None
        self.conv, self.bn, self.relu = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.conv(x)))
        if self.state is not None:
            y = y + getattr(self, self.part)(self.state)
        self.state = y
        return y


def assert_right(make: Callable[[], nn.Module], removed: int) -> None:
    torch.manual_seed(0)
    model = make()
    folded, report = bnfold.fold(model, X)
    assert report.removed == removed, str(report)
    assert_same(outputs(model), outputs(folded), RELATIVE["float64"])


@pytest.mark.parametrize("part", ["conv", "bn"])
def test_what_runs_behind_the_parting_stays(part):
    assert_right(lambda: randomize(Twice(part)).double(), removed=0)


@pytest.mark.parametrize(
    "front",
    [
        lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)],
        lambda: [nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)],
        lambda: [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)],
        lambda: [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.MaxPool2d(2)],
        lambda: [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sigmoid()],
        lambda: [nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4)],
    ],
)
def test_what_went_before_goes(front):
    """A spiking neuron, or a moving average, makes its state in the first run."""
    assert_right(
        lambda: randomize(nn.Sequential(*front(), Neuron(), nn.Conv2d(4, 2, 1))).double(), removed=1
    )


def test_an_activation_that_is_called_behind_has_no_bounds_of_its_own():
    assert_right(lambda: randomize(Twice("relu")).double(), removed=1)


def test_a_write_in_place_behind_the_parting():
    class Writes(Twice):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            z = self.bn(y)
            if self.state is not None:
                return z.relu_() + y
            self.state = 1
            return z.relu() + y

    assert_right(lambda: randomize(Writes("")).double(), removed=0)


# ------------------------------------------------------------- what is looked at


@pytest.mark.parametrize(
    "change",
    [
        lambda s: setattr(s, "step", 1),
        lambda s: s.past.append(X),
        lambda s: s.ticks.add_(1),
        lambda s: next(s.turns),
        lambda s: setattr(s.place, "step", 1),
        lambda s: setattr(s.slots, "step", 1),
        lambda s: s.array.__iadd__(1),
        lambda s: s.eval() and setattr(s, "training", True),
    ],
)
def test_traces(change):
    model = net(counts_only)
    before = traces_of(dict(model.named_modules()), are_real=False)
    assert not moved(traces_of(dict(model.named_modules()), are_real=False), before)
    change(model)
    assert moved(traces_of(dict(model.named_modules()), are_real=False), before)


def test_a_generator_leaves_a_trace():
    model = net(counts_only)
    model.numbers = (number for number in range(9))
    before = traces_of(dict(model.named_modules()), are_real=False)
    next(model.numbers)
    assert moved(traces_of(dict(model.named_modules()), are_real=False), before)


def test_what_holds_itself_ends():
    model = net(counts_only)
    model.place.place = model.place
    model.past = model.past2 = [model]
    assert not moved(*[traces_of(dict(model.named_modules()), are_real=True) for _ in range(2)])


def test_reason_of_what_is_read_in_another_run():
    report = bnfold.fold(net(adds_every_third), X).report
    assert reasons(report)["bn"] in (Reason.VARIES, Reason.ACTIVATION)


class Thirds(nn.Module):
    """What stands behind the BatchNorm is a sigmoid in every third run."""

    def __init__(self, tick: Callable[[Thirds], int], steps: Iterator[int] | None) -> None:
        super().__init__()
        self.bn, self.head = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)
        self.tick, self.steps, self.step = tick, steps, 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        return self.head(y if self.tick(self) % 3 else y.sigmoid())


def _counted(net: Thirds) -> int:
    net.step += 1
    return net.step


def _drawn(net: Thirds) -> int:
    assert net.steps is not None
    return next(net.steps)


@pytest.mark.parametrize(
    ("tick", "steps"),
    [
        (_counted, None),
        (_drawn, iter(range(1, 99))),
        (_drawn, iter([*range(1, 99)])),
        (_drawn, map(int, range(1, 99))),
        (_drawn, itertools.count(1)),
    ],
    ids=["a number", "a range", "a list", "a map", "a count"],
)
def test_what_is_behind_another_path_varies(
    tick: Callable[[Thirds], int], steps: Iterator[int] | None
) -> None:
    model = randomize(Thirds(tick, steps).double()).eval()
    result = bnfold.fold(model, X)
    assert reasons(result.report) == {"bn": "varies"}
    for x in LATER:
        torch.testing.assert_close(result.model(x), model(x))
