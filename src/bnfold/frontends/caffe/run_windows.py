"""Caffe's layers over windows of an image, with Caffe's rules for the last window and the border.

Pooling rounds its output's length up, ceil((H + 2p - k) / s) + 1, and where it pads drops a last
window that would start in the padding. An average divides by the elements that its window has
within the padded image, [0, H + 2p), zeros included, but not by those beyond.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # everybody's name for it

from bnfold.frontends.caffe.run_step import Fields, NotRunnableError, Run, Step, single

_METHODS = {0: "MAX", 1: "AVE", 2: "STOCHASTIC"}
_REGIONS = {0: "ACROSS_CHANNELS", 1: "WITHIN_CHANNEL"}
_ROUND_MODES = {0: "CEIL", 1: "FLOOR"}
_LOWEST = -torch.finfo(torch.float32).max
"""What Caffe's maximum starts from."""


def pooling(step: Step) -> Sequence[Tensor]:
    """Maximum or average; a second top of a maximum says where in the plane it was."""
    fields = step.fields.part("pooling_param")
    x = step.only_bottom()
    if x.dim() != 4:
        raise NotRunnableError(f"pooling of a blob with {x.dim()} axes")
    kernel, stride, pad = _pooling_window(fields, x)
    rounding = _rounding(fields)
    length = [
        _pooled_length(x.shape[2 + i], kernel[i], stride[i], pad, i, rounding) for i in (0, 1)
    ]
    method = fields.word("pool", "MAX", _METHODS)
    if method == "MAX":
        return _maximum(x, kernel, stride, pad, length)[: step.tops]
    if method == "AVE" and step.tops == 1:
        return [_average(x, kernel, stride, pad, length)]
    raise NotRunnableError(f"{method} pooling with {step.tops} tops")


def _pooling_window(fields: Fields, x: Tensor) -> tuple[list[int], list[int], list[int]]:
    if fields.flag("global_pooling", default=False):
        return list(x.shape[2:]), [1, 1], [0, 0]
    size = fields.integer("kernel_size", 0)
    kernel = [fields.integer("kernel_h", size), fields.integer("kernel_w", size)]
    step = fields.integer("stride", 1)
    stride = [fields.integer("stride_h", step), fields.integer("stride_w", step)]
    border = fields.integer("pad", 0)
    pad = [fields.integer("pad_h", border), fields.integer("pad_w", border)]
    return kernel, stride, pad


def _rounding(fields: Fields) -> str:
    """BVLC rounds up; later versions and SSD forks can be told otherwise."""
    if not fields.flag("ceil_mode", default=True):
        return "FLOOR"
    return fields.word("round_mode", "CEIL", _ROUND_MODES)


def _pooled_length(
    size: int, kernel: int, stride: int, pad: Sequence[int], axis: int, rounding: str
) -> int:
    whole = floor if rounding == "FLOOR" else ceil
    length = whole((size + 2 * pad[axis] - kernel) / stride) + 1
    # Either padding makes Caffe clip both axes.
    if any(pad) and (length - 1) * stride >= size + pad[axis]:
        length -= 1
    return length


def _extended(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    pad: Sequence[int],
    length: Sequence[int],
    value: float,
) -> Tensor:
    """The image with a border that makes every window whole."""
    sides = []
    for axis in (1, 0):  # F.pad counts from the last axis
        reach = (length[axis] - 1) * stride[axis] + kernel[axis]
        sides += [pad[axis], max(0, reach - pad[axis] - x.shape[2 + axis])]
    return F.pad(x, sides, value=value)


def _maximum(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    pad: Sequence[int],
    length: Sequence[int],
) -> list[Tensor]:
    extended = _extended(x, kernel, stride, pad, length, _LOWEST)
    top, place = F.max_pool2d(extended, tuple(kernel), tuple(stride), return_indices=True)
    top, place = (t[:, :, : length[0], : length[1]] for t in (top, place))
    row = place // extended.shape[3] - pad[0]
    column = place % extended.shape[3] - pad[1]
    mask = torch.where(top > _LOWEST, row * x.shape[3] + column, -1)
    return [top, mask.to(x.dtype)]


def _average(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    pad: Sequence[int],
    length: Sequence[int],
) -> Tensor:
    extended = _extended(x, kernel, stride, pad, length, 0.0)
    total = F.avg_pool2d(extended, tuple(kernel), tuple(stride), divisor_override=1)
    counts = []
    for axis in (0, 1):
        start = torch.arange(length[axis], device=x.device) * stride[axis]
        stop = (start + kernel[axis]).clamp(max=x.shape[2 + axis] + 2 * pad[axis])
        counts.append((stop - start).to(x.dtype))
    return total[:, :, : length[0], : length[1]] / torch.outer(*counts)


