"""Whether a merged network is what it should be.

Every layer has to read what it should, every blob has the shape that it had, outputs have the names
that they had, no name is taken twice (AppendTop), and nobody overwrites what others read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bnfold.frontends.caffe.memory import overwriting
from bnfold.frontends.caffe.net import Net, Shape

Wires = tuple[Sequence[int], Sequence[int]]
"""The values that a layer reads, and those that it makes, by their numbers in the old network."""


def is_as_wanted(
    net: Net,
    old: Net,
    wires: Sequence[Wires],
    root: Callable[[int], int],
    shapes: Mapping[int, Shape | None],
) -> bool:
    """Whether the layers of a network are wired like this, and all else is as before.

    `root` says which value an old value is now; `shapes` says which shapes the values have that
    are made in another way now.
    """
    if len(net.layers) != len(wires):
        return False
    inputs = {old.values[number].name: number for number in old.inputs}
    meaning = {number: inputs[net.values[number].name] for number in net.inputs}
    for layer, (reads, makes) in zip(net.layers, wires, strict=True):
        if [meaning[number] for number in layer.inputs] != [root(number) for number in reads]:
            return False
        meaning |= zip(layer.outputs, makes, strict=True)
    for seen, seen_before in ((net.outputs, old.outputs), (net.elsewhere, old.elsewhere)):
        names = {meaning[number]: net.values[number].name for number in seen}
        if names != {root(number): old.values[number].name for number in seen_before}:
            return False
    for number, meant in meaning.items():
        wanted = shapes[meant] if meant in shapes else old.values[meant].shape
        if not _agree(net.values[number].shape, wanted):
            return False
    return _breaks(net) <= _breaks(old)


def _agree(first: Shape | None, second: Shape | None) -> bool:
    """Whether two shapes are one, as far as they are known."""
    if first is None or second is None:
        return True
    known = [{a, b} - {None} for a, b in zip(first, second, strict=False)]
    return len(first) == len(second) and all(len(sizes) <= 1 for sizes in known)


def _breaks(net: Net) -> set[tuple[str, str]]:
    """Layers that take a name which is taken (AppendTop), or overwrite what others read."""
    latest = {net.values[number].name: number for number in net.inputs}
    breaks = set()
    for layer in net.layers:
        for place, (top, number) in enumerate(zip(layer.tops, layer.outputs, strict=True)):
            before = latest.get(top.string)
            latest[top.string] = number
            is_in_place = before is None or (
                layer.inputs[place : place + 1] == [before] and len(net.values[before].readers) == 1
            )
            if not is_in_place:
                breaks.add((layer.name, "name"))
    numbers = range(len(net.values))
    over = overwriting(net, net.layers, numbers, lambda value: net.values[value].name)
    return breaks | {(layer.name, "memory") for layer, _ in over}
