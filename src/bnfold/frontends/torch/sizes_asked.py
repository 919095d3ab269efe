"""Which sizes and layouts a program's Python asks for, and what it compares sizes with.

A module's code gets the length of an axis as a number. What it decides by that is decided for the
example alone: `if h % 2: pad`, `for row in range(h)`, a pad or a window computed from the width.
So the lengths that the code is told are numbers that know where they came from (`Length`), and so
is what is computed from them (`Ratio`, if it is no whole number). They note when one is compared,
or becomes a number that knows nothing: then other sizes may take another path, and where the
formula is known, also which sizes (see `resizing.turning`).

Of layouts (`stride()`, `is_contiguous()`) it is only noted that one was asked for.

PyTorch's own code gets plain numbers: what it decides by sizes it decides inside of an op.
"""

from __future__ import annotations

import math
import operator
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import numpy as np
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
    most: int | None = None
    """How many answers it may get: a search for a square root ends on some sizes alone."""
    too_many: Callable[[], BaseException] = lambda: EndlessError("it compares sizes on and on")
    turns: list[Turn] = field(default_factory=list)
    """What it was told, in order, that may be something else on other sizes."""
    answers: list[Any] = field(default_factory=list)
    """What its comparisons gave, and the numbers that it took, in order: the path hangs on them."""
    codes: set[CodeType] = field(default_factory=set)
    """Where it asked."""
    times: Counter[tuple[CodeType, Any]] = field(default_factory=Counter)
    """How often each place in the code has asked."""

    is_over: bool = False
    """Whether the run has ended: what its numbers are asked from then on is nobody's concern."""

    def answer(self, given: Any) -> Any:
        """Note what it is told. Raises EndlessError."""
        if self.is_over:
            return given
        self.answers.append(given)
        if self.most is not None and len(self.answers) > self.most:
            raise self.too_many()
        return given

    def decide(
        self,
        given: Any,
        formula: Formula,
        hint: float = 1.0,
        *,
        asked: str = "",
        is_name: bool = False,
    ) -> Any:
        """Note what the caller's caller is told, and what it hangs on.

        `asked`: by which operator; tuples compare their parts by two in one place. `is_name`: a
        text or a hash, which is a name for something, mostly.
        """
        if self.is_over:
            return given
        self.decided = True
        frame = sys._getframe(2)
        self._note(frame.f_code, (frame.f_lasti, asked), given, formula, hint)
        return given if is_name else self.answer(given)

    def offer(self, number: Any, formula: Formula) -> None:
        """Note a number that may be an index, which nothing hears, of the caller's caller."""
        if self.is_over:
            return
        frame = sys._getframe(2)
        place = (frame.f_lasti, "index")
        self._note(frame.f_code, place, number, formula, is_guess=True)

    def leave(self, number: float, formula: Formula, *, is_guess: bool = False) -> None:
        """Note that the caller's caller gets a number that knows nothing.

        What it is compared with is not heard; it may be a number of the same code.
        """
        if self.is_over:
            return
        self.decided = True
        frame = sys._getframe(2)
        numbers = numbers_of(frame.f_code)
        for limit in sorted({*numbers, *(n + 1 for n in numbers)})[:_NUMBERS]:

            def reaches(rule: Rule, limit: int = limit) -> bool:
                return bool(formula(rule) >= limit)

            place = (frame.f_lasti, limit)
            hint = limit / max(number, 1)
            self._note(frame.f_code, place, number >= limit, reaches, hint, is_guess=is_guess)

    def _note(
        self,
        code: CodeType,
        place: Any,
        given: Any,
        formula: Formula,
        hint: float = 1.0,
        *,
        is_guess: bool = False,
    ) -> None:
        where = (code, place)  # by value: it may be made anew in each run
        self.times[where] += 1
        if self.times[where] <= _TIMES:
            self.turns.append(Turn((*where, self.times[where]), given, formula, hint, is_guess))


_TIMES = 16
"""Of a loop over sizes, so many answers are tried to be turned."""
_FEW = 4
"""A remainder of so many may be an index into as many modules."""
_NUMBERS = 6
"""So many numbers of the code around are tried."""
_LONGEST = 4096
"""Of them, those that may be lengths."""


def numbers_of(code: CodeType) -> list[int]:
    """The whole numbers in some code that may be lengths."""
    return [n for n in code.co_consts if type(n) is int and 0 < n < _LONGEST]


class EndlessError(RuntimeError):
    """On these sizes the program may never end."""


Rule = Callable[[int, int], int]
"""Another length for an axis, given its number and its length."""
ANY = -1
"""Stands for some axis or other, of a tensor with other axes than the input."""
Formula = Callable[[Rule], Any]
"""What a number, or an answer, would be if lengths were others."""


