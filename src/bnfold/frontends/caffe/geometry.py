"""What a layer's options, and its weight, say of axes, windows and cuts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from bnfold.frontends.caffe.caffemodel import MAX_AXES
from bnfold.frontends.caffe.net import Layer, Shape
from bnfold.frontends.caffe.options import Options

CONVOLUTIONS = frozenset(
    {"Convolution", "ConvolutionDepthwise", "DepthwiseConvolution", "ConvolutionDW"}
)
DECONVOLUTIONS = frozenset({"Deconvolution"})


@dataclass(frozen=True, slots=True)
class Window:
    """The kernel of a convolution or pooling, one entry per spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """Reach of the kernel along each axis."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))


def window(options: Options, axes: int) -> Window | None:
    """The kernel that the options spell; None if it does not fit the number of axes."""
    parts = [
        _per_axis(options, name, axes, default)
        for name, default in (("kernel", 0), ("stride", 1), ("pad", 0), ("dilation", 1))
    ]
    if None in parts:
        return None
    kernel, stride, pad, dilation = (part or () for part in parts)
    sane = all(v > 0 for v in (*kernel, *stride, *dilation)) and all(v >= 0 for v in pad)
    return Window(kernel, stride, pad, dilation) if sane else None


def _per_axis(options: Options, name: str, axes: int, default: int) -> tuple[int, ...] | None:
    """`kernel_size`, once for all axes or once for each, or `kernel_h` and `kernel_w`.

    What is a dilation today was a hole in DeepLab's fork.
    """
    if name == "dilation" and options.has("hole", "hole_h", "hole_w"):
        name = "hole"
    if options.has(f"{name}_h", f"{name}_w"):
        if axes != 2:
            return None
        return options.integer(f"{name}_h", default), options.integer(f"{name}_w", default)
    given = options.integers("kernel_size" if name == "kernel" else name)
    if len(given) <= 1:
        return (given[0] if given else default,) * axes
    return tuple(given) if len(given) == axes else None


def canonical(axis: int, rank: int) -> int | None:
    """An axis counted from the front; None if there is no such axis."""
    return axis % rank if -rank <= axis < rank else None


def axes_of(layer: Layer) -> Shape | None:
    """The axes of what a convolution reads, by its weight, (out, in/group, *kernel), and `axis`."""
    axis = layer.options.part("convolution_param").integer("axis", 1)
    if not 0 <= axis < MAX_AXES or not layer.blobs or len(layer.blobs[0].shape) <= 2:
        return None
    return (None,) * (axis + len(layer.blobs[0].shape) - 1)


def elements_of(layer: Layer) -> int | None:
    """How many elements an InnerProduct reads, told by the size of its weight."""
    out = layer.options.part("inner_product_param").integer("num_output", 0)
    if not layer.blobs or out <= 0 or layer.blobs[0].count % out:
        return None
    return layer.blobs[0].count // out or None


def pooled(layer: Layer, kernel: Window, shape: Shape, axis: int) -> int | None:
    """How many windows there are along a spatial axis: rounded up, but none behind the padding."""
    size, stride, pad = shape[2 + axis], kernel.stride[axis], kernel.pad[axis]
    if size is None:
        return None
    room = size + 2 * pad - kernel.kernel[axis]
    if rounds_down(layer):
        return room // stride + 1
    count = -(-room // stride) + 1
    if any(kernel.pad) and (count - 1) * stride >= size + pad:
        count -= 1
    return count


def rounds_down(layer: Layer) -> bool:
    """Forks have an option for the rounding, under two names."""
    options = layer.options.part("pooling_param")
    floor = options.word("round_mode", "CEIL", {0: "CEIL", 1: "FLOOR"}) == "FLOOR"
    return floor or not options.flag("ceil_mode", default=True)


def concat_axis(layer: Layer, part: str, old: str, rank: int) -> int | None:
    """`axis`, or `concat_dim` and `slice_dim` of older files."""
    options = layer.options.part(part)
    if options.has(old) and not options.has("axis"):
        return canonical(options.integer(old, 1), rank)
    return canonical(options.integer("axis", 1), rank)


def slice_cuts(layer: Layer, shape: Shape) -> tuple[int, list[int]] | None:
    """The axis that is cut, and where each part begins, the end included; None if not known."""
    axis = concat_axis(layer, "slice_param", "slice_dim", len(shape))
    size = None if axis is None else shape[axis]
    if axis is None or size is None:
        return None
    points = layer.options.part("slice_param").integers("slice_point")
    count = len(layer.tops)
    if not points and count and size % count == 0:
        points = [size // count * n for n in range(1, count)]
    places = [0, *points, size]
    rising = all(a < b for a, b in pairwise(places))
    return (axis, places) if rising and len(places) == count + 1 else None


def permutation(layer: Layer, rank: int) -> list[int] | None:
    """The order of the axes; those that are not named follow as they are."""
    order = layer.options.part("permute_param").integers("order")
    order += [axis for axis in range(rank) if axis not in order]
    return order if sorted(order) == list(range(rank)) else None
