"""Layers that scale and shift by constants: BatchNorm, Scale, Bias, Power, and BN of two forks.

    BatchNorm   y = gamma * (x - mean) / sqrt(var + eps) + beta     see `statistics`
    Scale       y = gamma * x + beta      over the axes that the array covers
    Bias        y = x + beta              the same
    Power       y = shift + scale * x     if its power is 1
    BN          y = gamma * x + beta                                SegNet, bn_mode: INFERENCE
                y = gamma * (x - mean) / sqrt(var + eps) + beta     with slope_filler

A layer is what its fields and arrays say. Where they fit none of these, it stays.
"""

from __future__ import annotations

import numpy as np

from bnfold.core import graph as g
from bnfold.core.affine import Affine
from bnfold.core.limits import growth_limit, range_limit
from bnfold.core.reasons import Reason
from bnfold.frontends.caffe.geometry import canonical
from bnfold.frontends.caffe.known_fields import unknown_fields
from bnfold.frontends.caffe.lift_linear import check_shape, wrong_count
from bnfold.frontends.caffe.lifter import MAX_ELEMENTS, AffineSite, Lifter, placeholder
from bnfold.frontends.caffe.net import Layer, Shape
from bnfold.frontends.caffe.options import Options
from bnfold.frontends.caffe.statistics import numbers, read_batch_norm

_CUDNN_MIN_EPS = 1e-5


def batch_norm(lifter: Lifter, layer: Layer) -> bool:
    """BatchNorm; kept with a reason if it is not constant, or not of a known kind."""
    options = layer.options.part("batch_norm_param")
    shape = lifter.source(layer)
    channels = _channels(layer, shape)
    if shape is None or len(shape) < 2 or channels is None or channels > MAX_ELEMENTS:
        return _keep(
            lifter, layer, shape, g.Refusal(Reason.MODULE_DOES_MORE, "its shape is not known")
        )
    refusal = _batch_norm_refusal(layer, options)
    if refusal is not None:
        return _keep(lifter, layer, shape, refusal)
    maps = read_batch_norm(lifter, layer, options, channels)
    if isinstance(maps, str):
        return _keep(lifter, layer, shape, g.Refusal(Reason.MODULE_DOES_MORE, maps))
    affine, of_normalised = maps
    laid = (1, channels, *[1] * (len(shape) - 2))
    return _add(lifter, layer, affine, laid, AffineSite(layer), of_normalised)


def _channels(layer: Layer, shape: Shape | None) -> int | None:
    """Axis 1, as the shape says or else the first array."""
    if shape is not None and len(shape) > 1 and shape[1] is not None:
        return shape[1]
    return layer.blobs[0].count if layer.blobs else None


def _batch_norm_refusal(layer: Layer, options: Options) -> g.Refusal | None:
    if not options.flag("use_global_stats", default=layer.phase == "TEST"):
        said = "use_global_stats: false" if options.has("use_global_stats") else "phase: TRAIN"
        return g.Refusal(Reason.BATCH_STATISTICS, said)
    if len(layer.bottoms) != 1 or len(layer.tops) != 1:
        return g.Refusal(Reason.MODULE_DOES_MORE, "it has several bottoms or tops")
    if fields := unknown_fields(layer.options):
        return g.Refusal(Reason.MODULE_DOES_MORE, f"bnfold does not know {', '.join(fields)}")
    return None


def scale(lifter: Lifter, layer: Layer) -> bool:
    """Scale with one bottom; with two it is a gate, see `lift_views`."""
    options = layer.options.part("scale_param")
    shape = lifter.source(layer)
    has_bias = options.flag("bias_term", default=False)
    if shape is None or len(layer.bottoms) != 1 or len(layer.tops) != 1:
        return False
    if layer.stored is None:
        lifter.net.notes.append(f"{layer.name} has no weights in the file: taken as unknown")
        return False
    if len(layer.blobs) != 1 + has_bias:
        raise wrong_count(lifter.net.weights.name, layer, 1 + has_bias)
    laid = _laid_out(lifter, layer, options, shape)
    if laid is None:
        return False
    gamma = numbers(layer.blobs[0])
    beta = numbers(layer.blobs[1]) if has_bias else np.zeros(len(gamma))
    site = AffineSite(layer, 0, 1) if lifter.sharing.is_alone(layer) else AffineSite(layer)
    return _add(lifter, layer, Affine(gamma, beta), laid, site)


