"""What has to change in the network: the solver's rescalings, op by op.

    linear        W'[o, i] = s_y[o] * W[o, i] / s_x[i]
                  B'[o]    = s_y[o] * (B[o] - sum_i W[o, i, ...] * t_x[i] + t_y[o])
    its centre    W'[o, o] += d[o]                  where a sum of op and input lost its step
    kept affine   a' = s_y * a / s_x                b' = s_y * (b - a * t_x + t_y)
    clip          bounds s * (lower + t), s * (upper + t), exchanged where s < 0

An op that is not in the plan stays as it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from bnfold.core import graph as g
from bnfold.core.affine import Affine, FloatArray
from bnfold.core.binding import BoundAffine, BoundClip, BoundLinear
from bnfold.core.blame import Obstacle
from bnfold.core.choose import Values
from bnfold.core.forest import IntArray, each_once
from bnfold.core.labels import compress
from bnfold.core.laws import editable
from bnfold.core.modes import ClipMode
from bnfold.core.reasons import Reason
from bnfold.core.removal import Solution
from bnfold.core.shortcut_law import BoundShortcut, additions
from bnfold.core.solver import solve
from bnfold.core.trace import beside, taken_in

_NEGLIGIBLE = 1e-13
"""A scale this close to 1 is 1: the rest is rounding of the solver's own arithmetic."""

_MUCH_SMALLER = 2.0**-3
"""An input that is scaled by less takes the mean of its BatchNorm along."""


@dataclass(frozen=True, slots=True, eq=False)
class LinearEdit:
    """The rescaling of a linear op's channels."""

    input_inverse: FloatArray
    """1/s_x, (in_channels,); 0 where the input channel is a constant that t_x holds."""
    input_shift: FloatArray
    """t_x, (in_channels,)"""
    output_scale: FloatArray
    """s_y, (out_channels,)"""
    output_shift: FloatArray
    """t_y, (out_channels,)"""
    zeroed: NDArray[np.bool_]
    """Output channels whose weights and bias are taken as 0, (out_channels,)"""
    centre: tuple[int, ...] | None = None
    """The tap, an index per kernel axis, that takes `added`."""
    added: FloatArray | None = None
    """What each output holds besides of the stored input at its own place, (out_channels,)."""

    @property
    def rescales(self) -> bool:
        """Whether the weight changes."""
        return bool(
            (self.output_scale != 1.0).any()
            or (self.input_inverse != 1.0).any()
            or self.zeroed.any()
            or self.added is not None
        )

    @property
    def needs_bias(self) -> bool:
        """Whether an op without bias may need one."""
        return bool(self.input_shift.any() or self.output_shift.any())


