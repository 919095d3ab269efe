"""A network with its laws laid over variables: what the solver works on and the plan reads."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.forest import IntArray
from bnfold.core.system import System


@dataclass(frozen=True, slots=True, eq=False)
class BoundLinear:
    """The variables of a linear op's channels."""

    inputs: IntArray
    """(in_channels,)"""
    outputs: IntArray
    """(out_channels,)"""


@dataclass(frozen=True, slots=True, eq=False)
class BoundAffine:
    """The distinct (input variable, constant) combinations of an affine step, flattened."""

    inputs: IntArray
    outputs: IntArray
    scale: FloatArray
    shift: FloatArray
    parameter: IntArray
    """Index of each combination's constant in the flattened `AffineStep.scale`."""


@dataclass(frozen=True, slots=True, eq=False)
class BoundClip:
    """The labels of the clipped tensor."""

    labels: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class BoundSum:
    """A sum whose law is not laid yet: z = c1 * x1 + c2 * x2 + ..., per combination."""

    operands: tuple[IntArray, ...]
    factors: tuple[float, ...]
    outputs: IntArray


Bound = BoundLinear | BoundAffine | BoundClip


@dataclass(slots=True)
class Binding:
    """The network's variables and constraints, ready to solve."""

    graph: g.Graph
    system: System
    labels: list[IntArray] = field(default_factory=list)
    """Per tensor."""
    bound: dict[int, Bound] = field(default_factory=dict)
    """Per op number, where the plan needs it."""
    linear_ties: dict[Hashable, BoundLinear] = field(default_factory=dict)
    plain_clips: frozenset[int] = frozenset()
    """Numbers of clips that have room for bounds per channel but must not use it."""
    kept_from_start: frozenset[int] = frozenset()
    """Numbers of affine steps whose law of staying holds from the start."""
    left_open: frozenset[int] = frozenset()
    """Numbers of sums whose law the solver lays."""
    open_sums: dict[int, BoundSum] = field(default_factory=dict)
    """Those of them whose law is still to be laid, by number."""
    groups: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Per affine step, the calls of its module (itself included), in order."""
