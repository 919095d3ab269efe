"""Operands of the ONNX operators that PyTorch computes: see `run_ops`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from bnfold.frontends.onnx.nodes import Node


class NotHereError(Exception):
    """This form of the operator is not in the table."""


Operand = Tensor | None
Operator = Callable[[Node, Sequence[Operand], int], Tensor]
"""(node, inputs, opset) -> its only output."""


def given(operand: Operand) -> Tensor:
    """One that an operator must have."""
    assert operand is not None
    return operand


def optional(x: Sequence[Operand], position: int) -> Operand:
    """One that may be left out."""
    return x[position] if position < len(x) else None


def numbers(operand: Operand) -> list[int]:
    """The integers of a small one; none where it is left out."""
    return [] if operand is None else [int(n) for n in operand.reshape(-1).tolist()]
