"""Hazard 12: activations, with and without room for bounds per channel."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from tests.frontends.torch.support import assert_folds, assert_same, build, image, run
from tests.pairwise import pairwise

PIECEWISE_LINEAR = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.ReLU6(),
    nn.ReLU6(inplace=True),
    nn.Hardtanh(-0.3, 0.4),
    nn.Hardtanh(0.1, 0.4),
    nn.LeakyReLU(0.2),
    nn.PReLU(),
    nn.PReLU(4),
    nn.Threshold(0.0, 0.0),
]
"""Those that bounds per channel could be for: each in every order in every mode."""
OTHERS = [
    nn.SiLU(),
    nn.GELU(),
    nn.Hardswish(),
    nn.Hardsigmoid(),
    nn.ELU(),
    nn.CELU(),
    nn.SELU(),
    nn.Softplus(),
    nn.Mish(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Softmax(1),
    nn.LogSoftmax(1),
    nn.Softmax2d(),
    nn.Threshold(0.1, 0.0),
    nn.Threshold(0.0, 0.2),
    nn.Softshrink(),
    nn.Hardshrink(),
    nn.Tanhshrink(),
    nn.Softsign(),
    nn.LogSigmoid(),
    nn.RReLU(),
    nn.Identity(),
    nn.Dropout(),
    nn.GLU(1),
]
ORDERS = ("norm first", "norm last", "both")
MODES = ("auto", "always", "never")
BETWEEN = [
    *product(product(PIECEWISE_LINEAR, ORDERS), MODES),
    *pairwise(list(product(OTHERS, ORDERS)), MODES, lambda case: case),
]


@pytest.mark.parametrize(
    ("act", "order", "clip"), [(*case, clip) for case, clip in BETWEEN], ids=str
)
def test_activation_between(act, order, clip):
    ins = 2 if isinstance(act, nn.GLU) else 4
    parts = {
        "norm first": [nn.BatchNorm2d(4), act],
        "norm last": [act, nn.BatchNorm2d(ins)],
        "both": [nn.BatchNorm2d(4), act, nn.BatchNorm2d(ins)],
    }[order]
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *parts, nn.Conv2d(ins, 3, 3))
    assert_folds(build(model), image(2, 3, 6, 6), clip=clip)


FUNCTIONS = {
    "relu": torch.relu,
    "functional relu": functional.relu,
    "relu_": lambda y: y.clone().relu_(),
    "relu6": functional.relu6,
    "clamp": lambda y: y.clamp(-0.2, 0.5),
    "clamp min": lambda y: y.clamp(min=0),
    "clamp max": lambda y: y.clamp(max=0.3),
    "clamp nothing": lambda y: y.clamp(min=-float("inf")),
    "clamp tensor": lambda y: y.clamp(min=torch.zeros(4, 1, 1, dtype=y.dtype)),
    "clamp crossed": lambda y: y.clamp(0.5, -0.5),
    "clip value": lambda y: y.clamp(min=y.mean()),
    "clamp_min": lambda y: torch.clamp_min(y, 0.1),
    "clamp_max": lambda y: torch.clamp_max(y, 0.1),
    "hardtanh": functional.hardtanh,
    "threshold": lambda y: functional.threshold(y, 0, 0),
    "threshold 1": lambda y: functional.threshold(y, 0.5, 0.1),
    "leaky": functional.leaky_relu,
    "prelu": lambda y: functional.prelu(y, torch.tensor([-0.5], dtype=y.dtype)),
    "abs": torch.abs,
    "maximum": lambda y: torch.maximum(y, torch.zeros_like(y)),
    "maximum both": lambda y: torch.maximum(y, y.flip(1)),
    "max pair": lambda y: torch.max(y, -y),
    "min pair": lambda y: torch.min(y, y * 2),
    "where": lambda y: torch.where(y > 0, y, 0.1 * y),
    "where channel": lambda y: torch.where(y[:, :1] > 0, y, -y),
    "ge": lambda y: (y >= 0).to(y.dtype) + y,
    "gt": lambda y: (y > 0).to(y.dtype),
    "gt one": lambda y: (y > 1).to(y.dtype),
    "gt value": lambda y: (y > y.mean()).to(y.dtype),
    "lt tensor": lambda y: (y < torch.zeros(1, dtype=y.dtype)).to(y.dtype),
    "eq": lambda y: (y == 0).to(y.dtype),
    "bool": lambda y: y.bool().to(y.dtype),
    "logical": lambda y: torch.logical_and(y > 0, y.flip(1) > 0).to(y.dtype),
    "sign": torch.sign,
    "sgn": torch.sgn,
    "heaviside": lambda y: torch.heaviside(y, torch.ones(1, dtype=y.dtype)),
    "floor": torch.floor,
    "int": lambda y: (y * 10).int().to(y.dtype),
    "nan_to_num": torch.nan_to_num,
    "square": torch.square,
    "pow": lambda y: y**3,
    "x*x": lambda y: y * y,
    "x/x": lambda y: y / (y.abs() + 1),
    "const/x": lambda y: 1 / (y * y + 1),
    "reciprocal": lambda y: torch.reciprocal(y * y + 1),
    "floordiv": lambda y: y // 0.3,
    "div floor": lambda y: torch.div(y, 0.3, rounding_mode="floor"),
    "remainder": lambda y: y % 0.3,
    "normalize": lambda y: functional.normalize(y, dim=1),
    "softmax": lambda y: y.softmax(1),
    "cumsum": lambda y: y.cumsum(1),
    "sort": lambda y: y.sort(1)[0],
    "topk": lambda y: y.topk(4, 1)[0],
    "argmax": lambda y: y.argmax(1, keepdim=True).to(y.dtype).expand(-1, 4, -1, -1),
    "max values": lambda y: y - y.max(1, keepdim=True)[0],
    "min values": lambda y: y - y.min(1, keepdim=True)[0],
    "max indices": lambda y: y + y.max(1, keepdim=True)[1],
    "median": lambda y: y + y.median(1, keepdim=True)[0],
    "mean": lambda y: y - y.mean(1, keepdim=True),
    "sum": lambda y: y + y.sum(1, keepdim=True),
    "std": lambda y: y / y.std(1, keepdim=True),
    "mean all": lambda y: y - y.mean(),
    "sum all": lambda y: y + y.sum(),
    "max all": lambda y: y + y.max(),
    "mean batch": lambda y: y - y.mean(0, keepdim=True),
    "mean space": lambda y: y - y.mean((2, 3), keepdim=True),
    "amax space": lambda y: y - y.amax((2, 3), keepdim=True),
    "amin space": lambda y: y - y.amin((2, 3), keepdim=True),
    "sum space": lambda y: y - y.sum((2, 3), keepdim=True),
    "logsumexp": lambda y: y - y.logsumexp(1, keepdim=True),
    "times 2 plus 1": lambda y: y * 2 + 1,
    "minus const": lambda y: y - 0.5,
    "const minus": lambda y: 0.5 - y,
    "rsub alpha": lambda y: torch.rsub(y, 0.5, alpha=3),
    "sub alpha": lambda y: torch.sub(y, y.flip(1), alpha=3),
    "add alpha": lambda y: torch.add(y, torch.ones(4, 1, 1, dtype=y.dtype), alpha=3),
    "const add alpha": lambda y: torch.add(torch.ones(4, 1, 1, dtype=y.dtype), y, alpha=-3),
    "div const": lambda y: y / -3,
    "div zero": lambda y: y / 0,
    "times 0": lambda y: y * 0 + 1,
    "neg": lambda y: -y,
    "bool const": lambda y: y * torch.tensor([True, False, True, True]).view(4, 1, 1),
    "add int tensor": lambda y: y + torch.arange(4).view(4, 1, 1),
    "addcmul": lambda y: torch.addcmul(
        torch.ones(1, dtype=y.dtype), y, torch.arange(4.0, dtype=y.dtype).view(4, 1, 1), value=2
    ),
    "addcmul value": lambda y: torch.addcmul(y, y, y, value=0.1),
    "addcdiv": lambda y: torch.addcdiv(y, y, y * y + 1),
    "lerp": lambda y: torch.lerp(y, y.flip(1), 0.3),
    "add self": lambda y: y + y,
    "sub self": lambda y: y - y,
    "add broadcast": lambda y: y + y[:, :1],
    "add spatial": lambda y: y + torch.linspace(0, 1, y.shape[-1], dtype=y.dtype),
    "mul spatial": lambda y: y * torch.linspace(0, 1, y.shape[-1], dtype=y.dtype),
    "mul value int": lambda y: y * (y > 0),
    "mul value long": lambda y: y * (y > 0).long(),
    "gate": lambda y: y * torch.sigmoid(y.mean((2, 3), keepdim=True)),
    "gate other side": lambda y: torch.sigmoid(y.mean((2, 3), keepdim=True)) * y,
    "gate by channel": lambda y: y * y[:, :1].sigmoid(),
    "channel by gate": lambda y: y[:, :1] * y.sigmoid(),
    "attention": lambda y: torch.einsum("ncij,ncjk->ncik", y, y.softmax(-1)),
    "self times self": lambda y: (
        torch.bmm(y[:, :, 0], y[:, :, 1].transpose(1, 2))[..., None] + y[:, :, :1, :1]
    ),
    "drop path": lambda y: y * torch.ones(y.shape[0], 1, 1, 1, dtype=y.dtype),
    "masked_fill": lambda y: y.masked_fill(y < 0, -1.0),
    "erf": torch.erf,
    "clone": torch.clone,
    "to float": lambda y: y.float().to(y.dtype),
    "complex": lambda y: torch.fft.ifft2(torch.fft.fft2(y)).real,
    "view_as_complex": lambda y: torch.view_as_real(
        torch.view_as_complex(y.reshape(*y.shape[:-1], 3, 2).contiguous()) * 1j
    ).reshape(y.shape),
}


class Between(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(FUNCTIONS[self.name](self.bn1(self.conv(x))))


class BetweenPadded(Between):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.head = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(FUNCTIONS[self.name](self.bn1(self.conv(x))))


@pytest.mark.parametrize(
    ("name", "kind"), pairwise(list(FUNCTIONS), [Between, BetweenPadded], lambda name: ())
)
def test_function_between_two_batch_norms(name, kind):
    if name in ("to float",):
        assert_folds(
            build(kind(name), dtype=torch.float32), image(2, 3, 6, 6).float(), dtype=torch.float32
        )
        return
    dependent = name in ("mean batch",)
    assert_folds(build(kind(name)), image(2, 3, 6, 6), batches=not dependent)


class Scaled(nn.Module):
    """In front of the BatchNorm a number, as the code has it."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **held: Any) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.program = forward
        vars(self).update(held)

    def forward(self, x: Tensor) -> Tensor:
        return self.program(self, x)


