"""Calls of whole modules that are not linear and not affine: the activations with bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from bnfold.core import graph as g
from bnfold.frontends.torch.lifter import ClipSite, Lifter, is_floating
from bnfold.frontends.torch.limits import read_bounds
from bnfold.frontends.torch.modules import OWN_NAMES
from bnfold.frontends.torch.recording import Event, Recording, Value


def emit(lifter: Lifter, event: Event) -> None:
    """Add the op of a leaf module call."""
    bounds = clip_bounds(event.target)
    source = event.args[0]
    if bounds is None or not is_floating(source) or event.number in lifter.open:
        lifter.opaque(event)
        return
    calls = lifter.module_events[id(event.target)]
    room = _has_room(lifter, calls)
    role = g.Clip(*read_bounds(*bounds, source.dtype), room=room)
    if room and len(calls) > 1:
        axes = tuple(lifter.open_axes(event, 0))
        role = replace(role, tie=id(event.target), stored_alike=axes)
    number = lifter.emit(event, role, [lifter.tensor(source)])
    if room:
        lifter.sites[number] = ClipSite(event.target, source, event.number, source.device)


def _has_room(lifter: Lifter, calls: Sequence[Event]) -> bool:
    """Whether an activation can be given bounds per channel, which serve all its calls."""
    module, recording = calls[0].target, lifter.recording
    if len(calls) < len(recording.calls[id(module)]) or id(module) not in recording.members:
        return False
    if any(hasattr(module, name) for name in OWN_NAMES):  # by somebody who may read it
        return False
    if any(call.number in lifter.open or old_name_is_read(recording, call) for call in calls):
        return False
    return len({(call.args[0].dtype, call.args[0].device) for call in calls}) == 1


def clip_bounds(module: nn.Module) -> tuple[float, float] | None:
    """Lower and upper bound of an activation module."""
    if isinstance(module, nn.ReLU):
        return 0.0, np.inf
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return float(module.min_val), float(module.max_val)
    return None


def old_name_is_read(recording: Recording, event: Event) -> bool:
    """Whether the program counts on an in-place write: it reads the memory not by its new name."""
    if event.written is None:
        return False
    made: Value | None = event.outputs[0]
    assert made is not None
    return any(
        number > event.number and handle < event.stamp
        for number, handle in reversed(recording.reads.get(made.storage, []))
    )
