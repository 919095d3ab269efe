"""One law per role: which rescalings an op lets through, as constraints between variables.

Every law takes the labels of its inputs and returns those of its outputs; what the plan needs to
know later goes into a `Bound`. All laws hold for (s, t) = (1, 0) everywhere, so the laws of a
whole network never contradict each other; only the removal of an affine step can.
The algebra of each law is in docs/laws.md and in docs/design/0001-idea-and-laws.md. The file
is long because the laws stand together, in the order of that table.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from bnfold.core import graph as g
from bnfold.core import labels as lab
from bnfold.core.affine import FloatArray
from bnfold.core.alike import may_share_bounds
from bnfold.core.binding import Binding, BoundAffine, BoundClip, BoundLinear, BoundSum
from bnfold.core.forest import IntArray, each_once, is_increasing
from bnfold.core.reasons import Reason
from bnfold.core.system import System, distinct

Labels = list[IntArray]


def bind(
    graph: g.Graph,
    *,
    plain_clips: frozenset[int] = frozenset(),
    kept_from_start: frozenset[int] = frozenset(),
    open_sums: frozenset[int] = frozenset(),
    given_scales: Mapping[int, FloatArray | None] | None = None,
) -> Binding:
    """Lay the laws of all ops over fresh variables, but for those of the open sums."""
    system = System()
    system.reserve(sum(_fresh_variables(graph, op) for op in graph.ops))
    binding = Binding(
        graph,
        system,
        plain_clips=plain_clips,
        kept_from_start=kept_from_start,
        groups=graph.affine_groups(),
        left_open=open_sums,
        given_scales=given_scales or {},
    )
    binding.labels = [lab.pinned(len(shape)) for shape in graph.shapes]
    for number, op in enumerate(graph.ops):
        inputs = [binding.labels[tensor] for tensor in op.inputs]
        for tensor, labels in zip(op.outputs, _law(binding, number, op.role, inputs), strict=True):
            binding.labels[tensor] = labels
    tied_clips(binding)
    for tensor, name, reason in graph.outputs:
        system.plain(distinct(binding.labels[tensor]), system.cause(-1, name, reason))
    system.sums.settle()
    return binding


def _law(binding: Binding, number: int, role: g.Role, inputs: Labels) -> Labels:
    """The law of one op; a table would not tell each law the type of its role."""
    match role:
        case g.Linear():
            return linear(binding, number, role, inputs)
        case g.AffineStep():
            return affine(binding, number, role, inputs)
        case g.RefusedStep():
            return _pin_all(binding, number, inputs, Reason.NONLINEAR)
        case g.Clip():
            return clip(binding, number, role, inputs)
        case g.Homogeneous():
            return homogeneous(binding, number, inputs)
        case g.Max():
            return maximum(binding, number, role, inputs)
        case g.Mean():
            return mean(binding, number, role, inputs)
        case g.Sum():
            return total(binding, number, role, inputs)
        case g.Gate():
            return gate(binding, number, inputs)
        case g.View():
            return view(binding, number, role, inputs)
        case g.Pad():
            return pad(binding, number, role, inputs)
        case g.Sign():
            return sign(binding, number, role, inputs)
        case g.Opaque():
            return opaque(binding, number, role, inputs)
        case g.Constant():
            return constant(binding, number, role, inputs)


def _cause(binding: Binding, number: int, reason: Reason) -> int:
    return binding.system.cause(number, binding.graph.ops[number].name, reason)


def _output_shape(binding: Binding, number: int) -> tuple[int, ...]:
    return binding.graph.shapes[binding.graph.ops[number].outputs[0]]


def _fresh_variables(graph: g.Graph, op: g.Op) -> int:
    """About how many variables the law of an op makes: most are its own channels."""
    role = op.role
    if isinstance(role, g.Linear):
        return role.out_channels
    if isinstance(role, g.AffineStep):
        return role.scale.size
    if isinstance(role, g.Sum):
        channels = graph.shapes[op.outputs[0]][1:2]
        return (len(op.inputs) - 1) * math.prod(channels)
    return 0


def linear(binding: Binding, number: int, role: g.Linear, inputs: Labels) -> Labels:
    """y^[o] = s_y[o] * (sum_i W[o,i]/s_x[i] * (x^[i] - s_x[i]*t_x[i]) + B[o] + t_y[o])."""
    system = binding.system
    rank = len(_output_shape(binding, number))
    x = np.zeros(0, dtype=np.int64)
    if role.in_channels:
        x, left, right = lab.to_channels(inputs[0], role.in_axis, role.in_channels)
        system.same(left, right, _cause(binding, number, Reason.BRANCHES))
    y = system.fresh(role.out_channels)
    bound = BoundLinear(role, x, y)
    binding.linear[number] = bound
    if role.crosses_zeros:
        system.no_shift(x, _cause(binding, number, Reason.PADDING))
    if role.weight is not g.Weight.FREE or not role.bias_editable:
        _fixed_linear(binding, number, bound)
    if role.tie is not None:
        first = binding.linear_ties.setdefault(role.tie, bound)
        if first is not bound:
            cause = _cause(binding, number, Reason.SHARED)
            system.same(first.inputs, x, cause)
            system.same(first.outputs, y, cause)
    return [lab.along(int(y[0]), len(y), role.out_axis, rank) if len(y) else lab.pinned(rank)]


def _fixed_linear(binding: Binding, number: int, bound: BoundLinear) -> None:
    """A weight or bias that may not change leaves only what the two sides share."""
    system = binding.system
    cause = _cause(binding, number, Reason.FIXED_WEIGHT)
    role, x, y = bound.role, bound.inputs, bound.outputs
    if role.weight is not g.Weight.FREE and not role.in_channels:
        system.plain_scale(y, cause)
    elif role.weight is not g.Weight.FREE:
        relate = system.same_scale if role.weight is g.Weight.FIXED else system.same_magnitude
        per_group = role.in_channels // role.groups
        head = x[::per_group]
        relate(x, np.repeat(head, per_group), cause)
        relate(y, np.repeat(head, role.out_channels // role.groups), cause)
    if role.bias_editable:
        return
    if role.bias is not None:
        system.plain_scale(y[role.bias != 0], cause)
    total = role.depthwise_sum
    if total is None:
        system.no_shift(x, cause)
        system.no_shift(y, cause)
        return
    source = np.repeat(x, role.out_channels // role.groups)
    system.shift_map(y, source, total, np.zeros(len(y)), cause)


def affine(binding: Binding, number: int, role: g.AffineStep, inputs: Labels) -> Labels:
    """Kept and editable: free on both sides; what it cannot edit ties them (see `keep_affine`)."""
    system = binding.system
    (x,) = inputs
    rank = len(_output_shape(binding, number))
    parameter = np.arange(role.scale.size, dtype=np.int64).reshape(role.scale.shape)
    x = x.reshape((1,) * (rank - x.ndim) + x.shape)
    combined = lab.combine([x, parameter])
    if combined is None:
        return _pin_all(binding, number, inputs, Reason.NONLINEAR)
    (x_each, parameter_each), where, _ = combined
    scale = role.scale.reshape(-1)[parameter_each]
    shift = role.shift.reshape(-1)[parameter_each]
    is_fixed = not (role.is_wanted or role.is_editable)
    is_known = role.factors is not g.Parameter.UNKNOWN
    only_adds = (scale == 1.0).all() and number not in binding.given_scales
    if is_fixed and (only_adds or not is_known):
        # Only adding, or multiplying by who knows what: input and output share their variables.
        cause = _cause(binding, number, Reason.FIXED_WEIGHT)
        moved = (shift != 0) | (role.summands is g.Parameter.UNKNOWN)
        system.plain_scale(distinct(x_each[moved]), cause)
        if not is_known:
            system.no_shift(distinct(x), cause)
        return [x]
    y_each = system.fresh(len(x_each))
    bound = BoundAffine(role, x_each, y_each, scale, shift, parameter_each)
    binding.affine[number] = bound
    if not role.is_wanted or number in binding.kept_from_start:
        keep_affine(binding, number)
    return [y_each[where]]


def each_constant_once(bound: BoundAffine) -> bool:
    """Whether no constant of an affine step meets several variables."""
    parameter = bound.parameter
    return is_increasing(parameter) or len(each_once(parameter)) == len(parameter)


def editable(bound: BoundAffine) -> tuple[bool, bool]:
    """Whether the factors and the summands of an affine step that stays are edited.

    A constant that meets several variables can only be edited alike for all of them. What can edit
    both of its constants does so; a mere product, or sum, is better left as it is there, and lets
    through what it can.
    """
    factors = bound.role.factors is g.Parameter.EDITABLE
    summands = bound.role.summands is g.Parameter.EDITABLE
    if factors != summands and not each_constant_once(bound):
        return False, False
    return factors, summands


def keep_affine(binding: Binding, number: int) -> None:
    """The law of an affine step that stays: a' = s_y*a/s_x, b' = s_y*(b - a*t_x + t_y)."""
    system, bound = binding.system, binding.affine[number]
    cause = _cause(binding, number, Reason.FIXED_WEIGHT)
    edits_scale, edits_shift = editable(bound)
    if edits_scale or edits_shift:
        _one_edit_per_constant(binding, bound, _cause(binding, number, Reason.BRANCHES))
    if bound.role.tie is not None:
        _one_edit_per_call(binding, number, bound)
    if not edits_scale:
        live = bound.scale != 0
        system.same_scale(bound.outputs[live], bound.inputs[live], cause)
    if not edits_shift:
        _keep_summands(binding, number, bound, cause)


def _keep_summands(binding: Binding, number: int, bound: BoundAffine, cause: int) -> None:
    """y^ = a' * x^ + b:  t_y = a * t_x + b * (1 / s_y - 1), for b other than 0 at a known s_y."""
    system, y, x, b = binding.system, bound.outputs, bound.inputs, bound.shift
    moved, offset = b != 0, np.zeros(len(b))
    known = binding.given_scales.get(number, np.ones(len(b)))
    if known is None:  # what it adds is not asked for
        y, x, a = y[~moved], x[~moved], bound.scale[~moved]
        system.shift_map(y, x, a, np.zeros(len(a)), cause)
        return
    system.magnitude.pin(y[moved], np.abs(known[moved]), cause)
    system.sign.pin(y[moved], np.sign(known[moved]), cause)
    offset[moved] = b[moved] * (1.0 / known[moved] - 1.0)
    system.shift_map(y, x, bound.scale, offset, cause)


