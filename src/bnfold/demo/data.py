"""The held-out digits that the demo is judged on.

They are 360 of the 1,797 images of scikit-learn's `load_digits`, which are the test set of the UCI
"Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, CC BY 4.0): 8 by 8
pixels, ink counted from 0 to 16. They are shipped, so that the demo does not need scikit-learn.
"""

from __future__ import annotations

from importlib import resources
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HELD_OUT_FILE = "digits_held_out.npz"
HELD_OUT_COUNT = 360
SPLIT_SEED = 20240229
FULL_INK = 16.0


class Digits(NamedTuple):
    """Images and what they show."""

    images: Tensor
    """(N, 1, 8, 8), float32, values 0 to 1."""
    labels: Tensor
    """(N,), int64, values 0 to 9."""


def load_digits_split() -> Digits:
    """The held-out images, which training never saw."""
    path = resources.files("bnfold.demo").joinpath(HELD_OUT_FILE)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return as_digits(arrays["images"], arrays["labels"])


def as_digits(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Digits:
    """Stored images (N, 8, 8), values 0 to 16, and labels (N,) as the network takes them."""
    scaled = torch.from_numpy(images.astype(np.float32) / np.float32(FULL_INK))
    return Digits(scaled.unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))


def split_indices(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of `count` images train and which are held out, the same on every machine."""
    # RandomState is the generator whose stream NumPy has promised never to change (NEP 19).
    order = np.random.RandomState(SPLIT_SEED).permutation(count)
    return order[HELD_OUT_COUNT:], order[:HELD_OUT_COUNT]
