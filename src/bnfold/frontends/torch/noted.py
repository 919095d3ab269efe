"""What things hold, noted so that it can be put back: which objects lie where, and their content.

    tables          dict, list, set, deque and their subclasses, by the methods of Python's own
    objects         attributes and slots; of a class, what all its instances share
    functions       what they close over, have as defaults, and name of modules (`cfg.step += 1`)
    content         tensors, arrays, array.array, bytearray
    where it stands iterators, generators of random numbers, context variables
    caches          functools.lru_cache, where it was empty

Data is followed to its end, code for some calls. What C code hides cannot be put back, nor can a
Python generator: those are listed.
"""

from __future__ import annotations

import array
import functools
import logging
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnfold.frontends.torch.code_names import is_foreign, named_places
from bnfold.frontends.torch.held import attributes_of, is_a, is_iterator
from bnfold.frontends.torch.restorable import GENERATORS, Restorable, rewinding
from bnfold.frontends.torch.tensor_facts import is_equal, is_ordinary, memory_of

TABLES = (OrderedDict, dict, list, set, deque)
"""Each before what it is made of."""
_ATOMS = (bool, int, float, complex, str, bytes, type(None), types.ModuleType, torch.dtype)
_ATOMS += (torch.device, torch.Size, range, slice)  # type: ignore[assignment]
_EXACT_ATOMS = frozenset(_ATOMS)
_BOUND = (types.BuiltinFunctionType, types.MethodWrapperType)
"""Methods of what C code makes, bound (`seen.append`, `itertools.count().__next__`); functions."""
_CODE = (types.FunctionType, types.MethodType, functools.partial, type)
HOLDERS = (*_CODE[:-1], *_BOUND, types.GeneratorType, functools._lru_cache_wrapper)
"""What an attribute may be, and a copy of the module shares."""
_OF_MODULES = ("_parameters", "_buffers", "_modules")
_TRANSPARENT = frozenset(("collections", "queue", "weakref", "_weakrefset", "argparse", "types"))
"""Python's own modules whose classes hold what they are given, and nothing of the system."""
_MOST_THINGS = 20_000
MOST_CALLS = 8
_FARTHEST = 12
"""So many steps are gone from code: behind them lies what runs the program."""
_NEAR = (*_CODE[:-1], *_BOUND, tuple, *TABLES)
"""What a generator may be behind that code is taken to read; an object may hold it for others."""
_NEAREST = 4
"""And so many steps away from the code."""
_LARGEST, _MOST_CONTENT = 1 << 22, 1 << 26
"""Elements of a tensor or an array whose content is kept, and of all of them together."""
_NOTHING: Any = object()