def bias(lifter: Lifter, layer: Layer) -> bool:
    """Bias with one bottom."""
    options = layer.options.part("bias_param")
    shape = lifter.source(layer)
    if shape is None or len(layer.bottoms) != 1 or len(layer.tops) != 1 or layer.stored is None:
        return False
    if len(layer.blobs) != 1:
        raise wrong_count(lifter.net.weights.name, layer, 1)
    laid = _laid_out(lifter, layer, options, shape)
    if laid is None:
        return False
    beta = numbers(layer.blobs[0])
    is_alone = lifter.sharing.is_alone(layer)
    site = AffineSite(layer, None, 0 if is_alone else None)
    return _add(lifter, layer, Affine(np.ones(len(beta)), beta), laid, site)


def power(lifter: Lifter, layer: Layer) -> bool:
    """Power 1 is an affine map with one constant for all channels."""
    options = layer.options.part("power_param")
    shape = lifter.source(layer)
    is_affine = options.number("power", 1.0) == 1.0
    if shape is None or not is_affine or len(layer.bottoms) != 1 or len(layer.tops) != 1:
        return False
    numbers = [np.float32(options.number("scale", 1.0)), np.float32(options.number("shift", 0.0))]
    affine = Affine(*(np.full(1, number, dtype=np.float64) for number in numbers))
    return _add(lifter, layer, affine, (1,) * len(shape), AffineSite(layer))


def fork_bn(lifter: Lifter, layer: Layer) -> bool:
    """BN of SegNet and ENet in mode INFERENCE, and BN with slope_filler; other kinds stay."""
    options = layer.options.part("bn_param")
    shape = lifter.source(layer)
    channels = _channels(layer, shape)
    strange = g.Refusal(Reason.MODULE_DOES_MORE, "a BN layer of a kind that bnfold does not know")
    if shape is None or len(shape) != 4 or channels is None or not layer.blobs:
        return _keep(lifter, layer, shape, strange)
    if len(layer.bottoms) != 1 or len(layer.tops) != 1:
        return _keep(lifter, layer, shape, strange)
    names = {field.name for field in options.message.fields}
    count = len(layer.blobs)
    if any(blob.count != channels for blob in layer.blobs):
        return _keep(lifter, layer, shape, strange)
    laid = (1, channels, 1, 1)
    is_inference = options.word("bn_mode", "LEARN", {0: "LEARN", 1: "INFERENCE"}) == "INFERENCE"
    if count == 2 and is_inference and names <= _SEGNET_FIELDS:
        gamma, beta = (numbers(blob) for blob in layer.blobs)
        is_alone = lifter.sharing.is_alone(layer)
        site = AffineSite(layer, 0, 1) if is_alone else AffineSite(layer)
        return _add(lifter, layer, Affine(gamma, beta), laid, site)
    eps = float(np.float32(options.number("eps", 1e-5)))
    is_known = count == 4 and names <= _SLOPE_FIELDS and bool(names & _SLOPE_ONLY)
    if not is_known or eps < float(np.float32(_CUDNN_MIN_EPS)):
        return _keep(lifter, layer, shape, strange)
    if layer.phase != "TEST" and not options.flag("frozen", default=False):
        return _keep(lifter, layer, shape, g.Refusal(Reason.BATCH_STATISTICS, "phase: TRAIN"))
    gamma, beta, mean, var = (numbers(blob) for blob in layer.blobs)
    affine = Affine.from_batchnorm(mean, var, eps, gamma, beta)
    return _add(lifter, layer, affine, laid, AffineSite(layer), Affine(gamma, beta))


_SEGNET_FIELDS = {"scale_filler", "shift_filler", "bn_mode"}
_SLOPE_ONLY = {"slope_filler", "frozen", "momentum"}
_SLOPE_FIELDS = _SLOPE_ONLY | {"bias_filler", "eps", "engine"}


