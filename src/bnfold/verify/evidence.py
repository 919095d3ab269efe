"""Run two models, and keep what the verdict rests on.

    1  both in their own dtypes, as they will be used             -> differences, own error
    2  both in float64, looking at every tensor inside            -> the truth, the layers
    3  the folded one again, weights rounded once more at random  -> how much rounding explains
       (twice; more often where that does not explain all, or costs nothing)

Where there is no float64, both are run in their own dtypes with weights and inputs moved to
neighbouring numbers, and the original with its sums in another order: that makes all roundings
anew, in every layer.

A model may keep something from one run to the next. One that does not repeat itself is run on its
samples in a row, the first one twice, and each such row starts from a fresh copy.

One model is loaded at a time. Of a float64 run, only samples of the tensors are kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from bnfold.core.rescaling import Rescalings
from bnfold.errors import BnfoldError, UsageError
from bnfold.verify import compare, layers
from bnfold.verify.inputs import nudged
from bnfold.verify.runner import Array, Evaluation, NotRunnableError, Output, Rounded, Runner
from bnfold.verify.sampler import TensorSampler
from bnfold.verify.verdict import unit

DRAWS_FIRST, DRAWS, DRAWS_SMALL = 2, 4, 16
"""Draws for a model with many values inside, more for one where these are not enough, and for a
small model, or where a difference is not much larger than what draws explain."""
TIES = 1e-4
"""So large a share of an output's length ties may be, or one number."""
SMALL = 1_000_000
"""Numbers inside of a run, up to which a model is small."""
Sample = list[Array]
Outputs = list[Output]
Open = Callable[[], Evaluation]


class FoldedRaisedError(Exception):
    """The folded model raised on inputs that the original accepts; the text says what."""


@dataclass(slots=True)
class Evidence:
    """What the runs gave."""

    samples: list[Sample]
    """What both are run on, in this order."""
    one_kind: bool = True
    """Whether one runtime ran both."""
    has_state: bool = False
    """Whether a run of either leaves something that shows in the next."""
    is_random: bool = False
    """Whether the original differs from itself when it starts afresh."""
    has_ties: bool = False
    """Whether an output is longer in one of the two, by so few numbers that ties explain it."""
    in_dispute: bool = False
    """Whether float64, where the two agree, is not believed for a small error of the original."""
    own_before: list[Outputs] = field(default_factory=list)
    own_after: list[Outputs] = field(default_factory=list)
    exact_before: list[Outputs] = field(default_factory=list)
    exact_after: list[Outputs] = field(default_factory=list)
    drawn: list[Outputs] = field(default_factory=list)
    """On one sample after the other: of the folded model in float64, weights rounded once more;
    or of the original in its own dtype, everything moved by its last bit."""
    drawn_after: list[Outputs] = field(default_factory=list)
    """Without float64: of the folded model, everything moved by its last bit."""
    reordered: list[Outputs] = field(default_factory=list)
    """Without float64: of the original, its sums in another order."""
    runs: layers.Runs | None = None
    guesses: Sequence[Rescalings] = ()
    """How a fold may store the tensors inside."""
    compared: layers.Comparison | None = None
    """What the runs say of the tensors inside, as soon as somebody asked."""
    truth: str = "float64"
    coarsest: str = ""
    """The coarsest floating-point dtype that goes in or comes out."""
    narrowest: str = ""
    """The coarsest inside, where somebody asked; see `Runner`."""
    rounded: Rounded | None = None
    """Weights that the fold changed and that are in 16 bits."""
    notes: list[str] = field(default_factory=list)

    def inside(self) -> layers.Comparison:
        """The tensors inside, and the outputs looked at like those."""
        if self.runs is None:
            return layers.Comparison([], fits=True)
        if self.compared is None:
            self.compared = layers.best(self.runs, self.guesses)
        return self.compared


# ------------------------------------------------------------------- in their own dtypes


def run_own(original: Runner, folded: Runner, evidence: Evidence) -> NotRunnableError | None:
    """Both in their own dtypes; or why they cannot be run. Raises FoldedRaisedError."""
    try:
        before, again = _in_a_row(original, original.own(), evidence.samples)
        evaluation = _loaded(original, folded)
        try:
            after, again_after = _in_a_row(folded, evaluation, evidence.samples)
        except Exception as error:
            raise FoldedRaisedError(_raised(original, folded, error)) from error
    except NotRunnableError as error:
        return error
    except (FoldedRaisedError, BnfoldError):
        raise
    except Exception as error:
        raise original.not_taken(error) from error
    evidence.own_before, evidence.own_after = before, after
    evidence.has_ties = _has_ties(original, evidence)
    if not evidence.has_ties:
        check_all(original, folded, evidence)
    if again is not None and again_after is not None:
        if not _same(before[0], again) and differs_from_itself(original, evidence) is not None:
            evidence.is_random = True
            return None
        evidence.has_state = not (_same(before[0], again) and _same(after[0], again_after))
        if evidence.has_state:
            evidence.samples = [*evidence.samples, evidence.samples[0]]
            before.append(again)
            after.append(again_after)
    for first, second in zip(before, after, strict=True) if evidence.has_ties else ():
        evidence.notes += _leave_out_ties(first, second)
    return None


