"""Arithmetic of one activation with constants, read as an affine map: x * c, x + c, c - x, ..."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.core.affine import Affine
from bnfold.frontends.torch.lifter import is_floating, is_readable, to_numpy
from bnfold.frontends.torch.ops import Arguments, UnfitError, functional, op_name
from bnfold.frontends.torch.recording import Const, Event, Value


def arithmetic(event: Event) -> tuple[Value, Affine] | None:
    """x * c, x + c, c - x, x / c, -x, c + d * x * e, lerp(x, c, d) as (x, affine)."""
    reader = _ARITHMETIC.get(functional(op_name(event.target)))
    if reader is None:
        return None
    try:
        step: tuple[Value, Affine] | None = reader(Arguments(event))
    except UnfitError:
        return None
    if step is None or not is_floating(step[0]):
        return None
    if event.outputs and event.outputs[0] is not None and event.outputs[0].dtype != step[0].dtype:
        return None
    return step


def only_adds(event: Event) -> bool:
    """Whether the factor is 1 or -1 whatever the constants are."""
    name = functional(op_name(event.target))
    return name == "neg" or (name in _SUMS and abs(Arguments(event).number("alpha")) == 1.0)


def weighs(event: Event) -> bool:
    """Whether a number among its arguments is part of the summand."""
    return functional(op_name(event.target)) in _WEIGHED


_SUMS = {"add", "sub", "subtract", "rsub"}
_WEIGHED = {"addcmul", "addcdiv", "lerp"}


def _number(argument: Any) -> Any:
    """A constant operand as float64, or None."""
    if isinstance(argument, bool | complex):
        return None
    if isinstance(argument, int | float):
        return np.asarray(float(argument))
    if isinstance(argument, Const) and is_readable(argument.tensor):
        return to_numpy(argument.tensor)
    return None


def _affine(scale: Any, shift: Any) -> Affine:
    scale, shift = np.broadcast_arrays(np.asarray(scale, np.float64), np.asarray(shift, np.float64))
    return Affine(scale.copy(), shift.copy())


def _sum(a: Arguments, sign: float) -> tuple[Value, Affine] | None:
    x, y = a["self"], a["other"]
    alpha = sign * a.number("alpha")
    if isinstance(x, Value) and (constant := _number(y)) is not None:
        return x, _affine(1.0, alpha * constant)
    if isinstance(y, Value) and (constant := _number(x)) is not None:
        return y, _affine(alpha, constant)
    return None


def _add(a: Arguments) -> tuple[Value, Affine] | None:
    return _sum(a, 1.0)


def _sub(a: Arguments) -> tuple[Value, Affine] | None:
    return _sum(a, -1.0)


def _rsub(a: Arguments) -> tuple[Value, Affine] | None:
    x, constant = a["self"], _number(a["other"])
    if not isinstance(x, Value) or constant is None:
        return None
    return x, _affine(-a.number("alpha"), constant)


def _mul(a: Arguments) -> tuple[Value, Affine] | None:
    for x, y in ((a["self"], a["other"]), (a["other"], a["self"])):
        if isinstance(x, Value) and (constant := _number(y)) is not None:
            return x, _affine(constant, 0.0)
    return None


def _div(a: Arguments) -> tuple[Value, Affine] | None:
    x, constant = a["self"], _number(a["other"])
    if not isinstance(x, Value) or constant is None or a.get("rounding_mode"):
        return None
    with np.errstate(divide="ignore"):
        return x, _affine(1.0 / constant, 0.0)


def _neg(a: Arguments) -> tuple[Value, Affine] | None:
    return (a.first, _affine(-1.0, 0.0)) if isinstance(a.first, Value) else None


def _addcmul(a: Arguments) -> tuple[Value, Affine] | None:
    """c + d * x * e, x + d * c * e."""
    value, first, second = a.number("value"), a["tensor1"], a["tensor2"]
    x, one, other = a["self"], _number(first), _number(second)
    if isinstance(x, Value):
        return None if one is None or other is None else (x, _affine(1.0, value * one * other))
    shift, factor = _number(x), other if isinstance(first, Value) else one
    x = first if isinstance(first, Value) else second
    if not isinstance(x, Value) or factor is None or shift is None:
        return None
    return x, _affine(value * factor, shift)


def _addcdiv(a: Arguments) -> tuple[Value, Affine] | None:
    """c + d * x / e, x + d * c / e."""
    value, x, above, below = a.number("value"), a["self"], a["tensor1"], _number(a["tensor2"])
    if below is None:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        if isinstance(x, Value):
            numerator = _number(above)
            shift = None if numerator is None else value * numerator / below
            return None if shift is None else (x, _affine(1.0, shift))
        shift = _number(x)
        if not isinstance(above, Value) or shift is None:
            return None
        return above, _affine(value / below, shift)


def _lerp(a: Arguments) -> tuple[Value, Affine] | None:
    """start + weight * (end - start), with one of start and end, and the weight, constant."""
    start, end, weight = a["self"], a["end"], _number(a["weight"])
    if weight is None:
        return None
    if isinstance(start, Value):
        goal = _number(end)
        return None if goal is None else (start, _affine(1.0 - weight, weight * goal))
    origin = _number(start)
    if not isinstance(end, Value) or origin is None:
        return None
    return end, _affine(weight, (1.0 - weight) * origin)


_ARITHMETIC = {
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "multiply": _mul,
    "div": _div,
    "divide": _div,
    "true_divide": _div,
    "neg": _neg,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "lerp": _lerp,
}
