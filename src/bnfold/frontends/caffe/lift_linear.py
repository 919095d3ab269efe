"""Convolution, Deconvolution and InnerProduct, with the forms of depthwise layers that forks have.

Convolution     weight (out, in/group, *kernel)
Deconvolution   weight (in, out/group, *kernel)
InnerProduct    weight (out, in), transposed (in, out); old files 1 x 1 x out x in

each with a bias (out,) unless bias_term is false; several bottoms use the same weight
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bnfold.core import graph as g
from bnfold.core.forest import IntArray
from bnfold.core.labels import Apply
from bnfold.core.weights import Layout
from bnfold.errors import ModelUnreadableError
from bnfold.frontends.caffe.geometry import (
    DECONVOLUTIONS,
    Window,
    axes_of,
    canonical,
    elements_of,
    window,
)
from bnfold.frontends.caffe.lifter import Lifter, LinearSite, placeholder
from bnfold.frontends.caffe.net import Layer, Shape
from bnfold.frontends.caffe.options import Options

DEPTHWISE = frozenset({"ConvolutionDepthwise", "DepthwiseConvolution", "ConvolutionDW"})
_NEXT_STEP = "use the weights that were trained with this network"


def convolution(lifter: Lifter, layer: Layer) -> bool:
    """Any groups, stride, dilation and number of axes; several bottoms."""
    options = layer.options.part("convolution_param")
    if not _has_weights(lifter, layer, options) or len(layer.tops) != len(layer.bottoms):
        return False
    if any(lifter.shape(number) is None for number in layer.outputs):
        return False
    shape = lifter.source(layer) or axes_of(layer)
    axis = None if shape is None else canonical(options.integer("axis", 1), len(shape))
    if shape is None or axis is None:
        return False
    kernel = window(options, len(shape) - axis - 1)
    if kernel is None:
        return False
    is_transposed = layer.type in DECONVOLUTIONS
    out = options.integer("num_output", 0)
    groups = _groups(layer, options, shape[axis])
    channels = shape[axis] or _channels_of(layer, groups)
    is_strange = groups <= 0 or channels % groups or out % groups
    if is_strange and options.has("group") and layer.type not in DEPTHWISE:
        many = f"a divisor of {channels} input and {out} output channels in the layer {layer.name}"
        raise options.wrong("group", many)
    if out <= 0 or is_strange:
        return False
    wanted = (channels, out // groups) if is_transposed else (out, channels // groups)
    form = (*wanted, *kernel.kernel)  # old files put 1 in front where there are fewer than 4 axes
    _check_shape(lifter, layer, 0, form)
    sources = [lifter.shape(number) for number in layer.inputs]
    if any(s and (len(s) != len(shape) or s[axis] not in (None, channels)) for s in sources):
        return False
    crosses = _misses_taps(kernel) if is_transposed else any(kernel.pad)
    layout = Layout.IN_OUT if is_transposed else Layout.OUT_IN
    is_editable = lifter.sharing.partners(layer) is not None
    site = LinearSite(layer, layout, groups, form, "convolution_param", is_editable)
    centre = g.centre_tap(kernel.kernel, kernel.stride, kernel.dilation, kernel.pad, kernel.pad)
    spelled = g.Linear(channels, out, axis, axis, groups, crosses, centre=centre)
    role = _with_freedom(lifter, site, spelled)
    if role is None:
        return False
    for source, result in zip(layer.inputs, layer.outputs, strict=True):
        lifter.sites[lifter.add(layer, role, [source], [result])] = site
    return True


def _channels_of(layer: Layer, groups: int) -> int:
    """How many input channels a weight is for; 0 if it is none."""
    weight = layer.blobs[0].shape
    if len(weight) < 2:
        return 0
    return weight[0] if layer.type in DECONVOLUTIONS else weight[1] * groups


def inner_product(lifter: Lifter, layer: Layer) -> bool:
    """All axes from `axis` on are one, the channels; the layer flattens them itself."""
    options = layer.options.part("inner_product_param")
    shape = lifter.source(layer)
    if shape is None or len(layer.bottoms) != 1 or len(layer.tops) != 1:
        return False
    axis = canonical(options.integer("axis", 1), len(shape))
    if (
        axis is None
        or lifter.shape(layer.outputs[0]) is None
        or not _has_weights(lifter, layer, options)
    ):
        return False
    out, elements = options.integer("num_output", 0), elements_of(layer)
    if elements is None:
        return False
    is_transposed = options.flag("transpose", default=False)
    _check_shape(lifter, layer, 0, (elements, out) if is_transposed else (out, elements))
    repeat = _elements_per_index(lifter, layer, shape, axis, elements)
    if repeat is None:
        return False
    matrix = (elements, out) if is_transposed else (out, elements)
    layout = Layout.IN_OUT if is_transposed else Layout.OUT_IN
    is_editable = lifter.sharing.partners(layer) is not None
    site = LinearSite(layer, layout, 1, matrix, "inner_product_param", is_editable)
    role = _with_freedom(lifter, site, g.Linear(elements, out, axis, axis, centre=()))
    if role is None:
        return False
    tensor = lifter.tensors[layer.inputs[0]]
    if len(shape) - axis != 1 or placeholder(shape)[axis] != elements:
        key = tensor, axis, repeat
        if key not in lifter.flattened:  # layers that flatten one tensor alike read one tensor
            flat = (*placeholder(shape)[:axis], elements)
            view = g.View(_flatten_from(axis, repeat))
            lifter.flattened[key] = lifter.add_view(layer, view, tensor, flat)
        tensor = lifter.flattened[key]
    result = lifter.shape(layer.outputs[0])
    shapes = [placeholder(result)]
    (made,) = lifter.graph.add(layer.name, role, [tensor], shapes, kind=layer.type)
    lifter.tensors[layer.outputs[0]] = made
    lifter.sites[len(lifter.graph.ops) - 1] = site
    return True


def _flatten_from(axis: int, repeat: int) -> Apply:
    """All axes from `axis` on as one; each label stands for `repeat` elements of unknown axes."""

    def apply(labels: Sequence[IntArray]) -> Sequence[IntArray]:
        (array,) = labels
        array = array[
            tuple(slice(0, 1) if array.strides[n] == 0 else slice(None) for n in range(axis))
        ]
        flat = array.reshape((*array.shape[:axis], -1))
        return [np.repeat(flat, repeat, axis=axis)]

    return apply


def _elements_per_index(
    lifter: Lifter, layer: Layer, shape: Shape, axis: int, elements: int
) -> int | None:
    """How many elements stand behind one index of the known axes; 1 if all sizes are known.

    Sizes that are not known have to be the last ones, so that their elements lie side by side.
    """
    sizes = shape[axis:]
    known = [size for size in sizes if size is not None]
    count = math.prod(known)
    if len(known) == len(sizes):
        if count != elements:
            raise ModelUnreadableError(
                lifter.net.weights.name,
                f"the layer {layer.name} reads {count} elements, and its weight is for {elements}",
                _NEXT_STEP,
            )
        return 1
    if None in sizes[: len(known)] or elements % count:
        return None
    return elements // count


def _has_weights(lifter: Lifter, layer: Layer, options: Options) -> bool:
    """Whether the file has as many arrays for the layer as Caffe wants, as numbers."""
    if layer.stored is None:
        lifter.net.notes.append(f"{layer.name} has no weights in the file: taken as unknown")
        return False
    wanted = 2 if options.flag("bias_term", default=True) else 1
    if len(layer.blobs) != wanted:
        raise wrong_count(lifter.net.weights.name, layer, wanted)
    out = options.integer("num_output", 0)
    if wanted == 2:
        _check_shape(lifter, layer, 1, (out,))
    return True


def _check_shape(lifter: Lifter, layer: Layer, index: int, wanted: tuple[int, ...]) -> None:
    """Caffe refuses other shapes (Blob::ShapeEquals); old files put 1 in front."""
    check_shape(lifter.net.weights.name, layer, index, wanted)


def wrong_count(file: str, layer: Layer, wanted: int) -> ModelUnreadableError:
    """The error for a layer with more or fewer arrays than Caffe wants."""
    return ModelUnreadableError(
        file,
        f"the layer {layer.name} has {len(layer.blobs)} arrays, and the network wants {wanted}",
        _NEXT_STEP,
    )


def check_shape(file: str, layer: Layer, index: int, wanted: tuple[int, ...]) -> None:
    """Raise ModelUnreadableError unless the layer's array has this shape."""
    blob = layer.blobs[index]
    blob.check()
    given = blob.shape
    if blob.is_legacy and len(wanted) <= 4:
        wanted_here: tuple[int, ...] = (1,) * (4 - len(wanted)) + wanted
    else:
        wanted_here = wanted
    if given != wanted_here:
        actual = " x ".join(map(str, given)) or "()"
        right = " x ".join(map(str, wanted)) or "()"
        raise ModelUnreadableError(
            file, f"array {index} of the layer {layer.name} is {actual}, not {right}", _NEXT_STEP
        )


