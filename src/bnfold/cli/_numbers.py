"""Options that are numbers: what is taken, and what is said of anything else.

What a call of the library refuses as well, such as too many threads, is refused there; here is what
is no such number at all. argparse puts the option's name in front.
"""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable

from bnfold._text import shortened

_WIDTH = 40


def count(what: str) -> Callable[[str], int]:
    """A reader of whole numbers from 1 on; `what` says of what they are the number."""

    def read(text: str) -> int:
        number = _whole(text)
        if number is None or number < 1:
            raise ArgumentTypeError(f"{_said(text)} is no number of {what}, from 1 on")
        return number

    return read


def counts(what: str) -> Callable[[str], tuple[int, ...]]:
    """A reader of several of these, like 1,8."""

    def read(text: str) -> tuple[int, ...]:
        found = [_whole(part) for part in text.split(",")]
        numbers = tuple(number for number in found if number is not None and number > 0)
        if len(numbers) < len(found):
            raise ArgumentTypeError(
                f"{_said(text)} is no list of numbers of {what}, from 1 on, like 1,8"
            )
        return numbers

    return read


def whole(text: str) -> int:
    """A whole number."""
    number = _whole(text)
    if number is None:
        raise ArgumentTypeError(f"{_said(text)} is no whole number")
    return number


def finite(text: str) -> float:
    """A finite number."""
    found = _finite(text)
    if found is None:
        raise ArgumentTypeError(f"{_said(text)} is no number")
    return found


def numbers(text: str) -> list[float]:
    """Several finite numbers, like 0.485,0.456,0.406."""
    parts = [_finite(part) for part in text.split(",")]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        raise ArgumentTypeError(f"{_said(text)} is no list of numbers like 0.5,0.5,0.5")
    return found


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:  # also for what has thousands of digits
        return None


def _finite(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _said(text: str) -> str:
    return repr(shortened(text, _WIDTH))
