"""Places that each run picks anew: by indices that are computed, or inputs of the network.

See the core's `labels.picked`: along the axes that they pick on, what is stored is stored alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bnfold.core import graph as g
from bnfold.core import labels as lab
from bnfold.core.forest import IntArray
from bnfold.frontends.onnx.lifter import Lifter
from bnfold.frontends.onnx.nodes import Node

Picked = tuple[list[int], int | None]
"""The axes that are picked on, and the place of what replaces them; None where they stay."""


def pick(lifter: Lifter, node: Node) -> bool:
    """`Gather`, `GatherElements`, `GatherND` and `Compress`, by other places in each run."""
    source, output = node.inputs[0], node.outputs[0]
    shape = lifter.shape(source)
    if not lifter.is_activation(source) or not lifter.is_float(output) or not shape:
        return False
    found = _PICKS[node.op](lifter, node, len(shape))
    if found is None:
        return False
    axes, place = found

    def make(choice: int) -> lab.Apply:
        made = lifter.shapes.of(output, choice) or ()

        def apply(labels: Sequence[IntArray]) -> list[IntArray]:
            return [lab.picked(labels[0], axes, made, place)]

        return apply

    tensor = lifter.tensor(source)
    (alike,) = lifter.graph.add(node.name, g.Alike(tuple(axes)), [tensor], [shape], kind=node.op)
    lifter.varying[alike] = lifter.axes_of(tensor) - {*axes}
    lifter.names[alike] = source
    return lifter.emit_view(node, [alike], [output], make)


def _gather(lifter: Lifter, node: Node, rank: int) -> Picked:
    axis = node.integer("axis") % rank
    return [axis], axis


def _elements(lifter: Lifter, node: Node, rank: int) -> Picked:
    return [node.integer("axis") % rank], None


def _compress(lifter: Lifter, node: Node, rank: int) -> Picked | None:
    is_flat = node.attribute("axis") is None
    return None if is_flat else ([node.integer("axis") % rank], None)


def _gather_nd(lifter: Lifter, node: Node, rank: int) -> Picked | None:
    indices, first = lifter.shape(node.inputs[1]), node.integer("batch_dims")
    if indices is None:
        return None
    return list(range(first, first + indices[-1])), first


_PICKS: dict[str, Callable[[Lifter, Node, int], Picked | None]] = {
    "Gather": _gather,
    "GatherElements": _elements,
    "GatherND": _gather_nd,
    "Compress": _compress,
}
