"""Attention is a weighted mean of its values, where the weights are known to sum to 1."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional as F  # noqa: N812

import bnfold
from tests.frontends.torch.support import assert_folds, assert_same, build, image, in_core_aten
from tests.pairwise import pairwise

Attend = Callable[["Attention", Tensor, Tensor, Tensor], Tensor]
"""Of queries, keys and values, (batch, tokens, channels), the values' means."""


class Attention(nn.Module):
    """Behind it a BatchNorm that no ReLU lets through: it goes into the values or not at all."""

    def __init__(self, attend: Attend, bias: bool = False) -> None:
        super().__init__()
        self.query = nn.Conv2d(4, 3, 1)
        self.key = nn.Conv2d(4, 3, 1)
        self.value = nn.Conv2d(4, 6, 1, bias=bias)
        self.softmax = nn.Softmax(dim=-1)
        self.norm = nn.BatchNorm2d(6)
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        q, k, v = (
            part(x).flatten(2).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mean = self.attend(self, q, k, v).transpose(1, 2)
        return F.silu(self.norm(mean.reshape(batch, 6, height, width)))


def plain(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


def scaled_and_biased(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2) * 0.3
    return self.softmax(scores + scores.sin()) @ v


def from_the_right(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.softmax(torch.bmm(q, k.mT), dim=2)
    return torch.bmm(v.mT, weights.permute(0, 2, 1)).mT


def down_the_columns(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (k @ q.transpose(-1, -2)).softmax(1).transpose(1, 2) @ v


def einsum(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bij,bjc->bic", torch.einsum("bic,bjc->bij", q, k).softmax(-1), v)


def in_one_op(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(F.pad(q, (0, 3)), F.pad(k, (0, 3)), v)


def in_another_dtype(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1, dtype=torch.float64).to(v.dtype).contiguous() @ v


def dropped(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.dropout((q @ k.mT).softmax(-1), 0.5, self.training) @ v


def reshaped(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT).softmax(-1)
    batch, tokens, _ = weights.shape
    return (weights.view(batch, 1, tokens, tokens) @ v.view(batch, 1, tokens, 6)).squeeze(1)


def along_the_wrong_axis(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(1) @ v


def masked_behind(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT).softmax(-1)
    return weights.masked_fill(weights < 0.05, 0.0) @ v


def written_through_a_view(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT).softmax(-1)
    weights.mT[:, 0] = 0
    return weights @ v


def halved_in_place(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT).softmax(-1)
    weights *= 0.5
    return weights @ v


def some_of_the_tokens(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1)[..., 1:] @ v[:, 1:]


def rows_cut_in_two(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """At an even number of tokens: each half of a row sums to something else."""
    weights = (q @ k.mT).softmax(-1)
    batch, tokens, _ = weights.shape
    if tokens % 2:
        return weights @ v
    return weights.reshape(batch, 2 * tokens, -1)[:, :tokens] @ v[:, : tokens // 2]


def not_normalised(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).sigmoid() @ v


def masked(self: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A row that is masked from end to end is a row of zeros."""
    mask = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool)
    mask[0] = False
    return F.scaled_dot_product_attention(F.pad(q, (0, 3)), F.pad(k, (0, 3)), v, mask)


MEANS = [
    *(plain, scaled_and_biased, from_the_right, down_the_columns, in_one_op),
    *(in_another_dtype, dropped, reshaped),
]
BY_PROGRAM = [einsum]
"""In a module PyTorch takes other steps for a batch of one than for more."""
OTHERS = [
    *(along_the_wrong_axis, masked_behind, written_through_a_view, halved_in_place),
    *(some_of_the_tokens, rows_cut_in_two, not_normalised, masked),
]


@pytest.mark.parametrize("attend", MEANS)
@pytest.mark.parametrize("bias", [False, True])
def test_a_step_behind_goes_into_the_values(attend, bias):
    model = build(Attention(attend, bias))
    more = (image(1, 4, 4, 5), image(3, 4, 2, 3))
    report = assert_folds(model, image(2, 4, 3, 5), removed=1, kept=0, more=more, verify=False)
    assert report.items[0].into == ("value",)


@pytest.mark.parametrize("attend", OTHERS)
def test_a_step_behind_stays(attend):
    model = build(Attention(attend))
    more = (image(1, 4, 4, 5), image(3, 4, 2, 3))
    assert_folds(model, image(2, 4, 3, 5), removed=0, kept=1, more=more, verify=False)


@pytest.mark.parametrize("attend", BY_PROGRAM)
def test_what_only_a_program_lets_go(attend):
    assert_folds(build(Attention(attend)), image(2, 4, 3, 5), removed=0, kept=1, verify=False)


PROGRAMS = ["as exported", "core ATen", "open batch"]


def _whether_it_is_a_mean(attend: Attend) -> set[bool]:
    return {attend not in OTHERS}


@pytest.mark.parametrize(
    ("attend", "form"), pairwise([*MEANS, *BY_PROGRAM, *OTHERS], PROGRAMS, _whether_it_is_a_mean)
)
def test_exported_programs(attend, form):
    model, x = build(Attention(attend)), image(2, 4, 3, 4)
    shapes = {"x": {0: Dim("batch", min=1, max=9)}} if form == "open batch" else None
    program = export(model, (x,), dynamic_shapes=shapes)
    if form == "core ATen":
        program = in_core_aten(program)
    folded, report = bnfold.fold(program, verify=False)
    if attend in OTHERS:
        assert report.removed == 0
    elif form == "as exported":
        assert report.removed == 1
    for batch in (2, 5) if form == "open batch" else (2,):
        y = image(batch, 4, 3, 4, seed=7)
        assert_same([model(y)], [folded.module()(y)], 1e-12)


def test_a_scale_alone_passes_a_mask():
    """Rows of zeros are rows of zeros, rescaled or not; a shift they would not have."""
    model = Attention(masked)
    model.norm = nn.BatchNorm2d(6, affine=False)
    model = build(model)
    model.norm.running_mean.zero_()
    assert_folds(model, image(2, 4, 3, 5), removed=1, kept=0, batches=False, verify=False)


class Scaled(nn.Module):
    """Position attention of a segmentation network: a factor that was learned, and a way around."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(from_the_right)
        self.attention.norm = nn.Identity()
        self.gamma = nn.Parameter(torch.tensor([0.7]))
        self.norm = nn.BatchNorm2d(6)
        self.start = nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        attention = self.attention
        q, k, v = (
            part(x).flatten(2).transpose(1, 2)
            for part in (attention.query, attention.key, attention.value)
        )
        mean = from_the_right(attention, q, k, v).transpose(1, 2).reshape(len(x), 6, *x.shape[2:])
        return F.silu(self.norm(self.gamma * mean + self.start(x)))


def test_a_step_behind_a_sum_goes_through_both_branches():
    assert_folds(build(Scaled()), image(2, 4, 3, 5), removed=1, kept=0, verify=False)