def _one_edit_per_constant(binding: Binding, bound: BoundAffine, cause: int) -> None:
    """One constant that meets several variables must be edited alike for all of them."""
    if each_constant_once(bound):
        return
    _, first, inverse = np.unique(bound.parameter, return_index=True, return_inverse=True)
    head = first[inverse]
    binding.system.same(bound.inputs, bound.inputs[head], cause)
    binding.system.same(bound.outputs, bound.outputs[head], cause)


def _one_edit_per_call(binding: Binding, number: int, bound: BoundAffine) -> None:
    """The calls of one module share its constants."""
    cause = _cause(binding, number, Reason.SHARED)
    for call in binding.groups[number]:
        twin = binding.affine.get(call)
        if twin is None or twin is bound:  # not reached yet: it will relate itself to this one
            continue
        _, in_bound, in_twin = np.intersect1d(bound.parameter, twin.parameter, return_indices=True)
        binding.system.same(bound.inputs[in_bound], twin.inputs[in_twin], cause)
        binding.system.same(bound.outputs[in_bound], twin.outputs[in_twin], cause)


def clip(binding: Binding, number: int, role: g.Clip, inputs: Labels) -> Labels:
    """Any rescaling passes where the bounds can be rescaled too."""
    bound = BoundClip(inputs[0], distinct(inputs[0]), role)
    if role.room:
        binding.clips[number] = bound
    if role.tie is None or not role.room:
        _lay_clip(binding, number, bound)
    return inputs


