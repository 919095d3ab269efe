"""Exported programs: steps that go once others are gone, see `core/fold_again.py`."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import bnfold
from tests.frontends.torch.support import image
from tests.frontends.torch.test_merge_program import count

TINY = 1e-7


def norm(gamma: list[float], beta: list[float]) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(len(gamma))
    layer.weight.data = torch.tensor(gamma)
    layer.bias.data = torch.tensor(beta)
    layer.running_mean += 0.1
    return layer


class Zero(nn.Module):
    """The first makes -0.7 of 0, which the activation makes 0 of, and the second forgets that."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.first = norm([1.2, 0.0, 0.8], [0.3, -0.7, 0.4])
        self.activation = activation
        self.second = norm([1.5, 0.0, 0.7], [-0.2, 0.5, 0.3])
        self.out = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        x = self.second(self.activation(self.first(self.conv(x))))
        return self.out(nn.functional.leaky_relu(x, 0.1))


class Branches(nn.Module):
    """A channel of the sum is hardly there; what one of its operands adds to it, neither."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norms = nn.ModuleList(
            [norm([0.7, 1.1, TINY], [0.3, -0.5, 0.2]), norm([0.6, 1.2, 0.9], [0.3, -0.5, 0.2])]
        )
        self.behind = norm([0.9, 1.2, TINY], [0.3, 0.1, 0.4])

    def forward(self, x):
        one, two, three = self.convs
        y = one(x) + self.norms[0](two(x.tanh())) + self.norms[1](three(x.cos()))
        return self.behind(y).relu()


@pytest.mark.parametrize("merge", ["auto", "never"])
@pytest.mark.parametrize(
    "model", [Zero(nn.ReLU()), Zero(nn.ReLU6()), Zero(nn.Hardtanh(-0.1, 4.0)), Branches()]
)
def test_a_second_fold_removes_nothing(model, merge):
    x = image(2, 3, 6, 6)
    program = torch.export.export(model.double().eval(), (x,))
    expected = program.module()(x)
    folded, report = bnfold.fold(program, clip="always", merge=merge)
    assert report.verdict.equal
    torch.testing.assert_close(folded.module()(x), expected, rtol=1e-9, atol=1e-9)
    assert report.kept == count(folded, "batch_norm") == 0
    again = bnfold.fold(folded, clip="always", merge=merge)[1]
    assert again.total == 0
    assert bnfold.inspect(program, clip="always", merge=merge).items == report.items


def test_the_fallback_is_one_round(monkeypatch):
    """What cannot be shown equal as a whole is folded once, and proven step by step."""
    from bnfold.frontends.torch import prove
    from bnfold.verify.result import VerifyResult

    x = image(2, 3, 6, 6)
    program = torch.export.export(Zero(nn.ReLU()).double().eval(), (x,))
    whole = prove.Proof.check
    checks = []

    def check(proof, folded):
        checks.append(count(folded, "batch_norm"))
        result: VerifyResult = whole(proof, folded)
        return result if len(checks) > 1 else dataclasses.replace(result, equal=False)

    monkeypatch.setattr(prove.Proof, "check", check)
    folded, report = bnfold.fold(program, clip="always")
    assert checks[:2] == [0, 1]
    assert (report.removed, report.kept, count(folded, "batch_norm")) == (1, 1, 1)
    torch.testing.assert_close(folded.module()(x), program.module()(x), rtol=1e-9, atol=1e-9)
