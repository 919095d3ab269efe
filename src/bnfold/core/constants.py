"""Channels with gamma 0: y = 0 * x + b is a constant, and x cannot be recovered from it.

Such a channel goes in one of two ways.

    at the producer   a linear op makes x, and nothing else reads it: its weights for the channel
                      become 0, so x is 0 whatever comes in, and y = 1 * x + b; behind removed
                      steps, x is the constant c that they make of 0, and y = 1 * (x - c) + b,
                      if what lies between, an activation or a pooling, leaves c as it is
    at the consumers  y^ = x^ is stored, whatever x is, and every reader of y takes the value b from
                      its bias and gives the stored value the factor 1/s_y = 0

In the second way b moves on to its readers: through activations, which may make another constant
of it (relu(b) is 0 for a negative b), and through removed steps. All readers have to see one value
v. Each needs a bias that takes W * v, or a v of 0. The activations in between ask nothing: what
they make of the channel, nobody looks at.

A linear op that is called several times has one weight and one bias for all of its calls. It makes
zeros if it makes them in each, for steps that go together; it takes a constant in if each gets it.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bnfold.core import graph as g
from bnfold.core import labels as lab
from bnfold.core.affine import FloatArray
from bnfold.core.binding import Binding, BoundAffine
from bnfold.core.forest import IntArray
from bnfold.core.laws import each_constant_once, editable
from bnfold.core.reasons import Reason

_PASSES = (g.View, g.Clip, g.Max, g.Mean)


@dataclass(frozen=True, slots=True, eq=False)
class Readers:
    """Who makes and who reads each variable."""

    producer: IntArray
    """Number of the linear op that makes it and may be edited freely, or -1."""
    producer_channel: IntArray
    """Which of the producer's output channels it is."""
    count: IntArray
    """How many ops read it, not counting those that only pass it on; more where it meets others."""
    lower: FloatArray
    """What passes it on leaves constants from here on as they are,"""
    upper: FloatArray
    """up to here."""
    offset: FloatArray
    """What it is if its producer makes 0 of it: not 0 behind removed affine steps."""
    readers: dict[int, list[int]] = field(default_factory=dict)
    """Numbers of the ops that read each tensor."""
    calls: dict[Hashable, list[int]] = field(default_factory=dict)
    """Numbers of the linear ops of each tie."""


def read(binding: Binding) -> Readers:
    """Walk the network once and note makers, readers and bounds of every variable."""
    count = binding.system.count
    readers = Readers(
        producer=np.full(count, -1, dtype=np.int64),
        producer_channel=np.zeros(count, dtype=np.int64),
        count=np.zeros(count, dtype=np.int64),
        lower=np.full(count, -np.inf),
        upper=np.full(count, np.inf),
        offset=np.zeros(count),
    )
    for number, op in enumerate(binding.graph.ops):
        none = np.zeros(0, dtype=np.int64)
        labels = [binding.labels[tensor].reshape(-1) for tensor in op.inputs]
        variables = np.concatenate([none, *labels])
        role = op.role
        lower, upper = _left_as_it_is(role)
        readers.lower[variables] = np.maximum(readers.lower[variables], lower)
        readers.upper[variables] = np.minimum(readers.upper[variables], upper)
        if not isinstance(role, _PASSES):
            readers.count[variables] += 1  # once, however often it occurs
        elif isinstance(role, g.Max | g.Mean):
            # Others that are no constants meet these, whatever the result is called after.
            _, left, right = lab.merge_axes(binding.labels[op.inputs[0]], role.axes)
            readers.count[np.union1d(left, right)] += 1
        for tensor in op.inputs:
            readers.readers.setdefault(tensor, []).append(number)
        if isinstance(role, g.Linear) and role.tie is not None:
            readers.calls.setdefault(role.tie, []).append(number)
        if _makes_zeros(role):
            outputs = binding.linear[number].outputs
            readers.producer[outputs] = number
            readers.producer_channel[outputs] = np.arange(len(outputs))
    for tensor, _, _ in binding.graph.outputs:
        readers.count[binding.labels[tensor]] += 1
    return readers


