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
from bnfold.verify.probe import Probe
from bnfold.verify.runner import Array, Lane, NotExactError

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
    probe = Probe(axes)
    exact, own = network.run(inputs, [Lane("float64", watch=probe), Lane("float32")])
    return Inside(exact, with_outputs(probe, exact).seen, own)


def folded_inside(
    network: SideBySide, inputs: Sequence[Array], axes: Mapping[str, int]
) -> tuple[Inside, list[Inside]]:
    """The folded model, and what draws make of it. Raises NotExactError."""
    first = [Lane("float64", watch=Probe(axes)), *_draws(axes, 0, DRAWS_FIRST)]
    exact, *far = _watched(network, inputs, first)
    if sum(math.prod(one.shape) for one in exact.seen.values()) <= SMALL:
        far += _watched(network, inputs, _draws(axes, DRAWS_FIRST, DRAWS_SMALL))
    return exact, [_nearer(exact, one) for one in far]


def _draws(axes: Mapping[str, int], start: int, stop: int) -> list[Lane]:
    return [Lane("float32", number, Probe(axes), _ENLARGED) for number in range(start, stop)]


def _watched(network: SideBySide, inputs: Sequence[Array], lanes: Sequence[Lane]) -> list[Inside]:
    found = network.run(inputs, lanes)
    probes = [lane.watch for lane in lanes if isinstance(lane.watch, Probe)]
    return [
        Inside(made, with_outputs(probe, made).seen)
        for probe, made in zip(probes, found, strict=True)
    ]


def _nearer(base: Inside, far: Inside) -> Inside:
    """A draw as it would be if it were not enlarged. Raises NotExactError."""
    seen = {
        key: replace(one, values=_back(base.seen[key].values, one.values))
        for key, one in far.seen.items()
    }
    made = [
        replace(one, values=_back(start.values, one.values))
        if one.values.dtype.kind == "f"
        else one
        for start, one in zip(base.outputs, far.outputs, strict=True)
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
