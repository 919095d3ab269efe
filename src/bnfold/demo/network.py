"""A small network for handwritten digits, and its trained weights.

Its fourteen BatchNorms stand where BatchNorms stand in real networks, and each can go exactly:

    part            the BatchNorm stands                        as in
    stem            after a convolution                         everywhere
    residual        before ReLU and convolution, on a stream    pre-activation ResNet (1603.05027)
    squeeze         after a pointwise convolution               MobileNet (1704.04861)
    depthwise       after a depthwise convolution               MobileNet
    upsample        after a grouped transposed convolution      decoders
    dense           on the concat of all features so far        DenseNet (1608.06993)

Two choices keep it exact: a BatchNorm that reads a shared stream feeds an unpadded convolution,
since a shift cannot cross zero padding; and each ReLU is a module of its own, since a rescaled
ReLU needs bounds of its own.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch
from torch import Tensor, nn

STREAM_CHANNELS = 24
SQUEEZED_CHANNELS = 32
GROWTH = 12
WEIGHTS_FILE = "digits_net.npz"


class PreActivationBlock(nn.Module):
    """x + conv2(relu(norm2(conv1(relu(norm1(x)))))), the skip untouched."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        y = self.conv1(self.relu1(self.norm1(x)))
        y = self.conv2(self.relu2(self.norm2(y)))
        return torch.add(x, y)


class DenseLayer(nn.Module):
    """New features from all features so far; the result carries both."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + growth, H, W)."""
        y = self.conv1(self.relu1(self.norm1(x)))
        y = self.conv2(self.relu2(self.norm2(y)))
        return torch.cat([x, y], dim=1)


def convolution_norm_relu(convolution: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    """The classical order: convolution, BatchNorm, ReLU."""
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU())


def norm_relu(channels: int) -> nn.Sequential:
    """What closes a pre-activation stage: BatchNorm, ReLU."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


class DigitsNet(nn.Module):
    """Images of shape (N, 1, 8, 8), values 0 to 1, to logits of shape (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        stream, squeezed = STREAM_CHANNELS, SQUEEZED_CHANNELS
        features = squeezed + 2 * GROWTH
        self.stem = convolution_norm_relu(nn.Conv2d(1, stream, 3, padding=1, bias=False))
        self.residual = nn.Sequential(PreActivationBlock(stream), PreActivationBlock(stream))
        self.residual_end = norm_relu(stream)
        self.squeeze = convolution_norm_relu(nn.Conv2d(stream, squeezed, 1, bias=False))
        self.depthwise = convolution_norm_relu(
            nn.Conv2d(squeezed, squeezed, 3, stride=2, padding=1, groups=squeezed, bias=False)
        )
        self.upsample = convolution_norm_relu(
            nn.ConvTranspose2d(squeezed, squeezed, 2, stride=2, groups=4, bias=False)
        )
        self.dense = nn.Sequential(
            DenseLayer(squeezed, GROWTH), DenseLayer(squeezed + GROWTH, GROWTH)
        )
        self.dense_end = norm_relu(features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(features, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 8, 8) to (N, 10)."""
        x = self.stem(images)
        x = self.residual_end(self.residual(x))
        x = self.upsample(self.depthwise(self.squeeze(x)))
        x = self.dense_end(self.dense(x))
        logits: Tensor = self.classifier(self.flatten(self.pool(x)))
        return logits


def digits_net() -> DigitsNet:
    """The trained network, float32, in eval mode."""
    path = resources.files("bnfold.demo").joinpath(WEIGHTS_FILE)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    net = DigitsNet()
    net.load_state_dict(state)
    return net.eval()