class Notes(Restorable):
    """How things were, and how to put that back."""

    def __init__(self, inside: Iterable[object] = (), *, calls: int = MOST_CALLS) -> None:
        """`inside`: what is not followed, as somebody else looks after it; `calls`: how many
        functions and classes are followed one from the other."""
        self._calls = calls
        self.generators: list[types.GeneratorType[Any, Any, Any]] = []
        """Those that are near, and not at their end."""
        self.modules: list[nn.Module] = []
        """Modules that were met, each of which has parameters and tables of its own."""
        inside = list(inside)
        self._inside = {*map(id, inside)}
        self._memory: set[int | None] = set()
        self._weights = [part for part in inside if isinstance(part, Tensor)]
        self._undo: list[Callable[[], object]] = []
        self._tables: list[tuple[Any, type, Any]] = []
        self._places: set[tuple[int, str]] = set()
        self._iterators: dict[int, tuple[Any, Any, Any]] = {}
        """Iterators, copies of them, and where they stood, by id()."""
        self._met: dict[int, Any] = {}
        self._room = _MOST_CONTENT

    def note(self, *things: object) -> None:
        """Note these, and all that they hold: first what is nearest."""
        pending: deque[Any] = deque((thing, 0, 0, True) for thing in things)
        while pending and len(self._met) < _MOST_THINGS:
            thing, calls, steps, is_near = pending.popleft()
            kind = type(thing)
            if id(thing) in self._met or id(thing) in self._inside:
                continue
            if self._calls and steps > _FARTHEST:
                continue
            calls += is_a(thing, _CODE)
            if calls > self._calls or is_a(thing, _ATOMS):
                continue
            self._met[id(thing)] = thing  # held, so that nothing else gets its id()
            parts = self._keep_table(thing, kind) if kind in TABLES else self._parts(thing)
            if (
                is_a(thing, types.GeneratorType)
                and thing.gi_frame
                and is_near
                and steps <= _NEAREST
            ):
                self.generators.append(thing)
            place = calls, steps + 1, is_near and is_a(thing, _NEAR)
            pending.extend((part, *place) for part in parts if not _is_atom(part))

    def restore(self) -> None:
        """Put everything back; what did not change is not touched."""
        for table, kind, before in self._tables:
            self._refill(table, kind, before)
        for undo in self._undo:
            undo()

    def __bool__(self) -> bool:
        """Whether there is anything to put back."""
        return bool(self._tables or self._undo)

    # ---------------------------------------------------------------- what there is

    def _parts(self, thing: Any) -> Iterator[Any]:
        """What a thing holds; on the way, how to put that back is noted."""
        if is_a(thing, nn.Module):  # first, as most are
            yield from () if is_a(thing, torch.jit.ScriptModule) else self._of_module(thing)
        elif is_a(thing, types.FunctionType):
            yield from () if is_foreign(thing) else self._of_function(thing)
        elif is_a(thing, type):
            yield from () if is_foreign(thing) else self._of_class(thing)
        elif is_a(thing, types.MethodType):
            yield from (thing.__func__, thing.__self__)
        elif is_a(thing, _BOUND):
            yield thing.__self__
        elif is_a(thing, functools.partial):
            yield from (thing.func, thing.args, thing.keywords)
        elif is_a(thing, functools._lru_cache_wrapper):
            yield from () if is_foreign(thing) else self._of_cache(thing)
        elif is_a(thing, property):
            yield from (thing.fget, thing.fset)
        elif is_a(thing, classmethod | staticmethod):
            yield thing.__func__
        elif is_a(thing, Tensor | np.ndarray | array.array | bytearray):
            yield from self._of_content(thing)
        elif is_a(thing, GENERATORS):
            self._undo.append(rewinding(thing))
        elif is_a(thing, ContextVar):
            yield self._keep(functools.partial(_value_of, thing), thing.set, _nothing)
        elif is_iterator(thing):
            self._keep_iterator(thing)
        elif is_a(thing, logging.Logger):  # what it leads to is the program's
            self._keep_table(vars(thing), dict)
        else:
            yield from self._of_data(thing)

    def _of_data(self, thing: Any) -> Iterator[Any]:
        """Of tables and objects, and of what is both."""
        if is_a(thing, TABLES):
            yield from self._keep_table(thing, table_kind(thing))
        elif is_a(thing, tuple):
            yield from tuple.__iter__(thing)
        if type(thing) not in TABLES and is_open(thing):
            yield from self._of_object(thing)

    def _of_function(self, function: types.FunctionType) -> Iterator[Any]:
        for cell in function.__closure__ or ():
            yield self._keep(
                functools.partial(_content_of, cell),
                functools.partial(setattr, cell, "cell_contents"),
                functools.partial(delattr, cell, "cell_contents"),
            )
        yield from (function.__defaults__, function.__kwdefaults__)
        yield from self._keep_table(function.__dict__, dict)
        for owner, name in named_places(function):
            if (id(owner), name) in self._places:
                continue
            self._places.add((id(owner), name))
            yield (
                self._keep_item(owner, name)
                if is_a(owner, dict)
                else self._keep_attribute(owner, name)
            )

    def _of_class(self, kind: type) -> Iterator[Any]:
        known = frozenset(vars(kind))

        def remove_new() -> None:
            for name in {*vars(kind)} - known:
                if not name.startswith("__"):
                    delattr(kind, name)

        self._undo.append(remove_new)
        for name, value in list(vars(kind).items()):
            if name.startswith("__") or is_a(value, types.MemberDescriptorType):
                yield value if is_a(value, types.FunctionType) else None
            else:
                yield self._keep_attribute(kind, name)

    def _of_module(self, module: nn.Module) -> Iterator[Any]:
        """Its weights and buffers are for others to look after."""
        self.modules.append(module)
        for table in (module._parameters, module._buffers):
            self._inside.update(map(id, table.values()))
            self._weights += [part for part in table.values() if part is not None]
        for part in self._keep_table(vars(module), dict):
            if (kind := type(part)) in TABLES and not part:  # most of what a module holds
                self._tables.append((part, kind, kind()))
            else:
                yield part
        yield from code_of(module) if self._calls else ()

    def _of_object(self, thing: Any) -> Iterator[Any]:
        yield from self._keep_table(attributes_of(thing), dict)
        for kind in type(thing).__mro__:
            yield from () if is_foreign(kind) else (kind,)
            for value in vars(kind).values():
                if is_a(value, types.MemberDescriptorType):
                    yield self._keep(
                        functools.partial(_slot_of, thing, value),
                        functools.partial(value.__set__, thing),
                        functools.partial(value.__delete__, thing),
                    )

    def _of_cache(self, cached: Any) -> Iterator[Any]:
        """What it has can be thrown away, and not put back: that is done where it had nothing."""
        if not cached.cache_info().currsize:
            self._undo.append(lambda: cached.cache_info().currsize and cached.cache_clear())
        yield cached.__wrapped__

    def _of_content(self, thing: Any) -> Iterator[Any]:
        """Of an array of objects, these; all else is content."""
        if is_a(thing, array.array | bytearray):
            if self._has_room(len(thing)):
                before = thing[:]
                self._undo.append(lambda: _write_bytes(thing, before))
        elif is_a(thing, np.ndarray):
            if thing.dtype == object:
                yield from thing.ravel().tolist()
            if thing.flags.writeable and self._has_room(thing.size):
                values = thing.copy()
                self._undo.append(lambda: _write_array(thing, values))
        elif not self._is_of_a_weight(thing) and _is_kept(thing, self._has_room):
            content = thing.detach().clone()
            self._undo.append(lambda: _write_tensor(thing, content))

    def _is_of_a_weight(self, tensor: Tensor) -> bool:
        """A view of a weight: a fold in place writes there."""
        self._memory.update(memory_of(weight) for weight in self._weights)
        self._weights.clear()
        return memory_of(tensor) in self._memory - {None}

    def _has_room(self, size: int) -> bool:
        if size > min(_LARGEST, self._room):
            return False
        self._room -= size
        return True

    # ---------------------------------------------------------------- how to put it back

    def _keep_table(self, table: Any, kind: type) -> Iterable[Any]:
        before = entries_of(table, kind)
        self._tables.append((table, kind, before))
        parts = before.values() if is_a(before, dict) else before
        return () if _EXACT_ATOMS.issuperset(map(type, parts)) else parts

    def _keep_item(self, table: dict[str, Any], name: str) -> Any:
        return self._keep(
            functools.partial(table.get, name, _NOTHING),
            functools.partial(table.__setitem__, name),
            functools.partial(table.pop, name, None),
        )

    def _keep_attribute(self, owner: Any, name: str) -> Any:
        """Of a class or of a module of Python's."""
        return self._keep(
            functools.partial(_attribute_of, owner, name),
            functools.partial(setattr, owner, name),
            functools.partial(delattr, owner, name),
        )

    def _keep(
        self, get: Callable[[], Any], put: Callable[[Any], object], remove: Callable[[], object]
    ) -> Any:
        """Note what lies in a place; `remove` empties it."""
        before = get()

        def undo() -> None:
            wanted = self._as_it_was(before)
            if not _is_same(get(), wanted):
                remove() if wanted is _NOTHING else put(wanted)

        self._undo.append(undo)
        return None if before is _NOTHING else before

    def _keep_iterator(self, iterator: Any) -> None:
        try:
            other = again(iterator)
        except Exception:  # what it goes over cannot be copied
            return
        self._iterators[id(iterator)] = iterator, other, _position(iterator)

    def _as_it_was(self, thing: Any) -> Any:
        """The thing, or for an iterator that has gone on, one that has not; so for its method."""
        if not self._iterators:
            return thing
        if is_a(thing, _BOUND):
            owner = self._as_it_was(thing.__self__)
            return thing if owner is thing.__self__ else getattr(owner, thing.__name__)
        known = self._iterators.get(id(thing))
        if known is None or _position(known[0]) == known[2]:
            return thing
        return again(known[1])

    def _refill(self, table: Any, kind: Any, before: Any) -> None:
        """By the methods of Python's own class: a subclass may do more than store."""
        if not before and not kind.__len__(table):
            return
        if is_a(before, dict):
            wanted = before
            if self._iterators:
                wanted = {name: self._as_it_was(part) for name, part in before.items()}
            if not _holds(table, kind, wanted):
                kind.clear(table)
                for name, part in wanted.items():
                    kind.__setitem__(table, name, part)
            return
        parts = [*map(self._as_it_was, before)] if self._iterators else before
        if [*map(id, kind.__iter__(table))] != [*map(id, parts)]:
            kind.clear(table)
            kind.update(table, parts) if kind is set else kind.extend(table, parts)


