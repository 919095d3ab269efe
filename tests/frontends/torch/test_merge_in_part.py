"""Where something stands in the way of one merge of many, the others are made."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import bnfold
from bnfold.core.reasons import MergeReason
from tests.frontends.torch.support import build, image
from tests.frontends.torch.test_merge_module import Branches, Two, convolution, convolutions, fold
from tests.pairwise import pairwise

# -------------------------------------------------------------------- one block's code


def casts(m, x):
    return m.first(x) + m.second(x).to(x.dtype)


def widens(m, x):
    return m.first(x) + m.second(x).double()


def asks_for_the_shape(m, x):
    y, z = m.first(x), m.second(x)
    return y + z if y.shape == z.shape else y


def looks_like_another(m, x):
    return m.first(x) + m.second(x).type_as(x)


def cuts(m, x):
    return m.first(x) + m.second(x)[..., : x.shape[2], :]


ASKING = [casts, widens, asks_for_the_shape, looks_like_another, cuts]


@pytest.mark.parametrize("look", [True, False])
@pytest.mark.parametrize(("how", "place"), pairwise(ASKING, [0, 2, 3], lambda how: ()))
def test_a_block_that_asks_for_its_branch(how, place, look):
    """Three blocks of one class, and one in front, amid or behind that cannot be merged."""
    blocks = [Branches() for _ in range(3)]
    blocks.insert(place, Two(how))
    model = nn.Sequential(*blocks)
    if look:
        report = bnfold.inspect(build(model), image(2, 8, 7, 7))
        assert len(report.merged) == 3
        return
    folded, report = fold(model)
    assert convolutions(folded) == 3 + 2 and len(report.merged) == 3
    (left,) = report.unmerged
    assert left.name.endswith(f"in {place}") and left.reason is MergeReason.CODE


@pytest.mark.parametrize("inplace", [True, False])
def test_two_blocks_that_ask(inplace):
    model = nn.Sequential(Two(casts), Branches(), Branches(), Two(casts), Branches())
    folded, report = fold(model, inplace=inplace)
    assert convolutions(folded) == 3 + 4 and len(report.merged) == 3 and len(report.unmerged) == 2
    assert (folded is model) == inplace


def test_where_all_ask_nothing_is_merged():
    model = nn.Sequential(*(Two(casts) for _ in range(20)))
    folded, report = fold(model)
    assert convolutions(folded) == 40 and not report.merged


def test_what_was_left_has_the_given_weights():
    model = build(nn.Sequential(Two(casts), Branches()))
    folded = bnfold.fold(model, image(2, 8, 7, 7)).model
    assert torch.equal(folded[0].second.weight, model[0].second.weight)


class InPlace(nn.Module):
    """A sum that is written over what nobody merges: the BatchNorm cannot go with the branches."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.first, self.second = convolution(3), convolution(3)

    def forward(self, x):
        y = self.norm(x) + torch.relu(x)
        y += self.first(x)
        return y + self.second(x)


def test_branches_are_merged_without_a_step_beside_them():
    """The fold removes the step all the same; a second one changes nothing."""
    folded, report = fold(InPlace())
    assert convolutions(folded) == 1 and report.removed == 1
    again = bnfold.fold(folded, image(2, 8, 7, 7)).report
    assert not again.merged and not again.removed


# -------------------------------------------------------------------- numbers in the code


def halved(m, x):
    return m.first(x) + 0.5 * m.second(x)


def divided(m, x):
    return m.first(x) + m.second(x) / 4


def both(m, x):
    return 0.25 * m.first(x) + m.second(x) * 3.0


def mean_of_two(m, x):
    return (m.first(x) + m.second(x)) / 2


def after_a_product(m, x):
    y = torch.sigmoid(0.5 * x)
    return 0.5 * y + (m.first(x) + 0.5 * m.second(x))


@pytest.mark.parametrize("how", [halved, divided, both, mean_of_two, after_a_product])
def test_a_branch_times_a_number(how):
    """The product is not there any more, and the proof knows."""
    folded, report = fold(nn.Sequential(Branches(), Two(how), Branches()))
    assert convolutions(folded) == 3 and not report.unmerged


def test_a_number_that_is_another_with_modules_gone():
    """What a branch is decides a factor, and a sigmoid hides it."""

    def asks(m, x):
        factor = 0.5 if isinstance(m.second, nn.Conv2d) else 0.25
        return torch.sigmoid(1e4 + (m.first(x) + m.second(x)) * factor)

    model = build(nn.Sequential(Branches(), Two(asks)))
    folded, report = bnfold.fold(model, image(2, 8, 7, 7))
    assert convolutions(folded) == 3 and len(report.merged) == 1


# -------------------------------------------------------------------- digits


class Normalised(nn.Module):
    """bn(a(x) + b(x) + x): `+ x` stays, and the carrier computes what is left of the whole."""

    def __init__(self, gammas):
        super().__init__()
        self.first, self.second = convolution(3), convolution(1)
        self.bn = nn.BatchNorm2d(8)
        self.gammas = gammas

    def forward(self, x):
        return self.bn(self.first(x) + self.second(x) + x)


def normalised(gammas, dtype):
    model = build(Normalised(gammas)).float()
    model.bn.weight.data = torch.tensor(gammas)
    return model.to(dtype)


def off(model, exact, x):
    """Per channel, relative to its size, beside what the dtype of the model rounds to."""
    with torch.no_grad():
        truth = exact(x.double())
        gap = (model(x).double() - truth).abs().amax((0, 2, 3))
    return (gap / (truth - truth.mean((0, 2, 3), keepdim=True)).abs().amax((0, 2, 3))).max()


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(("gamma", "goes"), [(0.5, True), (1e-2, False), (1e-6, False)])
def test_a_small_scale_behind_an_addition_that_stays(gamma, goes, verify):
    model = normalised([gamma] * 8, torch.float32)
    exact = copy.deepcopy(model).double()
    x = image(2, 8, 7, 7, dtype=torch.float32)
    folded, report = bnfold.fold(model, x, verify=verify)
    assert convolutions(folded, x) == 1
    assert report.removed == goes and report.kept == (not goes)
    assert off(folded, exact, x) <= 8 * off(model, exact, x)


@pytest.mark.parametrize("tiny", [1e-4, 1e-8])
def test_one_channel_with_a_tiny_scale(tiny):
    model = normalised([1.0, -0.7, tiny, *[0.8] * 5], torch.float32)
    exact = copy.deepcopy(model).double()
    x = image(2, 8, 7, 7, dtype=torch.float32)
    folded, report = bnfold.fold(model, x, verify=False)
    assert convolutions(folded, x) == 1 and report.kept == 1
    assert off(folded, exact, x) <= 8 * off(model, exact, x)


def test_a_dead_channel_is_no_obstacle():
    model = normalised([1.0, -0.7, 0.0, *[0.8] * 5], torch.float64)
    x = image(2, 8, 7, 7)
    folded, report = bnfold.fold(model, x)
    assert convolutions(folded) == 1 and report.removed == 1


def test_a_small_block_among_others():
    blocks = [normalised([gamma] * 8, torch.float32) for gamma in (1.0, 0.8, 1e-3, 0.9)]
    model, x = nn.Sequential(*blocks).eval(), image(2, 8, 7, 7, dtype=torch.float32)
    folded, report = bnfold.fold(model, x)
    assert convolutions(folded, x) == 4 and report.removed == 3 and not report.unmerged
