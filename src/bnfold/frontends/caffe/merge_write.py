"""A merged network as text and weights.

A value keeps its number of the network before: a carrier makes what the last of the merged layers
made. One that makes a part of a sum makes a blob that was not there before, under a fresh name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from bnfold.frontends.caffe.caffemodel import Caffemodel, read_caffemodel
from bnfold.frontends.caffe.edit_text import add_param, edit_text, layer_span, switch_bias_on
from bnfold.frontends.caffe.lift_linear import DEPTHWISE
from bnfold.frontends.caffe.merge_check import is_as_wanted
from bnfold.frontends.caffe.merge_orders import NotWritable, Order, options_of
from bnfold.frontends.caffe.merge_text import rename, set_fields, set_values
from bnfold.frontends.caffe.net import Layer, Net
from bnfold.frontends.caffe.prototxt import read_text
from bnfold.frontends.caffe.read import read_net
from bnfold.frontends.caffe.rewire import NameTaken, rewire
from bnfold.frontends.caffe.shapes import infer
from bnfold.frontends.caffe.text_tree import Edits, encode, quoted
from bnfold.frontends.caffe.write import Changes, rewrite


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
            every |= {scalar.string for scalar in (*layer.tops, *layer.bottoms)}
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
        for name, (before, now) in options_of(order).items():
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
        """Raises ModelUnreadableError."""
        return read_net(read_text(encode(text), self.net.document.name), weights)

    # ---------------------------------------------------------------- what was written

    def _check(self, net: Net, layers: list[Layer]) -> None:
        """Raise NotWritable unless every layer reads what it should, and may."""
        alias = {
            layer.outputs[0]: self.inputs(layer)[0] for layer in self.layers if self._is_lone(layer)
        }

        def root(value: int) -> int:
            while value in alias:
                value = alias[value]
            return value

        wires = [(self.inputs(layer), self.outputs(layer)) for layer in layers]
        shapes = {order.output: order.shape for order in self.orders.values()}
        if not is_as_wanted(net, self.net, wires, root, shapes):
            raise NotWritable


def _retype(edits: Edits, layer: Layer) -> None:
    """A fork's depthwise layer that is none any more."""
    given = layer.message.scalar("type")
    if given is None or not given.is_string:
        raise NotWritable
    edits.replace(given.start, given.end, quoted("Convolution", given))


def _drop_coefficients(text: str, edits: Edits, layer: Layer, positions: Collection[int]) -> None:
    """Those of the bottoms that an Eltwise loses."""
    messages = layer.message.messages("eltwise_param")
    fields = [field for message in messages for field in message.named("coeff")]
    scalars = [scalar for message in messages for scalar in message.scalars("coeff")]
    kept = [scalar.text if place in positions else None for place, scalar in enumerate(scalars)]
    set_values(text, edits, fields, kept)


def _fresh(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 0
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name