def _lay_clip(binding: Binding, number: int, bound: BoundClip) -> None:
    """Without room, or where it must not be used, the bounds stay as they are."""
    room = number in binding.clips
    if not room or number in binding.plain_clips:
        cause = _cause(binding, number, Reason.CLIP_COST if room else Reason.ACTIVATION)
        plain_clips(binding.system, [(bound.role, bound.variables)], cause)


def tied_clips(binding: Binding) -> None:
    """One set of bounds for several calls: only where their inputs are stored alike in any case.

    To ask them to be so would be too much: with plain bounds, each call lets any s > 0 pass.
    """
    calls: dict[Hashable, list[int]] = {}
    for number, bound in binding.clips.items():
        if bound.role.tie is not None:
            calls.setdefault(bound.role.tie, []).append(number)
    tied = {number: binding.clips[number] for group in calls.values() for number in group}
    for group in calls.values():
        first, *others = group
        if not all(may_share_bounds(binding, tied[first], tied[other]) for other in others):
            for number in group:
                del binding.clips[number]
    for group in calls.values():
        first, *others = group
        for number in others if first in binding.clips else ():
            cause = _cause(binding, number, Reason.SHARED)
            left, right = tied[first].labels.reshape(-1), tied[number].labels.reshape(-1)
            binding.system.same(left, right, cause)
    for number, bound in tied.items():
        _lay_clip(binding, number, bound)


