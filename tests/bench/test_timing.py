"""Timing, on a simulated machine: no test here looks at a real clock."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bnfold.bench import timing
from bnfold.bench.timing import SHORT, Budget, measure, on_clock, quartiles, ratio


class Machine:
    """Time passes when somebody works; other work comes in between and slows it down."""

    def __init__(self, seed: int = 0, *, noise: float = 0.02, load: float = 0.3) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.random = np.random.default_rng(seed)
        self.seed, self.noise, self.load = seed, noise, load

    def clock(self) -> float:
        return self.now

    def work(self, name: str, seconds: float | Callable[[int], float]) -> Callable[[], None]:
        """Something that takes so long, or as long as it says for its n-th call."""
        calls = 0

        def call() -> None:
            nonlocal calls
            base = seconds if isinstance(seconds, float) else seconds(calls)
            calls += 1
            # A slow swing of the whole machine, some noise, and now and then an interruption.
            swing = 1 + self.load * np.sin(self.now * 3)
            spike = 4.0 if self.noise and self.random.random() < 0.03 else 1.0
            self.now += base * swing * spike * float(np.exp(self.noise * self.random.normal()))
            self.log.append(name)

        return call

    def timed(self, name: str, seconds: float | Callable[[int], float]) -> timing.Timed:
        return on_clock(self.work(name, seconds), self.clock)

    def measure(self, budget: Budget, **seconds: float | Callable[[int], float]):  # type: ignore[no-untyped-def]
        things = {name: self.timed(name, value) for name, value in seconds.items()}
        return measure(things, budget, clock=self.clock, seed=self.seed)


def quiet() -> Machine:
    return Machine(noise=0.0, load=0.0)


# -------------------------------------------------------------------- the interval


def test_equal_things_differ_in_few_of_many_measurements() -> None:
    outside = 0
    for seed in range(100):
        times = Machine(seed).measure(Budget(rounds=15), a=0.05, b=0.05)
        estimate = ratio(times["a"], times["b"])
        outside += not estimate.low <= 1.0 <= estimate.high
    assert 1 <= outside <= 12  # 5 expected


@pytest.mark.parametrize("rounds", [9, 40])
def test_the_interval_holds_the_truth_as_often_as_it_says(rounds: int) -> None:
    """Of ratios drawn from a known distribution: skewed, its median known, 95% are wanted."""
    truth, repeats = 0.93, 300
    generator = np.random.default_rng(rounds)
    offset = np.log(2) / 20  # the median of what is drawn
    held = 0
    for _ in range(repeats):
        skewed = generator.exponential(0.05, rounds)
        reference = generator.uniform(1, 3, rounds)  # the machine's speed in each round
        estimate = ratio(reference * (truth + skewed - offset), reference)
        held += estimate.low <= truth <= estimate.high
    assert 0.92 <= held / repeats <= 0.99


def test_a_real_difference_is_seen_through_a_swinging_machine() -> None:
    times = Machine(1).measure(Budget(rounds=60), a=0.050, b=0.048)
    estimate = ratio(times["b"], times["a"])
    assert estimate.low < 0.96 < estimate.high < 1.0


def test_the_ratio_is_taken_within_rounds_not_between_medians() -> None:
    assert ratio(np.array([3.0, 1.0, 8.0]), np.array([1.0, 2.0, 4.0])).value == 2.0  # not 1.5


def test_a_ratio_and_its_inverse_agree() -> None:
    times = Machine(3).measure(Budget(rounds=31), a=0.05, b=0.07)
    there, back = ratio(times["a"], times["b"]), ratio(times["b"], times["a"])
    assert there.value == pytest.approx(1 / back.value, rel=1e-12)
    assert there.low == pytest.approx(1 / back.high, rel=1e-2)


def test_estimates_read_well() -> None:
    assert str(ratio(np.array([2.0, 2.0]), np.array([1.0, 1.0]))) == "2.000 (2.000-2.000)"


# -------------------------------------------------------------------- the rounds


def test_every_round_calls_each_once_in_changing_orders() -> None:
    machine = quiet()
    machine.measure(Budget(rounds=30), a=0.1, b=0.1, c=0.1)
    warm_up = 9
    rounds = [tuple(machine.log[at : at + 3]) for at in range(warm_up, len(machine.log), 3)]
    assert len(rounds) == 30
    assert all(sorted(entry) == ["a", "b", "c"] for entry in rounds)
    assert len(set(rounds)) == 6  # all orders occur


def test_a_short_call_is_preceded_by_one_of_its_own_that_does_not_count() -> None:
    machine = quiet()
    cold = {"last": ""}

    def call(name: str, seconds: float) -> timing.Timed:
        def timed() -> float:
            is_cold = cold["last"] != name
            cold["last"] = name
            machine.log.append(name)
            return seconds * (2.0 if is_cold else 1.0)

        return timed

    things = {"short": call("short", SHORT / 10), "long": call("long", SHORT * 10)}
    times = measure(things, Budget(rounds=20), clock=machine.clock)
    assert set(times["short"]) == {SHORT / 10}
    assert max(times["long"]) == SHORT * 20  # as it comes, after another
    rest = machine.log[6:]
    assert rest.count("short") == 40
    assert rest.count("long") == 20


def test_warm_up_goes_on_until_nothing_gets_faster() -> None:
    machine = quiet()
    compiling = lambda number: max(1.0 - 0.1 * number, 0.2)  # noqa: E731
    times = machine.measure(Budget(rounds=5, seconds=100), slow_start=compiling, steady=0.1)
    assert times["slow_start"] == pytest.approx([0.2] * 5)


def test_warm_up_ends_even_if_it_gets_faster_forever() -> None:
    machine = quiet()
    faster = lambda number: 0.9**number  # noqa: E731
    machine.measure(Budget(rounds=1, seconds=1e9), a=faster)
    assert len(machine.log) <= 52
    short = quiet()
    short.measure(Budget(rounds=1, seconds=2.0), a=faster)
    assert len(short.log) == 4  # 1 + 0.9 + 0.81 s, then the one that is timed


def test_budget() -> None:
    by_rounds = Budget(rounds=4, seconds=1.0)
    assert by_rounds.goes_on(3, 1e9)
    assert not by_rounds.goes_on(4, 0.0)
    by_time = Budget(seconds=2.0, least=9, most=50)
    assert by_time.goes_on(8, 1e9)
    assert not by_time.goes_on(9, 2.0)
    assert by_time.goes_on(49, 1.9)
    assert not by_time.goes_on(50, 0.0)


def test_the_time_is_spent_and_not_much_more() -> None:
    machine = quiet()
    times = machine.measure(Budget(seconds=3.0), a=0.125, b=0.125)
    assert len(times["a"]) == len(times["b"]) == 12


def test_quartiles() -> None:
    assert quartiles(np.array([4.0, 1.0, 3.0, 2.0, 5.0])) == (2.0, 3.0, 4.0)


def test_medians_are_those_of_a_plain_loop() -> None:
    plain = quiet()
    alone = plain.timed("a", 0.03)
    expected = np.median([alone() for _ in range(20)])
    times = quiet().measure(Budget(rounds=20), a=0.03, b=0.9)
    assert quartiles(times["a"])[1] == pytest.approx(expected)
