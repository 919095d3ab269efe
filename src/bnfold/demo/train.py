"""How the demo's weights were made: `python -m bnfold.demo.train`, half a minute on two cores.

The BatchNorm factors start out spread, a third of them negative, and are trained from there. In so
short a training hardly any would cross 0 by itself, and the negative ones are what makes folding
across a ReLU hard.

Needs scikit-learn for the digits; writes the weights and the held-out images into this package.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnfold.demo.data import HELD_OUT_FILE, Digits, as_digits, split_indices
from bnfold.demo.network import WEIGHTS_FILE, DigitsNet

PACKAGE = Path(__file__).parent
SEED = 7
EPOCHS = 120
BATCH = 64
PEAK_LEARNING_RATE = 4e-3
WEIGHT_DECAY = 2e-2
NEGATIVE_SHARE = 1 / 3


def main() -> int:
    """Train, say how good it is, write the two files."""
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    train, held_out = write_split()
    net = DigitsNet()
    spread_factors(net)
    started = time.perf_counter()
    fit(net, train)
    net.eval()
    print(f"trained in {time.perf_counter() - started:.0f} s")
    print(f"held-out accuracy {accuracy(net, held_out):.2%} of {len(held_out.labels)}")
    print_negative_factors(net)
    arrays = {name: value.numpy() for name, value in net.state_dict().items()}
    np.savez_compressed(PACKAGE / WEIGHTS_FILE, allow_pickle=False, **arrays)
    return 0


def write_split() -> tuple[Digits, Digits]:
    """The images to train on and the held-out ones, which are written as well."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images: NDArray[np.uint8] = bunch.images.astype(np.uint8)
    labels: NDArray[np.uint8] = bunch.target.astype(np.uint8)
    train, held_out = split_indices(len(labels))
    np.savez_compressed(PACKAGE / HELD_OUT_FILE, images=images[held_out], labels=labels[held_out])
    return as_digits(images[train], labels[train]), as_digits(images[held_out], labels[held_out])


def batch_norms(net: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Every BatchNorm by name, in order."""
    return {
        name: module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)
    }


def spread_factors(net: nn.Module) -> None:
    """Start each BatchNorm factor between 0.5 and 1.5, some of them negative."""
    for norm in batch_norms(net).values():
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        negative = torch.rand_like(norm.weight) < NEGATIVE_SHARE
        with torch.no_grad():
            norm.weight[negative] *= -1


def fit(net: nn.Module, data: Digits) -> None:
    """AdamW under a one-cycle schedule; no image is held back to stop early."""
    optimizer = torch.optim.AdamW(parameter_groups(net), lr=PEAK_LEARNING_RATE)
    steps_per_epoch = math.ceil(len(data.labels) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_LEARNING_RATE, total_steps=EPOCHS * steps_per_epoch
    )
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    net.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(data.labels)).tensor_split(steps_per_epoch):
            loss = loss_of(net(moved(data.images[batch])), data.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def parameter_groups(net: nn.Module) -> list[dict[str, object]]:
    """Weights decay; factors and biases (one axis) do not."""
    weights = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in net.parameters() if parameter.ndim == 1]
    return [
        {"params": weights, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]


def moved(images: Tensor) -> Tensor:
    """Each image (N, 1, H, W) moved by up to one pixel each way, empty pixels coming in."""
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    down = torch.randint(0, 3, (count, 1)) + torch.arange(height)  # (N, H)
    right = torch.randint(0, 3, (count, 1)) + torch.arange(width)  # (N, W)
    image = torch.arange(count)[:, None, None]
    return padded[image, 0, down[:, :, None], right[:, None, :]].unsqueeze(1)


@torch.no_grad()
def accuracy(net: nn.Module, data: Digits) -> float:
    """The share of images whose largest logit is the label's."""
    return float((net(data.images).argmax(1) == data.labels).double().mean())


def print_negative_factors(net: nn.Module) -> None:
    """One line per BatchNorm: how many of its factors are negative, and the smallest size."""
    for name, norm in batch_norms(net).items():
        factors = norm.weight.detach()
        negative = int((factors < 0).sum())
        smallest = float(factors.abs().min())
        print(f"{name:22} {negative:3} of {len(factors)} negative, smallest size {smallest:.3f}")


if __name__ == "__main__":
    sys.exit(main())
