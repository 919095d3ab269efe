"""Linear ops of one tensor whose outputs are put one behind the other: one op with all filters.

    concat(W1 x + b1, W2 x + b2)    = [W1; W2] x + [b1; b2]
    concat(f(y1), f(y2))            = f(concat(y1, y2))         for an elementwise f

along the channels, where the ops have one window. As many multiplications, as large a weight, and
at least one pass over memory less. Groups do not allow it: in a grouped op the channels of a group
lie side by side, and those of two ops would lie apart.

Merged are operands that stand next to each other in the concat, and each of which it alone reads.
Others stay in a shorter concat; one that is left with a single operand goes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import numpy as np

from bnfold.core import graph as g
from bnfold.core.expression import Part, is_free
from bnfold.core.expressions import Expressions
from bnfold.core.kernel import Kernel, stacked
from bnfold.core.merged import Merge


class _Branch(NamedTuple):
    """What makes an operand of a concat: a linear op, and the activations behind it."""

    position: int
    linear: int
    """Number of the op."""
    tail: tuple[int, ...]
    """Numbers of the activations, in order."""
    kind: Hashable
    """Those with equal kinds are siblings."""


def find_siblings(expressions: Expressions) -> list[Merge]:
    """The merges of siblings; no op is in two of them, nor in another merge."""
    if not expressions.freedom.shortens_concats:
        return []
    return [
        merge
        for number, op in enumerate(expressions.graph.ops)
        if isinstance(op.role, g.View) and op.role.concat is not None
        for merge in _in_concat(expressions, number, op, op.role.concat)
    ]


def _in_concat(expressions: Expressions, number: int, op: g.Op, axis: int) -> Iterator[Merge]:
    runs = _runs([_branch(expressions, *operand, axis) for operand in enumerate(op.inputs)])
    if not runs or not expressions.freedom.can_go(number):
        return
    dropped = {branch.position for run in runs for branch in run if branch is not _carrying(run)}
    kept = tuple(place for place in range(len(op.inputs)) if place not in dropped)
    for run in runs:
        carrying = _carrying(run)
        is_whole = len(run) == len(op.inputs)
        part = expressions.parts[carrying.linear]
        others = {
            n for branch in run if branch is not carrying for n in (branch.linear, *branch.tail)
        }
        yield Merge(
            carrying.linear,
            expressions.graph.ops[carrying.linear].inputs[0],
            op.outputs[0] if is_whole else op.inputs[carrying.position],
            None if is_whole else (number, carrying.position),
            part.window,
            part.groups,
            partial(_stacked, [expressions.parts[branch.linear] for branch in run]),
            frozenset(others | {number} if is_whole else others),
            {} if is_whole else {number: kept},
            number,
            carrying.tail,
        )


def _carrying(run: Sequence[_Branch]) -> _Branch:
    """The branch whose linear op does the work of all: the first to run."""
    return min(run, key=lambda branch: branch.linear)


def _runs(branches: Sequence[_Branch | None]) -> list[list[_Branch]]:
    """Siblings that stand next to each other."""
    runs = []
    for _, run in groupby(branches, key=lambda branch: None if branch is None else branch.kind):
        siblings = [branch for branch in run if branch is not None]
        if len(siblings) > 1:
            runs.append(siblings)
    return runs


def _branch(expressions: Expressions, position: int, tensor: int, axis: int) -> _Branch | None:
    ops, tail, kinds = expressions.graph.ops, list[int](), list[Hashable]()
    while expressions.is_own(tensor, 1):
        number = expressions.makers.get(tensor)
        if number is None or not expressions.freedom.can_go(number):
            break
        op = ops[number]
        if isinstance(op.role, g.Linear):
            part = expressions.parts.get(number)
            if part is None or not _is_stackable(part, op.role, axis):
                break
            kind = (op.inputs[0], part.window, part.dtype, *kinds)
            return _Branch(position, number, tuple(tail), kind)
        kinds.insert(0, _elementwise(op.role))
        if kinds[0] is None:
            break
        tail.insert(0, number)
        tensor = op.inputs[0]
    return None


def _is_stackable(part: Part, role: g.Linear, axis: int) -> bool:
    return part.carries and is_free(role) and part.groups == 1 and part.axis == axis


def _elementwise(role: g.Role) -> Hashable:
    """What an activation does to each number, where its role says all of it; None for others."""
    if isinstance(role, g.Clip):
        return "clip", role.lower, role.upper
    if isinstance(role, g.Homogeneous) and role.negative is not None and role.negative.size == 1:
        return "slope", float(np.reshape(role.negative, ()))
    return None


def _stacked(parts: Sequence[Part]) -> Kernel:
    return stacked([part.kernel(part.in_channels, 0) for part in parts])
