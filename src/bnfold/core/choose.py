"""Values for what the constraints leave free.

Scales: the outputs of removed affine steps are the values that were normalised in training, so
each class is scaled such that their median there is 1: a Conv followed by BatchNorm becomes
exactly W * a, and chains of identity branches do not drift. Of steps in a row (a BatchNorm, then
a Scale) the last one's output counts. Signs: the first such output is positive. Shifts: the first
such output has none, and what a sum has to be given is given to those of its operands that nobody
else reads. A class without a removed step stays as it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.binding import Binding, BoundAffine, BoundLinear
from bnfold.core.constants import Constants
from bnfold.core.forest import CANCELLED, Forest, IntArray
from bnfold.core.labels import merge_axes
from bnfold.core.laws import each_constant_once, editable
from bnfold.core.sums import solve_waiting


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """The rescaling of every variable: v^ = scale * (v + shift)."""

    scale: FloatArray = field(default_factory=lambda: np.ones(1))
    inverse: FloatArray = field(default_factory=lambda: np.ones(1))
    """1 / scale; 0 for a constant that its readers do not look at."""
    shift: FloatArray = field(default_factory=lambda: np.zeros(1))


def choose(binding: Binding, removed: Sequence[int], dead: Constants) -> Values:
    """Values that satisfy all constraints. Raises Conflict if waiting sums contradict.

    `dead` constants have the shift of their value; the laws of what passes them on do not count.
    """
    system = binding.system
    outputs = anchors(binding, removed)
    everything = np.arange(system.count)
    magnitude = system.magnitude.find(everything)
    root_magnitude = np.ones(system.count)
    roots, values = magnitude.root[outputs], magnitude.p[outputs]
    owner, median = _medians(roots, values)
    root_magnitude[owner] = 1.0 / median
    root_magnitude[0] = 1.0
    sign = system.sign.find(everything)
    root_sign = np.ones(system.count)
    owner, first = np.unique(sign.root[outputs], return_index=True)
    root_sign[owner] = sign.p[outputs[first]]
    root_sign[0] = 1.0
    shift = system.shift.find(everything)
    busy = _busy(binding, removed)
    preferred = np.zeros(system.count)
    for unmoved in (np.flatnonzero(busy), outputs):  # the latter count where both are in a class
        owner, first = np.unique(shift.root[unmoved], return_index=True)
        preferred[owner] = -shift.q[unmoved[first]] / shift.p[unmoved[first]]
    moved = np.zeros(system.count, dtype=bool)
    moved[shift.root[busy]] = True
    root_shift = solve_waiting(system.sums, preferred, moved)
    scale = magnitude.p * root_magnitude[magnitude.root] * sign.p * root_sign[sign.root]
    inverse = 1.0 / scale
    scale[dead.variables], inverse[dead.variables] = 1.0, 0.0
    t = shift.p * root_shift[shift.root] + shift.q
    t[np.abs(t) <= CANCELLED * system.shift.largest_offset(everything)] = 0.0
    t[dead.variables] = -dead.values
    return Values(scale, inverse, t)


def out_of_range(binding: Binding, removed: Sequence[int], values: Values) -> list[int]:
    """The removed steps that leave a value stored much larger or smaller than it is.

    Only values that somebody reads are stored. Between two removed steps there is none: a gamma of
    1e-39 behind another step makes tiny weights, as it does behind a linear op. Of several steps
    around one value, those are returned whose own factor is out of range, if there are any; or such
    steps farther away, which scale that value, or another one, through steps that stay.
    """
    read, narrow = _read(binding, removed), _narrow(binding)
    excess, own, joined = [], [], []
    together: IntArray | None = None
    for number in removed:
        bound = binding.affine[number]
        live = bound.scale != 0
        x, y, a = (part[live] for part in (bound.inputs, bound.outputs, bound.scale))
        spread = np.ones(len(a)) if bound.role.spread is None else _typical(bound)[0][live]
        limit = bound.role.range_limit
        out = read[y] & _is_out(values.scale[y], spread, np.minimum(limit, narrow.range[y]))
        out |= read[x] & _is_out(values.scale[x], spread / np.abs(a), limit)
        is_cause = _is_out(a, spread / np.abs(a), limit)
        if out.any():
            excess.append(number)
            if is_cause.any():
                own.append(number)
        elif is_cause.any():
            together = _scaled_alike(binding, removed) if together is None else together
            elsewhere = read & np.isin(together, together[x[is_cause]])
            if _is_out(values.scale[elsewhere], np.ones(1), limit).any():
                joined.append(number)
    return own or joined or excess


def _is_out(scale: FloatArray, spread: FloatArray, limit: FloatArray | float) -> NDArray[np.bool_]:
    scale = np.abs(scale)
    large = scale * np.minimum(spread, 1.0) > limit
    return np.asarray(large | (scale < 1.0 / limit) | ~np.isfinite(scale))


def overgrown(binding: Binding, removed: Sequence[int], values: Values) -> list[int]:
    """The removed steps that leave a value with a shift that drowns it, for others who read it.

    A value of mean m and deviation d is stored with the mean m + t, and loses as many digits as
    |m + t| + d is larger than |m| + d. That does no harm where only a removed step reads it, which
    lost them too: y = 1e-8 * x + 1 has no more digits of x than x + 1e8 has. For y, what counts are
    the digits that it has from x. But the network's input is given and has all its digits, and so
    has a value beside one that is rounded to a narrower dtype: there y alone counts, and a step
    that takes a large mean away stays. Returned are the steps that have such a shift of their own
    and are joined with a value that suffers; if there are none, those that read or make one.
    """
    read, narrow, given = _read(binding, removed), _narrow(binding), _given(binding.graph)
    neighbours, grown, large = [], [], []
    room = _Room(binding.system.count)
    for number in removed:
        bound = binding.affine[number]
        live = bound.scale != 0
        x, y, a, b = (
            part[live] for part in (bound.inputs, bound.outputs, bound.scale, bound.shift)
        )
        spread, center = (part[live] for part in _typical(bound))
        deviation, mean = spread / np.abs(a), (center - b) / a
        of_x = np.abs(mean) + deviation
        limit = bound.role.growth_limit
        limit_y = np.minimum(limit, narrow.growth[y])
        exact = (binding.graph.ops[number].inputs[0] in given) | (limit_y < limit)
        of_y = np.abs(center) + spread
        of_y = np.where(exact, of_y, np.maximum(of_y, np.abs(a) * of_x))
        suffers = read[x] & (np.abs(mean + values.shift[x]) + deviation > limit * of_x)
        suffers |= read[y] & (np.abs(center + values.shift[y]) + spread > limit_y * of_y)
        if suffers.any():
            neighbours.append(number)
            grown.append(y[suffers])
        # With y stored without a shift, t_x is b / a, and the mean of x center / a.
        large.append((number, y[np.abs(center / a) + deviation > limit * of_x]))
        room.note(x, limit * of_x, y, number)
        room.note(y, limit_y * of_y, y, number)
    room.reach_out(binding, removed)
    needed = _needed(binding, removed)
    drowned = np.flatnonzero(needed & ~room.is_own & (np.abs(values.shift) > room.most))
    if len(drowned):
        neighbours += np.unique(room.step[drowned]).tolist()
        grown.append(room.output[drowned])
    if not neighbours:
        return []
    together = _classes(binding, [*_stored_alike(binding, removed), *_removals(binding, removed)])
    suffering = together[np.concatenate(grown)]
    return [n for n, own in large if np.isin(together[own], suffering).any()] or neighbours


class _Room:
    """Per variable, the largest shift that leaves it its digits, as far as a removed step tells."""

    def __init__(self, count: int) -> None:
        self.most = np.full(count, np.inf)
        self.step = np.zeros(count, dtype=np.int64)
        """The step that tells."""
        self.output = np.zeros(count, dtype=np.int64)
        """Its variable behind the step."""
        self.is_own = np.zeros(count, dtype=bool)
        """Whether it is a step's own, which is looked at more closely."""

    def note(self, variables: IntArray, most: FloatArray, output: IntArray, step: int) -> None:
        """Of a step's own variables; the most of what is told of one of them counts."""
        self.is_own[variables] = True
        self._grow(variables, most, output, np.full(len(variables), step))

    def reach_out(self, binding: Binding, removed: Sequence[int]) -> None:
        """Of what sums and steps that stay join with these: backwards, then along the network."""
        gone = set(removed)
        numbers = range(len(binding.graph.ops))
        for back, order in ((True, reversed(numbers)), (False, numbers)):
            for number in order:
                for source, target, factor in _joined(binding, number, back=back):
                    known = np.isfinite(self.most[source]) & ~self.is_own[target] & (target != 0)
                    if number not in gone and known.any():
                        source, target, factor = source[known], target[known], factor[known]
                        most = self.most[source] * factor
                        self._grow(target, most, self.output[source], self.step[source])

    def _grow(
        self, variables: IntArray, most: FloatArray, output: IntArray, step: IntArray
    ) -> None:
        larger = np.isinf(self.most[variables]) | (most > self.most[variables])
        order = np.argsort(most[larger], kind="stable")  # of several for one, the last one stays
        place = variables[larger][order]
        self.most[place] = most[larger][order]
        self.output[place], self.step[place] = output[larger][order], step[larger][order]


