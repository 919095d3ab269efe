"""Lengths that hold for every size: a number times symbols, the open dimensions.

    6   N   4 H W        an unknown length is a symbol that nothing else has: ~7

Two lengths are the same for every size if they are the same product. Numbers that are tried cannot
show that: H / W is 1 for all squares, and max(H, 200) is H for all that are larger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

_numbers = count()


@dataclass(frozen=True, slots=True)
class Size:
    """A product of a number and symbols, each of which is 0 or more."""

    factor: int
    symbols: tuple[str, ...] = ()
    """Sorted; one that is squared is there twice."""

    @property
    def is_fixed(self) -> bool:
        """Whether it is the same number for every input."""
        return not self.symbols

    @property
    def is_length(self) -> bool:
        """Whether it is 0 or more for every input."""
        return self.factor > 0 and not any(symbol.startswith(_NUMBER) for symbol in self.symbols)

    @property
    def is_chosen(self) -> bool:
        """Whether it is 1 or more: nothing is in it but the lengths of inputs."""
        return self.is_length and not any(symbol.startswith(_UNKNOWN) for symbol in self.symbols)


_NUMBER, _UNKNOWN = "?", "~"


def unknown() -> Size:
    """A number of which nothing is known, not even that it is a length."""
    return Size(1, (f"{_NUMBER}{next(_numbers)}",))


def unknown_length() -> Size:
    """A length of which nothing is known: the same as no other."""
    return Size(1, (f"{_UNKNOWN}{next(_numbers)}",))


def product(sizes: Iterable[Size]) -> Size:
    """All of them, multiplied."""
    factor = 1
    symbols: list[str] = []
    for size in sizes:
        factor *= size.factor
        symbols += size.symbols
    return Size(factor, tuple(sorted(symbols)))


def quotient(whole: Size, part: Size) -> Size | None:
    """What is left, if the division goes out for every size."""
    rest = Counter(whole.symbols)
    rest.subtract(part.symbols)
    if part.factor == 0 or whole.factor % part.factor or min(rest.values(), default=0) < 0:
        return None
    return Size(whole.factor // part.factor, tuple(sorted(rest.elements())))
