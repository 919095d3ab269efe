"""Judge the outputs: are they as near to the original's as rounding explains? See `verdict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold.core.affine import FloatArray
from bnfold.verify import compare, verdict
from bnfold.verify.evidence import Evidence, Outputs, output_key
from bnfold.verify.findings import LayerDifference, OutputDifference
from bnfold.verify.runner import Array, Output

HOPELESS = 30.0
"""A difference so many times what draws explain is not explained by more of them."""
Gap = tuple[int, FloatArray]
"""The number of a sample, and a difference of two of its outputs."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One output, and what may be said of it."""

    difference: OutputDifference
    is_proven: bool
    """Whether it is proven wrong, where it is not equal."""
    loses_digits: bool
    """Whether the fold is right, but its own roundings are far larger than the original's."""
    size: float
    """Root of the mean square of the output."""

    @property
    def relative(self) -> float:
        """The error in units of the output's size."""
        return self.difference.error / self.size if self.size else 0.0


@dataclass(frozen=True, slots=True)
class _Errors:
    """Distances of one output, root of the mean square; of what is no number, shares."""

    error: float
    """Of the folded model from the truth."""
    own: float
    """Of the original from the truth."""
    noise: float
    """What draws do."""
    size: float
    """Of the truth."""
    most: float
    """What `error` may be."""
    loss: float
    """The error, in units of what it may be if the fold keeps its digits."""


def judge(evidence: Evidence, inside: Mapping[str, LayerDifference]) -> list[Judged]:
    """All outputs, in order."""
    most = max(evidence.own_before, key=len)  # a sequence has as many parts as its sample asks for
    k = verdict.factor(sum(output.values.size for output in most))
    return [
        _judge(evidence, number, k, inside.get(output_key(number))) for number in range(len(most))
    ]


def is_settled(evidence: Evidence) -> bool:
    """Whether the draws explain all differences of the outputs, or no number of them will."""
    wrong = [output.difference for output in judge(evidence, {}) if not output.difference.equal]
    return not wrong or any(
        difference.error > HOPELESS * difference.allowed for difference in wrong
    )


def is_as_near(before: Outputs, after: Outputs, judged: Sequence[Judged]) -> bool:
    """Whether outputs are as near, relative to their size, as those that were judged may be.

    Of a sequence with another number of parts that is not known.
    """
    if not len(before) == len(after) == len(judged):
        return False
    for original, folded, known in zip(before, after, judged, strict=True):
        if compare.is_same(original.values, folded.values):
            continue
        if not compare.is_number(original.values) or not known.size:
            return False
        gap = compare.distance([original.values], [folded.values])
        size = verdict.rms(compare.flat(original.values))
        if not gap * known.size <= known.difference.allowed * size:
            return False
    return True


def _judge(evidence: Evidence, number: int, k: float, layer: LayerDifference | None) -> Judged:
    first = _first(evidence, number)
    own, after = _arrays(evidence.own_before, number), _arrays(evidence.own_after, number)
    errors = _errors(evidence, number, k, wild=True)
    if errors.error > errors.most:
        errors = _errors(evidence, number, k, wild=False)
    explained = bool(errors.error <= errors.most or np.isinf(errors.own))
    loses = explained and errors.loss > 1.0 and not np.isinf(errors.own)
    agrees = layer is None or layer.equal
    difference = compare.difference(
        first,
        own,
        after,
        error=errors.error,
        own_error=errors.own,
        allowed=errors.error / errors.loss if loses else errors.most,
        equal=explained and agrees and not loses,
        detail=_detail(first.name, errors, layer, explained=explained, loses=loses),
    )
    is_proven = explained or _is_proven(evidence, errors)
    return Judged(difference, is_proven, loses, errors.size)


