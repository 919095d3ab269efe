"""Why linear ops of one tensor that meet in a sum stay several, or in a module's concat.

Looked at are sums of which two operands lead back to one tensor through linear ops and affine steps
alone, whatever their weights may be and whoever else reads what lies between. Sums that another one
alone reads are looked at as one with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product

from bnfold.core import graph as g
from bnfold.core.expression import Expression, Freedom, Part, is_free, is_same
from bnfold.core.expressions import Expressions
from bnfold.core.merged import Merge
from bnfold.core.nested_sum import NestedSum, Operand
from bnfold.core.reasons import MergeReason
from bnfold.core.siblings import find_siblings

_FARTHEST = 16
"""Ops that an operand is followed back."""


@dataclass(frozen=True, slots=True)
class Unmerged:
    """Operands of a sum, or of a concat, that stay several ops."""

    sum: int
    """Number of the sum, or of the concat."""
    reason: MergeReason
    blocker: int | None = None
    """Number of the op in the way, if one is."""


Way = tuple[int, ...]
"""Numbers of the ops that lead from an operand back to a tensor, the last one first."""


def unmerged(
    graph: g.Graph, parts: Mapping[int, Part], freedom: Freedom, merges: Sequence[Merge]
) -> list[Unmerged]:
    """One entry per sum that could have been merged, or further, and was not.

    And one per concat whose operands could be one op but for the code of a module.
    """
    expressions = Expressions.of(graph, parts, freedom)
    entries = [] if freedom.shortens_concats else _concats(graph, parts)
    gone = frozenset[int]().union(*(merge.gone for merge in merges))
    entered = {merge.enters for merge in merges}
    inner: set[int] = set()
    for number, op in reversed([*enumerate(graph.ops)]):
        if not isinstance(op.role, g.Sum) or number in inner:
            continue
        nested = NestedSum(expressions, number)
        inner.update(nested.sums)
        left, merged = list[Operand](), list[Operand]()
        for operand in nested.operands:
            is_one = operand.place[0] in gone or operand.place in entered
            is_left = not is_one and _is_left(merges, *operand.place)
            (left if is_left else merged).append(operand)
        if (why := _why(expressions, number, left, merged)) is not None:
            entries.append(why)
    return sorted(entries, key=lambda left: left.sum)


def _concats(graph: g.Graph, parts: Mapping[int, Part]) -> list[Unmerged]:
    """Those whose operands only a module's code puts together."""
    siblings = find_siblings(Expressions.of(graph, parts, Freedom()))
    numbers = {merge.concat for merge in siblings if merge.concat is not None}
    return [Unmerged(number, MergeReason.CODE) for number in numbers]


def _is_left(merges: Sequence[Merge], number: int, position: int) -> bool:
    """Whether a sum keeps an operand."""
    return all(position in merge.sums.get(number, (position,)) for merge in merges)


def _why(
    expressions: Expressions, number: int, left: Sequence[Operand], merged: Sequence[Operand]
) -> Unmerged | None:
    """Why of the operands that are left two are not one, or one not one with what is merged."""
    ways, others = (
        [(operand, _ways(expressions, operand.tensor)) for operand in operands]
        for operands in (left, merged)
    )
    pairs = chain(combinations(ways, 2), product(ways, others))
    for (first, first_ways), (second, second_ways) in pairs:
        source = next(
            (s for s in first_ways if s in second_ways and (first_ways[s] or second_ways[s])), None
        )
        if source is None or not _has_linear(expressions, first_ways[source], second_ways[source]):
            continue
        place, other = first.place[0], second.place[0]
        return _obstacle(
            expressions,
            place if place == other or second in merged else number,
            source,
            [(first.tensor, first_ways[source]), (second.tensor, second_ways[source])],
        )
    return None


def _has_linear(expressions: Expressions, *ways: Way) -> bool:
    ops = expressions.graph.ops
    return any(isinstance(ops[number].role, g.Linear) for way in ways for number in way)


def _ways(expressions: Expressions, tensor: int) -> dict[int, Way]:
    """The tensors that linear ops make it of, the nearest first, with the way there."""
    ways: dict[int, Way] = {tensor: ()}
    way: Way = ()
    while len(way) < _FARTHEST:
        number = expressions.makers.get(tensor)
        if number is None:
            break
        op = expressions.graph.ops[number]
        is_step = isinstance(op.role, g.Linear | g.AffineStep | g.RefusedStep)
        is_step |= number in expressions.parts
        if not op.inputs or not (is_step or is_same(op.role)):
            break
        way = (*way, number)
        tensor = op.inputs[0]
        ways[tensor] = way
    return ways


def _obstacle(
    expressions: Expressions, number: int, source: int, operands: Sequence[tuple[int, Way]]
) -> Unmerged:
    made_of: list[Expression] = []
    for tensor, way in operands:
        made = next((e for e in expressions.seen(tensor) if e.source == source), None)
        if made is None:
            return next(_on_the_way(expressions, number, way))
        made_of.append(made)
    (output,) = expressions.graph.ops[number].outputs
    if not expressions.are_alike((tensor for tensor, _ in operands), output):
        return Unmerged(number, MergeReason.GRID)
    whole = expressions.sum(made_of, [1.0] * len(made_of), output)
    if whole is None:
        return Unmerged(number, MergeReason.GRID)
    if not whole.pays:
        return Unmerged(number, MergeReason.COST)
    is_file = expressions.freedom.shortens_concats
    return Unmerged(number, MergeReason.SUM if is_file else MergeReason.CODE)


def _is_built_on(role: g.Role) -> bool:
    is_step = isinstance(role, g.AffineStep) and role.refusal is None and role.is_known
    return is_step or is_same(role)


def _on_the_way(expressions: Expressions, number: int, way: Way) -> Iterator[Unmerged]:
    """What keeps an operand from being an expression, from the sum backwards."""
    for maker in way:
        op = expressions.graph.ops[maker]
        if expressions.readings.get(op.outputs[0]) != 1:
            yield Unmerged(number, MergeReason.READ, maker)
        if not expressions.freedom.can_go(maker):
            # In a file, more than its result is read.
            is_code = not expressions.freedom.shortens_concats
            yield Unmerged(number, MergeReason.CODE if is_code else MergeReason.READ, maker)
        if isinstance(op.role, g.Linear):
            is_own = is_free(op.role) and op.role.bias_editable
            if not is_own and not expressions.is_part(maker):
                yield Unmerged(number, MergeReason.WEIGHT, maker)
            if maker not in expressions.parts:
                yield Unmerged(number, MergeReason.GRID, maker)
        elif maker not in expressions.parts and not _is_built_on(op.role):
            yield Unmerged(number, MergeReason.STEP, maker)
    linear = [maker for maker in way if isinstance(expressions.graph.ops[maker].role, g.Linear)]
    yield Unmerged(number, MergeReason.PADDING, (linear[1:] or linear or way)[0])
