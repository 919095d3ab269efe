"""Hazard 11: the example inputs take one path; `also` shows the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from tests.frontends.torch.support import assert_folds, assert_same, build, image, reasons, run


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.a, self.b = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.a(y) if x.sum() > 0 else self.b(y).square()


def _cases() -> tuple[Tensor, Tensor]:
    x = image(2, 3, 5, 5).abs()
    return x, -x


def test_conv_with_another_batch_norm_on_the_other_path():
    x, other = _cases()
    report = assert_folds(build(Branch()), x, also=[other])
    assert report.removed <= 1  # the one that stays takes back what went into the convolution


def test_path_that_was_not_shown_is_named():
    x, _ = _cases()
    _, report = bnfold.fold(build(Branch()), x)
    assert reasons(report)["b"] == "not-reached"


class SameNorm(Branch):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.a(y) if x.sum() > 0 else self.a(y).square()


def test_paths_that_agree():
    x, other = _cases()
    model = build(SameNorm())
    del model.b
    assert_folds(model, x, also=[other], removed=1)


class ByShape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(x)
        y = self.bn(y)
        if x.shape[-1] < 6:
            return functional.conv2d(y, self.conv.weight, self.conv.bias)
        return self.conv(y)


def test_padding_on_one_path_only():
    small, large = image(2, 3, 5, 5), image(2, 3, 8, 8)
    assert_folds(build(ByShape()), small, also=[large], removed=0)


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() < 1000 and x.abs().max() > 1e-3 and x.shape[1] < 8:
            x = torch.cat([self.bn(self.conv(x)), x[:, :1]], 1)
            break
        for _ in range(int(x.shape[-1]) % 3):
            x = torch.cat([torch.tanh(self.bn(self.conv(x[:, :4]))), x[:, 4:]], 1)
        return x


@pytest.mark.parametrize("size", [3, 4, 5])
def test_loops(size):
    assert_folds(build(Loop()), image(2, 4, size, size), also=[image(2, 4, 5, 5)])


class Mixed(nn.Module):
    """Attention and recurrence around BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.bn1 = nn.Linear(5, 8), nn.BatchNorm1d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.lstm = nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(12, 4)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.bn2, self.head = nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.embed(x).transpose(1, 2)).transpose(1, 2)
        x = self.encoder(x) + self.attention(x, x, x)[0]
        x = self.gru(self.lstm(x)[0])[0]
        return self.head(self.bn2(x.transpose(1, 2)).transpose(1, 2))


def test_attention_and_recurrence():
    assert_folds(build(Mixed()), image(2, 7, 5), removed=2)


class Crepe(nn.Module):
    """torchcrepe: functional.pad -> conv -> relu -> BatchNorm -> max pool, again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 6, (8, 1), (2, 1)), nn.BatchNorm2d(6, eps=1e-3)
        self.conv2, self.bn2 = nn.Conv2d(6, 4, (4, 1)), nn.BatchNorm2d(4, eps=1e-3)
        self.head = nn.Linear(4 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        x = functional.max_pool2d(
            self.bn1(functional.relu(self.conv1(functional.pad(x, (0, 0, 3, 3))))), (2, 1), (2, 1)
        )
        x = functional.max_pool2d(
            self.bn2(functional.relu(self.conv2(functional.pad(x, (0, 0, 1, 2))))), (2, 1), (2, 1)
        )
        x = x.permute(0, 2, 1, 3).reshape(-1, 4 * 8)
        return torch.sigmoid(self.head(x))


@pytest.mark.parametrize("clip", ["auto", "always", "never"])
def test_network_like_torchcrepe(clip):
    report = assert_folds(build(Crepe()), image(2, 64), clip=clip)
    assert report.removed + report.kept == 2


def test_same_values_from_a_checkpoint_free_run():
    x, _ = _cases()
    model = build(Branch())
    folded, _ = bnfold.fold(model, x)
    assert_same(run(model, x), run(folded, x), 1e-9)
