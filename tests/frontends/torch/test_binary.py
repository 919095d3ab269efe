"""Binary networks: conv -> BatchNorm -> sign becomes a bias, and the weights stay binary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from tests.frontends.torch.support import assert_folds, build, image


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(x)


class BinaryConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, torch.sign(self.weight), self.bias, self.stride, self.padding)


def network(kind: type[nn.Conv2d], bias: bool = True) -> nn.Module:
    model = nn.Sequential(
        kind(3, 6, 3, bias=bias),
        nn.BatchNorm2d(6),
        Sign(),
        kind(6, 4, 3, padding=1, bias=bias),
        nn.BatchNorm2d(4),
        Sign(),
        nn.Conv2d(4, 3, 1),
    )
    model = build(model)
    if kind is nn.Conv2d:
        for index in (0, 3):
            model[index].weight.data.sign_()
    return model


@pytest.mark.parametrize("bias", [True, False])
def test_binary_weights_stay_binary_and_the_article_is_corrected(bias):
    model = network(nn.Conv2d, bias)
    x = image(2, 3, 8, 8)
    assert_folds(model, x, removed=2)
    folded, _ = bnfold.fold(model, x)
    conv, norm = model[0], model[1]
    assert set(folded[0].weight.unique().tolist()) == {-1.0, 1.0}
    sign = norm.weight.sign()
    old = 0 if conv.bias is None else conv.bias
    wanted = (
        old - norm.running_mean + norm.bias * (norm.running_var + norm.eps).sqrt() / norm.weight
    )
    assert torch.allclose(folded[0].bias.abs(), (sign * wanted).abs(), rtol=1e-12)
    assert torch.allclose(
        folded[0].bias / folded[0].weight[:, 0, 0, 0] * conv.weight[:, 0, 0, 0], wanted, rtol=1e-12
    )


def test_weights_binarised_in_the_forward():
    model = network(BinaryConv)
    x = image(2, 3, 8, 8)
    report = assert_folds(model, x)
    assert report.removed == 2
    folded, _ = bnfold.fold(model, x)
    assert torch.equal(folded[0].weight.abs(), model[0].weight.abs())


def test_scaled_binary_weights_stay_binary():
    model = network(nn.Conv2d)
    model[0].weight.data *= 0.25
    folded, _ = bnfold.fold(model, image(2, 3, 8, 8))
    assert len(folded[0].weight.abs().unique()) == 1
    assert_folds(model, image(2, 3, 8, 8))


class Hard(nn.Module):
    """x >= 0 ? 1 : -1 is not odd at 0: a negative gamma may not pass as a sign."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def test_activation_that_is_not_odd():
    model = build(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), Hard(), nn.Conv2d(4, 3, 1)))
    model[0].weight.data.sign_()
    model[0].bias.data.zero_()
    model[1].bias.data.zero_()
    model[1].running_mean.zero_()
    x = image(2, 3, 5, 5).sign()
    x[:, :, 2] = 0.0
    assert_folds(model, x, more=(torch.zeros_like(x),))


def test_zero_gamma_before_sign():
    model = network(nn.Conv2d)
    model[1].weight.data[2] = 0.0
    assert_folds(model, image(2, 3, 8, 8))


def test_sign_of_a_weight_that_holds_zeros():
    model = network(BinaryConv)
    model[0].weight.data[0, 0] = 0.0
    assert_folds(model, image(2, 3, 8, 8))