def _is_atom(thing: Any) -> bool:
    """Whether it holds nothing that can change: a number, or a row of such."""
    kind = type(thing)
    if kind is tuple:
        return _EXACT_ATOMS.issuperset(map(type, thing))
    return kind in _EXACT_ATOMS


def table_kind(table: Any) -> type:
    """Which of Python's own tables it is, or is made of."""
    return next(kind for kind in TABLES if is_a(table, kind))


def entries_of(table: Any, kind: Any) -> Any:
    """What it holds, whatever a subclass says of itself."""
    return dict(kind.items(table)) if issubclass(kind, dict) else list(kind.__iter__(table))


def is_open(thing: Any) -> bool:
    """Whether it is an object whose attributes are looked at."""
    kind = type(thing)
    is_transparent = kind.__module__ in _TRANSPARENT or is_a(thing, threading.local)
    return is_transparent or not is_foreign(kind)


def code_of(module: nn.Module) -> Iterator[Any]:
    """What the code of a module is: its class, and functions that it holds, which copies share."""
    yield from (kind for kind in type(module).__mro__ if not is_foreign(kind))
    for name, part in module.__dict__.items():
        if name in _OF_MODULES:
            continue
        if is_a(part, HOLDERS):
            yield part
        elif type(part) in TABLES and part:
            held = part.values() if is_a(part, dict) else part
            yield from (inner for inner in list(held) if is_a(inner, HOLDERS))


