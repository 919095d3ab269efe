"""W' = s_y * W / s_x and B' = s_y * (B - W t_x + t_y), against a naive loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bnfold.core import weights
from bnfold.core.plan import LinearEdit
from bnfold.core.weights import Layout, exchanged, fold_bias, fold_weight, weight_factors


def edit_of(ins: int, outs: int, *, seed: int = 0, zeroed=(), dead=()) -> LinearEdit:
    generator = np.random.default_rng(seed)
    mask = np.zeros(outs, dtype=bool)
    mask[list(zeroed)] = True
    inverse = generator.standard_normal(ins) + 2
    inverse[list(dead)] = 0.0
    return LinearEdit(
        inverse,
        generator.standard_normal(ins),
        -generator.standard_normal(outs) - 0.3,
        generator.standard_normal(outs),
        mask,
    )


def naive(weight, bias, edit, layout, groups):
    """The algebra of the module's head, one number at a time."""
    ins, outs = len(edit.input_inverse), len(edit.output_scale)
    folded = np.empty_like(weight)
    new_bias = np.array(bias, dtype=float)
    new_bias[edit.zeroed] = 0.0
    per_in, per_out = ins // groups, outs // groups
    for o, i in itertools.product(range(outs), range(ins)):
        if o // per_out != i // per_in:
            continue
        at = (o, i % per_in) if layout is Layout.OUT_IN else (i, o % per_out)
        taps = np.zeros_like(weight[at]) if edit.zeroed[o] else weight[at]
        folded[at] = edit.output_scale[o] * taps * edit.input_inverse[i]
        new_bias[o] -= taps.sum() * edit.input_shift[i]
    return folded, edit.output_scale * (new_bias + edit.output_shift)


