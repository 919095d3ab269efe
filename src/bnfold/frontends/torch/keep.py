"""Modules that the user wants to stay as they are, for who calls them or looks at them otherwise.

What goes in, what comes out and what is computed inside keeps its values: somebody reads it, as the
user reads an output. Then no weight in there changes, and no step in there goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from bnfold.errors import UsageError
from bnfold.frontends.torch.recording import Call, Recording, Value


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
        parts = {id(part) for part in module.modules()}
        values = {
            value.number: value
            for part in parts
            for call in recording.calls.get(part, ())
            for value in _values(call)
        }
        reader = f"{name or type(model).__name__} (keep)"
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
