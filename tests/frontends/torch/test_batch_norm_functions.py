"""F.batch_norm in a module: where it stays, it takes in what it has parameters of its own for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

import bnfold
from tests.frontends.torch.support import build, image, in_core_aten


class Net(nn.Module):
    """A BatchNorm, functions, a BatchNorm, and a convolution that takes in the last."""

    def __init__(self, between: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between
        for name in ("gamma", "beta", "other"):
            self.register_parameter(name, nn.Parameter(torch.randn(4)))
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.5)
        self.first, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.inner, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.between(self, self.first(x))))


def norm(n: Net, x: Tensor) -> Tensor:
    return batch_norm(x, n.mean, n.var, n.gamma, n.beta)


FORMS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "its own": norm,
    "twice": lambda n, x: norm(n, norm(n, x)),
    "twice, a convolution between": lambda n, x: norm(n, n.inner(norm(n, x))),
    "one gamma of two": lambda n, x: batch_norm(
        n.inner(norm(n, x)), n.mean, n.var, n.gamma, n.other
    ),
    "one beta of two": lambda n, x: batch_norm(n.inner(norm(n, x)), n.mean, n.var, n.other, n.beta),
    "the variance is the gamma": lambda n, x: batch_norm(x, n.mean, n.var, n.var, n.beta),
    "the mean is the beta": lambda n, x: batch_norm(x, n.mean, n.var, n.gamma, n.mean),
    "both are": lambda n, x: batch_norm(x, n.mean, n.var, n.var, n.mean),
    "gamma is beta": lambda n, x: batch_norm(x, n.mean, n.var, n.gamma, n.gamma),
    "gamma alone": lambda n, x: batch_norm(x, n.mean, n.var, n.gamma, None),
    "beta alone": lambda n, x: batch_norm(x, n.mean, n.var, None, n.beta),
    "neither": lambda n, x: batch_norm(x, n.mean, n.var),
    "beta is added again": lambda n, x: norm(n, x) + n.beta.view(4, 1, 1),
    "gamma multiplies again": lambda n, x: norm(n, x) * n.gamma.view(4, 1, 1),
    "a view of beta": lambda n, x: batch_norm(x, n.mean, n.var, n.gamma, n.beta.view(2, 2).view(4)),
    "a module's gamma": lambda n, x: batch_norm(x, n.mean, n.var, n.last.weight, n.beta),
    "a module's mean": lambda n, x: batch_norm(x, n.last.running_mean, n.var, n.gamma, n.beta),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_it_takes_in_nobody_else_reads(form: str) -> None:
    model = build(Net(FORMS[form]))
    x, other = image(2, 4, 5, 5), image(3, 4, 5, 5, seed=1)
    program = torch.export.export(model, (x,))
    for given in (model, program, in_core_aten(program)):
        inputs = x if given is model else None
        folded, report = bnfold.fold(given, inputs, verify=False)
        assert report.removed
        run = folded if given is model else folded.module()
        torch.testing.assert_close(run(other[:2]), model(other[:2]), rtol=1e-12, atol=1e-12)
    proven = bnfold.fold(model, x).report
    assert not any("did something else" in note for note in proven.notes), str(proven)


class Called(nn.Module):
    """One module with a function inside that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.head = Net(norm), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.head(self.part(x)))


def test_a_module_that_is_called_twice() -> None:
    model = build(Called())
    x = image(2, 4, 5, 5)
    folded, report = bnfold.fold(model, x, verify=False)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)
    assert bnfold.fold(model, x).report.removed == report.removed
