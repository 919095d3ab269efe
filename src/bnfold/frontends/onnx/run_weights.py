"""The weights of a model, and what rounding does to them: which constants a fold may have rounded.

A verification moves them by what rounding does, to see how much that moves the model.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
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
    drawn = np.empty(array.size)
    start = zlib.crc32(name.encode()) % _PERIOD
    factors = _factors(draw, unit(numpy_dtype(kind).name))[start : start + _PERIOD]
    flat = array.astype(np.float64) if array.dtype.kind != "f" else array
    flat, whole = flat.reshape(-1), array.size // _PERIOD * _PERIOD
    rows = (whole // _PERIOD, _PERIOD)
    np.multiply(flat[:whole].reshape(rows), factors, out=drawn[:whole].reshape(rows))
    np.multiply(flat[whole:], factors[: array.size - whole], out=drawn[whole:])
    return drawn.reshape(array.shape)


_PERIOD = 65_521
"""A prime, so that no row or column of a weight meets the same numbers again and again."""


@lru_cache(maxsize=16)
def _factors(draw: int, most: float) -> NDArray[np.float64]:
    """1 + d, |d| <= most, twice over: to draw one for each weight of a model takes longer."""
    drawn = np.random.default_rng((draw, 2)).uniform(-most, most, _PERIOD)
    return np.tile(1.0 + drawn, 2)


def moved(name: str, array: NDArray[Any], draw: int) -> NDArray[Any]:
    """Half of the numbers moved to a neighbour in their dtype; 0 stays, as rounding leaves it."""
    rng = np.random.default_rng((draw, zlib.crc32(name.encode()), 1))
    step = rng.integers(-1, 3, array.shape)  # down, stay, up, stay
    ends = np.where(step == 1, np.inf, -np.inf).astype(array.dtype)
    moves = (np.abs(step) == 1) & (array != 0)
    return np.asarray(np.where(moves, np.nextafter(array, ends), array), dtype=array.dtype)
