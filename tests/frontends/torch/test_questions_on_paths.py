"""What code asks of a module that would go, on a path that the example does not take."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.frontends.torch.support import build, image

Ask = Callable[["Net", Tensor, Tensor], Tensor]
X = image(2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self, ask: Ask) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn, self.head = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.ask, self.calls, self.step = ask, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.ask(self, x, self.bn(self.conv(x))))


def answer(net: Net) -> float:
    """What is other where the BatchNorm is gone."""
    return 1.0 if isinstance(net.bn, nn.BatchNorm2d) else 2.0


def odd_width(net: Net, x: Tensor, y: Tensor) -> Tensor:
    if x.shape[-1] % 2:
        y = y + (0 if net.conv.bias is None else 1)
    return torch.tanh(y) if x.shape[-1] > 24 else y


def oblong(net: Net, x: Tensor, y: Tensor) -> Tensor:
    n, _, h, w = x.shape
    if h != w:
        y = y.reshape(n, net.bn.num_features, h, w)
    return y.abs() if w > 24 else y


def odd_width_and_large_batch(net: Net, x: Tensor, y: Tensor) -> Tensor:
    if x.shape[-1] % 2:
        y = y + getattr(net.bn, "eps", 0.0) * 1000
    return y.tanh() if x.shape[0] > 8 else y


def whole_number(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return y * answer(net) if int(x.shape[2]) in (9, 7, 17) else y


def layout(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return y * answer(net) if x.is_contiguous(memory_format=torch.channels_last) else y


def strides(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return y * answer(net) if x.stride(1) == 1 else y


def third_call(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.step = (net.step + 1) % 3
    return y if net.step else y * answer(net)


def fourth_of_five(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.step = (net.step + 1) % 5
    return y + net.bn.num_features if net.step == 4 else y


@pytest.mark.parametrize(
    "ask",
    [
        *(odd_width, oblong, odd_width_and_large_batch, whole_number),
        *(layout, strides, third_call, fourth_of_five),
    ],
)
def test_the_proof_takes_every_path_that_was_read(ask: Ask) -> None:
    net = build(Net(ask))
    folded, report = bnfold.fold(net, X)
    assert [item.reason for item in report.items] == [bnfold.Reason.NOT_PROVEN], str(report)
    original, folded = copy.deepcopy(net), copy.deepcopy(folded)
    given = [X] * 6 + [image(*size) for size in ((2, 3, 9, 9), (2, 3, 8, 10), (2, 3, 25, 25))]
    given += [image(12, 3, 8, 8), X.to(memory_format=torch.channels_last)]
    with torch.no_grad():
        for x in given:
            torch.testing.assert_close(folded(x), original(x), rtol=0.0, atol=0.0)


def length_of_a_slice(net: Net, x: Tensor, y: Tensor) -> Tensor:
    """Unheard: a slice takes a whole number as it is."""
    return y * answer(net) if "odd"[: x.shape[-1] % 2] else y


def dictionary(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return y * answer(net) if {1: True}.get(x.shape[-1] % 2) else y


def largest_so_far(net: Net, x: Tensor, y: Tensor) -> Tensor:
    net.step = max(net.step, x.shape[-1])
    return y * answer(net) if net.step > x.shape[-1] else y


@pytest.mark.parametrize("ask", [length_of_a_slice, dictionary, largest_so_far])
def test_what_is_not_heard_shows_on_sizes_that_cost_little(ask: Ask) -> None:
    net = build(Net(ask))
    folded, report = bnfold.fold(net, X)
    assert [item.reason for item in report.items] == [bnfold.Reason.NOT_PROVEN], str(report)
    original, folded = copy.deepcopy(net), copy.deepcopy(folded)
    with torch.no_grad():
        for size in (8, 7, 9, 16, 8, 7):
            x = image(2, 3, size, size)
            torch.testing.assert_close(folded(x), original(x), rtol=0.0, atol=0.0)


def decided_alike(net: Net, x: Tensor, y: Tensor) -> Tensor:
    """On the same path for all sizes that are tried."""
    assert x.shape[1] == 3 and x.ndim == 4
    return y[..., : x.shape[-2], :]


@pytest.mark.parametrize(
    ("ask", "runs"), [(lambda net, x, y: y, 2), (decided_alike, 5), (odd_width, 8)]
)
def test_how_often_it_is_run(ask: Ask, runs: int) -> None:
    net = build(Net(ask))
    report = bnfold.fold(net, X).report
    assert report.verdict is not None
    assert report.verdict.samples == runs


class Sequence(nn.Module):
    """A length decides, of (N, C, L) or (N, T, C), where the channels have but one."""

    def __init__(self, limit: int, axis: int, *, merges: bool) -> None:
        super().__init__()
        kinds = (nn.Conv1d, nn.Conv1d) if axis == 2 else (nn.Linear, nn.Linear)
        options = {"kernel_size": 1} if axis == 2 else {}
        self.a, self.b = (kind(4, 4, **options) for kind in kinds)
        self.bn, self.limit, self.axis, self.merges = nn.BatchNorm1d(4), limit, axis, merges

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if x.shape[self.axis] <= self.limit:
            return y + self.b(x) if self.merges else self.bn(y if self.axis == 2 else y.mT)
        return y if self.merges else torch.tanh(y if self.axis == 2 else y.mT)


@pytest.mark.parametrize("merges", [False, True])
@pytest.mark.parametrize(("limit", "axis", "shape"), [(64, 2, (2, 4, 16)), (33, 1, (2, 16, 4))])
def test_a_length_beside_one_of_channels(limit, axis, shape, merges) -> None:
    net = build(Sequence(limit, axis, merges=merges))
    folded, report = bnfold.fold(net, image(*shape))
    assert not report.removed and not report.merged, str(report)
    with torch.no_grad():
        for length in (1, 16, limit, limit + 1, 3 * limit):
            size = [length if place == axis else n for place, n in enumerate(shape)]
            torch.testing.assert_close(folded(image(*size)), net(image(*size)))


class Fused(nn.Module):
    """What a second input is like decides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.conv(x)
        if x.shape[-2:] != y.shape[-2:]:
            return torch.relu(z) + nn.functional.interpolate(y, x.shape[-2:])
        return self.bn(z) + y


