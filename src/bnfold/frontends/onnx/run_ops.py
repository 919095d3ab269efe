"""ONNX operators in float64, by PyTorch: those that take time, and those that others get wrong.

What is not in this table, or is used in a way that is not, is left to the reference evaluator of
the onnx package (see `run_exact`), which is right about nearly everything, and slow. It is wrong
about groups of a ConvTranspose, BatchNormalization before opset 14 and negative padding, so these
are here, in every form that exists.

Sources: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bnfold.frontends.onnx.nodes import Node


class NotHereError(Exception):
    """This form of the operator is not in the table."""


Operand = Tensor | None
Operator = Callable[[Node, Sequence[Operand], int], Tensor]
"""(node, inputs, opset) -> its only output."""


def _given(operand: Operand) -> Tensor:
    assert operand is not None
    return operand


def _optional(x: Sequence[Operand], position: int) -> Operand:
    return x[position] if position < len(x) else None


def _numbers(operand: Operand) -> list[int]:
    return [] if operand is None else [int(n) for n in operand.reshape(-1).tolist()]


# ------------------------------------------------------------------- windows


def _window(node: Node, space: Sequence[int], kernel: Sequence[int]) -> tuple[Any, ...]:
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
    data, weight, bias = _given(x[0]), _given(x[1]), _optional(x, 2)
    rank = data.ndim - 2
    strides, dilations, before, after = _window(node, data.shape[2:], weight.shape[2:])
    groups = node.integer("group", 1)
    if list(before) == list(after):
        return _CONV[rank](data, weight, bias, strides, tuple(before), dilations, groups)
    data = _padded(data, before, after, 0.0)
    return _CONV[rank](data, weight, bias, strides, 0, dilations, groups)


def conv_transposed(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Weight (in, out/groups, *kernel); what is too much at the ends is cut off."""
    data, weight, bias = _given(x[0]), _given(x[1]), _optional(x, 2)
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