@dataclass(frozen=True, slots=True)
class Turn:
    """An answer about sizes, or a number that left them, which may be another on other sizes."""

    place: tuple[Any, Any, int]
    """Where in the code it was asked for, and for the how-manieth time."""
    given: Any
    formula: Formula
    hint: float
    """How many times what was compared the other side is: sizes so much larger may turn it."""
    is_guess: bool = False
    """Whether no question was heard."""


class _Told:
    """A number that came out of sizes."""

    asked: Asked
    formula: Formula
    cost: int
    """How many steps the formula takes."""


_MOST_STEPS = 200
"""Of what takes more, as a sum over all rows, it is not known any more how it hangs on sizes."""


def _told(answer: Any, asked: Asked, formula: Formula, cost: int = 1) -> Any:
    """The answer, as a number that knows where it came from."""
    if type(answer) is tuple:  # divmod
        parts = (lambda rule, at=at: formula(rule)[at] for at in range(len(answer)))
        return tuple(_told(part, asked, of, cost) for part, of in zip(answer, parts, strict=True))
    if type(answer) not in (int, float):
        return answer
    number: Any = (Length if type(answer) is int else Ratio)(answer)
    number.asked, number.formula, number.cost = asked, formula, cost
    if cost > _MOST_STEPS:
        number.formula, number.cost = (lambda rule: answer), 1
    return number


def _at(number: Any, rule: Rule) -> Any:
    return number.formula(rule) if isinstance(number, _Told) else number


def _plain_number(number: Any) -> Any:
    if not isinstance(number, _Told):
        return number
    return int.__pos__(number) if isinstance(number, int) else float.__pos__(number)  # type: ignore[arg-type]


def _computed(function: Callable[..., Any], *, exponent: int | None = None) -> Callable[..., Any]:
    """`exponent`: which of the operands is one; what gets too large to compute is not computed."""

    def method(self: Any, *operands: Any) -> Any:
        given = (o for o in operands if o is not None)  # round(number, None)
        operands = tuple(o.item() if isinstance(o, np.number) else o for o in given)
        if not all(isinstance(operand, int | float) for operand in operands):
            return NotImplemented
        parts = (self, *operands)
        cost = 1 + sum(part.cost for part in parts if isinstance(part, _Told))

        def formula(rule: Rule) -> Any:
            values = [_at(part, rule) for part in parts]
            if exponent is not None and abs(values[exponent]) > _MOST_STEPS:
                raise OverflowError
            return function(*values)

        made = function(*map(_plain_number, parts))
        if function is operator.mod and _plain_number(parts[1]) <= _FEW:
            self.asked.offer(made, formula)
        return _told(made, self.asked, formula, cost)

    return method


def _operator(name: str) -> Callable[..., Any]:
    function = pow if name == "pow" else getattr(operator, name)  # that takes a modulus, too
    return _computed(function, exponent=1 if name in _LARGE else None)


def _swapped(name: str) -> Callable[..., Any]:
    function = getattr(operator, name)
    exponent = 0 if name in _LARGE else None
    return _computed(lambda left, right: function(right, left), exponent=exponent)


