"""A sum taken apart into branches: what it sees through the affine steps in front of it.

    z = c1 * (a1 * x1 + b1) + c2 * (c3 * x2 + c4 * x3)

has a branch down to x1, through a step, and one that ends in a sum with branches of its own, down
to x2 and x3, where nobody else reads that sum. What a branch passes are affine steps, those that
may go and those that stay, views that move nothing, and views that are undone further on: of
`bn(x.transpose(1, 2)).transpose(1, 2)` the constants are laid along the sum's axes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.binding import Binding
from bnfold.core.forest import IntArray
from bnfold.core.laws import editable

_MOST_ELEMENTS = 1_000_000
"""A view of more elements is not asked whether it moves any."""


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """An operand, and the affine steps and trivial views that it comes through."""

    factor: float
    """Its coefficient in the sum."""
    chain: list[int]
    """Tensors, the operand first."""
    ops: list[int]
    """ops[i] makes chain[i] of chain[i + 1]."""
    free: int
    """From chain[0] to chain[free], every step may go."""
    position: int
    """Which operand it is."""
    laid: list[tuple[FloatArray, FloatArray]]
    """The factors and summands of each op, along the sum's axes."""
    moved: frozenset[int]
    """Indices into the chain: tensors whose values lie in other places than the operand's."""
    inner: int = -1
    """Number of the sum that makes the last tensor, if that is taken apart."""
    below: tuple[Branch, ...] = ()
    """The operands of that sum."""


class Branches:
    """Of the sums of a network, where the `banned` steps may not go."""

    def __init__(self, binding: Binding, banned: frozenset[int]) -> None:
        self.binding = binding
        self.graph = binding.graph
        self.banned = banned
        self.maker: dict[int, int] = {}
        self.copies: dict[int, bool] = {}
        self.reads: Counter[int] = Counter(tensor for tensor, _, _ in self.graph.outputs)
        for number, op in enumerate(self.graph.ops):
            self.maker.update(dict.fromkeys(op.outputs, number))
            self.reads.update(op.inputs)

    def of(self, number: int, role: g.Sum) -> tuple[Branch, ...]:
        """The branches of a sum; an operand times 0 is none."""
        operands = zip(self.graph.ops[number].inputs, role.coefficients, strict=True)
        return tuple(
            self._branch(tensor, factor, position)
            for position, (tensor, factor) in enumerate(operands)
            if factor != 0.0
        )

    def _branch(self, tensor: int, factor: float, position: int) -> Branch:
        chain, ops, free = [tensor], [], 0
        layout = _Layout(self.graph.shapes[tensor])
        laid, moved = list[tuple[FloatArray, FloatArray]](), set[int]()
        all_free = True
        while (number := self.maker.get(chain[-1])) is not None:
            kind = self._kind(number) or self._move(number, layout)
            if not kind:
                break
            op = self.graph.ops[number]
            all_free &= kind != "kept"
            laid.append(layout.laid(op.role, self.graph.shapes[op.outputs[0]]))
            chain.append(op.inputs[0])
            ops.append(number)
            free += all_free
            if layout.places is not None:
                moved.add(len(ops))
        end = max(set(range(len(chain))) - moved)
        if end < len(ops):  # moved, and not back
            chain, ops, laid = chain[: end + 1], ops[:end], laid[:end]
            all_free, free = False, min(free, end)
        known = Branch(factor, chain, ops, free, position, laid, frozenset(moved))
        inside = all_free and all(self.reads[link] == 1 for link in chain)
        role = None if number is None or not inside else self.graph.ops[number].role
        if number is None or not isinstance(role, g.Sum):
            return known
        return replace(known, inner=number, below=self.of(number, role))

    def _move(self, number: int, layout: _Layout) -> str:
        """ "moved" if an op only moves values, each to one place, or leaves them there."""
        op = self.graph.ops[number]
        if isinstance(op.role, g.Alike):
            return "moved"
        if not isinstance(op.role, g.View) or len(op.inputs) != 1 or len(op.outputs) != 1:
            return ""
        shape = self.graph.shapes[op.inputs[0]]
        # With an axis of length 1 it may be by chance that values are back in their places.
        if 1 in shape[1:] or int(np.prod(shape, dtype=np.int64)) > _MOST_ELEMENTS:
            return ""
        return "moved" if layout.move(op.role, shape) else ""

    def _kind(self, number: int) -> str:
        """ "free" if a step may go or does nothing, "kept" if it is affine, else ""."""
        op = self.graph.ops[number]
        if isinstance(op.role, g.View):
            return "free" if self._moves_nothing(number, op.role) else ""
        if not isinstance(op.role, g.AffineStep):
            return ""
        if self.may_go(number) or self._is_factor(number, op.role):
            return "free"
        return "kept" if number in self.binding.affine and (op.role.scale != 0).all() else ""

    def _is_factor(self, number: int, role: g.AffineStep) -> bool:
        """Whether a step multiplies by constants that stay as they are."""
        if role.tie is not None or role.is_reported or not role.is_known or role.shift.any():
            return False
        bound = self.binding.affine.get(number)
        if bound is None:  # a sum with 0, say, which has no variables of its own
            return not role.is_editable and bool((role.scale == 1).all())
        return not any(editable(bound)) and bool((role.scale != 0).all())

    def _moves_nothing(self, number: int, view: g.View) -> bool:
        """Whether a view is a mere copy."""
        if number not in self.copies:
            self.copies[number] = self._is_copy(self.graph.ops[number], view)
        return self.copies[number]

    def _is_copy(self, op: g.Op, view: g.View) -> bool:
        if len(op.inputs) != 1 or len(op.outputs) != 1:
            return False
        shape = self.graph.shapes[op.inputs[0]]
        size = int(np.prod(shape, dtype=np.int64))
        if shape != self.graph.shapes[op.outputs[0]] or size > _MOST_ELEMENTS:
            return False
        places = np.arange(size, dtype=np.int64).reshape(shape)
        (moved,) = view.apply([places])
        return bool(np.array_equal(np.broadcast_to(moved, shape), places))

    def sources(self, tensor: int) -> Iterator[int]:
        """A tensor, and those that it is a mere copy of."""
        yield tensor
        while (number := self.maker.get(tensor)) is not None:
            op = self.graph.ops[number]
            if not isinstance(op.role, g.View) or not self._moves_nothing(number, op.role):
                return
            tensor = op.inputs[0]
            yield tensor

    def may_go(self, number: int) -> bool:
        """Whether an affine step can go, as far as the step itself is concerned."""
        bound = self.binding.affine.get(number)
        if bound is None or not bound.role.is_wanted or not bound.role.is_known:
            return False
        return self.banned.isdisjoint(self.binding.groups[number])


