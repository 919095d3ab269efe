"""Brute force over the graph that a network was lifted into: was everything removed that can be?

The laws are written down once more, for every element of every tensor, as three dense systems:
log|s| (linear), the sign of s (linear over {0, 1}) and t (linear). What was removed must have a
solution, and with any step that was kept it must have none. Elements that a law makes equal share
one unknown. Not modelled, so not asked about: gammas of 0, one BatchNorm called twice, fixed and
binary weights.
"""

from __future__ import annotations

from collections.abc import Set

import numpy as np
from numpy.typing import NDArray

from bnfold.core import graph as g
from tests.property.test_maximal import Equations

Ids = NDArray[np.int64]


def is_modelled(graph: g.Graph) -> bool:
    """Whether the laws of all ops are here."""
    for op in graph.ops:
        role = op.role
        if isinstance(role, g.AffineStep) and ((role.scale == 0).any() or role.tie is not None):
            return False
        if isinstance(role, g.Linear) and (
            role.weight is not g.Weight.FREE or not role.bias_editable
        ):
            return False
        if isinstance(role, g.Sign | g.Constant | g.RefusedStep):
            return False
    return True


class ElementEquations(Equations):
    """The laws under a set of removals; `tensors` holds the unknown of every element."""

    def __init__(self, graph: g.Graph, removed: Set[int]) -> None:
        self.graph = graph
        self.parent: list[int] = []
        self.magnitude, self.sign, self.shift = [], [], []
        self.tensors: dict[int, Ids] = {}
        self.ties: dict[object, tuple[Ids, Ids]] = {}
        self.removed = removed
        self.pinned_id = int(self.fresh((1,))[0])
        self.pin(np.array([self.pinned_id]))
        for tensor, shape in enumerate(graph.shapes):  # what no op makes is stored as it is
            self.tensors[tensor] = np.full(shape, self.pinned_id)
        for number, op in enumerate(graph.ops):
            for tensor, ids in zip(op.outputs, self.outputs(number, op), strict=True):
                self.tensors[tensor] = np.asarray(ids)
        for tensor, _, _ in graph.outputs:
            self.pin(self.tensors[tensor])
        self.first = np.array([0, len(self.parent)])

    def fresh(self, shape: tuple[int, ...]) -> Ids:
        start = len(self.parent)
        count = int(np.prod(shape))
        self.parent += range(start, start + count)
        return np.arange(start, start + count).reshape(shape)

    def equal(self, one: Ids, other: Ids) -> None:
        """One s and one t for both."""
        pairs = np.stack([part.reshape(-1) for part in np.broadcast_arrays(one, other)], axis=1)
        for left, right in np.unique(pairs, axis=0).tolist():
            if left != right:
                self.magnitude.append(({left: 1.0, right: -1.0}, 0.0))
                self.sign.append(({left: 1.0, right: 1.0}, 0.0))
                self.shift.append(({left: 1.0, right: -1.0}, 0.0))

    def positive_ids(self, ids: Ids) -> None:
        self.sign += [({one: 1.0}, 0.0) for one in np.unique(ids).tolist()]

    def unshifted(self, ids: Ids) -> None:
        self.shift += [({one: 1.0}, 0.0) for one in np.unique(ids).tolist()]

    def unscaled(self, ids: Ids) -> None:
        self.positive_ids(ids)
        self.magnitude += [({one: 1.0}, 0.0) for one in np.unique(ids).tolist()]

    def pin(self, ids: Ids) -> None:
        self.unscaled(ids)
        self.unshifted(ids)

    def meet(self, ids: Ids, axes: tuple[int, ...]) -> Ids:
        """All values along the axes are stored alike."""
        head = ids[tuple(slice(0, 1) if a in axes else slice(None) for a in range(ids.ndim))]
        self.equal(ids, head)
        return head

    def outputs(self, number: int, op: g.Op) -> list[Ids]:
        role, inputs = op.role, [self.tensors[tensor] for tensor in op.inputs]
        shapes = [self.graph.shapes[tensor] for tensor in op.outputs]
        if isinstance(role, g.Linear):
            return [self.linear(role, inputs[0], shapes[0])]
        if isinstance(role, g.AffineStep):
            return [self.affine(number, role, inputs[0])]
        if isinstance(role, g.View):
            return [np.asarray(ids) for ids in role.apply(inputs)]
        if isinstance(role, g.Sum):
            return [self.total(role, inputs, shapes[0])]
        if isinstance(role, g.Gate):
            return [self.gate(inputs, shapes[0])]
        if isinstance(role, g.Pad):
            return [self.pad(role, inputs[0])]
        if isinstance(role, g.Max | g.Mean):
            head = self.meet(inputs[0], role.axes)
            if isinstance(role, g.Max):
                self.positive_ids(head)
            elif role.counts_zeros:
                self.unshifted(head)
            head = head if role.keeps_rank else np.squeeze(head, axis=role.axes)
            return [np.broadcast_to(head, shape) for shape in shapes]
        if isinstance(role, g.Clip | g.Homogeneous):
            if isinstance(role, g.Homogeneous) or not role.room:
                self.positive_ids(inputs[0])
                self.unshifted(inputs[0])
            if isinstance(role, g.Clip) and not role.room and {role.lower, role.upper} - {
                0.0, np.inf, -np.inf,
            }:  # fmt: skip
                self.unscaled(inputs[0])
            return inputs
        assert isinstance(role, g.Opaque)
        for ids in inputs:
            self.pin(ids)
        return [np.full(shape, self.pinned_id) for shape in shapes]

    def linear(self, role: g.Linear, x: Ids, shape: tuple[int, ...]) -> Ids:
        others = tuple(a for a in range(x.ndim) if a != role.in_axis)
        head = self.meet(x, others).reshape(-1)
        if role.crosses_zeros:
            self.unshifted(head)
        y = self.fresh((role.out_channels,))
        if role.tie is not None:
            first = self.ties.setdefault(role.tie, (head, y))
            self.equal(first[0], head)
            self.equal(first[1], y)
        layout = [1] * len(shape)
        layout[role.out_axis] = role.out_channels
        return np.broadcast_to(y.reshape(layout), shape)

    def affine(self, number: int, role: g.AffineStep, x: Ids) -> Ids:
        scale, shift = (np.broadcast_to(part, x.shape) for part in (role.scale, role.shift))
        place = np.arange(role.scale.size).reshape(role.scale.shape)
        rows = [part.reshape(-1) for part in (x, np.broadcast_to(place, x.shape))]
        pairs, where = np.unique(np.stack(rows, axis=1), axis=0, return_inverse=True)
        y = self.fresh((len(pairs),))
        a, b = role.scale.reshape(-1)[pairs[:, 1]], role.shift.reshape(-1)[pairs[:, 1]]
        assert scale.shape == shift.shape
        if number in self.removed:
            for i, o, factor, summand in zip(pairs[:, 0], y, a, b, strict=True):
                self.scaled(int(i), int(o), float(factor))
                self.shift.append(({int(o): 1.0, int(i): -factor}, -summand))
        else:
            self.stays(role, pairs, y, a, b)
        return y[where.reshape(-1)].reshape(x.shape)

    def stays(self, role: g.AffineStep, pairs: Ids, y: Ids, a: NDArray, b: NDArray) -> None:
        edits_scale = role.factors is g.Parameter.EDITABLE
        edits_shift = role.summands is g.Parameter.EDITABLE
        if edits_scale != edits_shift and len(np.unique(pairs[:, 1])) < len(pairs):
            edits_scale = edits_shift = False  # a mere product, or sum, is left as it is
        for place in np.unique(pairs[:, 1]) if edits_scale or edits_shift else ():
            same = pairs[:, 1] == place  # one constant, one edit
            self.equal(pairs[same, 0], pairs[same, 0][:1])
            self.equal(y[same], y[same][:1])
        for i, o, factor, summand in zip(pairs[:, 0], y, a, b, strict=True):
            if not edits_scale:
                self.scaled(int(i), int(o), 1.0)
            if not edits_shift:
                self.shift.append(({int(o): 1.0, int(i): -factor}, 0.0))
                if summand:
                    self.unscaled(np.array([o]))

    def scaled(self, left: int, right: int, factor: float) -> None:
        self.same_scale(left, right, factor)

    def total(self, role: g.Sum, inputs: list[Ids], shape: tuple[int, ...]) -> Ids:
        full = [np.broadcast_to(ids, shape).reshape(-1) for ids in inputs]
        rows, where = np.unique(np.stack(full, axis=1), axis=0, return_inverse=True)
        z = self.fresh((len(rows),))
        for row, o in zip(rows.tolist(), z.tolist(), strict=True):
            equation = {o: -1.0}
            for i, factor in zip(row, role.coefficients, strict=True):
                self.same_scale(i, o, 1.0)
                equation[i] = equation.get(i, 0.0) + factor
            self.shift.append((equation, 0.0))
        return z[where.reshape(-1)].reshape(shape)

    def gate(self, inputs: list[Ids], shape: tuple[int, ...]) -> Ids:
        plain = [bool((ids == self.pinned_id).all()) for ids in inputs]
        chosen = int(inputs[0].size >= inputs[1].size)
        if plain[0] != plain[1]:
            chosen = 0 if plain[0] else 1
        self.pin(inputs[chosen])
        self.unshifted(inputs[1 - chosen])
        return np.broadcast_to(inputs[1 - chosen], shape)

    def pad(self, role: g.Pad, ids: Ids) -> Ids:
        for axis, (before, after) in enumerate(zip(role.before, role.after, strict=True)):
            start, stop = max(0, -before), ids.shape[axis] - max(0, -after)
            if before > 0 or after > 0:  # space: the channels are those that exist
                head = self.meet(ids, (axis,))
                self.unshifted(head)
                if role.value:
                    self.unscaled(head)
                size = ids.shape[axis] + before + after
                shape = (*ids.shape[:axis], size, *ids.shape[axis + 1 :])
                ids = np.broadcast_to(head, shape)
            else:
                ids = ids.take(range(start, stop), axis=axis)
        return ids
