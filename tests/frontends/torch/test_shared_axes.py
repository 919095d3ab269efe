"""A batch that shares its axis with channels: which of them an entry has holds for every batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.frontends.torch.support import assert_folds, build, image

Way = Callable[[Tensor], Tensor]
"""Of an image of six channels, to one of six again."""


class Net(nn.Module):
    """The BatchNorm goes into the convolution where each of its channels is told for all sizes."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.way(self.conv(x))))


def heads_of_an_image(x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    return x.reshape(b * 2, 3, h, w).reshape(b, 6, h, w)


def one_channel_each(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.reshape(b * c, 1, h, w).reshape(b, c, h, w)


def in_steps(x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    y = x.reshape(b * 2, 3, h * w).transpose(1, 2).reshape(b * 2, h, w, 3).permute(0, 3, 1, 2)
    return y.reshape(b * 6, h, w).reshape(b * 3, 2, h, w).reshape(b, 6, h, w)


def pooled_meanwhile(x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    return F.avg_pool2d(x.reshape(b * 3, 2, h, w), 3, 1).reshape(b, 6, h - 2, w - 2)


def with_a_mean_added(x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    y = x.reshape(b * 2, 3, h, w)
    return (y + y.mean((2, 3), keepdim=True)).reshape(b, 6, h, w)


FOLDED = [heads_of_an_image, one_channel_each, in_steps, pooled_meanwhile, with_a_mean_added]


def the_other_order(x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    y = x.reshape(b, 2, 3, h, w).transpose(0, 1).reshape(2 * b, 3, h, w)
    return y.reshape(b, 6, h, w)


def flipped(x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    return x.reshape(b * 2, 3, h, w).flip(0).reshape(b, 6, h, w)


def rolled(x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    return x.reshape(b * 2, 3, h, w).roll(b - 1, 0).reshape(b, 6, h, w)


def without_the_first(x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    y = torch.cat([x.reshape(b * 2, 3, h, w)[1:], x.new_zeros(1, 3, h, w)])
    return y.reshape(b, 6, h, w)


def halves_exchanged(x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    first, second = x.reshape(b * 2, 3, h, w).chunk(2)
    return torch.cat([second, first]).reshape(b, 6, h, w)


def as_many_as_images(x: Tensor) -> Tensor:
    """Channels and images change places where there are as many of them."""
    b, c, h, w = x.shape
    return x.reshape(b * c, h, w).reshape(c, b, h, w).transpose(0, 1)


def cut_by_the_size(x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    return x.reshape(b * h, 6, w).reshape(b, h, 6, w).transpose(1, 2)


def merged_with_the_rows(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.permute(0, 2, 1, 3).reshape(b * h * c, w).reshape(b, c, h, w)


OTHERS = [
    *(the_other_order, flipped, rolled, without_the_first, halves_exchanged, as_many_as_images),
    *(cut_by_the_size, merged_with_the_rows),
]
MORE = (image(1, 3, 5, 4), image(3, 3, 4, 6), image(5, 3, 6, 3), image(6, 3, 4, 4))


@pytest.mark.parametrize("way", FOLDED)
def test_what_is_told_for_every_batch_goes(way):
    x = image(2, 3, 4, 5)
    assert_folds(build(Net(way)), x, removed=1, kept=0, more=MORE, verify=False)


@pytest.mark.parametrize("way", OTHERS)
@pytest.mark.parametrize("batch", [1, 2, 4, 6])
def test_what_is_not_is_right_all_the_same(way, batch):
    assert_folds(build(Net(way)), image(batch, 3, 4, 5), more=MORE, verify=False)
