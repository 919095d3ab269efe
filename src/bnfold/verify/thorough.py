"""Run two models on the same inputs and say whether they compute the same.

    evidence    what the runs give
    outputs     what that says of the outputs
    layers      what it says of the tensors inside
    trust       what is not to be relied on

What the two say together is the verdict: equal, not equal, or not proven either way. A model that
leaves sizes open is run on others, too: that costs a run of each, and all of the above only where
the outputs are not as near as those of the first size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bnfold._storage import rounding_seen
from bnfold.errors import ExampleInputError, UnsupportedModelError, UsageError
from bnfold.verify import layers, outputs, verdict
from bnfold.verify.evidence import (
    DRAWS,
    DRAWS_FIRST,
    DRAWS_SMALL,
    Evidence,
    FoldedRaisedError,
    Sample,
    check_all,
    run_exact,
    run_moved,
    run_own,
)
from bnfold.verify.findings import LayerDifference
from bnfold.verify.inputs import check_inputs, choose_samples
from bnfold.verify.inputs import draw as draw_inputs
from bnfold.verify.outputs import Judged
from bnfold.verify.result import VerifyResult
from bnfold.verify.runner import InputSpec, NotExactError, Rounded, Runner
from bnfold.verify.trust import distrust, is_random, look_for_narrow

__all__ = ["check_inputs", "choose_samples", "verify"]


def verify(
    original: Runner,
    folded: Runner,
    samples: Sequence[Sample],
    *,
    seed: int | None,
    look_inside: bool = True,
    other_size: bool = True,
) -> VerifyResult:
    """See `bnfold.verify`. Raises ExampleInputError, UnsupportedModelError, UsageError."""
    result, judged = _compare(original, folded, samples, seed=seed, look_inside=look_inside)
    for shapes in original.other_shapes if other_size else ():
        fixed = _fixed_input(folded, shapes)
        if fixed is not None and result.equal:
            axes = "x".join("?" if size is None else str(size) for size in fixed.declared or ())
            note = f"{folded.name} takes {fixed.name} as {axes} alone: no other size was tried."
            result = replace(result, notes=(*result.notes, note))
            break
        if result.equal:
            result = _other_size(original, folded, shapes, result, judged, look_inside=look_inside)
    return result


def _fixed_input(folded: Runner, shapes: Sequence[tuple[int, ...]]) -> InputSpec | None:
    """An input whose sizes were fixed, where they are others: the model says so, and means it."""
    for spec, shape in zip(folded.specs, shapes, strict=False):
        declared = spec.declared
        if declared is not None and len(declared) == len(shape):
            pairs = zip(declared, shape, strict=True)
            if any(size is not None and size != length for size, length in pairs):
                return spec
    return None


def _compare(
    original: Runner,
    folded: Runner,
    samples: Sequence[Sample],
    *,
    seed: int | None,
    look_inside: bool,
) -> tuple[VerifyResult, list[Judged]]:
    """On inputs of one size."""
    evidence = Evidence(list(samples), one_kind=original.kind == folded.kind)
    evidence.rounded = folded.rounded(original)
    if look_inside and not evidence.one_kind:
        look_inside = False
        evidence.notes.append(
            "Outputs alone were compared: the tensors inside of two kinds of model"
            f" ({original.kind}, {folded.kind}) have no names in common."
        )
    try:
        _gather(original, folded, evidence, look_inside=look_inside)
    except FoldedRaisedError as error:
        notes = (str(error),)
        return VerifyResult(
            False, samples=len(samples), seed=seed, truth="original", notes=notes
        ), []
    result, judged = _conclude(original, evidence, seed)
    if not result.equal and _has_no_finer(evidence):
        moved = replace(evidence, notes=list(original.notes))
        run_moved(original, folded, moved, outputs.is_settled)
        explained, judged_moved = _conclude(original, moved, seed)
        if explained.equal:
            result, judged = explained, judged_moved
    complete = replace(
        result,
        samples=len(samples),
        runtimes={**original.runtimes, **folded.runtimes},
        notes=tuple(dict.fromkeys((*original.notes, *folded.notes, *result.notes))),
    )
    return complete, judged


def _has_no_finer(evidence: Evidence) -> bool:
    """Whether the original rounds as what was taken for the truth, and may be off as well."""
    was_run = evidence.own_before is not evidence.exact_before
    return was_run and evidence.coarsest == evidence.truth == "float64"


def _gather(original: Runner, folded: Runner, evidence: Evidence, *, look_inside: bool) -> None:
    """All runs. Raises FoldedRaisedError."""
    unrunnable = run_own(original, folded, evidence)
    evidence.coarsest = _coarsest(original, evidence)
    try:
        run_exact(
            original,
            folded,
            evidence,
            lambda number: _is_enough(evidence, number),
            look_inside=look_inside,
        )
    except NotExactError as error:
        if unrunnable is not None:
            raise UnsupportedModelError(
                f"{original.name} cannot be run here: {unrunnable}, and in float64: {error}",
                'install what runs a model: python -m pip install "bnfold[torch,onnx]"',
            ) from error
        evidence.notes.append(f"Not run in float64: {error}.")
        run_moved(original, folded, evidence, outputs.is_settled)
    if unrunnable is not None:
        evidence.notes.append(f"Run in float64 alone: {unrunnable}.")
        evidence.own_before = evidence.exact_before
        evidence.own_after = evidence.exact_after
        check_all(original, folded, evidence)
    distrust(original, folded, evidence)
    look_for_narrow(original, evidence)


def _coarsest(original: Runner, evidence: Evidence) -> str:
    """The coarsest floating-point dtype that goes in or comes out."""
    dtypes = [spec.dtype for spec in original.specs]
    dtypes += [output.dtype for run in evidence.own_before[:1] for output in run]
    return max(dtypes, key=verdict.unit, default="")


def _is_enough(evidence: Evidence, number: int) -> bool:
    """Whether the draws so far explain all differences, or no number of them will.

    Where few places make most of a channel's noise, few draws say little about it.
    """
    if number < DRAWS_FIRST:
        return False
    known = evidence
    if not evidence.own_before:  # it could not be run in its own dtype
        known = replace(evidence, own_before=evidence.exact_before, own_after=evidence.exact_after)
    compared = evidence.inside()
    apart = [layer for layer in compared.layers if not layer.equal]
    judged = outputs.judge(known, {layer.name: layer for layer in compared.layers})
    wrong = [output.difference for output in judged if not output.difference.equal]
    if not apart and not wrong:
        return True
    if number < DRAWS:
        return False
    hopeless = any(layer.excess > outputs.HOPELESS for layer in apart) or any(
        difference.error > outputs.HOPELESS * difference.allowed for difference in wrong
    )
    return hopeless or not compared.fits or number >= DRAWS_SMALL


# ------------------------------------------------------------------- judging


def _conclude(
    original: Runner, evidence: Evidence, seed: int | None
) -> tuple[VerifyResult, list[Judged]]:
    """The verdict."""
    compared = evidence.inside()
    judged = outputs.judge(evidence, {layer.name: layer for layer in compared.layers})
    is_equal = all(output.difference.equal for output in judged)
    inside = [layer for layer in compared.layers if layer.kind != layers.OUTPUT]
    if not compared.fits:
        inside = _doubt(evidence, inside, is_equal=is_equal)
    parting = next((layer.name for layer in inside if not layer.equal), None)
    if parting is None:
        parting = _where_digits_go(judged, inside)
    is_equal = is_equal and parting is None
    is_proven = True
    if (is_equal and evidence.has_ties) or is_random(original, evidence, in_doubt=not is_equal):
        is_equal = is_proven = False
    elif not is_equal:
        is_proven = parting is not None or any(
            output.is_proven for output in judged if not output.difference.equal
        )
    elif evidence.rounded is not None:
        _remark_on_rounding(evidence, evidence.rounded, judged)
    result = VerifyResult(
        is_equal,
        tuple(output.difference for output in judged),
        tuple(inside),
        parting,
        len(evidence.samples),
        seed,
        evidence.truth,
        notes=tuple(evidence.notes),
        proven=is_proven,
        loses_digits=not is_equal
        and is_proven
        and _loses_digits(evidence, compared.layers, judged),
    )
    return result, judged


def _loses_digits(
    evidence: Evidence, inside: Sequence[LayerDifference], judged: Sequence[Judged]
) -> bool:
    """Whether the fold is right, and all that parts the two is what their own dtype holds."""
    wrong = [output for output in judged if not output.difference.equal]
    if wrong and all(output.loses_digits for output in wrong):
        return True
    if evidence.truth != "float64" or not all(layer.equal for layer in inside):
        return False
    exact = replace(evidence, own_before=evidence.exact_before, own_after=evidence.exact_after)
    judged = outputs.judge(exact, {layer.name: layer for layer in inside})
    return all(output.difference.equal for output in judged)


def _doubt(
    evidence: Evidence, inside: list[LayerDifference], *, is_equal: bool
) -> list[LayerDifference]:
    """What is left of differences inside that no fold of ours explains."""
    if is_equal:
        evidence.notes.append(
            "The tensors inside are stored in a way that no fold of the original explains, so only"
            " outputs were compared."
        )
        return []
    evidence.notes.append(
        "Most tensors inside are far apart. If the folded model was made by another tool, it may"
        " store them in another way, and the first layer where they part means little."
    )
    return inside


_MOST_OF_IT = 0.25


def _where_digits_go(judged: Sequence[Judged], inside: Sequence[LayerDifference]) -> str | None:
    """The first layer whose own rounding is about as large as that of an output that loses."""
    lost = [output.relative for output in judged if output.loses_digits]
    if not lost:
        return None
    limit = _MOST_OF_IT * min(lost)
    return next(
        (layer.name for layer in inside if layer.own is not None and layer.own >= limit), None
    )


def _remark_on_rounding(evidence: Evidence, rounded: Rounded, judged: Sequence[Judged]) -> None:
    """Weights in 16 bits are rounded to those once more where a fold changes them."""
    worst = max((output for output in judged), key=lambda output: output.relative, default=None)
    if worst is None or worst.difference.error <= verdict.DIGITS * max(
        worst.difference.own_error, verdict.unit(worst.difference.dtype) * worst.size
    ):
        return
    name = worst.difference.name
    note = rounding_seen(rounded.dtype, name, worst.relative, is_only_stored=rounded.is_only_stored)
    evidence.notes.append(note)


# ------------------------------------------------------------------- another size


def _other_size(
    original: Runner,
    folded: Runner,
    shapes: Sequence[tuple[int, ...]],
    result: VerifyResult,
    judged: Sequence[Judged],
    *,
    look_inside: bool,
) -> VerifyResult:
    """The same on inputs of another size, if the original takes them."""
    specs = [
        replace(spec, shape=shape, given=None)
        for spec, shape in zip(original.specs, shapes, strict=True)
    ]
    samples = [draw_inputs(specs, result.seed or 0, result.samples)]
    evidence = Evidence(samples, one_kind=original.kind == folded.kind)
    try:
        was_run = run_own(original, folded, evidence) is None and not evidence.has_ties
        if was_run and outputs.is_as_near(evidence.own_before[0], evidence.own_after[0], judged):
            return replace(result, samples=result.samples + 1)
    except ExampleInputError:  # a size that the model does not take after all
        return result
    except (FoldedRaisedError, UsageError) as error:
        return replace(result, equal=False, notes=(*result.notes, str(error)))
    resized, _ = _compare(original, folded, samples, seed=result.seed, look_inside=look_inside)
    if resized.equal:
        return replace(result, samples=result.samples + 1)
    sizes = ", ".join(f"{spec.name}: {'x'.join(map(str, spec.shape))}" for spec in specs)
    note = f"Equal on the first inputs, and not on others of another size ({sizes})."
    return replace(resized, notes=(*resized.notes, note))
