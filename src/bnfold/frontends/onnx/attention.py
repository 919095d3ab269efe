"""Attention: a product with weights that sum to 1 along what is summed is a weighted mean.

    A = Softmax(...)      z[i, c] = sum_j A[i, j] * v[j, c]      sum_j A[i, j] = 1

So what is stored of `v` may be rescaled, alike for all `j`; the weights are read as they are. They
are traced back from the MatMul or Einsum to their Softmax, through nodes that move them: a mask
behind the Softmax ends the search.
"""

from __future__ import annotations

from collections.abc import Sequence

from bnfold.core import graph as g
from bnfold.core.axes import after_expand, after_reshape
from bnfold.frontends.onnx.einsum import terms_of
from bnfold.frontends.onnx.lift_views import is_idle_dropout
from bnfold.frontends.onnx.lifter import Lifter
from bnfold.frontends.onnx.nodes import Node


def emit_product(lifter: Lifter, node: Node) -> bool:
    """MatMul of two matrices, or batches of them."""
    shapes = _shapes(lifter, node)
    if shapes is None or len({len(shape) for shape in shapes}) != 1 or len(shapes[0]) < 2:
        return False
    batch = "".join(chr(ord("A") + axis) for axis in range(len(shapes[0]) - 2))
    return _emit(lifter, node, (batch + "ij", batch + "jk"), batch + "ik")


def emit_einsum(lifter: Lifter, node: Node) -> bool:
    """Einsum of two operands that says what it makes."""
    shapes = _shapes(lifter, node)
    terms = terms_of(node, [len(shape) for shape in shapes[:2]]) if shapes else None
    return terms is not None and _emit(lifter, node, terms[:2], terms[2])


def _shapes(lifter: Lifter, node: Node) -> list[Sequence[int]] | None:
    """Of both operands and the result, if the operands are activations."""
    if len(node.inputs) != 2 or not all(lifter.is_activation(name) for name in node.inputs):
        return None
    shapes = [lifter.shape(name) for name in (*node.inputs, node.outputs[0])]
    return None if None in shapes else [shape for shape in shapes if shape is not None]


def _emit(lifter: Lifter, node: Node, terms: tuple[str, str], made: str) -> bool:
    """`bhij,bhjc->bhic`, `bij,bcj->bci`: the other operand's axes lie where the result has them."""
    for place in (0, 1):
        weights, averaged = terms[place], terms[1 - place]
        axis = _axis_of_ones(lifter, node.inputs[place])
        if axis is None:
            continue
        summed, new = weights[axis], "".join(set(made) - set(averaged))
        if set(weights) - set(made) != {summed} or averaged.replace(summed, new) != made:
            continue
        name, along = node.inputs[1 - place], averaged.find(summed)
        if len(new) == 1 and _has_lengths(lifter, node, name, along):
            source = lifter.tensor(name)
            lifter.graph.pin(node.name, [lifter.tensor(node.inputs[place])])
            varying = lifter.axes_of(source) - {along}
            return lifter.emit(node, g.Mean((along,)), [source], varying) is not None
    return False


def _has_lengths(lifter: Lifter, node: Node, name: str, along: int) -> bool:
    """Whether no other axis of the operand is broadcast, whatever the open sizes are."""
    for choice in range(lifter.shapes.count):
        before, after = (lifter.shapes.of(n, choice) for n in (name, node.outputs[0]))
        if before is None or after is None:
            return False
        rests = [[*shape[:along], *shape[along + 1 :]] for shape in (before, after)]
        if rests[0] != rests[1]:
            return False
    return True


# ------------------------------------------------------------------- weights that sum to 1


def _axis_of_ones(lifter: Lifter, name: str) -> int | None:
    """The axis along which a value's numbers sum to 1, for all that is known."""
    moves: list[Node] = []
    while (node := lifter.network.makers.get(name)) is not None and lifter.is_activation(name):
        if node.op == "Softmax":
            return _moved(lifter, _softmax_axis(lifter, node), moves)
        moves.append(node)
        if node.op not in _MOVERS or (node.op == "Dropout" and not is_idle_dropout(lifter, node)):
            return None
        name = node.inputs[0]
    return None


_MOVERS = frozenset(
    (
        *("Identity", "Cast", "CastLike", "Dropout", "Transpose", "Expand"),
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze"),
    )
)


def _softmax_axis(lifter: Lifter, node: Node) -> int | None:
    """Its axis; before opset 13 the numbers of all axes from there on sum to 1."""
    rank = len(lifter.shape(node.inputs[0]) or ())
    if lifter.network.opset >= 13:
        return node.integer("axis", -1) % rank if rank else None
    return rank - 1 if rank and node.integer("axis", 1) % rank == rank - 1 else None


def _moved(lifter: Lifter, axis: int | None, moves: Sequence[Node]) -> int | None:
    """Where the axis lies in the end, for all open sizes; the last node comes first."""
    for node in reversed(moves):
        places = {_place(lifter, node, axis, choice) for choice in range(lifter.shapes.count)}
        axis = places.pop() if len(places) == 1 else None
    return axis


def _place(lifter: Lifter, node: Node, axis: int | None, choice: int) -> int | None:
    before, after = (lifter.shapes.of(n, choice) for n in (node.inputs[0], node.outputs[0]))
    if axis is None or before is None or after is None:
        return None
    if node.op == "Transpose":
        order = node.integers("perm") or tuple(reversed(range(len(before))))
        return order.index(axis)
    return (after_expand if node.op == "Expand" else after_reshape)(before, after)[axis]
