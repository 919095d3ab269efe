"""Programs that set a module, or a parameter, to something else for one call and set it back."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.frontends.torch.support import build, image


class Net(nn.Module):
    """conv, bn, head; and what a case does with them."""

    def __init__(self, run: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.first, self.round = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)
        self.round.padding_mode = "circular"
        self.round._reversed_padding_repeated_twice = [1, 1, 1, 1]
        self.act, self.head = nn.Hardtanh(-1, 1), nn.Conv2d(4, 2, 1)
        self.average = {name: p.detach() * 1.5 for name, p in self.named_parameters()}
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)

    def tail(self, y: Tensor) -> Tensor:
        return self.head(y.relu())


def _trains(net: Net, x: Tensor) -> Tensor:
    net.bn.train()
    y = net.bn(net.conv(x))
    net.bn.eval()
    return net.tail(y)


def _other_eps(net: Net, x: Tensor) -> Tensor:
    net.bn.eps = 1.0
    y = net.bn(net.conv(x))
    net.bn.eps = 1e-5
    return net.tail(y)


def _other_eps_once(net: Net, x: Tensor) -> Tensor:
    y = net.tail(net.bn(net.conv(x)))
    net.bn.eps = 1.0
    z = net.bn(net.conv(x))
    net.bn.eps = 1e-5
    return y + net.tail(z)


def _eps_grows(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.conv(x))
    net.bn.eps = net.bn.eps + 0.1
    return net.tail(y)


def _eps_of_the_batch(net: Net, x: Tensor) -> Tensor:
    net.bn.eps = 1e-5 if x.shape[0] < 3 else 0.5
    return net.tail(net.bn(net.conv(x)))


def _without_gamma(net: Net, x: Tensor) -> Tensor:
    gamma, net.bn.weight = net.bn.weight, None
    y = net.bn(net.conv(x))
    net.bn.weight = gamma
    return net.tail(y)


def _padded_with_zeros(net: Net, x: Tensor) -> Tensor:
    net.round.padding_mode = "zeros"
    y = net.round(net.first(x))
    net.round.padding_mode = "circular"
    return net.head(y)


def _padded(net: Net, x: Tensor) -> Tensor:
    net.conv.padding = (1, 1)
    y = net.conv(net.first(x))
    net.conv.padding = (0, 0)
    return net.head(y)


def _other_bounds(net: Net, x: Tensor) -> Tensor:
    net.act.max_val = 0.5
    y = net.act(net.bn(net.conv(x)))
    net.act.max_val = 1.0
    return net.head(y)


def _lent_weight(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    own = net.conv.weight.data
    net.conv.weight.data = net.average["conv.weight"]
    z = net.conv(x)
    net.conv.weight.data = own
    return net.tail(net.bn(y)) + net.tail(net.bn(z))


def _average(net: Net, x: Tensor) -> Tensor:
    own = {name: parameter.data for name, parameter in net.named_parameters()}
    for name, parameter in net.named_parameters():
        parameter.data = net.average[name]
    y = net.tail(net.bn(net.conv(x)))
    for name, parameter in net.named_parameters():
        parameter.data = own[name]
    return y


def _lent_gamma(net: Net, x: Tensor) -> Tensor:
    own = net.bn.weight.data
    net.bn.weight.data = own * 2
    y = net.bn(net.conv(x))
    net.bn.weight.data = own
    return net.tail(y)


CASES = [
    _trains, _other_eps, _other_eps_once, _eps_grows, _eps_of_the_batch, _without_gamma,
    _padded_with_zeros, _padded, _other_bounds, _lent_weight, _average, _lent_gamma,
]  # fmt: skip


def check(run: Callable[[Net, Tensor], Tensor], *, verify: bool) -> bnfold.FoldReport:
    """Right on what the original takes, twice in a row; the original as it was."""
    net = build(Net(run))
    net.average = {name: tensor.double() for name, tensor in net.average.items()}
    before, new = copy.deepcopy(net.state_dict()), copy.deepcopy(net)
    folded, report = bnfold.fold(net, image(2, 3, 6, 6), verify=verify)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    for x in (image(2, 3, 6, 6), image(2, 3, 6, 6), image(3, 3, 7, 5, seed=1)):
        with torch.no_grad():
            torch.testing.assert_close(folded(x), new(x), rtol=1e-9, atol=1e-9)
    return report


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("run", CASES)
def test_set_for_a_call(run: Callable[[Net, Tensor], Tensor], verify: bool) -> None:
    check(run, verify=verify)


def _stride_once(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.conv(x)).relu()
    net.head.stride = (2, 2)
    z = net.head(y).mean()
    net.head.stride = (1, 1)
    return net.head(y) + z


def _set_as_it_is(net: Net, x: Tensor) -> Tensor:
    net.bn.eval()
    net.bn.eps = 1e-5
    net.conv.weight.data = net.conv.weight.data
    return net.tail(net.bn(net.conv(x)))


def _momentum(net: Net, x: Tensor) -> Tensor:
    net.bn.momentum = 0.05
    return net.tail(net.bn(net.conv(x)))


@pytest.mark.parametrize("run", [_stride_once, _set_as_it_is, _momentum])
def test_settings_that_change_nothing_hinder_nothing(run: Callable[[Net, Tensor], Tensor]) -> None:
    report = check(run, verify=False)
    assert "bn" in [item.name for item in report.items if isinstance(item.outcome, bnfold.Removed)]
