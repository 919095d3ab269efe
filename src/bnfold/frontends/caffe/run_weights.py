"""Caffe's layers with parameters, run as Caffe runs them.

Convolution weights are (out, in/group, *k), Deconvolution's (in, out/group, *k), InnerProduct's
(out, in), transposed (in, out). BatchNorm holds sums of statistics and the factor they were
summed with: y = (x - mean/factor) / sqrt(variance/factor + eps), a factor of 0 counting as 1/0 = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # everybody's name for it

from bnfold.frontends.caffe.run_step import Fields, NotRunnableError, Run, Step, along, single

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_DECONVOLUTIONS = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_BN_MODES = {0: "LEARN", 1: "INFERENCE"}
_DEFAULT_EPS = 1e-5
_NVIDIA_FILLERS = ("scale_filler", "bias_filler")
_NVIDIA_LEAST_EPS = float(np.float32(1e-5))
"""NVCaffe's BatchNorm, the one with scale_bias, never takes less (cuDNN's CUDNN_BN_MIN_EPSILON)."""


def convolution(step: Step) -> Sequence[Tensor]:
    """Several bottoms share one weight."""
    return _convolve(step, default_group=1)


def depthwise_convolution(step: Step) -> Sequence[Tensor]:
    """The forks': a Convolution whose groups are its channels, unless it says otherwise."""
    axis = step.axis(step.fields.part("convolution_param"), 1)
    return _convolve(step, default_group=step.bottoms[0].shape[axis])


