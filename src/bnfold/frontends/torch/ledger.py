"""Writing down a run: its events and calls, in order, and who uses which parameter."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bnfold.frontends.torch.recording import (
    Call,
    Const,
    Derivation,
    Event,
    Recording,
    Use,
    Value,
    constants,
)
from bnfold.frontends.torch.settings import Given
from bnfold.frontends.torch.structure_run import NeedsValues
from bnfold.frontends.torch.tensor_facts import AT_RANDOM, MADE, is_ordinary


class Ledger:
    """Writes one run into a recording."""

    def __init__(
        self, recording: Recording, names: dict[int, str], given: Given | None, *, structural: bool
    ) -> None:
        self.recording = recording
        self.names = names
        """What modules are called, by id()."""
        self.given = given
        """What the modules were set to before; None for an exported program, which has none."""
        self.is_structural = structural
        """Whether values mean nothing in this run."""
        self.is_void = False
        """Whether values were asked for in a run that has none: it tells nothing any more."""
        self.call = Call(None, "", None)
        """The call that is under way."""
        self.named: dict[tuple[str, str], int] = {}
        """How often an op was called in a module."""

    def void(self) -> NeedsValues:
        """What to raise where values are asked for; the run is void even if that is swallowed."""
        self.is_void = True
        return NeedsValues()

    def append(
        self,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: tuple[Value | None, ...],
        *,
        name: str,
        written: Value | None = None,
    ) -> Event:
        """A new event, with the uses of the constants among its arguments."""
        number = len(self.recording.events)
        stamp = next(self.recording.counter)
        event = Event(number, target, args, kwargs, outputs, self.call, name, written, stamp)
        self.recording.events.append(event)
        self.call.items.append(event)
        for constant in constants(args, kwargs):
            self.note_use(constant, event)
            tensor = constant.tensor
            if getattr(tensor, MADE, None) == AT_RANDOM or not is_ordinary(tensor):
                self.recording.varying.add(number)
            if self.given is not None and self.given.has_moved(constant.origin):
                # Lent for this call alone (p.data = average): not what the parameter holds.
                self.recording.varying.add(number)
                self.note_other_use(tensor, constant.origin)
        return event

    def note_use(self, constant: Const, event: Event | None) -> None:
        """Somebody takes a parameter, or what was made of it."""
        uses = self.recording.parameter_uses.setdefault(id(constant.origin), [])
        uses.append(Use(event, constant.how, self.call))

    def note_other_use(self, tensor: Tensor, origin: Tensor) -> None:
        """Somebody takes a parameter for who knows what: it is to stay what it is."""
        self.note_use(Const(tensor, origin, Derivation.OTHER), None)

    def name_of(self, func: Any) -> str:
        """Where a function call is, for the reader of a report: 'relu #2 in encoder.layer1'."""
        what = str(getattr(func, "_opname", func)).removeprefix("_").removesuffix("_")
        where = self.call.name or "the model"
        count = self.named[what, where] = self.named.get((what, where), 0) + 1
        return f"{what} in {where}" if count == 1 else f"{what} #{count} in {where}"

    def enter(self, module: nn.Module) -> Call:
        """A module call begins."""
        name = self.names.get(id(module), type(module).__name__)
        call = Call(module, name, self.call)
        self.call.items.append(call)
        self.recording.calls.setdefault(id(module), []).append(call)
        self.call = call
        return call

    def lose(self, module: nn.Module) -> None:
        """A part of the model runs where nobody looks: in another thread."""
        if id(module) in self.recording.members:
            self.recording.lost.append(module)
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    self.note_other_use(tensor, tensor)
