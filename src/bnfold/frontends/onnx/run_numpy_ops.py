"""The operators of usual convolutional networks, by NumPy: what `run_numpy` runs.

Convolutions are matrix products of weights and windows, (out, in * kernel) by
(in * kernel, places), group by group.

Sources: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.frontends.onnx.nodes import Node
from bnfold.verify.runner import NotExactError

Array = NDArray[Any]
Operator = Callable[[Node, Sequence[Array]], Array]
"""(node, inputs) -> its only output."""

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
        if min(pads) < 0:
            raise NotExactError(f"{node.name} cuts the image")
        data = _padded(data, pads[:rank], pads[rank:], border)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    places = tuple(
        (n - span) // s + 1 for n, span, s in zip(data.shape[2:], spans, strides, strict=True)
    )

    def seen() -> Iterator[Array]:
        for tap in itertools.product(*map(range, kernel)):
            starts = [i * d for i, d in zip(tap, dilations, strict=True)]
            cut = [
                slice(start, start + (n - 1) * s + 1, s)
                for start, n, s in zip(starts, places, strides, strict=True)
            ]
            yield data[:, :, *cut]

    return seen(), places


def _padded(data: Array, front: Sequence[int], back: Sequence[int], border: float) -> Array:
    """What np.pad gives, which takes longer to find out than to do."""
    inside = [slice(start, start + n) for start, n in zip(front, data.shape[2:], strict=True)]
    sizes = [start + n + end for start, n, end in zip(front, data.shape[2:], back, strict=True)]
    padded = np.full((*data.shape[:2], *sizes), border, data.dtype)
    padded[:, :, *inside] = data
    return padded


def check_reach(
    node: Node, sizes: Sequence[int], kernel: Sequence[int], places: Sequence[int]
) -> None:
    """Raise NotExactError if an element of the kernel is never inside of the image."""
    rank = len(kernel)
    strides = node.integers("strides") or (1,) * rank
    dilations = node.integers("dilations") or (1,) * rank
    pads = node.integers("pads") or (0,) * rank
    for n, k, count, s, d, pad in zip(
        sizes, kernel, places, strides, dilations, pads[:rank], strict=True
    ):
        for first in range(-pad, (k - 1) * d - pad + 1, d):
            if not any(0 <= position < n for position in range(first, first + count * s, s)):
                raise NotExactError(f"{node.name} has elements that read the border alone")


_MOST_SEEN = 1 << 26
"""Numbers that the windows of one convolution hold, at most: half a gigabyte."""


def _conv(node: Node, x: Sequence[Array]) -> Array:
    """Weight (out, in/groups, *kernel)."""
    data, weight = x[0], x[1]
    n, groups, (out, depth, *kernel) = len(data), node.integer("group", 1), weight.shape
    if data.shape[1] != groups * depth:
        raise NotExactError(f"{node.name} reads {data.shape[1]} channels")
    windows, places = _windows(node, data, kernel, 0.0)
    count = math.prod(kernel)
    if n * groups * depth * count * math.prod(places) > _MOST_SEEN:
        raise NotExactError(f"{node.name} takes too much memory")
    # (n, in, kernel, places), so that a group's rows are in the order of the weight's
    if count == 1:
        seen = next(windows)
    else:
        seen = np.empty((n, groups * depth, count, *places), data.dtype)
        for tap, window in enumerate(windows):
            seen[:, :, tap] = window
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


def _variadic(function: Callable[[Array, Array], Array]) -> Operator:
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
TABLE: dict[str, tuple[Operator, tuple[str, ...]]] = {
    "Conv": (_conv, (*_WINDOW, "group")),
    "MaxPool": (_max_pool, (*_WINDOW, "ceil_mode", "storage_order")),
    "AveragePool": (_average_pool, (*_WINDOW, "ceil_mode", "count_include_pad")),
    "GlobalAveragePool": (_global_average, ()),
    "Gemm": (_gemm, ("alpha", "beta", "transA", "transB")),
    "MatMul": (lambda node, x: np.matmul(x[0], x[1]), ()),
    "BatchNormalization": (_batch_norm, ("epsilon", "momentum", "training_mode")),
    "Add": (_variadic(np.add), ()),
    "Sub": (_variadic(np.subtract), ()),
    "Mul": (_variadic(np.multiply), ()),
    "Div": (_variadic(np.divide), ()),
    "Sum": (_variadic(np.add), ()),
    "Max": (_variadic(np.maximum), ()),
    "Min": (_variadic(np.minimum), ()),
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
PRODUCTS = frozenset(("Conv", "Gemm", "MatMul"))
"""Operators whose result shares no memory with the weight that they read."""
