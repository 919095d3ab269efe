"""How a fold stores what modules return and nodes make: what a verification compares inside.

Names are those by which the tensors of a run are watched. What a merge changes is not among them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, get_args

from torch import nn

from bnfold.core import graph as g
from bnfold.core.merged import Merge
from bnfold.core.modes import ClipMode
from bnfold.core.plan import Plan
from bnfold.core.rescaling import PlanRescalings, Rescaling, Rescalings
from bnfold.frontends.torch.copies import Snapshot, same_randomness
from bnfold.frontends.torch.decide import decide
from bnfold.frontends.torch.lift import lift
from bnfold.frontends.torch.lifter import Lifted
from bnfold.frontends.torch.merge_apply import apply_merges
from bnfold.frontends.torch.merge_module import changes
from bnfold.frontends.torch.merge_walk import Change
from bnfold.frontends.torch.nothing import MergedAway
from bnfold.frontends.torch.read_other_sizes import read_as_needed
from bnfold.frontends.torch.recording import Recording


def tensors_by_name(recording: Recording, lifted: Lifted) -> dict[str, int]:
    """The tensors of the graph that modules return, or nodes make."""
    found = {}
    for calls in recording.calls.values():
        for number, call in enumerate(calls):
            tensor = lifted.tensors.get(call.outputs[0].number) if len(call.outputs) == 1 else None
            if tensor is not None:
                found[f"{call.name}#{number}" if number else call.name] = tensor
    for root in recording.roots:
        for step in root.items:
            node = getattr(step, "node", None)
            made = [event.outputs for event in getattr(step, "items", ()) if event.outputs]
            if node is None or not made or made[-1][0] is None:
                continue
            tensor = lifted.tensors.get(made[-1][0].number)
            if tensor is not None:
                found[node.name] = tensor
    return found


def rescalings_of(
    recording: Recording, lifted: Lifted, plan: Plan, changed: Collection[str] = ()
) -> dict[str, Rescaling]:
    """How a plan stores them; `changed` are the names of those that merges changed before."""
    known = PlanRescalings(plan, is_rounded=bool(changed))
    tensors = tensors_by_name(recording, lifted).items()
    return {name: known.of(tensor) for name, tensor in tensors if name not in changed}


def changed_by(
    merges: Collection[Merge], graph: g.Graph, recording: Recording, lifted: Lifted
) -> frozenset[str]:
    """The names of what is gone, or something else, after merges."""
    tensors = frozenset().union(*(merge.changed(graph) for merge in merges))
    named = tensors_by_name(recording, lifted).items()
    return frozenset(name for name, tensor in named if tensor in tensors)


def rescalings_of_module(model: nn.Module, inputs: Any, folded: object) -> Iterator[Rescalings]:
    """Under each clip mode; then with what was merged, if `folded` shows that something was.

    Raises BnfoldError where a fold refuses the module.
    """
    recording, lifted = _read(model, inputs)
    for clip in get_args(ClipMode):
        plan, _ = decide(lifted, clip)
        yield rescalings_of(recording, lifted, plan)
    for wide in (True, False):
        todo, merging = changes(model, recording, lifted, frozenset(), wide=wide)
        done = _done(todo, model, folded)
        if not done:
            continue
        merges = [change.merge for change in done]
        changed = changed_by(merges, merging.graph, recording, lifted)
        merged, lifted = _read(apply_merges(model, done, inplace=False), inputs)
        for clip in get_args(ClipMode):
            plan, _ = decide(lifted, clip)
            yield rescalings_of(merged, lifted, plan, changed)
        return


def _read(model: nn.Module, inputs: Any) -> tuple[Recording, Lifted]:
    """As for a fold."""
    with Snapshot(model.modules()).restoring(), same_randomness():
        recording = read_as_needed(model, [inputs])
    return recording, lift(recording)


def _done(todo: Collection[Change], model: nn.Module, folded: object) -> list[Change]:
    """Those that were carried out."""
    if not isinstance(folded, nn.Module):
        return []
    modules: Mapping[str, nn.Module] = dict(folded.named_modules())

    def is_away(name: str) -> bool:
        parts = (modules.get(name), modules.get(f"{name}.0"))
        return any(isinstance(part, MergedAway) for part in parts)

    names = {id(module): name for name, module in model.named_modules()}
    return [change for change in todo if all(is_away(names[key]) for key in change.away)]
