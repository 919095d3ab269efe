"""Where the axes of a tensor lie in what was made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence


def after_reshape(before: Sequence[int], after: Sequence[int]) -> tuple[int | None, ...]:
    """Per axis, its place in the new shape; None where it is cut, merged, or 1 long.

    An axis is there if one of its length has entries as far apart. One of a single entry may be
    anywhere.
    """
    places = {
        (length, math.prod(after[place + 1 :])): place
        for place, length in enumerate(after)
        if length > 1
    }
    return tuple(
        places.get((length, math.prod(before[axis + 1 :]))) for axis, length in enumerate(before)
    )


def after_expand(before: Sequence[int], after: Sequence[int]) -> tuple[int | None, ...]:
    """Per axis, its place in the shape that it is broadcast to; None where it grows."""
    added = len(after) - len(before)
    return tuple(
        axis + added if after[axis + added] == length else None
        for axis, length in enumerate(before)
    )
