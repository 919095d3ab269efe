"""ONNX operators over windows of an image, by PyTorch: see `run_ops`.

Sources: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.run_operands import NotHereError, Operand, given, optional


def placed(node: Node, space: Sequence[int], kernel: Sequence[int]) -> tuple[Any, ...]:
    """Strides, dilations, padding in front and behind, along each axis of space."""
    rank = len(space)
    strides = node.integers("strides") or (1,) * rank
    dilations = node.integers("dilations") or (1,) * rank
    pads = node.integers("pads") or (0,) * 2 * rank
    mode = node.text("auto_pad", "NOTSET")
    before, after = list(pads[:rank]), list(pads[rank:])
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        for axis in range(rank):
            wanted = -(-space[axis] // strides[axis])
            span = (kernel[axis] - 1) * dilations[axis] + 1
            total = max(0, (wanted - 1) * strides[axis] + span - space[axis])
            small, large = total // 2, total - total // 2
            before[axis], after[axis] = (small, large) if mode == "SAME_UPPER" else (large, small)
    return strides, dilations, before, after


def _padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float) -> Tensor:
    amounts = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return functional.pad(x, amounts, value=value) if any(amounts) else x


def _by_rank(name: str) -> dict[int, Callable[..., Tensor]]:
    return {rank: getattr(functional, f"{name}{rank}d") for rank in (1, 2, 3)}


_CONV, _TRANSPOSED = _by_rank("conv"), _by_rank("conv_transpose")
_MAX, _MEAN = _by_rank("max_pool"), _by_rank("avg_pool")


def conv(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Weight (out, in/groups, *kernel)."""
    data, weight, bias = given(x[0]), given(x[1]), optional(x, 2)
    rank = data.ndim - 2
    strides, dilations, before, after = placed(node, data.shape[2:], weight.shape[2:])
    groups = node.integer("group", 1)
    if list(before) == list(after):
        return _CONV[rank](data, weight, bias, strides, tuple(before), dilations, groups)
    data = _padded(data, before, after, 0.0)
    return _CONV[rank](data, weight, bias, strides, 0, dilations, groups)


def conv_transposed(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Weight (in, out/groups, *kernel); what is too much at the ends is cut off."""
    data, weight, bias = given(x[0]), given(x[1]), optional(x, 2)
    rank = data.ndim - 2
    strides = node.integers("strides") or (1,) * rank
    dilations = node.integers("dilations") or (1,) * rank
    extra = node.integers("output_padding") or (0,) * rank
    pads = node.integers("pads") or (0,) * 2 * rank
    before, after = list(pads[:rank]), list(pads[rank:])
    shape, mode = node.integers("output_shape")[-rank:], node.text("auto_pad", "NOTSET")
    full = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, s, k, d, e in zip(
            data.shape[2:], strides, weight.shape[2:], dilations, extra, strict=True
        )
    ]
    if mode.startswith("SAME") and not shape:
        shape = tuple(n * s for n, s in zip(data.shape[2:], strides, strict=True))
    for axis, wanted in enumerate(shape):
        total = full[axis] - wanted
        half = total // 2
        before[axis], after[axis] = (half, total - half)
        if mode != "SAME_UPPER":
            before[axis], after[axis] = after[axis], before[axis]
    y = _TRANSPOSED[rank](data, weight, None, strides, 0, 0, node.integer("group", 1), dilations)
    missing = [max(0, n - m) for n, m in zip(full, y.shape[2:], strict=True)]
    y = _padded(y, [0] * rank, missing, 0.0)
    y = _padded(y, [-n for n in before], [-n for n in after], 0.0)
    return y if bias is None else y + bias.reshape(1, -1, *(1,) * rank)


def _ended(
    node: Node, space: Sequence[int], kernel: Sequence[int], window: tuple[Any, ...]
) -> list[int]:
    """Padding behind up to the end of the last window; none starts behind what it reads."""
    ends = []
    for size, taps, stride, dilation, front, behind in zip(space, kernel, *window, strict=True):
        span = (taps - 1) * dilation + 1
        room = size + front + behind - span
        last = -(-room // stride) if node.integer("ceil_mode") else room // stride
        if node.integer("ceil_mode") and last * stride >= size + front:
            last -= 1
        ends.append(last * stride + span - size - front)
    return ends


def _mean(x: Tensor, kernel: Sequence[int], strides: Any, dilations: Any) -> Tensor:
    rank = x.ndim - 2
    if all(n == 1 for n in dilations):
        return _MEAN[rank](x, kernel, strides)
    taps = torch.full((1, 1, *kernel), 1 / math.prod(kernel), dtype=x.dtype)
    y = _CONV[rank](x.reshape(-1, 1, *x.shape[2:]), taps, None, strides, 0, dilations)
    return y.reshape(*x.shape[:2], *y.shape[2:])


def max_pool(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """The border is minus infinity."""
    data, kernel = given(x[0]), node.integers("kernel_shape")
    if len(node.outputs) > 1:
        raise NotHereError
    window = strides, dilations, before, _ = placed(node, data.shape[2:], kernel)
    data = _padded(data, before, _ended(node, data.shape[2:], kernel, window), -math.inf)
    return _MAX[data.ndim - 2](data, kernel, strides, 0, dilations)


def average_pool(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Sums over counts: padded places count if `count_include_pad` says so, others never."""
    data, kernel = given(x[0]), node.integers("kernel_shape")
    window = strides, dilations, before, after = placed(node, data.shape[2:], kernel)
    ends = _ended(node, data.shape[2:], kernel, window)
    more = [end - behind for end, behind in zip(ends, after, strict=True)]
    mean = _mean(_padded(data, before, ends, 0.0), kernel, strides, dilations)
    counts_padding = bool(node.integer("count_include_pad"))
    if not any(n > 0 for n in more) and (counts_padding or not any((*before, *after))):
        return mean
    ones = torch.ones((1, 1, *data.shape[2:]), dtype=data.dtype)
    ones = _padded(_padded(ones, before, after, float(counts_padding)), [0] * len(more), more, 0.0)
    return mean / _mean(ones, kernel, strides, dilations)


def lp_pool(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """The p-norm over windows; the border is 0."""
    data, kernel, p = given(x[0]), node.integers("kernel_shape"), node.integer("p", 2)
    window = strides, dilations, before, _ = placed(node, data.shape[2:], kernel)
    ends = _ended(node, data.shape[2:], kernel, window)
    powers = _padded(data.abs() ** p, before, ends, 0.0)
    return (_mean(powers, kernel, strides, dilations) * math.prod(kernel)) ** (1 / p)


def global_average(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Over all axes of space."""
    data = given(x[0])
    return data.mean(tuple(range(2, data.ndim)), keepdim=True)


def global_max(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Over all axes of space."""
    data = given(x[0])
    return data.amax(tuple(range(2, data.ndim)), keepdim=True)


def global_lp(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """The p-norm over all axes of space."""
    data, p = given(x[0]), node.integer("p", 2)
    return (data.abs() ** p).sum(tuple(range(2, data.ndim)), keepdim=True) ** (1 / p)
