"""What a module's code may do, by what it names and how it is compiled: start threads, catch.

A reading run is broken off where the code asks for a value that was not computed, or for memory
that is the original's. A thread that the code had started and that waits for the rest of such a run
would wait for ever, and Python waits for each thread before it ends. What code calls is not known
before it runs; what it names is. A false alarm costs a run that computes, with memory of its own.

Code that catches what PyTorch raises takes another path on sizes or layouts that an op refuses
(`try: y + table`), and asks for none.
"""

from __future__ import annotations

import dis
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from functools import lru_cache, partial
from itertools import islice
from multiprocessing.pool import ThreadPool
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from bnfold.frontends.torch.held import (
    TABLES,
    attributes_of,
    function_in,
    in_class,
    is_a,
    parts_of,
)

_THREADS = (threading.Thread, Executor, ThreadPool)
_NAMES = frozenset(
    (
        *("Thread", "Timer", "ThreadPool", "ThreadPoolExecutor", "start_new_thread"),
        *("submit", "apply_async", "map_async", "run_in_executor", "to_thread"),
    )
)
_FOREIGN = sys.stdlib_module_names | {"torch", "numpy", "bnfold", "_pytest"}
"""Packages whose functions are not looked into: pytest's stands behind each assert of a test."""
_DEEPEST = 6
"""So many calls, or objects in objects, are followed."""
_MOST = 256
"""Of what something is made of, so much is looked at."""
_PLAIN = (str, bytes, int, float, type(None), Tensor, np.ndarray)
_TABLES = (tuple, set, dict, OrderedDict)
_OF_MODULES = ("_parameters", "_buffers", "_modules")


_HANDLERS = frozenset({"CHECK_EXC_MATCH", "CHECK_EG_MATCH", "JUMP_IF_NOT_EXC_MATCH"})
"""Instructions of `except SomeError:`; a `with` and a `finally` have none of them."""
_ERRORS = frozenset(("Exception", "BaseException", "RuntimeError", "IndexError", "ValueError"))
"""What ops raise on sizes and layouts that they do not take, and what it is caught as."""


def may_start_threads(modules: Iterable[nn.Module]) -> bool:
    """Whether a thread, or what makes threads, is named in their code or held by them."""
    pending = deque[tuple[Any, int]]((module, 0) for module in modules)
    met: dict[int, Any] = {}  # kept alive, so that nothing else gets its id()
    while pending:
        thing, depth = pending.popleft()
        if id(thing) in met or is_a(thing, _PLAIN):
            continue
        met[id(thing)] = thing
        if is_a(thing, _THREADS) or (is_a(thing, type) and issubclass(thing, _THREADS)):
            return True
        is_own = is_a(thing, FunctionType) and not is_foreign(thing)
        if is_own and not _NAMES.isdisjoint(names_of(thing.__code__)):
            return True
        if depth < _DEEPEST:
            pending += [(part, depth + 1) for part in islice(_parts(thing), _MOST)]
    return False


def may_catch(modules: Iterable[nn.Module]) -> bool:
    """Whether `forward`, or what it names, handles exceptions."""
    return any(_has_handler(function.__code__) for function in _run_code(modules))


