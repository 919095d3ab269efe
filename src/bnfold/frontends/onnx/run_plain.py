"""Run a model by NumPy alone, in float64 or float32: the operators of usual convolutional networks.

PyTorch takes longer to import than such a network takes to run on a small image. What is not in the
table, or has an attribute that is not read here, is not run at all: whoever asked goes to
`run_exact`. Convolutions are matrix products of weights and windows, (out, in * kernel) by
(in * kernel, places), group by group.

Sources: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.frontends.onnx.nodes import Network, Node
from bnfold.frontends.onnx.read import OnnxModel
from bnfold.frontends.onnx.run_graph import Graph, not_exact_where_it_raises, show
from bnfold.frontends.onnx.run_values import to_outputs
from bnfold.verify.runner import Lane, NotExactError, Output

Array = NDArray[Any]
Operator = Callable[[Node, Sequence[Array]], Array]
"""(node, inputs) -> its only output."""
_OPSET = 13
"""Before that some of these operators meant something else."""


class PlainModel(Graph):
    """A model ready to run. Raises NotExactError where it is not for NumPy."""

    def __init__(self, model: OnnxModel) -> None:
        super().__init__(model)
        _check(self.network)

    def run(self, inputs: Sequence[Array], lanes: Sequence[Lane]) -> list[list[Output]]:
        """The outputs in each lane; every weight is read once for all. Raises NotExactError."""
        values: dict[str, list[Array]] = {}
        for name, array in zip(self.inputs, inputs, strict=True):
            values[name] = _in_lanes(array, lanes)
        for node in self.network.nodes:
            with np.errstate(all="ignore"), not_exact_where_it_raises(node):
                results = self._node(node, values, lanes)
            name = node.outputs[0]
            values[name] = results
            for lane, result in zip(lanes, results, strict=True):
                if lane.watch is not None and name in self.live:
                    show(lane.watch, name, node.op, result)
            for name in self.last.get(node.index, ()):
                values.pop(name, None)
        found = [
            (name, values.get(name) or self._weight(name, lanes)) for name in self.network.outputs
        ]
        return [
            [output for name, value in found for output in to_outputs(name, value[at])]
            for at in range(len(lanes))
        ]

    def _node(
        self, node: Node, values: Mapping[str, list[Array]], lanes: Sequence[Lane]
    ) -> list[Array]:
        if node.op == "Constant":
            return self._rounded(node.outputs[0], *self.constant_node(node), lanes)
        operands = [values.get(name) or self._weight(name, lanes) for name in node.inputs]
        operator = _TABLE[node.op][0]
        return [operator(node, [each[at] for each in operands]) for at in range(len(lanes))]

    def _weight(self, name: str, lanes: Sequence[Lane]) -> list[Array]:
        return self._rounded(name, *self.constant(name), lanes)

    def _rounded(self, name: str, array: Array, kind: int, lanes: Sequence[Lane]) -> list[Array]:
        found = _in_lanes(array, lanes)
        return [
            held if lane.draw is None else self.drawn(name, held, kind, lane.draw)
            for lane, held in zip(lanes, found, strict=True)
        ]


def _in_lanes(array: Array, lanes: Sequence[Lane]) -> list[Array]:
    """The array in the dtype of each lane, made once for each dtype."""
    if array.dtype.kind != "f":
        return [array] * len(lanes)
    made = {dtype: array.astype(dtype, copy=False) for dtype in {lane.dtype for lane in lanes}}
    return [made[lane.dtype] for lane in lanes]


def _check(network: Network) -> None:
    """Raise NotExactError unless all nodes are in the table, in a form that is."""
    if network.opset < _OPSET:
        raise NotExactError(f"opset {network.opset} is before {_OPSET}")
    for node in network.nodes:
        known = _TABLE.get(node.op)
        read = {attribute.name for attribute in node.proto.attribute}
        if node.op != "Constant" and (
            known is None
            or not read <= set(known[1])
            or "" in node.inputs
            or len(node.outputs) > 1
            or node.text("auto_pad", "NOTSET") != "NOTSET"
        ):
            raise NotExactError(f"{node.op} {node.name} is not run by NumPy")


# ------------------------------------------------------------------- windows


def _windows(
    node: Node, data: Array, kernel: Sequence[int], border: float
) -> tuple[Iterator[Array], tuple[int, ...]]:
    """Per place in the kernel, what all windows see there, (n, channels, *places); and places."""
    rank = len(kernel)
    strides = node.integers("strides") or (1,) * rank
    dilations = node.integers("dilations") or (1,) * rank
    pads = node.integers("pads") or (0,) * 2 * rank
    if data.ndim != rank + 2:
        raise NotExactError(f"{node.name} reads {data.ndim} axes")
    if any(pads):
        margins = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
        data = np.pad(data, margins, constant_values=border)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    places = tuple(
        (n - span) // s + 1 for n, span, s in zip(data.shape[2:], spans, strides, strict=True)
    )

    def seen() -> Iterator[Array]:
        for at in itertools.product(*map(range, kernel)):
            starts = [i * d for i, d in zip(at, dilations, strict=True)]
            cut = [
                slice(start, start + (n - 1) * s + 1, s)
                for start, n, s in zip(starts, places, strides, strict=True)
            ]
            yield data[:, :, *cut]

    return seen(), places


def _conv(node: Node, x: Sequence[Array]) -> Array:
    """Weight (out, in/groups, *kernel)."""
    data, weight = x[0], x[1]
    n, groups, (out, depth, *kernel) = len(data), node.integer("group", 1), weight.shape
    if data.shape[1] != groups * depth:
        raise NotExactError(f"{node.name} reads {data.shape[1]} channels")
    windows, places = _windows(node, data, kernel, 0.0)
    count = math.prod(kernel)
    # (n, in, kernel, places), so that a group's rows are in the order of the weight's
    seen = np.empty((n, groups * depth, count, *places), data.dtype)
    for at, window in enumerate(windows):
        seen[:, :, at] = window
    rows = weight.reshape(groups, out // groups, depth * count)
    y: Array = np.matmul(rows, seen.reshape(n, groups, depth * count, math.prod(places)))
    y = y.reshape(n, out, *places)
    if len(x) > 2:
        y += x[2].reshape(-1, *(1,) * len(kernel))
    return y


def _max_pool(node: Node, x: Sequence[Array]) -> Array:
    """The border is minus infinity."""
    windows, _ = _windows(node, x[0], node.integers("kernel_shape"), -math.inf)
    best = np.array(next(windows))
    for window in windows:
        np.maximum(best, window, out=best)
    if node.integer("ceil_mode") or node.integer("storage_order"):
        raise NotExactError(f"{node.name} rounds up")
    return best


def _average_pool(node: Node, x: Sequence[Array]) -> Array:
    """Sums over counts: padded places count if `count_include_pad` says so."""
    kernel = node.integers("kernel_shape")
    if node.integer("ceil_mode"):
        raise NotExactError(f"{node.name} rounds up")
    total = sum(_windows(node, x[0], kernel, 0.0)[0])
    if node.integer("count_include_pad"):
        return np.asarray(total / math.prod(kernel))
    ones = np.ones((1, 1, *x[0].shape[2:]), x[0].dtype)
    return np.asarray(total / sum(_windows(node, ones, kernel, 0.0)[0]))


def _global_average(node: Node, x: Sequence[Array]) -> Array:
    return np.asarray(x[0].mean(tuple(range(2, x[0].ndim)), keepdims=True))


# ------------------------------------------------------------------- products, norms


def _gemm(node: Node, x: Sequence[Array]) -> Array:
    """alpha * A @ B + beta * C."""
    a = x[0].T if node.integer("transA") else x[0]
    b = x[1].T if node.integer("transB") else x[1]
    y: Array = a @ b * x[0].dtype.type(node.number("alpha", 1.0))
    return y if len(x) < 3 else y + x[0].dtype.type(node.number("beta", 1.0)) * x[2]


def _batch_norm(node: Node, x: Sequence[Array]) -> Array:
    """At inference."""
    if node.integer("training_mode"):
        raise NotExactError(f"{node.name} is in training mode")
    data, *statistics = x
    gamma, beta, mean, var = (s.reshape(-1, *(1,) * (data.ndim - 2)) for s in statistics)
    epsilon = var.dtype.type(node.number("epsilon", 1e-5))
    y = data - mean
    y *= gamma / np.sqrt(var + epsilon)
    y += beta
    return y


# ------------------------------------------------------------------- elementwise, shapes


def _two(function: Callable[[Array, Array], Array]) -> Operator:
    def apply(node: Node, x: Sequence[Array]) -> Array:
        if {operand.dtype.kind for operand in x} != {"f"}:
            raise NotExactError(f"{node.name} works with integers")
        total = x[0]
        for other in x[1:]:
            total = function(total, other)
        return total

    return apply


def _clip(node: Node, x: Sequence[Array]) -> Array:
    data = x[0] if len(x) < 2 else np.maximum(x[0], x[1])
    return data if len(x) < 3 else np.minimum(data, x[2])


def _leaky_relu(node: Node, x: Sequence[Array]) -> Array:
    slope = x[0].dtype.type(node.number("alpha", 0.01))
    return np.where(x[0] < 0, slope * x[0], x[0])


def _prelu(node: Node, x: Sequence[Array]) -> Array:
    return np.where(x[0] < 0, x[1] * x[0], x[0])


def _sigmoid(node: Node, x: Sequence[Array]) -> Array:
    return np.asarray(1 / (1 + np.exp(-x[0])))


def _hard_sigmoid(node: Node, x: Sequence[Array]) -> Array:
    kind = x[0].dtype.type
    line = kind(node.number("alpha", 0.2)) * x[0] + kind(node.number("beta", 0.5))
    return np.asarray(line.clip(0, 1))


def _hard_swish(node: Node, x: Sequence[Array]) -> Array:
    return np.asarray(x[0] * (x[0] / 6 + x[0].dtype.type(0.5)).clip(0, 1))


def _flatten(node: Node, x: Sequence[Array]) -> Array:
    axis = node.integer("axis", 1)
    return x[0].reshape(math.prod(x[0].shape[: axis if axis >= 0 else axis + x[0].ndim]), -1)


def _transpose(node: Node, x: Sequence[Array]) -> Array:
    return np.ascontiguousarray(x[0].transpose(node.integers("perm") or None))


_WINDOW = ("kernel_shape", "strides", "dilations", "pads", "auto_pad")
_TABLE: dict[str, tuple[Operator, tuple[str, ...]]] = {
    "Conv": (_conv, (*_WINDOW, "group")),
    "MaxPool": (_max_pool, (*_WINDOW, "ceil_mode", "storage_order")),
    "AveragePool": (_average_pool, (*_WINDOW, "ceil_mode", "count_include_pad")),
    "GlobalAveragePool": (_global_average, ()),
    "Gemm": (_gemm, ("alpha", "beta", "transA", "transB")),
    "MatMul": (lambda node, x: np.matmul(x[0], x[1]), ()),
    "BatchNormalization": (_batch_norm, ("epsilon", "momentum", "training_mode")),
    "Add": (_two(np.add), ()),
    "Sub": (_two(np.subtract), ()),
    "Mul": (_two(np.multiply), ()),
    "Div": (_two(np.divide), ()),
    "Sum": (_two(np.add), ()),
    "Max": (_two(np.maximum), ()),
    "Min": (_two(np.minimum), ()),
    "Clip": (_clip, ()),
    "Relu": (lambda node, x: np.maximum(x[0], x[0].dtype.type(0)), ()),
    "LeakyRelu": (_leaky_relu, ("alpha",)),
    "PRelu": (_prelu, ()),
    "Sigmoid": (_sigmoid, ()),
    "HardSigmoid": (_hard_sigmoid, ("alpha", "beta")),
    "HardSwish": (_hard_swish, ()),
    "Tanh": (lambda node, x: np.tanh(x[0]), ()),
    "Identity": (lambda node, x: x[0], ()),
    "Concat": (lambda node, x: np.concatenate(x, node.integer("axis")), ("axis",)),
    "Flatten": (_flatten, ("axis",)),
    "Transpose": (_transpose, ("perm",)),
}
"""Per operator, the attributes that it reads; with any other it is not run."""
