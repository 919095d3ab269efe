"""Matrices between views, as `run_decompositions()` writes a Linear: nodes that are one op.

    view(mm(view(x, (-1, C)), W), (*x.shape[:-1], D))

is a matrix along the last axis of x, if nobody else reads what lies between. One that carries keeps
its views, with the numbers of channels of what is merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, fx

from bnfold.frontends.torch.ops import op_name

_MATRICES = ("mm", "addmm")
_VIEWS = ("view", "_unsafe_view", "reshape")


@dataclass(frozen=True, slots=True, eq=False)
class Viewed:
    """The three nodes."""

    flat: fx.Node
    matrix: fx.Node
    back: fx.Node

    @property
    def views(self) -> tuple[fx.Node, fx.Node]:
        """In front of the matrix, and behind it."""
        return self.flat, self.back


def viewed(nodes: Iterable[fx.Node]) -> Iterator[Viewed]:
    """Those of which a node among these is the matrix."""
    for matrix in nodes:
        name = op_name(matrix.target)
        if name not in _MATRICES or matrix.kwargs:
            continue
        flat, back = matrix.args[_MATRICES.index(name)], next(iter(matrix.users), None)
        if not isinstance(flat, fx.Node) or back is None:
            continue
        if any(op_name(node.target) not in _VIEWS for node in (flat, back)):
            continue
        if len(flat.users) == len(matrix.users) == 1 and _is_one(flat, matrix, back):
            yield Viewed(flat, matrix, back)


def _is_one(flat: fx.Node, matrix: fx.Node, back: fx.Node) -> bool:
    """Whether the rows of the matrix are the places of a tensor, in turn."""
    (*places, ins), rows = _sizes(flat.args[0]), _sizes(flat)
    outs = _sizes(matrix)[-1:]
    return len(rows) == 2 and rows[1] == ins and _sizes(back) == (*places, *outs)


def _sizes(node: object) -> tuple[str, ...]:
    """What the program says of a tensor's shape, sizes that are open by their names."""
    assert isinstance(node, fx.Node)
    told = node.meta.get("val")
    return tuple(map(str, told.shape)) if isinstance(told, Tensor) else ("",)
