"""The law of a sum whose steps are gone: see `shortcuts` for what A, B and C are.

    z  = sum_j A_j * x_j + B          z^ = sum_j C_j * x^_j

With x^_j = s_j * (x_j + t_j) this is z^ = s_z * (z + t_z) exactly if

    C_j * s_j = A_j * s_z             t_z = sum_j A_j * t_j - B

The first holds for every j, but where a linear op in the sum has a tap that reads x_j at the place
it writes to. That tap adds d * x^_j to the op's output, of which z^ has k times as much, and

    d = (A_j * s_z / s_j - C_j) / k

makes up for any difference of the two.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from bnfold.core import graph as g
from bnfold.core import labels as lab
from bnfold.core.affine import FloatArray
from bnfold.core.binding import Binding
from bnfold.core.choose import Values
from bnfold.core.forest import Conflict, Forest, IntArray
from bnfold.core.reasons import Reason
from bnfold.core.shortcuts import Shortcut, Tap, Term

_LEAST_TRUE = 1e-6
"""Less of a term than this is left of what cancelled: its digits are not worth a weight."""
_LEAST_STORED = 2.0**-4
"""The same for what the folded network adds up, in its own precision."""
_NEGLIGIBLE = 1e-13
"""A difference this small beside what it is the difference of is rounding of the solver's own."""


@dataclass(frozen=True, slots=True, eq=False)
class BoundTerm:
    """One term of a bound shortcut, per combination of variables and coefficients."""

    term: Term
    variables: IntArray
    true: FloatArray
    stored: FloatArray
    largest: FloatArray
    """The magnitudes that `true` consists of."""
    channels: IntArray
    """With a tap, a combination of each of its channels, in order."""


@dataclass(frozen=True, slots=True, eq=False)
class BoundShortcut:
    """A shortcut whose law holds."""

    shortcut: Shortcut
    outputs: IntArray
    """The sum's variables, per combination."""
    terms: tuple[BoundTerm, ...]
    constant: FloatArray
    """B, per combination."""


def lay(binding: Binding, shortcut: Shortcut) -> BoundShortcut:
    """Demand the law. Raises Conflict, possibly with part of it laid: call it inside a trial."""
    system = binding.system
    cause = system.cause(shortcut.root, binding.graph.ops[shortcut.root].name, Reason.BRANCHES)
    bound = _combine(binding, shortcut)
    if bound is None:
        raise Conflict([cause])
    z, terms = bound.outputs, bound.terms
    for summand in terms:
        if summand.term.tap is None:
            nonzero = summand.stored != 0
            x, ratio = summand.variables[nonzero], summand.true[nonzero] / summand.stored[nonzero]
            system.scale_by(x, z[nonzero], ratio, cause)
    running = z if len(terms) == 1 else system.fresh(len(z))
    system.shift_map(running, terms[0].variables, terms[0].true, -bound.constant, cause)
    for position, summand in enumerate(terms[1:], 2):
        into = z if position == len(terms) else system.fresh(len(z))
        ones = np.ones(len(z))
        variables = np.stack([into, running, summand.variables], axis=1)
        system.sums.add(variables, np.stack([-ones, ones, summand.true], axis=1), cause)
        running = into
    return bound


def _combine(binding: Binding, shortcut: Shortcut) -> BoundShortcut | None:
    """The law's variables and coefficients; None where it cannot hold."""
    graph, terms = binding.graph, shortcut.terms
    output = graph.ops[shortcut.root].outputs[0]
    rank = len(graph.shapes[output])
    parts = [shortcut.constant]
    for term in terms:
        parts += [term.true, term.stored, term.largest_true, term.largest_stored]
    shape = np.broadcast_shapes((1,) * rank, *(part.shape for part in parts))
    if len(shape) > rank or int(np.prod(shape)) > lab.MAX_PAIRS:
        return None
    places = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    labels = [binding.labels[term.tensor] for term in terms]
    counts = [_counter(graph, term.tap, rank) for term in terms]
    aligned = [array.reshape((1,) * (rank - array.ndim) + array.shape) for array in labels]
    combined = lab.combine([binding.labels[output], places, *aligned, *counts])
    if combined is None:
        return None
    (z, place, *rest), _, _ = combined
    amounts = [np.broadcast_to(part, shape).reshape(-1)[place] for part in parts]
    bound = []
    for index, term in enumerate(terms):
        variables, channel = rest[index], rest[len(terms) + index]
        true, stored, most_true, most_stored = amounts[1 + 4 * index : 5 + 4 * index]
        if term.tap is None and _cancels(true, stored, most_true, most_stored):
            return None
        channels = np.unique(channel, return_index=True)[1]
        if term.tap is not None:
            if not _is_reached(binding, term.tap, channels):
                return None
            first = channels[channel]
            if any((array[first] != array).any() for array in (z, variables, true, stored)):
                return None  # one channel would need several values of its tap
        bound.append(BoundTerm(term, variables, true, stored, most_true, channels))
    return BoundShortcut(shortcut, z, tuple(bound), amounts[0])


def _counter(graph: g.Graph, tap: Tap | None, rank: int) -> IntArray:
    """The channel of the tap's op, for each element of the sum."""
    if tap is None:
        return lab.pinned(rank)
    return lab.along(0, tap.role.out_channels, rank - _behind(graph, tap), rank)


def _behind(graph: g.Graph, tap: Tap) -> int:
    """Where the axis of the channels of the tap's op is, counted from the last one."""
    return len(graph.shapes[graph.ops[tap.linear].outputs[0]]) - tap.role.out_axis


