"""What differs from run to run: chance in numbers folds around, other paths stay and say why."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as everybody calls it

import bnfold
from tests.frontends.torch.support import build, image, reasons

X = image(2, 3, 7, 7)
Tail = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Convolution, BatchNorm, head, and what a case does behind them."""

    def __init__(self, tail: Tail) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head, self.last = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.tail, self.count, self.cache = tail, 0, None

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self, self.head(F.silu(self.bn(self.conv(x)))))


def assert_right(model: nn.Module, folded: nn.Module) -> None:
    model, folded = copy.deepcopy(model), copy.deepcopy(folded)
    with torch.no_grad():
        for seed, x in enumerate([X, image(3, 3, 7, 7), X, image(1, 3, 9, 8), X, X, X]):
            results = []
            for net in (model, folded):
                random.seed(seed)
                torch.manual_seed(seed)
                results.append(net(x))
                net.cache = None if net.cache is None else net.cache[:0]
            torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


def _sampled(m: Net, y: Tensor) -> Tensor:
    return m.last(y + torch.randn_like(y) * y.exp())


def _uniform(m: Net, y: Tensor) -> Tensor:
    return y * torch.rand_like(y)


def _dropout(m: Net, y: Tensor) -> Tensor:
    return m.last(F.dropout(y, 0.5, True).sigmoid())


def _dropped_maps(m: Net, y: Tensor) -> Tensor:
    return F.dropout2d(y, 0.3, True)


def _gumbel(m: Net, y: Tensor) -> Tensor:
    return F.gumbel_softmax(y, dim=1)


def _filled(m: Net, y: Tensor) -> Tensor:
    return y + torch.empty_like(y).normal_()


def _new(m: Net, y: Tensor) -> Tensor:
    return y + y.new_empty(y.shape).uniform_()


def _masked(m: Net, y: Tensor) -> Tensor:
    return torch.where(torch.rand_like(y) < 0.5, y, torch.zeros_like(y))


def _zeros(m: Net, y: Tensor) -> Tensor:
    return torch.cat([y, torch.zeros_like(y), torch.full_like(y, 2.0)], 1)


@pytest.mark.parametrize(
    "tail",
    [
        *(_sampled, _uniform, _dropout, _dropped_maps, _gumbel, _filled, _new, _masked, _zeros),
    ],
    ids=lambda tail: tail.__name__,
)
@pytest.mark.parametrize("verify", [True, False])
def test_chance_in_numbers(tail: Tail, verify: bool) -> None:
    model = build(Net(tail))
    folded, report = bnfold.fold(model, X, verify=verify)
    assert "bn" not in reasons(report)
    assert_right(model, folded)


def _made_from_a_value(m: Net, y: Tensor) -> Tensor:
    """A constant of the input: other inputs, other fill."""
    return m.last(y + torch.full_like(y, float(y.abs().mean())))


def _filled_by_a_value(m: Net, y: Tensor) -> Tensor:
    shift = torch.zeros_like(y[:1, :, :1, :1])
    shift += float(y.max())
    return m.last(y + shift)


def _written_by_a_value(m: Net, y: Tensor) -> Tensor:
    shift = torch.zeros_like(y)
    shift.copy_(y.mean((2, 3), keepdim=True).expand_as(y))
    return m.last(y + shift)


@pytest.mark.parametrize("tail", [_made_from_a_value, _filled_by_a_value, _written_by_a_value])
@pytest.mark.parametrize("verify", [True, False])
def test_factories_filled_with_what_depends_on_the_input(tail: Tail, verify: bool) -> None:
    model = build(Net(tail))
    assert_right(model, bnfold.fold(model, X, verify=verify).model)


def _counter(m: Net, y: Tensor) -> Tensor:
    m.count += 1
    return y * 2 if m.count % 2 else y.relu()


def _cache(m: Net, y: Tensor) -> Tensor:
    if m.cache is not None:
        y = torch.cat([m.cache, y])
    m.cache = y[-1:]
    return y


def _coin(m: Net, y: Tensor) -> Tensor:
    return y.relu() if random.random() < 0.5 else y


