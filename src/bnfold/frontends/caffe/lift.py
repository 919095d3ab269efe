"""Lift a network into the core's roles, layer by layer, in the order in which they run.

What is not in the table is opaque.
"""

from __future__ import annotations

from collections.abc import Callable

from bnfold.core.reasons import Reason
from bnfold.frontends.caffe import lift_affine, lift_linear, lift_ops, lift_views
from bnfold.frontends.caffe.known_fields import unknown_fields
from bnfold.frontends.caffe.lifter import Lifted, Lifter, LinearSite
from bnfold.frontends.caffe.net import Layer, Net

Handler = Callable[[Lifter, Layer], bool]
"""Adds the ops of a layer; False, before it has added any, if the layer is not of its kind."""


def lift(net: Net) -> Lifted:
    """Lift all layers of the phase. Shapes have to be inferred. Raises ModelUnreadableError."""
    lifter = Lifter(net)
    while True:
        _walk(lifter)
        broken = _broken_partners(lifter)
        if not broken:
            return Lifted(lifter.graph, lifter.sites, lifter.tensors)
        # What shares its weight with a layer that could not be lifted must not change.
        lifter.sharing.freeze(broken)
        lifter.start_again()


def _broken_partners(lifter: Lifter) -> list[Layer]:
    """The layers with an editable weight that a layer without a site uses, too."""
    lifted = {id(site.layer) for site in lifter.sites.values()}
    broken = []
    for site in lifter.sites.values():
        if isinstance(site, LinearSite) and site.is_editable:
            partners = lifter.sharing.partners(site.layer) or []
            if any(id(partner) not in lifted for partner in partners):
                broken += partners
    return broken


def _walk(lifter: Lifter) -> None:
    net = lifter.net
    for number in net.inputs:
        lifter.input(number)
    for layer in net.layers:
        if not layer.bottoms:
            for number in layer.outputs:
                lifter.input(number)
            continue
        handler = _HANDLERS.get(layer.type)
        if handler is None or _is_strange(lifter, layer) or not handler(lifter, layer):
            lifter.opaque(layer)
    for number in lifter.overwritten:
        lifter.graph.output(lifter.tensors[number], net.values[number].name)
    for number, name in net.outputs.items():
        lifter.graph.output(lifter.tensors[number], name, Reason.GRAPH_OUTPUT)
    for number, name in net.elsewhere.items():
        lifter.graph.output(lifter.tensors[number], name, Reason.OTHER_PHASE)


def _is_strange(lifter: Lifter, layer: Layer) -> bool:
    """Whether it says what bnfold does not know; a BatchNorm is listed, so it looks by itself."""
    fields = unknown_fields(layer.options)
    if not fields or layer.type == "BatchNorm":
        return False
    lifter.net.notes.append(
        f"{layer.name} ({layer.type}) has fields that bnfold does not know"
        f" ({', '.join(fields)}): taken as unknown"
    )
    return True


def _scale(lifter: Lifter, layer: Layer) -> bool:
    is_single = len(layer.bottoms) == 1
    return (lift_affine.scale if is_single else lift_ops.gate)(lifter, layer)


def _bias(lifter: Lifter, layer: Layer) -> bool:
    is_single = len(layer.bottoms) == 1
    return (lift_affine.bias if is_single else lift_ops.added)(lifter, layer)


_HANDLERS: dict[str, Handler] = {
    "AbsVal": lift_ops.homogeneous,
    "Axpy": lift_ops.axpy,
    "BN": lift_affine.fork_bn,
    "BatchNorm": lift_affine.batch_norm,
    "Bias": _bias,
    "Clip": lift_ops.clip,
    "Concat": lift_views.concat,
    "Convolution": lift_linear.convolution,
    "ConvolutionDW": lift_linear.convolution,
    "ConvolutionDepthwise": lift_linear.convolution,
    "Crop": lift_ops.crop,
    "Deconvolution": lift_linear.convolution,
    "DepthwiseConvolution": lift_linear.convolution,
    "Dropout": lift_views.dropout,
    "Eltwise": lift_ops.eltwise,
    "Flatten": lift_views.reshape,
    "InnerProduct": lift_linear.inner_product,
    "Interp": lift_ops.interp,
    "PReLU": lift_ops.homogeneous,
    "Permute": lift_views.permute,
    "Pooling": lift_ops.pooling,
    "Power": lift_affine.power,
    "ReLU": lift_ops.relu,
    "ReLU6": lift_ops.relu6,
    "Reshape": lift_views.reshape,
    "Scale": _scale,
    "ShuffleChannel": lift_views.shuffle_channels,
    "Silence": lift_views.silence,
    "Slice": lift_views.slice_,
    "Split": lift_views.identity,
}