def tensors_held(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Those that modules of the user's hold, and what runs in a call closes over."""
    modules = list(modules)
    for function in _run_code(modules):
        yield from (part for part in _closed_over(function) if is_a(part, Tensor))
    for module in modules:
        if not is_foreign(type(module)):
            own = (*vars(module).values(), *module._buffers.values(), *module._parameters.values())
            yield from (part for part in own if is_a(part, Tensor))


def names_used(modules: Iterable[nn.Module]) -> frozenset[str]:
    """What `forward` names, and what that names."""
    code = (function.__code__ for function in _run_code(modules))
    return frozenset(name for each in code for name in names_of(each))


def _run_code(modules: Iterable[nn.Module]) -> Iterator[FunctionType]:
    """The functions that may run in a call: `forward` and what it names, but for PyTorch's."""
    pending = deque[tuple[Any, type]]()
    for module in modules:
        kind = type(module)
        pending.append((in_class(kind, "forward"), kind))
        pending += [(part, kind) for part in vars(module).values() if callable(part)]
    met: set[Any] = set()
    while pending:
        thing, kind = pending.popleft()
        function = function_in(thing)
        place = function, kind  # what `self.part` is may be another class's
        if not is_a(function, FunctionType) or place in met or is_foreign(function):
            continue
        met.add(place)
        yield function
        for name in names_of(function.__code__):
            pending.append((function.__globals__.get(name), kind))
            pending.append((in_class(kind, name), kind))
        pending.extend((part, kind) for part in _closed_over(function))


@lru_cache(maxsize=4096)
def _has_handler(code: CodeType) -> bool:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    if "suppress" in code.co_names or any(map(_has_handler, inner)):
        return True
    if _ERRORS.isdisjoint(code.co_names):
        return False
    return not _HANDLERS.isdisjoint(step.opname for step in dis.get_instructions(code))


def _may_lead(part: Any) -> bool:
    """Whether what a module holds may be more than a number, a size or an empty table."""
    if type(part) in _TABLES:
        return bool(part) and not (type(part) is tuple and is_a(part[0], _PLAIN))
    return not is_a(part, _PLAIN)


def is_foreign(thing: Any) -> bool:
    """Whether a class or a function is of a package that is not looked into."""
    return _package(str(getattr(thing, "__module__", ""))) in _FOREIGN


def _package(name: str) -> str:
    return name.partition(".")[0]


def names_of(code: CodeType) -> Iterator[str]:
    """What code names, functions within it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_of(constant)


def named_places(function: FunctionType) -> Iterator[tuple[Any, str]]:
    """Where a function may read or store by name: a table of globals, or what it leads to, and the
    name there. `cfg.step += 1` of an imported module, `torch.backends.cudnn.benchmark = True`.

    Of packages that are not looked into, only what the function stores is a place.
    """
    known, names, stored = function.__globals__, *_names_and_stored(function.__code__)
    for name in names:
        if name in known or name in stored:
            yield known, name
    modules = sys.modules
    owners = [known[name] if name in known else modules.get(name) for name in names]
    owners = [part for part in (*owners, *_closed_over(function)) if _is_owner(part)]
    met = {id(known)}
    for owner in owners:  # grows on the way
        if id(owner) in met or (content := vars(owner)) is known:
            continue
        met.add(id(owner))
        is_ours = isinstance(owner, ModuleType) and _package(owner.__name__) not in _FOREIGN
        for name in names:
            if name in stored or (is_ours and name in content):
                yield owner, name
            if name in content and _is_owner(content[name]):
                owners.append(content[name])


def _is_owner(thing: Any) -> bool:
    """Whether it is a module of Python's, or a class of a package that is not looked into."""
    return is_a(thing, ModuleType) or (is_a(thing, type) and is_foreign(thing))


@lru_cache(maxsize=4096)
def _names_and_stored(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """All that code names, and the attributes and globals among these that it sets or deletes."""
    inner = [_names_and_stored(part) for part in code.co_consts if isinstance(part, CodeType)]
    names = frozenset(code.co_names).union(*(each[0] for each in inner))
    return names, frozenset(_stored(code)).union(*(each[1] for each in inner))


def _stored(code: CodeType) -> Iterator[str]:
    """Read off the bytes: `dis` takes a millisecond for a function."""
    steps, high = code.co_code, 0
    if _STORES.isdisjoint(steps[::2]):
        return
    for step, argument in zip(steps[::2], steps[1::2], strict=True):
        argument |= high
        if step in _STORES:
            yield code.co_names[argument]
        high = argument << 8 if step == dis.EXTENDED_ARG else 0


_STORES = frozenset(
    dis.opmap[f"{what}_{place}"] for what in ("STORE", "DELETE") for place in ("ATTR", "GLOBAL")
)


def _read(function: FunctionType) -> Iterator[Any]:
    """What a function may call: what it names of its module, closes over, or has as defaults."""
    known = function.__globals__
    yield from [known[name] for name in names_of(function.__code__) if name in known]
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from _closed_over(function)


def _closed_over(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # nothing is in it yet
            continue


def _code_of(kind: type) -> Iterator[Any]:
    """The functions of a class and of those above it."""
    for base in kind.__mro__:
        if is_foreign(base):
            continue
        for part in list(vars(base).values()):
            yield function_in(part)


def _parts(thing: Any) -> Iterator[Any]:
    """What something is made of, as far as code may be among it."""
    if is_a(thing, nn.Module):
        yield type(thing)
        held = list(vars(thing).items())
        yield from [part for name, part in held if name not in _OF_MODULES and _may_lead(part)]
    elif is_a(thing, TABLES):
        yield from list(islice(parts_of(thing), _MOST))
    elif is_a(thing, partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif is_a(thing, MethodType):
        yield from (thing.__func__, thing.__self__)
    elif is_foreign(thing if is_a(thing, (type, FunctionType)) else type(thing)):
        return
    elif is_a(thing, FunctionType):
        yield from _read(thing)
    elif is_a(thing, type):
        yield from _code_of(thing)
    else:
        yield type(thing)
        yield from list(attributes_of(thing).values())
