"""Channels that are carried through views, and readers of their memory layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.frontends.torch.support import assert_folds, build, image
from tests.pairwise import pairwise

VIEWS = {
    "identity": lambda y: y,
    "flatten": lambda y: y.flatten(2).view(y.shape),
    "view": lambda y: y.view(y.size(0), -1).view(y.shape),
    "reshape groups": lambda y: y.reshape(y.size(0), 2, 4, *y.shape[2:]).flatten(1, 2),
    "shuffle": lambda y: y.view(y.size(0), 2, 4, *y.shape[2:]).transpose(1, 2).flatten(1, 2),
    "channel_shuffle": lambda y: functional.channel_shuffle(y, 2),
    "pixel_shuffle": lambda y: functional.pixel_unshuffle(functional.pixel_shuffle(y, 2), 2),
    "pixel_shuffle alone": lambda y: functional.pixel_shuffle(y, 2).repeat(1, 4, 1, 1),
    "permute": lambda y: y.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    "swap height and width": lambda y: y.transpose(2, 3),
    "channels to space": lambda y: y.permute(0, 2, 1, 3).contiguous()[:, :6].permute(0, 2, 1, 3),
    "split": lambda y: torch.cat(y.split(3, 1)[::-1], 1),
    "chunk": lambda y: torch.cat([part.relu() for part in y.chunk(3, 1)], 1),
    "unbind": lambda y: torch.stack(y.unbind(1)[::-1], 1),
    "slice": lambda y: torch.cat([y[:, ::2], y[:, 1::2]], 1),
    "select": lambda y: torch.stack([y[:, i] for i in (3, 1, 0, 2, 7, 6, 5, 4)], 1),
    "narrow": lambda y: torch.cat([y.narrow(1, 4, 4), y.narrow(1, 0, 4)], 1),
    "index": lambda y: y[:, [7, 6, 5, 4, 3, 2, 1, 0]],
    "index tensor": lambda y: y[:, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])],
    "index mask": lambda y: y[:, torch.tensor([True, False] * 4)].repeat(1, 2, 1, 1),
    "index_select": lambda y: y.index_select(1, torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])),
    "index by value": lambda y: y[:, y.mean((0, 2, 3)).argsort()],
    "gather": lambda y: y.gather(1, torch.arange(8).flip(0).view(1, 8, 1, 1).expand(y.shape)),
    "take_along": lambda y: torch.take_along_dim(y, torch.arange(8).flip(0).view(1, 8, 1, 1), 1),
    "flip": lambda y: y.flip(1),
    "roll": lambda y: y.roll(3, 1),
    "roll space": lambda y: y.roll((1, 2), (2, 3)),
    "rot90": lambda y: y.rot90(1, (2, 3)),
    "expand": lambda y: y[:, :1].expand(-1, 8, -1, -1),
    "repeat": lambda y: y[:, :4].repeat(1, 2, 1, 1),
    "repeat_interleave": lambda y: y[:, :4].repeat_interleave(2, 1),
    "repeat_interleave tensor": lambda y: y[:, :2].repeat_interleave(torch.tensor([3, 5]), 1),
    "tile": lambda y: y[:, :4].tile(1, 2, 1, 1),
    "cat": lambda y: torch.cat([y[:, 4:], y[:, :4]], 1),
    "cat space": lambda y: torch.cat([y, y.flip(1)], 2),
    "cat batch": lambda y: torch.cat([y, y], 0),
    "cat zeros": lambda y: torch.cat([y[:, :6], y.new_zeros(y.size(0), 2, *y.shape[2:])], 1),
    "cat ones": lambda y: torch.cat([y[:, :6], y.new_ones(y.size(0), 2, *y.shape[2:])], 1),
    "cat ints": lambda y: torch.cat(
        [y[:, :6], torch.full((y.size(0), 2, *y.shape[2:]), 3, dtype=torch.long)], 1
    ),
    "stack ints": lambda y: torch.stack(
        [y[:, 0], torch.full((y.size(0), *y.shape[2:]), 5, dtype=torch.long)], 1
    ).repeat(1, 4, 1, 1),
    "stack": lambda y: torch.stack([y[:, :4], y[:, 4:]], 2).flatten(1, 2),
    "hstack": lambda y: torch.hstack([y[:, 4:], y[:, :4]]),
    "dstack": lambda y: torch.dstack([y[:, :, :3], y[:, :, 3:]]),
    "unfold": lambda y: functional.unfold(y, 1).view(y.shape),
    "unfold 2": lambda y: functional.fold(
        functional.unfold(y, 2, stride=2), y.shape[-2:], 2, stride=2
    ),
    "unfold padded": lambda y: functional.unfold(y, 3, padding=1)[:, :8].view(y.shape),
    "tensor.unfold": lambda y: y.unfold(2, 2, 2).flatten(-2),
    "diagonal": lambda y: y.diagonal(dim1=2, dim2=3)[..., None],
    "tril": lambda y: y.tril(),
    "as_strided": lambda y: y.contiguous().as_strided(y.shape, y.contiguous().stride()),
    "squeeze": lambda y: y.mean((2, 3), keepdim=True).squeeze(3).squeeze(2)[:, :, None, None],
    "pool": lambda y: functional.avg_pool2d(y, 2),
    "pool padded": lambda y: functional.avg_pool2d(y, 3, 1, 1),
    "pool padded, not counted": lambda y: functional.avg_pool2d(
        y, 3, 1, 1, count_include_pad=False
    ),
    "pool ceil": lambda y: functional.avg_pool2d(y[..., :5], 2, ceil_mode=True),
    "pool divisor": lambda y: functional.avg_pool2d(y, 2, divisor_override=3),
    "max": lambda y: functional.max_pool2d(y, 3, 1, 1),
    "max ceil": lambda y: functional.max_pool2d(y[..., :5], 2, ceil_mode=True),
    "max indices": lambda y: functional.max_unpool2d(
        *functional.max_pool2d(y, 2, return_indices=True), 2
    ),
    "lp": lambda y: functional.lp_pool2d(y, 2, 2),
    "adaptive": lambda y: functional.adaptive_avg_pool2d(y, 3),
    "adaptive max": lambda y: functional.adaptive_max_pool2d(y, 3),
    "nearest": lambda y: functional.interpolate(y, scale_factor=2),
    "bilinear": lambda y: functional.interpolate(y, scale_factor=2, mode="bilinear"),
    "bicubic": lambda y: functional.interpolate(y, size=5, mode="bicubic", align_corners=True),
    "antialias": lambda y: functional.interpolate(y, size=3, mode="bilinear", antialias=True),
    "area": lambda y: functional.interpolate(y, size=3, mode="area"),
    "grid_sample": lambda y: functional.grid_sample(
        y, torch.zeros(y.size(0), 3, 3, 2, dtype=y.dtype), align_corners=False
    ),
    "pad": lambda y: functional.pad(y, (1, 1, 0, 2)),
    "pad value": lambda y: functional.pad(y, (1, 1), value=0.7),
    "pad minus inf": lambda y: functional.max_pool2d(
        functional.pad(y, (1, 1), value=-float("inf")), 3, 1
    ),
    "pad channels": lambda y: functional.pad(y[:, :5], (0, 0, 0, 0, 1, 2)),
    "pad channels value": lambda y: functional.pad(y[:, :5], (0, 0, 0, 0, 1, 2), value=0.7),
    "pad negative": lambda y: functional.pad(y, (-1, -1, 0, 0, -1, 1)),
    "pad reflect": lambda y: functional.pad(y, (1, 1, 1, 1), mode="reflect"),
    "pad replicate": lambda y: functional.pad(y, (1, 1, 1, 1), mode="replicate"),
    "pad circular": lambda y: functional.pad(y, (1, 1, 1, 1), mode="circular"),
    "zeros and write": lambda y: _written(torch.zeros_like(y), y),
    "empty and write": lambda y: _written(torch.empty_like(y).fill_(0.3), y),
    "new and write": lambda y: _written(y.new_full(y.shape, 0.5), y),
    "index_put": lambda y: _put(y),
    "index_add": lambda y: y.index_add(1, torch.tensor([0, 2]), y[:, 4:6]),
    "scatter": lambda y: y.scatter(1, torch.zeros(y.shape, dtype=torch.long)[:, :1], y[:, 1:2]),
    "slice_scatter": lambda y: y.slice_scatter(y[:, :2], 1, 4, 6),
    "swap in place": lambda y: _swap(y.clone()),
    "set": lambda y: y.clone().unsqueeze_(0).squeeze_(0).transpose_(2, 3),
    "meshgrid": lambda y: (
        y + torch.meshgrid(y[0, 0, 0], y[0, 0, 0], indexing="ij")[0][:6, :6].sum()
    ),
    "broadcast_to": lambda y: y[:, :1].broadcast_to(y.shape) + y,
    "view dtype": lambda y: y.view(torch.int64).view(torch.float64),
    "fft": lambda y: torch.fft.rfft(y, dim=1).abs().repeat(1, 2, 1, 1)[:, :8],
    "blocks": lambda y: (
        y.reshape(y.size(0), 8, 3, 2, 3, 2)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(-1, 8, 2, 2)
        .mean((2, 3))
        .view(y.size(0), 9, 8)
        .transpose(1, 2)[..., None]
    ),
    "tokens": lambda y: y.flatten(2).transpose(1, 2).softmax(1).transpose(1, 2).view(y.shape),
    "batch into channels": lambda y: y.reshape(1, -1, *y.shape[2:]).view(y.shape),
    "detach": lambda y: y.detach(),
    "data": lambda y: y.data,
    "squeeze-excite": lambda y: y * torch.sigmoid(y.mean((2, 3), keepdim=True).flip(1)),
    "window": lambda y: (
        y.view(y.size(0), 8, 2, 3, 2, 3)
        .permute(0, 2, 4, 3, 5, 1)
        .reshape(-1, 9, 8)
        .cumsum(1)
        .view(y.size(0), 2, 2, 3, 3, 8)
        .permute(0, 5, 1, 3, 2, 4)
        .reshape(y.shape)
    ),
}


def _written(target: Tensor, y: Tensor) -> Tensor:
    target[:, 2:6] = y[:, :4]
    target[:, 0] += y[:, 7]
    return target


def _put(y: Tensor) -> Tensor:
    y = y.clone()
    y[:, [0, 3]] = y[:, [4, 5]]
    return y


def _swap(y: Tensor) -> Tensor:
    first = y[:, :4].clone()
    y[:, :4] = y[:, 4:]
    y[:, 4:].copy_(first)
    return y


class Through(nn.Module):
    """conv -> bn1 -> view -> padded or unpadded conv -> bn2, or bn2 at once."""

    def __init__(self, name: str, head: str) -> None:
        super().__init__()
        self.conv, self.bn1 = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.bn2 = nn.BatchNorm2d(8)
        self.head = {
            "bn": nn.Identity(),
            "pointwise": nn.Conv2d(8, 8, 1),
            "padded": nn.Conv2d(8, 8, 3, padding=1, groups=4),
        }[head]
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.head(VIEWS[self.name](self.bn1(self.conv(x)))))


class PreNorm(Through):
    """The same with a BatchNorm that must go forward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.head(VIEWS[self.name](self.bn1(torch.sigmoid(self.conv(x))))))


