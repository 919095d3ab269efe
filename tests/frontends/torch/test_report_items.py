"""What the report of a module lists, and what it says beside the table."""

from __future__ import annotations

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


@pytest.mark.parametrize(("call", "noted"), [(torch.relu, True), (nn.ReLU(), False)])
def test_an_activation_called_as_a_function_is_noted(call, noted):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv, self.act = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), call

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.act(self.norm(torch.sigmoid(x))))

    report = bnfold.inspect(build(Net()), image(1, 3, 8, 8), clip="always")
    assert report.kept == int(noted)
    assert any("exported program" in note for note in report.notes) is noted