def _is_proven(evidence: Evidence, errors: _Errors) -> bool:
    """Whether a difference that is not explained shows a fault.

    Without float64 rounding is measured in few runs, with that of the arithmetic in it: what is
    not far beyond it, or beyond what nothing that was moved has moved, may be rounding yet. So may
    what float64, where the two agree, calls the original's.
    """
    if evidence.truth == "float64":
        return True
    if evidence.in_dispute:
        return False
    return errors.noise > 0.0 and errors.error > verdict.BEYOND * errors.most


def _errors(evidence: Evidence, number: int, k: float, *, wild: bool) -> _Errors:
    """The distances; without `wild`, those places are left out."""
    first = _first(evidence, number)
    is_exact = evidence.truth == "float64"
    own, after = _flat(evidence.own_before, number), _flat(evidence.own_after, number)
    truth = _flat(evidence.exact_before, number) if is_exact else own
    starts = _flat(evidence.exact_after, number) if is_exact else own
    draws = _gaps(starts, _flat(evidence.drawn, number))
    more = _gaps(after, _flat(evidence.drawn_after, number))
    reordered = _gaps(own, _flat(evidence.reordered, number))
    far, off = _gaps(truth, after), _gaps(truth, own)
    if not compare.is_number(first.values):
        return _flips(evidence, far, off, [*draws, *more, *reordered], k)
    noisy = [*draws, *more, *reordered, *off]
    tame = None if wild else _tame(truth, noisy)
    before = float(np.hypot(_rms(draws, tame), _rms(reordered, tame)))
    noise = float(np.hypot(before, _rms(more, tame)))
    own_error = _rms(off, tame) if is_exact else before
    usual = float(np.hypot(own_error, _rms(_gaps(starts, after), tame))) if is_exact else 0.0
    size = verdict.rms(_finite(truth))
    unit = verdict.unit(first.dtype)
    if not is_exact:
        unit = max(unit, verdict.unit(evidence.narrowest))
    most = k * float(np.sqrt(usual**2 + noise**2 + (unit * size) ** 2))
    error = _rms(far, tame)
    if is_exact:
        loss = _loss(evidence, number, far, off, noisy)
        return _Errors(error, own_error, noise, size, most, loss)
    if evidence.coarsest == "float64":
        most = max(most, verdict.ENOUGH_IN_FLOAT64 * size)
    kept = float(np.hypot(before, unit * size))
    loss = _lost(evidence, error, kept, size, sum(values.size for values in truth))
    return _Errors(error, own_error, noise, size, most, loss)


def _loss(
    evidence: Evidence, number: int, far: Sequence[Gap], off: Sequence[Gap], noisy: Sequence[Gap]
) -> float:
    """How far the fold is off, in units of what it may be if it keeps its digits."""
    if evidence.own_before is evidence.exact_before:  # it was run in float64 alone
        return 0.0
    dtype = _first(evidence, number).dtype
    truth = _flat(evidence.exact_before, number)
    stored = evidence.rounded.dtype if evidence.rounded is not None else ""
    unit = max(map(verdict.unit, (dtype, stored, evidence.narrowest)))
    size = verdict.rms(_finite(truth))
    tame = None
    if _rms(far, None) > _enough(evidence) * size:
        tame = _tame(truth, noisy, by_value=False)
    own = float(np.hypot(_rms(off, tame), unit * size))
    return _lost(evidence, _rms(far, tame), own, size, sum(values.size for values in truth))


def _lost(evidence: Evidence, error: float, own: float, size: float, count: int) -> float:
    """An error in units of what it may be, beside the original's `own` and the output's size."""
    most = max(verdict.digits(count) * own, _enough(evidence) * size)
    return error / most if most > 0.0 else 0.0


def _enough(evidence: Evidence) -> float:
    is_in_float64 = evidence.coarsest == "float64"
    return verdict.ENOUGH_IN_FLOAT64 if is_in_float64 else verdict.ENOUGH