def plain_clips(system: System, asked: Sequence[tuple[g.Clip, IntArray]], cause: int) -> None:
    """Ask the bounds of clips to stay as they are, for the variables of each."""
    finite = [
        ({role.lower, role.upper} - {-np.inf, np.inf}, variables) for role, variables in asked
    ]
    bounded = [variables for bounds, variables in finite if bounds]
    scaled = [variables for bounds, variables in finite if bounds - {0.0}]
    if bounded:
        system.no_shift(np.concatenate(bounded), cause)
        system.positive(np.concatenate(bounded), cause)
    if scaled:
        system.plain_scale(np.concatenate(scaled), cause)


def homogeneous(binding: Binding, number: int, inputs: Labels) -> Labels:
    """s_y = s_x > 0, t = 0."""
    cause = _cause(binding, number, Reason.ACTIVATION)
    variables = distinct(inputs[0])
    binding.system.positive(variables, cause)
    binding.system.no_shift(variables, cause)
    return inputs


def maximum(binding: Binding, number: int, role: g.Max, inputs: Labels) -> Labels:
    """s_y = s_x > 0, t_y = t_x, alike for all values that meet."""
    cause = _cause(binding, number, Reason.ACTIVATION)
    merged = _meet(binding, number, inputs[0], role.axes)
    binding.system.positive(distinct(merged), cause)
    out = merged if role.keeps_rank else np.squeeze(merged, axis=role.axes)
    return [out] * len(binding.graph.ops[number].outputs)


def mean(binding: Binding, number: int, role: g.Mean, inputs: Labels) -> Labels:
    """s_y = s_x, t_y = t_x, alike for all values that meet; t = 0 where zeros are counted."""
    merged = _meet(binding, number, inputs[0], role.axes)
    if role.counts_zeros:
        cause = _cause(binding, number, Reason.PADDING)
        binding.system.no_shift(distinct(merged), cause)
    return [merged if role.keeps_rank else np.squeeze(merged, axis=role.axes)]


def _meet(binding: Binding, number: int, labels: IntArray, axes: Sequence[int]) -> IntArray:
    merged, left, right = lab.merge_axes(labels, axes)
    binding.system.same(left, right, _cause(binding, number, Reason.BRANCHES))
    return merged


def total(binding: Binding, number: int, role: g.Sum, inputs: Labels) -> Labels:
    """One s for all operands and the result; t_z = c1*t_1 + c2*t_2 + ..."""
    system = binding.system
    rank = len(_output_shape(binding, number))
    terms = [
        (labels, factor)
        for labels, factor in zip(inputs, role.coefficients, strict=True)
        if factor != 0.0
    ]
    if all(not labels.any() for labels, _ in terms):
        return [lab.pinned(rank)]
    combined = lab.combine([labels for labels, _ in terms])
    if combined is None:
        return _pin_all(binding, number, inputs, Reason.NONLINEAR)
    operands, where, count = combined
    z = system.fresh(count)
    factors = tuple(factor for _, factor in terms)
    binding.open_sums[number] = BoundSum(tuple(operands), factors, z)
    if number not in binding.left_open:
        lay_sum(binding, number)
    return [z[where]]


def lay_sum(binding: Binding, number: int) -> None:
    """The law of a sum that was left open."""
    bound, system = binding.open_sums.pop(number), binding.system
    operands, factors, z = bound.operands, bound.factors, bound.outputs
    count = len(z)
    cause = _cause(binding, number, Reason.BRANCHES)
    for operand in operands:
        system.same_scale(z, operand, cause)
    running, running_factor = operands[0], factors[0]
    for position, (operand, factor) in enumerate(zip(operands[1:], factors[1:], strict=True)):
        last = position == len(operands) - 2
        into = z if last else system.fresh(count)
        row = np.stack([into, running, operand], axis=1)
        system.sums.add(row, np.tile([-1.0, running_factor, factor], (count, 1)), cause)
        running, running_factor = into, 1.0
    if len(operands) == 1:
        system.shift_map(z, running, np.full(count, running_factor), np.zeros(count), cause)


def gate(binding: Binding, number: int, inputs: Labels) -> Labels:
    """s_z = s_x with t = 0, the gate itself stored as it is."""
    system = binding.system
    rank = len(_output_shape(binding, number))
    tensors = binding.graph.ops[number].inputs
    sizes = [int(np.prod(binding.graph.shapes[tensor])) for tensor in tensors]
    stored_plain = [not labels.any() for labels in inputs]
    chosen = 1
    if stored_plain[0] != stored_plain[1]:
        chosen = 0 if stored_plain[0] else 1
    elif sizes[0] < sizes[1]:
        chosen = 0
    cause = _cause(binding, number, Reason.NONLINEAR)
    system.plain(distinct(inputs[chosen]), cause)
    value = inputs[1 - chosen]
    system.no_shift(distinct(value), cause)
    return [value.reshape((1,) * (rank - value.ndim) + value.shape)]


