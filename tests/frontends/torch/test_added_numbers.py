"""A number that the code adds stays: behind a BatchNorm its readers take in what changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.frontends.torch.support import assert_folds, build, image

X = image(2, 3, 6, 7)


class Net(nn.Module):
    """A function of a BatchNorm of what came in, in front of a convolution."""

    def __init__(self, function: Callable[[Net, Tensor], Tensor], padding: int = 0) -> None:
        super().__init__()
        self.function = function
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU()
        self.head = nn.Conv2d(3, 4, 3, padding=padding)
        self.count = 0
        self.register_buffer("summand", torch.tensor([0.3, -1.1, 0.8]).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self, x))


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: s.norm(x) + x.shape[-1],
        lambda s, x: s.norm(x) + 1.0 / x.shape[0],
        lambda s, x: s.norm(x) + float(x.mean()),
        lambda s, x: 1.0 - s.norm(x) * float(x.mean()),
    ],
)
def test_a_number_that_may_be_another_lets_nothing_through(function):
    assert_folds(build(Net(function)), X, removed=0, more=(image(2, 3, 9, 8),))


def by_a_count(net: Net, x: Tensor) -> Tensor:
    net.count += 1
    return net.norm(x) + (2.0 if net.count > 14 else 0.5)


def test_nor_one_that_depends_on_how_often_it_was_run():
    _, report = bnfold.fold(build(Net(by_a_count)), X, verify=False)
    assert report.removed == 0


def test_nor_one_that_a_caller_may_give():
    class Given(Net):
        def forward(self, x: Tensor, summand: float = 0.5) -> Tensor:
            return self.head(self.norm(x) + summand)

    _, report = bnfold.fold(build(Given(lambda s, x: x)), X, verify=False)
    assert report.removed == 0


def test_nor_does_zero_padding_take_the_shift():
    assert_folds(build(Net(lambda s, x: s.norm(x) + 1, padding=1)), X, removed=0)


def test_nor_another_reader():
    assert_folds(build(Net(lambda s, x: (y := s.norm(x) + 1) * torch.sigmoid(y))), X, removed=0)


FORMS = {
    "a sum": lambda s, x: s.norm(x) + 1,
    "a difference": lambda s, x: s.norm(x) - 0.5,
    "from a number": lambda s, x: 2 - s.norm(x),
    "behind an activation": lambda s, x: s.act(s.norm(x)) + 1,
    "several": lambda s, x: 3 - (s.norm(x) - 0.5) / 0.25,
    "twice": lambda s, x: (s.norm(x) + 1) + (s.norm(x) + 2),
    "per channel": lambda s, x: s.norm(x) + s.summand * 2,
}


@pytest.mark.parametrize("name", FORMS)
def test_any_scale_passes(name):
    model = build(Net(FORMS[name]))
    assert_folds(model, X, kept=0, clip="always")
    _, report = bnfold.fold(torch.export.export(model, (X,)), clip="always")
    assert report.kept == 0
