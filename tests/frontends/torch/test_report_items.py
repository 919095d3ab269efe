"""What the report of a module lists, and what it says beside the table."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # PyTorch's own name for it
from torch import Tensor, nn

import bnfold
from bnfold import Reason
from tests.frontends.torch.support import build, image


class Doubled(nn.BatchNorm2d):
    """A BatchNorm that does more, in a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2.0


class Borrowed(nn.Module):
    """The tensors of a BatchNorm, used by a function; the module itself is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias)


class Unused(nn.Module):
    """One BatchNorm that runs and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.spare = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


@pytest.mark.parametrize("model", [nn.BatchNorm2d(3), Doubled(3), Borrowed()], ids=type)
def test_a_batch_norm_that_was_reached_is_not_called_unreached(model):
    report = bnfold.inspect(build(model), image(1, 3, 8, 8))
    assert report.total == 1
    assert report.items[0].reason is not Reason.NOT_REACHED
    assert not any("not reached" in note for note in report.notes)


def test_a_batch_norm_that_was_not_reached_is_listed():
    report = bnfold.inspect(build(Unused()), image(1, 3, 8, 8))
    assert [(item.name, item.reason) for item in report.items] == [
        ("norm", None),
        ("spare", Reason.NOT_REACHED),
    ]
    assert any("not reached" in note for note in report.notes)


class BehindSigmoid(nn.Module):
    """A BatchNorm that can only go through the activation behind it."""

    def __init__(self, act: Callable[[Tensor], Tensor], name: str = "act") -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)
        self.name, self.function = name, act
        if isinstance(act, nn.Module):
            self.add_module(name, act)

    def forward(self, x: Tensor) -> Tensor:
        act = getattr(self, self.name, self.function)
        return self.conv(act(self.norm(torch.sigmoid(x))))


def is_noted(net: nn.Module) -> bool:
    """Whether the report says that the exported program may fold more."""
    report = bnfold.inspect(build(net), image(1, 3, 8, 8), clip="always")
    return any("exported program" in note for note in report.notes)


WITHOUT_BOUNDS = {
    "leaky_relu": F.leaky_relu,
    "abs": torch.abs,
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 4),
    "amax": lambda x: torch.amax(x, dim=(2, 3), keepdim=True).expand(-1, -1, 4, 4),
    "prelu": lambda x: F.prelu(x, x.new_full((1,), 0.25)),
    "module": nn.LeakyReLU(),
}
WITH_BOUNDS = {
    "relu": torch.relu,
    "method": Tensor.relu,
    "in place": lambda x: F.relu(x, inplace=True),
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -2.0, 2.0),
    "clamp": lambda x: x.clamp(min=0.0),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
}


class TestTheExportedProgramMayFoldMore:
    @pytest.mark.parametrize("act", WITHOUT_BOUNDS.values(), ids=WITHOUT_BOUNDS)
    def test_not_where_nothing_has_bounds(self, act):
        net = BehindSigmoid(act)
        assert bnfold.inspect(build(net), image(1, 3, 8, 8), clip="always").kept == 1
        assert not is_noted(net)

    @pytest.mark.parametrize("act", [nn.LeakyReLU(), nn.MaxPool2d(2)], ids=["leaky", "max"])
    def test_not_for_a_module_whose_name_reads_like_a_call(self, act):
        assert not is_noted(BehindSigmoid(act, "act in block"))

    def test_not_for_a_module_that_takes_bounds(self):
        assert not is_noted(BehindSigmoid(nn.ReLU()))

    def test_not_in_the_program_itself(self):
        program = torch.export.export(build(BehindSigmoid(F.leaky_relu)), (image(1, 3, 8, 8),))
        assert not any("exported program" in note for note in bnfold.inspect(program).notes)

    @pytest.mark.parametrize("act", WITH_BOUNDS.values(), ids=WITH_BOUNDS)
    def test_where_a_function_would_have_bounds(self, act):
        assert is_noted(BehindSigmoid(act))
        program = torch.export.export(build(BehindSigmoid(act)), (image(1, 3, 8, 8),))
        assert bnfold.inspect(program, clip="always").kept == 0


class Parts(nn.Module):
    """A convolution, a BatchNorm and a head, and what a case does with them."""

    def __init__(self, between: Callable[[Parts, Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self, self.conv(x)))


def _blended(net: Parts, x: Tensor) -> Tensor:
    bn = net.bn
    mean = 0.8 * bn.running_mean + 0.2 * x.mean((0, 2, 3))
    var = 0.8 * bn.running_var + 0.2 * x.var((0, 2, 3))
    return F.batch_norm(x, mean, var, bn.weight, bn.bias, False, 0.0, bn.eps)


def _of_the_batch(net: Parts, x: Tensor) -> Tensor:
    bn = net.bn
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, True, 0.1)


def _hooked_in_front(net: Parts, x: Tensor) -> Tensor:
    if not net.bn._forward_pre_hooks:
        net.bn.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    return net.bn(x)


def _in_a_pool(net: Parts, x: Tensor) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: net.bn(x)).result()


def _in_numbers(net: Parts, x: Tensor) -> Tensor:
    bn = net.bn
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    weight = net.conv.weight * scale.reshape(-1, 1, 1, 1)
    return F.conv2d(x.sigmoid()[:, :3], weight)


TRUE_REASONS = {
    _blended: (Reason.BATCH_STATISTICS, "the run writes to its statistics, or computes them"),
    _of_the_batch: (Reason.BATCH_STATISTICS, "in training mode"),
    _hooked_in_front: (Reason.HOOK, "a hook on bn"),
    _in_a_pool: (Reason.NOT_REACHED, "it ran in another thread"),
    _in_numbers: (Reason.NOT_REACHED, "the code reads its tensors, and does not call it"),
}


@pytest.mark.parametrize("between", TRUE_REASONS, ids=lambda case: case.__name__)
def test_the_reason_is_what_happened(between: Callable[[Parts, Tensor], Tensor]) -> None:
    model = build(Parts(between))
    x = image(2, 3, 8, 8)
    with torch.no_grad():  # hooks are there by then
        model(x)
    (item,) = bnfold.inspect(model, x).items
    reason, said = TRUE_REASONS[between]
    assert item.reason is reason
    assert said in item.sentence


@pytest.mark.parametrize(
    ("options", "goes"),
    [
        ({}, True),
        ({"divisor_override": 4}, True),
        ({"divisor_override": 3}, False),
        ({"divisor_override": 4, "padding": 1}, False),
        ({"divisor_override": 4, "ceil_mode": True}, False),
    ],
    ids=str,
)
def test_a_pool_that_is_told_what_to_divide_by(options: dict[str, int], goes: bool) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.head = nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.avg_pool2d(self.bn(x), 2, **options))

    model, x = build(Pooled()), image(2, 3, 7, 7)
    result = bnfold.fold(model, x)
    assert bool(result.report.removed) is goes
    torch.testing.assert_close(result.model(x), model(x))
