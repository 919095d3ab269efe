"""Timing several things against each other on a machine that others use too.

What is compared runs in turn, round by round, the order shifted by one each round, so that a slow
moment hits all of them. A ratio is that of the two medians over all rounds; its interval comes
from the bootstrap: rounds are drawn again with replacement, both times of a round together, and
the middle 95% of the ratios are kept (Efron & Tibshirani, An Introduction to the Bootstrap, 1993).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

_DRAWS = 4000

Times = dict[str, list[float]]
"""Seconds of each thing in each round."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times longer the one takes than the other."""

    value: float
    low: float
    high: float
    """The 95% interval."""

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


def interleave(actions: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 3) -> Times:
    """Run every action once per round, `warmup` rounds before any is timed."""
    times: Times = {name: [] for name in actions}
    names = list(actions)
    for number in range(-warmup, rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            actions[name]()
            seconds = time.perf_counter() - start
            if number >= 0:
                times[name].append(seconds)
    return times


def median(seconds: list[float]) -> float:
    """The median, in seconds."""
    return float(np.median(seconds))


def ratio(times: Times, numerator: str, denominator: str) -> Ratio:
    """Median of the one over the median of the other, with its interval."""
    over, under = np.array(times[numerator]), np.array(times[denominator])
    generator = np.random.default_rng(0)
    chosen = generator.integers(0, len(over), (_DRAWS, len(over)))
    drawn = np.median(over[chosen], axis=1) / np.median(under[chosen], axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Ratio(float(np.median(over) / np.median(under)), float(low), float(high))
