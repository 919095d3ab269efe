"""Whether a model may be run itself, and be left as it was: what its attributes hold can be seen.

What a run changes in numbers, lengths and tables shows between two runs of a copy (`left_behind`),
and what it writes to tensors can be put back. What a file, a queue, an iterator or an array of
NumPy holds does neither. A model that has one is run as a copy.
"""

from __future__ import annotations

import gc
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bnfold.frontends.torch.code_names import is_foreign
from bnfold.frontends.torch.held import is_a
from bnfold.frontends.torch.tensor_facts import is_ordinary

_SEEN = (int, float, complex, str, bytes, type(None), type, types.ModuleType, torch.Size)
_SEEN += (torch.dtype, torch.device, types.FunctionType, types.BuiltinFunctionType)  # type: ignore[assignment]
_EXACTLY_SEEN = frozenset({*_SEEN, bool})
"""What no run changes, and functions: what these hold is not part of a copy anyway."""
_TABLES = (dict, OrderedDict, weakref.WeakKeyDictionary, weakref.WeakValueDictionary)
_ROWS = (list, tuple, set, frozenset, deque)
_OF_MODULES = ("_parameters", "_buffers", "_modules")
_MOST_THINGS = 20_000


def loose_tensors(model: nn.Module) -> list[Tensor] | None:
    """The tensors among the attributes, besides parameters and buffers.

    None where not all shows, or a tensor lies so deep that another one may take its place unseen.
    """
    modules = list(model.modules())
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        return None
    known = {id(part) for part in (*modules, *model.parameters(), *model.buffers())}
    found: list[Tensor] = []
    todo = [
        (value, 0)
        for module in modules
        for name, value in module.__dict__.items()
        if type(value) not in _EXACTLY_SEEN and name not in _OF_MODULES and not _is_plain(value)
    ]
    while todo:
        thing, depth = todo.pop()
        if type(thing) in _EXACTLY_SEEN or is_a(thing, _SEEN) or id(thing) in known:
            continue
        known.add(id(thing))
        if is_a(thing, Tensor) and is_ordinary(thing) and depth <= _PUT_BACK:
            found.append(thing)
            continue
        parts = _parts(thing)
        if parts is None or len(known) > _MOST_THINGS:
            return None
        inside = depth + (1 if type(thing) in _ROWS or type(thing) in _TABLES else _PUT_BACK + 1)
        todo += [(part, inside) for part in parts if not _is_plain(part)]
    return found


_PUT_BACK = 1
"""What lies in an attribute, or in a table there, is put back by reference; see `Snapshot`."""


def _is_plain(thing: Any) -> bool:
    """Whether it is an empty table, or a row of numbers: most of what a module holds."""
    kind = type(thing)
    if kind is tuple:
        return _EXACTLY_SEEN.issuperset(map(type, thing))
    return (kind in _TABLES or kind in _ROWS) and not thing


def _parts(thing: Any) -> Iterable[Any] | None:
    """What a thing holds; None where that does not show."""
    if type(thing) in _ROWS:
        return list(thing)
    if type(thing) in _TABLES:
        return [*thing.keys(), *thing.values()]
    if is_a(thing, types.MethodType):
        return (thing.__self__,)
    if is_a(thing, weakref.ReferenceType):
        return ()
    is_hidden = is_a(thing, (nn.Module, Tensor)) or is_foreign(type(thing))
    return None if is_hidden else gc.get_referents(thing)
