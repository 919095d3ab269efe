"""What a module's code keeps outside of the modules, put back after runs of it.

A run takes place on a copy, but what closures, default arguments, globals and classes hold is not
part of a copy: `n += 1` on a closure's counter, a list of what was seen, an iterator over parts. It
is put back as it was: which objects lie where, the content of tables, tensors and arrays, and
where random numbers stand. What C code hides cannot be put back, nor can a Python generator: those
are listed, so that a module that reads one is refused before it runs.
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnfold.frontends.torch.code_names import is_foreign, names_of
from bnfold.frontends.torch.copies import GENERATORS, Restorable, Snapshot, is_small, rewinding
from bnfold.frontends.torch.held import attributes_of, is_a, is_iterator, parts_of
from bnfold.frontends.torch.tensor_facts import is_equal, is_ordinary

_TABLES = (dict, OrderedDict, list, set, deque)
_ATOMS = (bool, int, float, complex, str, bytes, type(None), types.ModuleType, torch.dtype)
_ATOMS += (torch.device, torch.Size)  # type: ignore[assignment]
_BOUND = (types.BuiltinFunctionType, types.MethodWrapperType)
"""Methods of what C code makes, bound (`seen.append`, `itertools.count().__next__`); functions."""
_CALLED = (types.FunctionType, types.MethodType, functools.partial)
_HOLDERS = (*_CALLED, *_BOUND, types.GeneratorType)
"""What an attribute may be, and a copy of the module shares."""
_OF_MODULES = ("_parameters", "_buffers", "_modules")
_MOST_THINGS = 20_000
_DEEPEST = 8
_MOST_PARTS = 4096
_LARGEST, _MOST_CONTENT = 1 << 22, 1 << 26
"""Elements of a tensor or an array whose content is kept, and of all of them together."""
_NOTHING: Any = object()


class Surroundings(Restorable):
    """What lies outside of a model's modules, and how to put it back."""

    def __init__(self, model: nn.Module) -> None:
        self._undo: list[Callable[[], object]] = []
        self._iterators: dict[int, tuple[Any, Any, Any]] = {}
        """Iterators, copies of them, and where they stood, by id()."""
        self.generators: list[types.GeneratorType[Any, Any, Any]] = []
        """Those that are not at their end."""
        self._inside = {id(module) for module in model.modules()}
        self._inside.update(map(id, (*model.parameters(), *model.buffers())))
        self._met: dict[int, Any] = {}
        self._modules: list[nn.Module] = []
        self._kinds: set[type] = set()
        self._room = _MOST_CONTENT
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                self._note_code_of(module)
        if self._modules:
            weights = all(map(is_small, self._modules))
            self._undo.append(Snapshot(self._modules, weights=weights).restore)

    def restore(self) -> None:
        """Put everything back; what did not change is not touched."""
        for undo in self._undo:
            undo()

    # ---------------------------------------------------------------- what there is

    def _note_code_of(self, module: nn.Module) -> None:
        """What the functions of a module reach, and its class; its attributes are copied."""
        if type(module) not in self._kinds:
            self._kinds.add(type(module))
            for kind in type(module).__mro__:
                if not is_foreign(kind):
                    self._note(kind, 0)
        for name, part in module.__dict__.items():
            if type(part) in _TABLES and part and name not in _OF_MODULES:
                for inner in islice(parts_of(part), _MOST_PARTS):
                    if is_a(inner, _HOLDERS):
                        self._note(inner, 0)
            elif is_a(part, _HOLDERS):
                self._note(part, 0)

    def _note(self, thing: Any, depth: int) -> None:
        is_known = is_a(thing, _ATOMS) or id(thing) in self._met or id(thing) in self._inside
        if is_known or depth > _DEEPEST or len(self._met) >= _MOST_THINGS:
            return
        self._met[id(thing)] = thing  # held, so that nothing else gets its id()
        for part in self._parts(thing):
            self._note(part, depth + 1)

    def _parts(self, thing: Any) -> Iterator[Any]:
        """What a thing holds; on the way, how to put that back is noted."""
        if is_a(thing, types.FunctionType):
            yield from () if is_foreign(thing) else self._of_function(thing)
        elif is_a(thing, type):
            yield from () if is_foreign(thing) else self._of_class(thing)
        elif is_a(thing, types.MethodType):
            yield from (thing.__func__, thing.__self__)
        elif is_a(thing, _BOUND):
            yield thing.__self__
        elif is_a(thing, functools.partial):
            yield from (thing.func, thing.args, thing.keywords)
        elif is_a(thing, property):
            yield from (thing.fget, thing.fset)
        elif is_a(thing, (classmethod, staticmethod)):
            yield thing.__func__
        elif is_a(thing, nn.Module):
            self._modules += [part for part in thing.modules() if id(part) not in self._inside]
            self._inside.update(id(part) for part in thing.modules())
            for part in thing.modules():
                self._note_code_of(part)
        elif type(thing) in _TABLES:
            yield from self._of_table(thing)
        elif is_a(thing, tuple):
            yield from islice(parts_of(thing), _MOST_PARTS)
        elif is_a(thing, (Tensor, np.ndarray)):
            self._keep_content(thing)
        elif is_a(thing, types.GeneratorType):
            self.generators += [thing] if thing.gi_frame is not None else []
        elif is_a(thing, GENERATORS):
            self._undo.append(rewinding(thing))
        elif is_iterator(thing):
            self._keep_iterator(thing)
        elif is_a(thing, ContextVar):
            yield self._keep(functools.partial(_value_of, thing), thing.set, _nothing)
        elif not is_foreign(type(thing)) or is_a(thing, types.SimpleNamespace):
            yield from self._of_object(thing)

    def _of_function(self, function: types.FunctionType) -> Iterator[Any]:
        for cell in function.__closure__ or ():
            yield self._keep(
                functools.partial(_content_of, cell),
                functools.partial(setattr, cell, "cell_contents"),
                functools.partial(delattr, cell, "cell_contents"),
            )
        yield from (function.__defaults__, function.__kwdefaults__)
        yield from self._of_table(function.__dict__)
        known = function.__globals__
        for name in set(names_of(function.__code__)):
            if name in known:
                yield self._keep_item(known, name)

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
                yield self._keep(
                    functools.partial(vars(kind).get, name, _NOTHING),
                    functools.partial(setattr, kind, name),
                    functools.partial(delattr, kind, name),
                )

    def _of_object(self, thing: Any) -> Iterator[Any]:
        yield from self._of_table(attributes_of(thing))
        for kind in type(thing).__mro__:
            yield from () if is_foreign(kind) else (kind,)
            for value in vars(kind).values():
                if is_a(value, types.MemberDescriptorType):
                    yield self._keep(
                        functools.partial(_slot_of, thing, value),
                        functools.partial(value.__set__, thing),
                        functools.partial(value.__delete__, thing),
                    )

    def _of_table(self, table: Any) -> Iterator[Any]:
        before: Any = dict(table) if is_a(table, dict) else list(table)
        self._undo.append(lambda: self._refill(table, before))
        yield from islice(parts_of(before), _MOST_PARTS)

    # ---------------------------------------------------------------- how to put it back

    def _keep_item(self, table: dict[str, Any], name: str) -> Any:
        return self._keep(
            functools.partial(table.get, name, _NOTHING),
            functools.partial(table.__setitem__, name),
            functools.partial(table.pop, name, None),
        )

    def _keep(
        self, get: Callable[[], Any], put: Callable[[Any], object], remove: Callable[[], object]
    ) -> Any:
        """Note what lies in a place; `remove` empties it."""
        before = get()

        def undo() -> None:
            wanted = self._as_it_was(before)
            if get() is not wanted:
                remove() if wanted is _NOTHING else put(wanted)

        self._undo.append(undo)
        return None if before is _NOTHING else before

    def _keep_content(self, array: Any) -> None:
        if is_a(array, np.ndarray):
            if array.flags.writeable and array.dtype != object and self._has_room(array.size):
                before = array.copy()
                self._undo.append(lambda: _write_array(array, before))
        elif is_ordinary(array) and not array.is_quantized and self._has_room(array.numel()):
            content = array.detach().clone()
            self._undo.append(lambda: _write_tensor(array, content))

    def _has_room(self, size: int) -> bool:
        if size > min(_LARGEST, self._room):
            return False
        self._room -= size
        return True

    def _keep_iterator(self, iterator: Any) -> None:
        try:
            again = _again(iterator)
        except Exception:  # what it goes over cannot be copied
            return
        self._iterators[id(iterator)] = iterator, again, _position(iterator)

    def _as_it_was(self, thing: Any) -> Any:
        """The thing, or for an iterator that has gone on, one that has not; so for its method."""
        if is_a(thing, _BOUND):
            again = self._as_it_was(thing.__self__)
            return thing if again is thing.__self__ else getattr(again, thing.__name__)
        known = self._iterators.get(id(thing))
        if known is None or _position(known[0]) == known[2]:
            return thing
        return _again(known[1])

    def _refill(self, table: Any, before: Any) -> None:
        if isinstance(table, dict):
            wanted = {name: self._as_it_was(part) for name, part in before.items()}
            if [*map(id, table.values())] != [*map(id, wanted.values())] or [*table] != [*wanted]:
                table.clear()
                table.update(wanted)
            return
        parts = [self._as_it_was(part) for part in before]
        if [*map(id, table)] != [*map(id, parts)]:
            table.clear()
            table.update(parts) if isinstance(table, set) else table.extend(parts)


def _again(iterator: Any) -> Any:
    """Another one that stands where this one does, and goes over the same."""
    make, args, *states = iterator.__reduce__()
    made = make(*(_again(part) if is_iterator(part) else part for part in args))
    if states and states[0] is not None:
        made.__setstate__(_same_lists(states[0]))
    return made


def _same_lists(state: Any) -> Any:
    """What cycle() has seen so far is a list that it goes on with."""
    if isinstance(state, tuple):
        return tuple(map(_same_lists, state))
    return list(state) if isinstance(state, list) else state


def _position(thing: Any) -> Any:
    """Where an iterator stands, as what can be compared."""
    if is_iterator(thing):
        return [_position(part) for part in thing.__reduce__()[1:]]
    if isinstance(thing, tuple):
        return [_position(part) for part in thing]
    return (id(thing), len(thing)) if isinstance(thing, list) else thing


def _nothing() -> None:
    """What cannot be taken out again stays."""


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


def _write_array(array: Any, before: Any) -> None:
    if array.tobytes() != before.tobytes():
        array[...] = before


def _write_tensor(tensor: Tensor, content: Tensor) -> None:
    with torch.no_grad():
        if not is_equal(tensor, content):
            tensor.data.copy_(content)
