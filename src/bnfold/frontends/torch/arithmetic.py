"""Arithmetic of one activation with constants, read as an affine map: x * c, x + c, c - x, ..."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.core.affine import Affine
from bnfold.frontends.torch.lift import is_floating, is_readable, to_numpy
from bnfold.frontends.torch.recording import Const, Event, Value


def arithmetic(event: Event) -> tuple[Value, Affine] | None:
    """x * c, x + c, c - x, x / c, -x, c + d * x * e as (x, affine)."""
    reader = _ARITHMETIC.get(getattr(event.target, "_opname", "").removesuffix("_"))
    if reader is None:
        return None
    found: tuple[Value, Affine] | None = reader(event)
    if found is None or not is_floating(found[0]):
        return None
    if event.outputs and event.outputs[0] is not None and event.outputs[0].dtype != found[0].dtype:
        return None
    return found


def only_adds(event: Event) -> bool:
    """Whether the factor is 1 or -1 whatever the constants are."""
    name = str(getattr(event.target, "_opname", "")).removesuffix("_")
    return name == "neg" or (name in _SUMS and abs(_alpha(event)) == 1.0)


_SUMS = {"add", "sub", "subtract", "rsub"}


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


def _alpha(event: Event) -> float:
    return float(event.kwargs.get("alpha", event.args[2] if len(event.args) > 2 else 1))


def _sum(event: Event, sign: float) -> tuple[Value, Affine] | None:
    x, y = event.args[:2]
    alpha = sign * _alpha(event)
    if isinstance(x, Value) and (constant := _number(y)) is not None:
        return x, _affine(1.0, alpha * constant)
    if isinstance(y, Value) and (constant := _number(x)) is not None:
        return y, _affine(alpha, constant)
    return None


def _add(event: Event) -> tuple[Value, Affine] | None:
    return _sum(event, 1.0)


def _sub(event: Event) -> tuple[Value, Affine] | None:
    return _sum(event, -1.0)


def _rsub(event: Event) -> tuple[Value, Affine] | None:
    x, y = event.args[:2]
    constant = _number(y)
    if not isinstance(x, Value) or constant is None:
        return None
    return x, _affine(-_alpha(event), constant)


def _mul(event: Event) -> tuple[Value, Affine] | None:
    for x, y in (event.args[:2], event.args[1::-1]):
        if isinstance(x, Value) and (constant := _number(y)) is not None:
            return x, _affine(constant, 0.0)
    return None


def _div(event: Event) -> tuple[Value, Affine] | None:
    x, y = event.args[:2]
    constant = _number(y)
    if not isinstance(x, Value) or constant is None or event.kwargs.get("rounding_mode"):
        return None
    with np.errstate(divide="ignore"):
        return x, _affine(1.0 / constant, 0.0)


def _neg(event: Event) -> tuple[Value, Affine] | None:
    return event.args[0], _affine(-1.0, 0.0)


def _addcmul(event: Event) -> tuple[Value, Affine] | None:
    base, left, right = event.args[:3]
    value = float(event.kwargs.get("value", 1))
    shift = _number(base)
    for x, y in ((left, right), (right, left)):
        factor = _number(y)
        if isinstance(x, Value) and factor is not None and shift is not None:
            return x, _affine(value * factor, shift)
    return None


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
}
