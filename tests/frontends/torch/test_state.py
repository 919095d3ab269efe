"""Programs that keep state, or let values out of the recording: right on every run."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.frontends.torch.support import assert_same, build, image, run


class Net(nn.Module):
    """Convolution, BatchNorm, head, and what a case does with them."""

    def __init__(self, run: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn, self.head = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.register_buffer("seen", torch.zeros(1, 4, 1, 1))
        self.step, self.past, self.run = 0, [0.0], run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def _counter(net: Net, x: Tensor) -> Tensor:
    net.step += 1
    return net.head(net.bn(net.conv(x) + net.step))


def _list(net: Net, x: Tensor) -> Tensor:
    net.past.append(net.past[-1] + 1)
    return net.head(net.bn(net.conv(x) * net.past[-1]))


def _average(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.conv(x) + net.seen)
    net.seen = y.mean((0, 2, 3), keepdim=True).tanh()
    return net.head(y)


def _numpy(net: Net, x: Tensor) -> Tensor:
    net.seen.numpy()[:] += 1
    return net.head(net.bn(net.conv(x) + net.seen))


def _parameter(net: Net, x: Tensor) -> Tensor:
    return net.head(nn.Parameter(net.bn(net.conv(x))).sigmoid())


def _data(net: Net, x: Tensor) -> Tensor:
    return net.head(net.bn(net.conv(x)).data.sigmoid())


def _dlpack(net: Net, x: Tensor) -> Tensor:
    return net.head(torch.from_dlpack(net.bn(net.conv(x))).sigmoid())


def _thread(net: Net, x: Tensor) -> Tensor:
    out: list[Tensor] = []
    worker = threading.Thread(target=lambda: out.append(net.conv(x).sigmoid()))
    worker.start()
    worker.join()
    return net.head(net.bn(net.conv(x)) + out[0])


def _swallowed(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.conv(x))
    try:
        y.detach().numpy()
    except BaseException:  # what people write
        return net.head(y)
    return net.head(y.sigmoid())


@pytest.mark.parametrize(
    "run",
    [_counter, _list, _average, _numpy, _parameter, _data, _dlpack, _thread, _swallowed],
)
def test_state_and_escapes(run: Callable[[Net, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net = Net(run).double().eval()
    nn.init.uniform_(net.bn.running_mean, -1, 1)
    nn.init.uniform_(net.bn.running_var, 0.5, 2)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    reference = copy.deepcopy(net)
    folded, _ = bnfold.fold(net, x)
    with torch.no_grad():
        for n in (2, 1, 3):
            given = torch.randn(n, 3, 5, 5, dtype=torch.float64)
            want = reference(given)
            torch.testing.assert_close(folded(given), want, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(net(given), want, rtol=0, atol=0)


class Uncopyable(nn.Module):
    """Runs that change something, in a module that holds what cannot be copied."""

    def __init__(self, change: Callable[[Uncopyable], object]) -> None:
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.register_buffer("gain", torch.ones(4, 1, 1))
        self.lock, self.change, self.count, self.seen = threading.Lock(), change, 1, [1]

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x) * self.gain + (self.count - 1) + (len(self.seen) - 1))
        self.change(self)
        return self.last(y.relu())


CHANGES: list[Callable[[Uncopyable], object]] = [
    lambda net: setattr(net, "count", net.count + 1),
    lambda net: net.seen.append(1),
    lambda net: net.gain.add_(1),
    lambda net: net.gain.data.add_(1),
    lambda net: np.add(net.gain.data.numpy(), 1, out=net.gain.data.numpy()),
    lambda net: setattr(net, "gain", net.gain + 1),
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_run_changes_in_a_module_that_cannot_be_copied(change):
    torch.manual_seed(0)
    net, reference = Uncopyable(change).double().eval(), Uncopyable(change).double().eval()
    nn.init.uniform_(net.bn.running_mean, -1, 1)
    nn.init.uniform_(net.bn.running_var, 0.5, 2)
    reference.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    folded, _ = bnfold.fold(net, x, inplace=True, verify=False)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(folded(x), reference(x), rtol=1e-9, atol=1e-9)


# -------------------------------------------------------------------- generators of its own


class Draws(nn.Module):
    """Noise of a generator of its own; the lock makes it one that cannot be copied."""

    def __init__(self, draw: Any, number: Callable[[Any], float]) -> None:
        super().__init__()
        self.conv, self.bn, self.lock = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), threading.Lock()
        self.draw, self.number = draw, number

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.number(self.draw)


GENERATORS = {
    "Python's": lambda: Draws(random.Random(3), lambda draw: draw.random()),
    "NumPy's": lambda: Draws(np.random.default_rng(3), lambda draw: float(draw.normal())),
    "the old NumPy's": lambda: Draws(np.random.RandomState(3), lambda draw: float(draw.rand())),
    "PyTorch's": lambda: Draws(
        torch.Generator().manual_seed(3), lambda draw: float(torch.rand(1, generator=draw))
    ),
    "the system's": lambda: Draws(random.SystemRandom(), lambda draw: 0.0 * draw.random()),
}


@pytest.mark.parametrize("which", GENERATORS)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_generator_draws_next_what_it_would_have_drawn(which: str, inplace: bool) -> None:
    given, twin = (build(GENERATORS[which]()) for _ in range(2))
    twin.load_state_dict(given.state_dict())
    x = image(2, 3, 5, 5)
    bnfold.inspect(given, x)
    with suppress(bnfold.BnfoldError):  # it cannot be copied, or differs from itself
        bnfold.fold(given, x, inplace=inplace)
    for _ in range(2):
        assert_same(run(twin, x), run(given, x), 1e-9)
