"""Say "equal" in a fraction of the time, or nothing: then `thorough` judges.

    1  both in float64 on smaller images, by NumPy: the tensors inside are compared, channel by
       channel, with what rounding the weights once more does there, exactly as `thorough` does
    2  both in their own dtype on the sizes that the model declares, by the runtime: the outputs
       are as near, relative to their size, as those of 1 may be

A weight or bias is the same on an image of any size, so that 1 finds what `thorough` finds; what
only large images show, a runtime that refuses the file, digits that are lost in float32, is for 2.
The original is run ahead, in a thread, while the fold is still going on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event, Lock, Thread
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from bnfold.core.rescaling import Rescalings
from bnfold.errors import BnfoldError
from bnfold.verify import compare, layers, outputs, verdict
from bnfold.verify.evidence import Evidence, Outputs, channel_axes
from bnfold.verify.findings import OutputDifference
from bnfold.verify.inputs import draw
from bnfold.verify.inside import Inside, SideBySide, folded_inside, original_inside
from bnfold.verify.outputs import Judged
from bnfold.verify.result import VerifyResult
from bnfold.verify.runner import Array, Evaluation, InputSpec, NotExactError, Output

_SIDE = 96
"""Rows and columns of an image, at most, in float64."""
_MOST, _MOST_WHOLE = 1 << 18, 1 << 22
"""Numbers of the inputs, at most, in float64 and of the declared size."""
Result = TypeVar("Result")


class QuickRunner(Protocol):
    """A runner that can be run side by side, in float32 as its own dtype."""

    specs: Sequence[InputSpec]
    other_shapes: Sequence[Sequence[tuple[int, ...]]]
    runtimes: Mapping[str, str]

    def own(self) -> Evaluation:
        """See `Runner`."""

    def side_by_side(self) -> SideBySide:
        """Raises NotExactError where that cannot be."""

    def stop(self) -> None:
        """Runs in other threads raise, soon."""


class _Later(Generic[Result]):
    """What a thread works out."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._made: list[Result] = []
        self._is_over = Event()

    def run(self) -> None:
        """In that thread."""
        try:
            self._made.append(self._work())
        except Exception:  # whatever a runtime raises: `thorough` runs it again, and says so
            self._made.clear()
        finally:
            self._is_over.set()

    def get(self) -> Result | None:
        """It, as soon as it is there; None where that raised."""
        self._is_over.wait()
        return self._made[0] if self._made else None