def _left_as_it_is(role: g.Role) -> tuple[float, float]:
    """Between which bounds a constant leaves an op that passes it on as it came."""
    if isinstance(role, g.Clip):
        return role.lower, role.upper
    if isinstance(role, g.Mean) and role.counts_zeros:
        return 0.0, 0.0
    return -np.inf, np.inf


def see_through(binding: Binding, readers: Readers, number: int, dead: IntArray) -> None:
    """Let a removed step's outputs have the producer of its inputs, where no one else reads.

    `dead` variables do not depend on what goes in, and have none. Nor has an input that becomes two
    outputs: zeros for one of them would be zeros for both. Steps come in the order in which they
    were removed.
    """
    bound = binding.affine[number]
    x, y = bound.inputs, bound.outputs
    uses = np.bincount(x)
    made = (uses[x] == 1) & (readers.count[x] == 1)
    made &= ~np.isin(y, dead) & _is_left(readers, x)
    x, y = x[made], y[made]
    readers.producer[y] = readers.producer[x]
    readers.producer_channel[y] = readers.producer_channel[x]
    readers.offset[y] = bound.scale[made] * readers.offset[x] + bound.shift[made]


def _takes_constants(role: g.Role, bound: BoundAffine | None, values: FloatArray) -> bool:
    """Whether an op can have the factor 0 for inputs, and its own constant for what it loses."""
    if bound is not None:
        # The factor of a quotient cannot be 0; a step with summands is none.
        is_free = all(editable(bound)) and bound.role.tie is None
        return is_free and each_constant_once(bound)
    if not isinstance(role, g.Linear) or role.weight is not g.Weight.FREE:
        return False
    return not values.any() or (role.bias_editable and not role.crosses_zeros)


def _makes_zeros(role: g.Role) -> bool:
    return isinstance(role, g.Linear) and role.weight is g.Weight.FREE and role.bias_editable


def at_producer(
    binding: Binding, readers: Readers, steps: Sequence[int]
) -> dict[int, NDArray[np.bool_]]:
    """Which zero-gamma combinations of steps that go together become constant where they come from.

    An op that is called several times makes zeros in all calls, so these steps have to read all.
    """
    bounds = {number: binding.affine[number] for number in steps}
    made = {number: _comes_alone(readers, bound) for number, bound in bounds.items()}
    if not readers.calls:
        return made
    zeros = {pair for number in steps for pair in makers(readers, bounds[number], made[number])}
    for number, bound in bounds.items():
        made[number][made[number]] = [
            all((call, channel) in zeros for call in _calls(binding, readers, producer))
            for producer, channel in makers(readers, bound, made[number])
        ]
    return made


def makers(
    readers: Readers, bound: BoundAffine, made: NDArray[np.bool_]
) -> Iterator[tuple[int, int]]:
    """The linear op, and the channel of its output, that each of these combinations comes from."""
    x = bound.inputs[made]
    return zip(readers.producer[x].tolist(), readers.producer_channel[x].tolist(), strict=True)


def _calls(binding: Binding, readers: Readers, number: int) -> Sequence[int]:
    """All calls of a linear op that may be called several times."""
    return readers.calls.get(binding.linear[number].role.tie, (number,))


def _comes_alone(readers: Readers, bound: BoundAffine) -> NDArray[np.bool_]:
    """Which zero-gamma combinations come from a linear op, and nobody else reads them."""
    x, zero = bound.inputs, bound.scale == 0
    alive = np.zeros(int(x.max(initial=0)) + 1, dtype=bool)
    alive[x[~zero]] = True
    fits = (readers.producer[x] >= 0) & (readers.count[x] == 1) & ~alive[x]
    # The constant is computed as (x - c) + b, which has no more digits than c.
    near = np.abs(readers.offset[x]) <= _FARTHEST * np.maximum(np.abs(bound.shift), _SMALL)
    return np.asarray(fits & near & _is_left(readers, x))


_FARTHEST, _SMALL = 2.0**27, 2.0**-10
"""How much larger than its constant what a step is made of may be, of the 53 bits of float64; and
what counts as a constant's size at least."""


