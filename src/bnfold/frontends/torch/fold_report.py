"""What the report of a module's fold says: each step, and what the runs did not show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnfold.core import graph as g
from bnfold.core.reasons import Reason
from bnfold.frontends.outcomes import reported
from bnfold.frontends.torch.batch_norms import is_batch_norm_event
from bnfold.frontends.torch.decide import Decided, affine_items
from bnfold.frontends.torch.methods import note_on_methods
from bnfold.frontends.torch.read import MOST_RUNS
from bnfold.frontends.torch.recording import Event, Recording
from bnfold.outcomes import Item, Kept
from bnfold.report import FoldReport


def report_of(model: nn.Module, decided: Decided, risky: Sequence[str] = ()) -> FoldReport:
    """What a fold does, with notes on what its runs did not show; `risky`: see `methods`."""
    items = affine_items(decided.lifted, decided.plan, decided.recording.given)
    unreached = _unreached(model, decided.recording)
    items += unreached
    notes = tuple(
        note
        for note, applies in (
            (_UNREACHED, any(map(_is_uncalled, unreached))),
            (_FUNCTIONS, _stops_at_function(decided, items)),
        )
        if applies
    )
    if decided.recording.unsettled:
        notes += (_UNSETTLED.format(", ".join(decided.recording.unsettled)),)
    methods = note_on_methods(model, decided.recording, decided.lifted, decided.plan, risky)
    notes += () if methods is None else (methods,)
    versions = {"torch": torch.__version__}
    return reported(decided.lifted.graph, decided.plan, items, versions, notes)


_UNREACHED = (
    "Some BatchNorms were not reached by the run on the example inputs. If the model can reach "
    "them on other inputs, pass those too (also=...): weights that both paths use were folded for "
    "the path that was taken."
)


_UNOPENED = "tensors in {} among the inputs are not followed: wrap the model in one that takes them"


_UNSETTLED = (
    f"Each run leaves something else behind for the next ({{}}). {MOST_RUNS} runs in a row were"
    " looked at; what the model does in later ones was not seen."
)


_FUNCTIONS = (
    "An activation that is called as a function has no room for bounds of its own. The exported "
    "program (torch.export.export) has, and may fold more."
)


def _stops_at_function(decided: Decided, items: Iterable[Item]) -> bool:
    """Whether something stays for an activation that would have bounds, were it not a function."""
    events = decided.recording.events
    functions = {event.name for event in events if not isinstance(event.target, nn.Module)}
    clips = {op.name for op in decided.lifted.graph.ops if isinstance(op.role, g.Clip)}
    blockers = {item.blocker for item in items if item.reason is Reason.ACTIVATION}
    return not blockers.isdisjoint(clips & functions)


def _unreached(model: nn.Module, recording: Recording) -> list[Item]:
    """BatchNorms that the runs did not use on anything that depends on the input."""
    return [
        Item(
            name or type(model).__name__,
            type(module).__name__,
            module.num_features,
            0,
            Kept(Reason.NOT_REACHED, None, _why_unreached(module, recording)),
        )
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and not _is_used(module, recording)
    ]


def _why_unreached(module: nn.Module, recording: Recording) -> str | None:
    """What became of it instead; None where it was not called."""
    parted = set(map(id, recording.parted))  # lost as well: where other runs differ
    if any(module is lost for lost in recording.lost) and id(module) not in parted:
        return "it ran in another thread, which is not followed"
    if id(module) in recording.calls and recording.unopened:
        return _UNOPENED.format(" and ".join(recording.unopened))
    if id(module) in recording.calls:
        return "it ran, on what does not depend on the inputs"
    return "the code reads its tensors, and does not call it" if _uses(module, recording) else None


def _is_uncalled(item: Item) -> bool:
    return isinstance(item.outcome, Kept) and item.outcome.detail is None


def _is_used(module: nn.Module, recording: Recording) -> bool:
    """Whether the module was called on a value, or a BatchNorm op computed with its tensors."""
    if any(call.inputs for call in recording.calls.get(id(module), ())):
        return True
    return any(map(is_batch_norm_event, _uses(module, recording)))


def _uses(module: nn.Module, recording: Recording) -> list[Event]:
    """What computes with a module's tensors."""
    own = (*module._parameters.values(), *module._buffers.values())
    uses = (use for tensor in own for use in recording.parameter_uses.get(id(tensor), ()))
    return [use.event for use in uses if use.event is not None]


def is_more(report: FoldReport) -> bool:
    """Whether a fold did anything, rightly."""
    is_right = report.verdict is None or report.verdict.equal
    return is_right and bool(report.removed or report.merged)
