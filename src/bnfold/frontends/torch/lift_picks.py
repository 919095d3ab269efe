"""Places that each run picks anew: by indices and masks that are computed, or passed in.

Along the axes that they pick on, what is stored is stored alike. Then it does not matter what is
picked there, and the other axes stay what they are: a BatchNorm behind `x[mask]` over tokens, or
behind `x.index_select(0, sources)` over the nodes of a graph, may go into what makes x.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bnfold.core import graph as g
from bnfold.core import labels as lab
from bnfold.core.forest import IntArray
from bnfold.frontends.torch.lifter import Lifter, is_floating
from bnfold.frontends.torch.ops import Arguments, UnfitError, functional, op_name
from bnfold.frontends.torch.recording import Const, Event, Value


def pick(lifter: Lifter, event: Event) -> bool:
    """`index`, `index_select` and `gather`, by other places in each run."""
    source, made = event.args[0], event.outputs[0]
    if not isinstance(source, Value) or made is None or not is_floating(source):
        return False
    if 0 in source.shape:
        return False
    a, place = Arguments(event), None
    if op_name(event.target) == "index":
        axes, place = _indexed(a)
    else:
        axes = [a.whole("dim") % len(source.shape)]

    def apply(labels: Sequence[IntArray]) -> list[IntArray]:
        return [lab.picked(labels[0], axes, made.shape, place)]

    alike = lifter.graph.add(
        event.name, g.Alike(tuple(axes)), [lifter.tensor(source)], [source.shape]
    )
    lifter.emit(event, g.View(apply), alike)
    return True


def add_up(lifter: Lifter, event: Event) -> bool:
    """`index_add` and `scatter_add` to zeros: sums of who knows how many, which no shift passes."""
    a, made = Arguments(event), event.outputs[0]
    source, index = a.get("source", "src"), a["index"]
    if not isinstance(source, Value) or made is None or not made.shape:
        return False
    if not adds_to_zeros(event) or a.get("alpha") not in (None, 1):
        return False
    indexed = index.shape if isinstance(index, Value) else tuple(index.tensor.shape)
    if op_name(event.target).startswith("scatter") and indexed != source.shape:
        return False
    axis = a.whole("dim") % len(made.shape)
    if _beside(axis, source.shape) != _beside(axis, made.shape):
        return False
    lifter.emit(event, g.Mean((axis,), counts_zeros=True), [lifter.tensor(source)])
    return True


def adds_to_zeros(event: Event) -> bool:
    """Whether it adds values to places of a constant that is 0."""
    base = event.args[0] if event.args else None
    known = functional(op_name(event.target)) in ADD_UP
    return known and isinstance(base, Const) and not bool(base.tensor.any())


ADD_UP = ("index_add", "scatter_add")


def _beside(axis: int, shape: Sequence[int]) -> list[int]:
    """The lengths of all other axes."""
    return [length for place, length in enumerate(shape) if place != axis]


def _indexed(a: Arguments) -> tuple[list[int], int]:
    """The axes that are indexed, and in front of which of the others the new ones stand."""
    axes: list[int] = []
    axis, is_apart = 0, False
    for index in a["indices"]:
        if index is None:
            axis += 1
            continue
        if not isinstance(index, Value | Const):
            raise UnfitError
        tensor = index if isinstance(index, Value) else index.tensor
        count = len(tensor.shape) if tensor.dtype in (torch.bool, torch.uint8) else 1
        if not count:
            raise UnfitError
        is_apart |= bool(axes) and axes[-1] != axis - 1
        axes += range(axis, axis + count)
        axis += count
    return axes, 0 if is_apart or not axes else axes[0]
