"""An affine step as the events that make it, and whether its module can go.

A module is replaced only if it is a plain part of the model and nobody else reads what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnfold.core import graph as g
from bnfold.frontends.torch.leaf_modules import overrides_call
from bnfold.frontends.torch.lifter import AffineSite, Lifter
from bnfold.frontends.torch.ops import node_of
from bnfold.frontends.torch.recording import Event, Value


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """Consecutive events that make one affine step."""

    events: tuple[Event, ...]
    source: Value
    output: Value
    role: g.Step
    site: AffineSite
    name: str
    is_batch_norm: bool = True
    """False for a step made of arithmetic."""


def site_of(
    module: nn.Module | None, successors: tuple[nn.Module, ...], source: Value, last: Event
) -> AffineSite:
    """Where a step lives that ends with the event `last`."""
    output = last.outputs[0]
    node = node_of(last)
    return AffineSite(
        module,
        successors,
        source=source,
        output=output,
        event=last.number,
        nodes=() if node is None else (node,),
    )


def tie_of(lifter: Lifter, module: nn.Module | None) -> int | None:
    """What the calls of a module have in common, if they are several: they go or stay as one."""
    if module is None or len(lifter.recording.calls.get(id(module), ())) < 2:
        return None
    return id(module)


def can_be_replaced(lifter: Lifter, module: nn.Module) -> bool:
    """Whether the module is a plain part of the model."""
    if id(module) not in lifter.recording.members:
        return False
    return not overrides_call(type(module)) and not isinstance(module, torch.jit.ScriptModule)


def is_read_elsewhere(lifter: Lifter, module: nn.Module) -> bool:
    """Whether somebody else reads the parameters or statistics of a module that would vanish.

    A module with a name of its own for the tensor still has it then: two BatchNorms with one gamma.
    """
    return any(
        use.call.module is not module and not _has_its_own_name(use.call.module, tensor, module)
        for tensor in (*module._parameters.values(), *module._buffers.values())
        for use in lifter.recording.parameter_uses.get(id(tensor), ())
    )


def _has_its_own_name(reader: nn.Module | None, tensor: Tensor | None, module: nn.Module) -> bool:
    if reader is None or not owns(reader, tensor):
        return False
    return all(part is not module for part in reader.modules())  # it reads its own, not ours


def owns(module: nn.Module, tensor: Tensor | None) -> bool:
    """Whether it is a parameter or buffer of the module itself."""
    own = (*module._parameters.values(), *module._buffers.values())
    return tensor is not None and any(tensor is candidate for candidate in own)


def is_shared(lifter: Lifter, tensor: Tensor, event: Event, module: nn.Module | None) -> bool:
    """Whether anything but this event's op uses the tensor.

    That is the op in one call; in each call of the `module` that is the step, if it is one: there
    one edit does for all of them.
    """
    uses = lifter.recording.parameter_uses.get(id(tensor), [])
    if module is None:
        return len(uses) > 1 or any(use.event is not event for use in uses)
    foreign = any(
        use.event is None or use.call.module is not module or use.event.target != event.target
        for use in uses
    )
    return foreign or len({id(use.call) for use in uses}) < len(uses)