def again(iterator: Any) -> Any:
    """Another one that stands where this one does, and goes over the same."""
    make, args, *states = iterator.__reduce__()
    made = make(*(again(part) if is_iterator(part) else part for part in args))
    if states and states[0] is not None:
        made.__setstate__(_same_lists(states[0]))
    return made


def _same_lists(state: Any) -> Any:
    """What cycle() has seen so far is a list that it goes on with."""
    if is_a(state, tuple):
        return tuple(map(_same_lists, state))
    return list(state) if is_a(state, list) else state


def _position(thing: Any) -> Any:
    """Where an iterator stands, as what can be compared."""
    if is_iterator(thing):
        return [_position(part) for part in thing.__reduce__()[1:]]
    if is_a(thing, tuple):
        return [_position(part) for part in thing]
    if is_a(thing, list):  # the one that it goes over, or, of a dict or a set, one made for this
        first = thing[0] if thing else None
        return len(thing), tuple(map(id, first if type(first) is tuple else (first,)))
    return thing


def _nothing() -> None:
    """What cannot be taken out again stays."""


def _is_same(now: Any, before: Any) -> bool:
    """The very object, or a flag that is made anew for each who asks."""
    return now is before or (type(now) is type(before) and type(now) in _FLAGS and now == before)


_FLAGS = (bool, int, str)


def _holds(table: Any, kind: Any, entries: dict[Any, Any]) -> bool:
    """Whether it holds these very objects, in this order."""
    if kind.__len__(table) != len(entries):
        return False
    if not all(map(is_, kind.values(table), entries.values())):
        return False
    names = [*kind.__iter__(table)]
    return all(map(is_, names, entries)) or names == [*entries]


def _content_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing is in it
        return _NOTHING


def _value_of(variable: ContextVar[Any]) -> Any:
    try:
        return variable.get()
    except LookupError:
        return _NOTHING


def _slot_of(thing: Any, slot: types.MemberDescriptorType) -> Any:
    try:
        return slot.__get__(thing)
    except AttributeError:
        return _NOTHING


def _attribute_of(owner: Any, name: str) -> Any:
    """What lies there, or what a flag (`torch.backends.cudnn.benchmark`) says."""
    if name in vars(owner) or not hasattr(type(owner), name) or is_a(owner, type):
        return vars(owner).get(name, _NOTHING)
    return getattr(owner, name)


def _is_kept(tensor: Tensor, has_room: Callable[[int], bool]) -> bool:
    return is_ordinary(tensor) and not tensor.is_quantized and has_room(tensor.numel())


def _write_bytes(thing: Any, before: Any) -> None:
    if bytes(thing) != bytes(before):
        thing[:] = before


def _write_array(values: Any, before: Any) -> None:
    if values.tobytes() != before.tobytes():
        values[...] = before


def _write_tensor(tensor: Tensor, content: Tensor) -> None:
    with torch.no_grad():
        if not is_equal(tensor, content):
            tensor.data.copy_(content)
