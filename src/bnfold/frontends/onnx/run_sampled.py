"""ONNX operators that read an image between its pixels, by PyTorch: see `run_ops`.

Sources: https://onnx.ai/onnx/operators/onnx__GridSample.html and onnx__DeformConv.html
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.run_operands import NotHereError, Operand, given, optional
from bnfold.frontends.onnx.run_windows import placed

_MODES = {"linear": "bilinear", "cubic": "bicubic"}
"""As operators from opset 20 on call them, and as PyTorch does."""


def grid_sample(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """The grid says where, from -1 to 1 along each axis."""
    data, grid = given(x[0]), given(x[1])
    mode = node.text("mode", "linear")
    mode = _MODES.get(mode, mode)
    if data.ndim > 4 and mode == "bicubic":
        raise NotHereError
    corners = bool(node.integer("align_corners"))
    return functional.grid_sample(
        data, grid.to(data.dtype), mode, node.text("padding_mode", "zeros"), corners
    )


def deform_conv(node: Node, x: Sequence[Operand], opset: int) -> Tensor:
    """Each tap reads where an offset moves it, times a mask; what lies outside is 0."""
    data, weight, offset = given(x[0]), given(x[1]), given(x[2])
    bias, mask = optional(x, 3), optional(x, 4)
    if data.ndim != 4:
        raise NotHereError
    parts, groups = node.integer("offset_group", 1), node.integer("group", 1)
    (n, channels, *space), (out, _, *kernel) = data.shape, weight.shape
    size, taps = offset.shape[2:], kernel[0] * kernel[1]
    strides, dilations, before, _ = placed(node, space, kernel)
    moved = offset.reshape(n, parts, *kernel, 2, *size)
    places = []
    for axis in range(2):
        shape = [1, 1, 1, 1]  # tap along each axis, then output along each axis
        shape[axis] = -1
        tap = torch.arange(kernel[axis]).reshape(shape) * dilations[axis]
        shape = [1, 1, 1, 1]
        shape[2 + axis] = -1
        start = torch.arange(size[axis]).reshape(shape) * strides[axis] - before[axis]
        pixel = moved[:, :, :, :, axis] + tap + start
        places.append((2 * pixel + 1) / space[axis] - 1)
    grid = torch.stack(places[::-1], -1).reshape(n * parts, taps * size[0], size[1], 2)
    images = data.reshape(n * parts, channels // parts, *space)
    seen = functional.grid_sample(images, grid, "bilinear", "zeros", align_corners=False)
    seen = seen.reshape(n, parts, channels // parts, taps, *size)
    if mask is not None:
        seen = seen * mask.reshape(n, parts, 1, taps, *size)
    rows = weight.reshape(groups, out // groups, -1)
    y = (rows @ seen.reshape(n, groups, -1, size[0] * size[1])).reshape(n, out, *size)
    return y if bias is None else y + bias.reshape(1, -1, 1, 1)
