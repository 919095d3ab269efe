"""Memory that a program resizes: a fold leaves all memory as free to be resized as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.frontends.torch.support import assert_same, build, image, run
from tests.tolerances import EXACT


class Resizes(nn.Module):
    """Keeps what it made in a buffer that it resizes for it, and a table outside of it."""

    def __init__(self, outside: Tensor | None = None) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.register_buffer("made", torch.zeros(1))
        self.look = lambda: outside

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        kept = self.look()
        kept = self.made if kept is None else kept
        kept.resize_(y.shape).copy_(y)
        return self.head(kept)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("is_outside", [False, True])
def test_a_buffer_that_each_run_resizes(is_outside: bool, verify: bool) -> None:
    """PyTorch does not resize what NumPy has seen, and what fails half-way has no memory."""
    outside = torch.zeros(1, dtype=torch.float64) if is_outside else None
    model, x = build(Resizes(outside)), image(2, 3, 8, 8)
    expected = copy.deepcopy(model)
    folded, report = bnfold.fold(model, x, verify=verify)
    assert report.removed == 1 or is_outside
    for inputs in (x, image(2, 3, 11, 8), x):
        assert_same(run(expected, inputs), run(folded, inputs), EXACT)
    if outside is not None:
        outside.resize_(3)


@pytest.mark.parametrize("verify", [False, True])
def test_memory_can_be_resized_after_a_fold(verify: bool) -> None:
    """As tools that shard weights do."""
    table = torch.ones(40, dtype=torch.float64)
    model, x = build(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), image(2, 3, 8, 8)
    model.register_buffer("again", torch.ones(50, dtype=torch.float64))
    model.table = table
    folded, report = bnfold.fold(model, x, verify=verify)
    assert report.removed == 1
    for tensor in (x, table, *model.state_dict().values(), *folded.state_dict().values()):
        assert tensor.untyped_storage().resizable()
