"""Hazard 10: dtypes, overflow, memory format, requires_grad, device."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import bnfold
from bnfold.frontends.torch.new_tensors import is_finite
from tests.frontends.torch.support import assert_folds, build, image, reasons


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 2),
        nn.BatchNorm2d(4),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("clip", ["auto", "always"])
def test_dtype_is_kept(dtype, clip):
    model = build(network(), dtype=dtype)
    x = image(2, 3, 5, 5, dtype=dtype)
    assert_folds(model, x, dtype=dtype, removed=2, clip=clip)
    folded, _ = bnfold.fold(model, x)
    assert {tensor.dtype for tensor in folded.parameters()} == {dtype}


def test_half_overflow_keeps_the_batch_norm():
    model = build(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), dtype=torch.float16)
    with torch.no_grad():
        model[0].weight[2].fill_(3e-3)
        model[0].weight[1].fill_(200.0)
        model[1].running_var[1] = 1e-6
        model[1].weight[1] = 60.0
        model[1].eps = 0.0
    _, report = bnfold.fold(model, image(2, 3, 5, 5, dtype=torch.float16))
    assert set(reasons(report).values()) <= {"overflow", "scale-range"}
    assert report.kept == 1


def test_mixed_precision_batch_norm():
    model = build(network(), dtype=torch.float32).bfloat16()
    for index in (1, 4):
        model[index].float()
    assert_folds(model, image(2, 3, 5, 5, dtype=torch.bfloat16), dtype=torch.bfloat16, removed=2)


@pytest.mark.parametrize("clip", ["auto", "always"])
def test_channels_last_is_kept(clip):
    model = build(network()).to(memory_format=torch.channels_last)
    x = image(2, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    assert_folds(model, x, removed=2, clip=clip)
    for inplace in (False, True):
        folded, _ = bnfold.fold(model, x, inplace=inplace, clip=clip)
        assert folded[0].weight.is_contiguous(memory_format=torch.channels_last)
        assert folded[3].weight.is_contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            assert folded(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("inplace", [False, True])
def test_requires_grad_is_kept(inplace):
    model, x = build(network()), image(2, 3, 5, 5)
    for parameter in model[0].parameters():
        parameter.requires_grad = False
    folded, _ = bnfold.fold(model, x, inplace=inplace)
    assert not any(parameter.requires_grad for parameter in folded[0].parameters())
    assert all(parameter.requires_grad for parameter in folded[3].parameters())
    folded(x).sum().backward()
    assert folded[3].weight.grad is not None
    assert not torch.is_grad_enabled() or folded(x).requires_grad


def test_parameters_stay_parameters_and_buffers_buffers():
    model, x = build(network()), image(2, 3, 5, 5)
    folded, _ = bnfold.fold(model, x)
    assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in folded.parameters())
    mine = {p.data_ptr() for p in (*model.parameters(), *model.buffers())}
    assert not mine & {p.data_ptr() for p in (*folded.parameters(), *folded.buffers())}


def test_gradient_of_the_original_is_left_alone():
    model, x = build(network()), image(2, 3, 5, 5)
    model(x).sum().backward()
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    bnfold.fold(model, x)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("clip", ["auto", "always"])
def test_device_is_kept(clip):
    model, x = build(network()).cuda(), image(2, 3, 5, 5).cuda()
    folded, report = bnfold.fold(model, x, clip=clip)
    assert report.removed == 2
    assert {tensor.device.type for tensor in folded.state_dict().values()} == {"cuda"}
    assert torch.allclose(folded(x), model(x), rtol=1e-9)


def test_expanded_weight():
    conv = nn.Conv2d(3, 4, 1, bias=False)
    conv.weight = nn.Parameter(torch.ones(1, 3, 1, 1).expand(4, 3, 1, 1))
    assert_folds(build(nn.Sequential(conv, nn.BatchNorm2d(4))), image(2, 3, 5, 5), removed=1)


def test_non_contiguous_weight():
    linear = nn.Linear(3, 4)
    linear.weight = nn.Parameter(torch.randn(3, 4).t())
    assert_folds(build(nn.Sequential(linear, nn.BatchNorm1d(4))), image(5, 3), removed=1)


def test_unbatched_input():
    model = build(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)))
    assert_folds(model, image(3, 5, 5), batches=False)


def test_example_of_one_sample_and_one_pixel():
    assert_folds(build(network()), image(1, 3, 1, 1), more=(image(2, 3, 7, 6),))


class Narrow(nn.Module):
    """A BatchNorm on the input, and a convolution that computes in another dtype."""

    def __init__(self, dtype: torch.dtype, *, autocast: bool) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)
        self.dtype, self.autocast = dtype, autocast

    def forward(self, x):
        if self.autocast:
            with torch.autocast("cpu", self.dtype):
                return self.conv(self.bn(x)).float()
        return self.conv(self.bn(x).to(self.dtype)).float()


def on_input(model: nn.Module, norm: nn.BatchNorm2d, mean: float, variance: float) -> str:
    """The reason for which the BatchNorm stays, or nothing."""
    norm.running_mean.fill_(mean)
    norm.running_var.fill_(variance)
    x = (mean + variance**0.5 * image(2, 3, 5, 5)).float()
    return "".join(reasons(bnfold.fold(model.eval(), x)[1]).values())


@pytest.mark.parametrize(("mean", "variance", "why"), [(120, 3600, ""), (1e6, 1, "scale-range")])
def test_the_mean_of_the_input_counts_in_float32(mean, variance, why):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))
    assert on_input(model, model[0], mean, variance) == why


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("mean", "variance", "why"), [(0.0, 1.0, ""), (1e3, 1.0, "scale-range")])
def test_the_digits_of_the_dtype_behind_count(autocast, mean, variance, why):
    model = Narrow(torch.bfloat16, autocast=autocast)
    if not autocast:
        model.conv.bfloat16()
    assert on_input(model, model.bn, mean, variance) == why


def test_the_range_of_the_dtype_behind_counts():
    model = Narrow(torch.float16, autocast=False)
    model.conv.half()
    assert on_input(model, model.bn, 0.0, 1e10) == "scale-range"
    assert on_input(model, model.bn, 0.0, 100.0) == ""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_entry_that_is_not_finite_is_found_and_a_large_one_is_none(dtype):
    large = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(large) and is_finite(-large) and is_finite(large.t())
    assert is_finite(torch.zeros(0, dtype=dtype))
    for entry in (math.inf, -math.inf, math.nan):
        large[1, 2] = entry
        assert not is_finite(large) and not is_finite(large.t())
        assert not is_finite(torch.tensor([1.0, entry], dtype=dtype))
