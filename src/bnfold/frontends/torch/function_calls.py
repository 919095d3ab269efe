"""What a program's code asks of PyTorch while it runs: answers that equal outputs may hide.

A program may ask something of its modules (`len(repr(self))`, `isinstance(self.bn, ...)`) and use
the answer where no value of the proof shows it: as a bound that nothing reaches, in front of a
sigmoid that is 1 either way. So two runs are compared call by call as well, by what the code hands
to PyTorch's functions:

    functions   which are called, in which order: the path that was taken
    numbers     all arguments that are no tensors, and what is in small tensors that no function
                returned: made of NumPy's, or held in a list
    weights     which of the model's parameters and buffers they take

Left out are the calls of modules that the fold replaces, and where it merged branches, the sums of
values and their products with weights, of which some are gone. Within PyTorch's own modules, flags
are: a fold may make one work out of place.

Numbers that were taken out of values are no answers, and rounding moves them. They are told from
answers by running the original on inputs that are shaken: what moves there is not compared.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from types import FrameType
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnfold.frontends.torch.held import is_a
from bnfold.frontends.torch.nothing import KEEPERS, PRODUCTS, SUMS, MergedAway

_MANY = 256
"""How many numbers of one argument are compared, at most."""


class FunctionCall(NamedTuple):
    """One call of a function of PyTorch."""

    name: str
    path: str | None
    """The module whose code calls it; None outside of the model."""
    numbers: tuple[Any, ...]
    tensors: tuple[frozenset[str] | list[Any] | None, ...]
    """Per argument, the names of the parameter or buffer that it is, or what is in it."""


@dataclass(slots=True)
class Heard:
    """What was asked in one run."""

    kinds: dict[str, Any]
    """Per module what a fold may replace: its class, whether it works in place, its window."""
    calls: list[FunctionCall] = field(default_factory=list)

    def without(self, replaced: Set[str]) -> list[FunctionCall]:
        """The calls that other modules make."""
        if not replaced:
            return self.calls
        inside: set[str | None] = set()
        for name in self.kinds:  # a module stands before its parts
            parent = name.rpartition(".")[0] if name else None
            if name in replaced or parent in inside:
                inside.add(name)
        return [call for call in self.calls if call.path not in inside]


@contextmanager
def listening(model: nn.Module) -> Iterator[Heard]:
    """While this is open, it is noted what the model's code asks of PyTorch in this thread."""
    parts = _Names()
    parts.add(model, "")
    heard = Heard(parts.kinds)
    with _Listener(heard, parts):
        yield heard


class _Names:
    """A model's modules and weights, each known by its names. Each module is met once."""

    def __init__(self) -> None:
        self.paths: dict[int, str] = {}
        self.kinds: dict[str, Any] = {}
        self.weights: dict[int, tuple[Tensor, frozenset[str]]] = {}
        """Kept alive, so that nothing else gets its id."""

    def add(self, module: nn.Module, path: str) -> None:
        self.paths[id(module)] = path
        own = module.__dict__
        self.kinds[path] = type(module), *(own.get(name) for name in _SETTINGS)
        for name, weight in (*module._parameters.items(), *module._buffers.items()):
            if weight is not None:
                known = self.weights.get(id(weight), _UNKNOWN)[1]
                self.weights[id(weight)] = weight, known | {f"{path}.{name}"}
        for name, part in module._modules.items():
            if part is not None and is_a(part, nn.Module) and id(part) not in self.paths:
                self.add(part, f"{path}.{name}" if path else name)


_SETTINGS = ("inplace", "kernel_size", "stride", "padding", "dilation", "groups")
_UNKNOWN: tuple[Any, frozenset[str]] = (None, frozenset())


