"""Say "equal" in a fraction of the time, or nothing: then `course` judges.

    1  both in float64 on smaller images, by NumPy: the tensors inside are compared, channel by
       channel, with what rounding the weights once more does there, exactly as `course` does
    2  both in their own dtype on the sizes that the model declares, by the runtime: the outputs
       are as near, relative to their size, as those of 1 may be

A weight or bias is the same on an image of any size, so that 1 finds what `course` finds; what only
large images show, a runtime that refuses the file, digits that are lost in float32, is for 2. The
original is run ahead, in a thread, while the fold is still going on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from threading import Thread
from typing import Generic, Protocol, TypeVar

import numpy as np

from bnfold.core.stored import Stored
from bnfold.errors import BnfoldError
from bnfold.verify import compare, layers, outputs, verdict
from bnfold.verify.evidence import (
    DRAWS_FIRST,
    DRAWS_SMALL,
    SMALL,
    Evidence,
    Outputs,
    channel_axes,
    with_outputs,
)
from bnfold.verify.inputs import draw
from bnfold.verify.outputs import Judged
from bnfold.verify.probe import Probe
from bnfold.verify.result import OutputDifference, VerifyResult
from bnfold.verify.runner import Array, Evaluation, InputSpec, Lane, NotExactError, Output

_SIDE = 96
"""Rows and columns of an image, at most, in float64."""
_MOST = 1 << 18
"""Numbers of the inputs, at most, in float64."""
Result = TypeVar("Result")


class SideBySide(Protocol):
    """A model of which several runs go through the network at once."""

    def run(self, inputs: Sequence[Array], lanes: Sequence[Lane]) -> list[Outputs]:
        """The outputs in each lane. Raises NotExactError."""


class QuickRunner(Protocol):
    """A runner that can be run side by side, in float32 as its own dtype."""

    specs: Sequence[InputSpec]
    other_shapes: Sequence[tuple[int, ...]] | None
    runtimes: Mapping[str, str]

    def own(self) -> AbstractContextManager[Evaluation]:
        """See `Runner`."""

    def side_by_side(self) -> SideBySide:
        """Raises NotExactError where that cannot be."""


class _Later(Generic[Result]):
    """What a thread of its own works out."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._made: list[Result] = []
        self._thread = Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], Result]) -> None:
        try:
            self._made.append(work())
        except Exception:  # whatever a runtime raises: `course` runs it again, and says so
            self._made.clear()

    def get(self) -> Result | None:
        """It, as soon as it is there; None where that raised."""
        self._thread.join()
        return self._made[0] if self._made else None


@dataclass(slots=True)
class Quick:
    """An original that is run ahead."""

    original: QuickRunner
    inputs: list[list[Array]]
    """Of the declared size, and of the other one, if there is any."""
    before: _Later[list[Outputs | None]]

    def judge(
        self, folded: QuickRunner, storages: Sequence[Mapping[str, Stored]]
    ) -> VerifyResult | None:
        """Equal; or None, which says nothing. The storages say how the fold stores its tensors."""
        after = _Later(lambda: _own(folded, self.inputs))
        try:
            found = _inside(self.original, folded, storages)
        except (NotExactError, BnfoldError):
            found = None
        runs = self.before.get(), after.get()
        if found is None or runs[0] is None or runs[1] is None or runs[0][0] is None:
            return None
        evidence, judged = found
        pairs = [(one, other) for one, other in zip(*runs, strict=True) if one is not None]
        if not all(other and _match(one, other) for one, other in pairs):
            return None
        if not all(outputs.is_as_near(one, other or [], judged) for one, other in pairs):
            return None
        return VerifyResult(
            True,
            tuple(map(_measured, judged, *pairs[0])),
            tuple(one for one in evidence.inside().layers if one.kind != layers.OUTPUT),
            samples=len(pairs),
            seed=0,
            runtimes={**self.original.runtimes, **folded.runtimes, "numpy": np.__version__},
            scope=_scope(evidence.samples[0], self.inputs[0]),
        )


def run_ahead(original: QuickRunner) -> Quick | None:
    """Start with the original; None where the rest would not come to anything."""
    try:
        original.side_by_side()
    except NotExactError:
        return None
    shapes = [[spec.shape for spec in original.specs]]
    if original.other_shapes is not None:
        shapes.append(list(original.other_shapes))
    inputs = [
        draw([replace(s, shape=n) for s, n in zip(original.specs, sizes, strict=True)], 0, at)
        for at, sizes in enumerate(shapes)
    ]
    return Quick(original, inputs, _Later(lambda: _own(original, inputs)))


