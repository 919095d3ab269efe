"""The call `bnfold.verify`: which runner each model gets, and what both are run on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bnfold._kinds import ModelKind, kind_of, opened
from bnfold._named_shapes import check_named
from bnfold.errors import UsageError
from bnfold.frontend import folder_of, frontend_of
from bnfold.verify import thorough
from bnfold.verify.evidence import Sample
from bnfold.verify.inputs import Data, are_named, load
from bnfold.verify.result import VerifyResult
from bnfold.verify.runner import InputSpec, Runner

_SAMPLES = 2
_MOST = 16
"""Samples taken of the user's data, unless more are asked for."""
_MOST_SAMPLES = 10_000
"""That may be asked for: what goes in and what comes out of all of them is held in memory."""

_SWAPPED = "The first model is a fold of the second: they were compared the other way round."


def verify(
    original: Any,
    folded: Any,
    inputs: Any = None,
    *,
    data: Data | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    samples: int | None = None,
    seed: int = 0,
    layers: bool = True,
) -> VerifyResult:
    """Whether two models compute the same, up to what rounding explains.

    Both are run on the same inputs, in their own dtypes with the runtime's optimisations off, and
    in float64, where the tensors inside are compared, too. Inputs and outputs are matched by their
    positions. See docs/design/0005-verdict.md for what "equal" means.

    Args:
        original: What `bnfold.fold` takes: a module, a program, an ONNX model or its path, the
            path of a .prototxt or the pair of both paths.
        folded: The same, of the same or of another kind.
        inputs: For modules, example inputs as for `bnfold.fold`; they are the first sample. For
            ONNX, a mapping of input names to shapes, or to arrays, which are the first sample.
        data: The user's own inputs instead: the path of an .npz (arrays by input name), of an
            .npy, of a folder of images (needs Pillow), or a mapping of names to arrays. The first
            axis may hold many samples; they are cut into runs of the model's batch.
        mean: For a folder of images, what is subtracted from pixels between 0 and 1, per channel.
        std: For a folder of images, what the result is divided by, per channel.
        samples: How many inputs to run on, up to 10000: 2 random ones, or up to 16 of `data`,
            unless said.
        seed: Of the random inputs, 0 or more.
        layers: Whether to compare the tensors inside, too. That finds faults which hardly move the
            outputs, and says where the two part.

    Raises:
        UsageError: Inputs or outputs do not match, or an option means nothing.
        ExampleInputError: Inputs are missing, or the original raised on them.
        UnsupportedModelError: The original cannot be run here, by anything.
        ModelUnreadableError: A file is missing or damaged.
        MissingExtraError: A package that runs this kind of model is not installed.
    """
    comparison = Comparison(data, mean, std, samples, seed, layers)
    first, second = runners(original, folded, inputs)
    return comparison.either_way(first, second)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two models are compared; see `verify` for what each field means."""

    data: Data | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    samples: int | None = None
    seed: int = 0
    layers: bool = True

    def __post_init__(self) -> None:
        """Raise UsageError for numbers that mean nothing, before anything is loaded."""
        if self.samples is not None and not 1 <= self.samples <= _MOST_SAMPLES:
            raise UsageError(
                f"samples={self.samples} is too {'few' if self.samples < 1 else 'many'}",
                f"use 1 to {_MOST_SAMPLES}, which are all held in memory",
            )
        if self.seed < 0:
            raise UsageError(f"seed={self.seed} is below 0", "use 0 or more")
        mean, std = (() if part is None else tuple(part) for part in (self.mean, self.std))
        if 0 in std or not all(map(math.isfinite, (*mean, *std))):
            raise UsageError(
                f"no pixels are left with mean={mean} and std={std}", "use those of its training"
            )

    def of(self, original: Runner, folded: Runner) -> VerifyResult:
        """Whether two models that are read already compute the same."""
        thorough.check_inputs(original, folded)
        chosen, drawn = self._samples(original.specs)
        return thorough.verify(original, folded, chosen, seed=drawn, look_inside=self.layers)

    def either_way(self, first: Runner, second: Runner) -> VerifyResult:
        """The same; the first may be the fold of the second, where it holds in every layer."""
        result = self.of(first, second)
        if result.parting is not None and all(output.equal for output in result.outputs):
            swapped = self.of(second, first)
            if swapped.equal and len(swapped.layers) >= len(result.layers):
                return replace(swapped, notes=(*swapped.notes, _SWAPPED))
        return result

    def _samples(self, specs: Sequence[InputSpec]) -> tuple[list[Sample], int | None]:
        """What they are run on, and the seed where it was drawn."""
        if self.data is not None:
            limit = _MOST if self.samples is None else self.samples
            return load(self.data, specs, mean=self.mean, std=self.std, limit=limit), None
        if self.mean is not None or self.std is not None:
            raise UsageError("mean and std are for a folder of images", "give the folder as data")
        count = _SAMPLES if self.samples is None else self.samples
        is_given = count == 1 and all(spec.given is not None for spec in specs)
        return thorough.choose_samples(specs, count, self.seed), None if is_given else self.seed


def runners(original: Any, folded: Any, inputs: Any) -> tuple[Runner, Runner]:
    """A runner of each; one that needs to be told its inputs learns from the other."""
    first, second = kind_of(original), kind_of(folded)
    own, other = _inputs(first, second, inputs), _inputs(second, first, inputs)
    learns = (first is ModelKind.MODULE and own is None) or _takes_torch_inputs(first, own)
    if learns and second is not ModelKind.MODULE and not _takes_torch_inputs(second, other):
        folded_runner = _runner(second, folded, "the folded model", other, None)
        return _runner(first, original, "the original", own, folded_runner.specs), folded_runner
    original_runner = _runner(first, original, "the original", own, None)
    folded_runner = _runner(second, folded, "the folded model", other, original_runner.specs)
    if own is None and is_fixed_elsewhere(original_runner, folded_runner):
        original_runner = _runner(first, original, "the original", None, folded_runner.specs)
    return original_runner, folded_runner


def is_fixed_elsewhere(first: Runner, second: Runner) -> bool:
    """Whether the second says other sizes of its inputs than the first was given, which it leaves
    open: then those may be what the first is run on, too."""
    if len(first.specs) != len(second.specs):
        return False
    return any(
        one.shape != other.shape and one.declared is not None and None in one.declared
        for one, other in zip(first.specs, second.specs, strict=True)
    )


def _inputs(kind: ModelKind, beside: ModelKind, inputs: Any) -> Any:
    """Those of one of two models. Raises UsageError for what neither of them takes."""
    is_torch, has_torch = folder_of(kind) == "torch", "torch" in map(folder_of, (kind, beside))
    if folder_of(kind) == "onnx" and not has_torch:
        check_named(inputs, arrays=True)
    if is_torch and folder_of(beside) != "torch" and are_named(inputs):
        return None  # they are the other's
    return inputs


def _runner(
    kind: ModelKind, model: Any, name: str, inputs: Any, like: Sequence[InputSpec] | None
) -> Runner:
    return frontend_of(kind).runner(opened(kind, model), name, inputs, like)


def _takes_torch_inputs(kind: ModelKind, inputs: Any) -> bool:
    """Whether an ONNX model is given what only a module understands."""
    return folder_of(kind) == "onnx" and inputs is not None and not isinstance(inputs, Mapping)
