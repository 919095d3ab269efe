"""What becomes of the carrier of a merge: its arrays, and the numbers in its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.core.affine import FloatArray
from bnfold.core.kernel import Kernel
from bnfold.core.merged import Merge
from bnfold.frontends.caffe.geometry import DECONVOLUTIONS
from bnfold.frontends.caffe.lift_linear import DEPTHWISE
from bnfold.frontends.caffe.lifter import Site
from bnfold.frontends.caffe.merge_parts import turned, window_of
from bnfold.frontends.caffe.net import Layer, Shape


class NotWritable(Exception):  # noqa: N818  # control flow, not an error
    """A merge cannot be written."""


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """A merge, as what becomes of its carrier."""

    merge: Merge
    carrier: Layer
    part: str
    """The message with its options."""
    source: int
    """The value that it reads."""
    output: int
    """The value that it makes; one that was not there before has a number behind all others."""
    enters: tuple[Layer, int] | None
    """The sum, and the place among its bottoms, that what was not there before goes into."""
    stands_for: int
    """The value that was there."""
    shape: Shape | None
    """Of the output."""
    arrays: Sequence[NDArray[Any]]
    outs: int
    """Channels of the output."""

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is made of one of its own."""
        return self.outs == self.merge.groups and self.arrays[0].shape[1] == 1


def arrays_of(merge: Merge, site: Site) -> tuple[list[NDArray[Any]], int]:
    """The carrier's new arrays, and how many channels it makes. Raises NotWritable."""
    layer = site.layer
    kernel = merge.kernel()
    weight = _scale(kernel, layer) if merge.is_affine else _matrix(kernel, layer, merge.groups)
    arrays = [weight]
    if len(layer.blobs) > 1 or kernel.bias.any():
        like = weight.shape if merge.is_affine else kernel.bias.shape
        arrays.append(kernel.bias.reshape(like))
    with np.errstate(over="ignore"):
        stored = [array.astype(layer.blobs[0].dtype) for array in arrays]
    if not all(np.isfinite(array).all() for array in stored):
        raise NotWritable
    return stored, len(kernel.bias)


def _scale(kernel: Kernel, layer: Layer) -> FloatArray:
    factors = kernel.weight.reshape(-1)
    if factors.size != layer.blobs[0].count:
        raise NotWritable
    return factors.reshape(layer.blobs[0].shape)


def _matrix(kernel: Kernel, layer: Layer, groups: int) -> FloatArray:
    """The weight in the layer's own order of axes."""
    weight = kernel.in_groups(groups)
    is_turned = layer.type in DECONVOLUTIONS or (
        layer.type == "InnerProduct"
        and layer.options.part("inner_product_param").flag("transpose", default=False)
    )
    return turned(weight, groups) if is_turned else weight


def options_of(order: Order) -> dict[str, tuple[list[int], list[int]]]:
    """The numbers that a carrier's text gives, as they are and as they have to be."""
    layer, merge = order.carrier, order.merge
    options = layer.options.part(order.part)
    if merge.is_affine:
        return {}
    numbers = {"num_output": ([options.integer("num_output", 0)], [order.outs])}
    if order.part != "convolution_param":
        return numbers
    old, new = window_of(layer, options, order.arrays[0].ndim - 2), merge.window
    assert old is not None and new is not None
    is_said = options.has("group") or layer.type not in DEPTHWISE
    group = merge.groups if order.is_depthwise and not is_said else options.integer("group", 1)
    return numbers | {
        "kernel_size": ([*old.kernel], [*new.kernel]),
        "stride": ([*old.stride], [*new.stride]),
        "pad": ([*old.before], [*new.before]),
        "dilation": ([*old.dilation], [*new.dilation]),
        "group": ([group], [merge.groups]),
    }
