"""The tensors inside, in float64 beside draws in float32: what the quick judge looks at.

A draw rounds every weight once more, at random; see `verdict`. Here that is done `_ENLARGED` times
as far, x' = x + e * f, and x + e * f / _ENLARGED is what one rounding would do: a network is linear
in so small changes, and float32 takes half of the time that float64 takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from bnfold.verify import layers
from bnfold.verify.evidence import DRAWS_FIRST, DRAWS_SMALL, SMALL, Outputs, with_outputs
from bnfold.verify.runner import Array, Lane, NotExactError
from bnfold.verify.sampler import TensorSampler

_ENLARGED = 2.0**10
"""Draws are in float32, and round weights so many times as far: what is added by the arithmetic of
float32 is a small part of that, and weights so much farther off still are 2^-14 off at most."""


class SideBySide(Protocol):
    """A model of which several runs go through the network at once."""

    def run(self, inputs: Sequence[Array], lanes: Sequence[Lane]) -> list[Outputs]:
        """The outputs in each lane. Raises NotExactError."""


@dataclass(frozen=True, slots=True)
class Inside:
    """One run: what came out, and the tensors inside."""

    outputs: Outputs
    seen: layers.Run
    own: Outputs = field(default_factory=list)
    """Of the original in float32: its distance from `outputs` says what rounding does."""


def original_inside(
    network: SideBySide, inputs: Sequence[Array], axes: Mapping[str, int]
) -> Inside:
    """Raises NotExactError."""
    sampler = TensorSampler(axes)
    exact, own = network.run(inputs, [Lane("float64", watch=sampler), Lane("float32")])
    return Inside(exact, with_outputs(sampler, exact).seen, own)


def folded_inside(
    network: SideBySide, inputs: Sequence[Array], axes: Mapping[str, int]
) -> tuple[Inside, list[Inside]]:
    """The folded model, and what draws make of it. Raises NotExactError."""
    first = [Lane("float64", watch=TensorSampler(axes)), *_draws(axes, 0, DRAWS_FIRST)]
    exact, *far = _watched(network, inputs, first)
    if sum(math.prod(tensor.shape) for tensor in exact.seen.values()) <= SMALL:
        far += _watched(network, inputs, _draws(axes, DRAWS_FIRST, DRAWS_SMALL))
    return exact, [_nearer(exact, draw) for draw in far]


def _draws(axes: Mapping[str, int], start: int, stop: int) -> list[Lane]:
    return [
        Lane("float32", number, TensorSampler(axes), _ENLARGED) for number in range(start, stop)
    ]


def _watched(network: SideBySide, inputs: Sequence[Array], lanes: Sequence[Lane]) -> list[Inside]:
    outputs = network.run(inputs, lanes)
    samplers = [lane.watch for lane in lanes if isinstance(lane.watch, TensorSampler)]
    return [
        Inside(made, with_outputs(sampler, made).seen)
        for sampler, made in zip(samplers, outputs, strict=True)
    ]


def _nearer(base: Inside, far: Inside) -> Inside:
    """A draw as it would be if it were not enlarged. Raises NotExactError."""
    seen = {
        key: replace(tensor, values=_back(base.seen[key].values, tensor.values))
        for key, tensor in far.seen.items()
    }
    made = [
        replace(output, values=_back(start.values, output.values))
        if output.values.dtype.kind == "f"
        else output
        for start, output in zip(base.outputs, far.outputs, strict=True)
    ]
    return Inside(made, seen)


def _back(base: Array, far: Array) -> Array:
    """Raises NotExactError where float32 overflows, or float64 does."""
    with np.errstate(invalid="ignore", over="ignore"):
        moved: Array = far - base
        moved /= _ENLARGED
        moved += base
        total = moved.sum()
    if not np.isfinite(total):
        raise NotExactError("some values are not finite")
    return moved
