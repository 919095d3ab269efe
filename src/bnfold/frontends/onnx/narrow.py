"""Weights that are stored in 16 bits and computed with in more.

    a constant, Cast                a constant like others, of the wider dtype: where a fold changes
                                    it, the new one is in that dtype, and the Cast goes
    BatchNormalization              scale and B, mean and var may be narrower than X (opset 14, 15)
    DequantizeLinear                output_dtype may be wider than the scale (opset 23)
    Gather, views, Cast             rows of a table that nobody looks at before they are cast

Everything else that reads 16 bits computes in them: Conv, Gemm and MatMul take one dtype for all.
https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from onnx import TensorProto

from bnfold.frontends.onnx.nodes import Network, Node

HALF = frozenset((TensorProto.FLOAT16, TensorProto.BFLOAT16))
_WIDE = frozenset((TensorProto.FLOAT, TensorProto.DOUBLE))

_VIEWS = frozenset(
    (
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity"),
        *("Slice", "Split", "Expand", "Tile"),
    )
)
"""Operators whose first input may have any dtype, which their outputs have, too."""

Dtypes = Mapping[str, int]
"""The element type of each value."""


def is_narrow(
    network: Network, dtypes: Dtypes, node: Node, position: int, gone: Container[int] = ()
) -> bool:
    """Whether a node reads a weight in 16 bits for which its own arithmetic has more.

    `gone` are the indices of nodes that a plan removes.
    """
    if dtypes.get(node.input(position)) not in HALF:
        return False
    if node.op == "BatchNormalization" and position > 0:
        return dtypes.get(node.inputs[0]) in _WIDE
    if node.op == "DequantizeLinear" and position == 1:
        return dtypes.get(node.outputs[0]) in _WIDE
    if node.op != "Gather" or position != 0:
        return False
    return cast_later(network, dtypes, node, gone) is not None


@dataclass(frozen=True, slots=True)
class CastLater:
    """Values that are in 16 bits until they are cast to float32."""

    values: tuple[str, ...]
    """What is picked, and what views make of it."""
    casts: tuple[Node, ...]
    """What reads them."""


def cast_later(
    network: Network, dtypes: Dtypes, gather: Node, gone: Container[int]
) -> CastLater | None:
    """What becomes of the rows that a node picks, if nobody computes with them in 16 bits."""
    values, casts = [*gather.outputs], []
    for value in values:  # which grows
        if network.is_pinned(value):
            return None
        for node, position in network.readers.get(value, ()):
            if node.op == "Cast" and dtypes.get(node.outputs[0]) == TensorProto.FLOAT:
                casts.append(node)
            elif node.index in gone or (node.op in _VIEWS and position == 0):
                values += node.outputs
            elif node.op not in ("Shape", "Size"):
                return None
    return CastLater(tuple(values), tuple(casts)) if casts else None


def narrow_names(network: Network, dtypes: Dtypes) -> Iterator[str]:
    """Initializers that are read in 16 bits and computed with in more."""
    for node in network.nodes:
        for position, name in enumerate(node.inputs):
            tensor = network.initializers.get(name)
            if tensor is None or tensor.data_type not in HALF:
                continue
            is_cast = node.op == "Cast" and dtypes.get(node.outputs[0]) in _WIDE
            if is_cast or is_narrow(network, dtypes, node, position):
                yield name