def view(binding: Binding, number: int, role: g.View, inputs: Labels) -> Labels:
    """Labels move as the values do."""
    shapes = [binding.graph.shapes[tensor] for tensor in binding.graph.ops[number].inputs]
    full = [lab.expand(labels, shape) for labels, shape in zip(inputs, shapes, strict=True)]
    return [lab.compress(np.asarray(labels)) for labels in role.apply(full)]


def pad(binding: Binding, number: int, role: g.Pad, inputs: Labels) -> Labels:
    """Added elements hold `value` as it is; across channels they are constants of their own."""
    labels = inputs[0]
    cause = _cause(binding, number, Reason.PADDING)
    for axis, (before, after) in enumerate(zip(role.before, role.after, strict=True)):
        if before <= 0 and after <= 0 and labels.shape[axis] == 1:
            continue
        if labels.shape[axis] == 1:
            _pad_along(binding, role, distinct(labels), cause)
            continue
        labels = _pad_across(binding, role, labels, axis, cause)
    return [labels]


def _pad_along(binding: Binding, role: g.Pad, variables: IntArray, cause: int) -> None:
    """The padding belongs to channels that exist: value must equal s * (value + t)."""
    system = binding.system
    if np.isinf(role.value):
        system.positive(variables, cause)
        return
    system.no_shift(variables, cause)
    if role.value != 0.0:
        system.plain_scale(variables, cause)


def _pad_across(binding: Binding, role: g.Pad, labels: IntArray, axis: int, cause: int) -> IntArray:
    """The padding makes channels of its own; constant 0 has any scale, other values none."""
    system = binding.system
    length = labels.shape[axis]
    start, stop = max(0, -role.before[axis]), length - max(0, -role.after[axis])
    parts = [labels.take(range(start, stop), axis=axis)]
    for amount, place in ((role.before[axis], 0), (role.after[axis], len(parts))):
        if amount <= 0:
            continue
        shape = list(labels.shape)
        shape[axis] = amount
        if role.value == 0.0:
            added = system.fresh(amount)
            system.no_shift(added, cause)
            block = np.broadcast_to(lab.along(int(added[0]), amount, axis, labels.ndim), shape)
        else:
            block = np.zeros(shape, dtype=np.int64)
        parts.insert(0 if place == 0 else len(parts), block)
    return np.concatenate(parts, axis=axis)


def sign(binding: Binding, number: int, role: g.Sign, inputs: Labels) -> Labels:
    """t_x = 0; s_x > 0, or s_x < 0 with s_y = -1 where the op is odd."""
    system = binding.system
    cause = _cause(binding, number, Reason.ACTIVATION)
    variables = distinct(inputs[0])
    system.no_shift(variables, cause)
    if not role.odd:
        system.positive(variables, cause)
        return [lab.pinned(inputs[0].ndim)]
    y = system.fresh(len(variables))
    ones = np.ones(len(y))
    system.magnitude.pin(y, ones, cause)
    system.no_shift(y, cause)
    system.sign.relate(y, variables, ones, np.zeros(len(y)), cause)
    lookup = np.zeros(int(inputs[0].max()) + 1, dtype=np.int64)
    lookup[variables] = y
    return [lookup[inputs[0]]]


def opaque(binding: Binding, number: int, role: g.Opaque, inputs: Labels) -> Labels:
    """(1, 0) on all it touches."""
    return _pin_all(binding, number, inputs, role.reason)


def _pin_all(binding: Binding, number: int, inputs: Labels, reason: Reason) -> Labels:
    cause = _cause(binding, number, reason)
    for labels in inputs:
        binding.system.plain(distinct(labels), cause)
    outputs = binding.graph.ops[number].outputs
    return [lab.pinned(len(binding.graph.shapes[tensor])) for tensor in outputs]


def constant(binding: Binding, number: int, role: g.Constant, inputs: Labels) -> Labels:
    """0 has any scale and no shift; any other constant is stored as it is."""
    system = binding.system
    shape = _output_shape(binding, number)
    if role.value.any():
        return [lab.pinned(len(shape))]
    axis = 1 if len(shape) > 1 else 0
    count = shape[axis] if shape else 1
    fresh = system.fresh(count)
    system.no_shift(fresh, _cause(binding, number, Reason.NONLINEAR))
    return [
        lab.along(int(fresh[0]), count, axis, len(shape))
        if shape and count
        else lab.pinned(len(shape))
    ]