def differs_from_itself(original: Runner, evidence: Evidence) -> str | None:
    """The first output that is another when the original starts afresh: it draws at random.

    What keeps nothing from one run to the next draws at random if it does not repeat itself.
    """
    evaluation = original.own()
    runs = [evaluation.run(evidence.samples[0])]
    if not original.may_have_state:
        runs.append(evaluation.run(evidence.samples[0]))
    for again in runs:
        for output, repeated in zip(evidence.own_before[0], again, strict=False):
            was_left_out = evidence.has_ties and not output.values.size
            if not was_left_out and not compare.is_same(output.values, repeated.values):
                return output.name  # of a sequence, the number of its parts comes first
    return None


def _in_a_row(
    runner: Runner, evaluation: Evaluation, samples: Sequence[Sample]
) -> tuple[list[Outputs], Outputs | None]:
    """One run per sample, and the first once more where a run may leave something."""
    outputs = [evaluation.run(inputs) for inputs in samples]
    return outputs, evaluation.run(samples[0]) if runner.may_have_state else None


def _same(first: Outputs, second: Outputs) -> bool:
    return len(first) == len(second) and all(
        compare.is_same(a.values, b.values) for a, b in zip(first, second, strict=True)
    )


def _loaded(original: Runner, folded: Runner) -> Evaluation:
    """The folded model, where the original runs; what runs that one has to take its fold, too."""
    try:
        return folded.own()
    except NotRunnableError as error:
        if original.kind != folded.kind:  # another runtime, which may not be here
            raise
        text = f"{folded.name} cannot be run where {original.name} can: {error}"
        raise FoldedRaisedError(f"{text.rstrip('.')}.") from error


def _raised(original: Runner, folded: Runner, error: Exception) -> str:
    text = (
        f"{folded.name} raised {type(error).__name__} on inputs that {original.name} accepts:"
        f" {' '.join(str(error).split())}"
    )
    return f"{text.rstrip('.')}."


def _has_ties(original: Runner, evidence: Evidence) -> bool:
    """Whether outputs differ by a few numbers in length, all of those where data says how many.

    The original on other data, of the same shapes, shows that.
    """
    runs = [*zip(evidence.own_before, evidence.own_after, strict=True)]
    if any(len(before) != len(after) for before, after in runs):
        return False
    pairs = [pair for before, after in runs for pair in enumerate(zip(before, after, strict=True))]
    apart = [(number, a, b) for number, (a, b) in pairs if a.values.shape != b.values.shape]
    if not apart or not all(_is_tied(a, b) for _, a, b in apart):
        return False
    with suppress(Exception):  # whatever a runtime raises: then nothing shows it
        others = original.own().run([_negated(array) for array in evidence.samples[0]])
        first = evidence.own_before[0]
        return all(others[n].values.shape != first[n].values.shape for n, _, _ in apart)
    return False


def _negated(array: Array) -> Array:
    return -array if array.dtype.kind == "f" else array


def _leave_out_ties(before: Outputs, after: Outputs) -> list[str]:
    """Nothing is compared of outputs of which one is longer, and so nothing proven; says which."""
    notes = []
    for number, (a, b) in enumerate(zip(before, after, strict=True)):
        if a.values.shape != b.values.shape:
            shapes = " and ".join("x".join(map(str, o.values.shape)) for o in (a, b))
            notes.append(
                f"Output {a.name} is {shapes}: rounding may decide which numbers are in it, so"
                " these were not compared."
            )
            before[number], after[number] = (replace(o, values=o.values[:0]) for o in (a, b))
    return notes


def _is_tied(a: Output, b: Output) -> bool:
    """Whether one is longer by no more than ties explain."""
    shapes = a.values.shape, b.values.shape
    if a.dtype != b.dtype or len(shapes[0]) != len(shapes[1]):
        return False
    lengths = [(m, n) for m, n in zip(*shapes, strict=True) if m != n]
    return len(lengths) == 1 and abs(lengths[0][0] - lengths[0][1]) <= max(1, TIES * lengths[0][0])


def check_all(original: Runner, folded: Runner, evidence: Evidence) -> None:
    """Raise UsageError where outputs do not match."""
    for before, after in zip(evidence.own_before, evidence.own_after, strict=True):
        _check_match(original, folded, before, after)


