"""The weights of a model, and what rounding does to them: which constants a fold may have rounded.

A verification moves them by what rounding does, to see how much that moves the model.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, GraphProto, NodeProto, TensorProto, numpy_helper

from bnfold.frontends.onnx.nodes import Network
from bnfold.frontends.onnx.read import inner_graphs
from bnfold.frontends.onnx.tensors import FLOATS, numpy_dtype, to_array
from bnfold.verify.verdict import least_normal, unit

_WEIGHTED = frozenset(
    (
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "PRelu"),
        *("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Clip"),
        *("Identity", "Transpose", "Unsqueeze", "DequantizeLinear", "InstanceNormalization"),
        *("GroupNormalization", "LayerNormalization", "RMSNormalization"),
        *("LSTM", "GRU", "RNN", "Concat", "Mean", "Gather", "Relu", "Sigmoid", "Tanh", "Softmax"),
        *("Reshape", "Flatten", "Squeeze", "Expand", "Tile", "LeakyRelu", "Einsum"),
    )
)
"""Operators whose constants are weights: those a fold may have rounded once more."""
_SHAPES = frozenset(("Shape", "Size"))


def weight_names(network: Network) -> set[str]:
    """Names of the constants that are weights, not numbers to compute a shape with."""
    constant = {n.outputs[0] for n in network.nodes if n.op == "Constant"}
    constant |= network.initializers.keys()
    calls = {f"{function.domain}::{function.name}" for function in network.proto.functions}
    nodes = [node.proto for node in network.nodes]
    return _weights_of(nodes, [node.op for node in network.nodes], constant, calls)


def _weights_of(
    nodes: Sequence[NodeProto],
    ops: Sequence[str],
    constant: AbstractSet[str],
    calls: AbstractSet[str],
) -> set[str]:
    """The same of some nodes, and of the bodies in them."""
    made_of_shapes: set[str] = set()
    weights: set[str] = set()
    for node, op in zip(nodes, ops, strict=True):
        read = [name for name in node.input if name and name not in constant]
        shapely = bool(read) and all(name in made_of_shapes for name in read)
        if op in _SHAPES or shapely:
            made_of_shapes.update(node.output)
        elif op in _WEIGHTED or op == "Cast" or op in calls:
            weights.update(name for name in node.input if name in constant)
        for attribute in node.attribute:
            for graph in inner_graphs(attribute):
                weights |= _weights_inside(graph, constant, calls)
    return weights


def _weights_inside(
    graph: GraphProto | FunctionProto, outer: AbstractSet[str], calls: AbstractSet[str]
) -> set[str]:
    """Of a body or a function: its own constants, and those around it that it reads."""
    own = {node.output[0] for node in graph.node if node.op_type == "Constant"}
    own |= {tensor.name for tensor in getattr(graph, "initializer", ())}
    ops = [
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        for node in graph.node
    ]
    return _weights_of(graph.node, ops, own | outer, calls)


def draw_inside(graph: GraphProto | FunctionProto, calls: AbstractSet[str], draw: int) -> None:
    """Round the weights that a body or a function holds itself once more, in place."""
    _draw_among(graph, _weights_inside(graph, set(), calls), draw)


def _draw_among(graph: GraphProto | FunctionProto, names: AbstractSet[str], draw: int) -> None:
    held = [tensor for tensor in getattr(graph, "initializer", ()) if tensor.name in names]
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and node.output[0] in names and attribute.name == "value":
                attribute.t.name = node.output[0]
                held.append(attribute.t)
            for inner in inner_graphs(attribute):
                _draw_among(inner, names, draw)
    for tensor in held:
        if tensor.data_type in FLOATS and tensor.data_location != TensorProto.EXTERNAL:
            array = rounded_again(tensor.name, to_array(tensor, None), tensor.data_type, draw)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def rounded_again(
    name: str,
    array: NDArray[Any],
    kind: int,
    draw: int,
    *,
    enlarged: float = 1.0,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """w * (1 + d), |d| <= u of its own dtype, in float64; or `enlarged` times that in `out`.

    What is below its normal numbers is moved as the smallest of these is.
    """
    if kind not in FLOATS:
        return array
    drawn = np.empty(array.shape) if out is None else out
    start = zlib.crc32(name.encode()) % _PERIOD
    dtype = numpy_dtype(kind).name
    most = enlarged * unit(dtype)
    factors = _factors(draw, most, drawn.dtype.name)[start : start + _PERIOD]
    flat = array.astype(np.float64) if array.dtype.kind != "f" else array
    flat, made = flat.reshape(-1), drawn.reshape(-1)
    whole = array.size // _PERIOD * _PERIOD
    rows = (whole // _PERIOD, _PERIOD)
    np.multiply(flat[:whole].reshape(rows), factors, out=made[:whole].reshape(rows))
    np.multiply(flat[whole:], factors[: array.size - whole], out=made[whole:])
    if least := least_normal(dtype):
        small = np.flatnonzero(np.abs(flat) < least)
        made[small] = flat[small] + (factors[small % _PERIOD] - 1.0) * least
    return drawn


_PERIOD = 65_521
"""A prime, so that no row or column of a weight meets the same numbers again and again."""


@lru_cache(maxsize=16)
def _factors(draw: int, most: float, dtype: str) -> NDArray[Any]:
    """1 + d, |d| <= most, twice over: to draw one for each weight of a model takes longer."""
    drawn = np.random.default_rng((draw, 2)).uniform(-most, most, _PERIOD)
    return np.tile(1.0 + drawn, 2).astype(dtype)


def moved(name: str, array: NDArray[Any], draw: int) -> NDArray[Any]:
    """Half of the numbers moved to a neighbour in their dtype; 0 stays, as rounding leaves it."""
    rng = np.random.default_rng((draw, zlib.crc32(name.encode()), 1))
    step = rng.integers(-1, 3, array.shape)  # down, stay, up, stay
    ends = np.where(step == 1, np.inf, -np.inf).astype(array.dtype)
    moves = (np.abs(step) == 1) & (array != 0)
    return np.asarray(np.where(moves, np.nextafter(array, ends), array), dtype=array.dtype)
