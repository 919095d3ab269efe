"""Convolutions and BatchNorms as training leaves them: no statistic is 0 or 1, signs differ."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn

DTYPE = torch.float64


def any_conv(draw: random.Random, channels: int, out: int, **options: Any) -> nn.Conv2d:
    """Of any kernel, padding and groups, as large at the output as at the input."""
    kernel = draw.choice((1, 1, 3))
    usual = {
        "kernel_size": kernel,
        "padding": kernel // 2,
        "bias": draw.random() < 0.5,
        "padding_mode": draw.choice(("zeros", "zeros", "replicate")),
        "groups": channels if channels == out and draw.random() < 0.2 else 1,
        "dtype": DTYPE,
    }
    return nn.Conv2d(channels, out, **{**usual, **options})


def any_linear(draw: random.Random, channels: int, out: int) -> nn.Linear:
    return nn.Linear(channels, out, bias=draw.random() < 0.6, dtype=DTYPE)


def any_batch_norm(
    draw: random.Random, channels: int, kind: type[nn.Module] = nn.BatchNorm2d, **options: Any
) -> Any:
    """In eval mode, with random statistics; some gammas negative, some 0, some tiny."""
    usual = {"eps": draw.choice((1e-5, 1e-3)), "affine": draw.random() < 0.9, "dtype": DTYPE}
    return filled(draw, kind(channels, **{**usual, **options}).eval())


def filled(draw: random.Random, norm: Any) -> Any:
    """With random statistics and parameters."""
    count = norm.num_features

    def numbers(low: float, high: float) -> torch.Tensor:
        return torch.tensor([draw.uniform(low, high) for _ in range(count)], dtype=DTYPE)

    norm.running_mean.copy_(numbers(-1, 2))
    norm.running_var.copy_(numbers(0.3, 2.3))
    if norm.weight is not None:
        special = draw.choice((None, None, None, None, 0.0, 1e-7))
        gamma = [draw.uniform(0.4, 1.4) * draw.choice((1, 1, -1)) for _ in range(count)]
        if special is not None:
            gamma[draw.randrange(count)] = special
        norm.weight.data.copy_(torch.tensor(gamma, dtype=DTYPE))
        norm.bias.data.copy_(numbers(-0.8, 1.2))
    return norm
