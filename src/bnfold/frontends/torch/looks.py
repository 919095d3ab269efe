"""Where the code of a program was told what tensors hold: from there on it may do anything."""

from __future__ import annotations

import torch
from torch import nn

from bnfold.frontends.torch.ops import aten_name
from bnfold.frontends.torch.recording import LOOK, Event, Recording, values


def asks_for_values(recording: Recording) -> bool:
    """Whether the code was told what a tensor holds that depends on the input."""
    return any(map(hands_out, recording.events)) or (
        recording.asked.sizes and any(map(_is_as_long_as_values_say, recording.events))
    )


def leaves_nothing(recording: Recording) -> bool:
    """Whether no run was seen to leave anything for the next, or to depend on such a thing."""
    left = recording.changed or recording.counts or recording.varying or recording.parted
    return not left and recording.rounds == 1


def hands_out(event: Event) -> bool:
    """Whether its result is no tensor but what the code gets to see."""
    if isinstance(event.target, nn.Module) or event.outputs:
        return False
    schema = getattr(event.target, "_schema", None)
    return event.target == LOOK or (schema is not None and bool(schema.returns))


def _is_as_long_as_values_say(event: Event) -> bool:
    """Whether the shape of what it makes depends on values: nonzero, x[mask]."""
    if torch.Tag.dynamic_output_shape not in getattr(event.target, "tags", ()):
        return False
    chosen = [value.dtype for value in values(event.args[1:], event.kwargs)]
    return aten_name(event.target) != "index" or torch.bool in chosen
