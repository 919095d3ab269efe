"""What is decided about a recording before anything is written, and what is said of its proof."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bnfold.core.fitting import Bans, Fitting
from bnfold.core.modes import ClipMode
from bnfold.core.plan import Plan, make_plan
from bnfold.errors import ExampleInputError
from bnfold.frontends.outcomes import outcomes
from bnfold.frontends.torch.aliasing import Precautions, precautions
from bnfold.frontends.torch.apply import NewTensors, compute
from bnfold.frontends.torch.lifter import AffineSite, ClipSite, Lifted
from bnfold.frontends.torch.recording import Recording
from bnfold.outcomes import Item
from bnfold.report import FoldReport

if TYPE_CHECKING:
    from bnfold.verify.result import VerifyResult


@dataclass(slots=True)
class Decided:
    """Everything that is known before anything is written."""

    recording: Recording
    lifted: Lifted
    plan: Plan
    new: NewTensors
    care: Precautions


def decide_on(
    recording: Recording, lifted: Lifted, clip: ClipMode, bans: Bans | None = None
) -> Decided:
    """What to do, without removing what is banned."""
    plan, new = decide(lifted, clip, bans)
    care = precautions(recording, lifted, plan.removed, rewritten_events(lifted, plan))
    return Decided(recording, lifted, plan, new, care)


def depth(recording: Recording) -> int:
    """How many ops a run takes, each of which rounds its result."""
    return len(recording.events) // max(1, len(recording.roots))


UNCHANGED = "nothing was removed"
"""Why a model that did not change was not run."""


def cannot_run(error: ExampleInputError) -> str:
    """Why the original was not run, in words."""
    lines = str(error.cause).strip().splitlines()
    return f"the original cannot be run here ({lines[0] if lines else type(error.cause).__name__})"


def proven_report(report: FoldReport, verdict: VerifyResult, parted: str) -> FoldReport:
    """The report with its verdict, and with what was seen before something had to stay."""
    if not parted:
        return replace(report, verdict=verdict)
    note = f"{_PARTED} With them gone as well: {parted}."
    return replace(report, verdict=verdict, notes=(*report.notes, note))


_PARTED = (
    "Some steps were kept because the model did something else without them: its code does"
    " what the analysis does not see."
)


def rewritten_events(lifted: Lifted, plan: Plan) -> list[int]:
    """Numbers of the events that no longer write to memory once the plan is applied."""
    # A module that clipped in place does so with bounds per channel too; a node becomes a new op.
    clips = [lifted.sites[number] for number in plan.clip]
    removed = [lifted.sites[number] for number in plan.removed]
    return [
        *(site.event for site in clips if isinstance(site, ClipSite) and site.module is None),
        *(site.event for site in removed if isinstance(site, AffineSite)),
    ]


def decide(lifted: Lifted, clip: ClipMode, bans: Bans | None = None) -> tuple[Plan, NewTensors]:
    """Plan, compute, and plan again without the removals whose weights do not fit their dtype."""
    fitting = Fitting(lambda bans: make_plan(lifted.graph, clip=clip, banned=bans), bans)
    return fitting.attempt(lambda plan: (plan, compute(lifted, plan)))


def affine_items(lifted: Lifted, plan: Plan, given: int | None = None) -> list[Item]:
    """What became of each affine step, one item per module or function call.

    `given` is how many events are of the example inputs, if not all are: a step counts the calls
    on these; those on other sizes, where there were none on these.
    """

    def calls(group: Collection[int]) -> int:
        sites = [lifted.sites[number] for number in group]
        events = [site.event for site in sites if isinstance(site, AffineSite)]
        return sum(given is None or event < given for event in events) or len(group)

    return outcomes(lifted.graph, plan, calls=calls)
