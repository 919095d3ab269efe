"""Where axes lie after a reshape or a broadcast, against where numbers went."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core.axes import after_expand, after_reshape

RESHAPES = [
    ((2, 3, 4), (6, 4)),
    ((6, 4), (2, 3, 4)),
    ((2, 3, 4), (2, 12)),
    ((2, 3, 4), (4, 3, 2)),
    ((2, 3, 4), (1, 2, 3, 1, 4, 1)),
    ((1, 2, 1, 3), (2, 3)),
    ((4, 4), (2, 2, 4)),
    ((4, 4), (4, 2, 2)),
    ((1, 1), (1,)),
    ((5,), (5, 1)),
]


@pytest.mark.parametrize(("before", "after"), RESHAPES)
def test_an_axis_is_where_its_numbers_count_along_it(before, after):
    places = after_reshape(before, after)
    assert len(places) == len(before)
    for axis, place in enumerate(places):
        moved = counted(before, axis).reshape(after)
        alone = [
            k
            for k in range(len(after))
            if after[k] > 1 and np.array_equal(moved, counted(after, k))
        ]
        assert alone == ([] if place is None else [place])


def counted(shape, axis):
    """Each entry's index along an axis."""
    return np.indices(shape)[axis]


def test_an_axis_that_grows_is_gone():
    assert after_expand((3, 1, 4), (2, 3, 5, 4)) == (1, None, 3)
    assert after_expand((3, 1), (3, 1)) == (0, 1)
