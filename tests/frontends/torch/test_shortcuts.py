"""Sums that see one tensor several times, as people write them: x + bn(x), conv(x) + bn(x)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from bnfold.core.reasons import Reason
from tests.frontends.torch.support import assert_same, build, image, run


class Scale(nn.Module):
    """LayerScale."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.tensor([0.1, -0.5, 2.0, 0.3]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.view(1, -1, 1, 1)


class Shortcut(nn.Module):
    """A function of sigmoid(stem(x)), which has to be stored as it is."""

    def __init__(self, body: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.bn, self.bn2, self.scale = nn.BatchNorm2d(4), nn.BatchNorm2d(4), Scale()
        for name, part in parts.items():
            self.add_module(name, part)
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, torch.sigmoid(self.stem(x)))


def added_in_place(net: Any, x: Tensor) -> Any:
    y = net.bn(x)
    y += x
    return net.head(y)


def added_to_a_copy(net: Any, x: Tensor) -> Any:
    z = x.clone()
    z += net.bn(x)
    return net.head(z)


def added_in_place_and_read_again(net: Any, x: Tensor) -> Any:
    y = net.bn(x)
    y += x
    return net.head(y), torch.tanh(x)


def two_in_a_row(net: Any, x: Tensor) -> Any:
    x = x + net.bn(x)
    return net.head(x + net.bn2(x))


def scaled_inside(net: Any, x: Tensor) -> Any:
    return net.head(x + 0.5 * net.scale(net.bn(x)))


BODIES: dict[str, tuple[Callable[[Any, Tensor], Any], int]] = {
    "plus": (lambda net, x: net.head(x + net.bn(x)), 1),
    "alpha": (lambda net, x: net.head(torch.add(x, net.bn(x), alpha=3)), 1),
    "factors": (lambda net, x: net.head(0.5 * x + 2 * net.bn(x)), 1),
    "two": (lambda net, x: net.head(net.bn(x) + net.bn2(x)), 2),
    "chain": (lambda net, x: net.head(x + net.bn2(net.bn(x))), 2),
    "layer scale": (lambda net, x: net.head(x + net.scale(net.bn(x))), 2),
    "layer scale and factor": (scaled_inside, 2),
    "nested": (lambda net, x: net.head(net.bn2(x) + (x + net.bn(x))), 2),
    "a sum with 0": (lambda net, x: net.head(x + (0 + net.bn(x))), 1),
    "dropout": (lambda net, x: net.head(nn.functional.dropout(x, 0.1, False) + net.bn(x)), 1),
    "in place": (added_in_place, 1),
    "in place, to a copy": (added_to_a_copy, 1),
    "two in a row": (two_in_a_row, 2),
}


def check(net: nn.Module, *, program: bool) -> bnfold.FoldReport:
    """Fold it, and compare on another input too."""
    x = image(2, 3, 7, 9)
    given = torch.export.export(net, (x,)) if program else net
    model, report = bnfold.fold(given, x)
    folded = model.module() if program else model
    for one in (x, image(2, 3, 7, 9, seed=3)):
        assert_same(run(net, one), run(folded, one), 1e-12)
    return report


def reasons(report: bnfold.FoldReport) -> set[Reason]:
    return {item.outcome.reason for item in report.items if isinstance(item.outcome, bnfold.Kept)}


@pytest.mark.parametrize("program", [False, True])
def test_a_difference_keeps_nothing_of_the_input(program):
    """The difference cannot be the input, scaled; in a program it goes into the head."""
    report = check(build(Shortcut(lambda net, x: net.head(x - net.bn(x)))), program=program)
    assert reasons(report) >= ({Reason.BRANCHES} if not program else set())
    assert bool(report.merged) == program


@pytest.mark.parametrize("program", [False, True])
def test_a_sum_that_is_written_over_what_others_read(program):
    """With bn gone, y is x: the in-place sum must not be seen by the second reader."""
    check(build(Shortcut(added_in_place_and_read_again)), program=program)


@pytest.mark.parametrize("program", [False, True])
@pytest.mark.parametrize("name", list(BODIES))
def test_affine_steps_of_one_tensor(name, program):
    body, gone = BODIES[name]
    report = check(build(Shortcut(body)), program=program)
    assert report.removed >= gone


def beside(net: Any, x: Tensor) -> Any:
    return net.head(functional.gelu(net.conv(x) + net.bn(x)))


def beside_in_place(net: Any, x: Tensor) -> Any:
    y = net.conv(x)
    y += net.bn(x)
    y += x
    return net.head(functional.gelu(y))


def called_twice(net: Any, x: Tensor) -> Any:
    return net.head(functional.gelu(net.conv(x) + net.bn(x)) + net.conv(torch.tanh(x)))


def over_the_last_axis(net: Any, x: Tensor) -> Any:
    x = x.mean((2, 3)).tanh()
    return functional.gelu(net.fc(x) + net.norm(x))


def conv(*sizes: Any, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, *sizes, **options)


