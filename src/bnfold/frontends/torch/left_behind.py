"""What a run leaves for the next one, as far as Python shows it.

A counter, a cache that grows, an iterator: numbers, lengths and small tensors that are held by the
modules, by what their attributes, hooks, closures and defaults hold, by their classes, and by the
globals that their code names. Two runs between which all of this is the same take the same path,
as long as no values are asked for. No code of what is found is run: see `held`.
"""

from __future__ import annotations

import functools
import types
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnfold.frontends.torch.code_names import is_foreign, names_of
from bnfold.frontends.torch.held import (
    LIKE_TABLES,
    TABLES,
    attributes_of,
    function_in,
    is_a,
    is_iterator,
    length_of,
    name_of,
    parts_of,
    slots_of,
)
from bnfold.frontends.torch.tensor_facts import is_ordinary, shape_if_any

Traces = dict[str, Any]
"""What was found, by the place where it was."""

_MOST_THINGS = 20_000
_MOST_VALUES = 16
_DEEPEST = 8
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_EXACT = frozenset(_PLAIN)
_SKIPPED = (type, types.ModuleType, types.BuiltinFunctionType, nn.Module, torch.dtype, torch.device)
_MOST_NAMED = 1024
"""In a longer table the numbers have one place together."""
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
        if is_a(thing, _PLAIN):
            self.found[place] = _as_plain(thing)
            return
        if id(thing) in self.seen or depth > _DEEPEST or is_a(thing, _SKIPPED):
            return
        if len(self.seen) >= _MOST_THINGS:
            return
        self.seen[id(thing)] = thing
        if is_a(thing, types.FunctionType):  # most of what a module of Python holds
            parts = _held_by_function(thing)
        elif is_a(thing, (Tensor, np.ndarray)):
            self.found[place] = self._content(thing)
            return
        elif type(thing) in (bytearray, array):
            self.found[f"{place} (length)"] = len(thing)
            return
        elif is_a(thing, TABLES):
            parts = self._in_table(place, thing)
        else:
            parts = _parts(thing)
        for key, part in parts:
            self.note(f"{place}{key}", part, depth + 1)

    def _in_table(self, place: str, table: Any) -> Iterator[tuple[str, Any]]:
        """The parts that are left to be noted, if they have an order; its length is noted here."""
        self.found[f"{place} (length)"] = length = length_of(table)
        if is_a(table, (set, frozenset)):
            return
        names = list(dict.keys(table)) if is_a(table, dict) else range(length)
        parts = list(zip(names, parts_of(table), strict=False))  # another thread may add some
        if length > _MOST_NAMED:
            self.found[f"{place} (numbers)"] = [part for _, part in parts if type(part) in _EXACT]
            parts = [(name, part) for name, part in parts if type(part) not in _EXACT]
        for position, (name, part) in enumerate(parts[:_MOST_THINGS]):
            yield name_of(name, position), part

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
            return tensor.shape, tensor.tobytes() if tensor.nbytes <= 8 * _MOST_VALUES else None
        shape = shape_if_any(tensor)
        if not is_ordinary(tensor) or tensor.is_quantized or tensor.numel() > _MOST_VALUES:
            return shape
        integers = not (tensor.is_floating_point() or tensor.is_complex())
        is_read = self.are_real or (integers and tensor.dtype is not torch.bool)
        return shape, repr(tensor.tolist()) if is_read else None


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """What it holds, with how to get there."""
    if is_a(thing, types.MethodType):
        yield from (("", thing.__func__), ("'s self", thing.__self__))
    elif is_a(thing, functools.partial):
        yield from (("", thing.func), (" args", thing.args), (" keywords", thing.keywords))
    elif is_a(thing, (property, classmethod, staticmethod)):
        yield "", function_in(thing)
    elif is_a(thing, types.GeneratorType):
        frame = thing.gi_frame
        yield " (step)", -1 if frame is None else frame.f_lasti
        yield "", {} if frame is None else dict(frame.f_locals)
    elif is_iterator(thing):
        yield "", reduced(thing)
    elif is_a(thing, LIKE_TABLES) or not is_foreign(type(thing)):
        held = (*attributes_of(thing).items(), *slots_of(thing))
        yield from ((f".{name}", value) for name, value in held)


def _as_plain(value: Any) -> Any:
    """A number or a text as what can be compared, by no method of a class of the user's."""
    kind: Any = type(value)
    if kind not in _EXACT:
        kind = next(base for base in _PLAIN if is_a(value, base))
        return kind.__repr__(value)
    return repr(value) if kind in (float, complex) else value


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
        if not is_a(value, types.FunctionType) or value.__module__ == function.__module__:
            yield f" {name}", value


def reduced(iterator: Any) -> Any:
    """How a copy of it would be made: where it stands."""
    try:
        return list(iterator.__reduce__())[1:]
    except Exception:  # what it goes over cannot be copied
        return repr(iterator)
