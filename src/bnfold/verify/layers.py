"""Compare tensor by tensor and channel by channel: where do the two models part?

Both are run in float64. What the folded model stores is s * (v + t), so stored / s - t is compared
with v. How far they may be apart, and why, is in `verdict`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.core.affine import FloatArray
from bnfold.core.rescaling import Rescaling, Rescalings
from bnfold.verify import verdict
from bnfold.verify.compare import gaps
from bnfold.verify.findings import LayerDifference
from bnfold.verify.sampler import TensorSample, broadcast_places

Run = Mapping[str, TensorSample]
"""What was seen in one run, by key, in order."""
OUTPUT = "output"
"""The kind of tensors that are outputs of the model: stored as they are."""


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One tensor; mean squares per channel, (channels,)."""

    name: str
    kind: str
    difference: FloatArray
    size: FloatArray
    """Of the original's values."""
    stored: FloatArray
    """Of what is stored, in the original's units: v + t."""
    noise: FloatArray
    """Of what one more rounding of all weights does, and of what float32 cannot tell from 0."""
    compared: FloatArray
    """Of v and t, whose difference and sum are taken here, in float64."""
    rounding: float
    """How far s and t are off, relative to themselves."""
    cut: bool
    """Whether parts were cut off: several places hold the very same extreme value."""


@dataclass(frozen=True, slots=True)
class Runs:
    """What was seen of both models."""

    before: Sequence[Run]
    """The original, one run per sample."""
    after: Sequence[Run]
    """The folded one."""
    draws: Sequence[Run]
    """The folded one, weights rounded once more at random: on one sample after the other."""
    unit: float = 0.0
    """The unit roundoff of what the model is in."""

    @property
    def common(self) -> list[str]:
        """The keys of tensors that both have, in the original's order."""
        keys = dict.fromkeys(key for run in self.before for key in run)
        return [key for key in keys if self.samples_of(key)]

    def samples_of(self, key: str) -> list[int]:
        """Where both have a tensor, of the shape that it has in the first of these samples.

        Its length may depend on the data, and so may whether there is one.
        """
        runs = enumerate(zip(self.before, self.after, strict=True))
        pairs = [(number, b[key], a[key]) for number, (b, a) in runs if key in b and key in a]
        alike = [(number, seen.shape) for number, seen, other in pairs if seen.shape == other.shape]
        return [number for number, shape in alike if shape == alike[0][1]]


def measure(runs: Runs, rescalings: Rescalings | None) -> list[Measured]:
    """All tensors that both have and of which the rescalings speak; without one, all."""
    keys = runs.common
    if rescalings is None:
        return [_measure(runs, key, None) for key in keys]
    return [
        _measure(runs, key, rescalings.get(key))
        for key in keys
        if key in rescalings or _first(runs, key).kind == OUTPUT
    ]


def _first(runs: Runs, key: str) -> TensorSample:
    """What stands for all that is compared of a tensor."""
    return runs.before[runs.samples_of(key)[0]][key]


def _measure(
    runs: Runs, key: str, rescaling: Rescaling | None, *, without_wild: bool = False
) -> Measured:
    first, samples = _first(runs, key), runs.samples_of(key)
    scale, shift, known = _at_places(rescaling, first)
    pairs = [(runs.before[n][key].values, runs.after[n][key].values) for n in samples]
    units = [after / scale for _, after in pairs]
    backs = [unit - shift for unit in units]
    bases = [number % len(runs.after) for number in range(len(runs.draws))]
    drawn = [
        gaps(runs.after[base][key].values, draw[key].values) / scale
        for base, draw in zip(bases, runs.draws, strict=True)
        if base in samples and key in draw and draw[key].shape == first.shape
    ]
    if without_wild and drawn:
        smallest = np.min(np.abs([b for b, _ in pairs]), axis=0)
        known = known * ~verdict.wild(verdict.spread(np.stack(drawn)), smallest)
    size = _mean_square([b for b, _ in pairs], known)
    return Measured(
        key,
        first.kind,
        _mean_square([gaps(b, back) for (b, _), back in zip(pairs, backs, strict=True)], known),
        size,
        _mean_square(units, known),
        _mean_square(drawn, known) + _mean_square([_SMALLEST / scale], known),
        size + _mean_square([shift], known),
        runs.unit if rescaling is not None and rescaling.is_rounded else 0.0,
        _is_cut(first.values if len(pairs) == 1 else np.concatenate([b for b, _ in pairs], axis=1)),
    )


_SMALLEST = 64 * 2.0**-149
"""What a value may be off, as it is stored, that is made with weights below the normal numbers of
float32: these are multiples of 2^-149, and a gamma of 1e-39 makes a channel of them."""


def _is_cut(values: FloatArray) -> bool:
    """Whether the smallest or largest value of a tensor occurs twice: a ReLU was there."""
    if not values.size:
        return False
    return any(np.count_nonzero(values == end) > 1 for end in (values.min(), values.max()))