class _Worker:
    """A thread that does one thing after the other, and ends when there is nothing left.

    Both models are loaded by one, which takes the memory of the first for the second: to get fresh
    memory costs as much as to run a network.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._works: list[_Later[Any]] = []
        self._is_busy = False

    def begin(self, work: Callable[[], Result]) -> _Later[Result]:
        """It is done as soon as all is that was begun before."""
        later = _Later(work)
        with self._lock:
            self._works.append(later)
            if not self._is_busy:
                Thread(target=self._run).start()
                self._is_busy = True
        return later

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._works:
                    self._is_busy = False
                    return
                later = self._works.pop(0)
            later.run()


@dataclass(slots=True)
class Quick:
    """An original that is run ahead."""

    original: QuickRunner
    network: SideBySide
    """The original, ready to run in float64."""
    inputs: list[list[Array]]
    """Of the declared size, and of others, if there are any."""
    small: list[Array]
    """Of the size that is run in float64."""
    runtime: _Worker
    """Runs models in their own dtype."""
    before: _Later[list[Outputs | None]]
    """What it returns for these."""
    inside: _Later[Inside] | None = None
    """What its tensors are."""
    axes: Mapping[str, int] = field(default_factory=dict)
    """Their channel axes, as `TensorSampler` has them."""

    def has_inputs_of(self, other: QuickRunner) -> bool:
        """Whether it is run on what the other one would be run on."""
        return [spec.shape for spec in self.original.specs] == [s.shape for s in other.specs]

    def look_inside(self, guesses: Sequence[Rescalings]) -> None:
        """Go on with it in float64, as soon as it is known how the fold stores its tensors."""
        self.axes = channel_axes(guesses)
        self.inside = _Worker().begin(lambda: original_inside(self.network, self.small, self.axes))

    def stop(self) -> None:
        """Nobody waits for it any longer, as Python does for each thread before it ends."""
        self.original.stop()

    def judge(self, folded: QuickRunner, guesses: Sequence[Rescalings]) -> VerifyResult | None:
        """Equal; or None, which says nothing."""
        try:
            return self._judge(folded, guesses)
        except BaseException:  # Ctrl-C, too
            folded.stop()
            raise

    def _judge(self, folded: QuickRunner, guesses: Sequence[Rescalings]) -> VerifyResult | None:
        after = self.runtime.begin(lambda: _own(folded, self.inputs))
        if self.inside is None:
            self.look_inside(guesses)
        assert self.inside is not None
        try:
            # The original may not be through yet: nobody waits for it before that is needed.
            made, moved = folded_inside(folded.side_by_side(), self.small, self.axes)
            compared = _compare(self.small, self.inside.get(), made, moved, guesses)
        except (NotExactError, BnfoldError):
            compared = None
        before_runs, after_runs = self.before.get(), after.get()
        if compared is None or before_runs is None or after_runs is None:
            return None
        evidence, judged = compared
        pairs = []
        for own_before, own_after in zip(before_runs, after_runs, strict=True):
            if own_before is None:
                continue
            if own_after is None or not _match(own_before, own_after):
                return None
            if not outputs.is_as_near(own_before, own_after, judged):
                return None
            pairs.append((own_before, own_after))
        scope = _scope(evidence.samples[0], self.inputs[0])
        exact = [None] * len(judged) if scope else evidence.exact_before[0]
        return VerifyResult(
            True,
            tuple(map(_measured, judged, *pairs[0], exact)),
            tuple(layer for layer in evidence.inside().layers if layer.kind != layers.OUTPUT),
            samples=len(pairs),
            seed=0,
            runtimes={**self.original.runtimes, **folded.runtimes, "numpy": np.__version__},
            scope=scope,
        )


def run_ahead(original: QuickRunner) -> Quick | None:
    """Start with the original; None where the rest would not come to anything."""
    try:
        network = original.side_by_side()
    except NotExactError:
        return None
    shapes = [[spec.shape for spec in original.specs]]
    shapes += [list(others) for others in original.other_shapes]
    if max(sum(map(math.prod, sizes)) for sizes in shapes) > _MOST_WHOLE:
        return None
    inputs = [
        draw([replace(s, shape=n) for s, n in zip(original.specs, sizes, strict=True)], 0, number)
        for number, sizes in enumerate(shapes)
    ]
    small = draw([replace(spec, shape=_smaller(spec.shape)) for spec in original.specs], 0, 0)
    if sum(array.size for array in small) > _MOST:
        return None
    runtime = _Worker()
    before = runtime.begin(lambda: _own(original, inputs))
    return Quick(original, network, inputs, small, runtime, before)


def _own(runner: QuickRunner, inputs: Sequence[list[Array]]) -> list[Outputs | None]:
    """In its own dtype; None where it does not take another size after all."""
    evaluation = runner.own()
    runs: list[Outputs | None] = [evaluation.run(inputs[0])]
    for arrays in inputs[1:]:
        try:
            runs.append(evaluation.run(arrays))
        except Exception:  # whatever a runtime raises
            runs.append(None)
    return runs


# ------------------------------------------------------------------- inside, in float64


def _compare(
    inputs: list[Array],
    before: Inside | None,
    after: Inside,
    moved: Sequence[Inside],
    guesses: Sequence[Rescalings],
) -> tuple[Evidence, list[Judged]] | None:
    """What the runs in float64 say, if that is "equal"."""
    if before is None or not _match(before.outputs, after.outputs):
        return None
    evidence = Evidence([inputs], guesses=guesses)
    # In its own dtype the folded one is run by the runtime, on the sizes that it declares.
    evidence.own_before, evidence.own_after = [before.own], [after.outputs]
    evidence.exact_before, evidence.exact_after = [before.outputs], [after.outputs]
    evidence.drawn = [inside.outputs for inside in moved]
    draws = [inside.seen for inside in moved]
    evidence.runs = layers.Runs([before.seen], [after.seen], draws, verdict.unit("float32"))
    compared = evidence.inside()
    judged = outputs.judge(evidence, {layer.name: layer for layer in compared.layers})
    if not compared.fits or not all(layer.equal for layer in compared.layers):
        return None
    if not all(output.difference.equal for output in judged):
        return None
    return evidence, [_keeping_digits(output) for output in judged]


def _smaller(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of an image (N, C, H, W)."""
    return tuple(min(n, _SIDE) if axis > 1 else n for axis, n in enumerate(shape))


def _match(before: Outputs, after: Outputs) -> bool:
    forms = [[(output.values.shape, output.dtype) for output in run] for run in (before, after)]
    return forms[0] == forms[1]


# ------------------------------------------------------------------- outputs, in their own dtype


def _keeping_digits(known: Judged) -> Judged:
    """The same, with what it may be off by if the fold keeps its digits, too; see `verdict`."""
    difference = known.difference
    own = float(np.hypot(difference.own_error, verdict.unit(difference.dtype) * known.size))
    most = max(verdict.digits(math.prod(difference.shape)) * own, verdict.ENOUGH * known.size)
    return replace(known, difference=replace(difference, allowed=min(difference.allowed, most)))


def _measured(
    known: Judged, before: Output, after: Output, exact: Output | None
) -> OutputDifference:
    """One output of the declared size.

    Where it was run in float64 on a smaller one (`exact` is None), what that says is in its units.
    """
    difference = known.difference
    truth, own, allowed = before, difference.own_error, difference.allowed
    if exact is None:
        units = verdict.rms(compare.flat(before.values)) / known.size if known.size else 0.0
        own, allowed = own * units, allowed * units
    else:
        truth, own = exact, compare.distance([exact.values], [before.values])
    return compare.difference(
        Output(difference.name, before.values, difference.dtype),
        [before.values],
        [after.values],
        error=compare.distance([truth.values], [after.values]),
        own_error=own,
        allowed=allowed,
        equal=difference.equal,
        detail=difference.detail,
    )


def _scope(inside: Sequence[Array], whole: Sequence[Array]) -> str:
    small, large = (
        ", ".join("x".join(map(str, array.shape)) for array in arrays) for arrays in (inside, whole)
    )
    return f"every tensor in float64 at {small}, outputs at {large}" if small != large else ""