def _compared(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        other = other.item() if isinstance(other, np.number) else other
        if not isinstance(other, int | float):
            return NotImplemented
        size, number = _plain_number(self), _plain_number(other)
        return self.asked.decide(
            function(size, number),
            lambda rule: function(_at(self, rule), _at(other, rule)),
            number / size if size > 0 and 0 < number <= sys.maxsize else 1.0,
            asked=function.__name__,
        )

    return method


def _ended(function: Callable[..., Any]) -> Callable[..., Any]:
    """What becomes of it is not seen any more."""

    def method(self: Any, *operands: Any) -> Any:
        made = function(_plain_number(self), *operands)
        is_number = function in (int, float)

        def formula(rule: Rule) -> Any:
            return function(self.formula(rule), *operands)

        if is_number:
            self.asked.leave(made, formula, is_guess=True)
        return self.asked.decide(made, formula, is_name=not is_number)

    return method


def _as_condition(self: Any) -> bool:
    return self.asked.decide(bool(_plain_number(self)), lambda rule: bool(self.formula(rule)))  # type: ignore[no-any-return]


_BINARY = [
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"),
    *("lshift", "rshift", "and_", "or_", "xor"),
]
_LARGE = ("pow", "lshift")
_METHODS = {
    **{f"__{name.rstrip('_')}__": _operator(name) for name in _BINARY},
    **{f"__r{name.rstrip('_')}__": _swapped(name) for name in _BINARY},
    "__divmod__": _computed(divmod),
    "__rdivmod__": _computed(lambda left, right: divmod(right, left)),
    **{f"__{name}__": _computed(getattr(operator, name)) for name in ("neg", "pos", "abs")},
    "__round__": _computed(round),
    **{f"__{name}__": _computed(getattr(math, name)) for name in ("ceil", "floor", "trunc")},
    **{
        f"__{name}__": _compared(getattr(operator, name))
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
    },
    "__bool__": _as_condition,
    "__reduce_ex__": lambda self, _: (type(_plain_number(self)), (_plain_number(self),)),
    "__copy__": _plain_number,
    "__deepcopy__": lambda self, _: _plain_number(self),
    **{f"__{kind.__name__}__": _ended(kind) for kind in (int, float, hash, repr, format)},
}

_OF_WHOLE = {"bit_length": _computed(int.bit_length), "__invert__": _computed(operator.invert)}

Length = type("Length", (_Told, int), {**_METHODS, **_OF_WHOLE, "__module__": __name__})
"""A length, or a whole number computed from lengths."""
Ratio = type("Ratio", (_Told, float), {**_METHODS, "__module__": __name__})
"""Any other number computed from lengths."""


@dataclass(slots=True)
class _Listener:
    """Notes what the program asks of tensors that depend on its input."""

    asked: Asked
    is_known: Callable[[Tensor], bool]
    tell: bool
    given: Sequence[int]
    """The shape of the input."""
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

    def length(self, number: int, formula: Formula) -> Any:
        """A length as the program gets it, or a product of several."""
        return _told(number, self.asked, formula) if self.tell else number

    def along(self, axis: int, number: int, rank: int) -> Formula:
        """The length of an axis; where tensors have other axes than the input, of some axis."""
        is_batch = axis == 0 and number == next(iter(self.given), 0)
        known = axis if is_batch or rank == len(self.given) else ANY
        return lambda rule: rule(known, number)

    def measured(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What answers with lengths: one, or those of all axes, or how much there is of all."""

        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            answer = original(tensor, *args, **kwargs)
            if not self.hears_size(tensor):
                return answer
            self.asked.codes.add(sys._getframe(1).f_code)
            rank, axes = tensor.ndim, (*args, *kwargs.values())
            if not isinstance(answer, int):
                lengths = enumerate(answer)
                return torch.Size([self.length(n, self.along(a, n, rank)) for a, n in lengths])
            if axes and isinstance(axes[0], int):
                return self.length(answer, self.along(axes[0] % rank, answer, rank))
            whole = [self.along(a, n, rank) for a, n in enumerate(shape_of(tensor))]
            per_element = answer // max(_numel(tensor), 1)

            def formula(rule: Rule) -> int:
                lengths: list[int] = [part(rule) for part in whole]
                return per_element * math.prod(lengths)

            return self.length(answer, formula)

        return method

    def counted(self, original: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        """What answers with something that knows no size, as len() does."""

        def method(tensor: Tensor) -> Any:
            if self.hears_size(tensor):
                length = shape_of(tensor)[0] if tensor.ndim else 1
                self.asked.leave(length, self.along(0, length, tensor.ndim))
            return original(tensor)

        return method

    def laid_out(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What answers how a tensor lies in memory."""

        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.hears_layout(tensor)
            return original(tensor, *args, **kwargs)

        return method


@contextmanager
def sizes_heard(
    asked: Asked, is_known: Callable[[Tensor], bool], *, tell: bool, given: Sequence[int]
) -> Iterator[None]:
    """While this is open, it is noted which sizes the program asks for.

    Args:
        asked: Where it is noted.
        is_known: Whether a tensor depends on the input.
        tell: Whether the program gets numbers that note what becomes of them.
        given: The shape of the input.
    """
    listener = _Listener(asked, is_known, tell, given)
    numel = listener.measured(_numel)
    with (
        patched(
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
        ),
        patched({"numel": listener.measured(_numel)}, torch),
    ):
        asked.is_over = False
        try:
            yield
        finally:
            asked.is_over = True


@contextmanager
def patched(patches: dict[str, Any], owner: Any = torch.Tensor) -> Iterator[None]:
    """While this is open, tensors, or another owner, have these attributes."""
    own = {name: vars(owner).get(name) for name in patches}
    for name, patch in patches.items():
        setattr(owner, name, patch)
    try:
        yield
    finally:
        for name, original in own.items():
            if original is None:
                delattr(owner, name)
            else:
                setattr(owner, name, original)


_OWN = ("torch.", "bnfold.")
shape_of = torch._C.TensorBase.shape.__get__  # type: ignore[attr-defined]
"""A tensor's shape, as it is while somebody listens, in a tenth of the time."""
strides_of = torch._C.TensorBase.stride
"""The same of its strides."""
_size = torch._C.TensorBase.size
_numel = torch._C.TensorBase.numel
_nbytes = torch._C.TensorBase.nbytes.__get__  # type: ignore[attr-defined]
