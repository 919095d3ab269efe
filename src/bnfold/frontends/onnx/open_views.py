"""Whether a Reshape takes every value to the same channel for every size.

A Reshape keeps the order of elements. If as many lie in front of an axis of the input as lie in
front of an axis of the output (or behind both) for every size, the two are one place, and what lies
between two such places is reshaped by itself. Labels may vary only where all lengths between two
places are fixed: there, one size stands for all.

    (N, 4, H, W) -> (N, 2, 2, H W)      places: in front, behind N, behind 4 | 2 2, at the end
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from bnfold.frontends.onnx.lifter import Lifter
from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.sizes import Size, product


def keeps_places(lifter: Lifter, node: Node) -> bool:
    """See the head of this file."""
    if lifter.shapes.count == 1:
        return True
    old, new = (lifter.shapes.lengths.get(n) for n in (node.inputs[0], node.outputs[0]))
    if old is None or new is None:
        return False
    squeezes_all = node.op == "Squeeze" and not (node.input(1) or node.integers("axes"))
    if squeezes_all and not all(size.is_fixed for size in old):  # any of them may be 1
        return False
    varying = lifter.axes_of(lifter.tensor(node.inputs[0]))
    for (start, new_start), (stop, new_stop) in pairwise(_places(old, new)):
        has_labels = any(start <= axis < stop for axis in varying)
        if has_labels and not all(s.is_fixed for s in (*old[start:stop], *new[new_start:new_stop])):
            return False
    return True


def _places(old: Sequence[Size], new: Sequence[Size]) -> list[tuple[int, int]]:
    """Pairs of axes of both, in front of which the same number of elements lies."""
    places = [(0, 0)]
    for axis in range(1, len(old)):
        ahead, behind = product(old[:axis]), product(old[axis:])
        for other in range(places[-1][1], len(new) + 1):
            if product(new[:other]) == ahead or product(new[other:]) == behind:
                places.append((axis, other))
                break
    return [*places, (len(old), len(new))]