def _groups(layer: Layer, options: Options, channels: int | None) -> int:
    """`group`; a fork's depthwise layer may leave it out, and its weight tells."""
    if options.has("group") or layer.type not in DEPTHWISE:
        return options.integer("group", 1)
    weight = layer.blobs[0].shape
    if len(weight) < 2 or weight[1] != 1:
        return 1
    return weight[0] if channels is None else channels


def _misses_taps(kernel: Window) -> bool:
    """Whether some outputs of a transposed convolution see fewer taps than others."""
    return (
        any(k != 1 for k in kernel.kernel) or any(s != 1 for s in kernel.stride) or any(kernel.pad)
    )


def _with_freedom(lifter: Lifter, site: LinearSite, role: g.Linear) -> g.Linear | None:
    """The op, with what may be edited of it; None if its numbers are not known."""
    layer = site.layer
    if not site.is_editable and lifter.sharing.differs(layer):
        return None
    bias = None
    if not site.is_editable and site.bias is not None:
        bias = site.bias.read().reshape(-1).astype(np.float64)
    partners = lifter.sharing.partners(layer) or [layer]
    is_tied = site.is_editable and (len(layer.bottoms) > 1 or len(partners) > 1)
    return replace(
        role,
        weight=g.Weight.FREE if site.is_editable else g.Weight.FIXED,
        bias_editable=site.is_editable,
        bias=bias,
        tie=id(partners[0]) if is_tied else None,
    )
