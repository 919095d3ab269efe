"""Modules that stay as they are, for who calls them or looks at them otherwise.

The user names them, or the model returns them, or what leads to them (see `handed_out`).
What goes in, what comes out and what is computed inside keeps its values: somebody reads it, as the
user reads an output. Then no weight in there changes, and no step in there goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from bnfold.errors import UsageError
from bnfold.frontends.torch.copies import same_randomness
from bnfold.frontends.torch.entries import Entry
from bnfold.frontends.torch.lift import lift
from bnfold.frontends.torch.lifter import Lifted
from bnfold.frontends.torch.read_other_sizes import read_as_needed
from bnfold.frontends.torch.recording import Call, Recording, Value
from bnfold.frontends.torch.restorable import Restorable


def read_to_fold(
    model: nn.Module,
    runs: Sequence[Any],
    keep: Sequence[str],
    surroundings: Restorable | None,
    *,
    is_merged: bool,
) -> tuple[Recording, Lifted]:
    """What the model does, with what is kept in there, and the same as a graph."""
    with same_randomness():
        recording = read_as_needed(model, runs, is_merged=is_merged, surroundings=surroundings)
        recording.entered = frozenset(run.entry for run in runs if isinstance(run, Entry))
        pin(model, recording, keep)
        pin_handed_out(model, recording)
        return recording, lift(recording)


def pin(model: nn.Module, recording: Recording, keep: Sequence[str]) -> None:
    """Make the values of these modules outputs of the model. Raises UsageError."""
    for name in keep:
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise UsageError(
                f"keep: {type(model).__name__} has no submodule {name!r}",
                "name it as model.named_modules() does",
            ) from error
        _pin(recording, module.modules(), f"{name or type(model).__name__} (keep)")


def pin_handed_out(model: nn.Module, recording: Recording) -> None:
    """The same for modules that somebody may run who gets what the model returns."""
    names = {id(module): name for name, module in model.named_modules()}
    for key, module in recording.handed_out.items():
        name = names.get(key) or type(module).__name__
        _pin(recording, [module], f"{name} (handed out by the model)")


def _pin(recording: Recording, parts: Iterable[nn.Module], reader: str) -> None:
    """Make the values of these modules outputs of the model, read by who is named."""
    values = {
        value.number: value
        for part in parts
        for call in recording.calls.get(id(part), ())
        for value in _values(call)
    }
    recording.outputs += [(value, reader) for value in values.values()]
    recording.persistent |= {value.storage for value in values.values()}


def _values(call: Call) -> Iterator[Value]:
    yield from call.inputs
    yield from call.outputs
    for item in call.items:
        if isinstance(item, Call):
            yield from _values(item)
        else:
            yield from (value for value in item.outputs if value is not None)
