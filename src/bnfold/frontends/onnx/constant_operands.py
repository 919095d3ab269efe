"""Operands of the operators that constants are computed with: see `constant_ops`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from bnfold.frontends.onnx.nodes import Node

Array = NDArray[Any]
Operands = Sequence[Array | None]
Operator = Callable[[Node, int, Operands], list[Array]]
"""(node, opset, operands) -> its outputs. Raises Unknown."""
LARGEST = 1 << 24
"""Elements of the largest array that is made from a shape."""


class Unknown(Exception):  # noqa: N818  # an answer, not an error
    """This form of the operator is not evaluated."""


def need(operand: Array | None) -> Array:
    """One that an operator must have. Raises Unknown."""
    if operand is None:
        raise Unknown
    return operand


def checked_shape(array: Array) -> tuple[int, ...]:
    """The shape that a constant spells. Raises Unknown if it is none, or too large."""
    shape = tuple(int(length) for length in array.reshape(-1))
    if any(length < 0 for length in shape) or math.prod(shape) > LARGEST:
        raise Unknown
    return shape


def listed_axes(node: Node, operands: Operands) -> tuple[int, ...] | None:
    """The axes of an attribute or, later, the second input; None where they are left out."""
    listed = node.attribute("axes")
    if listed is None and len(operands) > 1 and operands[1] is not None:
        listed = need(operands[1]).reshape(-1).tolist()
    return None if listed is None else tuple(int(axis) for axis in listed)