def max_pool(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """The border is minus infinity."""
    data, kernel = _given(x[0]), node.integers("kernel_shape")
    if len(node.outputs) > 1 or node.integer("storage_order"):
        raise NotHereError
    strides, dilations, before, after = _window(node, data.shape[2:], kernel)
    data = _padded(data, before, after, -math.inf)
    return _MAX[data.ndim - 2](data, kernel, strides, 0, dilations, bool(node.integer("ceil_mode")))


def average_pool(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Sums over counts: padded places count if `count_include_pad` says so."""
    data, kernel = _given(x[0]), node.integers("kernel_shape")
    strides, dilations, before, after = _window(node, data.shape[2:], kernel)
    if node.integer("ceil_mode") or any(n != 1 for n in dilations):
        raise NotHereError
    pool = _MEAN[data.ndim - 2]
    mean = pool(_padded(data, before, after, 0.0), kernel, strides)
    if node.integer("count_include_pad") or not any((*before, *after)):
        return mean
    ones = torch.ones((1, 1, *data.shape[2:]), dtype=data.dtype)
    return mean / pool(_padded(ones, before, after, 0.0), kernel, strides)


def global_average(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Over all axes of space."""
    data = _given(x[0])
    return data.mean(tuple(range(2, data.ndim)), keepdim=True)


def global_max(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Over all axes of space."""
    data = _given(x[0])
    return data.amax(tuple(range(2, data.ndim)), keepdim=True)


# ------------------------------------------------------------------- products, norms


def gemm(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """alpha * A @ B + beta * C."""
    a, b, c = _given(x[0]), _given(x[1]), _optional(x, 2)
    a = a.T if node.integer("transA") else a
    b = b.T if node.integer("transB") else b
    y = node.number("alpha", 1.0) * (a @ b)
    return y if c is None else y + node.number("beta", 1.0) * c


def matmul(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """As NumPy's."""
    return torch.matmul(_given(x[0]), _given(x[1]))


def batch_norm(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """At inference; with spatial=0 the statistics have the shape of one image."""
    if node.integer("training_mode") or len([o for o in node.outputs if o]) > 1:
        raise NotHereError
    data, *statistics = (_given(operand) for operand in x)
    rest = (1,) * (data.ndim - 1 - statistics[0].ndim)
    gamma, beta, mean, var = (s.reshape(1, *s.shape, *rest) for s in statistics)
    return gamma * (data - mean) / torch.sqrt(var + node.number("epsilon", 1e-5)) + beta


def instance_norm(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Over space, image by image."""
    data, gamma, beta = (_given(operand) for operand in x)
    return functional.instance_norm(data, weight=gamma, bias=beta, eps=node.number("epsilon", 1e-5))


def softmax(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Before opset 13 over all axes from `axis` on."""
    return _softmax(torch.softmax, node, _given(x[0]), opset)


def log_softmax(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Its logarithm."""
    return _softmax(torch.log_softmax, node, _given(x[0]), opset)


def _softmax(function: Callable[..., Tensor], node: Node, data: Tensor, opset: int) -> Tensor:
    if opset >= 13:
        return function(data, node.integer("axis", -1))
    axis = node.integer("axis", 1) % max(1, data.ndim)
    return function(data.flatten(axis), -1).reshape(data.shape)


# ------------------------------------------------------------------- elementwise


def clip(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Bounds are attributes before opset 11."""
    low, high = _optional(x, 1), _optional(x, 2)
    data = _given(x[0])
    if opset < 11:
        return data.clamp(node.number("min", -math.inf), node.number("max", math.inf))
    data = data if low is None else data.maximum(low)
    return data if high is None else data.minimum(high)


def prelu(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """The slope broadcasts from the right."""
    data, slope = _given(x[0]), _given(x[1])
    if opset < 7 and slope.ndim == 1 and data.ndim > 1:
        slope = slope.reshape(-1, *(1,) * (data.ndim - 2))
    return torch.where(data < 0, data * slope, data)


def _two(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def apply(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
        a, b = _given(x[0]), _given(x[1])
        if opset < 7 or not (a.is_floating_point() and b.is_floating_point()):
            raise NotHereError
        return function(a, b)

    return apply


def _many(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def apply(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
        total = _given(x[0])
        for other in x[1:]:
            total = function(total, _given(other))
        return total

    return apply


def _one(function: Callable[[Tensor], Tensor]) -> Operator:
    def apply(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
        data = _given(x[0])
        if not data.is_floating_point():
            raise NotHereError
        return function(data)

    return apply


def leaky_relu(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Slope `alpha` below 0."""
    return functional.leaky_relu(_given(x[0]), node.number("alpha", 0.01))


def hard_sigmoid(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """A line between 0 and 1."""
    line = node.number("alpha", 0.2) * _given(x[0]) + node.number("beta", 0.5)
    return line.clamp(0.0, 1.0)


def hard_swish(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """x times a line between 0 and 1."""
    data = _given(x[0])
    return data * (data / 6.0 + 0.5).clamp(0.0, 1.0)


def elu(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """alpha * (exp(x) - 1) below 0."""
    return functional.elu(_given(x[0]), node.number("alpha", 1.0))


def gelu(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Exact, or by tanh."""
    return functional.gelu(_given(x[0]), approximate=node.text("approximate", "none"))


def first(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Identity, and Dropout at inference."""
    training = _optional(x, 2)
    if training is not None and bool(training.any()):
        raise NotHereError
    return _given(x[0])


# ------------------------------------------------------------------- shapes


def pad(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Negative amounts crop first."""
    data = _given(x[0])
    amounts = list(node.integers("pads")) if opset < 11 else _numbers(x[1])
    value = _optional(x, 2)
    constant = node.number("value", 0.0) if value is None else float(value)
    axes = [axis % data.ndim for axis in _numbers(_optional(x, 3)) or range(data.ndim)]
    before, after = [0] * data.ndim, [0] * data.ndim
    for position, axis in enumerate(axes):
        before[axis], after[axis] = amounts[position], amounts[position + len(amounts) // 2]
    crop = tuple(
        slice(max(0, -b), n - max(0, -a)) for b, a, n in zip(before, after, data.shape, strict=True)
    )
    grown = [(max(0, b), max(0, a)) for b, a in zip(before, after, strict=True)]
    mode = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}.get(node.text("mode", "constant"))
    array = data[crop].numpy()
    if mode is None:
        return torch.from_numpy(np.pad(array, grown, constant_values=constant))
    return torch.from_numpy(np.pad(array, grown, mode=mode))  # type: ignore[call-overload]


def resize(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Images, enlarged a whole number of times by repeating, or by lines between centres."""
    data = _given(x[0])
    scales = _optional(x, 2 if node.op == "Resize" and opset >= 11 else 1)
    sizes = _numbers(_optional(x, 3))
    if scales is not None and scales.numel():
        factors = [float(n) for n in scales.tolist()]
    elif node.op == "Upsample" and opset < 9:
        factors = [float(n) for n in node.attribute("scales")]
    else:
        factors = [m / n for m, n in zip(sizes, data.shape, strict=True)]
    mode = node.text("mode", "nearest")
    default = "half_pixel" if node.op == "Resize" and opset >= 11 else "asymmetric"
    places = node.text("coordinate_transformation_mode", default)
    if len(factors) != data.ndim or data.ndim != 4 or factors[:2] != [1.0, 1.0]:
        raise NotHereError
    if node.integers("axes") or node.integer("antialias"):
        raise NotHereError
    whole = all(factor >= 1 and factor == int(factor) for factor in factors)
    if mode == "nearest" and whole:
        by = [int(factor) for factor in factors[2:]]
        rounding = node.text("nearest_mode", "round_prefer_floor" if opset >= 11 else "floor")
        plain = places == "asymmetric" and rounding == "floor"
        centred = places in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round")
        if plain or centred:
            return data.repeat_interleave(by[0], 2).repeat_interleave(by[1], 3)
    if mode == "linear" and places in ("half_pixel", "pytorch_half_pixel") and whole:
        size = [int(n * factor) for n, factor in zip(data.shape[2:], factors[2:], strict=True)]
        return functional.interpolate(data, size=size, mode="bilinear", align_corners=False)
    raise NotHereError


def concat(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Along `axis`."""
    return torch.cat([_given(part) for part in x], node.integer("axis", 1))


def transpose(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Reversed without `perm`."""
    data = _given(x[0])
    return data.permute(node.integers("perm") or tuple(reversed(range(data.ndim))))


def _per_axis(node: Node, constant: Operand, rank: int) -> Tensor | float:
    """A scale or zero point, laid along its axis."""
    if constant is None:
        return 0.0
    if node.integer("block_size"):
        raise NotHereError
    plain = constant.to(torch.float64)
    if plain.numel() == 1:
        return plain.reshape(())
    shape = [1] * rank
    shape[node.integer("axis", 1) % rank] = -1
    return plain.reshape(shape)


def dequantize(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """(x - zero) * scale."""
    data = _given(x[0])
    scale, zero = (_per_axis(node, _optional(x, position), data.ndim) for position in (1, 2))
    return torch.as_tensor((data.to(torch.float64) - zero) * scale)


def quantize(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """round(x / scale) + zero, as far as the integers go."""
    data, point = _given(x[0]), _optional(x, 2)
    dtype = torch.uint8 if point is None else point.dtype
    if dtype.is_floating_point or node.integer("output_dtype"):
        raise NotHereError
    scale, zero = (_per_axis(node, _optional(x, position), data.ndim) for position in (1, 2))
    limits = torch.iinfo(dtype)
    return ((data / scale).round() + zero).clamp(limits.min, limits.max).to(dtype)


TABLE: dict[str, Operator] = {
    "DequantizeLinear": dequantize,
    "QuantizeLinear": quantize,
    "Conv": conv,
    "ConvTranspose": conv_transposed,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average,
    "GlobalMaxPool": global_max,
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "Softmax": softmax,
    "LogSoftmax": log_softmax,
    "Clip": clip,
    "PRelu": prelu,
    "LeakyRelu": leaky_relu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Elu": elu,
    "Gelu": gelu,
    "Add": _two(torch.add),
    "Sub": _two(torch.sub),
    "Mul": _two(torch.mul),
    "Div": _two(torch.div),
    "Sum": _many(torch.add),
    "Max": _many(torch.maximum),
    "Min": _many(torch.minimum),
    "Relu": _one(torch.relu),
    "Sigmoid": _one(torch.sigmoid),
    "Tanh": _one(torch.tanh),
    "Sqrt": _one(torch.sqrt),
    "Exp": _one(torch.exp),
    "Erf": _one(torch.erf),
    "Neg": _one(torch.neg),
    "Abs": _one(torch.abs),
    "Softplus": _one(functional.softplus),
    "Identity": first,
    "Dropout": first,
    "Pad": pad,
    "Resize": resize,
    "Upsample": resize,
    "Concat": concat,
    "Transpose": transpose,
}
"""Per operator of ONNX's own domain."""
NO_REFERENCE = frozenset(("ConvTranspose", "BatchNormalization"))
"""What the reference evaluator must not be asked."""