def _check_match(original: Runner, folded: Runner, before: Outputs, after: Outputs) -> None:
    step = "compare models with the same inputs and outputs"
    if len(before) != len(after):
        raise UsageError(
            f"{original.name} has {len(before)} outputs, {folded.name} {len(after)}", step
        )
    for a, b in zip(before, after, strict=True):
        if (a.values.shape, a.dtype) != (b.values.shape, b.dtype):
            raise UsageError(
                f"output {a.name} of {original.name} is {a.values.shape} {a.dtype},"
                f" output {b.name} of {folded.name} {b.values.shape} {b.dtype}",
                step,
            )


# ------------------------------------------------------------------- in float64


def run_exact(
    original: Runner,
    folded: Runner,
    evidence: Evidence,
    is_enough: Callable[[int], bool],
    *,
    look_inside: bool,
) -> None:
    """Both in float64, and draws of the folded one until they are enough. Raises NotExactError."""
    evidence.guesses = original.rescalings(folded) if look_inside else ()
    axes = channel_axes(evidence.guesses)
    draws: list[layers.Run] = []

    def seen(
        evaluation: Evaluation, inputs: Sample, draw: int | None = None
    ) -> tuple[Outputs, TensorSampler]:
        sampler = TensorSampler(axes)
        outputs = evaluation.run(inputs, sampler if look_inside else None, draw=draw)
        return outputs, with_outputs(sampler, outputs)

    evaluation = original.exact()
    before = [seen(evaluation, inputs) for inputs in evidence.samples]
    evaluation = folded.exact()
    after = [seen(evaluation, inputs) for inputs in evidence.samples]
    evidence.exact_before = [outputs for outputs, _ in before]
    evidence.exact_after = [outputs for outputs, _ in after]
    evidence.runs = layers.Runs(
        [sampler.seen for _, sampler in before],
        [sampler.seen for _, sampler in after],
        draws,
        unit(evidence.coarsest),
    )
    numbers = sum(int(np.prod(tensor.shape)) for tensor in after[0][1].seen.values())
    most = DRAWS_SMALL if look_inside and numbers <= SMALL else DRAWS_FIRST
    drawing = _draws(folded.exact, evidence, evaluation)
    number = 0
    while number < most or not is_enough(number):
        outputs, sampler = seen(*next(drawing))
        evidence.drawn.append(outputs)
        draws.append(sampler.seen)
        evidence.compared = None
        number += 1


def _draws(
    opened: Open, evidence: Evidence, evaluation: Evaluation
) -> Iterator[tuple[Evaluation, Sample, int]]:
    """What to run with which draw, on one sample after the other.

    Where a run leaves something, all samples have one draw, and the next draw begins afresh.
    """
    for number in itertools.count():
        if not evidence.has_state:
            yield evaluation, evidence.samples[number % len(evidence.samples)], number
            continue
        fresh = opened()
        for inputs in evidence.samples:
            yield fresh, inputs, number


def channel_axes(guesses: Sequence[Rescalings]) -> dict[str, int]:
    """Where rescalings vary along one axis alone, that is the channel axis."""
    axes: dict[str, int] = {}
    for rescalings in guesses:
        for key, rescaling in rescalings.items():
            varying = [axis for axis, length in enumerate(rescaling.scale.shape) if length > 1]
            if len(varying) == 1:
                axes.setdefault(key, varying[0])
    return axes


def output_key(number: int) -> str:
    """How an output is called among the tensors inside."""
    return f"output {number}"


def with_outputs(sampler: TensorSampler, outputs: Outputs) -> TensorSampler:
    """Outputs are looked at like any tensor, too: channel by channel."""
    for number, output in enumerate(outputs):
        if output.values.dtype.kind == "f":
            flat = output.values.reshape(-1)
            sampler(output_key(number), layers.OUTPUT, output.values.shape, flat.take)
    return sampler


# ------------------------------------------------------------------- without float64


def run_moved(
    original: Runner, folded: Runner, evidence: Evidence, is_settled: Callable[[Evidence], bool]
) -> None:
    """Both with weights and inputs moved to neighbouring numbers; the original reordered."""
    evidence.truth = "nudged"
    evidence.exact_before, evidence.exact_after, evidence.runs = [], [], None
    evidence.compared = None
    try:
        reordered = original.reordered()
        evidence.reordered = (
            [reordered.run(inputs) for inputs in evidence.samples] if reordered else []
        )
    except Exception:  # whatever a runtime raises: there is no such form of this model
        evidence.reordered = []
    for count in (DRAWS, DRAWS_SMALL):
        evidence.drawn = moved(original, evidence, count)
        evidence.drawn_after = moved(folded, evidence, count)
        if is_settled(evidence):
            return


def moved(runner: Runner, evidence: Evidence, count: int) -> list[Outputs]:
    """Runs in its own dtypes, everything moved by its last bit."""
    drawing = itertools.islice(_draws(runner.own, evidence, runner.own()), count)
    return [
        fresh.run(nudged(inputs, runner.specs, number), draw=draw)
        for number, (fresh, inputs, draw) in enumerate(drawing)
    ]