def _is_left(readers: Readers, x: IntArray) -> NDArray[np.bool_]:
    """Whether what passes these on leaves the constants that they are as they are."""
    offset = readers.offset[x]
    return np.asarray((readers.lower[x] <= offset) & (offset <= readers.upper[x]))


@dataclass(frozen=True, slots=True, eq=False)
class Constants:
    """Some variables and the constant that each one is."""

    variables: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """In increasing order."""
    values: FloatArray = field(default_factory=lambda: np.zeros(0))

    def of(self, variables: IntArray) -> tuple[NDArray[np.bool_], FloatArray]:
        """Which of these are among them, and the values of those."""
        if not len(self.variables):
            return np.zeros(len(variables), dtype=bool), np.zeros(0)
        place = np.searchsorted(self.variables, variables)
        place = np.minimum(place, len(self.variables) - 1)
        among = self.variables[place] == variables
        return among, self.values[place[among]]

    def joined(self, others: Constants) -> Constants:
        """These and others, whose values count where both know one."""
        variables = np.concatenate([others.variables, self.variables])
        values = np.concatenate([others.values, self.values])
        known, first = np.unique(variables, return_index=True)
        return Constants(known, values[first])


def some_constants(variables: IntArray, values: FloatArray) -> Constants | None:
    """One value for each variable that occurs; None if one of them has several."""
    order = np.argsort(variables, kind="stable")
    variables, values = variables[order], values[order]
    again = variables[1:] == variables[:-1]
    if (values[1:][again] != values[:-1][again]).any():
        return None
    first = np.concatenate([np.ones(min(1, len(order)), dtype=bool), ~again])
    return Constants(variables[first], values[first])


@dataclass(frozen=True, slots=True)
class Stop:
    """The readers cannot take constants in."""

    op: int
    """The number of the op that stands in the way; -1 where it is none alone."""
    reason: Reason = Reason.ZERO_GAMMA


def at_consumers(
    binding: Binding,
    readers: Readers,
    made: Mapping[int, Constants],
    removed: Collection[int],
) -> Constants | Stop:
    """What the readers see of constants in some tensors, and what removed steps make of it.

    No answer if a reader cannot take its constant, or not in all its calls, if two see different
    ones, or if a variable is stored like others that are no constants.
    """
    waiting: list[int] = []
    reached: dict[int, Constants] = {}
    seen: list[Constants] = []
    takers: list[int] = []

    def reach(tensor: int, constants: Constants) -> None:
        if len(constants.variables):
            reached[tensor] = constants
            for number in readers.readers.get(tensor, ()):
                heapq.heappush(waiting, number)

    for tensor, constants in made.items():
        reach(tensor, constants)
    done = -1
    while waiting:
        number = heapq.heappop(waiting)
        if number == done:
            continue
        done = number
        op = binding.graph.ops[number]
        given = _together([reached[tensor] for tensor in op.inputs if tensor in reached])
        if given is None:
            return Stop(number)
        if number in removed:
            seen.append(given)
            reach(op.outputs[0], _stepped(binding.affine[number], given))
            continue
        passed = _passed(op, given, [binding.labels[tensor] for tensor in op.inputs])
        if passed is None:
            bound = binding.affine.get(number)
            is_one = not isinstance(op.role, g.Linear) or _is_one_per_channel(
                op.role, given, binding.labels[op.inputs[0]]
            )
            if not is_one or not _takes_constants(op.role, bound, given.values):
                zeros = is_one and _takes_constants(op.role, bound, np.zeros(0))
                is_padded = isinstance(op.role, g.Linear) and op.role.crosses_zeros
                return Stop(number, Reason.PADDING if zeros and is_padded else Reason.ZERO_GAMMA)
            seen.append(given)
            takers.append(number)
            continue
        for output in op.outputs:
            reach(output, _within(passed, binding.labels[output]))
    taken = _alone(binding, made.values(), seen)
    if taken is None:
        return Stop(-1)
    odd = [n for n in takers if n in binding.linear and not _in_all(binding, readers, n, taken)]
    return Stop(odd[0]) if odd else taken