# Each view before each head, each of them with both places of the BatchNorm.
PAIRS = pairwise(
    [(name, head) for name in VIEWS for head in ("bn", "pointwise", "padded")],
    (Through, PreNorm),
    lambda case: case,
)


@pytest.mark.parametrize(("name", "head", "kind"), [(*case, kind) for case, kind in PAIRS])
def test_view_between(name, head, kind):
    by_batch = name in ("index by value", "meshgrid")
    assert_folds(build(kind(name, head)), image(2, 3, 6, 6), batches=not by_batch)


# ---------------------------------------------------------------- memory layout


class NonContiguous(nn.Module):
    """BatchNorm makes its input contiguous; the code behind relies on it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:  # (N, 5, 3)
        y = self.bn(self.linear(x).transpose(1, 2))
        return self.head(y.view(y.shape[0], -1))


@pytest.mark.parametrize("batch", [1, 2])
def test_view_of_what_a_removed_batch_norm_made_contiguous(batch):
    assert_folds(build(NonContiguous()), image(batch, 5, 3), removed=1)


class SequenceFirst(nn.Module):
    """With one sample the layout is right by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:  # (1, N, 3)
        y = self.linear(x).permute(1, 2, 0)  # (N, 4, 1)
        y = self.bn(y)
        return y.view(-1)


def test_layout_that_differs_only_with_more_samples():
    assert_folds(build(SequenceFirst()), image(1, 2, 3))