def test_two_inputs_of_one_size_or_not() -> None:
    net, x = build(Fused()), image(2, 3, 8, 8)
    folded, report = bnfold.fold(net, (x, image(2, 3, 8, 8)))
    assert not report.removed, str(report)
    with torch.no_grad():
        for size in (4, 8, 16):
            y = image(2, 3, size, size)
            torch.testing.assert_close(folded(x, y), net(x, y), rtol=0.0, atol=0.0)


def multiples(net: Net, x: Tensor, y: Tensor) -> Tensor:
    if x.shape[-1] % 4:
        raise ValueError("sides must be multiples of 4")
    return torch.tanh(y) if x.shape[-1] > 30 else y * answer(net)


def part_of_it(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return y + answer(net) if x.shape[-1] // 4 > 10 else y


def number_of_parts(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return y + answer(net) if len(y.split(8, -1)) > 1 else y


def number_of_rows(net: Net, x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([row * answer(net) ** place for place, row in enumerate(y.unbind(2))], 2)


@pytest.mark.parametrize("ask", [multiples, part_of_it, number_of_parts, number_of_rows])
def test_a_turn_that_is_not_where_it_seems(ask: Ask) -> None:
    net = build(Net(ask))
    folded = bnfold.fold(net, X).model
    with torch.no_grad():
        for size in (4, 8, 28, 32, 48, 64):
            x = image(1, 3, size, size)
            torch.testing.assert_close(folded(x), net(x), rtol=1e-9, atol=1e-9)


class Square(nn.Module):
    """A search that ends for square numbers alone, or a program that does."""

    def __init__(self, *, ends_the_program: bool) -> None:
        super().__init__()
        self.linear, self.bn, self.ends = nn.Linear(6, 6), nn.BatchNorm1d(6), ends_the_program

    def forward(self, x: Tensor) -> Tensor:
        if self.ends and x.shape[1] % 2:
            raise SystemExit("an odd number of tokens")
        side = 1
        while not self.ends and side * side != x.shape[1]:
            side += 1
        return self.bn(self.linear(x).transpose(1, 2))


@pytest.mark.parametrize("ends", [False, True])
def test_sizes_on_which_it_never_ends_or_ends_all(ends: bool) -> None:
    net = build(Square(ends_the_program=ends))
    x = image(2, 16, 6)
    folded, report = bnfold.fold(net, x)
    assert report.removed == 1, str(report)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), net(x), rtol=1e-9, atol=1e-9)


class Yields(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def stages(self, x: Tensor):
        y = self.conv(x)
        yield y
        yield self.last(self.bn(y))

    def forward(self, x: Tensor) -> Tensor:
        return list(self.stages(x))[-1]


def test_what_a_method_yields_is_what_it_returns() -> None:
    net = build(Yields())
    folded = bnfold.fold(net, X, entry=["stages"]).model
    with torch.no_grad():
        for one, other in zip(net.stages(X), folded.stages(X), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


class Fails(nn.Module):
    """It can be read on an oblong image, where nothing is computed, and not be run on one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        if x.shape[-1] != x.shape[-2]:
            y = y + torch.linalg.inv(torch.zeros(4, 4, dtype=x.dtype)).sum()
        return torch.relu(y)


def test_a_path_that_cannot_be_run_is_left_out() -> None:
    net = build(Fails())
    folded, report = bnfold.fold(net, X)
    assert report.removed == 1, str(report)
    with torch.no_grad():
        torch.testing.assert_close(folded(X), net(X), rtol=1e-9, atol=1e-9)
