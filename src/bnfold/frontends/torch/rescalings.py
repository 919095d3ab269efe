"""How a fold stores what modules return and nodes make: what a verification compares inside.

Names are those by which the tensors of a run are watched. What a merge changes is not among them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, get_args

from torch import nn

from bnfold.core import graph as g
from bnfold.core.blame import Obstacle
from bnfold.core.merged import Merge
from bnfold.core.modes import ClipMode
from bnfold.core.plan import Plan
from bnfold.core.reasons import Reason
from bnfold.core.rescaling import PlanRescalings, Rescaling, Rescalings
from bnfold.frontends.torch.copies import Snapshot
from bnfold.frontends.torch.decide import decide
from bnfold.frontends.torch.keep import read_to_fold
from bnfold.frontends.torch.lifter import AffineSite, Lifted
from bnfold.frontends.torch.merge_apply import apply_merges
from bnfold.frontends.torch.merge_module import changes
from bnfold.frontends.torch.merge_walk import Change
from bnfold.frontends.torch.nothing import MergedAway
from bnfold.frontends.torch.recording import Recording
from bnfold.frontends.torch.surroundings import Surroundings
from bnfold.frontends.torch.tensor_facts import is_equal


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

    Then the same with the modules kept that stand in `folded` as they were, if a fold would have
    changed them. Raises BnfoldError where a fold refuses the module.
    """
    left = _left(model, folded)
    read = _read(model, inputs)
    yield from _guesses(model, inputs, folded, left, read)
    keep = _kept(model, left, read[1])
    if keep:
        yield from _guesses(model, inputs, folded, left, _read(model, inputs, keep), keep)


def _guesses(
    model: nn.Module,
    inputs: Any,
    folded: object,
    left: frozenset[int],
    read: tuple[Recording, Lifted],
    keep: Sequence[str] = (),
) -> Iterator[Rescalings]:
    """Without merges, then with those that were carried out."""
    yield from _planned(*read, left)
    for wide in (True, False):
        todo, merging = changes(model, *read, left, wide=wide)
        done = _done(todo, model, folded)
        if not done:
            continue
        changed = changed_by([change.merge for change in done], merging.graph, *read)
        merged = apply_merges(model, done, inplace=False)
        now = _read(merged, inputs, keep, is_merged=True)
        yield from _planned(*now, _left(merged, folded), changed)
        return


def _planned(
    recording: Recording, lifted: Lifted, left: Collection[int], changed: Collection[str] = ()
) -> Iterator[Rescalings]:
    """As it is planned, and without removing what is left."""
    for clip in get_args(ClipMode):
        plan, _ = decide(lifted, clip)
        yield rescalings_of(recording, lifted, plan, changed)
        stays = {number: _LEFT for number in plan.removed if _module(lifted, number) in left}
        if stays:
            plan, _ = decide(lifted, clip, stays)
            yield rescalings_of(recording, lifted, plan, changed)


_LEFT = Obstacle(Reason.SCALE_RANGE, None)
"""Why a step stays of which is only known that it does."""


def _module(lifted: Lifted, number: int) -> int | None:
    """The id() of the module that an op is."""
    site, event = lifted.sites[number], lifted.events.get(number)
    if isinstance(site, AffineSite):
        return None if site.module is None else id(site.module)
    return None if event is None else id(event.target)


def _read(
    model: nn.Module, inputs: Any, keep: Sequence[str] = (), *, is_merged: bool = False
) -> tuple[Recording, Lifted]:
    """As for a fold."""
    with Snapshot(model.modules()).restoring():
        return read_to_fold(model, [inputs], keep, Surroundings(model), is_merged=is_merged)


def _left(model: nn.Module, folded: object) -> frozenset[int]:
    """The ids of modules that stand in the other one as they are, but for what is in them."""
    if not isinstance(folded, nn.Module):
        return frozenset()
    others = dict(folded.named_modules())
    pairs = ((own, others.get(name)) for name, own in model.named_modules())
    return frozenset(id(own) for own, other in pairs if other is not None and _is_like(own, other))


def _is_like(module: nn.Module, other: nn.Module) -> bool:
    """Whether two modules are of one class, and hold the same tensors themselves."""
    if type(module) is not type(other):
        return False
    tables = [{**part._parameters, **part._buffers} for part in (module, other)]
    if tables[0].keys() != tables[1].keys():
        return False
    pairs = [(tensor, tables[1][name]) for name, tensor in tables[0].items()]
    return all(a is b or (a is not None and b is not None and is_equal(a, b)) for a, b in pairs)


def _kept(model: nn.Module, left: Collection[int], lifted: Lifted) -> list[str]:
    """The largest modules of which all is left, if a fold would have changed any of them."""
    whole: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        is_inside = any(name.startswith(f"{around}.") for around in whole)
        if name and not is_inside and all(id(part) in left for part in module.modules()):
            whole[name] = module
    plan, _ = decide(lifted, "auto")
    changed = {_module(lifted, number) for number in (*plan.removed, *plan.linear)}
    inside = {id(part) for module in whole.values() for part in module.modules()}
    return [*whole] if changed & inside else []


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
