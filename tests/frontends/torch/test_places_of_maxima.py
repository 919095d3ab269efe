"""Where a maximum was is read: of a gamma's 0, whose constant is stored as anything, anywhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import bnfold
from tests.frontends.torch.support import assert_same, build, image, run

X = image(2, 4, 8, 8)


class Maxima(nn.Module):
    """A BatchNorm of which some channels are constant, in front of maxima."""

    def __init__(self, maxima: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.bn, self.last, self.maxima = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1), maxima

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        largest, *others = self.maxima(self.bn(torch.sigmoid(x)))
        return self.last(largest), *others


def dead(maxima: Callable[[Tensor], tuple[Tensor, ...]]) -> nn.Module:
    model = build(Maxima(maxima))
    with torch.no_grad():
        model.bn.weight.copy_(torch.tensor([0.0, 1.3, 0.0, 0.4]))
    return model


def unpooled(y: Tensor) -> tuple[Tensor, ...]:
    largest, places = F.max_pool2d(y, 2, return_indices=True)
    return largest, F.max_unpool2d(torch.ones_like(largest), places, 2)


def in_a_row(y: Tensor) -> tuple[Tensor, ...]:
    return F.max_pool2d(F.max_pool2d(y, 2), 2, return_indices=True)


TOLD: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "a layer": nn.MaxPool2d(2, return_indices=True),
    "adaptive": nn.AdaptiveMaxPool2d(3, return_indices=True),
    "unpooled": unpooled,
    "the second of two": in_a_row,
    "along an axis": lambda y: tuple(torch.max(y, 3, keepdim=True)),
}
UNTOLD: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "not asked for": lambda y: (F.max_pool2d(y, 2),),
    "asked for, and not read": lambda y: F.max_pool2d(y, 2, return_indices=True)[:1],
    "adaptive": lambda y: (F.adaptive_max_pool2d(y, 3),),
    "along an axis": lambda y: (torch.max(y, 3, keepdim=True).values,),
}


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("which", TOLD)
def test_the_step_stays_where_they_are_read(which: str, exported: bool) -> None:
    model = dead(TOLD[which])
    given = (torch.export.export(model, (X,)),) if exported else (model, X)
    folded, report = bnfold.fold(*given, verify=False)
    assert [item.reason for item in report.items] == [bnfold.Reason.ZERO_GAMMA]
    for seed in range(2):
        x = image(2, 4, 8, 8, seed=seed)
        assert_same(run(model, x), run(folded.module() if exported else folded, x), 1e-9)


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("which", UNTOLD)
def test_it_goes_where_nobody_does(which: str, exported: bool) -> None:
    model = dead(UNTOLD[which])
    given = (torch.export.export(model, (X,)),) if exported else (model, X)
    folded, report = bnfold.fold(*given, verify=False)
    assert report.removed == 1, str(report)
    assert_same(run(model, X), run(folded.module() if exported else folded, X), 1e-9)


@pytest.mark.parametrize("which", TOLD)
def test_without_a_constant_it_goes_all_the_same(which: str) -> None:
    model = build(Maxima(TOLD[which]))
    with torch.no_grad():
        model.bn.weight.abs_()
    folded, report = bnfold.fold(model, X)
    assert report.removed == 1, str(report)
    assert_same(run(model, X), run(folded, X), 1e-9)
