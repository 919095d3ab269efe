"""Very deep and very wide networks, one description for every frontend.

Their values neither vanish nor explode, so that a wrong fold anywhere shows in the output.

    chain       BN(conv(x)) = c * x + b in each channel, c up and down around 1, then a ReLU
    branches    x + conv(relu(BN(x))), the convolution small
    wide        2 channels become many, by a depthwise one stay many, and become 2 again
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CHAIN_BLOCKS = 700
"""Of three nodes each: 2,100 nodes, twice as deep as Python recurses."""
BRANCH_BLOCKS = 500
"""Of four nodes each."""
WIDE = 100_000
"""Channels."""
TOLERANCE = 1e-10
"""Of the output's largest value, in float64."""


@dataclass(frozen=True, eq=False)
class Norm:
    """A BatchNorm: four arrays (C,); both signs of gamma."""

    gamma: Array
    beta: Array
    mean: Array
    var: Array

    eps = 1e-5

    @property
    def scale(self) -> Array:
        """a in y = a * x + b."""
        return self.gamma / np.sqrt(self.var + self.eps)


@dataclass(frozen=True, eq=False)
class Block:
    """A convolution and the BatchNorm behind it (chain) or before it (branches)."""

    kernel: Array
    """(out, in/groups, 1, 1)"""
    norm: Norm


def chain(count: int = CHAIN_BLOCKS, channels: int = 2) -> list[Block]:
    """Depthwise convolutions; the BatchNorm undoes most of what they do."""
    rng = np.random.default_rng(1)
    blocks = []
    for index in range(count):
        norm = _norm(rng, channels)
        gain = np.exp(0.3 * (-1) ** index * np.arange(1, channels + 1) / channels)
        # a * (k * x - mean) + beta = gain * x + small
        small = rng.uniform(0, 1e-4, channels)
        norm = Norm(norm.gamma, norm.beta, (norm.beta - small) / norm.scale, norm.var)
        blocks.append(Block((gain / norm.scale).reshape(-1, 1, 1, 1), norm))
    return blocks


def branches(count: int = BRANCH_BLOCKS, channels: int = 2) -> list[Block]:
    """Convolutions of all channels whose contributions stay of size 1 together."""
    rng = np.random.default_rng(2)
    shape = (channels, channels, 1, 1)
    return [
        Block(rng.normal(size=shape) / np.sqrt(count), _norm(rng, channels)) for _ in range(count)
    ]


def wide(channels: int = WIDE) -> tuple[Block, Block, Array]:
    """In: (C, 2, 1, 1); depthwise: (C, 1, 1, 1); and the kernel out: (2, C, 1, 1)."""
    rng = np.random.default_rng(3)
    first = Block(rng.normal(size=(channels, 2, 1, 1)), _norm(rng, channels))
    second = Block(rng.normal(size=(channels, 1, 1, 1)), _norm(rng, channels))
    return first, second, rng.normal(size=(2, channels, 1, 1)) / np.sqrt(channels)


def _norm(rng: np.random.Generator, channels: int) -> Norm:
    sign = np.where(rng.random(channels) < 0.3, -1.0, 1.0)
    return Norm(
        rng.uniform(0.5, 1.5, channels) * sign,
        rng.normal(size=channels),
        rng.normal(size=channels),
        rng.uniform(0.5, 1.5, channels),
    )
