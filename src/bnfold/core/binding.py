"""A network with its laws laid over variables: what the solver works on and the plan reads."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.forest import IntArray
from bnfold.core.system import System


@dataclass(frozen=True, slots=True, eq=False)
class BoundLinear:
    """The variables of a linear op's channels."""

    role: g.Linear
    inputs: IntArray
    """(in_channels,)"""
    outputs: IntArray
    """(out_channels,)"""


@dataclass(frozen=True, slots=True, eq=False)
class BoundAffine:
    """The distinct (input variable, constant) combinations of an affine step, flattened."""

    role: g.AffineStep
    inputs: IntArray
    outputs: IntArray
    scale: FloatArray
    shift: FloatArray
    parameter: IntArray
    """Index of each combination's constant in the flattened `AffineStep.scale`."""


@dataclass(frozen=True, slots=True, eq=False)
class BoundClip:
    """The labels of a clipped tensor."""

    labels: IntArray
    variables: IntArray
    """Those that occur among the labels."""
    role: g.Clip


@dataclass(frozen=True, slots=True, eq=False)
class BoundSum:
    """A sum whose law is not laid yet: z = c1 * x1 + c2 * x2 + ..., per combination."""

    operands: tuple[IntArray, ...]
    factors: tuple[float, ...]
    outputs: IntArray


@dataclass(slots=True)
class Binding:
    """The network's variables and constraints, ready to solve."""

    graph: g.Graph
    system: System
    labels: list[IntArray] = field(default_factory=list)
    """Per tensor."""
    linear: dict[int, BoundLinear] = field(default_factory=dict)
    """The linear ops, by number."""
    affine: dict[int, BoundAffine] = field(default_factory=dict)
    """The affine steps, by number, but for those that nothing can be done about."""
    clips: dict[int, BoundClip] = field(default_factory=dict)
    """The clips that can be given bounds per channel, by number."""
    linear_ties: dict[Hashable, BoundLinear] = field(default_factory=dict)
    plain_clips: frozenset[int] = frozenset()
    """Numbers of clips that have room for bounds per channel but must not use it."""
    kept_from_start: frozenset[int] = frozenset()
    """Numbers of affine steps whose law of staying holds from the start."""
    left_open: frozenset[int] = frozenset()
    """Numbers of sums whose law the solver lays."""
    given_scales: Mapping[int, FloatArray | None] = field(default_factory=dict)
    """See `fixed_summands`."""
    open_sums: dict[int, BoundSum] = field(default_factory=dict)
    """Those of them whose law is still to be laid, by number."""
    groups: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Per affine step, the calls of its module (itself included), in order."""

    def edited(self, number: int) -> BoundLinear | BoundAffine:
        """The variables of an op whose constants a plan edits."""
        return self.linear[number] if number in self.linear else self.affine[number]

    def touched(self, number: int) -> IntArray:
        """All variables that the new constants of an op depend on; a clip's are its bounds."""
        if number in self.clips:
            return self.clips[number].variables
        bound = self.edited(number)
        return np.concatenate([bound.inputs, bound.outputs])
