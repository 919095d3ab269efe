"""What a run leaves for the next one, as far as Python shows it.

A counter, a cache that grows, an iterator: numbers, lengths, arrays and small tensors that are held
by the modules, by what their attributes, hooks, closures and defaults hold, by their classes, and
by the globals that their code names, here and in modules that it imports. Two runs between which
all of this is the same take the same path, as long as no values are asked for; where they are, what
is in larger tensors counts as well.

Data is followed to its end and in width: what lies near is met before the many entries of a table.
"""

from __future__ import annotations

import array
import functools
import logging
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnfold.frontends.torch.code_names import named_places
from bnfold.frontends.torch.held import (
    attributes_of,
    function_in,
    is_a,
    is_iterator,
    name_of,
    slots_of,
)
from bnfold.frontends.torch.noted import (
    TABLES,
    entries_of,
    is_open,
    table_kind,
)
from bnfold.frontends.torch.surroundings import flags
from bnfold.frontends.torch.tensor_facts import array_over, is_ordinary, shape_if_any

_MOST_THINGS = 20_000
_MOST_VALUES = 16
_LARGEST = 1 << 22
"""Bytes of a tensor that are looked at."""
_MOST_NAMED = 64
"""Entries of a table, up to which each has a place of its own."""
_MOST_CALLS = 8
"""So many functions are followed one from the other."""
_PLAIN = (bool, int, float, complex, str, bytes, type(None), range, slice)
_EXACT_PLAIN = frozenset(_PLAIN)
_SKIPPED = (type, types.ModuleType, torch.dtype, torch.device, torch.jit.ScriptModule)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_INTERNAL = frozenset(nn.Module().__dict__) - {*_HOOKS, "training"}


@dataclass(frozen=True, slots=True)
class Traces:
    """What was found, by the place where it was."""

    state: dict[str, Any] = field(default_factory=dict)
    """What may decide a path by itself."""
    values: dict[str, Any] = field(default_factory=dict)
    """What tensors hold, which the code has to ask for."""


def traces_of(named: Mapping[str, nn.Module], *, are_real: bool) -> Traces:
    """What lies in these modules now; `are_real` says whether floating-point tensors do."""
    walk = _Walk(named.values(), are_real=are_real)
    for name, module in named.items():
        if is_a(module, torch.jit.ScriptModule):
            continue
        place = f"{name}." if name else ""
        walk.add(place, _held_by_module(module))
        is_ours = not type(module).__module__.startswith("torch.")
        for kind in type(module).__mro__ if is_ours else ():
            if not kind.__module__.startswith(("torch.", "builtins")):
                walk.add_class(kind)
    walk.found.state["what holds for the whole program"] = flags()
    walk.run()
    return walk.found


def moved(now: Traces, before: Traces, *, values: bool = False) -> list[str]:
    """The places where something else lies now; `values` says whether the code asks for them."""
    changed = _moved(now.state, before.state)
    return [*changed, *_moved(now.values, before.values)] if values else changed


