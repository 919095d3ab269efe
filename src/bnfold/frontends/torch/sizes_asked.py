"""Which sizes and layouts a program's Python asks for, and what it compares sizes with.

A module's code gets the length of an axis as a number. What it decides by that is decided for the
example alone: `if h % 2: pad`, `for row in range(h)`, a pad or a window computed from the width.
So the lengths that the code is told are numbers that know where they came from (`Length`), and so
is what is computed from them (`Ratio`, if it is no whole number). They note when one is compared,
or becomes a number that knows nothing: then other sizes may take another path, and where both
sides of a comparison are known, also which sizes.

Of layouts (`stride()`, `is_contiguous()`) it is only noted that one was asked for.

PyTorch's own code gets plain numbers: what it decides by sizes it decides inside of an op.
"""

from __future__ import annotations

import math
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class Asked:
    """What a run wanted to know of sizes."""

    sizes: bool = False
    """Whether it asked for any."""
    decided: bool = False
    """Whether its path may depend on one."""
    layout: bool = False
    """Whether it asked how a tensor lies in memory."""
    turns: set[Turn] = field(default_factory=set)
    """Where an answer would be another one."""
    answers: list[Any] = field(default_factory=list)
    """What its comparisons gave, and the numbers that it took, in order: the path hangs on them."""
    most: int | None = None
    """How many answers it may get: a search for a square root ends on some sizes alone."""

    def answer(self, given: Any) -> Any:
        """Note what it is told. Raises EndlessError."""
        self.answers.append(given)
        if self.most is not None and len(self.answers) > self.most:
            raise EndlessError(f"it has compared sizes {self.most} times")
        return given


class EndlessError(RuntimeError):
    """On these sizes the program may never end."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A comparison of a size with some other number."""

    factor: float
    """How many times the example's size that number is."""
    is_batch: bool
    """Whether the size is that of the batch."""
    is_exact: bool
    """Whether it was asked for equality, so that the answer turns at that very size."""


class _Told:
    """A number that came out of sizes."""

    asked: Asked
    is_batch: bool


def _told(answer: Any, source: _Told) -> Any:
    """The answer, as a number that knows where it came from."""
    if type(answer) is tuple:  # divmod
        return tuple(_told(part, source) for part in answer)
    if type(answer) not in (int, float):
        return answer
    number: Any = (Length if type(answer) is int else Ratio)(answer)
    number.asked, number.is_batch = source.asked, source.is_batch
    return number


def _plain_number(number: Any) -> Any:
    if not isinstance(number, _Told):
        return number
    return int.__pos__(number) if isinstance(number, int) else float.__pos__(number)  # type: ignore[arg-type]


def _computed(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *operands: Any) -> Any:
        if not all(isinstance(operand, int | float) for operand in operands):
            return NotImplemented
        return _told(function(_plain_number(self), *map(_plain_number, operands)), self)

    return method


def _swapped(function: Callable[..., Any]) -> Callable[..., Any]:
    return _computed(lambda left, right: function(right, left))


