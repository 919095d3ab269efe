"""What is decided about a recording before anything is written, and what is said of its proof."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from bnfold.core.fitting import Bans, Fitting
from bnfold.core.modes import ClipMode
from bnfold.core.plan import Plan, make_plan
from bnfold.errors import ExampleInputError
from bnfold.frontends.outcomes import outcomes
from bnfold.frontends.torch.aliasing import Precautions, precautions
from bnfold.frontends.torch.lifter import AffineSite, ClipSite, Lifted
from bnfold.frontends.torch.new_tensors import NewTensors, compute
from bnfold.frontends.torch.recording import Recording
from bnfold.outcomes import Item
from bnfold.report import FoldReport


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


def not_run(report: FoldReport, error: ExampleInputError | None = None) -> FoldReport:
    """The report of a fold that was not compared: nothing changed, or the original cannot run."""
    if error is None:
        return replace(report, unverified="nothing was removed")
    lines = str(error.cause).strip().splitlines()
    cause = lines[0] if lines else type(error.cause).__name__
    return replace(report, unverified=f"the original cannot be run here ({cause})")


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
