"""What an object of the user's is and holds, told without running any code of its own.

A config that answers every attribute as an item, a table that reads from a disk, a proxy: such a
class may answer to any attribute, length or item with anything, or raise. So what a thing is, its
`type()` says (a proxy's `__class__` says what it likes), attributes are taken from where they lie,
and tables are walked by the methods of Python's own classes that they derive from. What a class of
Python code serves by methods of its own, a `Mapping` or a `Sequence`, is asked for nothing but the
attributes that it keeps it in.
"""

from __future__ import annotations

import threading
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Iterator
from types import MemberDescriptorType, MethodType, SimpleNamespace
from typing import Any

TABLES = (dict, list, tuple, set, frozenset, deque)
"""Those of Python's own that have the methods of C code beneath whatever derives from them."""


LIKE_TABLES = (SimpleNamespace, UserDict, UserList, ChainMap)
"""Classes of Python's library that keep what they hold in attributes."""
_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None)))


def is_a(thing: Any, kinds: Any) -> bool:
    """Whether it is of this class, or of one of these, whatever it says of itself."""
    return issubclass(type(thing), kinds)


def attributes_of(thing: Any) -> dict[str, Any]:
    """Its `__dict__`; an empty one where it has none."""
    lookup: Any = threading.local if is_a(thing, threading.local) else object
    try:
        held = lookup.__getattribute__(thing, "__dict__")
    except Exception:  # slots alone, or a property of that name
        return {}
    return held if is_a(held, dict) else {}


def is_iterator(thing: Any) -> bool:
    """Whether it is one of Python's own, which tells where it stands."""
    kind = type(thing)
    return kind.__module__ in ("itertools", "builtins") and issubclass(kind, Iterator)


def slots_of(thing: Any) -> Iterator[tuple[str, Any]]:
    """What lies in its slots; None in one that is empty."""
    for kind in type(thing).__mro__:
        if "__slots__" not in vars(kind):
            continue
        for name, slot in vars(kind).items():
            if type(slot) is MemberDescriptorType:
                try:
                    yield name, slot.__get__(thing)
                except AttributeError:
                    yield name, None


def in_class(kind: type, name: str) -> Any:
    """What a class has under a name, as it lies there: a property, a classmethod; else None."""
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


def function_in(thing: Any) -> Any:
    """What a property, a method or a static method calls; any other thing itself."""
    if is_a(thing, property):
        return thing.fget
    return thing.__func__ if is_a(thing, (MethodType, classmethod, staticmethod)) else thing


def length_of(table: Any) -> int:
    """How much a table holds."""
    return int(_own(table).__len__(table))


def parts_of(table: Any) -> Iterator[Any]:
    """What a table holds; of a dict the values."""
    return iter(dict.values(table)) if is_a(table, dict) else _own(table).__iter__(table)


def name_of(key: Any, position: int) -> str:
    """A key of a table, in words; an object, which may say anything of itself, by its place."""
    parts = key if type(key) is tuple else (key,)
    if all(type(part) in _PLAIN for part in parts):
        return f"[{key!r:.40}]"
    return f"[{type(key).__name__} {position}]"


def named_parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """What a thing holds, with how to get there: in a table, in attributes, before an iterator."""
    if is_a(thing, TABLES):
        names = list(dict.keys(thing)) if is_a(thing, dict) else range(length_of(thing))
        for position, (name, part) in enumerate(zip(names, list(parts_of(thing)), strict=False)):
            yield name_of(name, position), part
    elif is_iterator(thing):
        yield from ((f"[{place}]", part) for place, part in enumerate(_before(thing)))
    yield from ((f".{name}", part) for name, part in list(attributes_of(thing).items()))
    yield from ((f".{name}", part) for name, part in slots_of(thing))


def _before(iterator: Any) -> Any:
    """What an iterator goes over."""
    try:
        return iterator.__reduce__()[1]
    except Exception:  # a generator, or one over what cannot be copied
        return ()


def _own(table: Any) -> Any:
    return next(kind for kind in TABLES if is_a(table, kind))
