"""Which of two networks is faster: called in turn, see `bnfold.bench.timing`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bnfold.bench import timing

_BUDGET = timing.Budget(seconds=2.0)


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
    networks = {"before": before, "after": after}
    times = timing.measure(
        {name: timing.on_clock(partial(network, images)) for name, network in networks.items()},
        _BUDGET,
    )
    return Latency(
        batch=len(images),
        pairs=len(times["before"]),
        before=timing.quartiles(times["before"])[1],
        after=timing.quartiles(times["after"])[1],
        speedup=timing.ratio(times["before"], times["after"]).value,
    )
