"""Fold and inspect PyTorch modules: read, lift, plan, apply, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnfold.core import graph as g
from bnfold.core.blame import Obstacle
from bnfold.core.plan import Plan, ban_overflow, make_plan
from bnfold.core.reasons import Reason
from bnfold.core.solver import ClipMode
from bnfold.errors import ExampleInputError
from bnfold.frontends.torch.aliasing import Precautions, precautions
from bnfold.frontends.torch.apply import NewTensors, apply, compute
from bnfold.frontends.torch.lift import AffineSite, ClipSite, Lifted, lift
from bnfold.frontends.torch.read import read_module
from bnfold.frontends.torch.recording import Recording, Value
from bnfold.network import draw
from bnfold.report import FoldReport, Item, Kept, Removed


@dataclass(slots=True)
class Decided:
    """Everything that is known before anything is written."""

    recording: Recording
    lifted: Lifted
    plan: Plan
    new: NewTensors
    care: Precautions


def fold_module(
    model: nn.Module, inputs: Any, *, also: Sequence[Any], inplace: bool, clip: ClipMode
) -> tuple[nn.Module, FoldReport]:
    """See `bnfold.fold`."""
    decided = _decide(model, inputs, also, clip)
    report = _report(model, decided)
    folded = apply(model, decided.lifted, decided.plan, decided.new, decided.care, inplace=inplace)
    return folded, report


def inspect_module(
    model: nn.Module, inputs: Any, *, also: Sequence[Any], clip: ClipMode
) -> FoldReport:
    """See `bnfold.inspect`."""
    return _report(model, _decide(model, inputs, also, clip))


def _decide(model: nn.Module, inputs: Any, also: Sequence[Any], clip: ClipMode) -> Decided:
    if inputs is None:
        raise ExampleInputError(type(model).__name__, None)
    recording = read_module(model, [inputs, *also])
    lifted = lift(recording)
    plan, new = decide(lifted, clip)
    care = precautions(recording, lifted, plan.removed, rewritten_events(lifted, plan))
    return Decided(recording, lifted, plan, new, care)


def rewritten_events(lifted: Lifted, plan: Plan) -> list[int]:
    """Numbers of the events that no longer write to memory once the plan is applied."""
    # A module that clipped in place does so with bounds per channel too; a node becomes a new op.
    clips = [lifted.sites[number] for number in plan.clip]
    removed = [lifted.sites[number] for number in plan.removed]
    return [
        *(site.event for site in clips if isinstance(site, ClipSite) and site.module is None),
        *(site.event for site in removed if isinstance(site, AffineSite)),
    ]


def decide(lifted: Lifted, clip: ClipMode) -> tuple[Plan, NewTensors]:
    """Plan, compute, and plan again without the removals whose weights do not fit their dtype."""
    banned: dict[int, Obstacle] = {}
    while True:
        plan = make_plan(lifted.graph, clip=clip, banned=banned)
        new = compute(lifted, plan)
        if not new.overflown:
            return plan, new
        more = ban_overflow(plan, new.overflown)
        assert more, "an op overflows although no removed step touches it"
        banned |= more


def _report(model: nn.Module, decided: Decided) -> FoldReport:
    items = affine_items(decided.lifted, decided.plan)
    unreached = _unreached(model, decided.recording)
    items += unreached
    items += _written_to(model, decided.recording)
    clips = tuple(decided.lifted.graph.ops[number].name for number in decided.plan.clip)
    notes = tuple(
        note
        for note, applies in (
            (_UNREACHED, bool(unreached)),
            (_FUNCTIONS, any(_stops_at_function(item) for item in items)),
        )
        if applies
    )
    network = draw(decided.lifted.graph, decided.plan, [item.name for item in items])
    return FoldReport(tuple(items), clips, notes, {"torch": torch.__version__}, network)


_UNREACHED = (
    "Some BatchNorms were not reached by the run on the example inputs. If the model can reach "
    "them on other inputs, pass those too (also=...): weights that both paths use were folded for "
    "the path that was taken."
)


_FUNCTIONS = (
    "An activation that is called as a function has no room for bounds of its own. The exported "
    "program (torch.export.export) has, and may fold more."
)


def _stops_at_function(item: Item) -> bool:
    """Whether the blocker is a call of a function, which `record` names 'relu in block.1'."""
    return item.reason is Reason.ACTIVATION and " in " in (item.blocker or "")


def affine_items(lifted: Lifted, plan: Plan) -> list[Item]:
    """What became of each affine step, one item per module or function call."""
    items = []
    seen: set[Any] = set()
    groups = lifted.graph.affine_groups()
    for number, group in groups.items():
        role = lifted.graph.ops[number].role
        assert isinstance(role, g.AffineStep)
        if group in seen or (number not in plan.removed and number not in plan.kept):
            continue
        seen.add(group)
        outcome: Removed | Kept
        if number in plan.removed:
            names = [name for call in group for name in plan.removed[call]]
            outcome = Removed(tuple(dict.fromkeys(names)))
        else:
            obstacle = plan.kept[number]
            detail = role.refusal[1] if role.refusal else None
            outcome = Kept(obstacle.reason, obstacle.blocker, detail)
        name = lifted.graph.ops[number].name
        items.append(Item(name, role.kind, role.channels, len(group), outcome))
    return items


def _unreached(model: nn.Module, recording: Recording) -> list[Item]:
    """BatchNorms that the runs did not use on anything that depends on the input."""
    outcome = Kept(Reason.NOT_REACHED, None, None)
    return [
        Item(name or type(model).__name__, type(module).__name__, module.num_features, 0, outcome)
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and not _is_used(module, recording)
    ]


def _written_to(model: nn.Module, recording: Recording) -> list[Item]:
    """BatchNorms whose statistics or parameters the program writes to: no constants."""
    targets = {
        id(event.target)
        for event in recording.events
        if isinstance(event.target, nn.Module)
        and any(isinstance(value, Value) for value in event.kwargs.values())
    }
    outcome = Kept(Reason.BATCH_STATISTICS, None, "the program writes to them")
    return [
        Item(name or type(model).__name__, type(module).__name__, module.num_features, 1, outcome)
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and id(module) in targets
    ]


def _is_used(module: nn.Module, recording: Recording) -> bool:
    """Whether the module was called on a value, or something else computed with its tensors."""
    if any(call.inputs for call in recording.calls.get(id(module), ())):
        return True
    own = (*module._parameters.values(), *module._buffers.values())
    uses = (use for tensor in own for use in recording.parameter_uses.get(id(tensor), ()))
    return any(use.event is not None for use in uses)
