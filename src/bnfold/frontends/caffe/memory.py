"""Which blobs share memory, and which layers write into memory that others still read.

A layer that works in place writes into its bottom's memory, and Split, Flatten, Reshape, a Concat
of one and a Slice into one hand their bottom's memory on (Blob::ShareData). So an activation in
place behind a Reshape overwrites the Reshape's bottom, too. A BatchNorm out of place makes memory
of its own; where it goes, the activation behind it must not begin to write into what others read.
Of layers that are not known here it is assumed that they hand memory on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bnfold.frontends.caffe.net import Layer, Net

_SHARING = frozenset({"Flatten", "Permute", "Reshape", "Split"})
"""Permute shares where it has nothing to permute."""
_COPYING = frozenset(
    {
        "AbsVal",
        "Accuracy",
        "ArgMax",
        "Axpy",
        "BN",
        "BNLL",
        "BatchNorm",
        "Bias",
        "Clip",
        "Convolution",
    }
    | {"ConvolutionDW", "ConvolutionDepthwise", "Crop", "Deconvolution", "DepthwiseConvolution"}
    | {"Dropout", "ELU", "Eltwise", "Embed", "EuclideanLoss", "Exp", "InnerProduct", "Interp"}
    | {"LRN", "Log", "MVN", "Normalize", "PReLU", "Pooling", "Power", "PriorBox", "ReLU", "ReLU6"}
    | {"Reduction", "Scale", "ShuffleChannel", "Sigmoid", "Silence", "Softmax", "SoftmaxWithLoss"}
    | {"TanH", "Threshold", "Tile"}
)
"""Types whose tops, if not in place, are memory of their own."""

Name = Callable[[int], str]
"""What a value is called."""


def overwriting(
    net: Net, layers: Sequence[Layer], roots: Sequence[int], name: Name
) -> list[tuple[Layer, int]]:
    """The layers that work in place on memory that is read afterwards, with the bottom's value.

    `roots` says which value each value is now, `name` what it is called.
    """
    memory = shared_memory(layers, roots, name)
    last_read = _last_reads(net, layers, roots)
    made = {roots[out]: place for place, layer in enumerate(layers) for out in layer.outputs}
    tenants: dict[int, list[int]] = {}
    for value, owner in memory.items():
        tenants.setdefault(owner, []).append(value)
    writers = []
    for place, layer in enumerate(layers):
        for bottom, _ in in_place(layer, roots, name):
            others = [v for v in tenants[memory[bottom]] if made.get(v, -1) < place]
            if any(last_read.get(value, -1) > place for value in others):
                writers.append((layer, bottom))
    return writers


def overwritten(net: Net) -> set[int]:
    """All values in memory that a layer in place overwrites while another one still reads it.

    What a reader finds there depends on the order of work, so there everything stays as it is.
    """

    def name(value: int) -> str:
        return net.values[value].name

    everything = range(len(net.values))
    memory = shared_memory(net.layers, everything, name)
    owners = {memory[bottom] for _, bottom in overwriting(net, net.layers, everything, name)}
    return {value for value, owner in memory.items() if owner in owners}


def in_place(layer: Layer, roots: Sequence[int], name: Name) -> list[tuple[int, int]]:
    """The pairs of values (bottom, top) that have one name and so one memory."""
    pairs = zip(layer.inputs, layer.outputs, strict=False)
    return [(roots[a], roots[b]) for a, b in pairs if name(a) == name(b)]


def shared_memory(layers: Sequence[Layer], roots: Sequence[int], name: Name) -> dict[int, int]:
    """For each value, the value that its memory was made for."""
    memory: dict[int, int] = {}
    for layer in layers:
        inputs = [roots[number] for number in layer.inputs]
        for number in inputs:
            memory.setdefault(number, number)
        kept = {top: bottom for bottom, top in in_place(layer, roots, name)}
        for number in layer.outputs:
            top = roots[number]
            if top in kept:
                memory[top] = memory[kept[top]]
            elif inputs and _hands_on(layer):
                memory[top] = memory[inputs[0]]
            else:
                memory[top] = top
    return memory


def _hands_on(layer: Layer) -> bool:
    """Whether a layer's tops are the memory of its first bottom."""
    if layer.type in ("Concat", "Slice"):
        return len(layer.bottoms) == len(layer.tops) == 1
    return layer.type in _SHARING or layer.type not in _COPYING


def _last_reads(net: Net, layers: Sequence[Layer], roots: Sequence[int]) -> dict[int, int]:
    """Per value, the place of the last layer that reads it; outputs are read at the very end."""
    last = {roots[number]: place for place, layer in enumerate(layers) for number in layer.read}
    last.update({roots[number]: len(layers) for number in net.outputs})
    return last
