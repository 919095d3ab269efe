"""What a run leaves for the next one, as far as Python shows it.

A counter, a cache that grows, an iterator: numbers, lengths and small tensors that are held by the
modules, by what their attributes, hooks, closures and defaults hold, by their classes, and by the
globals that their code names. Two runs between which all of this is the same take the same path,
as long as no values are asked for.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnfold.frontends.torch.code_names import is_foreign, names_of
from bnfold.frontends.torch.tensor_facts import is_ordinary

Traces = dict[str, Any]
"""What was found, by the place where it was."""

_MOST_THINGS = 20_000
_MOST_VALUES = 16
_DEEPEST = 8
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_SKIPPED = (type, types.ModuleType, types.BuiltinFunctionType, nn.Module, torch.dtype, torch.device)
_SIZED = (Sequence, Mapping, set, frozenset, deque)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_INTERNAL = frozenset(nn.Module().__dict__) - {*_HOOKS, "training"}


def traces_of(named: Mapping[str, nn.Module], *, are_real: bool) -> Traces:
    """What lies in these modules now; `are_real` says whether floating-point tensors do."""
    walk = _Walk(are_real=are_real)
    for name, module in named.items():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        place = f"{name}." if name else ""
        own = module.__dict__
        is_ours = not type(module).__module__.startswith("torch.")
        for key in (*own, *_HOOKS) if is_ours else _HOOKS:
            if key not in _INTERNAL and (is_ours or own[key]):
                walk.note(place + key, own[key], 0)
        for key, buffer in own["_buffers"].items() if is_ours else ():
            walk.note(place + key, buffer, 0)
        for kind in type(module).__mro__ if is_ours else ():
            if not kind.__module__.startswith(("torch.", "builtins")):
                walk.note_class(kind)
    return walk.found


def moved(now: Traces, before: Traces) -> list[str]:
    """The places where something else lies now."""
    places = (*now, *(place for place in before if place not in now))
    return [p for p in places if p not in now or p not in before or now[p] != before[p]]


class _Walk:
    def __init__(self, *, are_real: bool) -> None:
        self.are_real = are_real
        self.found: Traces = {}
        self.seen: dict[int, Any] = {}
        """What was met, by id(); held, so that nothing else gets the number."""

    def note(self, place: str, thing: Any, depth: int) -> None:
        """Write down what lies there, and go on to what it holds."""
        if isinstance(thing, _PLAIN):
            self.found[place] = repr(thing) if isinstance(thing, float | complex) else thing
            return
        if id(thing) in self.seen or depth > _DEEPEST or isinstance(thing, _SKIPPED):
            return
        if len(self.seen) >= _MOST_THINGS:
            return
        self.seen[id(thing)] = thing
        if isinstance(thing, types.FunctionType):  # most of what a module of Python holds
            parts = _held_by_function(thing)
        elif isinstance(thing, Tensor | np.ndarray):
            self.found[place] = self._content(thing)
            return
        else:
            if isinstance(thing, _SIZED):
                self.found[f"{place} (length)"] = len(thing)
            parts = _parts(thing)
        for key, part in parts:
            self.note(f"{place}{key}", part, depth + 1)

    def note_class(self, kind: type) -> None:
        """What a class holds for all its instances."""
        if id(kind) in self.seen:
            return
        self.seen[id(kind)] = kind
        for key, value in vars(kind).items():
            if not key.startswith("__"):
                self.note(f"class {kind.__name__}.{key}", value, 1)

    def _content(self, tensor: Tensor | np.ndarray[Any, Any]) -> Any:
        if isinstance(tensor, np.ndarray):
            shape = tuple(tensor.shape)
            return shape, tensor.tobytes() if tensor.nbytes <= 8 * _MOST_VALUES else None
        if tensor.is_nested:
            return None
        shape = tuple(tensor.shape)
        plain = is_ordinary(tensor) and not tensor.is_quantized
        integers = not (tensor.is_floating_point() or tensor.is_complex())
        if not plain or tensor.numel() > _MOST_VALUES:
            return shape
        is_read = self.are_real or (integers and tensor.dtype is not torch.bool)
        return shape, repr(tensor.tolist()) if is_read else None


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """What it holds, with how to get there."""
    if isinstance(thing, Mapping):
        yield from ((f"[{key!r:.40}]", value) for key, value in list(thing.items()))
    elif isinstance(thing, list | tuple | deque):
        yield from ((f"[{index}]", value) for index, value in enumerate(list(thing)))
    elif isinstance(thing, types.MethodType):
        yield from (("", thing.__func__), ("'s self", thing.__self__))
    elif isinstance(thing, functools.partial):
        yield from (("", thing.func), (" args", thing.args), (" keywords", thing.keywords))
    elif isinstance(thing, property | classmethod | staticmethod):
        yield "", thing.fget if isinstance(thing, property) else thing.__func__
    elif isinstance(thing, types.GeneratorType):
        frame = thing.gi_frame
        yield " (step)", -1 if frame is None else frame.f_lasti
        yield "", {} if frame is None else dict(frame.f_locals)
    elif type(thing).__module__ == "itertools":
        yield "", reduced(thing)
    elif isinstance(thing, types.SimpleNamespace) or not is_foreign(type(thing)):
        yield from _attributes(thing)


def _attributes(thing: Any) -> Iterator[tuple[str, Any]]:
    held = getattr(thing, "__dict__", None)
    if isinstance(held, dict):
        yield from ((f".{key}", value) for key, value in list(held.items()))
    for kind in type(thing).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            descriptor = vars(kind).get(name)
            if isinstance(descriptor, types.MemberDescriptorType):
                yield f".{name}", descriptor.__get__(thing) if _is_set(thing, name) else None


def _is_set(thing: Any, name: str) -> bool:
    try:
        object.__getattribute__(thing, name)
    except AttributeError:
        return False
    return True


def _held_by_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f" {name}", cell.cell_contents
        except ValueError:  # nothing was ever put in
            continue
    if function.__defaults__:
        yield " defaults", function.__defaults__
    if function.__kwdefaults__:
        yield " defaults by name", function.__kwdefaults__
    if function.__dict__:
        yield "", function.__dict__
    for name in names_of(code):
        if name not in function.__globals__:
            continue
        value = function.__globals__[name]
        own = getattr(value, "__module__", None) == function.__module__
        if own or not isinstance(value, types.FunctionType):
            yield f" {name}", value


def reduced(iterator: Any) -> Any:
    """How a copy of it would be made: where it stands."""
    try:
        return list(iterator.__reduce__())[1:]
    except Exception:  # what it goes over cannot be copied
        return repr(iterator)