MUST_STAY = {
    "even kernel": lambda: conv(4, padding=(1, 2), stride=1),
    "stride": lambda: conv(1, stride=2),
    "off the centre": lambda: nn.Sequential(nn.ZeroPad2d((2, 0, 1, 1)), conv(3)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(conv(3, padding=1)),
}


@pytest.mark.parametrize("name", list(MUST_STAY))
def test_a_kernel_whose_centre_cannot_take_it(name):
    def body(net: Any, x: Tensor) -> Any:
        y = net.conv(x)
        beside = net.bn(x)[:, :, : y.shape[2], : y.shape[3]]
        return net.head(functional.gelu(y[:, :, : beside.shape[2], : beside.shape[3]] + beside))

    report = check(build(Shortcut(body, conv=MUST_STAY[name]())), program=False)
    assert "bn" in {item.name for item in report.items if isinstance(item.outcome, bnfold.Kept)}


def test_a_convolution_that_is_called_twice():
    report = check(build(Shortcut(called_twice, conv=conv(3, padding=1))), program=False)
    assert "bn" in {item.name for item in report.items if isinstance(item.outcome, bnfold.Kept)}


KERNELS: dict[str, Callable[[], nn.Module]] = {
    "depthwise": lambda: conv(3, padding=1, groups=4),
    "dense": lambda: conv(3, padding=1, bias=False),
    "pointwise": lambda: conv(1),
    "grouped": lambda: conv((3, 5), padding=(1, 2), groups=2),
    "even, same": lambda: conv(4, padding="same"),
    "dilated": lambda: conv(3, padding=2, dilation=2),
    "circular": lambda: conv(3, padding=1, padding_mode="circular"),
    "reflect": lambda: conv(3, padding=1, padding_mode="reflect"),
    "replicate": lambda: conv(3, padding=1, padding_mode="replicate"),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2),
    "with a batch norm": lambda: nn.Sequential(conv(3, padding=1), nn.BatchNorm2d(4)),
}
PADS_ITSELF = ("circular", "reflect", "replicate")
"""A program has the padding as an op of its own: the convolution does not read x there."""


@pytest.mark.parametrize("program", [False, True])
@pytest.mark.parametrize("name", list(KERNELS))
def test_the_centre_of_a_kernel(name, program):
    report = check(build(Shortcut(beside, conv=KERNELS[name]())), program=program)
    kept = [item.name for item in report.items if isinstance(item.outcome, bnfold.Kept)]
    assert ("bn" in kept) == (program and name in PADS_ITSELF)


@pytest.mark.parametrize("program", [False, True])
def test_a_sum_in_place(program):
    report = check(build(Shortcut(beside_in_place, conv=conv(3, padding=1))), program=program)
    assert "bn" not in {item.name for item in report.items if isinstance(item.outcome, bnfold.Kept)}


@pytest.mark.parametrize("program", [False, True])
def test_a_linear_layer(program):
    net = build(Shortcut(over_the_last_axis, fc=nn.Linear(4, 4), norm=nn.BatchNorm1d(4)))
    assert "norm" not in {
        item.name
        for item in check(net, program=program).items
        if isinstance(item.outcome, bnfold.Kept)
    }


def test_a_step_behind_the_sum_goes_into_all_of_its_parts():
    def body(net: Any, x: Tensor) -> Any:
        return net.head(functional.gelu(net.scale(net.conv(x) + net.bn(x))))

    assert check(build(Shortcut(body, conv=conv(3, padding=1))), program=False).removed >= 2


def test_the_layer_that_changes_is_named():
    report = check(build(Shortcut(beside, conv=conv(3, padding=1))), program=False)
    (item,) = (item for item in report.items if item.name == "bn")
    assert item.outcome == bnfold.Removed(("conv",))


def test_a_weight_that_would_overflow_keeps_the_step():
    net = build(Shortcut(beside, conv=conv(3, padding=1)), dtype=torch.float16)
    net.bn.running_var.fill_(1e-5)
    net.bn.weight.data.fill_(3e2)
    with torch.no_grad():
        model, report = bnfold.fold(net, image(2, 3, 7, 9, dtype=torch.float16))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert report.removed == 0


class Tokens(nn.Module):
    """Of tokens (N, L, C), of which BatchNorm1d wants the channels in front."""

    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.bn, self.linear, self.head = nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, torch.sigmoid(x))


def transposed_sum(net: Any, x: Tensor) -> Tensor:
    total: Tensor = x + net.bn(x)
    return total


TOKENS: dict[str, tuple[Callable[[Any, Tensor], Any], int]] = {
    "transposed": (lambda net, x: net.head(x + net.bn(x.mT).mT), 1),
    "permuted": (lambda net, x: net.head(x + net.bn(x.permute(0, 2, 1)).permute(0, 2, 1)), 1),
    "in rows": (lambda net, x: net.head(x + net.bn(x.reshape(-1, 4)).view_as(x)), 1),
    "flat": (lambda net, x: net.head(x + net.bn(x.flatten(0, 1)).unflatten(0, x.shape[:2])), 1),
    "beside a matrix": (
        lambda net, x: net.head(functional.gelu(net.linear(x) + net.bn(x.mT).mT)),
        1,
    ),
    "the sum of the transposed": (lambda net, x: net.head(transposed_sum(net, x.mT).mT), 1),
    "another order": (lambda net, x: net.head(x + net.bn(x.mT).reshape(x.shape)), 0),
}


@pytest.mark.parametrize("program", [False, True])
@pytest.mark.parametrize("name", TOKENS)
def test_tokens(name: str, program: bool) -> None:
    body, gone = TOKENS[name]
    net, x = build(Tokens(body)), image(2, 7, 4)
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    given = torch.export.export(net, (x,), dynamic_shapes=(axes,)) if program else net
    model, report = bnfold.fold(given) if program else bnfold.fold(given, x)
    folded = model.module() if program else model
    for shape in ((2, 7, 4), (3, 5, 4), (2, 9, 4)):
        other = image(*shape, seed=3)
        assert_same(run(net, other), run(folded, other), 1e-11)
    assert report.removed == gone