def _moved(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    places = (*now, *(place for place in before if place not in now))
    return [p for p in places if p not in now or p not in before or now[p] != before[p]]


class _Walk:
    def __init__(self, inside: Iterable[nn.Module], *, are_real: bool) -> None:
        self.are_real = are_real
        self.found = Traces()
        self.seen: dict[int, Any] = {id(module): module for module in inside}
        """What was met, by id(); held, so that nothing else gets the number."""
        self.pending: deque[tuple[str, Any, int]] = deque()

    def add(self, place: str, parts: Iterable[tuple[str, Any]], calls: int = 0) -> None:
        """Look at these later; at what is plain, now."""
        for key, part in parts:
            if type(part) in _EXACT_PLAIN:
                inner = f"{place}{key}"
                self.found.state[inner] = repr(part) if is_a(part, float | complex) else part
            elif id(part) not in self.seen:
                self.pending.append((f"{place}{key}", part, calls))

    def add_class(self, kind: type) -> None:
        """What a class holds for all its instances."""
        if id(kind) not in self.seen:
            self.seen[id(kind)] = kind
            held = [(key, part) for key, part in vars(kind).items() if not key.startswith("__")]
            self.add(f"class {kind.__name__}.", held)

    def run(self) -> None:
        """Write down what lies where, and go on to what that holds."""
        while self.pending and len(self.seen) < _MOST_THINGS:
            place, thing, calls = self.pending.popleft()
            if id(thing) in self.seen or is_a(thing, _SKIPPED):
                continue
            self.seen[id(thing)] = thing
            calls += is_a(thing, types.FunctionType)
            if calls <= _MOST_CALLS:
                self._note(place, thing, calls)

    def _note(self, place: str, thing: Any, calls: int) -> None:
        state = self.found.state
        if is_a(thing, types.FunctionType):  # most of what a module of Python holds
            self.add(place, _held_by_function(thing), calls)
        elif is_a(thing, Tensor):
            self._note_tensor(place, thing)
        elif is_a(thing, np.ndarray | array.array | bytearray):
            state[place] = _content(thing)
            if is_a(thing, np.ndarray) and thing.dtype == object:
                self.add(place, [("", thing.ravel().tolist())], calls)
        elif is_a(thing, functools._lru_cache_wrapper):
            state[f"{place} (length)"] = thing.cache_info().currsize
            self.add(place, [("", thing.__wrapped__)], calls)
        elif is_a(thing, _PLAIN):  # of a class of its own
            kind: Any = next(base for base in _PLAIN if is_a(thing, base))
            state[place] = kind.__repr__(thing)
        else:
            self._note_parts(place, thing, calls)

    def _note_parts(self, place: str, thing: Any, calls: int) -> None:
        if is_a(thing, TABLES):
            entries = entries_of(thing, table_kind(thing))
            self.found.state[f"{place} (length)"] = len(entries)
            if is_a(thing, set):
                if _EXACT_PLAIN.issuperset(map(type, entries)):
                    self.found.state[place] = set(entries)
            else:
                pairs = entries.items() if is_a(entries, dict) else enumerate(entries)
                self._note_entries(place, pairs, calls, is_long=len(entries) > _MOST_NAMED)
            if type(thing) in TABLES:
                return
        self.add(place, _parts(thing), calls)

    def _note_entries(
        self, place: str, pairs: Iterable[tuple[Any, Any]], calls: int, *, is_long: bool
    ) -> None:
        """Of a long table, what is plain has no places of its own: that would take long."""
        if is_long:
            pairs = list(pairs)
            plain = [_as_plain(part) for _, part in pairs]
            self.found.state[place] = plain
            pairs = [pair for pair, known in zip(pairs, plain, strict=True) if known is _NOT_PLAIN]
        named = ((name_of(key, number), part) for number, (key, part) in enumerate(pairs))
        self.add(place, named, calls)

    def _note_tensor(self, place: str, tensor: Tensor) -> None:
        self.found.state[place] = shape_if_any(tensor)
        if not is_ordinary(tensor) or tensor.is_quantized:
            return
        integers = not (tensor.is_floating_point() or tensor.is_complex())
        is_read = self.are_real or (integers and tensor.dtype is not torch.bool)
        if is_read and tensor.numel() <= _MOST_VALUES:
            self.found.state[f"{place} (values)"] = repr(tensor.tolist())
        elif tensor.nbytes <= _LARGEST:
            self.found.values[place] = _digest(tensor)


def _as_plain(part: Any) -> Any:
    """The same where it, or all in it, is plain."""
    kind = type(part)
    if kind in _EXACT_PLAIN:
        return part
    is_row = kind is list or kind is tuple
    return tuple(part) if is_row and _EXACT_PLAIN.issuperset(map(type, part)) else _NOT_PLAIN


_NOT_PLAIN = object()


def _content(values: Any) -> Any:
    """An array, in little room."""
    if is_a(values, np.ndarray) and values.dtype == object:
        return tuple(values.shape)
    content = values.tobytes() if not is_a(values, bytearray) else bytes(values)
    return getattr(values, "shape", len(values)), hash(content)


def _digest(tensor: Tensor) -> int:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().reshape(-1)
    return hash(array_over(flat.contiguous().view(torch.uint8)).tobytes())


def _held_by_module(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Of one of PyTorch's own, its hooks."""
    own = module.__dict__
    if type(module).__module__.startswith("torch."):
        yield from ((key, own[key]) for key in _HOOKS if own[key])
        return
    yield from ((key, own[key]) for key in own if key not in _INTERNAL)
    yield from own["_buffers"].items()


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """What it holds, with how to get there."""
    if is_a(thing, tuple):
        yield from ((f"[{index}]", value) for index, value in enumerate(tuple.__iter__(thing)))
    elif is_a(thing, nn.Module):
        yield from ((f".{key}", part) for key, part in _held_by_module(thing))
        yield from ((f".{key}", part) for key, part in thing._modules.items())
    elif is_a(thing, types.MethodType):
        yield from (("", thing.__func__), ("'s self", thing.__self__))
    elif is_a(thing, types.BuiltinFunctionType | types.MethodWrapperType):
        yield "'s self", thing.__self__
    elif is_a(thing, functools.partial):
        yield from (("", thing.func), (" args", thing.args), (" keywords", thing.keywords))
    elif is_a(thing, property | classmethod | staticmethod):
        yield "", function_in(thing)
    elif is_a(thing, types.GeneratorType):
        frame = thing.gi_frame
        yield " (step)", -1 if frame is None else frame.f_lasti
        yield "", {} if frame is None else dict(frame.f_locals)
    elif is_iterator(thing):
        yield "", reduced(thing)
    elif is_a(thing, logging.Logger):
        yield from ((f".{key}", v) for key, v in vars(thing).items() if is_a(v, _PLAIN))
    elif is_open(thing):
        held = (*attributes_of(thing).items(), *slots_of(thing))
        yield from ((f".{name}", value) for name, value in held)


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
    for owner, name in named_places(function):
        value = (owner if is_a(owner, dict) else vars(owner)).get(name)
        own = is_a(value, types.FunctionType) and value.__module__ == function.__module__
        if own or not is_a(value, types.FunctionType):
            yield f" {name}", value


def reduced(iterator: Any) -> Any:
    """How a copy of it would be made: where it stands."""
    try:
        return list(iterator.__reduce__())[1:]
    except Exception:  # what it goes over cannot be copied
        return repr(iterator)
