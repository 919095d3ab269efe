"""BatchNorms that share gamma or beta and have statistics of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold import UnsupportedModelError
from tests.frontends.torch.support import assert_folds, assert_same, build, image


class Tied(nn.Module):
    """Two BatchNorms behind convolutions; `between` is what `tie` adds."""

    def __init__(self, tie) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.c2, self.b2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.act: nn.Module = nn.ReLU()
        self.last: nn.Module = nn.Identity()
        tie(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.b2(self.c2(self.act(self.b1(self.c1(x))))))


class Scale(nn.Module):
    def __init__(self, gamma: nn.Parameter) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * self.gamma.view(-1, 1, 1)


class Reads(nn.Module):
    """Looks the gamma up in the BatchNorm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norms = [norm]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.norms[0].weight.view(-1, 1, 1)


def both(net):
    net.b2.weight, net.b2.bias = net.b1.weight, net.b1.bias


def gamma(net):
    net.b2.weight = net.b1.weight


def beta(net):
    net.b2.bias = net.b1.bias


def crossed(net):
    """One gamma is the other's beta."""
    net.b2.bias = net.b1.weight


def convolutions_too(net):
    both(net)
    net.c2.weight = net.c1.weight


def layer_scale(net):
    net.last = Scale(net.b1.weight)


def beside_a_batch_norm_that_stays(net):
    both(net)
    net.last = nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(3), nn.Sigmoid())
    net.last[1].weight = net.b1.weight


def looked_up(net):
    net.last = Reads(net.b2)


CASES = {
    both: 2,
    gamma: 2,
    beta: 2,
    crossed: 2,
    convolutions_too: None,
    layer_scale: 2,
    beside_a_batch_norm_that_stays: 2,
    looked_up: 1,
}


@pytest.mark.parametrize("tie", CASES)
def test_tied_in_a_module(tie):
    model = build(Tied(tie))
    report = assert_folds(model, image(2, 3, 5, 5), inplace=False)
    norms = [i for i in report.items if i.name in ("b1", "b2") and i.is_removed]
    if CASES[tie] is not None:
        assert len(norms) == CASES[tie], str(report)


@pytest.mark.parametrize("tie", CASES)
def test_tied_in_a_program(tie):
    model = build(Tied(tie))
    folded, _ = bnfold.fold(torch.export.export(model, (image(2, 3, 5, 5),)))
    for seed in (0, 4):
        x = image(2, 3, 5, 5, seed=seed)
        with torch.no_grad():
            assert_same([model(x)], [folded.module()(x)], 1e-9)


def test_a_module_of_an_exported_program_says_what_to_fold():
    program = torch.export.export(build(Tied(both)), (image(2, 3, 5, 5),))
    with pytest.raises(UnsupportedModelError, match="fold the program itself"):
        bnfold.fold(program.module(), image(2, 3, 5, 5))
