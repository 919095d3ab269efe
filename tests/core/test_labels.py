"""Label arrays: broadcasting, merging, and the combinations of several."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core import labels as lab


class TestFresh:
    def test_pinned_labels_are_zero_and_broadcast(self):
        assert lab.pinned(3).shape == (1, 1, 1)
        assert lab.expand(lab.pinned(3), (2, 3, 4)).tolist() == np.zeros((2, 3, 4)).tolist()

    @pytest.mark.parametrize(
        ("given", "shape"),
        [((2, 1, 3), (2, 5, 3)), ((1, 1), (4, 2)), ((3,), (2, 3)), ((1, 0), (2, 0)), ((), (2,))],
    )
    def test_expanded_like_numpy_does(self, given, shape):
        labels = np.arange(np.prod(given, dtype=int)).reshape(given)
        wide = lab.expand(labels, shape)
        assert wide.shape == shape
        assert wide.tolist() == np.broadcast_to(labels, shape).tolist()
        assert wide.nbytes == 0 or np.shares_memory(wide, labels)

    def test_expanded_from_a_view_of_other_strides(self):
        labels = np.arange(12).reshape(3, 4).T[:, None, ::2]
        wide = lab.expand(labels, (4, 5, 2))
        assert wide.tolist() == np.broadcast_to(labels, (4, 5, 2)).tolist()

    @pytest.mark.parametrize(
        ("given", "shape"),
        [((1, 3), (2, 4)), ((1, 2), (1, 4)), ((3, 3), (2, 4)), ((3,), (1,)), ((2, 3), (1, 3))],
    )
    def test_a_shape_that_does_not_fit_is_no_view(self, given, shape):
        with pytest.raises(ValueError, match="broadcast"):
            lab.expand(np.arange(np.prod(given)).reshape(given), shape)

    @pytest.mark.parametrize(("axis", "shape"), [(1, (1, 3, 1)), (2, (1, 1, 3)), (-1, (1, 1, 3))])
    def test_one_variable_per_channel(self, axis, shape):
        labels = lab.along(7, 3, axis, 3)
        assert labels.shape == shape
        assert labels.reshape(-1).tolist() == [7, 8, 9]


class TestCompress:
    def test_a_huge_tensor_takes_no_memory(self):
        labels = lab.expand(lab.along(1, 3, 1, 4), (1 << 20, 3, 1 << 20, 1 << 10))
        assert lab.compress(labels).tolist() == lab.along(1, 3, 1, 4).tolist()

    def test_what_varies_stays(self):
        labels = np.array([[1, 2], [1, 3]])
        assert lab.compress(labels).tolist() == labels.tolist()

    def test_what_repeats_goes(self):
        labels = np.array([[4, 5, 6], [4, 5, 6]])
        assert lab.compress(labels).tolist() == [[4, 5, 6]]
        assert lab.compress(labels.T).tolist() == [[4], [5], [6]]
        assert lab.compress(np.array([[[4, 4, 4], [5, 5, 5]]])).tolist() == [[[4], [5]]]

    @pytest.mark.parametrize("seed", range(5))
    def test_the_values_are_the_same(self, seed):
        generator = np.random.default_rng(seed)
        small = generator.integers(
            0, 3, [(1, 3, 1), (2, 1, 4), (1, 1, 1), (2, 3, 1), (1, 3, 4)][seed]
        )
        full = np.broadcast_to(small, (2, 3, 4))
        compressed = lab.compress(full.copy())
        assert np.broadcast_to(compressed, full.shape).tolist() == full.tolist()
        assert compressed.size <= small.size


class TestMerge:
    def test_what_already_agrees_makes_no_pairs(self):
        merged, left, right = lab.merge_axes(np.array([[3], [4]]), (1,))
        assert merged.tolist() == [[3], [4]]
        assert len(left) == len(right) == 0

    def test_equal_labels_make_no_pairs(self):
        merged, left, _ = lab.merge_axes(np.array([[3, 3], [4, 4]]), (1,))
        assert merged.tolist() == [[3], [4]]
        assert not len(left)

    @pytest.mark.parametrize("axis", [1, -1])
    def test_different_labels_must_become_equal(self, axis):
        merged, left, right = lab.merge_axes(np.array([[3, 5, 3], [4, 4, 6]]), (axis,))
        assert merged.tolist() == [[3], [4]]
        assert sorted(zip(left.tolist(), right.tolist(), strict=True)) == [(5, 3), (6, 4)]

    def test_several_axes(self):
        labels = np.arange(1, 9).reshape(2, 2, 2)
        merged, left, right = lab.merge_axes(labels, (0, 2))
        assert merged.reshape(-1).tolist() == [1, 3]
        pairs = sorted(zip(left.tolist(), right.tolist(), strict=True))
        assert pairs == [(2, 1), (4, 3), (5, 1), (6, 1), (7, 3), (8, 3)]

    def test_one_label_per_channel(self):
        channels, left, right = lab.to_channels(np.array([[[1, 2, 3]], [[1, 9, 3]]]), -1, 3)
        assert channels.tolist() == [1, 2, 3]
        assert (left.tolist(), right.tolist()) == ([9], [2])

    def test_pinned_channels(self):
        channels, left, _ = lab.to_channels(lab.pinned(4), 1, 5)
        assert channels.tolist() == [0] * 5
        assert not len(left)


def restore(arrays, where):
    """What `combine` found, element by element."""
    return [array[where] for array in arrays]


class TestCombine:
    def test_too_many_are_refused(self, monkeypatch):
        monkeypatch.setattr(lab, "MAX_PAIRS", 6)
        assert lab.combine([np.arange(3)[:, None], np.arange(2)[None]]) is not None
        assert lab.combine([np.arange(3)[:, None], np.arange(3)[None]]) is None

    def test_pairs_that_repeat_are_one(self, monkeypatch):
        monkeypatch.setattr(lab, "SMALL", 0)
        found = lab.combine([np.array([[1], [2]]), np.array([[5, 6, 5]])])
        assert found is not None
        arrays, where, count = found
        assert count == 4
        assert where.shape == (2, 3)
        pairs = {(int(a), int(b)) for a, b in zip(*arrays, strict=True)}
        assert pairs == {(1, 5), (1, 6), (2, 5), (2, 6)}

    @pytest.mark.parametrize(
        ("one", "other", "shape"),
        [([[1], [1]], [[5, 6, 5]], (1, 3)), ([[1], [2]], [[5, 5, 5]], (2, 1))],
    )
    def test_what_is_made_of_coarser_arrays_repeats(self, one, other, shape):
        """Also where the result is small; what is found is compressed."""
        found = lab.combine([np.array(one), np.array(other)])
        assert found is not None
        _, where, count = found
        assert count == 2
        assert where.shape == shape

    def test_a_large_array_is_searched_for_what_repeats(self, monkeypatch):
        """In an array that is as fine as the result, too: it may be a whole image."""
        monkeypatch.setattr(lab, "SMALL", 2)
        found = lab.combine([np.array([1, 1, 2]), np.array([5, 5, 6])])
        assert found is not None
        assert found[2] == 2

    @pytest.mark.parametrize("small", [0, 4096])
    @pytest.mark.parametrize(
        "shapes", [((1, 4, 1), (1, 4, 1)), ((2, 1, 3), (1, 4, 1)), ((1, 1, 1), (2, 4, 3))]
    )
    def test_every_element_gets_its_own_combination(self, monkeypatch, shapes, small):
        """On the fast path for small arrays and on the general one."""
        monkeypatch.setattr(lab, "SMALL", small)
        generator = np.random.default_rng(1)
        arrays = [generator.integers(0, 3, shape) for shape in shapes] + [lab.pinned(3)]
        found = lab.combine(arrays)
        assert found is not None
        distinct, where, count = found
        assert all(len(array) == count for array in distinct)
        shape = np.broadcast_shapes(*shapes)
        for array, restored in zip(arrays, restore(distinct, where), strict=True):
            expected = np.broadcast_to(array, shape)
            assert np.broadcast_to(restored, shape).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("labels", "repeats"),
    [
        ([[[0]]], False),
        ([[1, 2, 3]], False),
        ([[1, 1, 2, 2]], True),
        ([[1, 2, 1, 2]], True),
        ([[1, 2], [3, 4]], False),
        ([[1, 2], [1, 2]], False),
        ([[1, 2], [3, 4], [1, 2]], True),
        ([[0, 0, 5]], True),
    ],
)
def test_labels_that_come_again_on_their_axis(labels, repeats):
    assert lab.repeat_along_an_axis(np.array(labels)) is repeats


@pytest.mark.parametrize(
    ("shape", "vary"),
    [
        ((1, 3, 1, 1), False),
        ((1, 3), False),
        ((1, 1, 1), False),
        ((2, 3, 1, 1), True),
        ((2, 1, 1, 1), True),
        ((1, 3, 5), True),
        ((1, 1, 1, 4), True),
        ((3,), True),
    ],
)
def test_labels_that_vary_off_the_channels(shape, vary):
    assert lab.vary_off_the_channels(np.arange(np.prod(shape)).reshape(shape)) is vary


def test_thin_keeps_the_labels_and_the_axes_asked_for() -> None:
    full = lab.expand(lab.along(1, 3, 1, 3), (2, 3, 4))
    assert lab.thin(full).shape == (1, 3, 1)
    assert lab.thin(full, keep=(2,)).shape == (1, 3, 4)
    assert np.array_equal(np.broadcast_to(lab.thin(full), full.shape), full)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_concat_is_numpys_without_spreading(axis: int) -> None:
    first = lab.expand(lab.along(1, 3, 1, 3), (2, 3, 4))
    second = lab.expand(lab.along(9, 3, 1, 3), (2, 3, 4))
    joined = lab.concat([first, second], axis)
    whole = np.concatenate([first, second], axis=axis)
    assert np.array_equal(np.broadcast_to(joined, whole.shape), whole)
    assert joined.size == max(6, 3 * whole.shape[axis]) or axis == 1


def test_concat_spreads_where_one_part_changes() -> None:
    first = lab.expand(lab.along(1, 4, 2, 3), (2, 3, 4))
    second = lab.expand(lab.pinned(3), (2, 3, 4))
    joined = lab.concat([first, second], 1)
    assert joined.shape == (1, 6, 4)
    assert (joined[:, 3:] == 0).all()


def test_concat_broadcasts_an_axis_of_length_1() -> None:
    first, second = lab.along(1, 4, 2, 3), np.full((1, 2, 1), 9)
    assert lab.concat([first, second], 1).tolist() == [[[1, 2, 3, 4], [9] * 4, [9] * 4]]


def test_concat_of_too_many_is_refused() -> None:
    part = lab.along(1, 4, 1, 2)
    assert lab.concat([part, part], 1, 8).size == 8
    with pytest.raises(ValueError, match="too many"):
        lab.concat([part, part], 1, 7)


@pytest.mark.parametrize(
    ("axes", "shape", "place"),
    [
        ([0], (5, 3, 4), None),
        ([2], (2, 2, 7), None),
        ([0], (6, 3, 4), 0),
        ([2], (2, 3, 5, 6), 2),
        ([0, 2], (8, 3), 0),
        ([0], (3, 4), 0),
        ([1], (2, 9, 4), 1),
    ],
)
def test_what_is_picked_has_the_labels_of_the_other_axes(axes, shape, place) -> None:
    random = np.random.default_rng(0)
    whole = [1 if axis in axes else length for axis, length in enumerate((2, 3, 4))]
    labels = np.broadcast_to(random.integers(0, 99, whole), (2, 3, 4))
    made = lab.picked(labels, axes, shape, place)
    assert made.shape == shape
    others = [axis for axis in range(3) if axis not in axes]
    kept = labels.take(0, axes[0]) if len(axes) == 1 else labels[0, :, 0]
    if place is None:
        kept = kept[tuple(slice(shape[axis]) for axis in others)]
        assert (np.moveaxis(made, axes[0], 0) == kept).all()
    else:
        new = made.ndim - kept.ndim
        for axis in range(place, place + new):
            made = made.take([-1], axis) if made.shape[axis] > 1 else made
        assert (made.reshape(kept.shape) == kept).all()
