"""Nodes that a fold writes, in the form that their operators have at an opset.

Gemm   C may be left out from opset 11 on; before opset 7 it is broadcast only on request
Add    broadcasts from opset 7 on; before, on request, a constant whose axes are some of the
       other's, in a row: per channel (C,), with the axis that it lies along

Conv, ConvTranspose, MatMul and Identity look alike at every opset, for what is written of them.
Max and Min have room for a bound per channel from opset 8 on: see `lift_ops`.
https://onnx.ai/onnx/operators
"""

from __future__ import annotations

from typing import Any

from onnx import NodeProto, helper

from bnfold.frontends.onnx.shapes import Shape

BROADCASTS = 7
"""The opset since which operators of two tensors broadcast as NumPy does."""
_OPTIONAL_BIAS = 11
"""The opset since which a Gemm may do without C."""


def gemm_needs_bias(opset: int) -> bool:
    """Whether a Gemm has to have its third input."""
    return opset < _OPTIONAL_BIAS


def gemm(inputs: list[str], output: str, *, name: str, opset: int, **attributes: Any) -> NodeProto:
    """A Gemm whose C is a number per column."""
    if opset < BROADCASTS:
        attributes["broadcast"] = 1
    return helper.make_node("Gemm", inputs, [output], name=name, **attributes)


def shape_of_summand(channels: int, axis: int, rank: int, opset: int) -> Shape:
    """How a constant per channel is stored that `add` adds along an axis."""
    return (channels,) if opset < BROADCASTS else (channels, *(1,) * (rank - 1 - axis))


def add(
    source: str, constant: str, output: str, *, name: str, opset: int, axis: int, rank: int
) -> NodeProto:
    """An Add of a constant per channel."""
    attributes: dict[str, Any] = {}
    if opset < BROADCASTS:
        attributes["broadcast"] = 1
        if axis != rank - 1:
            attributes["axis"] = axis
    return helper.make_node("Add", [source, constant], [output], name=name, **attributes)
