"""Code that does something on few sizes alone: they are computed from what it asks."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import queue
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from bnfold.frontends.torch import read_other_sizes
from bnfold.frontends.torch.read import read_module
from tests.frontends.torch.support import assert_same, build, image, run

CHANNELS_LAST = torch.channels_last
Condition = Callable[[int, int, int, Tensor], Any]
"""Of the batch, the height, the width, and what the first convolution made."""


class Net(nn.Module):
    """Another activation where the condition holds: the BatchNorm behind it goes on both ways."""

    def __init__(self, condition: Condition) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 4, 1)
        self.condition = condition

    def holds(self, x: Tensor, y: Tensor) -> bool:
        n, _, h, w = x.shape
        return bool(self.condition(n, h, w, y))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.holds(x, y):
            y = self.bn(y).relu()
        return self.head(self.bn(y))


CONDITIONS: dict[str, tuple[Condition, list[tuple[int, int, int]]]] = {
    "one size": (lambda n, h, w, y: (h, w) == (32, 48), [(2, 32, 48)]),
    "one size of a tensor": (lambda n, h, w, y: y.shape[2:] == (24, 40), [(2, 24, 40)]),
    "a batch of eights": (lambda n, h, w, y: n % 8 == 0, [(8, 8, 8), (16, 8, 8)]),
    "a batch with no rest": (lambda n, h, w, y: not n % 8, [(8, 8, 8)]),
    "high and narrow": (lambda n, h, w, y: h > 20 and w < 10, [(2, 32, 8)]),
    "and five of them": (lambda n, h, w, y: h > 20 and w < 10 and n == 5, [(5, 32, 8)]),
    "one batch and height": (lambda n, h, w, y: n == 7 and h == 9, [(7, 9, 8)]),
    "one after the other": (lambda n, h, w, y: h > 12 and (w > 40 and h % 5 == 0), [(2, 15, 48)]),
    "an area": (lambda n, h, w, y: h * w == 1000, [(2, 25, 40)]),
    "a large area": (lambda n, h, w, y: h * w > 9000, [(2, 100, 91)]),
    "a sum": (lambda n, h, w, y: h + 2 * w == 101, [(2, 33, 34)]),
    "a remainder": (lambda n, h, w, y: h % 7 == 3, [(2, 10, 8), (2, 17, 17)]),
    "three times": (lambda n, h, w, y: h == 3 * w, [(2, 24, 8), (2, 30, 10)]),
    "a ratio": (lambda n, h, w, y: w / h > 4, [(2, 8, 48)]),
    "a range": (lambda n, h, w, y: 100 < h < 110, [(2, 105, 8)]),
    "rounded up": (lambda n, h, w, y: -(-h // 32) * 32 - h == 5, [(2, 27, 8), (2, 59, 9)]),
    "divmod": (lambda n, h, w, y: divmod(h, 10) == (3, 7), [(2, 37, 8)]),
    "bits": (lambda n, h, w, y: h.bit_length() > 6, [(2, 128, 128)]),
    "pooled": (lambda n, h, w, y: functional.avg_pool2d(y, 2).shape[-1] == 21, [(2, 8, 42)]),
    "tokens": (lambda n, h, w, y: y.flatten(2).mT.shape[1] == 1024, [(2, 32, 32)]),
    "many elements": (lambda n, h, w, y: y.numel() > 9000, [(2, 34, 34)]),
    "elements": (lambda n, h, w, y: y.size(-1) * y.size(dim=0) == 36, [(4, 8, 9)]),
    "a power": (lambda n, h, w, y: h**2 == 1600, [(2, 40, 8)]),
    "a number of images": (lambda n, h, w, y: len(y) == 5, [(5, 8, 8)]),
    "many images": (lambda n, h, w, y: len(y) > 8, [(9, 8, 8)]),
    "a number of rows": (lambda n, h, w, y: len(y[0, 0]) == 21, [(2, 21, 8)]),
    "a function of elements": (lambda n, h, w, y: torch.numel(y) > 9000, [(2, 34, 34)]),
    "later in order": (lambda n, h, w, y: y.shape[2:] > (16, 16), [(2, 20, 20), (2, 21, 20)]),
    "an endless limit": (lambda n, h, w, y: min(math.inf, h) > 20, [(2, 24, 24)]),
    "a whole number": (lambda n, h, w, y: int(h / 4) > 5, [(2, 24, 32)]),
    "no rest of a ratio": (lambda n, h, w, y: h > 8 and (h / 5).is_integer(), [(2, 10, 8)]),
    "bits turned": (lambda n, h, w, y: ~h < -21, [(2, 24, 32)]),
    "a power and a rest": (lambda n, h, w, y: pow(h, 2, 7) == 2, [(2, 10, 8)]),
    "rounded": (lambda n, h, w, y: round(h / 4, None) > 5, [(2, 30, 8)]),
    "a member": (lambda n, h, w, y: h in (14, 28), [(2, 14, 8), (2, 28, 8)]),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_right_where_the_condition_holds(name: str) -> None:
    """Without the proof, which would take back a wrong fold."""
    condition, sizes = CONDITIONS[name]
    net, x = build(Net(condition)), image(2, 3, 8, 8)
    assert not net.holds(x, net.conv(x))
    folded, report = bnfold.fold(net, x, verify=False)
    for n, h, w in [(2, 8, 8), (3, 9, 8), *sizes]:
        other = image(n, 3, h, w)
        assert_same(run(net, other), run(folded, other), 1e-9)
    assert net.holds(other, net.conv(other))
    assert report.removed + report.kept == 1


BETWEEN: dict[str, tuple[Callable[[Tensor, Tensor], Any], list[tuple[Any, Any]]]] = {
    "a difference": (
        lambda x, y: y.shape[2] - x.shape[2] > 20,
        [((2, 3, 8, 8), (2, 3, 40, 8))],
    ),
    "a ratio": (lambda x, y: x.shape[3] / y.shape[3] > 3, [((2, 3, 8, 48), (2, 3, 8, 8))]),
    "the second alone": (lambda x, y: y.shape[2] > 12, [((2, 3, 8, 8), (2, 3, 13, 8))]),
    "the first of more, later": (lambda x, y: x.shape[2] == 19, [((2, 3, 19, 8), (2, 3, 8, 8))]),
    "both at once": (
        lambda x, y: x.shape[2] == 12 and y.shape[2] == 17,
        [((2, 3, 12, 8), (2, 3, 17, 8))],
    ),
    "another rank": (lambda x, y: y.shape[1] == 30, [((2, 3, 8, 8), (2, 30))]),
    "elements": (lambda x, y: y.numel() > 100, [((2, 3, 8, 8), (2, 60))]),
}


class Stateful(Net):
    """What can be read in real runs alone, as numbers decide what it leaves."""

    def __init__(self, condition: Condition, keeps: str) -> None:
        super().__init__(condition)
        self.keeps = keeps
        self.register_buffer("gain", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.keeps == "gain":
            x = x * self.gain
            self.gain.add_(0.5)
        elif self.keeps == "largest":
            self.largest = max(getattr(self, "largest", 0.0), float(x.detach().abs().max()))
        return super().forward(x)


KEPT = ("gain", "largest", "hook")
REAL = [(name, keeps) for name in ("one size", "high and narrow", "an area") for keeps in KEPT]


@pytest.mark.parametrize(("name", "keeps"), REAL)
def test_real_runs_hear_of_conditions_too(name: str, keeps: str) -> None:
    condition, sizes = CONDITIONS[name]
    net = build(Stateful(condition, keeps))
    if keeps == "hook":
        net.bn.register_forward_hook(lambda module, given, made: None)
    example = image(2, 3, 8, 8)
    folded, _ = bnfold.fold(copy.deepcopy(net), example, verify=False)
    for size in [(2, 8, 8), *sizes]:
        net.gain.fill_(1.0)
        folded.gain.fill_(1.0)
        x = image(size[0], 3, *size[1:], seed=5)
        assert_same(run(net, x), run(folded, x), 1e-9)


class Pair(Net):
    def __init__(self, condition: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__(lambda n, h, w, y: False)
        self.between = condition

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.conv(x)
        z = self.bn(z).relu() if self.between(x, y) else z
        return self.head(self.bn(z)) + y.mean()


@pytest.mark.parametrize("name", BETWEEN)
def test_a_condition_between_two_inputs(name: str) -> None:
    condition, sizes = BETWEEN[name]
    net, x = build(Pair(condition)), image(2, 3, 8, 8)
    y = image(2, 5) if len(sizes[0][1]) == 2 else image(2, 3, 8, 8)
    assert not condition(x, y)
    folded, _ = bnfold.fold(net, (x, y), verify=False)
    for first, second in [(x.shape, y.shape), *sizes]:
        others = image(*first), image(*second)
        assert_same(run(net, others), run(folded, others), 1e-9)
    assert condition(*others)


class Asks(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.program = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.program(self, x)


def large(net: Asks, x: Tensor) -> Tensor:
    return net.bn(net.conv(x)) if x.shape[2] > 40 else net.bn(net.conv(x) * 2)


def sums(net: Asks, x: Tensor) -> Tensor:
    """A number that takes more and more steps, twice as many each time."""
    total = x.shape[2]
    for _ in range(60):
        total = total + total
    return net.bn(net.conv(x)) if total > 2**70 else net.bn(net.conv(x) * 2)


def powers(net: Asks, x: Tensor) -> Tensor:
    return net.bn(net.conv(x)) if 3 ** (x.shape[2] ** 2) > 1 else net.conv(x)


def divides(net: Asks, x: Tensor) -> Tensor:
    return net.bn(net.conv(x)) if 96 // (x.shape[2] - 7) > 3 else net.bn(net.conv(x) * 2)


def many(net: Asks, x: Tensor) -> Tensor:
    for row in range(5000):
        if x.shape[2] == 10_000_000 + row:
            return net.conv(x)
    return net.bn(net.conv(x))


@pytest.mark.parametrize(
    ("program", "most"), [(large, 10), (sums, 10), (powers, 10), (divides, 15), (many, 24)]
)
def test_what_it_costs(program: Any, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question is turned once, and a formula that grows is let go."""
    reads = []

    def counted(*args: Any, **options: Any) -> Any:
        reads.append(1)
        return read_module(*args, **options)

    monkeypatch.setattr(read_other_sizes, "read_module", counted)
    net, x = build(Asks(program)), image(2, 3, 8, 8)
    folded, _ = bnfold.fold(net, x, verify=False, merge="never")
    assert len(reads) <= most
    for size in (8, 9, 12, 64):
        other = torch.randn(2, 3, size, size, dtype=torch.float64)
        assert_same(run(net, other), run(folded, other), 1e-9)


