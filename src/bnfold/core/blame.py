"""Which op to name when an affine step could not be removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bnfold.core import graph as g
from bnfold.core.binding import Binding
from bnfold.core.reasons import Reason

_MOST_TELLING_FIRST = (
    Reason.PADDING,
    Reason.ACTIVATION,
    Reason.CLIP_COST,
    Reason.HOOK,
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
    best: Obstacle | None = None
    rank = len(_MOST_TELLING_FIRST)
    zero_gamma: str | None = None
    for index in causes:
        if index < 0:
            continue
        cause = binding.system.causes[index]
        if cause.reason is Reason.ZERO_GAMMA and cause.op == number:
            zero_gamma = cause.name
        if cause.op == number or cause.reason not in _MOST_TELLING_FIRST:
            continue
        place = _MOST_TELLING_FIRST.index(cause.reason)
        if place < rank:
            best, rank = Obstacle(cause.reason, cause.name), place
    if best is None and zero_gamma is not None:
        own = binding.graph.ops[number].name
        return Obstacle(Reason.ZERO_GAMMA, None if zero_gamma == own else zero_gamma)
    return best or _upstream(binding, number)


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