@dataclass(frozen=True, slots=True, eq=False)
class AffineEdit:
    """New constants of an affine step that stays, of the shape of `AffineStep.scale`."""

    scale: FloatArray
    shift: FloatArray
    input_scale: FloatArray
    """s_x, of the same shape."""
    input_shift: FloatArray
    """t_x, of the same shape."""

    def moved_mean(self, mean: FloatArray) -> FloatArray:
        """What a BatchNorm is to subtract from its stored input, (channels,).

        Any mean will do, as beta makes up for it. But an input that is stored much smaller than it
        is would lose its digits beside the old one, so there the mean moves with the input.
        """
        scale = self.input_scale.reshape(-1)
        if (np.abs(scale) >= _MUCH_SMALLER).all():
            return mean
        return scale * (mean + self.input_shift.reshape(-1))

    def of_batchnorm(
        self, mean: FloatArray, deviation: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """The new gamma and beta of a BatchNorm, (channels,) each."""
        new = Affine(self.scale.reshape(-1), self.shift.reshape(-1))
        return new.as_batchnorm(mean, deviation)


@dataclass(frozen=True, slots=True, eq=False)
class ClipEdit:
    """Bounds per element, broadcastable to the clipped tensor."""

    lower: FloatArray
    upper: FloatArray

    def fits(self, largest: float) -> bool:
        """Whether the bounds fit a dtype: none becomes infinite that was not."""
        bounds = np.concatenate([self.lower.reshape(-1), self.upper.reshape(-1)])
        return bool((np.abs(bounds[np.isfinite(bounds)]) <= largest).all())


@dataclass(slots=True)
class Plan:
    """All decisions about a network, by op number."""

    linear: dict[int, LinearEdit] = field(default_factory=dict)
    affine: dict[int, AffineEdit] = field(default_factory=dict)
    clip: dict[int, ClipEdit] = field(default_factory=dict)
    removed: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Removed affine steps, with the names of the ops that took them in."""
    kept: dict[int, Obstacle] = field(default_factory=dict)
    """Affine steps that stay, with the reason."""
    solution: Solution | None = None
    """Where the decisions come from."""
    clip_mode: ClipMode = "auto"
    """Whether activations could get bounds per channel."""

    @property
    def clipped(self) -> list[int]:
        """One op for each activation that changes: the first call where a module has several."""
        first: dict[Hashable, int] = {}
        for number in self.clip:
            assert self.solution is not None
            tie = self.solution.binding.clips[number].role.tie
            first.setdefault(("alone", number) if tie is None else ("tie", tie), number)
        return [*first.values()]

    def is_rescaled(self, tensor: int) -> bool:
        """Whether a tensor of the network is stored otherwise than it is."""
        assert self.solution is not None
        variables = np.unique(compress(self.solution.binding.labels[tensor]))
        return bool(_is_rescaled(self.solution.values, variables).any())


def make_plan(
    graph: g.Graph,
    *,
    clip: ClipMode = "auto",
    banned: Mapping[int, Obstacle] | None = None,
) -> Plan:
    """Decide for a network; `banned` affine steps stay for the reason given."""
    solution = solve(graph, clip=clip, banned=banned)
    plan = Plan(solution=solution, kept=dict(solution.kept), clip_mode=clip)
    binding, values = solution.binding, _snap(solution.values)
    zeroed = _zeroed_channels(solution.zeroed)
    gone = set(solution.removed)
    added: dict[int, FloatArray] = {}
    for shortcut in solution.shortcuts:
        added |= additions(binding, shortcut, values, gone)
    for number, linear in binding.linear.items():
        edit = _linear_edit(linear, values, zeroed.get(number, []))
        if number in added:
            edit = replace(edit, centre=linear.role.centre, added=added[number])
        if edit.rescales or edit.needs_bias:
            plan.linear[number] = edit
    for number, step in binding.affine.items():
        if number not in gone:
            _plan_affine(plan, number, step, values)
    first: dict[Hashable, BoundClip] = {}
    for number, clipped in binding.clips.items():
        # All calls of a module store alike, but for rounding.
        tie = clipped.role.tie
        bound = clipped if tie is None else first.setdefault(tie, clipped)
        if number not in solution.plain:
            _plan_clip(plan, number, bound, values)
    edited = [*plan.linear, *plan.affine]
    if solution.removed:
        plan.removed = taken_in(solution, values, edited)
    for shortcut in solution.shortcuts:
        into = graph.names(number for number in added if number in _taps(shortcut))
        into = into or beside(binding, edited, shortcut.outputs, graph.ops[shortcut.shortcut.root])
        plan.removed |= dict.fromkeys(shortcut.shortcut.steps, into)
    return plan


def _taps(bound: BoundShortcut) -> set[int]:
    """The linear ops whose taps may make up for what a shortcut lost."""
    return {term.tap.linear for term in bound.shortcut.terms if term.tap is not None}


def ban_overflow(plan: Plan, ops: Sequence[int]) -> dict[int, Obstacle]:
    """The removed affine steps behind edits that do not fit their dtype, to be banned."""
    assert plan.solution is not None
    binding = plan.solution.binding
    banned: dict[int, Obstacle] = {}
    for number in ops:
        obstacle = Obstacle(Reason.OVERFLOW, binding.graph.ops[number].name)
        touched = binding.touched(number)
        touched = touched[_is_rescaled(plan.solution.values, touched)]
        steps = (
            _steps_beside(plan, number, touched)
            or _steps_behind(plan, touched, pinned=False)
            or _steps_behind(plan, touched, pinned=True)
        )
        for step in steps:
            banned.update(dict.fromkeys(binding.groups[step], obstacle))
    return banned


def _steps_beside(plan: Plan, number: int, touched: IntArray) -> list[int]:
    """The steps of the shortcuts that a linear op makes up for, or whose sum it reads."""
    assert plan.solution is not None
    steps: list[int] = []
    for bound in plan.solution.shortcuts:
        if number in _taps(bound) or np.isin(bound.outputs, touched).any():
            steps += bound.shortcut.steps
    return steps


def _is_rescaled(values: Values, variables: IntArray) -> NDArray[np.bool_]:
    plain = np.abs(values.scale[variables] - 1.0) <= _NEGLIGIBLE
    return np.asarray(~plain | (values.inverse[variables] == 0) | (values.shift[variables] != 0))


def _steps_behind(plan: Plan, touched: IntArray, *, pinned: bool) -> list[int]:
    """The removed steps that share a variable or a class with these variables.

    The class of what is stored as it is counts only with `pinned`: everything may be in it.
    """
    assert plan.solution is not None
    binding = plan.solution.binding
    forests = (binding.system.magnitude, binding.system.shift)
    classes = [each_once(forest.roots(touched)) for forest in forests]
    steps = []
    for step in plan.removed:
        own = binding.affine[step]
        variables = np.concatenate([own.inputs, own.outputs])
        shared = np.isin(variables, touched).any()
        for forest, roots in zip(forests, classes, strict=True):
            common = roots if pinned else roots[roots != 0]
            shared |= np.isin(forest.roots(variables), common).any()
        if shared:
            steps.append(step)
    return steps


def _snap(values: Values) -> Values:
    near = np.abs(np.abs(values.scale) - 1.0) <= _NEGLIGIBLE
    scale = np.where(near, np.sign(values.scale), values.scale)
    inverse = np.where(near & (values.inverse != 0), scale, values.inverse)
    return Values(scale, inverse, values.shift)


def _zeroed_channels(pairs: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    channels: dict[int, list[int]] = {}
    for number, channel in pairs:
        channels.setdefault(number, []).append(channel)
    return channels


def _linear_edit(bound: BoundLinear, values: Values, zeroed: list[int]) -> LinearEdit:
    mask = np.zeros(len(bound.outputs), dtype=bool)
    mask[zeroed] = True
    return LinearEdit(
        values.inverse[bound.inputs],
        values.shift[bound.inputs],
        values.scale[bound.outputs],
        values.shift[bound.outputs],
        mask,
    )


def _plan_affine(plan: Plan, number: int, bound: BoundAffine, values: Values) -> None:
    role = bound.role
    scale = role.scale.reshape(-1).copy()
    shift = role.shift.reshape(-1).copy()
    s_y, inverse = values.scale[bound.outputs], values.inverse[bound.inputs]
    moved = bound.shift - bound.scale * values.shift[bound.inputs] + values.shift[bound.outputs]
    # What cannot be edited does not change, by law; in floating point it nearly does not.
    edits_scale, edits_shift = editable(bound)
    if edits_scale:
        scale[bound.parameter] = s_y * bound.scale * inverse
    if edits_shift:
        shift[bound.parameter] = s_y * moved
    if (scale == role.scale.reshape(-1)).all() and (shift == role.shift.reshape(-1)).all():
        return
    input_scale, input_shift = np.ones(len(scale)), np.zeros(len(scale))
    input_scale[bound.parameter] = values.scale[bound.inputs]
    input_shift[bound.parameter] = values.shift[bound.inputs]
    parts = (scale, shift, input_scale, input_shift)
    plan.affine[number] = AffineEdit(*(part.reshape(role.scale.shape) for part in parts))


def _plan_clip(plan: Plan, number: int, bound: BoundClip, values: Values) -> None:
    role = bound.role
    s, t = values.scale[bound.labels], values.shift[bound.labels]
    first, second = s * (role.lower + t), s * (role.upper + t)
    lower, upper = np.minimum(first, second), np.maximum(first, second)
    if (lower == role.lower).all() and (upper == role.upper).all():
        return
    plan.clip[number] = ClipEdit(lower, upper)
