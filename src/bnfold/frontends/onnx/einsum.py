"""The equation of an Einsum of two operands, with a letter for every axis.

    abc,cd->abd          as it is
    ...c,cd->...d        the axes that the dots stand for have letters of their own
    abc,cd               not read: what it makes has to be said
    aab,bc->ac           not read: nor diagonals
https://onnx.ai/onnx/operators/onnx__Einsum.html
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters

from bnfold.frontends.onnx.nodes import Node

_DOTS = "..."


def terms_of(node: Node, ranks: Sequence[int]) -> tuple[str, str, str] | None:
    """Both operands and what is made of them, given the ranks of the operands."""
    operands, arrow, made = node.text("equation", "").replace(" ", "").partition("->")
    terms = [*operands.split(","), made]
    if not arrow or len(terms) != 3 or len(ranks) != 2:
        return None
    free = [letter for letter in ascii_letters if letter not in operands + made]
    behind = {
        rank - len(term) + len(_DOTS)
        for term, rank in zip(terms, ranks, strict=False)
        if _DOTS in term
    }
    if len(behind) > 1 or min(behind, default=0) < 0 or (_DOTS in made and not behind):
        return None
    dots = "".join(free[: behind.pop() if behind else 0])
    first, second, made = (term.replace(_DOTS, dots, 1) for term in terms)
    if any(not term.isalpha() or len(set(term)) != len(term) for term in (first, second, made)):
        return None
    has_ranks = (len(first), len(second)) == tuple(ranks)
    return (first, second, made) if has_ranks and not set(made) - set(first + second) else None
