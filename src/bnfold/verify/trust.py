"""What is not to be relied on: a truth in float64 that is none, a model that draws at random."""

from __future__ import annotations

from bnfold.verify import compare, outputs, verdict
from bnfold.verify.evidence import DRAWS, Evidence, differs_from_itself, moved, run_moved
from bnfold.verify.runner import Runner

_SUSPICIOUS = 1e3
"""An original so many roundings of its output from the truth is looked at more closely."""
_STEPS = 20.0
"""So many times what moving everything by its last bit does, it is not rounding."""


def distrust(original: Runner, folded: Runner, evidence: Evidence) -> None:
    """Where rounding cannot explain how far the original is from float64, that is not the truth.

    An operator that is computed wrongly there, a model that draws random numbers: then the
    original's own error is no error of rounding, and would excuse anything.
    """
    if evidence.truth != "float64" or evidence.own_before is evidence.exact_before:
        return
    suspicious = {
        number: error
        for number in range(len(evidence.own_before[0]))
        if (error := _excess(evidence, number)) is not None
    }
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
            keep = evidence.runs, evidence.guesses
            run_moved(original, folded, evidence, outputs.is_settled)
            evidence.runs, evidence.guesses = keep
            return


def _excess(evidence: Evidence, number: int) -> float | None:
    """How far the original is from the truth, if that is more than rounding usually does."""
    first = evidence.own_before[0][number]
    if not compare.is_number(first.values):
        return None
    error, size = outputs.own_error(evidence, number)
    return error if error > _SUSPICIOUS * verdict.unit(first.dtype) * size else None


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
