"""Weights that are stored in 16 bits and computed with in more.

    a constant, Cast                a constant like others, of the wider dtype: where a fold changes
                                    it, the new one is in that dtype, and the Cast goes
    BatchNormalization              scale and B, mean and var may be narrower than X (opset 14, 15)
    DequantizeLinear                output_dtype may be wider than the scale (opset 23)
    Gather, Cast                    rows of a table that are cast as soon as they are picked

Everything else that reads 16 bits computes in them: Conv, Gemm and MatMul take one dtype for all.
https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import TensorProto

from bnfold.frontends.onnx.nodes import Network, Node

HALF = frozenset((TensorProto.FLOAT16, TensorProto.BFLOAT16))
_WIDE = frozenset((TensorProto.FLOAT, TensorProto.DOUBLE))

Dtypes = Mapping[str, int]
"""The element type of each value."""


def is_narrow(network: Network, dtypes: Dtypes, node: Node, position: int) -> bool:
    """Whether a node reads a weight in 16 bits for which its own arithmetic has more."""
    if dtypes.get(node.input(position)) not in HALF:
        return False
    if node.op == "BatchNormalization" and position > 0:
        return dtypes.get(node.inputs[0]) in _WIDE
    if node.op == "DequantizeLinear" and position == 1:
        return dtypes.get(node.outputs[0]) in _WIDE
    return node.op == "Gather" and position == 0 and bool(casts_behind(network, dtypes, node))


def casts_behind(network: Network, dtypes: Dtypes, gather: Node) -> list[Node]:
    """The Casts to float32 that read what a node picks; none if anybody reads it as it is."""
    (picked,) = gather.outputs
    readers = [node for node, _ in network.readers.get(picked, ())]
    is_cast = all(
        node.op == "Cast" and dtypes.get(node.outputs[0]) == TensorProto.FLOAT for node in readers
    )
    return readers if is_cast and not network.is_pinned(picked) else []


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
