"""Which op to name when an affine step could not be removed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bnfold.core import graph as g
from bnfold.core.binding import Binding
from bnfold.core.reasons import Reason
from bnfold.core.system import Cause

_MOST_TELLING_FIRST = (
    Reason.PADDING,
    Reason.ACTIVATION,
    Reason.CLIP_COST,
    Reason.HOOK,
    Reason.VARIES,
    Reason.OTHER_PHASE,
    Reason.NONLINEAR,
    Reason.FIXED_WEIGHT,
    Reason.SHARED,
    Reason.GRAPH_OUTPUT,
    Reason.BRANCHES,
)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What stopped the removal of an affine step."""

    reason: Reason
    blocker: str | None
    """Name of the op that stands in the way."""


def blame(binding: Binding, number: int, causes: Sequence[int]) -> Obstacle:
    """The most telling of the constraints that a removal ran into."""
    given = [binding.system.causes[index] for index in causes if index >= 0]
    best = _most_telling(given, number)
    if best is None:
        zero = [cause.name for cause in given if _is_own_zero(cause, number)]
        if zero:
            own = binding.graph.ops[number].name
            return Obstacle(Reason.ZERO_GAMMA, None if zero[-1] == own else zero[-1])
        return _upstream(binding, number)
    if best.reason is Reason.BRANCHES:
        # A step that went has passed on what its readers ask: they are to name, not the step.
        gone = [cause.op for cause in given if cause.op != number and cause.op in binding.affine]
        best = _most_telling(_beyond(binding, gone), number) or best
    return best


def _most_telling(causes: Iterable[Cause], number: int) -> Obstacle | None:
    best: Obstacle | None = None
    rank = len(_MOST_TELLING_FIRST)
    for cause in causes:
        if cause.op == number or cause.reason not in _MOST_TELLING_FIRST:
            continue
        place = _MOST_TELLING_FIRST.index(cause.reason)
        if place < rank:
            best, rank = Obstacle(cause.reason, cause.name), place
    return best


def _is_own_zero(cause: Cause, number: int) -> bool:
    return cause.reason is Reason.ZERO_GAMMA and cause.op == number


def _beyond(binding: Binding, steps: Sequence[int]) -> list[Cause]:
    """What was asked of the outputs of these affine steps, and of steps right behind them."""
    system = binding.system
    found: dict[int, Cause] = {}
    queue, seen = list(steps), set(steps)
    while queue:
        outputs = binding.affine[queue.pop()].outputs
        for forest in (system.magnitude, system.sign, system.shift):
            for index in forest.causes_of(outputs):
                cause = found[index] = system.causes[index]
                if cause.reason is Reason.BRANCHES and cause.op in binding.affine:
                    queue += {cause.op} - seen
                    seen.add(cause.op)
    return [found[index] for index in sorted(found)]


def _upstream(binding: Binding, number: int) -> Obstacle:
    """Nothing downstream objects, so the value comes in already fixed: find out from where."""
    makers = {tensor: op for op in binding.graph.ops for tensor in op.outputs}
    names = dict(binding.graph.inputs)
    queue = list(binding.graph.ops[number].inputs)
    seen: set[int] = set()
    while queue:
        tensor = queue.pop()
        if tensor in seen or binding.labels[tensor].all():
            continue
        seen.add(tensor)
        if tensor in names:
            return Obstacle(Reason.GRAPH_INPUT, names[tensor])
        op = makers.get(tensor)
        if op is None:
            continue
        if isinstance(op.role, g.Opaque | g.RefusedStep):
            return Obstacle(Reason.NONLINEAR, op.name)
        queue.extend(op.inputs)
    return Obstacle(Reason.BRANCHES, binding.graph.ops[number].name)
