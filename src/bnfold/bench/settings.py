"""What a measurement varies, and what a frontend has to offer for it.

A frontend knows its runtimes and how to make a model ready for one; it does not measure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from bnfold.bench.timing import Timed
from bnfold.errors import BnfoldError

CONTIGUOUS = "contiguous"
CHANNELS_LAST = "channels_last"
MOST_THREADS = 1024
"""Runtimes start as many as they are told, at once, and take all memory with some millions."""


class Setting(NamedTuple):
    """One way to run a model."""

    device: str
    """"cpu", "cuda", "cuda:1"."""
    dtype: str
    """Of weights and inputs."""
    layout: str
    """`CONTIGUOUS` or `CHANNELS_LAST`."""
    batch: int
    """Length of the inputs' first axis."""
    threads: int
    """Processor threads for the runtime."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked for; None where the model or the machine says."""

    device: str = "cpu"
    dtypes: Sequence[str] | None = None
    layouts: Sequence[str] | None = None
    batches: Sequence[int] | None = None
    threads: Sequence[int] | None = None

    def settings(self, *, dtype: str, layout: str, batch: int, threads: int) -> tuple[Setting, ...]:
        """Every combination of what was asked for, with these where nothing was."""
        return tuple(
            Setting(self.device, one_dtype, one_layout, one_batch, one_threads)
            for one_dtype in self.dtypes or (dtype,)
            for one_layout in self.layouts or (layout,)
            for one_batch in self.batches or (batch,)
            for one_threads in self.threads or (threads,)
        )


class Subject(Protocol):
    """The variants of one model, as `runtimes.py` of a frontend offers them."""

    runtimes: tuple[str, ...]
    """What to measure in."""
    variants: tuple[str, ...]
    """The original first."""
    settings: tuple[Setting, ...]
    """The settings to measure in."""

    def enter(self, setting: Setting) -> AbstractContextManager[None]:
        """What holds for the whole process while a setting is measured, its threads above all."""

    def timed(self, variant: str, runtime: str, setting: Setting) -> Timed:
        """The variant, ready to be called. Raises whatever the runtime raises."""

    def not_taken(self, variant: str, runtime: str, error: Exception) -> BnfoldError | None:
        """What to raise where the variant raised for its inputs' sake; None: for the setting's."""

    def describe(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """What is to be known about the machine's devices, and the versions that took part."""


def is_needed(variant: str) -> bool:
    """Whether nothing can be said without it; others may fail, and that is a note."""
    return variant in ("original", "folded")


def first_line(error: BaseException) -> str:
    """An error's name and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def check(wishes: Wishes, known: Mapping[str, Any]) -> None:
    """Raise UsageError for what cannot be wished for; `known` dtypes by name."""
    from bnfold.errors import UsageError

    for name, values, most in (
        ("batch", wishes.batches, math.inf),
        ("threads", wishes.threads, MOST_THREADS),
    ):
        if values is not None and (not values or any(not 1 <= value <= most for value in values)):
            to = "on" if most == math.inf else f"to {most}"
            raise UsageError(
                f"{name}={tuple(values)} is no list of counts", f"use numbers from 1 {to}"
            )
    for dtype in wishes.dtypes or ():
        if dtype not in known:
            raise UsageError(f"there is no dtype {dtype!r}", f"use one of {', '.join(known)}")
    for layout in wishes.layouts or ():
        if layout not in (CONTIGUOUS, CHANNELS_LAST):
            raise UsageError(
                f"there is no layout {layout!r}", f"use {CONTIGUOUS!r} or {CHANNELS_LAST!r}"
            )
