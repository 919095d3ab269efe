"""Whether a module's code may take a path that no reading of it shows.

Other sizes, other layouts and a second run are read (`read_other_sizes`, `state`). Two things can
choose a path by what no few readings tell:

    values    `if x.sum() > 0`, `.item()`, `len(x[x > 0])`: each input may decide otherwise
    numbers   that a run leaves in a module for the next: a counter may turn at any count

A removal computes the same with every module that stays. A merge does not: a carrier without the
branch that was merged into it is wrong, and a branch that was merged away returns nothing.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import nn

from bnfold.frontends.torch.ops import aten_name
from bnfold.frontends.torch.recording import LOOK, Event, Recording, values

_NUMBERS = (int, float, str)
_HOLDERS = (list, tuple, dict, set, deque)


def asks_for_values(recording: Recording) -> bool:
    """Whether the code was told what a tensor holds that depends on the input."""
    return any(_hands_out(event) for event in recording.events) or (
        recording.asked.sizes and any(map(_is_as_long_as_values_say, recording.events))
    )


def counts(now: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a run left other numbers among a module's attributes than it found."""
    return any(_is_another(value, before.get(key)) for key, value in now.items())


def _is_another(value: Any, before: Any) -> bool:
    """Whether it is, or holds, other numbers; or more or less of anything."""
    if isinstance(value, _NUMBERS):
        return type(value) is not type(before) or value != before
    if not isinstance(value, _HOLDERS):
        return False
    if not isinstance(before, _HOLDERS) or len(value) != len(before):
        return True
    parts = [held.values() if isinstance(held, dict) else held for held in (value, before)]
    return not isinstance(value, set) and any(
        isinstance(one, _NUMBERS) and one != other for one, other in zip(*parts, strict=True)
    )


def _hands_out(event: Event) -> bool:
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
