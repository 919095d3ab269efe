"""A network whose transposes are copies, for merging: a tensor has the axes of what it is made of.

    y = transpose(conv(transpose(x)))      y has the axes of x, and conv has its channels where
                                           they lie in x

A frontend that writes a merge asks how a tensor lies, and transposes what the carrier is to read,
and what it makes. That is never more often than before: where the axes of the two ends differ, what
lay between moved them, and it is gone.

Followed are transposes through linear ops, affine steps, sums, concats, copies and activations.
What else reads a tensor that lies otherwise sees another one, with its own axes, and nothing is
merged across that; so does a sum some of whose operands lie otherwise than most. What nobody looks
into makes a tensor that lies as the one it reads, so that it meets what was made beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.expression import Part, is_same
from bnfold.core.reasons import Reason

Order = tuple[int, ...]
"""Axis i of a tensor as it lies is axis order[i] of the graph's."""


@dataclass(slots=True)
class Unmoved:
    """The graph and its parts, numbered as they were."""

    graph: g.Graph
    parts: dict[int, Part]
    orders: dict[int, Order] = field(default_factory=dict)
    """Of the tensors that lie otherwise."""
    plain: dict[tuple[int, Order], int] = field(default_factory=dict)
    """The tensors that stand for others, where somebody takes those to lie in an order."""

    def order(self, tensor: int) -> Order:
        """How a tensor lies."""
        return self.orders.get(tensor) or tuple(range(len(self.graph.shapes[tensor])))

    def moved(self, source: int, target: int) -> Order | None:
        """What transposes a tensor so that it lies as another one; None if it does."""
        have, wanted = self.order(source), self.order(target)
        return None if have == wanted else tuple(have.index(axis) for axis in wanted)


def unmoved(graph: g.Graph, parts: Mapping[int, Part], moves: Mapping[int, Order]) -> Unmoved:
    """The network with the moves, permutations by the number of the op, as copies."""
    made = Unmoved(
        g.Graph([*graph.shapes], [*graph.ops], graph.inputs, [*graph.outputs]), {**parts}
    )
    for number, op in enumerate(graph.ops if moves else ()):
        orders = {made.order(tensor) for tensor in op.inputs}
        order = next(iter(orders), ())
        lies_plain = all(tensor not in made.orders for tensor in op.inputs)
        if number in moves:
            order = tuple(order[axis] for axis in moves[number])
            made.graph.ops[number] = replace(op, role=_copy(op.role))
        elif lies_plain:
            continue
        else:
            if len(orders) > 1 and _puts_together(op.role) and len({*map(len, orders)}) == 1:
                order = max(sorted(orders), key=[*map(made.order, op.inputs)].count)
                op = replace(op, inputs=tuple(_as(made, graph, t, order) for t in op.inputs))
                orders = {order}
            if len(orders) > 1 or not _follow(made, number, op, order):
                plain = [(t, tuple(range(len(graph.shapes[t])))) for t in op.inputs]
                read = tuple(_as(made, graph, tensor, lies) for tensor, lies in plain)
                made.graph.ops[number] = replace(op, inputs=read)
                # What nobody looks into may have its axes in any turn.
                is_dark = number not in parts and isinstance(op.role, g.Opaque | g.Max | g.Mean)
                lengths = {len(graph.shapes[tensor]) for tensor in op.outputs}
                if not is_dark or lengths != {len(order)}:
                    continue
        for tensor in op.outputs:
            _lay(made, graph.shapes[tensor], tensor, order)
    return made


def _copy(role: g.Role) -> g.View:
    assert isinstance(role, g.View)
    return replace(role, is_copy=True)


def _follow(made: Unmoved, number: int, op: g.Op, order: Order) -> bool:
    """State an op in the axes of what it reads; False if it has to read that as it lies."""
    role, rank = op.role, len(order)
    if any(len(made.graph.shapes[tensor]) != rank for tensor in op.outputs):
        return False
    if number in made.parts:
        part = made.parts[number]
        if part.window is not None and not _keeps_space(part.axis, order):
            return False
        made.parts[number] = replace(part, axis=order[part.axis])
    elif isinstance(role, g.AffineStep):
        scale, shift = (_moved(constants, order) for constants in (role.scale, role.shift))
        role = replace(role, scale=scale, shift=shift, spread=None, center=None)
    elif isinstance(role, g.View) and role.concat is not None:
        role = replace(role, concat=order[role.concat])
    elif isinstance(role, g.Homogeneous):
        if role.negative is not None and role.negative.size > 1 and not is_same(role):
            return False
    elif not isinstance(role, g.Sum | g.Clip) and not is_same(role):
        return False
    made.graph.ops[number] = replace(op, role=role)
    return True


def _keeps_space(axis: int, order: Order) -> bool:
    """Whether what lies behind the first axis, channels aside, does so in turn."""
    space = [place for at, place in enumerate(order) if at not in (0, axis)]
    return order[0] == 0 and space == sorted(space)


def _moved(constants: FloatArray, order: Order) -> FloatArray:
    """What broadcasts to a tensor, for its axes in the graph."""
    full = constants.reshape((1,) * (len(order) - constants.ndim) + constants.shape)
    return full.transpose(np.argsort(order))


def _puts_together(role: g.Role) -> bool:
    return isinstance(role, g.Sum) or (isinstance(role, g.View) and role.concat is not None)


def _as(made: Unmoved, graph: g.Graph, tensor: int, order: Order) -> int:
    """A tensor that lies in this order; another one if it does not: nothing is merged across it."""
    if made.order(tensor) == order:
        return tensor
    if (tensor, order) not in made.plain:
        made.graph.output(tensor, "", Reason.NONLINEAR)
        own = made.plain[tensor, order] = made.graph.tensor(graph.shapes[tensor])
        _lay(made, graph.shapes[tensor], own, order)
    return made.plain[tensor, order]


def _lay(made: Unmoved, shape: tuple[int, ...], tensor: int, order: Order) -> None:
    """Note how a tensor of this shape lies."""
    if order == tuple(range(len(order))):
        return
    made.orders[tensor] = order
    lengths = dict(zip(order, shape, strict=True))
    made.graph.shapes[tensor] = tuple(lengths[axis] for axis in range(len(order)))
