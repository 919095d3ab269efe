"""Merge linear layers before a fold, in text and weights: branches and chains become one layer.

What to merge, `bnfold.core.merge` says. Here it is written as a network like any other, which is
then read and folded:

    carrier    reads the source, makes the output, and gets kernel, window and groups of all
    gone       leave text and weights
    Eltwise    loses bottoms and coefficients; one that is left with one bottom goes, too

A carrier that makes a part of a sum makes a blob that was not there before, with a name of its own.
What is written is read again, and taken only if every layer reads what it should, every blob has
the shape that it had, no name is taken twice, and nobody overwrites what others read.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bnfold.core import graph as g
from bnfold.core.expression import Freedom, Part
from bnfold.core.merge import find_merges
from bnfold.core.merge_again import can_merge_again
from bnfold.core.merge_within import MOST_ROUNDS, Fence
from bnfold.core.merged import Merge
from bnfold.core.plan import Plan
from bnfold.errors import ModelUnreadableError
from bnfold.frontends.caffe.geometry import DECONVOLUTIONS
from bnfold.frontends.caffe.lifter import AffineSite, Lifted, LinearSite
from bnfold.frontends.caffe.merge_orders import NotWritable, Order, arrays_of
from bnfold.frontends.caffe.merge_parts import parts_of
from bnfold.frontends.caffe.merge_write import Writer, Written
from bnfold.frontends.caffe.net import Layer, Net, Shape
from bnfold.frontends.merge_report import Merging


@dataclass(frozen=True, slots=True)
class MergedNet:
    """A network some of whose layers were merged."""

    net: Net
    merging: Merging
    """What became of its layers."""
    same: Collection[tuple[str, int]]
    """The tops, by layer and place, that are what they were in the network before."""


def merge_layers(net: Net, lifted: Lifted) -> tuple[MergedNet | None, Merging]:
    """The network with what can be merged merged, None if nothing can be; and what that was."""
    parts = parts_of(net, lifted)
    merger, fence = _Merger(net, lifted), Fence()
    for attempt in itertools.count():
        freedom = fence.around(_freedom_of(lifted, parts))
        merges = find_merges(lifted.graph, parts, freedom)
        if not merges:
            break
        orders, refused = merger.orders(merges, parts)
        if refused and attempt < MOST_ROUNDS:
            for merge in refused:
                fence.narrow(lifted.graph, parts, merge)
            continue
        merging = Merging(lifted.graph, parts, freedom, [order.merge for order in orders])
        made = None if refused else merger.write(orders, merging)
        if made is not None:
            return made, merging
        fence.shut_out(refused or merges)
    return None, Merging(lifted.graph, parts, freedom)


def are_left(net: Net, lifted: Lifted, plan: Plan, *, is_merged: bool) -> bool:
    """Whether there are more to find in what a fold makes."""
    parts = parts_of(net, lifted)
    freedom = _freedom_of(lifted, parts)
    return can_merge_again(lifted.graph, plan, parts, freedom, is_merged=is_merged)


def _freedom_of(lifted: Lifted, parts: Mapping[int, Part]) -> Freedom:
    """What can be taken out, and what can be given other constants."""
    sites = lifted.sites

    def can_go(number: int) -> bool:
        role = lifted.graph.ops[number].role
        is_view = isinstance(role, g.View) and (role.concat is not None or role.is_copy)
        return number in parts or is_view or isinstance(sites.get(number), AffineSite)

    def carries_affine(number: int) -> bool:
        site = sites.get(number)
        if not isinstance(site, AffineSite):
            return False
        is_wide = all(blob.dtype.itemsize >= 4 for blob in site.layer.blobs)
        return site.scale == 0 and site.shift == 1 and is_wide

    return Freedom(can_go, carries_affine=carries_affine)


class _Merger:
    def __init__(self, net: Net, lifted: Lifted) -> None:
        self.net = net
        self.lifted = lifted
        self.graph = lifted.graph
        self.values = {tensor: number for number, tensor in lifted.tensors.items()}
        """The value of a tensor of the graph."""

    def layer(self, number: int) -> Layer | None:
        """The layer behind an op."""
        value = self.values.get(self.graph.ops[number].outputs[0])
        return None if value is None else self.net.values[value].maker

    # ---------------------------------------------------------------- what is to be written

    def orders(
        self, merges: Sequence[Merge], parts: Mapping[int, Part]
    ) -> tuple[list[Order], list[Merge]]:
        """What each merge writes; and those that cannot be written."""
        orders, refused = [], []
        for place, merge in enumerate(merges):
            try:
                orders.append(self._order(merge, parts, len(self.net.values) + place))
            except NotWritable:
                refused.append(merge)
        return orders, refused

    def _order(self, merge: Merge, parts: Mapping[int, Part], fresh: int) -> Order:
        """`fresh` numbers a value that was not there before. Raises NotWritable."""
        merge = self._with_carrier(merge, parts)
        self._look_at_layers(merge)
        window, output = merge.window, self.values.get(merge.output)
        if output is None or (window is not None and window.before != window.after):
            raise NotWritable  # there is one pad for both sides
        site = self.lifted.sites[merge.carrier]
        carrier = site.layer
        if self.graph.ops[merge.carrier].inputs[0] == merge.source:
            source = carrier.inputs[0]  # an InnerProduct flattens what it reads by itself
        else:
            source = self.values[merge.source]
        part = site.part if isinstance(site, LinearSite) else "scale_param"
        enters = (
            None if merge.enters is None else (self._layer_of(merge.enters[0]), merge.enters[1])
        )
        made = output if enters is None else fresh
        arrays, outs = arrays_of(merge, site)
        shape = self._shape(merge, output, outs)
        return Order(merge, carrier, part, source, made, enters, output, shape, arrays, outs)

    def _shape(self, merge: Merge, output: int, outs: int) -> Shape | None:
        """What the carrier's top has: siblings make as many channels as all of them did."""
        shape = self.net.values[output].shape
        role = None if merge.concat is None else self.graph.ops[merge.concat].role
        if shape is None or not isinstance(role, g.View) or role.concat is None:
            return shape
        return (*shape[: role.concat], outs, *shape[role.concat + 1 :])

    def _look_at_layers(self, merge: Merge) -> None:
        """Raise NotWritable where a layer that changes or goes says more than it computes."""
        numbers = (merge.carrier, *merge.gone, *merge.sums, *(merge.enters or ())[:1])
        own = {id(self.layer(number)) for number in numbers}
        for number in numbers:
            layer = self.layer(number)
            is_sum = isinstance(self.graph.ops[number].role, g.Sum)
            if layer is None or layer.options.has(*_SPECIAL):
                raise NotWritable
            if is_sum and layer.type != "Eltwise":
                raise NotWritable
            makes = self.graph.ops[number].outputs[0]
            is_joint = is_sum or number == merge.concat
            is_inside = not is_joint and (makes != merge.output or merge.enters is not None)
            if is_inside and not {id(reader) for reader in self._readers(layer)} <= own:
                raise NotWritable  # of its shape alone, or the graph would know it

    def _readers(self, layer: Layer) -> list[Layer]:
        """Of its top."""
        return self.net.values[layer.outputs[0]].readers

    def _with_carrier(self, merge: Merge, parts: Mapping[int, Part]) -> Merge:
        """The same with a carrier of the right type, which reads the source if only it can."""
        if merge.is_affine:
            return merge
        window = merge.window
        either = window is None or window.is_pointwise
        turned = window is not None and window.is_transposed
        for number in (merge.carrier, *sorted(merge.gone)):
            if number not in parts or not parts[number].carries:
                continue
            kind = self.lifted.sites[number].layer.type
            reads = self.graph.ops[number].inputs[0] == merge.source or merge.source in self.values
            if reads and (either or (kind in DECONVOLUTIONS) == turned):
                return replace(
                    merge, carrier=number, gone=(merge.gone | {merge.carrier}) - {number}
                )
        raise NotWritable

    # ---------------------------------------------------------------- what comes of it

    def write(self, orders: Sequence[Order], merging: Merging) -> MergedNet | None:
        """The network that the orders make; None if it is not what it should be."""
        gone = [self._layer_of(number) for order in orders for number in order.merge.gone]
        kept = {
            id(self._layer_of(number)): positions
            for order in orders
            for number, positions in order.merge.sums.items()
        }
        try:
            written = Writer(self.net, orders, gone, kept).write()
        except (NotWritable, ModelUnreadableError):
            return None
        return MergedNet(written.net, merging, self._same(written, orders))

    def _layer_of(self, number: int) -> Layer:
        layer = self.layer(number)
        assert layer is not None
        return layer

    def _same(self, written: Written, orders: Sequence[Order]) -> set[tuple[str, int]]:
        """The tops that are what they were: not those of carriers, and of sums that lost some."""
        changed = {
            id(order.carrier) for order in orders if order.output != order.carrier.outputs[0]
        }
        for order in orders:
            if order.merge.concat is not None:
                continue  # it makes what it made
            for number in (*order.merge.sums, *(order.merge.enters or ())[:1]):
                changed |= {id(self._layer_of(inner)) for inner in self._inner_sums(number)}
        return {
            (layer.name, place)
            for layer in written.layers
            if id(layer) not in changed
            for place in range(len(layer.outputs))
        }

    def _inner_sums(self, number: int) -> Iterator[int]:
        """A sum, and those that read it, but the last one."""
        while True:
            output = self.graph.ops[number].outputs[0]
            readers = [n for n, op in enumerate(self.graph.ops) if output in op.inputs]
            if len(readers) != 1 or not isinstance(self.graph.ops[readers[0]].role, g.Sum):
                return
            yield number
            number = readers[0]


_SPECIAL = ("include", "exclude", "loss_weight", "propagate_down")
"""Fields for a phase, for training, or for each bottom."""