def _joined(
    binding: Binding, number: int, *, back: bool
) -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
    """What a sum, or a step, joins: variables, others, and how many times as large these are."""
    op = binding.graph.ops[number]
    pairs: list[tuple[IntArray, IntArray, FloatArray]] = []
    if isinstance(op.role, g.Sum):
        total = binding.labels[op.outputs[0]]
        for tensor, factor in zip(op.inputs, op.role.coefficients, strict=True):
            alike = np.broadcast_arrays(binding.labels[tensor], total)
            operand, summed = (labels.reshape(-1) for labels in alike)
            pairs.append((operand, summed, np.full(len(operand), abs(factor))))
    elif number in binding.affine:
        bound = binding.affine[number]
        pairs.append((bound.inputs, bound.outputs, np.abs(bound.scale)))
    for operands, results, times in pairs:
        live = (times != 0) & np.isfinite(times)
        one, other, each = operands[live], results[live], times[live]
        yield (other, one, 1 / each) if back else (one, other, each)


def _typical(bound: BoundAffine) -> tuple[FloatArray, FloatArray]:
    """The deviation and the mean of an affine step's output, per combination."""
    role = bound.role
    if role.spread is None:
        return np.abs(bound.scale), bound.shift
    spread = role.spread.reshape(-1)[bound.parameter]
    center = bound.shift if role.center is None else role.center.reshape(-1)[bound.parameter]
    return spread, center


