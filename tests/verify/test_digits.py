"""A fold that is right in float64, and off in its own dtype because it stores what cancels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bnfold


def pair(mean: float, dtype: torch.dtype, deviation: float = 1.0) -> tuple[nn.Module, nn.Module]:
    """BatchNorm of the input, Conv; and the two merged by hand, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    model = model.double().eval()
    model[0].running_mean.fill_(mean)
    model[0].running_var.fill_(deviation**2)
    model = model.to(dtype)
    exact = nn.Sequential(*(m for m in model)).double()
    folded = nn.Sequential(nn.Identity(), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    folded = folded.double().eval()
    bn, conv = exact[0], exact[1]
    factor = bn.weight / (bn.running_var + bn.eps).sqrt()
    with torch.no_grad():
        folded[1].weight.copy_(conv.weight * factor[:, None, None])
        shift = bn.bias - bn.running_mean * factor
        folded[1].bias.copy_(conv.bias + (conv.weight.sum((2, 3)) * shift).sum(1))
        folded[3].load_state_dict(exact[3].state_dict())
    return model.to(dtype), folded.to(dtype)


def inputs(mean: float, dtype: torch.dtype, deviation: float = 1.0) -> torch.Tensor:
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return (x * deviation + mean).to(dtype)


LOST = [
    (1e6, torch.float32, 1.0),
    (-1e5, torch.float32, 1.0),
    (3e5, torch.float32, 1.0),
    (1e3, torch.bfloat16, 1.0),
    (100.0, torch.bfloat16, 1.0),
    (1e3, torch.float16, 1.0),
    (-200.0, torch.float16, 1.0),
]


@pytest.mark.parametrize(("mean", "dtype", "deviation"), LOST)
def test_a_fold_that_loses_digits_is_not_equal(mean, dtype, deviation):
    model, folded = pair(mean, dtype, deviation)
    result = bnfold.verify(model, folded, inputs(mean, dtype, deviation), samples=1)
    assert result.verdict == "not equal", str(result)
    assert "loses digits" in result.outputs[0].detail, str(result)
    # Nothing says what this would store: `bnfold.fold` itself keeps such a BatchNorm.
    assert result.parting == "0"
    assert bnfold.fold(model, inputs(mean, dtype, deviation))[1].kept


@pytest.mark.parametrize(
    ("mean", "dtype", "deviation"),
    [
        (3.0, torch.float32, 1.0),
        (120.0, torch.float32, 60.0),
        (100.0, torch.float32, 1.0),
        (3.0, torch.float16, 1.0),
        (3.0, torch.bfloat16, 1.0),
        (120.0, torch.bfloat16, 60.0),
        (1e6, torch.float64, 1.0),
    ],
)
def test_usual_statistics_lose_none(mean, dtype, deviation):
    model, folded = pair(mean, dtype, deviation)
    result = bnfold.verify(model, folded, inputs(mean, dtype, deviation), samples=1)
    assert result.equal, str(result)


@pytest.mark.parametrize("bias", [1e8, 1e12, 1e30])
def test_nothing_finer_than_float64_excuses_a_fold_that_stores_what_cancels(bias):
    """Its own movement would explain any difference; the original's is next to none."""
    torch.manual_seed(0)
    norms = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    model = nn.Sequential(norms[0], nn.ReLU6(), norms[1], nn.LeakyReLU(0.1), nn.Conv2d(4, 4, 1))
    model = model.double().eval()
    with torch.no_grad():
        norms[0].bias.copy_(torch.tensor([bias, -bias, bias, 0]))
        norms[1].running_mean.uniform_(-1, 1)
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    folded, report = bnfold.fold(model, x, clip="always", verify=False)
    assert report.removed == 1
    assert not bnfold.verify(model, folded, x).equal
    folded, report = bnfold.fold(model, x, clip="always")
    assert report.removed == 0
    assert torch.equal(folded(x), model(x))
