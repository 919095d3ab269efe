"""What the report of a module lists, and what it says beside the table."""

from __future__ import annotations

from collections.abc import Callable

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
