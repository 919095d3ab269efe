"""Lift a recording into the core's graph: which role each event plays, and what may be edited.

The tables are in `lift_modules` (calls of whole modules) and `lift_aten` (single ops); what no
table knows is opaque. For each op that the plan may change, a site says where in the module tree.
"""

from __future__ import annotations

from torch import nn

from bnfold.core.reasons import Reason
from bnfold.frontends.torch import lift_affine, lift_aten, lift_linear, lift_modules
from bnfold.frontends.torch.aliasing import written_or_not
from bnfold.frontends.torch.leaf_modules import is_observed
from bnfold.frontends.torch.lifter import Lifted, Lifter
from bnfold.frontends.torch.recording import Recording, Value
from bnfold.frontends.torch.stacks import leave_out
from bnfold.frontends.torch.symbolic import EVERY


def lift(recording: Recording) -> Lifted:
    """The graph of a recording."""
    lifter = Lifter(recording)
    lifter.open |= dict.fromkeys(written_or_not(recording), frozenset({EVERY}))
    for value, name in recording.inputs:
        lifter.tensors[value.number] = lifter.graph.input(value.shape, name)
    linears = lift_linear.survey(lifter)
    steps = lift_affine.survey(lifter, linears.adders)
    hooked = _hooked_values(recording)
    for event in recording.events:
        if event.number in steps.skipped:
            continue
        if event.number in steps.chains:
            lift_affine.emit(lifter, steps.chains[event.number])
        elif event.number in linears.adders:
            lift_linear.emit_adder(lifter, event)
        elif event.number in linears.specs:
            lift_linear.emit(lifter, event, linears)
        elif isinstance(event.target, nn.Module):
            lift_modules.emit(lifter, event)
        else:
            lift_aten.emit(lifter, event)
    for value, name in hooked:
        lifter.graph.output(lifter.tensor(value), name, Reason.HOOK)
    for value in recording.read_later:
        lifter.graph.output(lifter.tensor(value), "another run", Reason.VARIES)
    for value, name in recording.outputs:
        lifter.graph.output(lifter.tensor(value), name)
    leave_out(lifter)
    return Lifted(lifter.graph, lifter.sites, lifter.tensors, lifter.events, lifter.stacks)


def _hooked_values(recording: Recording) -> list[tuple[Value, str]]:
    hooked = []
    for calls in recording.calls.values():
        for call in calls:
            if call.module is not None and is_observed(call.module):
                hooked += [(value, call.name) for value in (*call.inputs, *call.outputs)]
    return hooked
