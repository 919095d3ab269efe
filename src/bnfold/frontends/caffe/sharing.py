"""Which arrays serve several layers: equal names in `param`, or one name for two layers.

Several layers that name a parameter alike have one array; the file holds a copy for each, and the
copy that is loaded last counts (Net::AppendParam, Net::CopyTrainedLayersFrom).
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from bnfold.frontends.caffe.net import Layer, Net

_WITHOUT_ARRAYS = frozenset(
    {"AbsVal", "BNLL", "Clip", "Concat", "Crop", "DetectionOutput", "Dropout", "ELU", "Eltwise"}
    | {"Exp", "Flatten", "Input", "Interp", "LRN", "Log", "MVN", "Permute", "Pooling", "Power"}
    | {"PriorBox", "ReLU", "ReLU6", "Reshape", "Sigmoid", "Silence", "Slice", "Softmax", "Split"}
    | {"TanH", "Upsample"}
)
"""Layers that load nothing, whatever the file holds under their name."""


class Sharing:
    """Who uses what together."""

    def __init__(self, net: Net) -> None:
        self.users: dict[str, list[tuple[Layer, int]]] = {}
        for layer in (*net.layers, *net.others):
            for index, name in enumerate(layer.param_names):
                if name:
                    self.users.setdefault(name, []).append((layer, index))
        self.elsewhere = Counter(layer.name for layer in net.others)
        self.names = Counter(layer.name for layer in net.layers)
        self.loading = Counter(
            layer.name for layer in net.layers if layer.type not in _WITHOUT_ARRAYS
        )
        self.in_phase = set(map(id, net.layers))
        self.frozen: set[int] = set()

    def freeze(self, layers: list[Layer]) -> None:
        """Let the arrays of these layers stay as they are."""
        self.frozen.update(map(id, layers))

    def is_alone(self, layer: Layer) -> bool:
        """Whether no other layer uses any array of this one."""
        shared = any(len(self.users.get(name, ())) > 1 for name in layer.param_names if name)
        return not shared and not self.is_named_twice(layer)

    def is_named_twice(self, layer: Layer) -> bool:
        """Whether the stored arrays are loaded into a layer of the other phase, too."""
        return self.elsewhere[layer.name] > 0 or self.names[layer.name] > 1

    def has_namesake(self, layer: Layer) -> bool:
        """Whether another layer of the phase may be meant by the arrays stored under its name."""
        return self.loading[layer.name] > 1

    def partners(self, layer: Layer) -> list[Layer] | None:
        """The layers that share all arrays that this one shares, itself included.

        None if they do not share them all in the same way, or not within the phase.
        """
        if self.is_named_twice(layer) or id(layer) in self.frozen:
            return None
        names = [name if len(self.users.get(name, ())) > 1 else "" for name in layer.param_names]
        partners: list[Layer] | None = None
        for index, name in enumerate(names):
            if not name:
                continue
            users = self.users[name]
            if any(place != index or id(user) not in self.in_phase for user, place in users):
                return None
            if len({id(user) for user, _ in users}) < len(users):
                return None
            layers = [user for user, _ in users]
            if partners is not None and [*map(id, partners)] != [*map(id, layers)]:
                return None
            if any(self.is_named_twice(user) for user in layers):
                return None
            partners = layers
        if partners is None:
            return [layer]
        return partners if self._are_equal(partners, [bool(name) for name in names]) else None

    def _are_equal(self, layers: list[Layer], shared: list[bool]) -> bool:
        """Whether the file holds the same numbers for each of them."""
        first = layers[0]
        for layer in layers[1:]:
            if len(layer.blobs) != len(first.blobs) or _form(layer) != _form(first):
                return False
            for index, is_shared in enumerate(shared[: len(first.blobs)]):
                a, b = first.blobs[index], layer.blobs[index]
                if is_shared and (a.shape != b.shape or not np.array_equal(a.read(), b.read())):
                    return False
        return True

    def differs(self, layer: Layer) -> bool:
        """Whether an array of this layer is stored differently for another layer that shares it."""
        for index, name in enumerate(layer.param_names[: len(layer.blobs)]):
            for user, place in self.users.get(name, ()) if name else ():
                if place >= len(user.blobs):
                    if user.stored is not None or id(user) in self.in_phase:
                        return True
                    continue
                a, b = layer.blobs[index], user.blobs[place]
                if a.count != b.count or not np.array_equal(a.read().ravel(), b.read().ravel()):
                    return True
        return False


def _form(layer: Layer) -> tuple[str, int, bool]:
    """What two layers have to have in common to use a weight in the same way."""
    convolution = layer.options.part("convolution_param")
    product = layer.options.part("inner_product_param")
    return (
        layer.type,
        convolution.integer("group", 1),
        product.flag("transpose", default=False),
    )