def lrn(step: Step) -> Sequence[Tensor]:
    """Krizhevsky's normalisation over neighbouring channels, or over a window of each."""
    fields = step.fields.part("lrn_param")
    x = step.only_bottom()
    size = fields.integer("local_size", 5)
    alpha, beta = single(fields, "alpha", 1.0), single(fields, "beta", 0.75)
    square = x.square()
    if fields.word("norm_region", "ACROSS_CHANNELS", _REGIONS) == "WITHIN_CHANNEL":
        mean = F.avg_pool2d(square, size, stride=1, padding=size // 2)
        return [x * (1 + alpha * mean) ** -beta]
    beside = F.pad(square, (0, 0, 0, 0, size // 2, size // 2))
    total = beside.unfold(1, size, 1).sum(-1)
    return [x * (single(fields, "k", 1.0) + alpha / size * total) ** -beta]


def mean_variance_normalization(step: Step) -> Sequence[Tensor]:
    """Over each channel, or over all of an image; the eps goes onto the deviation."""
    fields = step.fields.part("mvn_param")
    x = step.only_bottom()
    axes = list(range(1 if fields.flag("across_channels", default=False) else 2, x.dim()))
    top = x - x.mean(axes, keepdim=True)
    if fields.flag("normalize_variance", default=True):
        deviation = top.square().mean(axes, keepdim=True).sqrt()
        top = top / (deviation + single(fields, "eps", 1e-9))
    return [top]


def crop(step: Step) -> Sequence[Tensor]:
    """The first bottom cut to the second's lengths, from `axis` on."""
    fields = step.fields.part("crop_param")
    x, like = step.bottoms
    first = step.axis(fields, 2)
    offsets = fields.integers("offset") or [0]
    if len(offsets) == 1:
        offsets = offsets * (x.dim() - first)
    for axis, offset in enumerate(offsets, first):
        x = x.narrow(axis, offset, like.shape[axis])
    return [x.clone(memory_format=torch.contiguous_format)]


def interpolation(step: Step) -> Sequence[Tensor]:
    """DeepLab's Interp: bilinear, corners aligned, after a crop by negative padding."""
    fields = step.fields.part("interp_param")
    x = step.bottoms[0]
    before, behind = fields.integer("pad_beg", 0), fields.integer("pad_end", 0)
    if before > 0 or behind > 0:
        raise NotRunnableError("padding in front of an interpolation")
    x = x[:, :, -before : x.shape[2] + behind, -before : x.shape[3] + behind]
    lengths = [_interpolated(fields, name, x.shape[a]) for name, a in (("height", 2), ("width", 3))]
    if len(step.bottoms) == 2:
        lengths = list(step.bottoms[1].shape[2:])
    return [F.interpolate(x, lengths, mode="bilinear", align_corners=True)]


def _interpolated(fields: Fields, name: str, length: int) -> int:
    if fields.has("shrink_factor") or fields.has("zoom_factor"):
        length = (length - 1) // fields.integer("shrink_factor", 1) + 1
        return length + (length - 1) * (fields.integer("zoom_factor", 1) - 1)
    if not fields.has(name):
        raise NotRunnableError(f"an interpolation without {name}")
    return fields.integer(name, 0)


def upsample(step: Step) -> Sequence[Tensor]:
    """Nearest neighbour; with a mask as second bottom SegNet's inverse of a maximum pooling."""
    fields = step.fields.part("upsample_param")
    x = step.bottoms[0]
    factor = fields.integer("scale", 1 if len(step.bottoms) == 1 else 2)
    if len(step.bottoms) == 1:
        if x.dim() != 4 or fields.integer("dims_num", 4) != 4:
            raise NotRunnableError("an Upsample of other than images")
        return [x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)]
    height = fields.integer("upsample_h", x.shape[2] * factor)
    width = fields.integer("upsample_w", x.shape[3] * factor)
    top = x.new_zeros(*x.shape[:2], height * width)
    top.scatter_(2, step.bottoms[1].flatten(2).long(), x.flatten(2))
    return [top.reshape(*x.shape[:2], height, width)]


LAYERS: dict[str, Run] = {
    "Pooling": pooling,
    "LRN": lrn,
    "MVN": mean_variance_normalization,
    "Crop": crop,
    "Interp": interpolation,
    "Upsample": upsample,
}
