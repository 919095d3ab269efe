"""The lengths of the axes of what a node makes, as `Size`s.

Inference has found numbers under two choices of the open dimensions. Where they differ the axis is
open. Where they agree it may still be: x[:, :, :min(H, 20)] has 20 rows under both. An axis is
taken as fixed if the operator's own rule says so, or, for operators without a rule here, if they
agree, no operand depends on open dimensions, and no axis of an input only seems to be fixed.
"""

from __future__ import annotations

import contextlib

from bnfold.frontends.onnx import size_rules, size_view_rules
from bnfold.frontends.onnx.size_known import Known, Sizes
from bnfold.frontends.onnx.sizes import Size, unknown_length

_UNFIT = (ValueError, LookupError, TypeError, ArithmeticError)
"""What a rule raises for a node that is not of the form of its operator."""
_RULES = size_rules.RULES | size_view_rules.RULES


def lengths(known: Known) -> Sizes:
    """One length per axis of the output."""
    first = known.output[0]
    rule = _RULES.get(known.node.op, size_rules.other)
    made: Sizes = ()
    with contextlib.suppress(*_UNFIT):
        made = rule(known)
    if len(made) != len(first):
        return tuple(unknown_length() for _ in first)
    return tuple(
        size if _agrees(known, axis, size) else unknown_length() for axis, size in enumerate(made)
    )


def _agrees(known: Known, axis: int, size: Size) -> bool:
    """Whether a rule says what inference says: a guard against a rule that errs."""
    numbers = {shape[axis] for shape in known.output}
    return size.is_length and (numbers == {size.factor} or not size.is_fixed)