class _Listener(TorchFunctionMode):
    """Notes each call that does not come from PyTorch's own functions."""

    def __init__(self, heard: Heard, parts: _Names) -> None:
        super().__init__()
        self.calls = heard.calls
        self.paths = parts.paths
        self.weights = parts.weights
        self.made: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
        """What functions returned: it was made of what they were given."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name != "__get__":
            self._note(name, args, kwargs, sys._getframe(1))
        result = func(*args, **kwargs)
        for made in result if isinstance(result, tuple | list) else (result,):
            if isinstance(made, Tensor):
                self.made[id(made)] = made
        return result

    def _note(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType | None
    ) -> None:
        caller = ""
        while frame is not None:
            caller = frame.f_globals.get("__name__", "")
            if not caller.startswith("torch.") or caller.startswith(_MODULES):
                break
            frame = frame.f_back
        if caller in _OWN:
            return
        flags = not caller.startswith(_MODULES)
        if "inplace" in kwargs:
            kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
        numbers: list[Any] = []
        tensors: list[frozenset[str] | list[Any] | None] = []
        for value in (*args, *kwargs.values()):
            if not isinstance(value, Tensor):
                _collect(value, numbers, flags=flags)
                tensors.append(None)
                continue
            weight, names = self.weights.get(id(value), _UNKNOWN)
            if weight is value:
                tensors.append(names)
            else:
                is_made = self.made.get(id(value)) is value
                tensors.append(None if is_made else _content(value))
        self.calls.append(FunctionCall(name, self._path_of(frame), tuple(numbers), tuple(tensors)))

    def _path_of(self, frame: FrameType | None) -> str | None:
        """The module whose method this is, or was called by."""
        while frame is not None:
            code = frame.f_code
            if code.co_argcount and code.co_varnames[0] == "self":
                module = frame.f_locals.get("self")
                if isinstance(module, nn.Module):
                    return self.paths.get(id(module))
            frame = frame.f_back
        return None


_MODULES = "torch.nn.modules."
_OWN = ("bnfold.frontends.torch.modules", "bnfold.frontends.torch.nothing")
_NUMBERS = (int, float, complex, str, torch.dtype)


def _collect(value: Any, numbers: list[Any], *, flags: bool) -> None:
    """The numbers and texts in an argument; flags, too, where they are wanted."""
    kind = type(value)
    if kind in _NUMBERS:
        numbers.append(value)
    elif kind is bool:
        if flags:
            numbers.append(value)
    elif value is None or isinstance(value, Tensor):
        return
    elif isinstance(value, tuple | list):
        for part in value[:_MANY]:
            _collect(part, numbers, flags=flags)
    elif kind is dict:
        for part in value.values():
            _collect(part, numbers, flags=flags)
    elif kind is slice:
        for part in (value.start, value.stop, value.step):
            _collect("" if part is None else part, numbers, flags=flags)
    elif isinstance(value, np.generic | np.ndarray):
        numbers += np.ravel(value)[:_MANY].tolist()
    elif isinstance(value, int | float | str):
        numbers.append(value)


def _content(tensor: Tensor) -> list[Any] | None:
    """What is in a small tensor."""
    if tensor.numel() > _MANY or tensor.layout is not torch.strided or tensor.is_quantized:
        return None
    try:
        numbers: list[Any] = tensor.detach().reshape(-1).tolist()
    except RuntimeError:  # within vmap, or without memory
        return None
    return numbers


# ------------------------------------------------------------------- comparing


def difference(original: Heard, folded: Heard, shaken: Sequence[Heard] = ()) -> str:
    """What the folded model's code asks otherwise than the original's, in words; '' if nothing.

    `shaken` are further runs of the original. Where they differ among each other, nothing is
    compared. Where they agree, the numbers of the original's own run count: its code may have asked
    a model that has been folded in place since. Its path does not: it may have filled a cache.
    """
    replaced = _replaced(original, folded)
    before, after, *others = (run.without(replaced) for run in (original, folded, *shaken))
    if any(kind[0] is MergedAway for kind in folded.kinds.values()):
        before, after, *others = (_without_merged(run) for run in (before, after, *others))
        before, *others = (_without_factors(run, after) for run in (before, *others))
    paths = {_functions(run) for run in others}
    if len(paths) > 1:
        return ""
    if others and _functions(before) not in paths:
        before = others[0]
    if _functions(before) != _functions(after):
        return _OTHER_PATH
    moving = {place for run in others[1:] for place in _differing_places(others[0], run)}
    for number, place in _differing_places(before, after):
        if (number, place) not in moving:
            return _in_words(before[number], after[number], place)
    return ""


_OTHER_PATH = "the code calls other functions with the steps gone"


def _functions(calls: Sequence[FunctionCall]) -> tuple[str, ...]:
    return tuple(call.name for call in calls)


def _without_merged(calls: Sequence[FunctionCall]) -> list[FunctionCall]:
    """The calls but for what is not heard where nothing is among its arguments.

    Those are sums of values, products of a value with a weight, and what negates a value.
    """
    return [call for call in calls if any(call.numbers) or not _may_be_merged(call)]


def _without_factors(calls: list[FunctionCall], after: Sequence[FunctionCall]) -> Any:
    """The calls but for products with a number that the folded model does not compute any more."""
    surplus, left = len(calls) - len(after), list[FunctionCall]()
    for call in calls:
        there = after[len(left)] if len(left) < len(after) else None
        is_there = there is not None and (call.name, call.numbers) == (there.name, there.numbers)
        if surplus > 0 and not is_there and _is_factor(call):
            surplus -= 1
        else:
            left.append(call)
    return left


def _is_factor(call: FunctionCall) -> bool:
    """Whether it multiplies a value by a number."""
    return call.name in PRODUCTS and len(call.numbers) == 1 and not any(call.tensors)


def _may_be_merged(call: FunctionCall) -> bool:
    weights = sum(isinstance(tensor, frozenset) for tensor in call.tensors)
    if call.name in PRODUCTS:
        return weights == 1
    return not weights and call.name in SUMS | KEEPERS


def _replaced(original: Heard, folded: Heard) -> set[str]:
    """Modules that are something else in the folded model."""
    return {name for name, kind in original.kinds.items() if folded.kinds.get(name) != kind}


_COUNT = -1
"""In place of a place: there are more numbers, or fewer."""


def _differing_places(
    first_run: Sequence[FunctionCall], second_run: Sequence[FunctionCall]
) -> Iterator[tuple[int, int | str]]:
    """Where two runs of the same functions differ: the call, and the number or the tensor."""
    for number, (first, second) in enumerate(zip(first_run, second_run, strict=True)):
        if first.numbers != second.numbers:
            if len(first.numbers) != len(second.numbers):
                yield number, _COUNT
                continue
            for place, (a, b) in enumerate(zip(first.numbers, second.numbers, strict=True)):
                if a != b:
                    yield number, place
        if first.tensors != second.tensors:
            for position, (a, b) in enumerate(zip_longest(first.tensors, second.tensors)):
                if a is not None and b is not None and not _is_same_tensor(a, b):
                    yield number, f"argument {position}"


def _is_same_tensor(first: frozenset[str] | list[Any], second: frozenset[str] | list[Any]) -> bool:
    """Whether it has a name in common, or holds the same.

    Where one of them is unknown they may be: a bias that was missing may be there now, and what a
    removed step made is made of something else.
    """
    if isinstance(first, frozenset) and isinstance(second, frozenset):
        return not first.isdisjoint(second)
    return first == second


def _in_words(before: FunctionCall, after: FunctionCall, place: int | str) -> str:
    where = f"{before.name} in {before.path}" if before.path else before.name
    if isinstance(place, str) or place == _COUNT:
        return f"the code hands something else to {where} with the steps gone"
    old, new = before.numbers[place], after.numbers[place]
    return f"the code hands {new!r:.60} to {where} with the steps gone, and {old!r:.60} before"