@dataclass(frozen=True, slots=True, eq=False)
class _Limits:
    """Per variable, the least of its readers that compute in a narrower dtype, or inf."""

    range: FloatArray
    growth: FloatArray


def _narrow(binding: Binding) -> _Limits:
    count = binding.system.count
    limits = _Limits(np.full(count, np.inf), np.full(count, np.inf))
    for op in binding.graph.ops:
        role = op.role
        if isinstance(role, g.View | g.Linear) and np.isfinite(role.growth_limit):
            for tensor in op.inputs:
                labels = binding.labels[tensor].reshape(-1)
                limits.range[labels] = np.minimum(limits.range[labels], role.range_limit)
                limits.growth[labels] = np.minimum(limits.growth[labels], role.growth_limit)
    return limits


def _given(graph: g.Graph) -> set[int]:
    """The tensors that hold what the user passes in, digit by digit."""
    given = {tensor for tensor, _ in graph.inputs}
    for op in graph.ops:
        if (
            isinstance(op.role, g.View | g.Clip | g.Max)
            and op.inputs
            and given.issuperset(op.inputs)
        ):
            given.update(op.outputs)
    return given


def _busy(binding: Binding, removed: Sequence[int]) -> NDArray[np.bool_]:
    """Which operands of sums others compute with as well."""
    operands = np.zeros(binding.system.count, dtype=bool)
    for op in binding.graph.ops:
        if isinstance(op.role, g.Sum):
            for tensor in op.inputs:
                operands[binding.labels[tensor].reshape(-1)] = True
    return operands & _read(binding, removed, (*_PASSES, g.Sum))


def _needed(binding: Binding, removed: Sequence[int]) -> NDArray[np.bool_]:
    """Which variables are read for their digits: by others than sums, or in a sum that is."""
    needed = _read(binding, removed, (*_PASSES, g.Sum))
    for op in reversed(binding.graph.ops):
        if isinstance(op.role, g.Sum):
            total = binding.labels[op.outputs[0]]
            for tensor in op.inputs:
                operand, result = np.broadcast_arrays(binding.labels[tensor], total)
                needed[operand[needed[result]]] = True
    return needed


Pairs = list[tuple[IntArray, IntArray]]
"""Variables, one by one, of one class."""

_PASSES = (g.View, g.Clip, g.Max, g.Mean, g.Homogeneous)
"""Their output has the digits that their input has."""


