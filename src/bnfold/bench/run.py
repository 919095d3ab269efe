"""From the variants of a model to a result: every setting, in every runtime.

Variants are only compared with each other in one runtime and setting, called in turn; so there
they are made ready together, measured, and let go before the next.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from bnfold.bench import machine
from bnfold.bench.result import BenchResult
from bnfold.bench.rows import ORIGINAL, BenchRow
from bnfold.bench.settings import Setting, Subject, first_line, is_needed
from bnfold.bench.timing import Budget, FloatArray, Timed, measure, quartiles, ratio
from bnfold.errors import BnfoldError, UsageError

Progress = Callable[[float], None]
"""Is told which part of the work is done."""


Found = Callable[[BenchResult], object]
"""Is told the result so far: what was measured is kept if the rest is not waited for."""

Notes = list[str]


def run(
    subject: Subject, budget: Budget, progress: Progress, found: Found | None = None
) -> BenchResult:
    """Measure. Raises UsageError where the original or the folded model cannot be run."""
    busy = machine.load_note()
    notes = [] if busy is None else [busy]
    host = machine.machine()  # before our own work shows in the load
    rows: list[BenchRow] = []

    def so_far() -> BenchResult:
        devices, versions = subject.describe()
        return BenchResult(
            tuple(rows),
            {**host, **devices},
            {**machine.versions(), **versions},
            tuple(dict.fromkeys(notes)),
        )

    for sample in samples(subject, budget, notes):
        rows += _rows(sample)
        progress(sample.part)
        if found is not None:
            found(so_far())
    return so_far()


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """The times of all variants in one runtime and setting."""

    runtime: str
    setting: Setting
    seconds: Mapping[str, FloatArray]
    """Of each variant, one number per round."""
    part: float
    """How much of all the measuring is done."""


def samples(subject: Subject, budget: Budget, notes: Notes) -> Iterator[Sample]:
    """Measure in every runtime of every setting; `notes` takes down what could not be run."""
    total, done = len(subject.settings) * len(subject.runtimes), 0
    for setting in subject.settings:
        with subject.enter(setting):
            for runtime in subject.runtimes:
                ready = _ready(subject, runtime, setting, notes)
                seconds = measure(ready, budget)
                done += 1
                yield Sample(runtime, setting, seconds, done / total)
                ready.clear()
                gc.collect()


def _ready(subject: Subject, runtime: str, setting: Setting, notes: list[str]) -> dict[str, Timed]:
    """Every variant, called once; a note instead where one can be done without."""
    ready: dict[str, Timed] = {}
    for variant in subject.variants:
        try:
            timed = subject.timed(variant, runtime, setting)
            timed()
        except BnfoldError:
            raise
        except Exception as error:  # a runtime raises whatever it likes
            if is_needed(variant):
                raise subject.not_taken(variant, runtime, error) or UsageError(
                    f"the {variant} model cannot be run in {runtime} ({_words(setting)}):"
                    f" {first_line(error)}".rstrip("."),
                    _next_step(runtime),
                ) from error
            notes.append(f"{variant} cannot be run in {runtime}: {first_line(error)}")
            continue
        ready[variant] = timed
    return ready


def _words(setting: Setting) -> str:
    return (
        f"{setting.device}, {setting.dtype}, {setting.layout}, batch {setting.batch},"
        f" threads {setting.threads}"
    )


def _next_step(runtime: str) -> str:
    if runtime == "compile":
        return "see whether a C++ compiler is installed, or leave out --compile"
    return "choose a setting that the model can be run in"


def _rows(sample: Sample) -> list[BenchRow]:
    rows = []
    for variant, seconds in sample.seconds.items():
        low, median, high = quartiles(seconds)
        to_original = ratio(seconds, sample.seconds[ORIGINAL])
        row = BenchRow(
            variant=variant,
            runtime=sample.runtime,
            **sample.setting._asdict(),
            calls=len(seconds),
            median=median,
            low=low,
            high=high,
            ratio=to_original.value,
            ratio_low=to_original.low,
            ratio_high=to_original.high,
        )
        rows.append(row)
    return rows
