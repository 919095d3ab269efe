"""Models that raise on their example inputs, or where they are recorded: who is to blame."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as everybody calls it

import bnfold
from bnfold.errors import ExampleInputError, UnsupportedModelError
from tests.frontends.torch.support import build, image


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Unpooled(Net):
    """Takes even sizes alone, as its values tell."""

    def forward(self, x: Tensor) -> Tensor:
        y, places = F.max_pool2d(super().forward(x), 2, return_indices=True)
        return F.max_unpool2d(F.relu(y), places, 2)


class Factorised(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x).flatten(1)
        return torch.linalg.cholesky(-(y @ y.T) - torch.eye(len(y), dtype=y.dtype))


ODD = image(2, 3, 9, 9)


@pytest.mark.parametrize("kind", [Unpooled, Factorised])
def test_a_module_that_raises_on_its_example(kind: type[Net]) -> None:
    model = build(kind())
    with pytest.raises(RuntimeError):
        model(ODD)
    with pytest.raises(ExampleInputError, match=kind.__name__):
        bnfold.fold(model, ODD)


@pytest.mark.parametrize("kind", [Unpooled, Factorised])
@pytest.mark.parametrize("call", [bnfold.fold, bnfold.inspect])
def test_a_program_that_raises_on_its_example(kind: type[Net], call) -> None:
    program = torch.export.export(build(kind()), (ODD,))
    with pytest.raises(ExampleInputError, match="the program raised") as caught:
        call(program)
    assert "executing" not in str(caught.value)
    assert "export it again" in str(caught.value)


def test_the_same_module_on_what_it_takes() -> None:
    assert bnfold.fold(build(Unpooled()), image(2, 3, 8, 8)).report.removed == 1


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("no kernel"),
        MemoryError(),
        RuntimeError("\"slow_conv2d\" not implemented for 'Half'"),
    ],
)
def test_a_module_that_no_machine_like_this_runs(error: Exception, monkeypatch) -> None:
    """It is folded all the same, and the report says that nothing was compared."""

    def start(*args: object, **options: object) -> None:
        raise ExampleInputError("Net", error)

    monkeypatch.setattr("bnfold.frontends.torch.prove.start", start)
    _, report = bnfold.fold(build(Net()), ODD)
    assert report.removed == 1
    assert "cannot be run here" in str(report.unverified)


def test_control_flow_of_higher_order() -> None:
    class Cond(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return torch.cond(x.sum() > 0, lambda t: t * 2, lambda t: t - 1, (y,))

    model = build(Cond())
    with pytest.raises(UnsupportedModelError, match="Cond calls cond"):
        bnfold.fold(model, ODD)
