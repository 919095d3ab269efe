"""A described network as Caffe files, in memory: what Caffe has no layer for raises `NotInCaffe`.

A BatchNorm is two layers, BatchNorm and behind it, in place, Scale with a bias. What a network
returns although it is read gets a Split of one top, since Caffe returns what nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.frontends.caffe.support import Pair, pair
from tests.property.networks.description import (
    CLIPS,
    Array,
    Network,
    Node,
    Shape,
    eps_of,
    may_write,
    weights_of,
)

FACTOR = 4.0
"""What a BatchNorm's statistics are stored times: a power of 2, so that it costs no bit."""


class NotInCaffe(Exception):  # noqa: N818  # a fact about the network, not a mistake
    """Caffe cannot express the network."""


class Builder:
    """Collects layers and arrays."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.shapes = network.shapes
        self.readers = network.readers
        self.weights = weights_of(network)
        self.blobs = {name: name for name in network.inputs}
        """The blob of each value: that of its input, where a layer works in place."""
        self.lines: list[str] = []
        self.arrays: dict[str, list[Array]] = {}

    def layer(
        self,
        kind: str,
        node: Node,
        options: str = "",
        blobs: Sequence[Array] = (),
        *,
        part: str = "",
        bottoms: Sequence[str] | None = None,
        tops: Sequence[str] | None = None,
        params: str = "",
    ) -> None:
        """Add a layer; `bottoms` and `tops` are blobs, those of the node's values by default."""
        name = f"{node.name}/{part}" if part else node.name
        bottoms = [self.blobs[name] for name in node.inputs] if bottoms is None else bottoms
        tops = list(node.outputs) if tops is None else tops
        wires = [f'bottom: "{b}"' for b in bottoms] + [f'top: "{t}"' for t in tops]
        self.lines.append(
            f'layer {{ name: "{name}" type: "{kind}" {" ".join(wires)} {params} {options} }}'
        )
        for made in node.outputs:
            self.blobs.setdefault(made, made)
        if blobs:
            self.arrays[name] = list(blobs)

    def in_place(self, node: Node) -> list[str] | None:
        """The top of a layer that may work in place, if it is asked to."""
        (source,) = node.inputs
        if node.get("how") != "in place" or len(self.readers[source]) > 1:
            return None
        if not may_write(self.network, node) or source in self.network.outputs:
            return None
        self.blobs[node.output] = self.blobs[source]
        return [self.blobs[source]]


def caffe_pair(network: Network) -> tuple[Pair, dict[str, str]]:
    """The files, and the blob of each value that the network returns."""
    builder = Builder(network)
    for name, shape in network.inputs.items():
        dims = " ".join(f"dim: {size}" for size in shape)
        builder.lines.append(f'input: "{name}" input_shape {{ {dims} }}')
    tied = {node.same_as for node in network.nodes if node.same_as}
    returned = {}
    for node in network.nodes:
        make = _KINDS.get(node.kind)
        if make is None:
            raise NotInCaffe(node.kind)
        _demand(node.kind != "bn" or node.name not in tied, "a BatchNorm called twice")
        make(builder, node)
        for name in node.outputs:
            if name in network.outputs:
                top = f"{name}/returned"
                builder.layer(
                    "Split", node, part=f"{name}/split", bottoms=[builder.blobs[name]], tops=[top]
                )
                returned[name] = top
    returned |= {n: builder.blobs[n] for n in network.results if n not in returned}
    return pair("\n".join(builder.lines) + "\n", builder.arrays), returned


def _demand(fact: bool, what: str) -> None:
    if not fact:
        raise NotInCaffe(what)


# ------------------------------------------------------------------- linear ops


def _numbers(name: str, values: Sequence[int]) -> str:
    return " ".join(f"{name}: {value}" for value in values)


def _params(b: Builder, node: Node) -> str:
    """Shared arrays have names."""
    owner = b.network.owner(node)
    if not any(other.same_as == owner for other in b.network.nodes):
        return ""
    names = ["weight", "bias"] if node.get("bias") else ["weight"]
    return " ".join(f'param {{ name: "{owner}.{name}" }}' for name in names)


def _arrays(b: Builder, node: Node) -> list[Array]:
    found = b.weights[b.network.owner(node)]
    return [found[name] for name in ("weight", "bias") if name in found]


def _convolution(kind: str) -> Callable[[Builder, Node], None]:
    def make(b: Builder, node: Node) -> None:
        _demand(
            node.get("mode", "zeros") == "zeros" or not any(node.get("padding")), "this padding"
        )
        _demand(not any(node.get("output_padding", (0,))), "output padding")
        window = " ".join(
            _numbers(caffe, node.get(ours))
            for caffe, ours in (
                ("kernel_size", "kernel"),
                ("stride", "stride"),
                ("pad", "padding"),
                ("dilation", "dilation"),
            )
        )
        more = f"group: {node.get('groups')}" + ("" if node.get("bias") else " bias_term: false")
        options = f"convolution_param {{ num_output: {node.get('out')} {window} {more} }}"
        b.layer(kind, node, options, _arrays(b, node), params=_params(b, node))

    return make


def _linear(b: Builder, node: Node) -> None:
    axis = len(node.shape) - 1
    more = "" if node.get("bias") else " bias_term: false"
    options = f"inner_product_param {{ num_output: {node.get('out')} axis: {axis}{more} }}"
    b.layer("InnerProduct", node, options, _arrays(b, node), params=_params(b, node))


# ------------------------------------------------------------------- affine steps