@pytest.mark.parametrize("kernel", [(), (3,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("layout", [Layout.OUT_IN, Layout.IN_OUT])
@pytest.mark.parametrize("zeroed", [(), (1, 6)])
@pytest.mark.parametrize("plain_input", [True, False])
@pytest.mark.parametrize("block", [1, 9, 1 << 17])
def test_every_layout_against_a_loop(
    layout, groups, kernel, zeroed, plain_input, block, monkeypatch
):
    monkeypatch.setattr(weights, "_BLOCK", block)
    ins, outs = 4, 8
    shape = (outs, ins // groups) if layout is Layout.OUT_IN else (ins, outs // groups)
    generator = np.random.default_rng(3)
    weight, bias = generator.standard_normal((*shape, *kernel)), generator.standard_normal(outs)
    edit = edit_of(ins, outs, zeroed=zeroed, dead=() if plain_input else (2,))
    if plain_input:
        edit.input_inverse[:] = 1.0
    expected_weight, expected_bias = naive(weight, bias, edit, layout, groups)
    np.testing.assert_allclose(
        fold_weight(weight, edit, layout, groups), expected_weight, rtol=1e-14
    )
    np.testing.assert_allclose(
        fold_bias(weight, bias, edit, layout, groups), expected_bias, rtol=1e-12
    )


def test_a_missing_bias_is_zero():
    weight = np.random.default_rng(1).standard_normal((3, 2))
    edit = edit_of(2, 3)
    with_zeros = fold_bias(weight, np.zeros(3), edit, Layout.OUT_IN, 1)
    np.testing.assert_array_equal(fold_bias(weight, None, edit, Layout.OUT_IN, 1), with_zeros)
    assert with_zeros.all()


def test_without_a_shift_of_the_input_the_bias_needs_no_weight():
    """A large one need not be read; with a shift it is not left out in silence."""
    weight, bias = np.random.default_rng(1).standard_normal((3, 2)), np.arange(3.0)
    edit = edit_of(2, 3, zeroed=(1,))
    with pytest.raises(AssertionError, match="weight"):
        fold_bias(None, bias, edit, Layout.OUT_IN, 1)
    edit.input_shift[:] = 0.0
    expected = fold_bias(weight, bias, edit, Layout.OUT_IN, 1)
    np.testing.assert_array_equal(fold_bias(None, bias, edit, Layout.OUT_IN, 1), expected)


def test_an_embedding_holds_its_shift_in_the_table():
    table = np.random.default_rng(1).standard_normal((5, 3))
    edit = edit_of(0, 3)
    expected = edit.output_scale * (table + edit.output_shift)
    np.testing.assert_allclose(fold_weight(table, edit, Layout.ROWS_OUT, 1), expected)


def test_a_zeroed_column_of_an_embedding_still_holds_its_shift():
    """The value becomes 0, and 0 is stored as s * (0 + t)."""
    table = np.random.default_rng(1).standard_normal((5, 3))
    edit = edit_of(0, 3, zeroed=(1,))
    folded = fold_weight(table, edit, Layout.ROWS_OUT, 1)
    expected = edit.output_scale[1] * edit.output_shift[1]
    np.testing.assert_allclose(folded[:, 1], expected)


def test_the_input_is_not_touched():
    weight = np.random.default_rng(1).standard_normal((3, 2, 3))
    bias = np.arange(3.0)
    before = weight.copy()
    edit = edit_of(2, 3, zeroed=(0,))
    fold_weight(weight, edit, Layout.OUT_IN, 1)
    fold_bias(weight, bias, edit, Layout.OUT_IN, 1)
    np.testing.assert_array_equal(weight, before)
    np.testing.assert_array_equal(bias, np.arange(3.0))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("layout", [Layout.OUT_IN, Layout.ROWS_OUT])
def test_rounded_once_to_the_dtype_of_the_weight(dtype, layout):
    weight = np.random.default_rng(2).standard_normal((5, 3)).astype(dtype)
    edit = edit_of(0 if layout is Layout.ROWS_OUT else 3, 3 if layout is Layout.ROWS_OUT else 5)
    exact = fold_weight(weight.astype(np.float64), edit, layout, 1)
    folded = fold_weight(weight, edit, layout, 1)
    assert folded.dtype == dtype
    np.testing.assert_array_equal(folded, exact.astype(dtype))


def test_an_overflow_is_left_to_be_seen():
    weight = np.full((1, 1), 6e4, dtype=np.float16)
    edit = LinearEdit(np.ones(1), np.zeros(1), np.full(1, 2.0), np.zeros(1), np.zeros(1, bool))
    assert np.isinf(fold_weight(weight, edit, Layout.OUT_IN, 1)).all()


@pytest.mark.parametrize("kernel", [(), (2, 3)])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("layout", [Layout.OUT_IN, Layout.IN_OUT])
@pytest.mark.parametrize("plain", [False, True])
def test_factors_do_what_folding_does(layout, groups, kernel, plain):
    ins, outs = 4, 8
    shape = (outs, ins // groups) if layout is Layout.OUT_IN else (ins, outs // groups)
    weight = np.random.default_rng(4).standard_normal((*shape, *kernel))
    edit = edit_of(ins, outs, zeroed=() if plain else (1, 6), dead=() if plain else (2,))
    if plain:
        side = edit.input_inverse if layout is Layout.OUT_IN else edit.output_scale
        side[...] = 1.0
    factors = weight_factors(edit, layout, groups, weight.ndim)
    assert factors.ndim == weight.ndim
    assert factors.shape == (len(weight), 1 if plain else shape[1], *(1 for _ in kernel))
    expected = fold_weight(weight, edit, layout, groups)
    np.testing.assert_allclose(weight * factors, expected, rtol=1e-14)


def test_factors_of_rows():
    edit = edit_of(0, 3, zeroed=(1,))
    edit.output_shift[...] = 0.0
    table = np.random.default_rng(5).standard_normal((4, 3))
    factors = weight_factors(edit, Layout.ROWS_OUT, 1, 2)
    assert factors.shape == (1, 3)
    expected = fold_weight(table, edit, Layout.ROWS_OUT, 1)
    np.testing.assert_allclose(table * factors, expected, rtol=1e-15)


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("plain", [False, True])
def test_the_caller_may_say_where_the_weight_goes(layout, plain):
    """Room that does not lie in one piece, too."""
    edit = edit_of(3, 3)
    if plain:
        (edit.output_scale if layout is Layout.IN_OUT else edit.input_inverse)[...] = 1.0
    weight = np.random.default_rng(6).standard_normal((3, 3))
    room = np.full((6, 3), np.nan)[::2].T
    folded = fold_weight(weight, edit, layout, 1, out=room)
    assert folded is room
    np.testing.assert_allclose(room, fold_weight(weight, edit, layout, 1), rtol=1e-15)


def test_an_edit_says_whether_it_changes_one_number():
    def edit(ins=(1.0, 1.0), before=(0.0, 0.0), outs=(1.0, 1.0), after=(0.0, 0.0), zeroed=()):
        mask = np.zeros(2, dtype=bool)
        mask[list(zeroed)] = True
        return LinearEdit(*map(np.array, (ins, before, outs, after)), mask)

    assert not edit().rescales
    assert not edit().needs_bias
    assert edit(ins=(1.0, 2.0)).rescales
    assert edit(outs=(-1.0, 1.0)).rescales
    assert edit(zeroed=(1,)).rescales
    assert edit(before=(0.0, 0.3)).needs_bias
    assert edit(after=(0.3, 0.0)).needs_bias
    assert not edit(before=(0.0, 0.3), after=(0.3, 0.0)).rescales
    assert not edit(ins=(1.0, 2.0), zeroed=(0,)).needs_bias


@pytest.mark.parametrize("columns", [(2.0, 2.0, 2.0), (1.0, 2.0, 1.0)])
def test_columns_that_are_alike_or_1_in_part(columns):
    edit = edit_of(3, 4)
    edit.input_inverse[...] = columns
    weight = np.random.default_rng(7).standard_normal((4, 3))
    expected = edit.output_scale[:, None] * weight * np.array(columns)
    factors = weight_factors(edit, Layout.OUT_IN, 1, 2)
    np.testing.assert_allclose(weight * factors, expected, rtol=1e-14)
    np.testing.assert_allclose(fold_weight(weight, edit, Layout.OUT_IN, 1), expected, rtol=1e-14)


@pytest.mark.parametrize("layout", [Layout.OUT_IN, Layout.IN_OUT])
def test_depthwise_weights_in_pieces(layout):
    edit = edit_of(4, 4)
    weight = np.random.default_rng(8).standard_normal((8, 1, 3))[::2]
    room = np.full((8, 1, 3), np.nan)[::2]
    fold_weight(weight, edit, layout, 4, out=room)
    expected = weight * (edit.output_scale * edit.input_inverse)[:, None, None]
    np.testing.assert_allclose(room, expected, rtol=1e-14)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_axes_are_exchanged_within_each_group(groups):
    ins, outs = 2, 5  # of a group
    weight = np.random.default_rng(groups).standard_normal((groups * ins, outs, 4, 3))
    turned = exchanged(weight, groups)
    assert turned.shape == (groups * outs, ins, 4, 3)
    for group, i, o in itertools.product(range(groups), range(ins), range(outs)):
        np.testing.assert_array_equal(turned[group * outs + o, i], weight[group * ins + i, o])
    np.testing.assert_array_equal(exchanged(turned, groups), weight)
    assert Layout.IN_OUT.channels(weight.shape, groups) == (groups * ins, groups * outs)
    assert Layout.OUT_IN.channels(turned.shape, groups) == (groups * ins, groups * outs)


def test_a_product_in_small_pieces_is_rounded_once_and_leaves_numpy_as_it_was():
    before = np.getbufsize()
    generator = np.random.default_rng(5)
    weight = generator.standard_normal((7, 3000)).astype(np.float32)
    factor = generator.standard_normal((7, 1))
    made = np.empty_like(weight)
    weights.multiply(weight, factor, made)
    wanted = (weight.astype(np.float64) * factor).astype(np.float32)
    np.testing.assert_array_equal(made, wanted)
    with pytest.raises(ValueError, match="broadcast"):
        weights.multiply(weight, factor[:3], made)
    assert np.getbufsize() == before
