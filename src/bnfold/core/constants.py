"""Channels with gamma 0: y = 0 * x + b is a constant, and x cannot be recovered from it.

Such a channel goes in one of two ways.

    at the producer   a linear op makes x, and nothing else reads it: its weights for the channel
                      become 0, so x is 0 whatever comes in, and y = 1 * x + b; behind removed
                      steps, x is the constant c that they make of 0, and y = 1 * (x - c) + b
    at the consumers  y^ = x^ is stored, whatever x is, and every reader of y takes the value b from
                      its bias and gives the stored value the factor 1/s_y = 0

The second way needs readers with such a bias, and activations in between that leave b as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.binding import Binding, Bound, BoundAffine, BoundLinear
from bnfold.core.forest import IntArray
from bnfold.core.laws import each_constant_once

_PASSES = (g.View, g.Clip, g.Max, g.Mean)


@dataclass(frozen=True, slots=True, eq=False)
class Readers:
    """Who makes and who reads each variable."""

    producer: IntArray
    """Number of the linear op that makes it and may be edited freely, or -1."""
    producer_channel: IntArray
    """Which of the producer's output channels it is."""
    count: IntArray
    """How many ops read it, not counting those that only pass it on."""
    takes_constants: NDArray[np.bool_]
    """Whether all its readers could use a constant in its place."""
    lower: FloatArray
    """The largest lower bound of the clips that it passes."""
    upper: FloatArray
    """The smallest upper bound of the clips that it passes."""
    passed_on: NDArray[np.bool_]
    """Whether a clip, a pooling or a view reads it."""
    offset: FloatArray
    """What it is if its producer makes 0 of it: not 0 behind removed affine steps."""


def read(binding: Binding) -> Readers:
    """Walk the network once and note makers, readers and bounds of every variable."""
    count = binding.system.count
    found = Readers(
        producer=np.full(count, -1, dtype=np.int64),
        producer_channel=np.zeros(count, dtype=np.int64),
        count=np.zeros(count, dtype=np.int64),
        takes_constants=np.ones(count, dtype=bool),
        lower=np.full(count, -np.inf),
        upper=np.full(count, np.inf),
        passed_on=np.zeros(count, dtype=bool),
        offset=np.zeros(count),
    )
    for number, op in enumerate(binding.graph.ops):
        none = np.zeros(0, dtype=np.int64)
        labels = [binding.labels[tensor].reshape(-1) for tensor in op.inputs]
        variables = np.concatenate([none, *labels])
        role = op.role
        if isinstance(role, g.Clip):
            found.lower[variables] = np.maximum(found.lower[variables], role.lower)
            found.upper[variables] = np.minimum(found.upper[variables], role.upper)
        if isinstance(role, _PASSES):
            found.passed_on[variables] = True
        else:
            found.count[variables] += 1  # once, however often it occurs
        bound = binding.bound.get(number)
        if not isinstance(role, _PASSES) and not _takes_constants(role, bound):
            found.takes_constants[variables] = False
        if isinstance(bound, BoundLinear) and _makes_zeros(role):
            found.producer[bound.outputs] = number
            found.producer_channel[bound.outputs] = np.arange(len(bound.outputs))
    for tensor, _, _ in binding.graph.outputs:
        found.count[binding.labels[tensor]] += 1
    return found


def see_through(binding: Binding, found: Readers, number: int, dead: IntArray) -> None:
    """Let a removed step's outputs have the producer of its inputs, where no one else reads.

    `dead` variables do not depend on what goes in, and have none. Nor has an input that becomes two
    outputs: zeros for one of them would be zeros for both. Steps come in the order in which they
    were removed.
    """
    bound = binding.bound[number]
    assert isinstance(bound, BoundAffine)
    x, y = bound.inputs, bound.outputs
    uses = np.bincount(x)
    made = (uses[x] == 1) & (found.count[x] == 1)
    made &= ~found.passed_on[y] & ~np.isin(y, dead)
    made &= (found.lower[x] <= 0.0) & (found.upper[x] >= 0.0)
    x, y = x[made], y[made]
    found.producer[y] = found.producer[x]
    found.producer_channel[y] = found.producer_channel[x]
    found.offset[y] = bound.scale[made] * found.offset[x] + bound.shift[made]


def _takes_constants(role: g.Role, bound: Bound | None) -> bool:
    """Whether an op can have the factor 0 for an input, and its own constant for what it loses."""
    if isinstance(role, g.AffineStep):
        # The factor of a quotient cannot be 0; a step with summands is none.
        free = role.scale_editable and role.shift_editable and role.tie is None
        return free and isinstance(bound, BoundAffine) and each_constant_once(bound)
    return isinstance(role, g.Linear)


def _makes_zeros(role: g.Role) -> bool:
    return (
        isinstance(role, g.Linear)
        and role.weight is g.Weight.FREE
        and role.bias_editable
        and role.tie is None
    )


def at_producer(readers: Readers, bound: BoundAffine, zero: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the zero-gamma combinations can be made constant where they come from."""
    x = bound.inputs
    alive = np.zeros(int(x.max(initial=0)) + 1, dtype=bool)
    alive[x[~zero]] = True
    fits = (readers.producer[x] >= 0) & (readers.count[x] == 1) & ~alive[x]
    inside = (readers.lower[x] <= 0.0) & (readers.upper[x] >= 0.0)
    return np.asarray(fits & inside)


def at_consumers(
    binding: Binding, readers: Readers, outputs: IntArray, shift: FloatArray
) -> NDArray[np.bool_]:
    """Which constant outputs every reader can take into its bias."""
    magnitude = binding.system.magnitude
    alone = (magnitude.parent[outputs] == outputs) & (magnitude.size[outputs] == 1)
    inside = (readers.lower[outputs] <= shift) & (shift <= readers.upper[outputs])
    return np.asarray(alone & inside & readers.takes_constants[outputs])
