"""Constants that are added, and stay as they are where what they are added to is scaled.

A step y = a * x + b whose b cannot be edited computes with what is stored: a number in the code, or
one that meets several channels.

    y^ = a' * x^ + b        s_y * a = a' * s_x        t_y = a * t_x + b * (1 / s_y - 1)

So any scale passes, and the readers of y take the shift that it makes. But here a shift depends on
a scale, and the solver keeps the two apart. So at first s_y is 1. Where steps stay then, all is
solved once with t_y free, which tells what scales would be of use, and again with these given.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.binding import Binding
from bnfold.core.laws import editable
from bnfold.core.removal import Solution


def of(binding: Binding) -> list[int]:
    """The steps that have to stay and add what is known and not edited."""
    return [
        number
        for number, op in enumerate(binding.graph.ops)
        if isinstance(op.role, g.AffineStep)
        and not op.role.is_wanted
        and op.role.is_known
        and op.role.shift.any()
        and not (number in binding.affine and editable(binding.affine[number])[1])
    ]


def scales(solution: Solution, numbers: Iterable[int]) -> dict[int, FloatArray | None]:
    """What these steps make is scaled by this, per combination; 1 where nobody asks for it."""
    bound = {n: solution.binding.affine[n] for n in numbers if n in solution.binding.affine}
    known = {number: solution.values.scale[step.outputs] for number, step in bound.items()}
    return {number: np.where(np.isfinite(scale), scale, 1.0) for number, scale in known.items()}