def test_a_number_in_the_code_is_a_constant():
    model, x = build(Scaled(lambda net, x: net.bn(-net.conv(x) * 2 / 3))), image(2, 3, 6, 6)
    assert_folds(model, x, removed=1)
    _, report = bnfold.fold(torch.export.export(model, (x,)))
    assert (report.removed, report.total) == (1, 1)


def scaled_by_default(net: Any, x: Tensor) -> Tensor:
    return net.bn(net.conv(x) * x.shape[2])


def by_its_values(net: Any, x: Tensor) -> Tensor:
    return net.bn(net.conv(x) * (2.0 if x.sum() > 0 else 0.5))


def by_a_count(net: Any, x: Tensor) -> Tensor:
    net.count += 1
    return net.bn(net.conv(x) * (2.0 if net.count > 14 else 0.5))


@pytest.mark.parametrize("forward", [scaled_by_default, by_its_values, by_a_count])
def test_a_number_that_depends_on_something_is_none(forward):
    """Nor is it where no other size, no other value and no later run has shown another one."""
    model = build(Scaled(forward, count=0))
    folded, report = bnfold.fold(model, image(2, 3, 6, 6), verify=False)
    assert report.removed == 0
    for other in (image(1, 3, 9, 4), -image(2, 3, 6, 6)):
        for _ in range(8):
            assert_same(run(model, other), run(folded, other), 1e-9)


