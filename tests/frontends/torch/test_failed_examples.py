"""Models that raise on their example inputs, or where they are recorded: who is to blame."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as everybody calls it

import bnfold
from bnfold.errors import ExampleInputError, UnsupportedModelError
from bnfold.frontends.torch.proof_calls import CallFailedError
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


class Picky(Net):
    """Its code looks at values, of what it has computed."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        torch._assert_async((y > 1e9).all())
        return y


class Indexed(Net):
    """Takes indices of a table that has too few rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 9)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + self.table(y.argmax(1).clamp(min=2))[:, :1, 0]


class Refuses(Net):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise ValueError("not today")


RAISE = [Unpooled, Factorised, Picky, Indexed, Refuses]


@pytest.mark.parametrize("kind", RAISE)
@pytest.mark.parametrize(
    "call",
    [
        bnfold.fold,
        bnfold.inspect,
        lambda model, x: bnfold.inspect(model, x, merge="never"),
        lambda model, x: bnfold.inspect(model, image(2, 3, 9, 9), also=[x]),
        lambda model, x: bnfold.inspect(model, x, entry=["forward"]),
    ],
)
def test_a_module_that_raises_on_its_example(kind: type[Net], call) -> None:
    model = build(kind())
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        model(ODD)
    with pytest.raises(ExampleInputError, match=kind.__name__):
        call(model, ODD)


@pytest.mark.parametrize("kind", [Unpooled, Factorised])
@pytest.mark.parametrize("call", [bnfold.fold, bnfold.inspect])
def test_a_program_that_raises_on_its_example(kind: type[Net], call) -> None:
    program = torch.export.export(build(kind()), (ODD,))
    with pytest.raises(ExampleInputError, match="the program raised") as caught:
        call(program)
    assert "executing" not in str(caught.value)
    assert "export it again" in str(caught.value)


@pytest.mark.parametrize("kind", [Unpooled, Net])
def test_the_same_module_on_what_it_takes(kind: type[Net]) -> None:
    model, x = build(kind()), image(2, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert bnfold.inspect(model, x).summary == "1 of 1 BatchNorm2d would be removed"
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert bnfold.fold(model, x).report.removed == 1


def test_a_module_that_no_machine_like_this_runs_is_inspected(monkeypatch) -> None:
    """What its own op has no kernel for says nothing about the example."""
    model = build(Net())
    report = bnfold.inspect(model, ODD)

    def forward(*args: object) -> None:
        raise CallFailedError(0, NotImplementedError("no kernel"))

    monkeypatch.setattr("bnfold.frontends.torch.proof_calls.ModelCalls.forward", forward)
    assert bnfold.inspect(model, ODD) == report


def test_inspecting_counts_and_draws_nothing() -> None:
    class Counts(Net):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.seen = 0, []
            self.register_buffer("steps", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.seen.append(float(len(x)))
            self.steps += torch.rand(1)
            return super().forward(x)

    model = build(Counts())
    state, steps = torch.get_rng_state(), model.steps.clone()
    assert bnfold.inspect(model, ODD).removed == 1
    assert (model.calls, model.seen) == (0, [])
    assert torch.equal(model.steps, steps)
    assert torch.equal(torch.get_rng_state(), state)


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
