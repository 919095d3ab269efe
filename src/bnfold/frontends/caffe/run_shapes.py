"""Caffe's layers that move values and never change them, and SSD's prior boxes.

What Caffe copies is copied here, and what shares its bottom's memory there shares it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor

from bnfold.frontends.caffe.run_step import Fields, NotRunnableError, Run, Step, single, singles


def concat(step: Step) -> Sequence[Tensor]:
    """Side by side along `axis`; concat_dim is its old name."""
    fields = step.fields.part("concat_param")
    name = "concat_dim" if fields.has("concat_dim") else "axis"
    axis = step.axis(fields, 1, name=name)
    return [torch.cat(list(step.bottoms), axis)] if len(step.bottoms) > 1 else step.bottoms


def slices(step: Step) -> Sequence[Tensor]:
    """Cut at slice_point, or into equal parts; slice_dim is the old name of `axis`."""
    fields = step.fields.part("slice_param")
    x = step.only_bottom()
    axis = step.axis(fields, 1, name="slice_dim" if fields.has("slice_dim") else "axis")
    points = fields.integers("slice_point")
    if not points and x.shape[axis] % step.tops == 0:
        points = [x.shape[axis] // step.tops * number for number in range(1, step.tops)]
    edges = [0, *points, x.shape[axis]]
    lengths = [stop - start for start, stop in pairwise(edges)]
    if len(lengths) != step.tops or min(lengths) <= 0:
        raise NotRunnableError(f"slice points {points} for {step.tops} tops")
    parts = torch.split(x, lengths, axis)
    return [part.clone() for part in parts] if len(parts) > 1 else [x]


def split(step: Step) -> Sequence[Tensor]:
    """The bottom under several names."""
    return [step.only_bottom()] * step.tops


def flatten(step: Step) -> Sequence[Tensor]:
    """The axes from `axis` to `end_axis` become one."""
    fields = step.fields.part("flatten_param")
    x = step.only_bottom()
    last = step.axis(fields, -1, name="end_axis")
    return [x.flatten(step.axis(fields, 1), last)]


def reshape(step: Step) -> Sequence[Tensor]:
    """`dim: 0` copies the bottom's length, `dim: -1` takes what is left."""
    fields = step.fields.part("reshape_param")
    x = step.only_bottom()
    dims = fields.part("shape").integers("dim")
    start = fields.integer("axis", 0)
    start = start if start >= 0 else x.dim() + start + 1
    axes = fields.integer("num_axes", -1)
    stop = x.dim() if axes == -1 else start + axes
    if any(dim == 0 and start + place >= x.dim() for place, dim in enumerate(dims)):
        raise NotRunnableError("dim: 0 where the bottom has no axis")
    middle = [x.shape[start + place] if dim == 0 else dim for place, dim in enumerate(dims)]
    return [x.view(*x.shape[:start], *middle, *x.shape[stop:])]


def permute(step: Step) -> Sequence[Tensor]:
    """SSD's: the axes in the given order, the rest behind them."""
    x = step.only_bottom()
    order = step.fields.part("permute_param").integers("order")
    order += [axis for axis in range(x.dim()) if axis not in order]
    return [x.permute(order).contiguous()]


def tile(step: Step) -> Sequence[Tensor]:
    """Copies one behind the other along `axis`."""
    fields = step.fields.part("tile_param")
    x = step.only_bottom()
    axis = step.axis(fields, 1)
    return [torch.cat([x] * fields.integer("tiles", 1), axis)]


def shuffle_channel(step: Step) -> Sequence[Tensor]:
    """ShuffleNet's: channel (g, i) of `group` groups moves to (i, g)."""
    x = step.only_bottom()
    group = step.fields.part("shuffle_channel_param").integer("group", 1)
    return [torch.unflatten(x, 1, (group, -1)).transpose(1, 2).flatten(1, 2).clone()]


def prior_box(step: Step) -> Sequence[Tensor]:
    """SSD's boxes and their variances, (1, 2, 4 * H * W * boxes): only shapes matter."""
    fields = step.fields.part("prior_box_param")
    x, image = step.bottoms
    height, width = x.shape[2:4]
    tall, wide = _image_size(fields, image)
    side = single(fields, "step", 0.0)
    step_h = single(fields, "step_h", side) or tall / height
    step_w = single(fields, "step_w", side) or wide / width
    offset = single(fields, "offset", 0.5)
    sizes = torch.tensor(_box_sizes(fields), dtype=x.dtype)  # (boxes, 2): width, height
    y, middle_x = torch.meshgrid(
        (torch.arange(height, dtype=x.dtype) + offset) * step_h,
        (torch.arange(width, dtype=x.dtype) + offset) * step_w,
        indexing="ij",
    )
    middle = torch.stack([middle_x, y], -1)[:, :, None]  # (H, W, 1, 2)
    frame = torch.tensor([wide, tall], dtype=x.dtype)
    boxes = torch.cat([(middle - sizes / 2) / frame, (middle + sizes / 2) / frame], -1)
    if fields.flag("clip", default=False):
        boxes = boxes.clamp(0.0, 1.0)
    variances = torch.tensor(singles(fields, "variance") or [0.1], dtype=x.dtype).expand_as(boxes)
    return [torch.stack([boxes.flatten(), variances.flatten()])[None]]


def _image_size(fields: Fields, image: Tensor) -> tuple[int, int]:
    size = fields.integer("img_size", 0)
    tall, wide = fields.integer("img_h", size), fields.integer("img_w", size)
    return (tall, wide) if tall and wide else (image.shape[2], image.shape[3])


def _box_sizes(fields: Fields) -> list[tuple[float, float]]:
    """Width and height of the boxes at one place, in Caffe's order."""
    ratios = [1.0]
    for ratio in singles(fields, "aspect_ratio"):
        if all(abs(ratio - other) >= 1e-6 for other in ratios):
            ratios += [ratio, 1 / ratio] if fields.flag("flip", default=True) else [ratio]
    largest = singles(fields, "max_size")
    sizes: list[tuple[float, float]] = []
    for place, least in enumerate(singles(fields, "min_size")):
        sides = [least]
        if largest:
            sides.append(sqrt(int(least) * int(largest[place])))
        sizes += [(side, side) for side in sides]
        sizes += [(least * sqrt(r), least / sqrt(r)) for r in ratios[1:]]
    return sizes


def silence(step: Step) -> Sequence[Tensor]:
    """Reads, and makes nothing."""
    return []


LAYERS: dict[str, Run] = {
    "Concat": concat,
    "Slice": slices,
    "Split": split,
    "Flatten": flatten,
    "Reshape": reshape,
    "Permute": permute,
    "Tile": tile,
    "ShuffleChannel": shuffle_channel,
    "PriorBox": prior_box,
    "Silence": silence,
}