def _flips(
    evidence: Evidence, far: Sequence[Gap], off: Sequence[Gap], draws: Sequence[Gap], k: float
) -> _Errors:
    """Integers, texts and the like: the share that differs."""
    error, own = _share_that_differs(far), _share_that_differs(off)
    noise = max((_share_that_differs([gap]) for gap in draws), default=0.0)
    total = sum(gap.size for _, gap in far)
    near = verdict.NEAR_TIES * verdict.unit(evidence.coarsest)
    most = verdict.allowed_flips(max(own, noise), total, k, near)
    return _Errors(error, own, noise, 0.0, most, 0.0)


# ------------------------------------------------------------------- differences


def noise(evidence: Evidence, number: int) -> float:
    """What draws do to an output of the original."""
    return _rms(_gaps(_flat(evidence.own_before, number), _flat(evidence.drawn, number)), None)


def own_error(evidence: Evidence, number: int) -> tuple[float, float]:
    """How far the original is from float64 in an output, and the size of that."""
    truth = _flat(evidence.exact_before, number)
    error = _rms(_gaps(truth, _flat(evidence.own_before, number)), None)
    return error, verdict.rms(_finite(truth))


def _first(evidence: Evidence, number: int) -> Output:
    """An output in the first run that has it."""
    return next(run[number] for run in evidence.own_before if number < len(run))


def _arrays(runs: Sequence[Outputs], number: int) -> list[Array]:
    """An output in all runs that have it."""
    return [outputs[number].values for outputs in runs if number < len(outputs)]


def _flat(runs: Sequence[Outputs], number: int) -> list[FloatArray]:
    """An output in each run; of nothing where it has none."""
    return [
        compare.flat(outputs[number].values) if number < len(outputs) else np.zeros(0)
        for outputs in runs
    ]


def _gaps(starts: Sequence[FloatArray], others: Sequence[FloatArray]) -> list[Gap]:
    """Differences from one sample after the other, of those with as many numbers."""
    pairs = [(number % len(starts), other) for number, other in enumerate(others)]
    return [
        (sample, compare.gaps(starts[sample], other))
        for sample, other in pairs
        if starts[sample].size == other.size
    ]


def _rms(gaps: Sequence[Gap], tame: Sequence[NDArray[np.bool_]] | None) -> float:
    parts = [
        gap if tame is None else gap[tame[sample]]
        for sample, gap in gaps
        if tame is None or gap.size == tame[sample].size
    ]
    return verdict.rms(np.concatenate(parts)) if parts else 0.0


def _share_that_differs(gaps: Sequence[Gap]) -> float:
    parts = [gap != 0.0 for _, gap in gaps]
    together = np.concatenate(parts) if parts else np.zeros(0)
    return float(np.mean(together)) if together.size else 0.0


def _tame(
    truth: Sequence[FloatArray], gaps: Sequence[Gap], *, by_value: bool = True
) -> list[NDArray[np.bool_]]:
    """Per sample, the places where the network itself is not ill-conditioned."""
    tame = []
    for sample, values in enumerate(truth):
        own = [gap for number, gap in gaps if number == sample and gap.size == values.size]
        moved = verdict.spread(np.stack(own)) if own else np.zeros_like(values)
        tame.append(~verdict.wild(moved[None], values[None] if by_value else None)[0])
    return tame


def _finite(arrays: Sequence[FloatArray]) -> FloatArray:
    values: FloatArray = np.concatenate(arrays)
    finite: FloatArray = values[np.isfinite(values)]
    return finite


def _detail(
    name: str, errors: _Errors, layer: LayerDifference | None, *, explained: bool, loses: bool
) -> str:
    if not explained:
        return f"{name}: off by {errors.error:.2g}, and rounding explains {errors.most:.2g}"
    if loses:
        return (
            f"{name}: off by {errors.error:.2g} of {errors.size:.2g}, where the original is off by"
            f" {errors.own:.2g}: the folded model loses digits, as what it stores is too large for"
            " its dtype"
        )
    if layer is not None and not layer.equal and layer.allowed is not None:
        return (
            f"{name}: in float64, channel {layer.channel} is off by more than the"
            f" {layer.allowed:.2g} (relative) that rounding explains"
        )
    return ""
