"""Numbers that came out of sizes, and what a program's Python does with them.

A module's code gets the length of an axis as a number. What it decides by that is decided for the
example alone: `if h % 2: pad`, `for row in range(h)`, a pad or a window computed from the width.
So the lengths that the code is told are numbers that know where they came from (`Length`), and so
is what is computed from them (`Ratio`, if it is no whole number). They note when one is compared,
or becomes a number that knows nothing: then other sizes may take another path, and where the
formula is known, also which sizes (see `resizing.turning`).
"""

from __future__ import annotations

import math
import operator
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import numpy as np

from bnfold.frontends.torch.known_numbers import Known, known_to


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
    known: dict[Any, Known] = field(default_factory=dict)
    """What the code knows that asked, by where it stands and by its module."""
    names: list[Turn] = field(default_factory=list)
    """What it may have looked for by a number that left sizes as a name."""
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    """The last axes of inputs on which it may do something else."""
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
    ) -> Any:
        """Note what the caller's caller is told, and what it hangs on.

        `asked`: by which operator; tuples compare their parts by two in one place.
        """
        if self.is_over:
            return given
        self.decided = True
        frame = sys._getframe(2)
        self._note(frame.f_code, (frame.f_lasti, asked), given, formula, hint)
        return self.answer(given)

    def know(self, frame: FrameType) -> Known:
        """What the code knows that asks."""
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        place = code, id(owner)
        if place not in self.known:
            self.known[place] = known_to(frame)
            if not _LOGARITHMS.isdisjoint(code.co_names):
                self.shapes.update((power, power) for power in _POWERS)
        return self.known[place]

    def name(self, number: float, formula: Formula) -> None:
        """Note that the caller's caller makes a text or a hash: a name for something, mostly."""
        if self.is_over:
            return
        self.decided = True
        frame = sys._getframe(2)
        known = self.know(frame)
        self.shapes |= known.shapes
        for key in sorted(known.keys or known.numbers):
            if key != number:

                def is_it(rule: Rule, key: int = key) -> bool:
                    return bool(formula(rule) == key)

                place = (frame.f_code, (frame.f_lasti, key), 1)
                self.names.append(Turn(place, False, is_it, key / max(number, 1), True))

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
        numbers = self.know(frame).numbers
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
_NUMBERS = 8
"""So many numbers of the code around are tried."""
_LOGARITHMS = frozenset(("log2", "log", "frexp"))
_POWERS = [1 << power for power in range(2, 11)]
"""Of what C computes of a length, which ends what is known of it, sizes that make it whole."""


class EndlessError(RuntimeError):
    """On these sizes the program may never end."""


Rule = Callable[[int, int], int]
"""Another length for an axis, given its number and its length."""
OF_INPUT = 64
"""From here on the axes of the first of several inputs are numbered, from twice that the next's."""
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


def told(answer: Any, asked: Asked, formula: Formula, cost: int = 1) -> Any:
    """The answer, as a number that knows where it came from."""
    if type(answer) is tuple:  # divmod
        parts = (lambda rule, at=at: formula(rule)[at] for at in range(len(answer)))
        return tuple(told(part, asked, of, cost) for part, of in zip(answer, parts, strict=True))
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
        return told(made, self.asked, formula, cost)

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

        def formula(rule: Rule) -> Any:
            return function(self.formula(rule), *operands)

        if function not in (int, float):
            self.asked.name(_plain_number(self), self.formula)
            return made
        self.asked.leave(made, formula, is_guess=True)
        return self.asked.decide(made, formula)

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