class _Layout:
    """Where the values of an operand lie in a tensor that it is made of."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.places: IntArray | None = None
        """Per value of the operand its place; None where both lie alike."""

    def move(self, view: g.View, shape: Sequence[int]) -> bool:
        """Go on to the input of a view, of this shape; False if it is not all of the values."""
        own = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.int64)
        (seen,) = view.apply([own.reshape(shape)])
        flat = np.asarray(seen).reshape(-1)
        is_met = np.zeros(len(own), dtype=bool)
        is_met[flat] = True
        if len(flat) != len(own) or not is_met.all():
            return False
        places = flat if self.places is None else flat[self.places]
        is_back = tuple(shape) == self.shape and np.array_equal(places, own)
        self.places = None if is_back else places
        return True

    def laid(self, role: g.Role, shape: Sequence[int]) -> tuple[FloatArray, FloatArray]:
        """The constants of a step with an output of this shape, along the operand's axes."""
        if not isinstance(role, g.AffineStep):
            return np.ones(()), np.zeros(())
        if self.places is None:
            return role.scale, role.shift
        return self._laid(role.scale, shape), self._laid(role.shift, shape)

    def _laid(self, constants: FloatArray, shape: Sequence[int]) -> FloatArray:
        values = np.broadcast_to(constants, shape).reshape(-1)[self.places].reshape(self.shape)
        for axis in range(values.ndim):
            first = values.take([0], axis)
            values = first if (values == first).all() else values
        return values


def leaves_of(branches: Sequence[Branch]) -> Iterator[Branch]:
    """The branches that end in no sum of ours."""
    for branch in branches:
        if branch.below:
            yield from leaves_of(branch.below)
        else:
            yield branch


def paths_of(
    branches: Sequence[Branch], number: int, above: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[Branch, tuple[tuple[int, int], ...]]]:
    """Each leaf, with the ops from there to the root."""
    for branch in branches:
        path = ((number, branch.position), *above)
        if not branch.below:
            yield branch, path
            continue
        inner = branch.inner
        steps = tuple((step, 0) for step in reversed(branch.ops))
        yield from paths_of(branch.below, inner, (*steps, *path))
