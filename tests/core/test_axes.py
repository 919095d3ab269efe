"""Where axes lie after a reshape or a broadcast, against where numbers went."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core.axes import UNKNOWN, after_expand, after_reshape, periods

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


FORMS = [
    # the shapes before and after, as the batch decides; the input's own period; what is said
    (lambda b: (b, 6, 5), lambda b: (b * 2, 3, 5), 1, {0: 2}),
    (lambda b: (b, 6, 5), lambda b: (b * 6, 5), 1, {0: 6}),
    (lambda b: (b * 6, 5), lambda b: (b * 3, 2, 5), 6, {0: 3}),
    (lambda b: (b * 6, 5), lambda b: (b, 6, 5), 6, {0: 1}),
    (lambda b: (b * 6, 5), lambda b: (b, 1, 6, 5), UNKNOWN, {0: 1}),
    (lambda b: (b * 6, 5), lambda b: (b * 6, 5, 1), UNKNOWN, {0: UNKNOWN}),
    (lambda b: (b * 6, 5), lambda b: (1, b * 6, 5), 6, {1: 6}),
    (lambda b: (b * 6, 5), lambda b: (6, b, 5), 6, {0: 1, 1: 1}),
    (lambda b: (b, 6, 5), lambda b: (6, b, 5), 1, {0: 1, 1: 1}),
    (lambda b: (b, 6, 5), lambda b: (b * 30,), 1, {0: 30}),
    (lambda b: (b, 4, 5), lambda b: (b * 10, 2), 1, {0: 10}),
    (lambda b: (b, 4, 5), lambda b: (b * 2, 2, 5), 3, {0: 6}),
]


@pytest.mark.parametrize(("before", "after", "own", "said"), FORMS)
@pytest.mark.parametrize("batch", [2, 3, 7])
def test_after_how_many_entries_all_comes_again(before, after, own, said, batch):
    old, new = before(batch), after(batch)
    opened = {axis for axis, (a, b) in enumerate(zip(new, after(11), strict=True)) if a != b}
    said_here = periods(old, new, {0: own}, opened)
    assert said_here == said
    if own == UNKNOWN or old[0] % own:
        return
    index, *rest = np.indices(old)
    labels = np.ravel_multi_index((index % own, *rest), (own, *old[1:])).reshape(new)
    for axis, period in said_here.items():
        if period != 1:
            first = np.take(labels, np.arange(new[axis]) % period, axis)
            np.testing.assert_array_equal(labels, first)