def _read(
    binding: Binding, removed: Sequence[int], besides: tuple[type, ...] = _PASSES
) -> NDArray[np.bool_]:
    """Which variables an op reads that computes with them, other than the removed steps.

    What is stored like another one is read where that one is. Roles `besides` do not count.
    """
    gone = set(removed)
    read = np.zeros(binding.system.count, dtype=bool)
    for number, op in enumerate(binding.graph.ops):
        if number not in gone and not isinstance(op.role, besides):
            for tensor in op.inputs:
                read[binding.labels[tensor].reshape(-1)] = True
    pairs = _stored_alike(binding, removed)
    if not pairs:
        return read
    classes = _classes(binding, pairs)
    read_classes = np.zeros(len(read), dtype=bool)
    read_classes[classes[read]] = True
    return np.asarray(read_classes[classes])


def _stored_alike(binding: Binding, removed: Sequence[int]) -> Pairs:
    """Variables with one shift because a weight, a constant, a maximum or a mean joins them."""
    gone = set(removed)
    pairs: Pairs = []
    first: dict[Hashable, BoundLinear] = {}
    for number, op in enumerate(binding.graph.ops):
        role = op.role
        if isinstance(role, g.Linear) and role.tie is not None:
            linear = binding.linear[number]
            twin = first.setdefault(role.tie, linear)
            if twin is not linear:
                pairs += [(linear.inputs, twin.inputs), (linear.outputs, twin.outputs)]
        elif number in binding.affine and number not in gone:
            step = binding.affine[number]
            if any(editable(step)):
                pairs += _edited_alike(binding, number, step)
        elif isinstance(role, g.Max | g.Mean):
            pairs.append(merge_axes(binding.labels[op.inputs[0]], role.axes)[1:])
    return [pair for pair in pairs if len(pair[0])]


def _scaled_alike(binding: Binding, removed: Sequence[int]) -> IntArray:
    """Per variable, one that stands for all that removed steps, steps that stay and sums join."""
    pairs = [(step.inputs, step.outputs) for step in binding.affine.values()]
    pairs += [
        (source, target)
        for number, op in enumerate(binding.graph.ops)
        if isinstance(op.role, g.Sum)
        for source, target, _ in _joined(binding, number, back=False)
    ]
    return _classes(binding, [*pairs, *_stored_alike(binding, removed)])


def _removals(binding: Binding, removed: Sequence[int]) -> Pairs:
    steps = (binding.affine[number] for number in removed)
    return [(step.inputs, step.outputs) for step in steps]


def _edited_alike(binding: Binding, number: int, bound: BoundAffine) -> Pairs:
    """What meets one constant of a step that stays, in the first call of its module or here."""
    first = binding.affine.get(binding.groups[number][0])
    if first is None or (first is bound and each_constant_once(bound)):
        return []
    known, place = np.unique(first.parameter, return_index=True)
    in_bound = np.flatnonzero(np.isin(bound.parameter, known))
    in_first = place[np.searchsorted(known, bound.parameter[in_bound])]
    return [
        (bound.inputs[in_bound], first.inputs[in_first]),
        (bound.outputs[in_bound], first.outputs[in_first]),
    ]


def _classes(binding: Binding, pairs: Pairs) -> IntArray:
    """Per variable, one that stands for all that these pairs join it with; 0 joins nothing."""
    classes = Forest(0.0)
    classes.extend(binding.system.count)
    for left, right in pairs:
        free = (left != 0) & (right != 0)
        ones = np.ones(int(np.count_nonzero(free)))
        classes.relate(left[free], right[free], ones, 0.0 * ones, -1)
    return classes.roots(np.arange(binding.system.count))


def anchors(binding: Binding, removed: Sequence[int]) -> IntArray:
    """The outputs of the removed steps that no removed step reads: see the module's head."""
    outputs = [np.zeros(0, dtype=np.int64)]
    goes_on = np.zeros(binding.system.count, dtype=bool)
    for number in sorted(removed):
        bound = binding.affine[number]
        outputs.append(bound.outputs)
        goes_on[bound.inputs] = True
    last = np.concatenate(outputs)
    return last[~goes_on[last]]


def _medians(roots: IntArray, values: FloatArray) -> tuple[IntArray, FloatArray]:
    """The lower median of the values of each root: one that occurs, so that 1 is met exactly."""
    order = np.lexsort((values, roots))
    roots, values = roots[order], values[order]
    owner, start, count = np.unique(roots, return_index=True, return_counts=True)
    return owner, values[start + (count - 1) // 2]
