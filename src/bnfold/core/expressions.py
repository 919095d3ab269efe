"""The expressions of a network: what each tensor is as a linear op of earlier ones.

    affine step, linear op     of an expression               is an expression     (chain)
    copy                       of an expression               is that expression
    what it makes of zeros     around an expression           is an expression     (chain)
    sum                        of expressions of one source   is an expression     (sum)

where nobody else reads what lies between, or all who do meet in one sum, as in `a + w * (b - a)`:
its operands share `a` until then. A weight that is shared, a step that has to stay, and whatever is
not linear end an expression: what they make is a source, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from bnfold.core import graph as g
from bnfold.core.expression import (
    Border,
    Build,
    Expression,
    Freedom,
    Part,
    Share,
    is_free,
    is_same,
    varying_axes,
)
from bnfold.core.kernel import Kernel, added, behind
from bnfold.core.window import Window, chained, joint

_MOST_SOURCES = 8
"""How many of the sources of a tensor are looked at, the nearest ones."""


@dataclass(slots=True)
class Expressions:
    """Of the tensors of a network."""

    graph: g.Graph
    parts: Mapping[int, Part]
    freedom: Freedom
    makers: dict[int, int] = field(default_factory=dict)
    """Number of the op that makes a tensor."""
    readings: dict[int, int] = field(default_factory=dict)
    """How often a tensor is read; more than once where somebody outside does."""
    shared: set[int] = field(default_factory=set)
    """Tensors that several read, all of whom may be in one expression."""
    by_tensor: dict[int, list[Expression]] = field(default_factory=dict)
    """Per tensor, the nearest source first; that it is itself is not among them."""

    @classmethod
    def of(cls, graph: g.Graph, parts: Mapping[int, Part], freedom: Freedom) -> Expressions:
        """All of a network."""
        self = cls(graph, parts, freedom)
        for number, op in enumerate(graph.ops):
            self.makers |= dict.fromkeys(op.outputs, number)
            for tensor in op.inputs:
                self.readings[tensor] = self.readings.get(tensor, 0) + 1
        for tensor, _, _ in graph.outputs:
            self.readings[tensor] = self.readings.get(tensor, 0) + 2
        self.shared = self._shared()
        alone = {number for number, calls in graph.affine_groups().items() if len(calls) == 1}
        for number, op in enumerate(graph.ops):
            if made := self._made_by(number, op, alone):
                self.by_tensor[op.outputs[0]] = made
        return self

    def _shared(self) -> set[int]:
        """Tensors that several read, each of them as a part, a step, a copy or a sum does."""
        alone = {*self.freedom.ends, *(tensor for tensor, _, _ in self.graph.outputs)}
        for number, op in enumerate(self.graph.ops):
            is_linear = isinstance(op.role, g.Sum | g.AffineStep) or number in self.parts
            if not (is_linear or is_same(op.role)):
                alone.update(op.inputs)
        return {t for t, reads in self.readings.items() if reads > 1 and t not in alone}

    def seen(self, tensor: int) -> list[Expression]:
        """What an op that reads the tensor may build on: first, that it is itself."""
        own = Expression(tensor, _build_identity)
        return [own, *self.further(own, tensor)]

    def further(self, near: Expression, output: int) -> list[Expression]:
        """The same tensor as an expression of earlier sources, where nobody else reads the one.

        Or where others do that may meet it in a sum: they share it.
        """
        if not near.is_whole:
            return []
        inner = self.by_tensor.get(near.source, ())[: _MOST_SOURCES - 1]
        is_own = self.is_own(near.source, near.reads)
        if not is_own:
            inner = inner if near.source in self.shared else []
        made = ((e, self._chain(e, near, output)) for e in inner)
        return [
            whole if is_own else replace(whole, shares={near.source: Share(near.reads, e)})
            for e, whole in made
            if whole is not None
        ]

    def is_own(self, tensor: int, reads: int) -> bool:
        """Whether a tensor is read so often and no more, and merges may cross it."""
        return self.readings.get(tensor) == reads and tensor not in self.freedom.ends

    def is_part(self, number: int) -> bool:
        """Whether an op can be merged: who carries nothing may have a weight that is computed."""
        part = self.parts.get(number)
        return part is not None and (is_free(self.graph.ops[number].role) or not part.carries)

    def are_alike(self, tensors: Iterable[int], output: int) -> bool:
        """Whether no operand of a sum is broadcast."""
        return all(self.graph.shapes[tensor] == self.graph.shapes[output] for tensor in tensors)

    def _made_by(self, number: int, op: g.Op, alone: set[int]) -> list[Expression]:
        role, near = op.role, None
        if isinstance(role, g.Sum):
            return self._sums(number, op, role)
        if not self.freedom.can_go(number):
            return []
        part = self.parts.get(number)
        if part is not None and part.border is not None:
            return self._bordered(part.border, self._part(number, op), op.outputs[0])
        if self.is_part(number):
            near = self._part(number, op)
        elif isinstance(role, g.AffineStep) and number in alone and _is_constant(role):
            near = self._step(number, op, role)
        elif is_same(role):
            near = Expression(op.inputs[0], _build_identity, ops=frozenset((number,)))
        return [] if near is None else [near, *self.further(near, op.outputs[0])]

    def _part(self, number: int, op: g.Op) -> Expression:
        part, output = self.parts[number], op.outputs[0]
        width = part.in_channels // part.groups
        cost = self._cost(part.window, width, part.out_channels, op.inputs[0], output, part.axis)
        cost *= part.multiplies
        size = part.out_channels * width * _taps(part.window) * part.is_stored
        return Expression(
            op.inputs[0],
            part.kernel,
            part.window,
            part.axis,
            part.groups,
            part.bias is not None and bool(np.any(part.bias())),
            frozenset((number,)),
            frozenset((part.dtype,)),
            cost,
            cost,
            size,
            size,
        )

    def _bordered(self, border: Border, pad: Expression, output: int) -> list[Expression]:
        """b around W x + b is W x + b of an x with zeros around it."""
        found: dict[int, Expression] = {}
        for inner in self.by_tensor.get(pad.source, ()) if self.is_own(pad.source, 1) else ():
            whole = self._chain(replace(inner, shifts=False), pad, output)
            if whole is None or whole.axis is None or whole.window is None:
                continue
            channels, rank = self.channels(inner.source, whole.axis), len(whole.window.kernel)
            if border.is_made_of_zeros(inner.build(channels, rank)):
                near = replace(whole, shifts=inner.shifts)
                for made in (near, *self.further(near, output)):
                    found.setdefault(made.source, made)
        return [*found.values()]

    def _step(self, number: int, op: g.Op, role: g.AffineStep) -> Expression | None:
        shape = self.graph.shapes[op.outputs[0]]
        axes = varying_axes(role, len(shape))
        if len(axes) > 1:
            return None
        return Expression(
            op.inputs[0],
            partial(_build_step, role),
            axis=axes[0] if axes else None,
            shifts=bool(role.shift.any()),
            ops=frozenset((number,)),
            cost=math.prod(shape),
            parts_cost=math.prod(shape),
        )

    def _chain(self, inner: Expression, outer: Expression, output: int) -> Expression | None:
        """One behind the other, if that is one op."""
        if outer.is_identity:
            return inner
        axes = {inner.axis, outer.axis} - {None}
        dtypes = inner.dtypes | outer.dtypes
        if len(axes) > 1 or len(dtypes) > 1:
            return None
        window = outer.window or inner.window
        if inner.window is not None and outer.window is not None:
            window = chained(inner.window, outer.window, inner_shifts=inner.shifts)
            if window is None:
                return None
        elif inner.shifts and outer.window is not None and outer.window.sees_fewer:
            return None
        # An affine step leaves the groups as they are.
        groups = math.gcd(inner.groups, outer.groups)
        return self._one_op(
            inner.source,
            output,
            partial(_build_chain, inner.build, outer.build, window),
            window,
            next(iter(axes), None),
            groups,
            [inner, outer],
            reads=inner.reads,
            is_chain=bool(inner.dtypes),
            shares=inner.shares,
        )

    def _one_op(
        self,
        source: int,
        output: int,
        build: Build,
        window: Window | None,
        axis: int | None,
        groups: int,
        made_of: Sequence[Expression],
        *,
        reads: int,
        shares: Mapping[int, Share],
        is_chain: bool = False,
    ) -> Expression:
        """Several expressions as one, and what that costs."""
        dtypes = frozenset[str]().union(*(e.dtypes for e in made_of))
        outs = width = 1
        if axis is not None:
            ins, outs = self.channels(source, axis), self.channels(output, axis)
            width = ins // groups if groups else 1
        return Expression(
            source,
            build,
            window,
            axis,
            groups,
            any(e.shifts for e in made_of),
            frozenset[int]().union(*(e.ops for e in made_of)),
            dtypes,
            self._cost(window, width, outs, source, output, axis),
            sum(e.least for e in made_of),
            outs * width * _taps(window) if dtypes else 0,
            sum(e.parts_size for e in made_of),
            reads,
            is_chain,
            shares,
        )

    def _sums(self, number: int, op: g.Op, role: g.Sum) -> list[Expression]:
        """A sum all of whose operands are expressions of one source."""
        if not self.are_alike(op.inputs, op.outputs[0]):
            return []
        seen = [{e.source: e for e in self.seen(tensor)} for tensor in op.inputs]
        sums = []
        for source in seen[0]:
            if not all(source in by_source for by_source in seen):
                continue
            operands = [by_source[source] for by_source in seen]
            whole = self.sum(operands, role.coefficients, op.outputs[0])
            if whole is not None:
                near = replace(whole, ops=whole.ops | {number})
                sums += [near, *self.further(near, op.outputs[0])]
        # Of a single operand each source is found through the nearer ones, too.
        return [*{e.source: e for e in reversed(sums)}.values()][::-1]

    def sum(
        self, operands: Sequence[Expression], coefficients: Sequence[float], output: int
    ) -> Expression | None:
        """The sum of expressions of one source, if it is one op."""
        axes = {e.axis for e in operands} - {None}
        dtypes = frozenset().union(*(e.dtypes for e in operands))
        if len(axes) > 1 or len(dtypes) > 1:
            return None
        if not np.isfinite(coefficients).all():
            return None
        windows = [e.window for e in operands]
        ranks = {len(window.kernel) for window in windows if window is not None}
        window = None
        if ranks:
            plain = Window.pointwise(min(ranks))
            window = joint([own or plain for own in windows])
            if window is None:
                return None
        weighted = [(e.build, c) for e, c in zip(operands, coefficients, strict=True)]
        shares, again = self.together(operands)
        whole = self._one_op(
            operands[0].source,
            output,
            partial(_build_sum, weighted),
            window,
            next(iter(axes), None),
            math.gcd(*(e.groups for e in operands)),
            operands,
            reads=sum(e.reads for e in operands) - sum(e.reads for e in again),
            shares=shares,
        )
        return replace(
            whole,
            parts_cost=whole.parts_cost - sum(e.least for e in again),
            parts_size=whole.parts_size - sum(e.parts_size for e in again),
        )

    def together(self, operands: Iterable[Expression]) -> tuple[dict[int, Share], list[Expression]]:
        """What operands of a sum still share with others, and what they hold more than once.

        Where all who read a tensor are among them, what that is made of is shared by it no more
        than by them.
        """
        shares: dict[int, Share] = {}
        again: list[Expression] = []
        waiting = [item for e in operands for item in e.shares.items()]
        for tensor, share in waiting:  # which grows
            if tensor in shares:
                again.append(share.made)
                share = replace(share, reads=share.reads + shares[tensor].reads)
            shares[tensor] = share
            if share.reads == self.readings[tensor]:
                waiting += shares.pop(tensor).made.shares.items()
        return shares, again

    def chain(self, inner: Expression, outer: Expression, output: int) -> Expression | None:
        """An expression, made a single op, of what another one makes."""
        if not inner.dtypes or inner.dtypes != outer.dtypes or inner.axis != outer.axis:
            return None
        window = outer.window
        if inner.window is not None and window is not None:
            window = chained(inner.window, window, inner_shifts=inner.shifts)
        if (window is None) != (inner.window is None):
            return None
        assert outer.axis is not None
        groups = math.gcd(inner.groups, outer.groups)
        width = self.channels(inner.source, outer.axis) // groups
        outs = self.channels(output, outer.axis)
        return Expression(
            inner.source,
            partial(_build_chain, inner.build, outer.build, window),
            window,
            outer.axis,
            groups,
            inner.shifts or outer.shifts,
            inner.ops | outer.ops,
            outer.dtypes,
            self._cost(window, width, outs, inner.source, output, outer.axis),
            inner.least + outer.cost,
            outs * width * _taps(window),
            inner.parts_size + outer.size,
        )

    def channels(self, tensor: int, axis: int) -> int:
        """How many there are."""
        return self.graph.shapes[tensor][axis]

    def _cost(
        self,
        window: Window | None,
        width: int,
        outs: int,
        source: int,
        output: int,
        axis: int | None,
    ) -> int:
        """Multiplications of an op that reads so many channels for each that it makes."""
        places = math.prod(self.graph.shapes[output])
        if window is not None and window.is_transposed and axis is not None:
            ins = self.channels(source, axis)
            places = math.prod(self.graph.shapes[source]) // ins * outs
        return places * width * _taps(window)


def _is_constant(role: g.AffineStep) -> bool:
    finite = np.isfinite(role.scale).all() and np.isfinite(role.shift).all()
    return role.refusal is None and role.is_known and bool(finite)


def _taps(window: Window | None) -> int:
    return 1 if window is None else window.taps


def _build_identity(channels: int, rank: int) -> Kernel:
    return Kernel.affine(np.ones(channels), np.zeros(channels), rank)


def _build_step(role: g.AffineStep, channels: int, rank: int) -> Kernel:
    scale, shift = (np.broadcast_to(c.reshape(-1), channels) for c in (role.scale, role.shift))
    return Kernel.affine(scale, shift, rank)


def _build_chain(
    inner: Build, outer: Build, window: Window | None, channels: int, rank: int
) -> Kernel:
    first = inner(channels, rank)
    second = outer(len(first.bias), rank)
    return behind(first, second, window or Window.pointwise(rank))


def _build_sum(operands: Sequence[tuple[Build, float]], channels: int, rank: int) -> Kernel:
    return added([build(channels, rank) for build, _ in operands], [c for _, c in operands])
