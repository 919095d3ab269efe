"""Whether a copy that a module made in a way of its own is the module, and what stands for what.

`__reduce__`, `__getstate__` and `__deepcopy__` may do anything: build a network of the same
configuration with weights of its own, or leave out what a pickle should not hold. A copy is taken
for the module where it has

    the same modules    by name and class, and shared where they are shared
    the same tensors    parameters and buffers, bit for bit, and shared where they are shared
    the same settings   numbers, texts, arrays and tensors among the attributes, also in lists and
                        tables. An object (a lock, a trainer, a graph) may have been left out or
                        made anew: nothing tells whether that changes what is computed but a run

Such a copy is often made without the memo that says what was copied to what, or what is to stand in
place of what. So that is told by the names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from bnfold.frontends.torch.code_names import names_used
from bnfold.frontends.torch.held import is_a
from bnfold.frontends.torch.tensor_facts import holds_the_same, is_ordinary

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_OF_MODULES = ("_parameters", "_buffers", "_modules")
_COUNTED = frozenset(
    name for name, part in nn.Module().__dict__.items() if isinstance(part, dict)
).difference(_OF_MODULES)
"""Tables of hooks: their keys count what was registered in this process."""
_DEEPEST = 6


class NotAsItIsError(Exception):
    """What is other in the copy, in words."""


def note_twins(
    model: nn.Module, copied: nn.Module, memo: dict[int, Any], given: frozenset[int]
) -> None:
    """Note in the memo what stands for what, where the copy was made without it.

    What was `given` in the memo and is not in the copy: new content of a tensor is put there; of a
    module the memo says then which one is to become another. Raises NotAsItIsError.
    """
    _Twins(memo, given).note("", model, copied)


@dataclass(frozen=True, slots=True)
class _Twins:
    """A walk through a model and its copy, side by side."""

    memo: dict[int, Any]
    given: frozenset[int]
    known: dict[int, Any] = field(default_factory=dict)
    """The copy of each module and tensor, by id()."""
    origins: dict[int, Any] = field(default_factory=dict)
    """And the other way round."""

    def note(self, name: str, module: nn.Module, twin: Any) -> None:
        """A module and its copy, and what is in them; what PyTorch copies is taken as it is."""
        key, place = id(module), name or type(module).__name__
        if twin is module or isinstance(module, torch.jit.ScriptModule):
            return
        if key in self.given and self.memo[key] is twin:
            return
        is_graph = isinstance(module, fx.GraphModule)
        if type(twin) is not type(module) and not is_graph:
            raise NotAsItIsError(f"{place} is {_kind(twin)} in its copy")
        if not self._is_new(place, module, twin):
            return
        self.memo[key] = twin
        if key in self.given:
            return
        if not is_graph:
            self._compare(place, module, twin)
        for child, part in module._modules.items():
            other = twin._modules.get(child)
            if part is not None and not (other is None and is_graph):
                self.note(f"{name}.{child}" if name else child, part, other)

    def _is_new(self, place: str, thing: Any, twin: Any) -> bool:
        """Whether it is met for the first time; raises where only one of both is."""
        is_new = id(thing) not in self.known
        twin_known = self.known.setdefault(id(thing), twin)
        origin = self.origins.setdefault(id(twin), thing)
        if twin_known is not twin or origin is not thing:
            raise NotAsItIsError(f"{place} is shared otherwise in its copy")
        return is_new

    def _compare(self, place: str, module: nn.Module, twin: nn.Module) -> None:
        """What is in a module, besides its submodules."""
        if more := twin._modules.keys() - module._modules.keys():
            raise NotAsItIsError(f"{place} has one more module in its copy, {min(more)}")
        for table in ("_parameters", "_buffers"):
            for key, tensor in module.__dict__[table].items():
                if tensor is not None:
                    self._note_tensor(f"{place}.{key}", tensor, twin.__dict__[table].get(key))
        if type(module).__module__.startswith("torch."):  # it knows what it leaves out
            return
        for key, value in module.__dict__.items():
            other = twin.__dict__.get(key)
            if key in _OF_MODULES or self._is_alike(value, other, key in _COUNTED):
                continue
            if _may_read(module, key):
                raise NotAsItIsError(f"{place}.{key} is {_kind(other)} in its copy")

    def _note_tensor(self, place: str, tensor: Tensor, twin: Any) -> None:
        if not isinstance(twin, Tensor):
            raise NotAsItIsError(f"{place} is {_kind(twin)} in its copy")
        if twin is tensor or not self._is_new(place, tensor, twin):
            return
        made: Any = self.memo.get(id(tensor))
        if made is twin:
            return
        if not _holds_the_same(tensor, twin):
            raise NotAsItIsError(f"{place} is another one in its copy")
        if id(tensor) in self.given:  # as it was made without the memo, it is not there yet
            twin.data = made.data
        self.memo[id(tensor)] = twin

    def _is_alike(self, value: Any, twin: Any, is_counted: bool = False, depth: int = 0) -> bool:
        """Whether a setting is the same; an object may be anything."""
        if isinstance(value, Tensor):
            is_known = twin is not None and self.memo.get(id(value)) is twin
            return is_known or _holds_the_same(value, twin)
        if is_a(value, _PLAIN):
            return type(twin) is type(value) and (twin == value or value != value)
        if isinstance(value, np.ndarray) and value.dtype != object:
            return isinstance(twin, np.ndarray) and _bytes(value) == _bytes(twin)
        if not is_a(value, _HOLDERS) or not value or depth > _DEEPEST:
            return True
        if type(twin) is not type(value) or len(twin) != len(value):
            return False
        if is_counted or isinstance(value, set):
            return True
        pairs = zip(_held(value), _held(twin), strict=True)
        return all(self._is_alike(one, other, depth=depth + 1) for one, other in pairs)


def _may_read(module: nn.Module, name: str) -> bool:
    """Whether code that runs in a call names an attribute, or asks for attributes otherwise."""
    names = names_used([module])
    return name in names or not names.isdisjoint(("getattr", "vars", "__dict__"))


_HOLDERS = (list, tuple, deque, set, Mapping)


def _held(holder: Any) -> list[Any]:
    return [*holder.keys(), *holder.values()] if isinstance(holder, Mapping) else [*holder]


def _holds_the_same(tensor: Tensor, twin: Any) -> bool:
    """Whether it is as much a tensor; of a class of its own, nobody else can say."""
    if not isinstance(twin, Tensor) or type(twin) is not type(tensor):
        return False
    if is_lazy(tensor) or not is_ordinary(tensor):
        return True
    return tensor.requires_grad == twin.requires_grad and holds_the_same(tensor, twin)


def _bytes(array: Any) -> Any:
    return array.shape, array.dtype, array.tobytes()


def _kind(thing: Any) -> str:
    if isinstance(thing, nn.Module):
        return f"a {type(thing).__name__}"
    return "not there" if thing is None else "another one"
