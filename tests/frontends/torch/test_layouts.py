"""Ops that copy or return their input, as the layout or the size of the input has it.

A removed BatchNorm behind one leaves an in-place op to write to whatever that op returned. The
folded model must do what the original does for every layout, to its input as well, whichever
layout was the example.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from tests.frontends.torch.support import build, image
from tests.pairwise import pairwise

LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}
SIDES = {"even": (2, 4, 6, 6), "odd": (2, 4, 7, 7)}


def _pad_odd(x: Tensor) -> Tensor:
    return functional.pad(x, (0, 1, 0, 1)) if x.shape[-1] % 2 else x


def _resize_odd(x: Tensor) -> Tensor:
    return functional.interpolate(x, size=(8, 8)) if x.shape[-1] % 2 else x


COPIES: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "contiguous, channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "to": lambda x: x.to(memory_format=torch.contiguous_format),
    "reshape": lambda x: x.reshape(*x.shape[:2], -1).reshape(x.shape),
    "flatten": lambda x: x.flatten(2).unflatten(2, x.shape[2:]),
    "type as": lambda x: x.contiguous().type_as(x),
    "expand": lambda x: x.expand(*x.shape).contiguous(),
    "transposed": lambda x: x.mT.contiguous().mT,
    "full slice": lambda x: x[:, :].contiguous()[...],
    "pad by nothing": lambda x: functional.pad(x, (0, 0)),
    "pad if odd": _pad_odd,
    "resize if odd": _resize_odd,
    "dropout": lambda x: functional.dropout(x.contiguous(), training=False),
}
PADS = ("pad by nothing", "pad if odd")
"""Zeros are not the BatchNorm's to shift: behind it, these ask another question."""


class Behind(nn.Module):
    """head(act(bn(copy(x)))) + mean(x); act works in place."""

    def __init__(self, lay_out: Callable[[Tensor], Tensor], act: str, *, after: bool) -> None:
        super().__init__()
        self.bn, self.relu, self.head = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 1)
        self.lay_out, self.act, self.after = lay_out, act, after

    def forward(self, x: Tensor) -> Tensor:
        y = self.lay_out(self.bn(x)) if self.after else self.bn(self.lay_out(x))
        y = self.relu(y) if self.act == "module" else y.relu_()
        return self.head(y) + x.mean()


def _assert_alike(model: nn.Module, folded: nn.Module) -> None:
    for shape in SIDES.values():
        for lay_out in LAYOUTS.values():
            given = image(*shape, seed=3)
            one, other = lay_out(given).clone(), lay_out(given).clone()
            with torch.no_grad():
                expected, actual = model(one), folded(other)
            assert torch.allclose(expected, actual, rtol=1e-9, atol=1e-9)
            assert torch.equal(one, other)


BEHIND = pairwise(
    [(copy, act) for copy in COPIES for act in ("module", "method")],
    list(LAYOUTS),
    lambda case: case,
)


@pytest.mark.parametrize(("copy", "act", "example"), [(*case, example) for case, example in BEHIND])
def test_in_place_behind_what_may_copy(copy, act, example):
    for after in (False,) if copy in PADS else (False, True):
        model = build(Behind(COPIES[copy], act, after=after))
        for shape in SIDES.values():
            x = LAYOUTS[example](image(*shape))
            folded, report = bnfold.fold(model, x, clip="always", verify=False)
            _assert_alike(model, folded)
            assert report.removed == (act == "module"), (after, shape)


@pytest.mark.parametrize("copy", COPIES)
def test_the_proof_agrees(copy):
    model = build(Behind(COPIES[copy], "module", after=False))
    x = LAYOUTS["channels last"](image(*SIDES["odd"]))
    folded, report = bnfold.fold(model, x, clip="always")
    assert report.removed == 1
    _assert_alike(model, folded)


class WritesToTheCopy(nn.Module):
    """z = copy(y); z += w. Whether that writes to y as well depends on the layout."""

    def __init__(self, lay_out: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.head1, self.head2 = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 1)
        self.lay_out = lay_out
        for bn in (self.bn1, self.bn2):  # a step of shifts alone, which a sum lets through
            bn.eps = 0.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(x)
        z = self.lay_out(y)
        z += self.bn2(x.roll(1, 2))
        return self.head1(z) + self.head2(y)