def _in_all(binding: Binding, readers: Readers, number: int, taken: Constants) -> bool:
    """Whether all calls of a linear op get the same constants."""
    given = [taken.of(binding.linear[call].inputs) for call in _calls(binding, readers, number)]
    (first, one), *others = given
    return all(
        np.array_equal(first, second) and np.array_equal(one, other) for second, other in others
    )


def _stepped(bound: BoundAffine, given: Constants) -> Constants:
    """What a removed step makes of constants."""
    among, values = given.of(bound.inputs)
    made = bound.scale[among] * values + bound.shift[among]
    outputs = bound.outputs[among]
    order = np.argsort(outputs)
    return Constants(outputs[order], made[order])


def _passed(op: g.Op, given: Constants, labels: list[IntArray]) -> Constants | None:
    """What an op that has no constants of its own makes of them; None for any other op.

    Zeros pass whatever keeps zeros. A padding of another value than 0 has a scale of its own.
    """
    role = op.role
    if isinstance(role, g.Clip):
        return Constants(given.variables, np.clip(given.values, role.lower, role.upper))
    if isinstance(role, g.Homogeneous) and role.negative is not None:
        return _sloped(role.negative, given, labels[0])
    if isinstance(role, g.Max | g.Mean) and not _meet_alike(role, given, labels[0]):
        return None
    if isinstance(role, g.Max) and role.tells_places:
        return None
    counts_zeros = isinstance(role, g.Mean) and role.counts_zeros
    if isinstance(role, _PASSES) and not counts_zeros:
        return given
    keeps_zero = isinstance(role, g.Homogeneous | g.Gate | g.Mean) or (
        isinstance(role, g.Pad) and np.isfinite(role.value)
    )
    return given if keeps_zero and not given.values.any() else None


def _is_one_per_channel(role: g.Linear, given: Constants, labels: IntArray) -> bool:
    """Whether a linear op sees one constant all over an input channel: it has one weight for it."""
    if not role.in_channels:
        return True
    _, left, right = lab.to_channels(labels, role.in_axis, role.in_channels)
    return _are_alike(given, left, right)


def _meet_alike(role: g.Max | g.Mean, given: Constants, labels: IntArray) -> bool:
    """Whether constants meet nothing but their like."""
    _, left, right = lab.merge_axes(labels, role.axes)
    return _are_alike(given, left, right)


def _are_alike(given: Constants, left: IntArray, right: IntArray) -> bool:
    """Whether these, pair by pair, are no constants, or the same ones."""
    (first, one), (second, other) = given.of(left), given.of(right)
    return bool((first == second).all()) and np.array_equal(one, other)


def _sloped(negative: FloatArray, given: Constants, labels: IntArray) -> Constants | None:
    """Negative constants times the slope of each; None if one meets several slopes."""
    parameter = np.arange(negative.size, dtype=np.int64).reshape(negative.shape)
    combined = lab.combine([labels, parameter])
    if combined is None:
        return None
    (variables, which), _, _ = combined
    among, values = given.of(variables)
    slopes = np.where(values < 0, negative.reshape(-1)[which[among]], 1.0)
    return some_constants(variables[among], slopes * values)


def _within(constants: Constants, labels: IntArray) -> Constants:
    """Those that a tensor holds."""
    held = np.isin(constants.variables, labels)
    return Constants(constants.variables[held], constants.values[held])


def _alone(binding: Binding, made: Iterable[Constants], seen: list[Constants]) -> Constants | None:
    """The constants as they are seen, if no other variable is stored like one of them."""
    joined = _together(seen)
    if joined is None:
        return None
    for constants in made:
        joined = constants.joined(joined)  # what is made counts where nobody reads it
    magnitude = binding.system.magnitude
    roots, count = np.unique(magnitude.roots(joined.variables), return_counts=True)
    if (magnitude.size[roots] != count).any():
        return None
    return joined


def _together(parts: Sequence[Constants]) -> Constants | None:
    """Constants of several places; None if two places have different ones of a variable."""
    return some_constants(
        np.concatenate([part.variables for part in (Constants(), *parts)]),
        np.concatenate([part.values for part in (Constants(), *parts)]),
    )
