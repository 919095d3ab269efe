"""Hazard 5: a BatchNorm that uses the batch is not constant."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import bnfold
from bnfold.errors import TrainingModeError
from tests.frontends.torch.support import (
    assert_same,
    assert_state,
    build,
    image,
    reasons,
    run,
    snapshot,
)


def network(**options) -> nn.Module:
    return build(
        nn.Sequential(
            nn.Conv2d(3, 4, 1),
            nn.BatchNorm2d(4, **options),
            nn.ReLU(),
            nn.Conv2d(4, 4, 1),
            nn.BatchNorm2d(4),
        )
    )


def test_model_in_training_mode_is_refused():
    model = network().train()
    state = snapshot(model)
    with pytest.raises(TrainingModeError):
        bnfold.fold(model, image(2, 3, 5, 5))
    assert_state(model, state)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_submodule_in_training_mode_stays_and_keeps_its_statistics(kind):
    model = network()
    if kind is nn.SyncBatchNorm:
        model[1] = build(kind(4))
    model[1].train()
    state, x = snapshot(model), image(2, 3, 5, 5)
    folded, report = bnfold.fold(model, x)
    assert_state(model, state)
    assert reasons(report) == {"1": "batch-statistics"}
    assert_same(run(model, x), run(folded, x), 1e-9)


def test_subclass_in_training_mode_keeps_its_statistics():
    class Own(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * 2

    model = network()
    model[1] = build(Own(4)).train()
    state = snapshot(model)
    bnfold.fold(model, image(2, 3, 5, 5))
    assert_state(model, state)


@pytest.mark.parametrize("affine", [True, False])
def test_without_running_statistics_it_stays(affine):
    model, x = network(track_running_stats=False, affine=affine), image(2, 3, 5, 5)
    folded, report = bnfold.fold(model, x)
    assert reasons(report) == {"1": "batch-statistics"}
    assert_same(run(model, x), run(folded, x), 1e-9)
    other = image(3, 3, 5, 5, seed=1)
    assert_same(run(model, other), run(folded, other), 1e-9)


def test_statistics_removed_by_hand():
    model, x = network(), image(2, 3, 5, 5)
    model[1].running_mean = model[1].running_var = None
    folded, report = bnfold.fold(model, x)
    assert reasons(report) == {"1": "batch-statistics"}
    assert_same(run(model, x), run(folded, x), 1e-9)


def test_submodules_keep_their_modes():
    model = network()
    model[2].train()
    folded, _ = bnfold.fold(model, image(2, 3, 5, 5))
    assert model[2].training
    assert folded[2].training
    assert not folded[1].training


def test_dropout_left_in_training_mode_is_not_taken_for_a_constant():
    model = build(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout2d(0.5), nn.BatchNorm2d(4)))
    model[1].train()
    x = image(2, 3, 5, 5)
    folded, _ = bnfold.fold(model, x)
    for seed in range(3):
        results = []
        for candidate in (model, folded):
            torch.manual_seed(seed)
            with torch.no_grad():
                results.append([candidate(x)])
        assert_same(*results, 1e-9)


def test_fold_does_not_move_the_random_state():
    model = build(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5), nn.BatchNorm2d(4)))
    model[1].train()
    before = torch.get_rng_state()
    bnfold.fold(model, image(2, 3, 5, 5))
    assert torch.equal(before, torch.get_rng_state())


class Writes(nn.Module):
    """Something is written to the BatchNorm before it runs."""

    def __init__(self, write):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.write = write

    def forward(self, x):
        self.write(self.bn, x)
        return self.head(self.bn(self.conv(x)).relu())


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    "write",
    [
        lambda bn, x: bn.weight.data.mul_(0.9),
        lambda bn, x: bn.bias.data.add_(x.mean()),
        lambda bn, x: bn.weight.data.copy_(x.mean((0, 2, 3))[[0, 1, 2, 0]]),
        lambda bn, x: bn.load_state_dict({n: t * 0.5 for n, t in bn.state_dict().items()}),
        lambda bn, x: nn.init.ones_(bn.weight),
        lambda bn, x: bn.weight.data.clamp_(min=0.1),
        lambda bn, x: bn.reset_running_stats(),
    ],
)
def test_a_batch_norm_that_is_written_to_is_listed(write, verify):
    model = build(Writes(write))
    new = copy.deepcopy(model)
    state, x = snapshot(model), image(2, 3, 5, 5)
    folded, report = bnfold.fold(model, x, verify=verify)
    assert_state(model, state)
    assert reasons(report) == {"bn": "batch-statistics"}
    for inputs in (x, x, image(3, 3, 4, 4, seed=1)):
        with torch.no_grad():
            torch.testing.assert_close(folded(inputs), new(inputs))
