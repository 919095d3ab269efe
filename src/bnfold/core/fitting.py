"""A plan that can be written: made again without each step whose removal turns out to be too much.

Whether new numbers fit their dtype, or a new name is free, shows only when they are made. So a
frontend attempts to write the plan; where that fails, the steps to blame are banned, and the plan
is made and attempted anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

from bnfold.core import graph as g
from bnfold.core.blame import Obstacle
from bnfold.core.explained import explained
from bnfold.core.plan import Plan, ban_overflow
from bnfold.core.reasons import Reason

Bans = Mapping[int, Obstacle]
"""Steps that must not be removed, with the reason."""
Written = TypeVar("Written")


class Unwritable(Exception):  # noqa: N818  # an answer, not an error
    """A plan cannot be written as it is."""

    def blamed(self, plan: Plan) -> Bans:
        """The steps that have to stay."""
        raise NotImplementedError


class Overflow(Unwritable):
    """New numbers of these ops do not fit their dtype."""

    def __init__(self, *ops: int) -> None:
        super().__init__(*ops)
        self.ops = ops

    def blamed(self, plan: Plan) -> Bans:
        """The steps that were folded into the ops."""
        bans = ban_overflow(plan, self.ops)
        assert bans, "an op overflows although no removed step touches it"
        return bans


class MustStay(Unwritable):
    """These steps have to stay."""

    def __init__(self, bans: Bans) -> None:
        super().__init__(bans)
        self.bans = bans

    def blamed(self, plan: Plan) -> Bans:
        """These."""
        return self.bans


Stays = Mapping[str, Obstacle]
"""The same by name, which a step has in every fold of its network."""


def bans_of(graph: g.Graph, stays: Stays, called: Callable[[str], str] = str) -> Bans:
    """The steps that these names are of; `called` says what a step was called at first."""
    names = {number: called(op.name) for number, op, _ in graph.steps()} if stays else {}
    return {number: stays[name] for number, name in names.items() if name in stays}


def stay_as_well(left: Collection[str], gone: Iterable[str]) -> Stays:
    """What another fold kept, if these are left in it: for it, where a plan lets them go."""
    return {name: Obstacle(Reason.SCALE_RANGE, None) for name in gone if name in left}


class Fitting:
    """The plan that is attempted, and what is banned from it so far."""

    def __init__(self, decide: Callable[[Bans], Plan], bans: Bans | None = None) -> None:
        self.decide = decide
        self.bans: Bans = dict(bans or {})
        self.plan = explained(decide(self.bans))

    def attempt(self, write: Callable[[Plan], Written]) -> Written:
        """What `write` makes of the first plan for which it raises no `Unwritable`."""
        while True:
            try:
                return write(self.plan)
            except Unwritable as failure:
                self.bans = {**self.bans, **failure.blamed(self.plan)}
            # Here, where what the attempt had made is forgotten.
            self.plan = explained(self.decide(self.bans))
