"""Numbers that are nothing on squares: the example is one, and the fold is right on others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

import bnfold

D = torch.float64
SIZES = [(2, 3, 16, 16), (1, 3, 7, 9), (3, 3, 9, 7), (2, 3, 40, 17), (5, 3, 13, 33)]


def turned(y: Tensor, by: int) -> Tensor:
    return torch.cat([y[:, by % 4 :], y[:, : by % 4]], 1)


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a summand": lambda y, x: y + (x.shape[2] - x.shape[3]),
    "a summand in front": lambda y, x: 0.1 * (x.size(2) - x.size(3)) + y,
    "a subtrahend": lambda y, x: y.sub(x.shape[2] - x.shape[3]),
    "in place": lambda y, x: y.add_(x.shape[-2] - x.shape[-1]),
    "for the batch": lambda y, x: y + (2 - x.shape[0]),
    "a factor": lambda y, x: y * (x.shape[2] / x.shape[3]),
    "a whole factor": lambda y, x: y * (1 + x.shape[2] - x.shape[3]),
    "a divisor": lambda y, x: y / (x.shape[2] // x.shape[3] + 1),
    "a power": lambda y, x: y * 2 ** (x.shape[2] - x.shape[3]),
    "a capped batch": lambda y, x: y * min(x.shape[0], 2),
    "a bound": lambda y, x: y.clamp(max=1.0 + x.shape[2] - x.shape[3]),
    "a slope": lambda y, x: functional.leaky_relu(y, 1.0 + x.shape[2] - x.shape[3]),
    "channels turned": lambda y, x: torch.roll(y, x.shape[2] - x.shape[3], 1),
    "channels cut": lambda y, x: turned(y, x.shape[2] - x.shape[3]),
    "padded to a square": lambda y, x: functional.pad(
        y,
        (
            *(0, max(x.shape[2:]) - x.shape[3]),
            *(0, max(x.shape[2:]) - x.shape[2]),
        ),
    ),
}


class Net(nn.Module):
    """A convolution, what a test does behind it, and a BatchNorm that wants through."""

    def __init__(self, form: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.form = form
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(self.norm.weight, 0.5, 2)
        nn.init.normal_(self.norm.bias)
        self.to(D).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.form(self.first(x), x))))


def assert_same(model: Callable[[Tensor], Tensor], folded: Callable[[Tensor], Tensor]) -> None:
    for size in SIZES:
        x = torch.randn(size, dtype=D)
        want = model(x)
        assert (folded(x) - want).abs().max() <= 1e-9 * want.abs().max(), size


@pytest.mark.parametrize("form", FORMS)
def test_modules(form):
    net = Net(FORMS[form])
    assert_same(net, bnfold.fold(net, torch.randn(SIZES[0], dtype=D)).model)


ONE_ORDER = {"a power", "channels cut"}
"""PyTorch exports these for images that are at least as high as they are wide."""


@pytest.mark.parametrize("form", sorted(FORMS.keys() - ONE_ORDER))
def test_exported_programs(form):
    x = torch.randn(SIZES[0], dtype=D)
    sizes = {"x": {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}}
    program = torch.export.export(Net(FORMS[form]), (x,), dynamic_shapes=sizes)
    assert_same(program.module(), bnfold.fold(program).model.module())
