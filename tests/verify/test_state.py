"""What a run leaves shows in the next; a verification leaves nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold


class Stateful(nn.Module):
    """Conv, and something that a run leaves behind."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.steps, self.kept = what, 0, None
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.zeros(1, 4, 1, 1))
        self.register_buffer("membrane", torch.zeros(2, 4, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return LEFT[self.what](self, y)


def counted(net: Any, y: Tensor) -> Tensor:
    net.count += 1
    return y * net.count


def attribute(net: Any, y: Tensor) -> Tensor:
    net.steps += 1
    return y + net.steps


def averaged(net: Any, y: Tensor) -> Tensor:
    net.average.mul_(0.5).add_(0.5 * y.mean((0, 2, 3), keepdim=True))
    return y - net.average


def spiking(net: Any, y: Tensor) -> Tensor:
    net.membrane = net.membrane + y
    spikes = (net.membrane > 1.0).float()
    net.membrane = net.membrane * (1.0 - spikes)
    return net.membrane


def cached(net: Any, y: Tensor) -> Tensor:
    previous, net.kept = net.kept, y
    return y if previous is None else y + previous


def through_data(net: Any, y: Tensor) -> Tensor:
    net.average.data = net.average + y.mean((0, 2, 3), keepdim=True)
    return y * net.average


LEFT = {f.__name__: f for f in (counted, attribute, averaged, spiking, cached, through_data)}


@pytest.mark.parametrize("what", LEFT)
def test_the_second_run_is_compared(monkeypatch, what):
    torch.manual_seed(0)
    model = Stateful(what).eval()
    x = torch.randn(2, 3, 6, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = copy.deepcopy(model)
    other.conv.weight.data[1, 1, 1, 1] *= 1.0 + 1e-7  # as rounding may leave it
    result = bnfold.verify(model, other, x, samples=1)
    assert result.equal, str(result)

    class Fresh(Stateful):
        """Forgets what a run left."""

        def forward(self, x: Tensor) -> Tensor:
            return copy.deepcopy(self)._modules["inner"](x)

    forgets = Fresh(what).eval()
    forgets.inner = copy.deepcopy(model)
    result = bnfold.verify(model, forgets, x, samples=1, layers=False)
    assert result.verdict == "not equal", str(result)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert model.steps == 0 and model.kept is None


def test_an_exported_program_with_a_buffer():
    class Counts(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.conv, self.scale = nn.Conv2d(3, 4, 3), scale
            self.register_buffer("total", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            self.total.add_(y.mean((0, 2, 3)) * self.scale)
            return y.mean((2, 3)) * 0.5 + (self.total if self.scale else 0.0) * 2.0

    torch.manual_seed(0)
    model = Counts(1.0).eval()
    x = torch.randn(2, 3, 6, 6)
    program = torch.export.export(model, (x,))
    total = program.state_dict["total"].clone()
    result = bnfold.verify(program, torch.export.export(model, (x,)))
    assert result.equal and result.truth == "float64", str(result)
    assert torch.equal(program.state_dict["total"], total)
    other = Counts(1.5).eval()
    other.load_state_dict(model.state_dict())
    assert not bnfold.verify(program, torch.export.export(other, (x,))).equal


def test_no_gpu_is_seeded_that_is_not_in_use(monkeypatch):
    """It would be when it is used first, whatever seed the user gave."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    assert bnfold.verify(model, copy.deepcopy(model), torch.randn(2, 3, 6, 6)).equal
    assert bool(seeded) == torch.cuda.is_initialized()


def test_random_state_stays():
    import random

    import numpy as np

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout()).eval()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    bnfold.verify(model, copy.deepcopy(model), torch.zeros(1, 3, 5, 5))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1]) and random.getstate() == states[2]
    assert torch.get_default_dtype() is torch.float32
