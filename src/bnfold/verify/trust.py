"""What is not to be relied on: a truth in float64 that is none, a model that draws at random."""

from __future__ import annotations

from collections.abc import Sequence

from bnfold.verify import compare, outputs, verdict
from bnfold.verify.evidence import (
    DRAWS,
    Evidence,
    Outputs,
    differs_from_itself,
    moved,
    run_moved,
)
from bnfold.verify.runner import Runner

_SUSPICIOUS = 1e3
"""An original so many roundings of its output from the truth is looked at more closely."""
_STEPS = 20.0
"""So many times what moving everything by its last bit does, it is not rounding."""
OTHER_LENGTH = (
    "Some outputs have another length in float64: outputs are compared in their own dtype instead."
)


def distrust(original: Runner, folded: Runner, evidence: Evidence) -> None:
    """Where rounding cannot explain how far the original is from float64, that is not the truth.

    An operator that is computed wrongly there, a model that draws random numbers: then the
    original's own error is no error of rounding, and would excuse anything. Nor is it the truth of
    an output that has as many numbers as the data says, and there another number of them.
    """
    if evidence.truth != "float64" or evidence.own_before is evidence.exact_before:
        return
    if _sizes(evidence.own_before) != _sizes(evidence.exact_before) or _sizes(
        evidence.own_after
    ) != _sizes(evidence.exact_after):
        evidence.notes.append(OTHER_LENGTH)
        _compare_own(original, folded, evidence)
        return
    suspicious = _suspicious(evidence)
    if not suspicious:
        return
    narrowest = original.narrowest(evidence.samples[0])
    evidence.coarsest = max(evidence.coarsest, narrowest, key=verdict.unit)
    suspicious = _suspicious(evidence, narrowest)
    if not suspicious:
        return
    if differs_from_itself(original, evidence) is not None:
        evidence.is_random = True
        return
    trial = Evidence(evidence.samples, has_state=evidence.has_state)
    trial.own_before, trial.own_after = evidence.own_before, evidence.own_after
    trial.drawn = moved(original, trial, DRAWS)
    for number, error in suspicious.items():
        noise = outputs.noise(trial, number)
        if error > _STEPS * noise:
            evidence.notes.append(
                "The original in its own dtype is farther from the original in float64 than"
                " rounding explains: outputs are compared in their own dtype instead."
            )
            evidence.in_dispute = _is_small(evidence)
            _compare_own(original, folded, evidence)
            return


def _compare_own(original: Runner, folded: Runner, evidence: Evidence) -> None:
    """Outputs in their own dtype; tensors inside are compared in float64 all the same."""
    keep = evidence.runs, evidence.guesses
    run_moved(original, folded, evidence, outputs.is_settled)
    evidence.runs, evidence.guesses = keep


def _sizes(runs: Sequence[Outputs]) -> list[list[int]]:
    """How many numbers each output has, run by run."""
    return [[output.values.size for output in run] for run in runs]


def look_for_narrow(original: Runner, evidence: Evidence) -> None:
    """Where an output is too far off for its dtype, the network may compute in fewer bits inside.

    A runtime without kernels for these leaves out casts that end where they began, and with them
    the roundings of the original; those that a fold leaves are the file's own.
    """
    if any(not output.difference.equal for output in outputs.judge(evidence, {})):
        evidence.narrowest = original.narrowest(evidence.samples[0])


def _suspicious(evidence: Evidence, narrowest: str = "") -> dict[int, float]:
    """How far the original's outputs are from the truth, of those that rounding seldom explains."""
    errors = {}
    for number, first in enumerate(evidence.own_before[0]):
        if compare.is_number(first.values):
            error, size = outputs.own_error(evidence, number)
            unit = max(verdict.unit(first.dtype), verdict.unit(narrowest))
            if error > _SUSPICIOUS * unit * size:
                errors[number] = error
    return errors


def _is_small(evidence: Evidence) -> bool:
    """Whether the two agree in float64, and no output of the original is far from that.

    Sums of many thousand numbers of one sign lose digits in a way that repeats itself: to move the
    numbers by their last bit shows next to nothing of it.
    """
    inside = {layer.name: layer for layer in evidence.inside().layers}
    for number, output in enumerate(outputs.judge(evidence, inside)):
        error, size = outputs.own_error(evidence, number)
        if not output.difference.equal or error > verdict.BEYOND * verdict.ENOUGH * size:
            return False
    return True


def is_random(original: Runner, evidence: Evidence, *, in_doubt: bool) -> bool:
    """Whether the original differs from itself when it starts afresh."""
    if evidence.own_before is evidence.exact_before or not (in_doubt or evidence.is_random):
        return False
    name = differs_from_itself(original, evidence)
    if name is None:
        return False
    evidence.notes.append(
        f"{original.name} differs from itself in a second run (output {name}): it draws random"
        " numbers, so nothing is proven."
    )
    return True
