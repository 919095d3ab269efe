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

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.run_operands import (
    NotHereError,
    Operand,
    Operator,
    given,
    numbers,
    optional,
)
from bnfold.frontends.onnx.run_sampled import deform_conv, grid_sample
from bnfold.frontends.onnx.run_windows import (
    average_pool,
    conv,
    conv_transposed,
    global_average,
    global_lp,
    global_max,
    lp_pool,
    max_pool,
)

# ------------------------------------------------------------------- products, norms


def gemm(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """alpha * A @ B + beta * C."""
    a, b, c = given(x[0]), given(x[1]), optional(x, 2)
    a = a.T if node.integer("transA") else a
    b = b.T if node.integer("transB") else b
    y = node.number("alpha", 1.0) * (a @ b)
    return y if c is None else y + node.number("beta", 1.0) * c


def matmul(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """As NumPy's."""
    return torch.matmul(given(x[0]), given(x[1]))


def group_norm(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """The scale and the bias are of a channel; before opset 21 of a group."""
    data, groups = given(x[0]), node.integer("num_groups")
    scale, bias = given(x[1]), given(x[2])
    if opset < 21:
        scale, bias = (part.repeat_interleave(data.shape[1] // groups) for part in (scale, bias))
    return functional.group_norm(data, groups, scale, bias, node.number("epsilon", 1e-5))


def batch_norm(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """At inference; with spatial=0 the statistics have the shape of one image."""
    if node.integer("training_mode") or len([o for o in node.outputs if o]) > 1:
        raise NotHereError
    data, *statistics = (given(operand) for operand in x)
    rest = (1,) * (data.ndim - 1 - statistics[0].ndim)
    gamma, beta, mean, var = (s.reshape(1, *s.shape, *rest) for s in statistics)
    return gamma * (data - mean) / torch.sqrt(var + node.number("epsilon", 1e-5)) + beta


def instance_norm(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Over space, image by image."""
    data, gamma, beta = (given(operand) for operand in x)
    return functional.instance_norm(data, weight=gamma, bias=beta, eps=node.number("epsilon", 1e-5))


def softmax(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Before opset 13 over all axes from `axis` on."""
    return _softmax(torch.softmax, node, given(x[0]), opset)


def log_softmax(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Its logarithm."""
    return _softmax(torch.log_softmax, node, given(x[0]), opset)


def _softmax(function: Callable[..., Tensor], node: Node, data: Tensor, opset: int) -> Tensor:
    if opset >= 13:
        return function(data, node.integer("axis", -1))
    axis = node.integer("axis", 1) % max(1, data.ndim)
    return function(data.flatten(axis), -1).reshape(data.shape)


# ------------------------------------------------------------------- elementwise


def clip(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Bounds are attributes before opset 11."""
    low, high = optional(x, 1), optional(x, 2)
    data = given(x[0])
    if opset < 11:
        return data.clamp(node.number("min", -math.inf), node.number("max", math.inf))
    data = data if low is None else data.maximum(low)
    return data if high is None else data.minimum(high)


def prelu(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """The slope broadcasts from the right."""
    data, slope = given(x[0]), given(x[1])
    if opset < 7 and slope.ndim == 1 and data.ndim > 1:
        slope = slope.reshape(-1, *(1,) * (data.ndim - 2))
    return torch.where(data < 0, data * slope, data)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def apply(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
        a, b = given(x[0]), given(x[1])
        if not (a.is_floating_point() and b.is_floating_point()):
            raise NotHereError
        if opset < 7 and a.ndim > b.ndim:  # the reference evaluator does not look at the axis
            axis = node.integer("axis", a.ndim - b.ndim) % a.ndim
            b = b.reshape(*b.shape, *(1,) * (a.ndim - axis - b.ndim))
        return function(a, b)

    return apply


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def apply(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
        total = given(x[0])
        for other in x[1:]:
            total = function(total, given(other))
        return total

    return apply


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    def apply(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
        data = given(x[0])
        if not data.is_floating_point():
            raise NotHereError
        return function(data)

    return apply


def leaky_relu(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Slope `alpha` below 0."""
    return functional.leaky_relu(given(x[0]), node.number("alpha", 0.01))


def hard_sigmoid(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """A line between 0 and 1."""
    line = node.number("alpha", 0.2) * given(x[0]) + node.number("beta", 0.5)
    return line.clamp(0.0, 1.0)


def hard_swish(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """x times a line between 0 and 1."""
    data = given(x[0])
    return data * (data / 6.0 + 0.5).clamp(0.0, 1.0)


def elu(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """alpha * (exp(x) - 1) below 0."""
    return functional.elu(given(x[0]), node.number("alpha", 1.0))


def gelu(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Exact, or by tanh."""
    return functional.gelu(given(x[0]), approximate=node.text("approximate", "none"))


def first(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Identity, and Dropout at inference."""
    training = optional(x, 2)
    if training is not None and bool(training.any()):
        raise NotHereError
    return given(x[0])


# ------------------------------------------------------------------- shapes


def pad(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Negative amounts crop first."""
    data = given(x[0])
    amounts = list(node.integers("pads")) if opset < 11 else numbers(x[1])
    value = optional(x, 2)
    constant = node.number("value", 0.0) if value is None else float(value)
    axes = [axis % data.ndim for axis in numbers(optional(x, 3)) or range(data.ndim)]
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
    data = given(x[0])
    scales = optional(x, 2 if node.op == "Resize" and opset >= 11 else 1)
    sizes = numbers(optional(x, 3))
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
    if mode == "linear" and places == "asymmetric" and whole and data.is_floating_point():
        return _between(_between(data, 2, int(factors[2])), 3, int(factors[3]))
    raise NotHereError


def _between(data: Tensor, axis: int, factor: int) -> Tensor:
    """Lines from each pixel to the next one; behind the last there is none."""
    count = data.shape[axis]
    shape = [1] * data.ndim
    shape[axis] = -1
    steps = torch.arange(count * factor)
    low = steps // factor
    part = ((steps % factor).to(data.dtype) / factor).reshape(shape)
    here, following = (
        data.index_select(axis, places) for places in (low, (low + 1).clamp(max=count - 1))
    )
    return here + (following - here) * part


def concat(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Along `axis`."""
    return torch.cat([given(part) for part in x], node.integer("axis", 1))


def transpose(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Reversed without `perm`."""
    data = given(x[0])
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
    data = given(x[0])
    scale, zero = (_per_axis(node, optional(x, position), data.ndim) for position in (1, 2))
    return torch.as_tensor((data.to(torch.float64) - zero) * scale)


def quantize(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """round(x / scale) + zero, as far as the integers go."""
    data, point = given(x[0]), optional(x, 2)
    dtype = torch.uint8 if point is None else point.dtype
    if dtype.is_floating_point or node.integer("output_dtype"):
        raise NotHereError
    scale, zero = (_per_axis(node, optional(x, position), data.ndim) for position in (1, 2))
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
    "LpPool": lp_pool,
    "GlobalLpPool": global_lp,
    "GridSample": grid_sample,
    "DeformConv": deform_conv,
    "GroupNormalization": group_norm,
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
    "Add": _binary(torch.add),
    "Sub": _binary(torch.sub),
    "Mul": _binary(torch.mul),
    "Div": _binary(torch.div),
    "Sum": _variadic(torch.add),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Relu": _unary(torch.relu),
    "Sigmoid": _unary(torch.sigmoid),
    "Tanh": _unary(torch.tanh),
    "Sqrt": _unary(torch.sqrt),
    "Exp": _unary(torch.exp),
    "Erf": _unary(torch.erf),
    "Neg": _unary(torch.neg),
    "Abs": _unary(torch.abs),
    "Softplus": _unary(functional.softplus),
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