def _batch_norm(b: Builder, node: Node) -> None:
    arrays = b.weights[node.name]
    channels = len(arrays["mean"])
    statistics = [arrays["mean"] * FACTOR, arrays["variance"] * FACTOR, np.array([FACTOR])]
    b.layer("BatchNorm", node, f"batch_norm_param {{ eps: {eps_of(node)!r} }}", statistics)
    gamma, beta = arrays.get("gamma", np.ones(channels)), arrays.get("beta", np.zeros(channels))
    b.layer(
        "Scale",
        node,
        "scale_param { bias_term: true }",
        [gamma, beta],
        part="scale",
        bottoms=[node.output],
        tops=[node.output],
    )


def _scale(b: Builder, node: Node) -> None:
    b.layer("Scale", node, "", [b.weights[node.name]["weight"]])


def _shift(b: Builder, node: Node) -> None:
    b.layer("Bias", node, "", [b.weights[node.name]["bias"]])


# ------------------------------------------------------------------- elementwise


def _plain(kind: str, options: str = "") -> Callable[[Builder, Node], None]:
    def make(b: Builder, node: Node) -> None:
        b.layer(kind, node, options)

    return make


def _activation(kind: str, options: str = "") -> Callable[[Builder, Node], None]:
    def make(b: Builder, node: Node) -> None:
        b.layer(kind, node, options, tops=b.in_place(node))

    return make


def _prelu(b: Builder, node: Node) -> None:
    b.layer("PReLU", node, "", [b.weights[node.name]["weight"]])


_BOUNDS = "clip_param {{ min: {} max: {} }}".format(*CLIPS["clip"])


# ------------------------------------------------------------------- pooling


def _pool(kind: str) -> Callable[[Builder, Node], None]:
    def make(b: Builder, node: Node) -> None:
        source = b.shapes[node.inputs[0]]
        _demand(len(source) == 4, "pooling of other than images")
        kernel, stride, pad = node.get("kernel"), node.get("stride"), node.get("padding")
        for length, made in zip(source[2:], node.shape[2:], strict=True):
            _demand(-(-(length + 2 * pad - kernel) // stride) + 1 == made, "rounding down")
        _demand(kind == "MAX" or node.get("counted") or not pad, "an average without its padding")
        b.layer(
            "Pooling",
            node,
            f"pooling_param {{ pool: {kind} kernel_size: {kernel} stride: {stride} pad: {pad} }}",
        )

    return make


def _global(kind: str) -> Callable[[Builder, Node], None]:
    def make(b: Builder, node: Node) -> None:
        _demand(len(node.shape) == 4, "pooling of other than images")
        b.layer("Pooling", node, f"pooling_param {{ pool: {kind} global_pooling: true }}")

    return make


# ------------------------------------------------------------------- several operands


def _gate(b: Builder, node: Node) -> None:
    x, y = node.inputs
    if b.shapes[x] == b.shapes[y]:
        b.layer("Eltwise", node, "eltwise_param { operation: PROD }")
        return
    flat = f"{node.name}/flat"
    b.layer("Flatten", node, part="flat", bottoms=[b.blobs[y]], tops=[flat])
    b.layer("Scale", node, "scale_param { axis: 0 }", bottoms=[b.blobs[x], flat])


def _concat(b: Builder, node: Node) -> None:
    b.layer("Concat", node, f"concat_param {{ axis: {node.get('axis')} }}")


# ------------------------------------------------------------------- views


def _split(b: Builder, node: Node) -> None:
    b.layer("Slice", node, f"slice_param {{ slice_point: {node.get('at')} }}")


def _shape(sizes: Shape) -> str:
    return f"reshape_param {{ shape {{ {_numbers('dim', (0, *sizes[1:]))} }} }}"


def _reshape(b: Builder, node: Node) -> None:
    b.layer("Reshape", node, _shape(node.shape))


def _swap(b: Builder, node: Node) -> None:
    rank = len(node.shape)
    order = _numbers("order", (*range(rank - 2), rank - 1, rank - 2))
    b.layer("Permute", node, f"permute_param {{ {order} }}")


def _crop(b: Builder, node: Node) -> None:
    rest = f"{node.name}/rest"
    b.layer("Slice", node, "slice_param { axis: 2 slice_point: 1 }", tops=[rest, node.output])
    b.layer("Silence", node, part="silence", bottoms=[rest], tops=[])


def _shuffle(b: Builder, node: Node) -> None:
    _demand(len(node.shape) == 4, "a shuffle of other than images")
    b.layer("ShuffleChannel", node, f"shuffle_channel_param {{ group: {node.get('groups')} }}")


_KINDS: dict[str, Callable[[Builder, Node], None]] = {
    "conv": _convolution("Convolution"),
    "deconv": _convolution("Deconvolution"),
    "linear": _linear,
    "bn": _batch_norm,
    "scale": _scale,
    "shift": _shift,
    "relu": _activation("ReLU"),
    "relu6": _activation("ReLU6"),
    "clip": _activation("Clip", _BOUNDS),
    "leaky": _activation("ReLU", "relu_param { negative_slope: 0.125 }"),
    "prelu": _prelu,
    "abs": _plain("AbsVal"),
    "sigmoid": _activation("Sigmoid"),
    "tanh": _plain("TanH"),
    "softmax": _plain("Softmax"),
    "identity": _plain("Split"),
    "dropout": _plain("Dropout"),
    "max": _pool("MAX"),
    "avg": _pool("AVE"),
    "gmax": _global("MAX"),
    "gavg": _global("AVE"),
    "add": _plain("Eltwise"),
    "sub": _plain("Eltwise", "eltwise_param { coeff: 1 coeff: -1 }"),
    "mul": _gate,
    "concat": _concat,
    "split": _split,
    "flatten": _plain("Flatten"),
    "reshape": _reshape,
    "swap": _swap,
    "crop": _crop,
    "shuffle": _shuffle,
}
