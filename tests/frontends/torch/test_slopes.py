"""LeakyReLU, PReLU and abs are slopes: they make one number of the constant of a gamma of 0."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from tests.frontends.torch.support import assert_same, build, image, run

X = image(2, 3, 7, 7)


class Functional(nn.Module):
    def __init__(self, how, *numbers: float) -> None:
        super().__init__()
        self.how = how
        self.slopes = nn.Parameter(torch.tensor(numbers)) if numbers else None

    def forward(self, x: Tensor) -> Tensor:
        return self.how(x) if self.slopes is None else self.how(x, self.slopes)


class Dead(nn.Module):
    """A BatchNorm whose gammas are all 0, of what others read as it is."""

    def __init__(self, activation: nn.Module, padding: int = 0) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.activation, self.last = activation, nn.Conv2d(4, 2, 3, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(self.activation(self.bn(y))) + torch.sigmoid(y).mean()


def dead(activation: nn.Module, padding: int = 0) -> nn.Module:
    model = build(Dead(activation, padding))
    with torch.no_grad():
        model.bn.weight.zero_()
        model.bn.bias.copy_(torch.tensor([-0.7, 0.4, -1.1, 0.2]))
    return model


ACTIVATIONS = {
    "leaky": lambda: nn.LeakyReLU(0.2),
    "in place": lambda: nn.LeakyReLU(0.3, inplace=True),
    "the other way": lambda: nn.LeakyReLU(-0.5),
    "by default": lambda: Functional(functional.leaky_relu),
    "abs": lambda: Functional(torch.abs),
    "one slope": lambda: nn.PReLU(init=-0.3),
    "slopes": lambda: Functional(functional.prelu, 0.1, -0.2, 0.3, 2.0),
}


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("which", ACTIVATIONS)
def test_the_constant_goes_into_the_bias_behind(which: str, exported: bool) -> None:
    model = dead(ACTIVATIONS[which]())
    folded, report = bnfold.fold(*((torch.export.export(model, (X,)),) if exported else (model, X)))
    assert (report.removed, report.kept) == (1, 0), str(report)
    for seed in range(2):
        x = image(2, 3, 7, 7, seed=seed)
        assert_same(run(model, x), run(folded.module() if exported else folded, x), 1e-9)


@pytest.mark.parametrize("which", ACTIVATIONS)
def test_it_does_not_cross_padded_zeros(which: str) -> None:
    model = dead(ACTIVATIONS[which](), padding=1)
    folded, report = bnfold.fold(model, X)
    assert [item.reason for item in report.items] == [bnfold.Reason.PADDING]
    assert_same(run(model, X), run(folded, X), 0.0)


class Counts(nn.Module):
    """Its slope is another one in the next run."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = 0.1

    def forward(self, x: Tensor) -> Tensor:
        self.slope += 0.1
        return functional.leaky_relu(x, self.slope)


class OfTheSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(x, 1 / x.shape[-1])


@pytest.mark.parametrize("activation", [Counts, OfTheSize])
def test_a_slope_that_is_not_the_same_tells_nothing(activation: type[nn.Module]) -> None:
    model = dead(activation())
    report = bnfold.fold(model, X, verify=False).report
    assert report.removed == 0, str(report)


class Siblings(nn.Module):
    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 2, 3)
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(self.a(x)), self.other(self.b(x))], 1)


@pytest.mark.parametrize(
    ("one", "other", "left"),
    [
        (nn.LeakyReLU(0.2), nn.LeakyReLU(0.3), 2),
        (nn.PReLU(init=0.2), nn.PReLU(init=0.3), 2),
        (nn.PReLU(4, init=0.2), nn.PReLU(2, init=0.2), 2),
        (nn.LeakyReLU(0.2), nn.ReLU(), 2),
        (nn.LeakyReLU(0.2), nn.LeakyReLU(0.2), 1),
        (nn.PReLU(init=0.3), nn.PReLU(init=0.3), 1),
        (Functional(torch.abs), Functional(torch.abs), 1),
    ],
)
def test_siblings_with_one_slope_are_one(one: nn.Module, other: nn.Module, left: int) -> None:
    model = build(Siblings(one, other))
    folded, _ = bnfold.fold(torch.export.export(model, (X,)))
    names = [str(node.target) for node in folded.graph.nodes]
    assert sum("conv2d" in name for name in names) == left
    assert_same(run(model, X), run(folded.module(), X), 1e-9)