# ------------------------------------------------------------------- common


def _laid_out(
    lifter: Lifter, layer: Layer, options: Options, shape: Shape
) -> tuple[int, ...] | None:
    """The shape of a Scale's or Bias's array among the axes of its bottom, with 1 elsewhere."""
    rank = len(shape)
    axis = canonical(options.integer("axis", 1), rank)
    if axis is None:
        return None
    count = options.integer("num_axes", 1)
    end = rank if count == -1 else axis + count
    if not axis <= end <= rank:
        return None
    blob = layer.blobs[0]
    sizes = list(shape[axis:end])
    given = blob.shape[-len(sizes) :] if sizes else ()
    if len(given) < len(sizes):
        given = (1,) * (len(sizes) - len(given)) + given
    wanted = tuple(b if a is None else a for a, b in zip(sizes, given, strict=True))
    for index in range(len(layer.blobs)):
        check_shape(lifter.net.weights.name, layer, index, wanted)
    if any(a is None and b != 1 for a, b in zip(sizes[1:], given[1:], strict=False)):
        return None  # constants along an axis whose size is not known
    return (*[1] * axis, *wanted, *[1] * (rank - end))


def _add(
    lifter: Lifter,
    layer: Layer,
    affine: Affine,
    laid: tuple[int, ...],
    site: AffineSite,
    of_normalised: Affine | None = None,
) -> bool:
    """Append the step with constants of the shape `laid`.

    `of_normalised` is what it does to values of mean 0 and deviation 1, if it normalises; other
    steps are taken to read such values.
    """
    refusal: g.Refusal | None = None
    held = placeholder(lifter.shape(layer.outputs[0]))
    if len(held) != len(laid) or any(b not in (1, a) for a, b in zip(held, laid, strict=True)):
        refusal = g.Refusal(Reason.MODULE_DOES_MORE, "its shape is not known")
    elif lifter.overwritten & {*layer.inputs, *layer.outputs}:
        refusal = g.Refusal(Reason.SHARED, "its memory is overwritten while another layer reads it")
    elif lifter.sharing.differs(layer):
        refusal = g.Refusal(Reason.SHARED, "its arrays are stored differently for another layer")
    elif lifter.sharing.has_namesake(layer):
        refusal = g.Refusal(Reason.SHARED, "another layer has its name, and with it its arrays")
    elif not affine.is_finite:
        refusal = g.Refusal(Reason.BAD_STATISTICS)
    elif any(layer.options.numbers("loss_weight")):
        refusal = g.Refusal(Reason.MODULE_DOES_MORE, "its output is a loss")
    if refusal is not None:
        return _keep(lifter, layer, lifter.source(layer), refusal)
    is_half = lifter.is_half or any(blob.dtype.itemsize == 2 for blob in layer.blobs)
    dtype = "float16" if is_half else "float32"
    role = g.AffineStep(
        affine.scale.reshape(laid),
        affine.shift.reshape(laid),
        kind=layer.type,
        channels=affine.scale.size,
        factors=g.Parameter.editable_if(site.scale is not None),
        summands=g.Parameter.editable_if(site.shift is not None),
        spread=np.abs((of_normalised or affine).scale).reshape(laid),
        center=(of_normalised or affine).shift.reshape(laid),
        range_limit=range_limit(dtype),
        growth_limit=growth_limit(dtype),
    )
    number = lifter.add(layer, role, layer.inputs, layer.outputs)
    lifter.sites[number] = site
    return True


def _keep(lifter: Lifter, layer: Layer, shape: Shape | None, refusal: g.Refusal) -> bool:
    """Append a step that stays and of which nothing is known but why."""
    if len(layer.inputs) != 1 or len(layer.outputs) != 1:
        lifter.opaque(layer)
        lifter.net.notes.append(f"{layer.name} ({layer.type}) stays: {refusal.detail}")
        return True
    role = g.RefusedStep(refusal, layer.type, _channels(layer, shape) or 0)
    lifter.add(layer, role, layer.inputs, layer.outputs)
    return True