def _drawn(m: Net, y: Tensor) -> Tensor:
    return y.relu() if torch.rand(()) < 0.5 else y


def _drawn_number(m: Net, y: Tensor) -> Tensor:
    return y * torch.rand(()).item()


def _how_often(m: Net, y: Tensor) -> Tensor:
    m.count += 1
    for _ in range(m.count % 3):
        y = m.last(y)
    return y


@pytest.mark.parametrize(
    "tail",
    [_counter, _cache, _how_often],
    ids=lambda tail: tail.__name__,
)
@pytest.mark.parametrize("verify", [True, False])
def test_what_lies_in_front_of_the_parting_goes(tail: Tail, verify: bool) -> None:
    model = build(Net(tail))
    folded, report = bnfold.fold(model, X, verify=verify)
    assert "bn" not in reasons(report)
    assert reasons(report)["last"] in ("varies", "not-reached")
    with torch.no_grad():
        for _ in range(7):
            torch.testing.assert_close(folded(X), model(X), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "tail",
    [_coin, _drawn, _drawn_number],
    ids=lambda tail: tail.__name__,
)
def test_the_reason_is_that_runs_differ(tail: Tail) -> None:
    model = build(Net(tail))
    report = bnfold.fold(model, X).report
    assert reasons(report)["bn"] == "varies"
    assert "statistics" not in next(i.sentence for i in report.items if i.name == "bn")


@pytest.mark.parametrize(
    "made", [nn.ReLU, partial(nn.ReLU, inplace=True), partial(nn.AvgPool2d, 2)]
)
def test_a_module_that_each_run_makes_anew(made: Callable[[], nn.Module]) -> None:
    def tail(m: Net, y: Tensor) -> Tensor:
        m.count += 1
        return m.last(made()(y))

    model = build(Net(tail))
    folded, report = bnfold.fold(model, X)
    assert "bn" not in reasons(report)
    assert "varies" not in reasons(report).values()
    assert_right(model, folded)


def test_a_module_that_each_run_makes_otherwise() -> None:
    def tail(m: Net, y: Tensor) -> Tensor:
        m.count += 1
        return m.last(nn.Hardtanh(-m.count, m.count)(y) + nn.AvgPool2d(3, 1, 1, m.count > 2)(y))

    model = build(Net(tail))
    folded, report = bnfold.fold(model, X, verify=False)
    assert reasons(report)["last"] in ("varies", "activation")
    assert_right(model, folded)


def test_statistics_that_a_run_writes() -> None:
    """They are what differs, and the report says so."""

    def tail(m: Net, y: Tensor) -> Tensor:
        m.bn.running_mean.add_(1)
        return y

    _, report = bnfold.fold(build(Net(tail)), X)
    assert reasons(report)["bn"] == "batch-statistics"


class Recurrent(nn.Module):
    """Three steps from a state of zeros, with one BatchNorm for all or one for each."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.read, self.keep = nn.Linear(3, 4), nn.Linear(4, 4)
        self.norms = nn.ModuleList([nn.BatchNorm1d(4) for _ in range(norms)])

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 4)
        for step in range(3):
            norm = self.norms[step % len(self.norms)]
            state = torch.tanh(self.read(x) + norm(self.keep(state)))
        return state


@pytest.mark.parametrize("norms", [1, 3])
def test_a_first_step_on_zeros(norms: int) -> None:
    model, x = build(Recurrent(norms)), image(5, 3)
    folded, report = bnfold.fold(model, x)
    first = next(item for item in report.items if item.name == "norms.0")
    assert first.reason is (bnfold.Reason.SHARED if norms == 1 else bnfold.Reason.NOT_REACHED)
    assert "does not depend on the inputs" in first.sentence
    assert not any("not reached" in note for note in report.notes)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)


def test_a_batch_norm_that_did_not_run() -> None:
    model = build(Net(lambda m, y: y))
    item = next(item for item in bnfold.fold(model, X).report.items if item.name == "last")
    assert item.sentence == "kept: the run on the example inputs did not reach it"
