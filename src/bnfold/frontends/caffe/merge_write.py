"""A merged network as text and weights, read again and checked.

A value keeps its number of the network before: a carrier makes what the last of the merged layers
made. One that makes a part of a sum makes a blob that was not there before, under a fresh name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.core.affine import FloatArray
from bnfold.core.kernel import Kernel
from bnfold.core.merge import Merge
from bnfold.frontends.caffe.caffemodel import Caffemodel, read_caffemodel
from bnfold.frontends.caffe.edit_text import (
    add_param,
    edit_text,
    layer_span,
    switch_bias_on,
)
from bnfold.frontends.caffe.lift_linear import DEPTHWISE
from bnfold.frontends.caffe.lifter import Site
from bnfold.frontends.caffe.memory import overwriting
from bnfold.frontends.caffe.merge_parts import exchanged, window_of
from bnfold.frontends.caffe.merge_text import rename, set_fields, set_values
from bnfold.frontends.caffe.net import Layer, Net, Shape
from bnfold.frontends.caffe.prototxt import Edits, encode, quoted, read_text
from bnfold.frontends.caffe.read import read_net
from bnfold.frontends.caffe.rewire import NameTaken, rewire
from bnfold.frontends.caffe.shapes import DECONVOLUTIONS, infer
from bnfold.frontends.caffe.write import Changes, rewrite


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
    return exchanged(weight, groups) if is_turned else weight


# ---------------------------------------------------------------------- the whole network


@dataclass(slots=True)
class Written:
    """A network with merged layers."""

    net: Net
    layers: list[Layer]
    """Its layers, as they were in the network before."""


class Writer:
    """Makes a network of orders."""

    def __init__(
        self,
        net: Net,
        orders: Sequence[Order],
        gone: Collection[Layer],
        kept: Mapping[int, tuple[int, ...]],
    ) -> None:
        self.net = net
        self.orders = {id(order.carrier): order for order in orders}
        self.gone = set(map(id, gone))
        self.kept = kept
        """The positions that an Eltwise keeps, by the id of the layer."""
        self.entering = {
            (id(order.enters[0]), order.enters[1]): order.output
            for order in orders
            if order.enters is not None
        }
        """The new values that a sum reads, by the id of the layer and the place."""
        self.layers = [layer for layer in net.layers if id(layer) not in self.gone]
        self.names = self._names()

    def write(self) -> Written:
        """The network, read again. Raises NotWritable if it is not what it should be."""
        net = self._read(self._text(), self._weights())
        lone = [place for place, layer in enumerate(self.layers) if self._is_lone(layer)]
        if lone:
            gone = [net.layers[place] for place in lone]
            try:
                text = edit_text(net, gone, rewire(net, gone), {})
            except NameTaken as taken:
                raise NotWritable from taken
            net = self._read(text, net.weights)
        infer(net)
        layers = [layer for layer in self.layers if not self._is_lone(layer)]
        self._check(net, layers)
        return Written(net, layers)

    def inputs(self, layer: Layer) -> list[int]:
        """The values that a layer reads now."""
        if id(layer) in self.orders:
            return [self.orders[id(layer)].source]
        return [value for value in self._bottoms(layer) if value is not None]

    def _bottoms(self, layer: Layer) -> list[int | None]:
        """The same at the places that they had; None for one that is dropped."""
        positions = self.kept.get(id(layer), range(len(layer.inputs)))
        return [
            self.entering.get((id(layer), place), value) if place in positions else None
            for place, value in enumerate(layer.inputs)
        ]

    def outputs(self, layer: Layer) -> list[int]:
        """The values that a layer makes now."""
        return [self.orders[id(layer)].output] if id(layer) in self.orders else layer.outputs

    def _is_lone(self, layer: Layer) -> bool:
        """Whether a sum is its only operand now."""
        return len(self.kept.get(id(layer), (0, 1))) == 1

    def _names(self) -> dict[int, str]:
        """What is not called as before. Raises NotWritable."""
        values = self.net.values
        every = {value.name for value in values}
        for layer in self.net.others:
            every |= {one.string for one in (*layer.tops, *layer.bottoms)}
        left = {number for layer in self.layers for number in self.outputs(layer)}
        left |= {number for number, value in enumerate(values) if value.maker is None}
        names: dict[int, str] = {}
        for order in self.orders.values():
            name = values[order.stands_for].name
            if order.enters is None and not any(
                n < order.output and values[n].name == name for n in left
            ):
                continue
            if order.output in self.net.outputs or order.output in self.net.elsewhere:
                raise NotWritable
            names[order.output] = _fresh(f"{name}_merged", every)
        return names

    def _name(self, value: int) -> str:
        return self.names[value] if value in self.names else self.net.values[value].name

    # ---------------------------------------------------------------- text and weights

    def _text(self) -> str:
        text = self.net.document.text
        edits = Edits()
        for layer in self.net.layers:
            if id(layer) in self.gone:
                edits.replace(*layer_span(text, layer), "")
                continue
            order = self.orders.get(id(layer))
            read = self._bottoms(layer) if order is None else [order.source]
            if order is not None:
                self._carry(text, edits, order)
            bottoms = [None if value is None else self._name(value) for value in read]
            made = [self._name(value) for value in self.outputs(layer)]
            rename(text, edits, list(layer.message.named("bottom")), bottoms)
            rename(text, edits, list(layer.message.named("top")), made)
            if id(layer) in self.kept:
                _drop_coefficients(text, edits, layer, self.kept[id(layer)])
        return edits.apply(text)

    def _carry(self, text: str, edits: Edits, order: Order) -> None:
        """The options of a carrier."""
        layer, messages = order.carrier, order.carrier.message.messages(order.part)
        for name, (before, now) in _options(order).items():
            if before != now:
                set_fields(text, edits, messages, name, now)
        if order.part == "convolution_param" and layer.type in DEPTHWISE and not order.is_depthwise:
            _retype(edits, layer)
        if len(order.arrays) == 1 or len(layer.blobs) > 1:
            return
        if messages:
            set_fields(text, edits, messages, "bias_term", ["true"])
        else:
            switch_bias_on(text, edits, layer, order.part)
        add_param(text, edits, layer)

    def _weights(self) -> Caffemodel:
        model = self.net.weights
        index = {id(stored): number for number, stored in enumerate(model.layers)}
        changes = Changes()
        for order in self.orders.values():
            changes.replaced[index[id(order.carrier.stored)]] = list(order.arrays)
        staying = {layer.name for layer in (*self.layers, *self.net.others)}
        going = {layer.name for layer in self.net.layers} - staying
        changes.dropped = {n for n, stored in enumerate(model.layers) if stored.name in going}
        return read_caffemodel(b"".join(rewrite(model, changes)), model.name)

    def _read(self, text: str, weights: Caffemodel) -> Net:
        return read_net(read_text(encode(text), self.net.document.name), weights)

    # ---------------------------------------------------------------- what was written

    def _check(self, net: Net, layers: Sequence[Layer]) -> None:
        """Raise NotWritable unless every layer reads what it should, and may."""
        if [layer.name for layer in net.layers] != [layer.name for layer in layers]:
            raise NotWritable
        lone = [layer for layer in self.layers if self._is_lone(layer)]
        alias = {layer.outputs[0]: self.inputs(layer)[0] for layer in lone}

        def root(value: int) -> int:
            while value in alias:
                value = alias[value]
            return value

        old = self.net.values
        inputs = {old[number].name: number for number in self.net.inputs}
        meaning = {number: inputs[net.values[number].name] for number in net.inputs}
        for layer, before in zip(net.layers, layers, strict=True):
            if [meaning[n] for n in layer.inputs] != [root(n) for n in self.inputs(before)]:
                raise NotWritable
            meaning |= zip(layer.outputs, self.outputs(before), strict=True)
        for seen, seen_before in (
            (net.outputs, self.net.outputs),
            (net.elsewhere, self.net.elsewhere),
        ):
            names = {meaning[number]: net.values[number].name for number in seen}
            if names != {root(number): old[number].name for number in seen_before}:
                raise NotWritable
        like = {order.output: order.stands_for for order in self.orders.values()}
        shapes = [
            (net.values[new].shape, old[like.get(number, number)].shape)
            for new, number in meaning.items()
        ]
        if not all(_agree(*pair) for pair in shapes) or not _breaks(net) <= _breaks(self.net):
            raise NotWritable


def _options(order: Order) -> dict[str, tuple[list[int], list[int]]]:
    """The numbers that a carrier's text gives, as they are and as they have to be."""
    layer, merge = order.carrier, order.merge
    options = layer.options.part(order.part)
    if merge.is_affine:
        return {}
    found = {"num_output": ([options.integer("num_output", 0)], [order.outs])}
    if order.part != "convolution_param":
        return found
    old, new = window_of(layer, options, order.arrays[0].ndim - 2), merge.window
    assert old is not None and new is not None
    is_said = options.has("group") or layer.type not in DEPTHWISE
    group = merge.groups if order.is_depthwise and not is_said else options.integer("group", 1)
    return found | {
        "kernel_size": ([*old.kernel], [*new.kernel]),
        "stride": ([*old.stride], [*new.stride]),
        "pad": ([*old.before], [*new.before]),
        "dilation": ([*old.dilation], [*new.dilation]),
        "group": ([group], [merge.groups]),
    }