def _own(runner: QuickRunner, inputs: Sequence[list[Array]]) -> list[Outputs | None]:
    """In its own dtype; None where it does not take the other size after all."""
    with runner.own() as evaluation:
        found: list[Outputs | None] = [evaluation.run(inputs[0])]
        for other in inputs[1:]:
            try:
                found.append(evaluation.run(other))
            except Exception:  # whatever a runtime raises
                found.append(None)
    return found


# ------------------------------------------------------------------- inside, in float64


def _inside(
    original: QuickRunner, folded: QuickRunner, storages: Sequence[Mapping[str, Stored]]
) -> tuple[Evidence, list[Judged]] | None:
    """What the runs in float64 say, if that is "equal". Raises NotExactError."""
    specs = [replace(spec, shape=_smaller(spec.shape)) for spec in original.specs]
    samples = [draw(specs, 0, 0)]
    if sum(array.size for array in samples[0]) > _MOST:
        return None
    evidence = Evidence(samples, storages=storages)
    axes = channel_axes(storages)

    def run(
        runner: QuickRunner, *more: Lane, draws: int = 0
    ) -> tuple[list[Outputs], list[layers.Run]]:
        probes = [Probe(axes) for _ in range(1 + draws)]
        exact = [Lane("float64", at - 1 if at else None, probe) for at, probe in enumerate(probes)]
        lanes = runner.side_by_side().run(samples[0], [*exact, *more])
        seen = [with_outputs(p, found).seen for p, found in zip(probes, lanes, strict=False)]
        return lanes, seen

    (exact, own), [before] = run(original, Lane("float32"))
    numbers = sum(int(np.prod(one.shape)) for one in before.values())
    draws = DRAWS_SMALL if numbers <= SMALL else DRAWS_FIRST
    (after, *drawn), (inside, *moved) = run(folded, draws=draws)
    # In its own dtype the folded one is run by the runtime, on the sizes that it declares.
    evidence.own_before, evidence.own_after = [own], [after]
    evidence.exact_before, evidence.exact_after, evidence.drawn = [exact], [after], drawn
    evidence.runs = layers.Runs([before], [inside], moved)
    if not _match(exact, after):
        return None
    compared = evidence.inside()
    judged = outputs.judge(evidence, {one.name: one for one in compared.layers})
    is_equal = compared.fits and all(one.equal for one in compared.layers)
    if not is_equal or not all(one.difference.equal for one in judged):
        return None
    return evidence, [_keeping_digits(one) for one in judged]


def _smaller(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of an image (N, C, H, W)."""
    return tuple(min(n, _SIDE) if at > 1 else n for at, n in enumerate(shape))


def _match(before: Outputs, after: Outputs) -> bool:
    forms = [[(one.values.shape, one.dtype) for one in run] for run in (before, after)]
    return forms[0] == forms[1]


# ------------------------------------------------------------------- outputs, in their own dtype


def _keeping_digits(known: Judged) -> Judged:
    """The same, with what it may be off by if the fold keeps its digits, too; see `verdict`."""
    one = known.difference
    own = float(np.hypot(one.own_error, verdict.unit(one.dtype) * known.size))
    most = max(verdict.digits(math.prod(one.shape)) * own, verdict.ENOUGH * known.size)
    return replace(known, difference=replace(one, allowed=min(one.allowed, most)))


def _measured(known: Judged, before: Output, after: Output) -> OutputDifference:
    """One output of the declared size; what float64 says of the smaller one, in units of that."""
    found = compare.measure([before.values], [after.values])
    units = verdict.rms(compare.flat(before.values)) / known.size if known.size else 0.0
    one = known.difference
    return replace(
        one,
        shape=before.values.shape,
        **asdict(found),
        error=compare.distance([before.values], [after.values]),
        own_error=one.own_error * units,
        allowed=one.allowed * units,
    )


def _scope(inside: Sequence[Array], whole: Sequence[Array]) -> str:
    small, large = (
        ", ".join("x".join(map(str, array.shape)) for array in arrays) for arrays in (inside, whole)
    )
    return f"every tensor in float64 at {small}, outputs at {large}" if small != large else ""