def _convolve(step: Step, *, default_group: int) -> Sequence[Tensor]:
    fields = step.fields.part("convolution_param")
    axis = step.axis(fields, 1)
    channels, spatial = step.bottoms[0].shape[axis], step.bottoms[0].dim() - axis - 1
    group = fields.integer("group", default_group)
    kernel, options = _window(fields, spatial)
    outputs = fields.integer("num_output", channels)
    weight = step.blob(0, (outputs, channels // group, *kernel))
    bias = step.blob(1, (outputs,)) if fields.flag("bias_term", default=True) else None
    tops = []
    for bottom in step.bottoms:
        flat = bottom.reshape(-1, *bottom.shape[axis:])
        if group == channels > 1 and spatial == 2 and flat.dtype == torch.float64:
            top = _depthwise(flat, weight, bias, **options)
        else:
            run = _CONVOLUTIONS[spatial]
            top = run(flat, weight, bias, groups=group, **options)  # type: ignore[operator]
        tops.append(top.reshape(*bottom.shape[:axis], *top.shape[1:]))
    return tops


def _depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """Tap by tap: in float64 PyTorch would run a convolution of its own for every channel."""
    rows, columns = weight.shape[2:]
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    x = x.repeat_interleave(weight.shape[0] // x.shape[1], 1)
    height, width = (
        (x.shape[2 + n] - dilation[n] * (k - 1) - 1) // stride[n] + 1
        for n, k in enumerate((rows, columns))
    )
    top = x.new_zeros(x.shape[0], x.shape[1], height, width)
    if bias is not None:
        top += bias[:, None, None]
    for row in range(rows):
        for column in range(columns):
            y, z = row * dilation[0], column * dilation[1]
            ends = y + stride[0] * (height - 1) + 1, z + stride[1] * (width - 1) + 1
            seen = x[:, :, y : ends[0] : stride[0], z : ends[1] : stride[1]]
            top.addcmul_(seen, weight[:, 0, row, column, None, None])
    return top


def deconvolution(step: Step) -> Sequence[Tensor]:
    """The output is stride * (in - 1) + dilation * (kernel - 1) + 1 - 2 * pad long."""
    fields = step.fields.part("convolution_param")
    axis = step.axis(fields, 1)
    channels, spatial = step.bottoms[0].shape[axis], step.bottoms[0].dim() - axis - 1
    group = fields.integer("group", 1)
    kernel, options = _window(fields, spatial)
    outputs = fields.integer("num_output", 0)
    weight = step.blob(0, (channels, outputs // group, *kernel))
    bias = step.blob(1, (outputs,)) if fields.flag("bias_term", default=True) else None
    run = _DECONVOLUTIONS[spatial]
    tops = []
    for bottom in step.bottoms:
        flat = bottom.reshape(-1, *bottom.shape[axis:])
        top = run(flat, weight, bias, groups=group, **options)  # type: ignore[operator]
        tops.append(top.reshape(*bottom.shape[:axis], *top.shape[1:]))
    return tops


def _window(fields: Fields, spatial: int) -> tuple[list[int], dict[str, list[int]]]:
    """Kernel, and stride, padding and dilation, per spatial axis."""
    if spatial not in _CONVOLUTIONS:
        raise NotRunnableError(f"{spatial} spatial axes")
    kernel = _per_axis(fields, ("kernel_size", "kernel_h", "kernel_w"), spatial, None)
    return kernel, {
        "stride": _per_axis(fields, ("stride", "stride_h", "stride_w"), spatial, 1),
        "padding": _per_axis(fields, ("pad", "pad_h", "pad_w"), spatial, 0),
        "dilation": _per_axis(fields, _dilation(fields), spatial, 1),
    }


def _dilation(fields: Fields) -> tuple[str, str, str]:
    """DeepLab's fork calls it a hole."""
    hole = ("hole", "hole_h", "hole_w")
    return hole if fields.has(*hole) else ("dilation", "", "")


def _per_axis(
    fields: Fields, names: tuple[str, str, str], spatial: int, default: int | None
) -> list[int]:
    name, height, width = names
    if height and (fields.has(height) or fields.has(width)):
        return [fields.integer(height, default or 0), fields.integer(width, default or 0)]
    values = fields.integers(name) or ([] if default is None else [default])
    if len(values) not in (1, spatial):
        raise NotRunnableError(f"{len(values)} values of {name} for {spatial} axes")
    return values * spatial if len(values) == 1 else values


def inner_product(step: Step) -> Sequence[Tensor]:
    """Everything from `axis` on is one axis of length K."""
    fields = step.fields.part("inner_product_param")
    x = step.only_bottom()
    axis = step.axis(fields, 1)
    flat = x.flatten(axis)
    outputs, inputs = fields.integer("num_output", 0), flat.shape[axis]
    if fields.flag("transpose", default=False):
        weight = step.blob(0, (inputs, outputs)).T
    else:
        weight = step.blob(0, (outputs, inputs))
    bias = step.blob(1, (outputs,)) if fields.flag("bias_term", default=True) else None
    return [F.linear(flat, weight, bias)]


def embed(step: Step) -> Sequence[Tensor]:
    """Rows of a table, (input_dim, num_output), by number."""
    fields = step.fields.part("embed_param")
    rows, outputs = fields.integer("input_dim", 0), fields.integer("num_output", 0)
    top = step.blob(0, (rows, outputs))[step.only_bottom().long()]
    if fields.flag("bias_term", default=True):
        top = top + step.blob(1, (outputs,))
    return [top]


def batch_norm(step: Step) -> Sequence[Tensor]:
    """BVLC's three blobs; NVCaffe's and Intel's five, the last two gamma and beta."""
    x = step.only_bottom()
    fields = step.fields.part("batch_norm_param")
    of_nvidia = fields.has("scale_bias", *_NVIDIA_FILLERS)
    eps = single(fields, "eps", _DEFAULT_EPS)
    if of_nvidia:
        eps = max(eps, _NVIDIA_LEAST_EPS)
    scales = fields.flag("scale_bias", default=False) or fields.has(*_NVIDIA_FILLERS)
    if scales:
        step = _in_todays_order(step)
    if fields.flag("use_global_stats", default=step.is_testing):
        mean, variance = _stored_statistics(step)
    else:
        mean, variance = _batch_statistics(x)
    axis, rank = min(1, x.dim() - 1), x.dim()
    y = (x - along(mean, axis, rank)) / along((variance + eps).sqrt(), axis, rank)
    if scales or fields.flag("use_weight_bias", default=False):
        gamma, beta = (step.blob(number, mean.shape) for number in (3, 4))
        y = along(gamma, axis, rank) * y + along(beta, axis, rank)
    elif len(step.blobs) > 3:
        raise NotRunnableError(f"a BatchNorm with {len(step.blobs)} blobs")
    return [y]


def _in_todays_order(step: Step) -> Step:
    """NVCaffe's first versions wrote gamma, beta, mean, variance and the factor.

    Its loader sees that by the last blob, which has one entry; for one channel that tells nothing.
    It divides three blobs by their factor, but not five.
    """
    if len(step.blobs) != 5:
        return step
    blobs = step.blobs
    if blobs[4].numel() == 1 < blobs[0].numel():
        blobs = (*blobs[2:], *blobs[:2])
    return replace(step, blobs=(*blobs[:2], torch.ones_like(blobs[2]), *blobs[3:]))


def _stored_statistics(step: Step) -> tuple[Tensor, Tensor]:
    x = step.bottoms[0]
    channels = (x.shape[1] if x.dim() > 1 else 1,)
    if not step.blobs:  # not in the file: Caffe's filler
        return x.new_zeros(channels), x.new_zeros(channels)
    mean, variance = step.blob(0, channels), step.blob(1, channels)
    factor = step.blob(2, (1,))
    inverse = torch.where(factor == 0, 0.0, 1 / factor)
    return inverse * mean, inverse * variance


def _batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    axes = [axis for axis in range(x.dim()) if axis != 1]
    return x.mean(axes), x.var(axes, correction=0)


def scale(step: Step) -> Sequence[Tensor]:
    """x * factor, plus a bias if there is one. The factor is a blob or the second bottom."""
    fields = step.fields.part("scale_param")
    x = step.bottoms[0]
    own = len(step.bottoms) == 1
    if own:
        axis, shape = _covered(step, fields)
        factor = step.blob(0, shape)
    else:
        factor = step.bottoms[1]
        axis = step.axis(fields, 1) if factor.dim() else 0
    top = x * along(factor, axis, x.dim())
    if fields.flag("bias_term", default=False):
        top = top + along(step.blob(int(own), factor.shape), axis, x.dim())
    return [top]


def bias(step: Step) -> Sequence[Tensor]:
    """x + bias. The bias is a blob or the second bottom."""
    fields = step.fields.part("bias_param")
    x = step.bottoms[0]
    if len(step.bottoms) == 1:
        axis, shape = _covered(step, fields)
        summand = step.blob(0, shape)
    else:
        summand = step.bottoms[1]
        axis = step.axis(fields, 1) if summand.dim() else 0
    return [x + along(summand, axis, x.dim())]


def _covered(step: Step, fields: Fields) -> tuple[int, tuple[int, ...]]:
    """The axes of the bottom that a blob of Scale or Bias covers: the first one, their lengths."""
    x = step.bottoms[0]
    axes = fields.integer("num_axes", 1)
    if axes == 0:
        return 0, ()
    axis = step.axis(fields, 1)
    stop = x.dim() if axes == -1 else axis + axes
    return axis, tuple(x.shape[axis:stop])


def batch_norm_of_forks(step: Step) -> Sequence[Tensor]:
    """`BN` with bn_param: SegNet's (scale, shift), PSPNet's (scale, shift, mean, variance)."""
    x = step.only_bottom()
    fields = step.fields.part("bn_param")
    channels = (x.shape[1],)
    rank = x.dim()
    factor, shift = (along(step.blob(number, channels), 1, rank) for number in (0, 1))
    if len(step.blobs) == 4 and (step.is_testing or fields.flag("frozen", default=False)):
        mean, variance = (step.blob(number, channels) for number in (2, 3))
        deviation = (variance + single(fields, "eps", _DEFAULT_EPS)).sqrt()
        x = (x - along(mean, 1, rank)) / along(deviation, 1, rank)
    elif len(step.blobs) != 2 or fields.word("bn_mode", "LEARN", _BN_MODES) != "INFERENCE":
        raise NotRunnableError("a BN that computes statistics")
    return [factor * x + shift]


def prelu(step: Step) -> Sequence[Tensor]:
    """max(x, 0) + slope * min(x, 0), a slope per channel or one for all."""
    x = step.only_bottom()
    shared = step.fields.part("prelu_param").flag("channel_shared", default=False)
    slope = step.blob(0, () if shared else (x.shape[1],))
    return [x.clamp(min=0) + along(slope, x.dim() if shared else 1, x.dim()) * x.clamp(max=0)]


def normalize(step: Step) -> Sequence[Tensor]:
    """SSD's: x / sqrt(sum x^2 + eps) over the channels, or over everything, times a scale."""
    x = step.only_bottom()
    fields = step.fields.part("norm_param")
    axes = list(range(1, x.dim())) if fields.flag("across_spatial", default=True) else [1]
    norm = (x.square().sum(axes, keepdim=True) + single(fields, "eps", 1e-10)).sqrt()
    shared = fields.flag("channel_shared", default=True)
    factor = step.blob(0, () if shared else (x.shape[1],))
    return [x / norm * along(factor, x.dim() if shared else 1, x.dim())]


def axpy(step: Step) -> Sequence[Tensor]:
    """SENet's: scale * x + y, the scale (N, C, 1, 1)."""
    if len(step.bottoms) != 3:
        raise NotRunnableError(f"{len(step.bottoms)} bottoms")
    factor, x, y = step.bottoms
    return [factor.reshape(*x.shape[:2], *(1,) * (x.dim() - 2)) * x + y]


LAYERS: dict[str, Run] = {
    "Convolution": convolution,
    "ConvolutionDepthwise": depthwise_convolution,
    "ConvolutionDW": depthwise_convolution,
    "DepthwiseConvolution": depthwise_convolution,
    "Deconvolution": deconvolution,
    "InnerProduct": inner_product,
    "Embed": embed,
    "BatchNorm": batch_norm,
    "Scale": scale,
    "Bias": bias,
    "BN": batch_norm_of_forks,
    "PReLU": prelu,
    "Normalize": normalize,
    "Axpy": axpy,
}
