"""Caffe's layers that work element by element, or reduce along an axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import log

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # everybody's name for it

from bnfold.frontends.caffe.run_step import Fields, NotRunnableError, Run, Step, single, singles

_OPERATIONS = {0: "PROD", 1: "SUM", 2: "MAX"}
_REDUCTIONS = {1: "SUM", 2: "ASUM", 3: "SUMSQ", 4: "MEAN"}
_SELU = (1.0507009873554804934193349852946, 1.6732632423543772848170429916717)
"""Scale and alpha of self-normalising networks (arXiv 1706.02515)."""


def _each(function: Callable[[Tensor, Step], Tensor]) -> Run:
    def run(step: Step) -> Sequence[Tensor]:
        return [function(step.only_bottom(), step)]

    return run


def _relu(x: Tensor, step: Step) -> Tensor:
    slope = single(step.fields.part("relu_param"), "negative_slope", 0.0)
    return x.clamp(min=0) + slope * x.clamp(max=0) if slope else x.clamp(min=0)


def _relu6(x: Tensor, step: Step) -> Tensor:
    fields = step.fields.part("relu6_param")
    slope, threshold = single(fields, "negative_slope", 0.0), single(fields, "threshold", 6.0)
    return (x.clamp(min=0) + slope * x.clamp(max=0)).clamp(max=threshold)


def _clip(x: Tensor, step: Step) -> Tensor:
    fields = step.fields.part("clip_param")
    if not (fields.has("min") and fields.has("max")):
        raise NotRunnableError("a Clip without both bounds")
    return x.clamp(single(fields, "min", 0.0), single(fields, "max", 0.0))


def _elu(x: Tensor, step: Step) -> Tensor:
    alpha = single(step.fields.part("elu_param"), "alpha", 1.0)
    return x.clamp(min=0) + alpha * torch.expm1(x.clamp(max=0))


def _selu(x: Tensor, step: Step) -> Tensor:
    scale, alpha = _SELU
    return scale * (x.clamp(min=0) + alpha * torch.expm1(x.clamp(max=0)))


def _power(x: Tensor, step: Step) -> Tensor:
    fields = step.fields.part("power_param")
    power, factor = single(fields, "power", 1.0), single(fields, "scale", 1.0)
    shift = single(fields, "shift", 0.0)
    if factor * power == 0.0:  # Caffe does not look at x then, be it NaN
        return torch.full_like(x, 1.0 if power == 0.0 else shift**power)
    y = factor * x + shift
    return y if power == 1.0 else y**power


def _exponential(x: Tensor, step: Step) -> Tensor:
    fields = step.fields.part("exp_param")
    inner = single(fields, "scale", 1.0) * x + single(fields, "shift", 0.0)
    return torch.exp(inner * _log_base(fields))


def _logarithm(x: Tensor, step: Step) -> Tensor:
    fields = step.fields.part("log_param")
    inner = single(fields, "scale", 1.0) * x + single(fields, "shift", 0.0)
    return torch.log(inner) / _log_base(fields)


def _log_base(fields: Fields) -> float:
    base = single(fields, "base", -1.0)
    return 1.0 if base == -1.0 else log(base)


def _threshold(x: Tensor, step: Step) -> Tensor:
    threshold = single(step.fields.part("threshold_param"), "threshold", 0.0)
    return (x > threshold).to(x.dtype)


def _dropout(x: Tensor, step: Step) -> Tensor:
    if not step.is_testing or step.fields.part("dropout_param").has("scale_train"):
        raise NotRunnableError("a Dropout that does more than nothing")
    return x.clone()


def _softmax(x: Tensor, step: Step) -> Tensor:
    return x.softmax(step.axis(step.fields.part("softmax_param"), 1))


def _reduction(x: Tensor, step: Step) -> Tensor:
    fields = step.fields.part("reduction_param")
    axis = step.axis(fields, 0)
    flat = x.flatten(axis)
    operation = fields.word("operation", "SUM", _REDUCTIONS)
    reductions: dict[str, Callable[[], Tensor]] = {
        "SUM": lambda: flat.sum(axis),
        "ASUM": lambda: flat.abs().sum(axis),
        "SUMSQ": lambda: flat.square().sum(axis),
        "MEAN": lambda: flat.mean(axis),
    }
    if operation not in reductions:
        raise NotRunnableError(f"reduction {operation}")
    return single(fields, "coeff", 1.0) * reductions[operation]()


def _arg_max(x: Tensor, step: Step) -> Tensor:
    """Of equal values Caffe takes the last one first."""
    fields = step.fields.part("argmax_param")
    count, with_values = fields.integer("top_k", 1), fields.flag("out_max_val", default=False)
    if fields.has("axis"):
        axis = step.axis(fields, 0)
        values, index = _largest(x, axis, count)
        return values if with_values else index
    values, index = _largest(x.flatten(1), 1, count)
    both = torch.stack([index, values], 1) if with_values else index[:, None]
    return both.reshape((*both.shape, *(1,) * (x.dim() - 3)))


def _largest(x: Tensor, axis: int, count: int) -> tuple[Tensor, Tensor]:
    values, order = x.flip(axis).sort(dim=axis, descending=True, stable=True)
    index = x.shape[axis] - 1 - order
    return values.narrow(axis, 0, count), index.narrow(axis, 0, count).to(x.dtype)


def eltwise(step: Step) -> Sequence[Tensor]:
    """Product, sum with coefficients, or maximum of bottoms of one shape."""
    fields = step.fields.part("eltwise_param")
    operation, coefficients = fields.word("operation", "SUM", _OPERATIONS), singles(fields, "coeff")
    if len({bottom.shape for bottom in step.bottoms}) != 1:
        raise NotRunnableError("bottoms of different shapes")
    if operation == "PROD":
        return [reduce(torch.mul, step.bottoms)]
    if operation == "MAX":
        return [reduce(torch.maximum, step.bottoms)]
    if operation != "SUM" or len(coefficients) not in (0, len(step.bottoms)):
        raise NotRunnableError(f"{operation} with {len(coefficients)} coefficients")
    coefficients = coefficients or [1.0] * len(step.bottoms)
    terms = [c * bottom for c, bottom in zip(coefficients, step.bottoms, strict=True)]
    return [reduce(torch.add, terms)]


LAYERS: dict[str, Run] = {
    "ReLU": _each(_relu),
    "ReLU6": _each(_relu6),
    "Clip": _each(_clip),
    "ELU": _each(_elu),
    "SeLu": _each(_selu),
    "AbsVal": _each(lambda x, step: x.abs()),
    "Sigmoid": _each(lambda x, step: x.sigmoid()),
    "TanH": _each(lambda x, step: x.tanh()),
    "BNLL": _each(lambda x, step: F.softplus(x, threshold=1e9)),
    "Power": _each(_power),
    "Exp": _each(_exponential),
    "Log": _each(_logarithm),
    "Threshold": _each(_threshold),
    "Dropout": _each(_dropout),
    "Softmax": _each(_softmax),
    "Reduction": _each(_reduction),
    "ArgMax": _each(_arg_max),
    "Eltwise": eltwise,
}
