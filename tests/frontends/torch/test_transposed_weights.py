"""A matrix that lies the other way round than the op takes it: tied weights, x @ W."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from tests.frontends.torch.support import build, in_core_aten

Product = Callable[[Tensor, Tensor, Tensor], Tensor]

WIDE: dict[str, Product] = {  # W is (out, in)
    "linear": functional.linear,
    "t": lambda x, w, b: x @ w.t() + b,
    "T": lambda x, w, b: x @ w.T + b,
    "mT": lambda x, w, b: x @ w.mT + b,
    "transpose": lambda x, w, b: x @ w.transpose(0, 1) + b,
    "transpose, from behind": lambda x, w, b: x @ w.transpose(-1, 0) + b,
    "permute": lambda x, w, b: x @ w.permute(1, 0) + b,
    "permute, from behind": lambda x, w, b: x @ w.permute(-1, -2) + b,
    "swapaxes": lambda x, w, b: x @ w.swapaxes(0, 1) + b,
    "addmm": lambda x, w, b: torch.addmm(b, x, w.t()),
}
TALL: dict[str, Product] = {  # W is (in, out)
    "matmul": lambda x, w, b: x @ w + b,
    "linear of t": lambda x, w, b: functional.linear(x, w.t(), b),
    "linear of T": lambda x, w, b: functional.linear(x, w.T, b),
    "linear of permute": lambda x, w, b: functional.linear(x, w.permute(1, 0), b),
    "addmm": lambda x, w, b: torch.addmm(b, x, w),
}
SQUARE: dict[str, Product] = {  # nothing tells the two axes apart but their order
    "itself, permuted": lambda x, w, b: x @ w.permute(0, 1) + b,
    "itself, transposed": lambda x, w, b: x @ w.transpose(1, -1) + b,
    "t": lambda x, w, b: x @ w.t() + b,
    "t of t": lambda x, w, b: x @ w.t().t() + b,
    "linear of t": lambda x, w, b: functional.linear(x, w.t(), b),
    "linear of T of T": lambda x, w, b: functional.linear(x, w.T.T, b),
    "both ways": lambda x, w, b: x @ w + functional.linear(x, w, b),
    "one behind the other": lambda x, w, b: functional.linear(x @ w, w, b),
    "the other way": lambda x, w, b: w.t() @ x + b,
}


class Between(nn.Module):
    """A product between two BatchNorms."""

    def __init__(self, product: Product, ins: int, outs: int, shape: tuple[int, int]) -> None:
        super().__init__()
        self.before, self.after = nn.BatchNorm1d(ins), nn.BatchNorm1d(outs)
        self.weight, self.bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(outs))
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.product(self.before(x), self.weight, self.bias))


def folds_of(model: nn.Module, x: Tensor) -> dict[str, bnfold.FoldReport]:
    """The reports; each fold is compared, without a check of its own."""
    program = torch.export.export(model, (x,))
    other = x * 0.5 + 0.25
    reports = {}
    models = {"module": model, "program": program, "in core ATen": in_core_aten(program)}
    for name, given in models.items():
        inputs = x if given is model else None
        folded, reports[name] = bnfold.fold(given, inputs, verify=False)
        run = folded if given is model else folded.module()
        torch.testing.assert_close(run(other), model(other), rtol=1e-12, atol=1e-12)
    return reports


@pytest.mark.parametrize("form", WIDE)
def test_a_parameter_of_outputs_by_inputs(form: str) -> None:
    model = build(Between(WIDE[form], 4, 5, (5, 4)))
    for name, report in folds_of(model, torch.randn(3, 4, dtype=torch.float64)).items():
        assert report.removed == report.total == 2, (name, str(report))


@pytest.mark.parametrize("form", TALL)
def test_a_parameter_of_inputs_by_outputs(form: str) -> None:
    model = build(Between(TALL[form], 4, 5, (4, 5)))
    for name, report in folds_of(model, torch.randn(3, 4, dtype=torch.float64)).items():
        assert report.removed == report.total == 2, (name, str(report))


@pytest.mark.parametrize("form", SQUARE)
def test_a_square_parameter_is_told_by_the_order_of_its_axes(form: str) -> None:
    model = build(Between(SQUARE[form], 4, 4, (4, 4)))
    folds_of(model, torch.randn(4, 4, dtype=torch.float64))


class Tied(nn.Module):
    """An autoencoder with one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.first, self.second = (
            nn.Linear(4, 4),
            nn.BatchNorm1d(4),
            nn.BatchNorm1d(4),
        )

    def forward(self, x: Tensor) -> Tensor:
        code = self.first(self.encode(x)).relu()
        return self.second(functional.linear(code, self.encode.weight.t()))


def test_tied_weights_stay_tied() -> None:
    folds_of(build(Tied()), torch.randn(3, 4, dtype=torch.float64))


class Branches(nn.Module):
    """Two products of one tensor, of which one has its matrix the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.right = nn.Parameter(torch.randn(4, 4))
        self.left, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(functional.linear(x, self.right.t()) + self.left(x))


def test_branches_that_lie_in_two_ways_merge() -> None:
    folds_of(build(Branches()), torch.randn(3, 4, dtype=torch.float64))
