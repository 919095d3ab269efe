"""The numbers that code which asks for sizes knows besides: lengths that are worth trying.

What a length is compared with is heard (see `told_numbers`), but not what C code does with it: a
step of `range(0, h, self.tile)`, a key in `self.tables[h, w]` or `f"rows_{h}"`, an index into a
list. The number that decides there stands in the code, or what the code names holds it: a table, a
default, an attribute of its module, a small buffer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from types import CodeType, FrameType, ModuleType
from typing import Any

from torch import Tensor, nn

from bnfold.frontends.torch.held import TABLES, attributes_of, in_class, is_a, parts_of

_LONGEST, _LARGEST = 1 << 12, 1 << 24
"""Numbers up to this may be lengths, or areas."""
_DEEPEST, _MOST = 3, 64
"""So many containers in each other are looked into, and so much of each."""
_MOST_AXES = 5
_SHORT = 16
_DIGITS = re.compile(r"\d+")


@dataclass(slots=True)
class Known:
    """What some code knows."""

    numbers: set[int] = field(default_factory=set)
    """What may be a length, or a limit of one."""
    keys: set[int] = field(default_factory=set)
    """Those of them that stand in tables, tuples or names."""
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    """Several at once."""

    def add(self, value: Any, depth: int = 0) -> None:
        """Note what a value holds."""
        if type(value) is int:
            numbers = {value} if 0 < value <= _LARGEST else set()
            self.numbers |= numbers
            self.keys |= numbers if depth and value <= _LONGEST else set()
        elif is_a(value, str):
            if depth:
                found = tuple(int(digits) for digits in _DIGITS.findall(str.__str__(value)[:_MOST]))
                self.keys.update(n for n in found if 0 < n <= _LONGEST)
                self._add_shape(found)
        elif is_a(value, nn.ModuleDict):
            self.add(dict.fromkeys(value._modules), depth)
        elif type(value) is range and depth < _DEEPEST:
            for part in value[:_MOST]:
                self.add(part, depth + 1)
        elif is_a(value, TABLES) and depth < _DEEPEST:
            if is_a(value, tuple):
                self._add_shape(tuple(parts_of(value)))
            elif is_a(value, list):  # an index may lie beyond it
                self.numbers |= {list.__len__(value)} - {0}
            is_dict = is_a(value, dict)
            for part in islice(dict.keys(value) if is_dict else parts_of(value), _MOST):
                self.add(part, depth + 1)
            for part in islice(parts_of(value), _MOST) if is_dict else ():
                self.add(part, depth)

    def _add_shape(self, lengths: tuple[Any, ...]) -> None:
        fits = all(type(n) is int and 0 < n <= _LONGEST for n in lengths)
        if fits and 1 < len(lengths) <= _MOST_AXES:
            self.shapes.add(lengths)


def known_to(frame: FrameType) -> Known:
    """What the code that runs in a frame knows."""
    known = Known()
    code, local = frame.f_code, frame.f_locals
    for constant in _constants(code):
        known.add(constant)
    for value in local.values():
        if not is_a(value, (nn.Module, Tensor)):
            known.add(value)
    owner: Any = local.get(code.co_varnames[0]) if code.co_argcount else None
    names = set(code.co_names)
    if is_a(owner, nn.Module):
        for name in (*vars(owner), *owner._modules):  # getattr(self, f"rows_{h}")
            known.add(name, _DEEPEST)
        names -= {"training"}
    for value in _named(names, owner, frame.f_globals):
        known.add(value)
    return known


def held_in_buffers(modules: Iterable[nn.Module], names: frozenset[str]) -> set[int]:
    """Whole numbers in small buffers of these names."""
    return {
        number
        for module in modules
        for name, buffer in module._buffers.items()
        if name in names and buffer is not None and not buffer.is_floating_point()
        if 0 < buffer.numel() <= _MOST_AXES and not buffer.is_complex()
        for number in map(int, buffer.flatten().tolist())
        if 0 < number <= _LONGEST
    }


def _constants(code: CodeType) -> Iterator[Any]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _constants(constant)
        elif isinstance(constant, str):  # "24x32"; no text for people
            yield (constant,) if len(constant) < _SHORT and " " not in constant else None
        else:
            yield constant


def _named(names: Iterable[str], owner: Any, known: dict[str, Any]) -> Iterator[Any]:
    """What code finds under these names: in its module's file, in `self`, in what `self` holds."""
    kind = type(owner)
    for name in names:
        if name in known and not is_a(known[name], ModuleType):
            yield known[name]
        yield in_class(kind, name)
        value = _held(owner, name)
        yield value
        if not is_a(value, (Tensor, nn.Module)):  # self.config.tile
            yield from (_held(value, inner) for inner in names)


def _held(owner: Any, name: str) -> Any:
    held = attributes_of(owner)
    parts = owner._modules if is_a(owner, nn.Module) else {}
    return held.get(name, parts.get(name))
