"""What a model returns besides tensors: a function, an iterator, an object, a layer of its own.

Whoever gets one may run a part of the model later, on what nobody has seen. So the modules and
weights that it reaches stay what they are, as if somebody had named them with `keep`. It is asked
what refers to what, as the garbage collector does: that finds what `map`, `functools.partial` or
a bound method holds as well as closures and attributes, and calls nothing.
"""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.frontends.torch.code_names import is_foreign, names_of
from bnfold.frontends.torch.held import is_a
from bnfold.frontends.torch.recording import Handle

_PLAIN = (int, float, complex, str, bytes, type(None))
_SKIPPED = (*_PLAIN, types.ModuleType, types.CodeType, Handle)
_EXACT = frozenset(_PLAIN)
_MOST_THINGS = 20_000


def reached(result: Any, members: Mapping[int, nn.Module]) -> tuple[list[nn.Module], list[Tensor]]:
    """The members (modules, by their id()) and the tensors that what is returned leads to.

    Tensors that are returned as such are not among them, what hangs on them is. What holds so much
    that it is not gone through to its end reaches all members.
    """
    todo = [part for leaf in pytree.tree_leaves(result) for part in _beside(leaf)]
    seen: dict[int, Any] = {}  # held, so that nothing else gets the id
    modules: list[nn.Module] = []
    while todo and len(seen) < _MOST_THINGS:
        thing = todo.pop()
        if is_a(thing, _SKIPPED) or id(thing) in seen or _is_row(thing):
            continue
        seen[id(thing)] = thing
        if id(thing) in members:
            modules.append(thing)
        else:
            todo += _referred(thing)
    tensors = [thing for thing in seen.values() if is_a(thing, Tensor)]
    return list(members.values()) if todo else modules, tensors


def _is_row(thing: Any) -> bool:
    """Whether it holds nothing but numbers and texts, as the rows of a table do."""
    return type(thing) in (tuple, list) and _EXACT.issuperset(map(type, thing))


def _beside(leaf: Any) -> Iterable[Any]:
    return vars(leaf).values() if is_a(leaf, Tensor) else (leaf,)


def _referred(thing: Any) -> Iterable[Any]:
    """What a thing leads to, without all that lies beside it in its source file."""
    if is_a(thing, Tensor):
        return _beside(thing)
    if is_a(thing, dict) and "__builtins__" in thing:  # the globals of a file
        return ()
    if is_a(thing, type):  # one that a function made may close over what that knew
        return vars(thing).values() if "<locals>" in thing.__qualname__ else ()
    if is_a(thing, weakref.ReferenceType):
        return (thing(),)
    if is_a(thing, types.FunctionType):
        return (*gc.get_referents(thing), *_named(thing))
    return gc.get_referents(thing)


def _named(function: types.FunctionType) -> Iterator[Any]:
    """What a function knows by its name in the file."""
    known = {} if is_foreign(function) else function.__globals__
    yield from (known[name] for name in set(names_of(function.__code__)) if name in known)
