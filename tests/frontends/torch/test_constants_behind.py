"""Factors and summands around a BatchNorm that stays: it takes them in, or they take it in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from bnfold import Reason
from tests.frontends.torch.support import assert_folds, assert_same, build, image, reasons, run
from tests.tolerances import RELATIVE


class Net(nn.Module):
    """A function of a BatchNorm and two parameters per channel."""

    def __init__(self, function: Callable[[Net, Tensor], object], *, shape=(3, 1, 1)) -> None:
        super().__init__()
        self.function = function
        self.norm = nn.BatchNorm2d(3)
        self.factor = nn.Parameter(torch.tensor([1.5, -0.4, 0.7]).reshape(shape))
        self.summand = nn.Parameter(torch.tensor([0.3, -1.1, 0.8]).reshape(shape))

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


class Factor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor([1.5, -0.4, 0.7]).reshape(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.k


class Summand(Factor):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.k


class Both(Factor):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.k + self.k


X = image(2, 3, 5, 7)


def gelu(x: Tensor) -> Tensor:
    return functional.gelu(x)


# ------------------------------------------------------------- parameters that stay as they are


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: gelu(s.norm(x) * s.factor + s.summand) * s.factor,
        lambda s, x: gelu(s.norm(x) * s.factor + s.summand) + s.summand,
        lambda s, x: (gelu(s.norm(x) * s.factor + s.summand), s.factor),
        lambda s, x: gelu(s.norm(x) * s.factor + s.summand) * s.factor.abs().sum(),
        lambda s, x: gelu(s.norm(x) * s.factor + s.summand) * float(s.factor.sum()),
        lambda s, x: gelu(s.norm(x) * s.factor.exp() + s.summand),
        lambda s, x: gelu(s.norm(x) * s.factor + s.factor),
        lambda s, x: gelu(s.norm(x).mul(s.factor).add(s.summand, alpha=2.0)),
        lambda s, x: gelu(s.norm(gelu(s.norm(x) * s.factor + s.summand)) * s.factor + s.summand),
    ],
)
def test_a_parameter_that_others_read_takes_nothing_in(function):
    """What reads it otherwise, or a second time, would see the fold."""
    model = build(Net(function))
    report = assert_folds(model, X, removed=0)
    assert Reason.NOT_PROVEN not in reasons(report).values()


def test_without_the_proof_too():
    model = build(Net(lambda s, x: gelu(s.norm(x) * s.factor + s.summand) * s.factor))
    folded, report = bnfold.fold(model, X, verify=False)
    assert report.removed == 0
    assert_same(run(model, X), run(folded, X), RELATIVE["float64"])


def test_a_parameter_per_pixel_takes_nothing_in():
    model = build(Net(lambda s, x: gelu(s.norm(x) * torch.ones(7) * s.factor[:, :, :1])))
    assert_folds(model, X, removed=0)


# ------------------------------------------------------------- the model's own arithmetic


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: gelu(s.norm(x) * s.factor + s.summand),
        lambda s, x: gelu((s.norm(x) + s.summand) * s.factor),
        lambda s, x: gelu(s.summand + s.factor * s.norm(x)),
        lambda s, x: gelu(s.norm(x).mul_(s.factor).add_(s.summand)),
        lambda s, x: gelu(torch.mul(s.norm(x), s.factor.view(1, -1, 1, 1)) + s.summand[None]),
        lambda s, x: gelu(s.norm(x).transpose(1, 3) * s.factor.view(3) + s.summand.view(3)),
    ],
)
def test_parameters_of_the_model_take_a_batch_norm_in(function):
    report = assert_folds(build(Net(function)), X, removed=1, kept=0)
    (item,) = report.items
    assert all(name.split()[0].rstrip("_") in ("mul", "add") for name in item.outcome.into)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_in_the_dtype_of_the_parameters(dtype):
    model = build(Net(lambda s, x: gelu(s.norm(x) * s.factor + s.summand)), dtype=dtype)
    folded, report = bnfold.fold(model, X.to(dtype))
    assert report.removed == 1
    assert folded.factor.dtype == folded.summand.dtype == dtype
    assert folded.factor.shape == model.factor.shape
    assert_same(run(model, X.to(dtype)), run(folded, X.to(dtype)), RELATIVE[str(dtype)[6:]])


# ------------------------------------------------------------- modules in a row


@pytest.mark.parametrize(
    "parts",
    [
        (nn.BatchNorm2d, Factor),
        (nn.BatchNorm2d, Summand),
        (nn.BatchNorm2d, Both),
        (Both, nn.BatchNorm2d),
        (nn.BatchNorm2d, Factor, Summand),
        (Factor, nn.BatchNorm2d, Summand),
        (nn.BatchNorm2d, Summand, Factor, Both),
        (Summand, Factor, nn.BatchNorm2d, Both),
    ],
)
@pytest.mark.parametrize("program", [False, True])
def test_a_batch_norm_that_stays_takes_all_others_in(parts, program):
    """x and GELU are what they are: one step has to be left between them, and that suffices."""
    steps = [part(3) if part is nn.BatchNorm2d else part() for part in parts]
    model = build(nn.Sequential(*steps, nn.GELU()))
    if not program:
        report = assert_folds(model, X, removed=len(parts) - 1, kept=1)
    else:
        exported = torch.export.export(model, (X,))
        folded, report = bnfold.fold(exported)
        assert report.kept == 1
        assert_same(run(model, X), run(folded.module(), X), RELATIVE["float64"])
    (kept,) = (item for item in report.items if not item.is_removed)
    assert kept.kind.lower().startswith("batch")
    assert (kept.reason, kept.blocker.split()[0]) == (Reason.NONLINEAR, "gelu")


def test_a_factor_of_a_program_takes_another_one_in():
    """There, too, a parameter that only one product reads is rescaled."""
    model = build(Net(lambda s, x: gelu(torch.relu(s.norm(x) * s.factor.abs()) * s.summand + 1.0)))
    exported = torch.export.export(model, (X,))
    folded, report = bnfold.fold(exported)
    assert_same(run(model, X), run(folded.module(), X), RELATIVE["float64"])
    assert report.removed == 2


def test_a_zero_among_the_factors_of_a_program():
    model = build(Net(lambda s, x: gelu(s.norm(x) * s.factor + s.summand)))
    with torch.no_grad():
        model.factor[1] = 0.0
    folded, report = bnfold.fold(torch.export.export(model, (X,)))
    assert report.removed >= 1
    assert_same(run(model, X), run(folded.module(), X), RELATIVE["float64"])