@pytest.mark.parametrize("copy", [copy for copy in COPIES if copy not in (*PADS, "resize if odd")])
def test_nothing_is_built_on_a_write_that_reaches_its_source_in_some_layouts(copy):
    model = build(WritesToTheCopy(COPIES[copy]))
    with torch.no_grad():
        for bn in (model.bn1, model.bn2):
            bn.weight.fill_(1.0)
            bn.running_var.fill_(1.0)
    for lay_out in LAYOUTS.values():
        x = lay_out(image(2, 4, 6, 6))
        y = model.bn1(x)
        if model.lay_out(y).untyped_storage().data_ptr() == y.untyped_storage().data_ptr():
            continue  # a run that shows no copy
        folded, _ = bnfold.fold(model, x, verify=False)
        _assert_alike(model, folded)


def test_a_copy_that_is_a_copy_costs_nothing():
    """clone() and a source that nobody reads later leave the ReLU working in place."""

    class Own(nn.Module):
        def __init__(self, *, cloned: bool) -> None:
            super().__init__()
            self.stem, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.relu, self.head = nn.ReLU(inplace=True), nn.Conv2d(4, 5, 1)
            self.cloned = cloned

        def forward(self, x: Tensor) -> Tensor:
            y = x.clone() if self.cloned else self.stem(x).mT.contiguous()
            return self.head(self.relu(self.bn(y)))

    for cloned in (False, True):
        model = build(Own(cloned=cloned))
        folded, report = bnfold.fold(model, image(2, 4, 6, 6), clip="always")
        assert report.removed == 1
        assert folded.relu.inplace
        _assert_alike(model, folded)


class Asks(nn.Module):
    """Takes one path for one layout, and another for another."""

    def __init__(self, run: Callable[[Asks, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self, x).relu())


def _lies_plainly(net: Asks, x: Tensor) -> Tensor:
    y = net.bn(net.conv(x))
    return y if x.is_contiguous() else net.bn(y)


def _lies_in_channels_last(net: Asks, x: Tensor) -> Tensor:
    y = net.conv(x)
    last = y.is_contiguous(memory_format=torch.channels_last)
    return net.bn(y) + y if last else net.bn(y)


def _steps_by_one(net: Asks, x: Tensor) -> Tensor:
    y = net.conv(x)
    return y if y.stride(1) == 1 else net.bn(y)


def _steps(net: Asks, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.bn(y) if y.stride()[-1] == 1 else net.bn(y * y)


def _steps_of_the_sum(net: Asks, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.bn(y) * (2.0 if (y + 1).stride(1) == 1 else -1.0)


def _gives_up(net: Asks, x: Tensor) -> Tensor:
    y = net.bn(net.conv(x))
    return y if x.is_contiguous() else net.conv(x)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("example", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize(
    "run",
    [
        _lies_plainly, _lies_in_channels_last, _steps_by_one, _steps, _steps_of_the_sum, _gives_up,
    ],
)  # fmt: skip
def test_code_that_asks_for_the_layout(
    run: Callable[[Asks, Tensor], Tensor], example: Callable[[Tensor], Tensor], verify: bool
) -> None:
    net = build(Asks(run))
    folded, _ = bnfold.fold(net, example(image(2, 4, 6, 6)), verify=verify)
    for size in SIDES.values():
        for lay_out in (LAYOUTS["contiguous"], LAYOUTS["channels last"], example):
            x = lay_out(image(*size, seed=1))
            with torch.no_grad():
                torch.testing.assert_close(folded(x), net(x), rtol=1e-9, atol=1e-9)


def test_code_that_asks_for_the_layout_to_change_it_loses_nothing() -> None:
    net = build(Asks(lambda net, x: net.bn(net.conv(x if x.is_contiguous() else x.contiguous()))))
    assert bnfold.fold(net, image(2, 4, 6, 6)).report.removed == 1