# ------------------------------------------------- what depends on sizes without a question


class Plain(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.other, self.head = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.line, self.tokens = nn.Linear(256, 3), nn.BatchNorm1d(4)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(3)])
        self.register_buffer("table", image(1, 4, 8, 8, seed=5))
        self.program = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.program(self, x)


def batch_of_parts(net: Plain, x: Tensor) -> Tensor:
    return net.line(net.bn(net.conv(x).relu()).view(-1, 256))


def parts_beside(net: Plain, x: Tensor) -> Tensor:
    return net.tokens(net.conv(x).view(-1, 4, 64))


def fixed_batch(net: Plain, x: Tensor) -> Tensor:
    return net.bn(net.conv(x).relu()).reshape(2, 4, -1).mean(2) @ net.head.weight[:, :, 0, 0]


def first_and_rest(net: Plain, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.head(torch.cat([net.bn(y[:1]), y[1:]]))


def rows_and_rest(net: Plain, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.head(torch.cat([net.bn(y[:, :, :20]), y[:, :, 20:]], 2))


def rest_of_all(net: Plain, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.head(net.bn(y + y[:, :, 20:].sum()))


def rest_goes_out(net: Plain, x: Tensor) -> Tensor:
    y = net.conv(x)
    return torch.cat([net.head(net.bn(y)).flatten(), y[:, :, 20:].flatten()])


def last_rows(net: Plain, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.head(torch.cat([y[:, :, :-20], net.bn(y)], 2))


def first_tile(net: Plain, x: Tensor) -> Tensor:
    first, *rest = net.conv(x).split(20, 2)
    return net.head(torch.cat([net.bn(first), *(tile.sigmoid() for tile in rest)], 2))


def tiles_by_a_range(net: Plain, x: Tensor) -> Tensor:
    tiles = [net.conv(x[:, :, at : at + 20]) for at in range(0, x.shape[2], 20)]
    return net.head(torch.cat([net.bn(tiles[0]), *(tile.sigmoid() for tile in tiles[1:])], 2))


def written_beyond(net: Plain, x: Tensor) -> Tensor:
    y = net.bn(net.conv(x))
    y[:, :, 20:] = 0.5
    return net.head(y)


def shifted(net: Plain, x: Tensor) -> Tensor:
    y = net.conv(x).relu()
    out = torch.zeros_like(y)
    out[:, :2, 1:] = y[:, :2, :-1]
    out[:, 2:, :-1] = y[:, 2:, 1:]
    return net.head(net.bn(out).relu())


def first_row_written(net: Plain, x: Tensor) -> Tensor:
    y = net.conv(x).relu()
    y[:, :, 0] = 1
    y[0] = 2
    return net.head(net.bn(y).relu())


def table_if_it_fits(net: Plain, x: Tensor) -> Tensor:
    y = net.conv(x)
    try:
        return net.head(net.bn(y) + net.table)
    except RuntimeError:
        return net.head(y.sigmoid())


def viewed_if_it_can_be(net: Plain, x: Tensor) -> Tensor:
    y = net.conv(x)
    try:
        y.view(len(x), -1)
    except RuntimeError:
        return net.head(y.sigmoid())
    return net.head(net.bn(y))


def norm_by_remainder(net: Plain, x: Tensor) -> Tensor:
    return net.head(net.norms[x.shape[2] % 3](net.conv(x).relu()))


def limit_of_numpy(net: Plain, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.head(y.sigmoid() if x.shape[2] > np.int64(20) else net.bn(y))


def norm_by_limits(net: Plain, x: Tensor) -> Tensor:
    return net.head(net.norms[sum(x.shape[2] > limit for limit in (10, 30))](net.conv(x).relu()))


def halved_while_high(net: Plain, x: Tensor) -> Tensor:
    height, times = x.shape[2], 0
    while height > 8 and times < 2:
        height, times = height // 2, times + 1
    return net.head(net.norms[times](net.conv(x).relu()))


WITHOUT_A_QUESTION = [
    *(batch_of_parts, parts_beside, fixed_batch, first_and_rest, rows_and_rest, rest_of_all),
    *(rest_goes_out, last_rows, first_tile, tiles_by_a_range, written_beyond, shifted),
    *(norm_by_limits, halved_while_high),
    *(first_row_written, table_if_it_fits, viewed_if_it_can_be, norm_by_remainder, limit_of_numpy),
]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("program", WITHOUT_A_QUESTION, ids=lambda program: program.__name__)
def test_sizes_that_nobody_asks_for(program: Any, batch: int) -> None:
    net = build(Plain(program))
    folded, _ = bnfold.fold(net, image(2 if program is fixed_batch else batch, 3, 8, 8))
    compared = 0
    sizes = [(1, 8, 8), (2, 8, 8), (4, 8, 8), (2, 16, 16), (2, 24, 24), (3, 41, 9), (2, 9, 9)]
    for n, h, w in sizes:
        for x in (image(n, 3, h, w), image(n, 3, h, w).contiguous(memory_format=CHANNELS_LAST)):
            try:
                expected = run(net, x)
            except (RuntimeError, IndexError):  # it takes no such size
                continue
            assert_same(expected, run(folded, x), 1e-9)
            compared += 1
    assert compared > 3


def test_frames_of_a_film() -> None:
    def forward(net: Plain, x: Tensor) -> Tensor:
        y = net.conv(x.flatten(0, 1))
        return net.head(net.bn(net.bn(y).relu() if x.shape[1] > 4 else y))

    net = build(Plain(forward))
    folded, _ = bnfold.fold(net, image(1, 2, 3, 8, 8))
    for frames in (2, 5, 7):
        x = image(1, frames, 3, 8, 8)
        assert_same(run(net, x), run(folded, x), 1e-9)


KEPT: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
"""What a program keeps of the sizes that it has met, where no fold puts it back."""


@functools.lru_cache
def half(length: int) -> int:
    return length // 2


def test_numbers_that_outlive_a_run_are_as_others() -> None:
    def forward(net: Plain, x: Tensor) -> Tensor:
        KEPT.put((x.shape[2], half(x.shape[3])))
        return net.head(net.bn(net.conv(x)))

    assert bnfold.fold(build(Plain(forward)), image(2, 3, 8, 8)).report.removed == 1
    sizes = dict(KEPT.get() for _ in range(KEPT.qsize()))
    for _ in range(10_001):  # of which each asks for equality
        assert 8 in sizes and 99 not in sizes.values()
    assert {type(length) for length in copy.deepcopy(list(sizes))} == {int}
    assert 8 in pickle.loads(pickle.dumps(sizes))


def test_a_range_that_is_long_is_searched_once() -> None:
    """Python compares a number that is not exactly an int with each."""

    def forward(net: Plain, x: Tensor) -> Tensor:
        y = net.conv(x)
        return net.head(y.relu() if x.shape[2] in range(1000, 10**7) else net.bn(y))

    net = build(Plain(forward))
    folded, report = bnfold.fold(net, image(2, 3, 8, 8))
    assert report.removed == 1
    assert_same(run(net, image(2, 3, 8, 8)), run(folded, image(2, 3, 8, 8)), 1e-9)


def test_code_that_is_made_anew_is_the_same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(net: Plain, x: Tensor) -> Tensor:
        y = net.conv(x)
        return net.bn(y) if eval("h > 3 and w > 2", {"h": x.shape[2], "w": x.shape[3]}) else y

    reads = []

    def counted(*args: Any, **options: Any) -> Any:
        reads.append(1)
        return read_module(*args, **options)

    monkeypatch.setattr(read_other_sizes, "read_module", counted)
    bnfold.fold(build(Plain(forward)), image(2, 3, 8, 8), verify=False, merge="never")
    assert len(reads) <= 16


def with_a_table(length: int) -> Callable[[Any, Tensor], Tensor]:
    table = torch.randn(1, 1, length, 1, dtype=torch.float64)

    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.conv(x)
        try:
            return net.bn(y) + table  # type: ignore[no-any-return]
        except RuntimeError:
            return torch.sigmoid(y)

    return forward


def plain(net: Any, x: Tensor) -> Tensor:
    return torch.sigmoid(net.conv(x))


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("length", [9, 11, 30])
def test_what_fits_a_table_alone(length: int, last: bool) -> None:
    """Several modules of one class have each a function of its own."""
    parts = [Asks(plain), Asks(with_a_table(length))]
    net = nn.Sequential(*(parts if last else parts[::-1]))
    net[1].conv = nn.Conv2d(4, 4, 1)
    build(net)
    folded, _ = bnfold.fold(net, image(2, 3, 8, 8), verify=False)
    for size in (8, length, 12):
        x = image(2, 3, size, 8)
        assert_same(run(net, x), run(folded, x), 1e-9)


def test_an_empty_table_fits_nothing() -> None:
    empty = torch.zeros(0, 4)

    def forward(net: Any, x: Tensor) -> Tensor:
        try:
            return net.bn(net.conv(x)) + empty  # type: ignore[no-any-return]
        except RuntimeError:
            return net.bn(net.conv(x))  # type: ignore[no-any-return]

    assert bnfold.fold(build(Asks(forward)), image(2, 3, 8, 8)).report.removed == 1
