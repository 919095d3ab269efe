"""The weights of a model, and what rounding does to them: which constants a fold may have rounded.

A verification moves them by what rounding does, to see how much that moves the model.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.frontends.onnx.nodes import Network
from bnfold.frontends.onnx.tensors import FLOATS, numpy_dtype
from bnfold.verify.verdict import unit

_WEIGHTED = frozenset(
    (
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "PRelu"),
        *("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Clip"),
        *("Identity", "Transpose", "Unsqueeze", "DequantizeLinear", "InstanceNormalization"),
        *("LSTM", "GRU", "RNN", "Concat", "Mean", "Gather", "Relu", "Sigmoid", "Tanh", "Softmax"),
        *("Reshape", "Flatten", "Squeeze", "Expand", "Tile", "LeakyRelu", "Einsum"),
    )
)
"""Operators whose constants are weights: those a fold may have rounded once more."""
_SHAPES = frozenset(("Shape", "Size"))


def weight_names(network: Network) -> set[str]:
    """Names of the constants that are weights, not numbers to compute a shape with."""
    made_of_shapes: set[str] = set()
    constant = {n.outputs[0] for n in network.nodes if n.op == "Constant"}
    constant |= network.initializers.keys()
    weights: set[str] = set()
    for node in network.nodes:
        read = [name for name in node.inputs if name and name not in constant]
        shapely = bool(read) and all(name in made_of_shapes for name in read)
        if node.op in _SHAPES or shapely:
            made_of_shapes.update(node.outputs)
        elif node.op in _WEIGHTED or node.op == "Cast":
            weights.update(name for name in node.inputs if name in constant)
    return weights


def rounded_again(name: str, array: NDArray[Any], kind: int, draw: int) -> NDArray[Any]:
    """w * (1 + d), |d| <= u of its own dtype, in float64."""
    if kind not in FLOATS:
        return array
    rng = np.random.default_rng((draw, zlib.crc32(name.encode())))
    changes = np.asarray(rng.random(array.shape, dtype=np.float32))
    changes -= np.float32(0.5)
    changes *= np.float32(2.0 * unit(numpy_dtype(kind).name))
    drawn = np.asarray(np.add(changes, 1.0, dtype=np.float64))
    drawn *= array.astype(np.float64) if array.dtype.kind != "f" else array
    return drawn


def moved(name: str, array: NDArray[Any], draw: int) -> NDArray[Any]:
    """Half of the numbers moved to a neighbour in their dtype; 0 stays, as rounding leaves it."""
    rng = np.random.default_rng((draw, zlib.crc32(name.encode()), 1))
    step = rng.integers(-1, 3, array.shape)  # down, stay, up, stay
    ends = np.where(step == 1, np.inf, -np.inf).astype(array.dtype)
    moves = (np.abs(step) == 1) & (array != 0)
    return np.asarray(np.where(moves, np.nextafter(array, ends), array), dtype=array.dtype)
