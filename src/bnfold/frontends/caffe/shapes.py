"""The shape of every value, as far as text and weights say, by the rules of each layer's Reshape.

A size is None where it is not known (a data layer without a crop size), and a shape is None where
not even the number of axes is. Nothing is guessed, with one exception that Caffe itself enforces:
an InnerProduct's weight says how many elements reach it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from bnfold.frontends.caffe.geometry import (
    CONVOLUTIONS,
    DECONVOLUTIONS,
    axes_of,
    canonical,
    concat_axis,
    elements_of,
    permutation,
    pooled,
    slice_cuts,
    window,
)
from bnfold.frontends.caffe.known_fields import unknown_fields
from bnfold.frontends.caffe.net import Layer, Net, Shape
from bnfold.frontends.caffe.options import Options

Shapes = list[Shape | None]
_MAX_COUNT = 2**31 - 1

SAME = frozenset(
    {"AbsVal", "BN", "BNLL", "BatchNorm", "Bias", "Clip", "Dropout", "ELU", "Exp", "HardSwish"}
    | {"HSwish", "LRN", "Log", "MVN", "Mish", "Normalize", "PReLU", "Power", "ReLU", "ReLU6"}
    | {"Scale", "SeLu", "SeLuDropout", "ShuffleChannel", "Sigmoid", "Silence", "Softmax", "Split"}
    | {"Swish", "TanH", "Threshold"}
)
"""Types whose tops have the shape of their first bottom."""


def infer(net: Net) -> None:
    """Fill in `Value.shape`."""
    hints: dict[int, Shape] = {}
    for _ in range(2):
        for number, layer in _inputs(net):
            net.values[number].shape = _input_shape(net, number, layer)
        for layer in net.layers:
            _infer_layer(net, layer, hints)
        if not _learn(net, hints):
            return


def product(sizes: Sequence[int | None]) -> int | None:
    """How many elements; None if a size is not known."""
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def _infer_layer(net: Net, layer: Layer, hints: dict[int, Shape]) -> None:
    if not layer.bottoms:  # its tops are inputs
        return
    inputs = [net.values[number].shape for number in layer.inputs]
    if layer.type in SAME:
        shapes: Shapes = [_with_channels(layer, inputs[0])] * len(layer.tops)
    elif layer.type in _SHAPES_OF_TOPS:
        shapes = _SHAPES_OF_TOPS[layer.type](layer, inputs)
    else:
        shapes = []
    shapes = [*shapes, *[None] * len(layer.tops)][: len(layer.tops)]
    for number, shape in zip(layer.outputs, shapes, strict=True):
        hint = hints.get(number)
        if shape is not None and hint is not None and len(hint) == len(shape):
            shape = tuple(b if a is None else a for a, b in zip(shape, hint, strict=True))
        net.values[number].shape = shape if shape is not None and _is_sane(shape) else None


def _with_channels(layer: Layer, shape: Shape | None) -> Shape | None:
    """A layer with an array per channel says how many channels there are."""
    if shape is None or len(shape) < 2 or shape[1] is not None or not layer.blobs:
        return shape
    if layer.type in ("BatchNorm", "BN"):
        return (shape[0], layer.blobs[0].count, *shape[2:])
    axis = layer.options.part("scale_param").integer("axis", 1)
    if layer.type == "Scale" and axis == 1 and len(layer.blobs[0].shape) == 1:
        return (shape[0], layer.blobs[0].count, *shape[2:])
    return shape


def _inputs(net: Net) -> list[tuple[int, Layer | None]]:
    made: list[tuple[int, Layer | None]] = [(number, None) for number in net.inputs]
    for layer in net.layers:
        if not layer.bottoms:
            made += [(number, layer) for number in layer.outputs]
    return made


def _input_shape(net: Net, number: int, layer: Layer | None) -> Shape | None:
    if layer is None:
        return _declared(net, number)
    position = layer.outputs.index(number)
    if layer.type in ("Input", "DummyData"):
        name = "input_param" if layer.type == "Input" else "dummy_data_param"
        options = layer.options.part(name)
        shapes = [tuple(shape.integers("dim")) for shape in options.parts("shape")]
        if not shapes and options.has("num"):
            four = [options.integers(field) for field in ("num", "channels", "height", "width")]
            if all(four):
                shapes = [tuple(part[min(position, len(part) - 1)] for part in four)]
        if len(shapes) == 1:  # one for all
            return _valid(shapes[0])
        return _valid(shapes[position]) if position < len(shapes) else None
    if layer.type == "MemoryData" and position == 0:
        options = layer.options.part("memory_data_param")
        return _valid(
            tuple(options.integer(n, 0) for n in ("batch_size", "channels", "height", "width"))
        )
    if layer.type in ("Data", "ImageData", "WindowData", "AnnotatedData") and position == 0:
        crop = layer.options.part("transform_param").integer("crop_size", 0) or None
        return (None, None, crop, crop)
    return None


def _valid(shape: Shape) -> Shape | None:
    """A shape that a blob can have."""
    return shape if shape and None not in shape and _is_sane(shape) else None


def _is_sane(shape: Shape) -> bool:
    """Caffe counts elements in 32 bits (Blob::Reshape), and there are some."""
    known = [size for size in shape if size is not None]
    return all(size > 0 for size in known) and math.prod(known) <= _MAX_COUNT


def _declared(net: Net, number: int) -> Shape | None:
    """The shape of an input of the network: input_shape, or four of input_dim."""
    whole = Options(net.document, net.document.root)
    names = whole.texts("input")
    position = net.inputs.index(number)
    if position >= len(names):
        return None
    shapes = [tuple(shape.integers("dim")) for shape in whole.parts("input_shape")]
    dims = whole.integers("input_dim")
    if not shapes:
        shapes = [tuple(dims[start : start + 4]) for start in range(0, len(dims), 4)]
    return _valid(shapes[position]) if position < len(shapes) else None


# ------------------------------------------------------------------- each layer's tops


def _convolution(layer: Layer, inputs: Shapes) -> Shapes:
    return [_convolved(layer, shape) for shape in inputs]


def _convolved(layer: Layer, shape: Shape | None) -> Shape | None:
    options = layer.options.part("convolution_param")
    if shape is None:
        shape = axes_of(layer)
    axis = None if shape is None else canonical(options.integer("axis", 1), len(shape))
    if shape is None or axis is None:
        return None
    sizes = shape[axis + 1 :]
    kernel = None if unknown_fields(layer.options) else window(options, len(sizes))
    out: int | None = options.integer("num_output", 0) or None
    if kernel is None:
        return (*shape[:axis], out, *[None] * len(sizes))
    moved: list[int | None] = []
    for size, extent, stride, pad in zip(
        sizes, kernel.extent, kernel.stride, kernel.pad, strict=True
    ):
        if size is None:
            moved.append(None)
        elif layer.type in DECONVOLUTIONS:
            moved.append(stride * (size - 1) + extent - 2 * pad)
        else:
            moved.append((size + 2 * pad - extent) // stride + 1)
    return (*shape[:axis], out, *moved)


def _pooling(layer: Layer, inputs: Shapes) -> Shapes:
    (shape, *_) = inputs
    options = layer.options.part("pooling_param")
    if shape is None or len(shape) != 4:
        return []
    if options.flag("global_pooling", default=False):
        return [(shape[0], shape[1], 1, 1)] * len(layer.tops)
    kernel = None if unknown_fields(layer.options) else window(options, 2)
    sizes = [None, None] if kernel is None else [pooled(layer, kernel, shape, n) for n in (0, 1)]
    return [(shape[0], shape[1], *sizes)] * len(layer.tops)


def _inner_product(layer: Layer, inputs: Shapes) -> Shapes:
    options = layer.options.part("inner_product_param")
    (shape, *_) = inputs
    out: int | None = options.integer("num_output", 0) or None
    axis = None if shape is None else canonical(options.integer("axis", 1), len(shape))
    if shape is None or axis is None:
        return [(None, out)] if options.integer("axis", 1) == 1 else []
    return [(*shape[:axis], out)]


def _eltwise(layer: Layer, inputs: Shapes) -> Shapes:
    known = [shape for shape in inputs if shape is not None]
    if not known or len({len(shape) for shape in known}) > 1:
        return []
    return [tuple(_first(sizes) for sizes in zip(*known, strict=True))]


def _first(sizes: Sequence[int | None]) -> int | None:
    return next((size for size in sizes if size is not None), None)


def _concat(layer: Layer, inputs: Shapes) -> Shapes:
    known = [shape for shape in inputs if shape is not None]
    if len(known) < len(inputs) or len({len(shape) for shape in known}) > 1:
        return []
    axis = concat_axis(layer, "concat_param", "concat_dim", len(known[0]))
    if axis is None:
        return []
    sizes = [_first(column) for column in zip(*known, strict=True)]
    lengths = [shape[axis] for shape in known]
    total = [length for length in lengths if length is not None]
    sizes[axis] = sum(total) if len(total) == len(lengths) else None
    return [tuple(sizes)]


def _slice(layer: Layer, inputs: Shapes) -> Shapes:
    (shape, *_) = inputs
    cuts = None if shape is None else slice_cuts(layer, shape)
    if shape is None or cuts is None:
        return []
    axis, places = cuts
    return [(*shape[:axis], stop - start, *shape[axis + 1 :]) for start, stop in pairwise(places)]


def _flatten(layer: Layer, inputs: Shapes) -> Shapes:
    options = layer.options.part("flatten_param")
    (shape, *_) = inputs
    if shape is None:
        return []
    start = canonical(options.integer("axis", 1), len(shape))
    end = canonical(options.integer("end_axis", -1), len(shape))
    if start is None or end is None or end < start:
        return []
    return [(*shape[:start], product(shape[start : end + 1]), *shape[end + 1 :])]


def _reshape(layer: Layer, inputs: Shapes) -> Shapes:
    options = layer.options.part("reshape_param")
    (shape, *_) = inputs
    if shape is None:
        return []
    rank = len(shape)
    start = options.integer("axis", 0)
    start = start if start >= 0 else rank + start + 1
    count = options.integer("num_axes", -1)
    end = rank if count == -1 else start + count
    if not 0 <= start <= end <= rank:
        return []
    dims = options.part("shape").integers("dim")
    sizes: list[int | None] = []
    for position, dim in enumerate(dims):
        if dim == 0 and start + position < rank:
            sizes.append(shape[start + position])
        else:
            sizes.append(dim if dim > 0 else None)
    open_axes = [position for position, dim in enumerate(dims) if dim == -1]
    if len(open_axes) == 1:
        sizes[open_axes[0]] = _remaining(shape[start:end], dims, sizes)
    return [(*shape[:start], *sizes, *shape[end:])]


def _remaining(old: Shape, dims: list[int], new: list[int | None]) -> int | None:
    """The size for -1: sizes that are copied cancel, even where they are not known."""
    copied = {position for position, dim in enumerate(dims) if dim == 0}
    have = product([size for n, size in enumerate(old) if n not in copied])
    rest = product([size for n, size in enumerate(new) if n not in copied and dims[n] != -1])
    if have is None or not rest or have % rest:
        return None
    return have // rest


def _permute(layer: Layer, inputs: Shapes) -> Shapes:
    (shape, *_) = inputs
    order = None if shape is None else permutation(layer, len(shape))
    return [] if shape is None or order is None else [tuple(shape[axis] for axis in order)]


def _crop(layer: Layer, inputs: Shapes) -> Shapes:
    if len(inputs) != 2 or inputs[0] is None or inputs[1] is None:
        return []
    axis = canonical(layer.options.part("crop_param").integer("axis", 2), len(inputs[0]))
    if axis is None or len(inputs[0]) != len(inputs[1]):
        return []
    return [(*inputs[0][:axis], *inputs[1][axis:])]


def _resized(layer: Layer, inputs: Shapes) -> Shapes:
    """Interp and Upsample: the channels stay; the sizes follow rules that differ between forks."""
    (shape, *_) = inputs
    return [] if shape is None or len(shape) != 4 else [(shape[0], shape[1], None, None)]


def _axpy(layer: Layer, inputs: Shapes) -> Shapes:
    return inputs[1:2]


_SHAPES_OF_TOPS: dict[str, Callable[[Layer, Shapes], Shapes]] = {
    **dict.fromkeys(CONVOLUTIONS | DECONVOLUTIONS, _convolution),
    "Axpy": _axpy,
    "Concat": _concat,
    "Crop": _crop,
    "Eltwise": _eltwise,
    "Flatten": _flatten,
    "InnerProduct": _inner_product,
    "Interp": _resized,
    "Permute": _permute,
    "Pooling": _pooling,
    "Reshape": _reshape,
    "Slice": _slice,
    "Upsample": _resized,
}


def _learn(net: Net, hints: dict[int, Shape]) -> bool:
    """How many elements reach an InnerProduct, told by its weight, for what it reads."""
    before = len(hints)
    for layer in reversed(net.layers):
        if not layer.inputs:
            continue
        source = layer.inputs[0]
        shape = net.values[source].shape
        if layer.type in SAME and layer.outputs and layer.outputs[0] in hints:
            hints.setdefault(source, hints[layer.outputs[0]])
        elif layer.type == "InnerProduct" and shape is not None and len(shape) == 2:
            elements = elements_of(layer)
            if shape[1] is None and elements is not None:
                hints.setdefault(source, (None, elements))
    return len(hints) > before
