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


def decided_alike(net: Net, x: Tensor, y: Tensor) -> Tensor:
    """On the same path for all sizes that are tried."""
    assert x.shape[1] == 3 and x.ndim == 4
    return y[..., : x.shape[-2], :]


@pytest.mark.parametrize(
    ("ask", "runs"), [(lambda net, x, y: y, 2), (decided_alike, 2), (odd_width, 3)]
)
def test_it_takes_each_once(ask: Ask, runs: int) -> None:
    net = build(Net(ask))
    report = bnfold.fold(net, X).report
    assert report.verdict is not None
    assert report.verdict.samples == runs


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