def _compared(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented
        size, number = _plain_number(self), _plain_number(other)
        self.asked.decided = True
        if not isinstance(other, _Told) and size > 0 and number > 0:
            exact = function in (operator.eq, operator.ne)
            self.asked.turns.add(Turn(number / size, self.is_batch, exact))
        return self.asked.answer(function(size, number))

    return method


def _ended(function: Callable[..., Any]) -> Callable[..., Any]:
    """What becomes of it is not seen any more."""

    def method(self: Any, *operands: Any) -> Any:
        self.asked.decided = True
        made = function(_plain_number(self), *operands)
        # A text or a hash is a name for something, mostly.
        return self.asked.answer(made) if function in (bool, int, float) else made

    return method


_BINARY = [
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"),
    *("lshift", "rshift", "and_", "or_", "xor"),
]
_METHODS = {
    **{f"__{name.rstrip('_')}__": _computed(getattr(operator, name)) for name in _BINARY},
    **{f"__r{name.rstrip('_')}__": _swapped(getattr(operator, name)) for name in _BINARY},
    "__divmod__": _computed(divmod),
    "__rdivmod__": _swapped(divmod),
    **{f"__{name}__": _computed(getattr(operator, name)) for name in ("neg", "pos", "abs")},
    **{f"__{name}__": _computed(getattr(math, name)) for name in ("ceil", "floor", "trunc")},
    "__round__": _computed(round),
    **{
        f"__{name}__": _compared(getattr(operator, name))
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
    },
    **{f"__{kind.__name__}__": _ended(kind) for kind in (int, float, bool, hash, repr, format)},
}

Length = type("Length", (_Told, int), {**_METHODS, "__module__": __name__})
"""A length, or a whole number computed from lengths."""
Ratio = type("Ratio", (_Told, float), {**_METHODS, "__module__": __name__})
"""Any other number computed from lengths."""


@dataclass(slots=True)
class _Listener:
    """Notes what the program asks of tensors that depend on its input."""

    asked: Asked
    is_known: Callable[[Tensor], bool]
    tell: bool
    thread: int = field(default_factory=threading.get_ident)
    """The patch is global; other threads go on as before."""

    def is_asked(self, tensor: Tensor) -> bool:
        """Whether the caller's caller's caller is the program's code."""
        name = sys._getframe(3).f_globals.get("__name__", "")
        own = name.startswith(_OWN) or threading.get_ident() != self.thread
        return not own and self.is_known(tensor)

    def hears_size(self, tensor: Tensor) -> bool:
        """Note that the program asked for a size, if it was the program."""
        if not self.is_asked(tensor):
            return False
        self.asked.sizes = True
        self.asked.decided |= not self.tell
        return True

    def hears_layout(self, tensor: Tensor) -> None:
        """The same of a layout."""
        self.asked.layout |= self.is_asked(tensor)

    def length(self, number: int, axis: int) -> Any:
        """The length of an axis as the program gets it; axis -1 stands for several."""
        if not self.tell:
            return number
        source = _Told()
        source.asked, source.is_batch = self.asked, axis == 0
        return _told(number, source)

    def measured(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What answers with lengths: one, or those of all axes."""

        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            answer = original(tensor, *args, **kwargs)
            if not self.hears_size(tensor):
                return answer
            if isinstance(answer, int):
                axis = next(iter((*args, *kwargs.values())), -1)
                return self.length(answer, axis if isinstance(axis, int) else -1)
            return torch.Size([self.length(number, axis) for axis, number in enumerate(answer)])

        return method

    def counted(self, original: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        """What answers with something that knows no size: the path is decided by it."""

        def method(tensor: Tensor) -> Any:
            if self.hears_size(tensor):
                self.asked.decided = True
            return original(tensor)

        return method

    def laid_out(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What answers how a tensor lies in memory."""

        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.hears_layout(tensor)
            return original(tensor, *args, **kwargs)

        return method


@contextmanager
def sizes_heard(asked: Asked, is_known: Callable[[Tensor], bool], *, tell: bool) -> Iterator[None]:
    """While this is open, it is noted which sizes the program asks for.

    Args:
        asked: Where it is noted.
        is_known: Whether a tensor depends on the input.
        tell: Whether the program gets numbers that note what becomes of them.
    """
    listener = _Listener(asked, is_known, tell)
    numel = listener.measured(_numel)
    with patched(
        {
            "shape": property(listener.measured(shape_of)),
            "size": listener.measured(_size),
            "numel": numel,
            "nelement": numel,
            "nbytes": property(listener.measured(_nbytes)),
            "__len__": listener.counted(torch.Tensor.__len__),
            "__iter__": listener.counted(torch.Tensor.__iter__),
            "stride": listener.laid_out(torch.Tensor.stride),
            "is_contiguous": listener.laid_out(torch.Tensor.is_contiguous),
        }
    ):
        yield


@contextmanager
def patched(patches: dict[str, Any]) -> Iterator[None]:
    """While this is open, tensors have these attributes."""
    own = {name: vars(torch.Tensor).get(name) for name in patches}
    for name, patch in patches.items():
        setattr(torch.Tensor, name, patch)
    try:
        yield
    finally:
        for name, original in own.items():
            if original is None:
                delattr(torch.Tensor, name)
            else:
                setattr(torch.Tensor, name, original)


_OWN = ("torch.", "bnfold.")
shape_of = torch._C.TensorBase.shape.__get__  # type: ignore[attr-defined]
"""A tensor's shape, as it is while somebody listens, in a tenth of the time."""
strides_of = torch._C.TensorBase.stride
"""The same of its strides."""
_size = torch._C.TensorBase.size
_numel = torch._C.TensorBase.numel
_nbytes = torch._C.TensorBase.nbytes.__get__  # type: ignore[attr-defined]
