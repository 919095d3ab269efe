"""The copy of a model that is run in its place, and the way back from it.

Whatever the run leaves behind (hooks, attributes, buffers written through any interface) is left in
the copy and thrown away with it. The copy's parameters are objects of their own over the original's
memory, so that a copy costs next to nothing; buffers, which runs do write to, are copied. Where the
run hands out the memory of parameters, or writes to it, the copy gets memory of its own.

What a closure, a global or a default argument holds is not part of the copy: there the run meets
the original's own modules and tensors, and that is how they are told from the model's parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bnfold.frontends.torch.copies import deep_copy
from bnfold.frontends.torch.recording import Const, Recording, Use, map_constants
from bnfold.frontends.torch.tensor_facts import content_address, holds_the_same, shape_if_any


class NeedsMemory(BaseException):
    """The run hands out memory that it shares with the original: give the copy its own."""


@dataclass(slots=True)
class Shadow:
    """A model to be run, and what stands for what."""

    model: nn.Module
    modules: list[nn.Module]
    """The parts that may be told from the original's."""
    originals: dict[int, Any] = field(default_factory=dict)
    """Per id() of a module or tensor of the copy: the original. Empty where nothing was copied."""
    outside: frozenset[int] = frozenset()
    """id() of the original's modules and tensors: met in a run, they are no part of the copy."""

    shares_memory: bool = False
    """Whether the copy's parameters live in the original's memory."""

    @property
    def is_copy(self) -> bool:
        """Whether the model may be thrown away."""
        return bool(self.originals)

    def original(self, part: Any) -> Any:
        """What a module or tensor of the copy stands for; the thing itself for all others."""
        return self.originals.get(id(part), part)

    def changed(self) -> list[Tensor]:
        """The original's tensors whose copies hold something else now, or were replaced."""
        held = {
            id(tensor)
            for module in self.modules
            if not isinstance(module, torch.jit.ScriptModule)
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        }
        return [
            old
            for key, old in self.originals.items()
            if isinstance(old, Tensor) and (key not in held or self._differs(key, old))
        ]

    def _differs(self, key: int, old: Tensor) -> bool:
        new = self._tensors[key]
        if shape_if_any(new) != shape_if_any(old) or new.dtype != old.dtype:
            return True
        if (address := content_address(new)) is not None and address == content_address(old):
            return False
        return not holds_the_same(new, old)

    _tensors: dict[int, Tensor] = field(default_factory=dict)


def shadow_of(model: nn.Module, modules: Sequence[nn.Module], *, own_memory: bool) -> Shadow:
    """A copy to run; the model itself where it cannot be copied."""
    memo: dict[int, Any] = {}
    for module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for tensor in module._parameters.values():
            if type(tensor) is nn.Parameter and id(tensor) not in memo:
                # `data` has a version of its own: a graph that was made before stays valid.
                content = tensor.data.clone() if own_memory else tensor.data
                memo[id(tensor)] = _parameter(tensor, content)
    try:
        copied = deep_copy(model, memo)
    except Exception:
        return Shadow(model, list(modules))
    shadow = Shadow(copied, list(copied.modules()), shares_memory=not own_memory)
    parts = {id(module) for module in shadow.modules}
    for module in modules:
        twin = memo.get(id(module))
        if twin is None or id(twin) not in parts:
            continue
        shadow.originals[id(twin)] = module
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for held in (*module._parameters.values(), *module._buffers.values()):
            held_copy = None if held is None else memo.get(id(held))
            if isinstance(held_copy, Tensor):
                shadow.originals[id(held_copy)] = held
                shadow._tensors[id(held_copy)] = held_copy
    shadow.outside = frozenset(id(original) for original in shadow.originals.values())
    return shadow


def _parameter(old: nn.Parameter, content: Tensor) -> nn.Parameter:
    # Made in inference mode, it takes no gradient outside of it.
    learns = old.requires_grad and not content.is_inference()
    new = nn.Parameter(content, requires_grad=learns)
    new.__dict__.update(old.__dict__)
    return new


def translate_back(recording: Recording, shadow: Shadow) -> None:
    """State the recording in terms of the original."""
    if not shadow.is_copy:
        return
    foreign = set(recording.calls) & shadow.outside
    seen: set[int] = set()

    def translate(constant: Const) -> Const:
        if id(constant.tensor) in shadow.outside:
            seen.add(id(constant.tensor))
        if id(constant.origin) in shadow.outside:
            seen.add(id(constant.origin))
        tensor, origin = shadow.original(constant.tensor), shadow.original(constant.origin)
        if tensor is constant.tensor and origin is constant.origin:
            return constant
        return Const(tensor, origin, constant.how)

    for event in recording.events:
        event.args = map_constants(translate, event.args)
        event.kwargs = map_constants(translate, event.kwargs)
        if isinstance(event.target, nn.Module):
            event.target = shadow.original(event.target)
    calls: dict[int, list[Any]] = {}
    for made in recording.calls.values():
        for call in made:
            assert call.module is not None
            call.module = shadow.original(call.module)
            calls.setdefault(id(call.module), []).append(call)
    recording.calls = calls
    uses: dict[int, list[Use]] = {}
    for key, key_uses in recording.parameter_uses.items():
        uses.setdefault(id(shadow.originals[key]) if key in shadow.originals else key, []).extend(
            key_uses
        )
    recording.parameter_uses = uses
    owned = [shadow.original(tensor) for tensor in recording.owned.values()]
    recording.owned = {id(tensor): tensor for tensor in owned if id(tensor) not in seen}
    recording.members = (
        frozenset(id(shadow.originals[key]) for key in recording.members if key in shadow.originals)
        - foreign
        - {id(shadow.original(module)) for module in recording.lost}
    )
    handed_out = [shadow.original(module) for module in recording.handed_out.values()]
    recording.handed_out = {id(module): module for module in handed_out}
    recording.lost = [shadow.original(module) for module in recording.lost]
    recording.parted = [shadow.original(module) for module in recording.parted]
    recording.lent_biases = {key: shadow.original(m) for key, m in recording.lent_biases.items()}
