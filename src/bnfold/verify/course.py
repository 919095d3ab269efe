"""Run two models on the same inputs and say whether they compute the same.

    1  both in their own dtypes, as they will be used             -> differences, own error
    2  both in float64, looking at every tensor inside            -> the truth, the layers
    3  the folded one again, weights rounded once more at random  -> how much rounding explains
       (twice; more often where that does not explain all, or costs nothing)

One model is loaded at a time. Of a float64 run, only samples of the tensors are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bnfold.core.affine import FloatArray
from bnfold.errors import BnfoldError, ExampleInputError, UnsupportedModelError, UsageError
from bnfold.verify import compare, layers, verdict
from bnfold.verify.inputs import draw as draw_inputs
from bnfold.verify.inputs import nudged
from bnfold.verify.probe import Probe
from bnfold.verify.result import LayerDifference, OutputDifference, VerifyResult
from bnfold.verify.runner import (
    Array,
    Evaluation,
    InputSpec,
    NotExactError,
    NotRunnableError,
    Output,
    Runner,
)

_DRAWS_FIRST, _DRAWS, _DRAWS_SMALL = 2, 4, 12
"""Draws for a model with many values inside, more for one where these are not enough, and for a
small model."""
_SMALL = 1_000_000
"""Numbers inside of a run, up to which a model is small."""
_SUSPICIOUS = 1e3
"""An original so many roundings of its output from the truth is looked at more closely."""
_STEPS = 20.0
"""So many times what moving its inputs by their last bit does, it is not rounding."""
Sample = list[Array]
Outputs = list[Output]


class FoldedRaisedError(Exception):
    """The folded model raised on inputs that the original accepts; the text says what."""


@dataclass(slots=True)
class _Evidence:
    """What the runs gave."""

    one_kind: bool = True
    """Whether one runtime ran both."""
    own_before: list[Outputs] = field(default_factory=list)
    own_after: list[Outputs] = field(default_factory=list)
    exact_before: list[Outputs] = field(default_factory=list)
    exact_after: list[Outputs] = field(default_factory=list)
    drawn: list[Outputs] = field(default_factory=list)
    """On one sample after the other: of the folded model in float64, weights rounded once more;
    or of the original, its inputs nudged."""
    runs: layers.Runs | None = None
    storages: Sequence[layers.Storage] = ()
    compared: layers.Comparison | None = None
    """What the runs say of the tensors inside, as soon as somebody asked."""
    truth: str = "float64"
    notes: list[str] = field(default_factory=list)


def verify(
    original: Runner,
    folded: Runner,
    samples: Sequence[Sample],
    *,
    seed: int | None,
    look_inside: bool = True,
) -> VerifyResult:
    """See `bnfold.verify`. Raises ExampleInputError, UnsupportedModelError, UsageError."""
    evidence = _Evidence(one_kind=original.kind == folded.kind)
    if look_inside and not evidence.one_kind:
        look_inside = False
        evidence.notes.append(
            "Outputs alone were compared: the tensors inside of two kinds of model"
            f" ({original.kind}, {folded.kind}) have no names in common."
        )
    try:
        unrunnable = _run_own(original, folded, samples, evidence)
        try:
            _run_exact(original, folded, samples, evidence, look_inside=look_inside)
        except NotExactError as error:
            if unrunnable is not None:
                raise UnsupportedModelError(
                    f"{original.name} cannot be run here: {unrunnable}, and in float64: {error}",
                    'install what runs a model: python -m pip install "bnfold[torch,onnx]"',
                ) from error
            evidence.notes.append(f"Not run in float64: {error}.")
            _run_nudged(original, samples, evidence)
        if unrunnable is not None:
            evidence.notes.append(f"Run in float64 alone: {unrunnable}.")
            evidence.own_before = evidence.exact_before
            evidence.own_after = evidence.exact_after
            _check_all(original, folded, evidence)
    except FoldedRaisedError as error:
        return VerifyResult(
            False, samples=len(samples), seed=seed, truth="original", notes=(str(error),)
        )
    _distrust(original, samples, evidence)
    compared = _layers(evidence)
    outputs = _outputs(evidence, {one.name: one for one in compared.layers})
    is_equal = all(output.equal for output in outputs)
    inside = [layer for layer in compared.layers if layer.kind != layers.OUTPUT]
    if not compared.fits:
        inside = _doubt(evidence, inside, is_equal=is_equal)
    parting = next((layer.name for layer in inside if not layer.equal), None)
    is_equal = is_equal and parting is None
    if not is_equal and evidence.own_before is not evidence.exact_before:
        _look_for_randomness(original, samples, evidence)
    return VerifyResult(
        is_equal,
        tuple(outputs),
        tuple(inside),
        parting,
        len(samples),
        seed,
        evidence.truth,
        {**original.runtimes, **folded.runtimes},
        tuple(dict.fromkeys((*original.notes, *folded.notes, *evidence.notes))),
    )


# ------------------------------------------------------------------- runs


def _run_own(
    original: Runner, folded: Runner, samples: Sequence[Sample], evidence: _Evidence
) -> NotRunnableError | None:
    """Both in their own dtypes; or why they cannot be run."""
    try:
        with original.own() as evaluation:
            evidence.own_before = [evaluation.run(inputs) for inputs in samples]
        with folded.own() as evaluation:
            evidence.own_after = _run_folded(original, folded, evaluation, samples)
    except NotRunnableError as error:
        return error
    except (FoldedRaisedError, BnfoldError):
        raise
    except Exception as error:
        raise ExampleInputError(original.name, error) from error
    _check_all(original, folded, evidence)
    return None


def _run_folded(
    original: Runner, folded: Runner, evaluation: Evaluation, samples: Sequence[Sample]
) -> list[Outputs]:
    try:
        return [evaluation.run(inputs) for inputs in samples]
    except Exception as error:
        raise FoldedRaisedError(
            f"{folded.name} raised {type(error).__name__} on inputs that {original.name} accepts:"
            f" {error}".rstrip(".")
            + "."
        ) from error


def _check_all(original: Runner, folded: Runner, evidence: _Evidence) -> None:
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


def _run_exact(
    original: Runner,
    folded: Runner,
    samples: Sequence[Sample],
    evidence: _Evidence,
    *,
    look_inside: bool,
) -> None:
    evidence.storages = original.storages() if look_inside else ()
    axes = _channel_axes(evidence.storages)
    before, after = [], []
    draws: list[layers.Run] = []
    with original.exact() as evaluation:
        for inputs in samples:
            probe = Probe(axes)
            outputs = evaluation.run(inputs, probe if look_inside else None)
            evidence.exact_before.append(outputs)
            before.append(_with_outputs(probe, outputs))
    with folded.exact() as evaluation:
        for inputs in samples:
            probe = Probe(axes)
            outputs = evaluation.run(inputs, probe if look_inside else None)
            evidence.exact_after.append(outputs)
            after.append(_with_outputs(probe, outputs))
        evidence.runs = layers.Runs([p.seen for p in before], [p.seen for p in after], draws)
        numbers = sum(int(np.prod(seen.shape)) for seen in after[0].seen.values())
        is_small = look_inside and numbers <= _SMALL
        for number in range(_DRAWS_SMALL if is_small else _DRAWS):
            if number >= _DRAWS_FIRST and not is_small and _is_explained(evidence):
                break
            probe = Probe(axes)
            inputs = samples[number % len(samples)]
            outputs = evaluation.run(inputs, probe if look_inside else None, draw=number)
            evidence.drawn.append(outputs)
            draws.append(_with_outputs(probe, outputs).seen)
            evidence.compared = None


def _is_explained(evidence: _Evidence) -> bool:
    """Whether the draws so far explain all differences: more of them can only say so again."""
    known = evidence
    if not evidence.own_before:  # it could not be run in its own dtype
        known = replace(evidence, own_before=evidence.exact_before, own_after=evidence.exact_after)
    compared = _layers(evidence)
    inside = {layer.name: layer for layer in compared.layers}
    return all(layer.equal for layer in compared.layers) and all(
        output.equal for output in _outputs(known, inside)
    )


def _channel_axes(storages: Sequence[layers.Storage]) -> dict[str, int]:
    """Where rescalings vary along one axis alone, that is the channel axis."""
    axes: dict[str, int] = {}
    for storage in storages:
        for key, stored in storage.items():
            varying = [axis for axis, length in enumerate(stored.scale.shape) if length > 1]
            if len(varying) == 1:
                axes.setdefault(key, varying[0])
    return axes


_OUTPUT = "output "


def _with_outputs(probe: Probe, outputs: Outputs) -> Probe:
    """Outputs are looked at like any tensor, too: channel by channel."""
    for number, output in enumerate(outputs):
        if output.values.dtype.kind == "f":
            flat = output.values.reshape(-1)
            probe(f"{_OUTPUT}{number}", layers.OUTPUT, output.values.shape, flat.take)
    return probe


def _run_nudged(original: Runner, samples: Sequence[Sample], evidence: _Evidence) -> None:
    """The original on inputs moved by their last bit."""
    evidence.truth = "nudged"
    evidence.exact_before, evidence.exact_after, evidence.runs = [], [], None
    evidence.compared = None
    with original.own() as evaluation:
        evidence.drawn = [
            evaluation.run(nudged(samples[number % len(samples)], original.specs, number))
            for number in range(_DRAWS)
        ]


# ------------------------------------------------------------------- judging


def _distrust(original: Runner, samples: Sequence[Sample], evidence: _Evidence) -> None:
    """Where rounding cannot explain how far the original is from float64, that is not the truth.

    An operator that is computed wrongly there, a model that draws random numbers or counts its
    calls: then the original's own error is no error of rounding, and would excuse anything.
    """
    if evidence.truth != "float64" or evidence.own_before is evidence.exact_before:
        return
    suspicious = {
        number: error
        for number, output in enumerate(evidence.own_before[0])
        if (error := _excess(evidence, number, output)) is not None
    }
    if not suspicious:
        return
    _look_for_randomness(original, samples, evidence)
    trial = _Evidence(own_before=evidence.own_before)
    _run_nudged(original, samples, trial)
    for number, error in suspicious.items():
        noise = _noise(_arrays(evidence.own_before, number), _arrays(trial.drawn, number))
        if error > _STEPS * noise:
            evidence.notes.append(
                "The original in its own dtype is farther from the original in float64 than"
                " rounding explains: outputs are compared in their own dtype instead."
            )
            evidence.truth, evidence.drawn = "nudged", trial.drawn
            return


def _excess(evidence: _Evidence, number: int, output: Output) -> float | None:
    """How far the original is from the truth, if that is more than rounding usually does."""
    if not compare.is_number(output.values):
        return None
    truth = _arrays(evidence.exact_before, number)
    error = compare.distance(truth, _arrays(evidence.own_before, number))
    usual = _SUSPICIOUS * verdict.unit(output.dtype) * verdict.rms(_finite(truth))
    return error if error > usual else None


def _layers(evidence: _Evidence) -> layers.Comparison:
    """The tensors inside, and the outputs looked at like those."""
    if evidence.runs is None:
        return layers.Comparison([], fits=True)
    if evidence.compared is None:
        evidence.compared = layers.best(evidence.runs, evidence.storages)
    return evidence.compared


def _doubt(
    evidence: _Evidence, inside: list[LayerDifference], *, is_equal: bool
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


def _arrays(runs: Sequence[Outputs], number: int) -> list[Array]:
    return [outputs[number].values for outputs in runs]


def _outputs(evidence: _Evidence, inside: Mapping[str, LayerDifference]) -> list[OutputDifference]:
    count = sum(output.values.size for output in evidence.own_before[0])
    k = verdict.factor(count)
    return [
        _output(evidence, number, k, inside.get(f"{_OUTPUT}{number}"))
        for number in range(len(evidence.own_before[0]))
    ]


def _output(
    evidence: _Evidence, number: int, k: float, layer: LayerDifference | None
) -> OutputDifference:
    first = evidence.own_before[0][number]
    own, after = _arrays(evidence.own_before, number), _arrays(evidence.own_after, number)
    is_exact = evidence.truth == "float64"
    truth = _arrays(evidence.exact_before, number) if is_exact else own
    starts = _arrays(evidence.exact_after if is_exact else evidence.own_before, number)
    noise = _noise(starts, _arrays(evidence.drawn, number))
    error = compare.distance(truth, after)
    own_error = compare.distance(truth, own) if is_exact else noise
    usual = own_error
    if is_exact and not evidence.one_kind:  # the other runtime rounds in its own way
        usual = float(
            np.hypot(usual, compare.distance(_arrays(evidence.exact_after, number), after))
        )
    if compare.is_number(first.values):
        floor = verdict.unit(first.dtype) * verdict.rms(_finite(truth))
        allowed = k * float(np.sqrt(usual**2 + noise**2 + floor**2))
    else:
        total = sum(array.size for array in own)
        allowed = verdict.allowed_flips(max(own_error, noise), total, k)
    found = compare.measure(own, after)
    explained = error <= allowed or np.isinf(own_error)
    agrees = layer is None or layer.equal
    return OutputDifference(
        first.name,
        first.dtype,
        first.values.shape,
        found.max_absolute,
        found.mean_absolute,
        found.max_relative,
        found.mean_relative,
        found.cosine,
        found.top1,
        error,
        own_error,
        allowed,
        bool(explained and agrees),
        _detail(first.name, error, allowed, layer, explained=bool(explained)),
    )


def _finite(arrays: Sequence[Array]) -> FloatArray:
    values: FloatArray = np.concatenate([compare.flat(array) for array in arrays])
    finite: FloatArray = values[np.isfinite(values)]
    return finite


def _noise(starts: Sequence[Array], drawn: Sequence[Array]) -> float:
    """What draws do, root of the mean square; for integers the largest share that flips."""
    found = []
    for at, array in enumerate(drawn):
        start = starts[at % len(starts)]
        if array.shape == start.shape:
            found.append(compare.distance([start], [array]))
    if not found:
        return 0.0
    return verdict.rms(np.array(found)) if compare.is_number(starts[0]) else max(found)


def _detail(
    name: str, error: float, allowed: float, layer: LayerDifference | None, *, explained: bool
) -> str:
    if not explained:
        return f"{name}: off by {error:.2g}, and rounding explains {allowed:.2g}"
    if layer is not None and not layer.equal and layer.allowed is not None:
        return (
            f"{name}: in float64, channel {layer.channel} is off by more than the"
            f" {layer.allowed:.2g} (relative) that rounding explains"
        )
    return ""


def _look_for_randomness(original: Runner, samples: Sequence[Sample], evidence: _Evidence) -> None:
    """A model that draws random numbers differs from itself."""
    with original.own() as evaluation:
        again = evaluation.run(samples[0])
    for one, other in zip(evidence.own_before[0], again, strict=True):
        differs = one.values.shape != other.values.shape or not np.array_equal(
            one.values, other.values, equal_nan=compare.is_number(one.values)
        )
        if differs:
            evidence.notes.append(
                f"{original.name} differs from itself in a second run (output {one.name}): it draws"
                " random numbers, or counts its calls, so this verdict says little."
            )
            return


# ------------------------------------------------------------------- inputs


def check_inputs(original: Runner, folded: Runner) -> None:
    """Raise UsageError where the two take different inputs."""
    step = "compare models with the same inputs and outputs"
    if len(original.specs) != len(folded.specs):
        names = [", ".join(spec.name for spec in runner.specs) for runner in (original, folded)]
        raise UsageError(
            f"{original.name} has {len(original.specs)} inputs ({names[0]}),"
            f" {folded.name} {len(folded.specs)} ({names[1]})",
            step,
        )
    for a, b in zip(original.specs, folded.specs, strict=True):
        if a.declared is None or b.declared is None:
            continue
        same = len(a.declared) == len(b.declared) and all(
            m is None or n is None or m == n for m, n in zip(a.declared, b.declared, strict=True)
        )
        if not same:
            raise UsageError(
                f"input {a.name} of {original.name} is {a.declared},"
                f" input {b.name} of {folded.name} {b.declared}",
                step,
            )


def choose_samples(specs: Sequence[InputSpec], count: int, seed: int) -> list[Sample]:
    """What the model came with, then random inputs."""
    samples = []
    if specs and all(spec.given is not None for spec in specs):
        samples.append([np.asarray(spec.given) for spec in specs])
    while len(samples) < max(1, count):
        samples.append(draw_inputs(specs, seed, len(samples)))
    return samples[: max(1, count)]