def _at_places(
    rescaling: Rescaling | None, seen: TensorSample
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """s, t and 1 where they are known, of the shape of what was kept."""
    ones = np.ones(seen.values.shape)
    if rescaling is None or not _fits(rescaling, seen.shape):
        return ones, 0.0 * ones, ones
    parts = (rescaling.scale, rescaling.shift, rescaling.known.astype(np.float64))
    scale, shift, known = (broadcast_places(part, seen.shape, seen.axis) for part in parts)
    return scale, shift, known


def _fits(rescaling: Rescaling, shape: tuple[int, ...]) -> bool:
    own = rescaling.scale.shape
    if len(own) > len(shape):
        return False
    return all(n in (1, m) for n, m in zip(reversed(own), reversed(shape), strict=False))


def _mean_square(arrays: Sequence[FloatArray], known: FloatArray) -> FloatArray:
    """Per channel, over samples and the places that are known."""
    total = np.zeros(len(known))
    is_all_known = bool(known.all())
    for array in arrays:
        with np.errstate(over="ignore", invalid="ignore"):
            if is_all_known:
                squares = np.einsum("cp,cp->c", array, array)
                if not np.isnan(squares).any():
                    total += squares
                    continue
            finite = np.where(np.isnan(array), 0.0, array)
            total += np.where(known > 0, np.square(finite), 0.0).sum(axis=1)
    mean: FloatArray = total / np.maximum(known.sum(axis=1) * max(1, len(arrays)), 1.0)
    return mean


# ------------------------------------------------------------------------ the verdict


def judge(measured: Sequence[Measured]) -> list[LayerDifference]:
    """Which tensors differ by more than rounding explains, in any channel."""
    k = verdict.factor(sum(len(tensor.difference) for tensor in measured))
    ratios: list[FloatArray] = []
    differences = []
    for tensor in measured:
        live = (tensor.stored > 0) & np.isfinite(tensor.stored)
        with np.errstate(invalid="ignore"):
            ratios.append(np.sqrt(tensor.noise[live] / tensor.stored[live]))
        q = verdict.typical_noise(ratios)
        differences.append(_judge(tensor, k, q))
    return differences


def _judge(tensor: Measured, k: float, q: float) -> LayerDifference:
    with np.errstate(over="ignore", invalid="ignore"):
        stored = np.where(np.isfinite(tensor.stored), tensor.stored, 0.0)
        # What a ReLU lets through may be as small as it likes; its rounding error stays.
        typical = stored[stored > 0].mean() if (stored > 0).any() else 0.0
        stored = np.maximum(stored, typical) if tensor.cut else stored
        # v + t may be next to nothing where v and t are not.
        compared = np.where(np.isfinite(tensor.compared), tensor.compared, 0.0)
        floor = max(verdict.ARITHMETIC, tensor.rounding) ** 2 * compared
        allowed = k * np.sqrt(tensor.noise + q * q * stored + floor)
        difference = np.sqrt(tensor.difference)
        excess = np.where(difference > 0, difference / np.maximum(allowed, 1e-300), 0.0)
    # Where both overflow, rounding decides.
    excess[np.isinf(tensor.noise) & np.isinf(tensor.difference)] = 0.0
    total = float(np.sqrt(tensor.size.mean())) if tensor.size.size else 0.0
    is_equal = bool((excess <= 1.0).all())
    worst = None if is_equal else int(np.argmax(excess))
    size = 0.0 if worst is None else float(np.sqrt(tensor.size[worst]))
    return LayerDifference(
        tensor.name,
        tensor.kind,
        _relative(float(np.sqrt(tensor.difference.mean())) if tensor.size.size else 0.0, total),
        _relative(float(np.sqrt(tensor.noise.mean())) if tensor.size.size else 0.0, total),
        is_equal,
        None if worst is None else _relative(float(allowed[worst]), size),
        worst,
        float(excess.max(initial=0.0)),
    )


def _relative(value: float, size: float) -> float:
    if value == 0.0:
        return 0.0
    return float(value / size) if size else float("inf")


_STRANGE = 0.1
"""A median difference this large says that tensors are stored in a way that is not known."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The tensors under the guess that fits best."""

    layers: list[LayerDifference]
    fits: bool
    """Whether tensors are stored that way at all: if not, differences inside mean nothing."""


def _judge_twice(runs: Runs, rescalings: Rescalings | None) -> list[LayerDifference]:
    """Where tensors are apart, once more without the places that are ill-conditioned."""
    measured = measure(runs, rescalings)
    differences = judge(measured)
    apart = [number for number, layer in enumerate(differences) if not layer.equal]
    if not apart or len(apart) > max(1.0, _STRANGE * len(differences)) or not runs.draws:
        return differences
    for number in apart:
        key = measured[number].name
        rescaling = None if rescalings is None else rescalings.get(key)
        measured[number] = _measure(runs, key, rescaling, without_wild=True)
    return judge(measured)


def best(runs: Runs, guesses: Sequence[Rescalings]) -> Comparison:
    """Compare under each guess of how tensors are stored.

    A fold with other options, or by another tool, stores tensors in another way. A wrong guess
    does not make tensors equal by chance, so the guess that makes the most of them equal is right.
    """
    chosen: list[LayerDifference] = []
    fewest = None
    for rescalings in (*guesses, None):
        layers = _judge_twice(runs, rescalings)
        unequal = sum(not layer.equal for layer in layers)
        if fewest is None or unequal < fewest:
            chosen, fewest = layers, unequal
        if not unequal:
            break
    relatives = [layer.relative for layer in chosen if layer.kind != OUTPUT]
    return Comparison(chosen, not relatives or verdict.median(np.array(relatives)) <= _STRANGE)
