"""Which of two networks is faster: calls in turn, and the median of each.

In turn, since a machine's speed drifts: what slows one call slows its neighbour as well. So the
ratio is taken pair by pair, and its median stands beside the two medians.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WARM_UP_PAIRS = 10
SECONDS = 2.0
LEAST_PAIRS = 15
MOST_PAIRS = 1000


@dataclass(frozen=True, slots=True)
class Latency:
    """Two networks on one batch."""

    batch: int
    """Images per call."""
    pairs: int
    """Calls of each network."""
    before: float
    """Seconds, median."""
    after: float
    """Seconds, median."""
    speedup: float
    """before / after, median over the pairs; above 1 the second network is faster."""

    def __str__(self) -> str:
        return (
            f"{self.before * 1e3:8.3f} ms -> {self.after * 1e3:8.3f} ms, "
            f"x{self.speedup:.2f} (median of {self.pairs} pairs)"
        )


@torch.inference_mode()
def measure(before: nn.Module, after: nn.Module, images: Tensor) -> Latency:
    """Call both in turn on the images (N, 1, 8, 8) for about two seconds."""
    for _ in range(WARM_UP_PAIRS):
        timed_pair(before, after, images)
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + SECONDS
    while len(pairs) < LEAST_PAIRS or (time.perf_counter() < end and len(pairs) < MOST_PAIRS):
        # Who goes second finds warmer caches; take turns in that too.
        if len(pairs) % 2:
            pairs.append(timed_pair(before, after, images))
        else:
            pairs.append(timed_pair(after, before, images)[::-1])
    return Latency(
        batch=len(images),
        pairs=len(pairs),
        before=statistics.median(first for first, _ in pairs),
        after=statistics.median(second for _, second in pairs),
        speedup=statistics.median(first / second for first, second in pairs),
    )


def timed_pair(first: nn.Module, second: nn.Module, images: Tensor) -> tuple[float, float]:
    """Seconds of one call each, in this order."""
    start = time.perf_counter()
    first(images)
    middle = time.perf_counter()
    second(images)
    return middle - start, time.perf_counter() - middle