def test_a_number_that_a_caller_may_give_is_none():
    class Given(Scaled):
        def forward(self, x: Tensor, factor: float = 0.5) -> Tensor:
            return self.bn(self.conv(x) * factor)

    model, x = build(Given(None)), image(2, 3, 6, 6)
    folded, report = bnfold.fold(model, x)
    assert report.removed == 0
    assert_same(run(model, (x, 0.75)), run(folded, (x, 0.75)), 1e-9)


def test_clip_always_takes_all_of_a_pre_activation_stage():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.bn2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.relu = nn.ReLU(inplace=True)
            self.relu2 = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv1(self.relu(self.bn1(x)))
            return x + self.conv2(self.relu2(self.bn2(y)))

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Block(), nn.Conv2d(4, 3, 1))
    report = assert_folds(build(model), image(2, 3, 8, 8), clip="always")
    assert report.removed >= 1


# -------------------------------------------------------------------- bounds at the end of a dtype


class Clamp(nn.Module):
    def __init__(self, lower: float, upper: float) -> None:
        super().__init__()
        self.lower, self.upper = lower, upper

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=self.lower, max=self.upper)


def clipped(act: nn.Module, dtype: torch.dtype) -> nn.Module:
    model = nn.Sequential(nn.BatchNorm2d(4), act, nn.Conv2d(4, 3, 1))
    return build(model, dtype=dtype)


@pytest.mark.parametrize("as_program", [False, True])
@pytest.mark.parametrize("bounds", [(-60000.0, 6.0), (-6.0, 60000.0), (-60000.0, 0.0)])
def test_a_bound_that_no_half_holds_keeps_the_batch_norm(bounds, as_program):
    model, x = clipped(nn.Hardtanh(*bounds), torch.float16), image(2, 4, 5, 5, dtype=torch.float16)
    given = (torch.export.export(model, (x,)), None) if as_program else (model, x)
    _, report = bnfold.fold(*given, clip="always")
    (item,) = report.items
    assert item.reason is bnfold.Reason.OVERFLOW
    assert item.blocker


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("act", [nn.Hardtanh, Clamp])
def test_a_bound_at_the_end_of_the_dtype_is_none(act, dtype):
    most = torch.finfo(dtype).max
    for bounds in ((-most, 6.0), (-1.0, most), (-most, most)):
        model, x = clipped(act(*bounds), dtype), image(2, 4, 5, 5, dtype=dtype)
        program = torch.export.export(model, (x,))
        assert bnfold.fold(program, clip="always").report.removed == 1
        if act is nn.Hardtanh:
            folded, report = bnfold.fold(model, x, clip="always")
            assert report.removed == 1
            assert bnfold.verify(model, folded, x).equal
