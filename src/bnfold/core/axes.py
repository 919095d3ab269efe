"""Where the axes of a tensor lie in what was made of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

Shape = Sequence[int]


def after_reshape(before: Shape, after: Shape) -> tuple[int | None, ...]:
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


def after_expand(before: Shape, after: Shape) -> tuple[int | None, ...]:
    """Per axis, its place in the shape that it is broadcast to; None where it grows."""
    added = len(after) - len(before)
    return tuple(
        axis + added if after[axis + added] == length else None
        for axis, length in enumerate(before)
    )


UNKNOWN = 0
"""A period that is not known; what lies along the axis may differ from entry to entry."""


def periods(
    before: Shape,
    after: Shape,
    repeats: Mapping[int, int],
    opened: Collection[int],
) -> dict[int, int]:
    """After how many entries what a reshape lays along its axes has to come again.

    A batch of B images, each of h * c channels, becomes B * h rows of c: row r has what row r - h
    has, however many images there are. So it is where an axis of any length, and what it is made
    of, count slowest among what they are cut or merged with, and everything else there has a fixed
    length. Else which of them an entry has depends on the length: all of them are to be alike.

    Args:
        before: Shape of the input.
        after: Shape of the result.
        repeats: Per axis of the input that may have any length, its own period.
        opened: The axes of the result that may have any length.

    Returns:
        A period per axis of the result; 1 is alike, and nothing is asked of an axis that is not in.
    """
    made: dict[int, int] = {}
    for old, new in blocks(before, after):
        merged = [axis for axis in old if axis in repeats or before[axis] > 1]
        cut = [axis for axis in new if axis in opened or after[axis] > 1]
        if not any(axis in repeats for axis in merged) and not any(axis in opened for axis in cut):
            continue
        if _counts_slowest(merged, repeats) and _counts_slowest(cut, opened):
            own = repeats[merged[0]]
            entries = (own or 1) * math.prod(before[axis] for axis in merged[1:])
            together = math.gcd(entries, math.prod(after[axis] for axis in cut[1:]))
            is_kept = own == UNKNOWN and len(merged) == len(cut) == 1
            made[cut[0]] = UNKNOWN if is_kept else entries // together
        else:
            made |= dict.fromkeys(new, 1)
    return made


def _counts_slowest(axes: Sequence[int], opened: Collection[int]) -> bool:
    """Whether the first of these axes, and none of the others, may have any length."""
    return [axis in opened for axis in axes] == [True] + [False] * (len(axes) - 1)


def blocks(before: Shape, after: Shape) -> Iterator[tuple[range, range]]:
    """The axes of two shapes of equal size, in runs as short as may be that hold equally much."""
    start_old = start_new = 0
    while start_old < len(before) or start_new < len(after):
        old, new = _block(before, after, start_old, start_new)
        yield range(start_old, old), range(start_new, new)
        start_old, start_new = old, new


def _block(old: Shape, new: Shape, old_start: int, new_start: int) -> tuple[int, int]:
    """The ends of the shortest runs of axes, from two places on, of equal size."""
    old_stop, new_stop = min(old_start + 1, len(old)), min(new_start + 1, len(new))
    while True:
        left, right = math.prod(old[old_start:old_stop]), math.prod(new[new_start:new_stop])
        if left == right:
            break
        if left < right and old_stop < len(old):
            old_stop += 1
        elif new_stop < len(new):
            new_stop += 1
        else:
            old_stop += 1
    if old_stop == len(old):  # what is left over has length 1
        new_stop = len(new)
    if new_stop == len(new):
        old_stop = len(old)
    return old_stop, new_stop
