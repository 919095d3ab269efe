"""Time several things against each other, on a machine that has other things to do as well.

All are called once per round, in an order drawn anew each time, so that a slow moment hits any of
them. What is compared is compared within a round,

    ratio = median over rounds of  time of the one / time of the other

and its 95% interval comes from the bootstrap: rounds are drawn again with replacement, and the
middle 95% of the medians are kept (Efron & Tibshirani, An Introduction to the Bootstrap, 1993).

A call that is short leaves its data in the processor's caches for the next call, and here the
others come in between. So a short call is preceded by one that is not timed: what is reported is
what a loop of its own would find.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

Clock = Callable[[], float]
"""The time now, in seconds from anywhere."""

Timed = Callable[[], float]
"""Does something once and returns how many seconds that took."""

SHORT = 0.02
"""Seconds: calls that take less are preceded by one that is not timed."""

_STEADY = 0.05
"""Warm-up is over when nothing got faster by more than this."""
_WARM_UP = (3, 50)
"""At least and at most so many rounds of it."""
_DRAWS = 2000
_TAIL = 2.5
"""Percent of the draws on either side of the interval."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to measure."""

    seconds: float = 3.0
    """For all that is compared together, without the warm-up."""
    rounds: int | None = None
    """Exactly so many rounds, however long they take."""
    least: int = 9
    """Rounds that are needed to say anything."""
    most: int = 1000
    """Rounds after which more would say nothing new."""

    def goes_on(self, done: int, spent: float) -> bool:
        """Whether there is another round after so many, that took so many seconds."""
        if self.rounds is not None:
            return done < self.rounds
        return done < self.least or (spent < self.seconds and done < self.most)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, and how sure it is."""

    value: float
    low: float
    """Lower end of the 95% interval."""
    high: float
    """Upper end of the 95% interval."""

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


def on_clock(call: Callable[[], object], clock: Clock = time.perf_counter) -> Timed:
    """Time a call by the clock of the machine that makes it."""

    def timed() -> float:
        start = clock()
        call()
        return clock() - start

    return timed


def measure(
    calls: Mapping[str, Timed],
    budget: Budget,
    *,
    clock: Clock = time.perf_counter,
    seed: int = 0,
) -> dict[str, FloatArray]:
    """Seconds of each call in each round. `seed` draws the orders."""
    names = list(calls)
    order = np.random.default_rng(seed)
    best = _warm_up(calls, budget, clock)
    rounds: list[dict[str, float]] = []
    start = clock()
    while budget.goes_on(len(rounds), clock() - start):
        now: dict[str, float] = {}
        for place in order.permutation(len(names)):
            name = names[place]
            if best[name] < SHORT:
                calls[name]()
            now[name] = calls[name]()
        rounds.append(now)
    return {name: np.array([entry[name] for entry in rounds]) for name in names}


def _warm_up(calls: Mapping[str, Timed], budget: Budget, clock: Clock) -> dict[str, float]:
    """Call all in turn until none gets faster any more; the best time of each."""
    best = dict.fromkeys(calls, np.inf)
    least, most = _WARM_UP
    start = clock()
    for number in range(1, most + 1):
        is_steady = True
        for name, timed in calls.items():
            seconds = timed()
            is_steady &= seconds >= best[name] * (1 - _STEADY)
            best[name] = min(best[name], seconds)
        if number >= least and (is_steady or clock() - start > budget.seconds):
            break
    return best


def quartiles(seconds: FloatArray) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def ratio(over: FloatArray, under: FloatArray, *, seed: int = 0) -> Estimate:
    """How many times longer the one takes, from the seconds (rounds,) of both."""
    ratios = over / under
    generator = np.random.default_rng(seed)
    drawn = ratios[generator.integers(0, len(ratios), (_DRAWS, len(ratios)))]
    low, high = np.percentile(np.median(drawn, axis=1), [_TAIL, 100 - _TAIL])
    return Estimate(float(np.median(ratios)), float(low), float(high))
