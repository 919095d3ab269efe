"""Affine steps: BatchNorm calls, and arithmetic with constants.

A BatchNorm is removable where its module can be replaced by what else the module did: nothing
(nn.BatchNorm2d), or some child modules in a row (timm's BatchNormAct2d: dropout and activation). A
module that scales and shifts by constants of its own (FrozenBatchNorm2d, LayerScale) is one affine
step too. Arithmetic that a larger module does in passing can be seen through but not removed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnfold.core import graph as g
from bnfold.core.reasons import Reason
from bnfold.frontends.torch.affine_arithmetic import arithmetic_chain, constants_chain
from bnfold.frontends.torch.affine_batch_norm import batch_norm_chain
from bnfold.frontends.torch.affine_chain import Chain, owns
from bnfold.frontends.torch.batch_norms import BatchNormSpec, batch_norm_spec
from bnfold.frontends.torch.leaf_modules import BATCH_NORMS, has_hooks
from bnfold.frontends.torch.lifter import Lifter
from bnfold.frontends.torch.recording import Call, Event, values


@dataclass(slots=True)
class Steps:
    """All affine steps of a recording."""

    chains: dict[int, Chain] = field(default_factory=dict)
    """Per number of the first event."""
    skipped: set[int] = field(default_factory=set)
    """Numbers of the other events of the chains."""


def survey(lifter: Lifter, biases: Collection[int]) -> Steps:
    """Find all affine steps: whole modules first, then single events, but for those of `biases`."""
    steps = Steps()
    for calls in lifter.recording.calls.values():
        chains = [_module_chain(lifter, call) for call in calls]
        left = {chain.site.successors for chain in chains if chain is not None}
        if any(chains) and (None in chains or len(left) > 1):
            # One of its calls did something else: what replaces the module would be wrong there.
            chains = [_refused(chain, _why_not_alike(calls)) for chain in chains]
        for chain in chains:
            _register(steps, chain)
    for event in lifter.recording.events:
        if event.number in steps.chains or event.number in steps.skipped:
            continue
        if event.number in biases:
            continue
        spec = _spec_of(lifter, event)
        if spec is not None:
            hooked = _hooked_call(event)
            _register(steps, batch_norm_chain(lifter, event, spec, hooked, None if hooked else ()))
            continue
        _register(steps, arithmetic_chain(lifter, event))
    return steps


def _hooked_call(event: Event) -> Call | None:
    """The call of a BatchNorm that a BatchNorm op is all of but for hooks, which may compute."""
    module = event.call.module
    return event.call if isinstance(module, BATCH_NORMS) and has_hooks(module) else None


def _why_not_alike(calls: Sequence[Call]) -> g.Refusal:
    """Why not all calls of a module can go."""
    if all(call.inputs for call in calls):
        return g.Refusal(Reason.MODULE_DOES_MORE, "another call of it did something else")
    return g.Refusal(Reason.SHARED, "another call of it gets what does not depend on the inputs")


def _refused(chain: Chain | None, refusal: g.Refusal) -> Chain | None:
    """The same step, as one that must stay; a step of constants is left to its single events."""
    if chain is None or isinstance(chain.role, g.RefusedStep) or chain.role.refusal is not None:
        return chain
    if not chain.is_batch_norm:
        return None
    return replace(chain, role=replace(chain.role, removal=refusal))


def emit(lifter: Lifter, chain: Chain) -> None:
    """Add the op."""
    last = chain.events[-1]
    inputs = [lifter.tensor(chain.source)]
    if isinstance(
        chain.role, g.RefusedStep
    ):  # it may read more that depends on the input: its statistics
        inputs = [lifter.tensor(value) for value in values(last.args, last.kwargs)]
    number = lifter.emit(last, chain.role, inputs, outputs=[chain.output], name=chain.name)
    lifter.sites[number] = chain.site


def _register(steps: Steps, chain: Chain | None) -> None:
    if chain is None or any(
        event.number in steps.chains or event.number in steps.skipped for event in chain.events
    ):
        return
    first, *rest = chain.events
    steps.chains[first.number] = chain
    steps.skipped.update(event.number for event in rest)


# -------------------------------------------------------------------- modules


def _module_chain(lifter: Lifter, call: Call) -> Chain | None:
    """The affine step that a module consists of, with what else it did."""
    module = call.module
    if module is None:
        return None
    leading = _leading_events(call)
    if not leading:
        return None
    successors = _successors(call, leading[-1])
    spec = _spec_of(lifter, leading[0])
    if spec is not None and len(leading) == 1:
        owner = owns(module, spec.mean) or (spec.mean is None and isinstance(module, _BatchNorm))
        return batch_norm_chain(lifter, leading[0], spec, call, successors) if owner else None
    if spec is not None or successors is None or not call.single:
        return None
    if any(event.number in lifter.open for event in leading):
        return None
    return constants_chain(lifter, call, leading, successors)


def _spec_of(lifter: Lifter, event: Event) -> BatchNormSpec | None:
    """A BatchNorm, one that is not the same in every run included."""
    spec = batch_norm_spec(event)
    if spec is None or event.number not in lifter.open:
        return spec
    written = (id(part) in lifter.recording.changed for part in (spec.mean, spec.var))
    changing = spec.changing or any(written)
    varies = event.number in lifter.recording.varying and not (changing or spec.training)
    return replace(spec, mean=None, var=None, changing=changing, varies=varies)


def _leading_events(call: Call) -> list[Event]:
    """The events directly inside a call, if they come before all calls of children."""
    events: list[Event] = []
    for index, item in enumerate(call.items):
        if isinstance(item, Event):
            if index != len(events):
                return []
            events.append(item)
    return events


def _successors(call: Call, last: Event) -> tuple[nn.Module, ...] | None:
    """The child modules that ran one after the other behind the affine step; None if otherwise."""
    value = last.outputs[0] if last.outputs else None
    if value is None or not call.single or not call.outputs:
        return None
    successors: list[nn.Module] = []
    for item in call.items:
        if not isinstance(item, Call):
            continue
        if not item.single or item.inputs[0].number != value.number or item.module is None:
            return None
        if not item.outputs:
            return None
        value = item.outputs[0]
        if item.items:
            successors.append(item.module)
    return tuple(successors) if value.number == call.outputs[0].number else None
