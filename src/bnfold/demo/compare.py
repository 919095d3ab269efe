"""How far the logits of two networks lie apart on the same images.

    absolute difference     max |a - b|
    relative difference     max |a - b| / max |a|

Relative to the largest logit, not each to its own: a logit near 0 is no more exact than the sums
it came out of.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest difference between two sets of logits."""

    absolute: float
    """max |a - b|"""
    relative: float
    """max |a - b| / max |a|"""

    @classmethod
    def between(cls, before: Tensor, after: Tensor) -> Difference:
        """Of two tensors of one shape; the first is the measure. Not a number stays that."""
        absolute = (before.double() - after.double()).abs().max().item()
        return cls(absolute, absolute / before.double().abs().max().item())

    def __str__(self) -> str:
        return f"{self.absolute:.2e} absolute, {self.relative:.2e} relative"


@torch.no_grad()
def logits_of(net: nn.Module, images: Tensor) -> Tensor:
    """(N, 1, 8, 8) to (N, 10)."""
    logits: Tensor = net(images)
    return logits


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of images whose largest logit, of (N, 10), is the label's, of (N,)."""
    return float((logits.argmax(1) == labels).double().mean())