def _cancels(
    true: FloatArray, stored: FloatArray, most_true: FloatArray, most_stored: FloatArray
) -> bool:
    """Whether too little is left of a term, before or after."""
    nothing = (true == 0) & (stored == 0)
    little = np.abs(true) <= _LEAST_TRUE * most_true
    little |= np.abs(stored) <= _LEAST_STORED * most_stored
    return bool((little & ~nothing).any())


# ---------------------------------------------------------------------------- the tap


def _is_reached(binding: Binding, tap: Tap, channels: IntArray) -> bool:
    """Whether each channel of the tap has one way to the sum, with one factor."""
    graph = binding.graph
    if len(channels) != tap.role.out_channels:
        return False
    for number, _ in tap.path:
        op = graph.ops[number]
        if isinstance(op.role, g.AffineStep) and number not in tap.steps:
            parts = [op.role.scale, binding.labels[op.inputs[0]], binding.labels[op.outputs[0]]]
            if not all(_varies_only_along(graph, tap, part.shape) for part in parts):
                return False
    return True


def _varies_only_along(graph: g.Graph, tap: Tap, shape: tuple[int, ...]) -> bool:
    """Whether an array that broadcasts to the tap's values has one element per channel."""
    behind = _behind(graph, tap)
    return math.prod(shape) == (shape[-behind] if len(shape) >= behind else 1)


def prefer_no_additions(binding: Binding, bound: BoundShortcut) -> None:
    """Use what freedom is left to make d = 0, channel by channel: less to add, less to cancel."""
    system = binding.system
    cause = system.cause(bound.shortcut.root, "", Reason.BRANCHES)
    for summand in bound.terms:
        if summand.term.tap is None:
            continue
        nonzero = (summand.true != 0) & (summand.stored != 0)
        x, z = summand.variables[nonzero], bound.outputs[nonzero]
        ratio = summand.true[nonzero] / summand.stored[nonzero]
        for forest, factor in ((system.magnitude, np.abs(ratio)), (system.sign, np.sign(ratio))):
            _relate_where_free(forest, x, z, factor, cause)


def _relate_where_free(
    forest: Forest, left: IntArray, right: IntArray, factor: FloatArray, cause: int
) -> None:
    """value[left] = factor * value[right], for those pairs that nothing relates yet."""
    while True:
        pairs = np.stack([forest.roots(left), forest.roots(right)])
        apart = np.flatnonzero(pairs[0] != pairs[1])
        if not len(apart):
            return
        low, high = np.sort(pairs[:, apart], axis=0)
        # Each class once in a call: a second pair of it may be related by the first.
        chosen = np.unique(high, return_index=True)[1]
        low, high = low[chosen], high[chosen]
        kept = np.zeros(len(low), dtype=bool)
        kept[np.unique(low, return_index=True)[1]] = True
        kept = (kept & ~np.isin(low, high)) | (low == 0)
        kept[: not kept.any()] = True
        apart = apart[chosen][kept]
        forest.relate(left[apart], right[apart], factor[apart], np.zeros(len(apart)), cause)


def additions(
    binding: Binding, bound: BoundShortcut, values: Values, removed: Collection[int]
) -> dict[int, FloatArray]:
    """Per linear op, what its taps at the centre add of the stored input: d, (out_channels,)."""
    added: dict[int, FloatArray] = {}
    for summand in bound.terms:
        tap = summand.term.tap
        if tap is None:
            continue
        z, x = bound.outputs[summand.channels], summand.variables[summand.channels]
        held = summand.true[summand.channels] * values.scale[z] * values.inverse[x]
        passed = summand.stored[summand.channels]
        missing = held - passed
        size = np.maximum(np.abs(held), np.abs(passed))
        missing[np.abs(missing) <= _NEGLIGIBLE * size] = 0.0
        if missing.any():
            added[tap.linear] = missing / _amount(binding, tap, values, removed)
    return added


def _amount(
    binding: Binding, tap: Tap, values: Values, removed: Collection[int]
) -> FloatArray | float:
    """How much of the tap's stored output the stored sum holds: k, per channel."""
    amount: FloatArray | float = 1.0
    for number, operand in tap.path:
        op = binding.graph.ops[number]
        if isinstance(op.role, g.Sum):
            amount = amount * op.role.coefficients[operand]
        elif isinstance(op.role, g.AffineStep) and number not in removed:
            before = values.inverse[binding.labels[op.inputs[0]]]
            after = values.scale[binding.labels[op.outputs[0]]]
            amount = amount * (after * op.role.scale * before).reshape(-1)
    return amount


def is_overgrown(binding: Binding, bound: BoundShortcut, values: Values) -> bool:
    """Whether a term, or the sum, is stored so much larger than it is that its digits drown."""
    roles = [binding.affine[number].role for number in bound.shortcut.steps]
    growth = min(role.growth_limit for role in roles)
    limit = min(role.range_limit for role in roles)
    s_z = np.abs(values.scale[bound.outputs])
    if ((s_z > limit) | (s_z < 1.0 / limit)).any():
        return True
    for summand in bound.terms:
        if summand.term.tap is None:
            continue
        # A channel of gamma 0 is judged by what the others are like.
        held = s_z * np.maximum(summand.largest, np.median(summand.largest))
        if (np.abs(summand.stored * values.scale[summand.variables]) > growth * held).any():
            return True
    return False