def _retype(edits: Edits, layer: Layer) -> None:
    """A fork's depthwise layer that is none any more."""
    given = layer.message.scalar("type")
    if given is None or not given.is_string:
        raise NotWritable
    edits.replace(given.start, given.end, quoted("Convolution", given))


def _drop_coefficients(text: str, edits: Edits, layer: Layer, positions: Collection[int]) -> None:
    """Those of the bottoms that an Eltwise loses."""
    messages = layer.message.messages("eltwise_param")
    fields = [one for message in messages for one in message.named("coeff")]
    scalars = [one for message in messages for one in message.scalars("coeff")]
    kept = [one.text if place in positions else None for place, one in enumerate(scalars)]
    set_values(text, edits, fields, kept)


def _agree(first: Shape | None, second: Shape | None) -> bool:
    """Whether two shapes are one, as far as they are known."""
    if first is None or second is None:
        return True
    known = [{a, b} - {None} for a, b in zip(first, second, strict=False)]
    return len(first) == len(second) and all(len(sizes) <= 1 for sizes in known)


def _breaks(net: Net) -> set[tuple[str, str]]:
    """Layers that take a name which is taken (AppendTop), or overwrite what others read."""
    latest = {net.values[number].name: number for number in net.inputs}
    found = set()
    for layer in net.layers:
        for place, (top, number) in enumerate(zip(layer.tops, layer.outputs, strict=True)):
            before = latest.get(top.string)
            latest[top.string] = number
            is_in_place = before is None or (
                layer.inputs[place : place + 1] == [before] and len(net.values[before].readers) == 1
            )
            if not is_in_place:
                found.add((layer.name, "name"))
    numbers = range(len(net.values))
    over = overwriting(net, net.layers, numbers, lambda value: net.values[value].name)
    return found | {(layer.name, "memory") for layer, _ in over}


def _fresh(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 0
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name
