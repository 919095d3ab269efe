"""Branches and chains of linear nodes that must not become one node."""

from __future__ import annotations

import numpy as np
import pytest

from tests.frontends.onnx.merging import X, added, folded, two
from tests.frontends.onnx.test_merge import sliced, stacked


def a_branch_is_an_output(s):
    a, b = two(s)
    s.output(added(s, a, b), b)


def a_branch_is_read_elsewhere(s):
    a, b = two(s)
    s.output(added(s, a, b), s.node("Relu", b, name="act"))


def a_branch_is_read_twice_elsewhere(s):
    a, b = two(s)
    s.output(s.node("Mul", added(s, a, b), s.node("Sigmoid", b, name="g"), name="gate"))


def the_shape_of_a_branch_is_read(s):
    a, b = two(s)
    s.output(s.node("Reshape", added(s, a, b), s.node("Shape", b, name="shape"), name="out"))


def the_size_of_a_branch_is_read(s):
    a, b = two(s)
    whole = added(s, a, b)
    s.output(whole, s.node("Cast", s.node("Size", a, name="size"), name="count", to=s.element_type))


def the_shape_within_a_chain_is_read(s):
    a = s.conv(s.input(*X), 4, 4, name="a")
    b = s.conv(a, 4, 4, name="b", kernel=3, pad=1)
    s.output(s.node("Reshape", b, s.node("Shape", a, name="shape"), name="out"))


def the_shape_of_one_of_siblings_is_read(s):
    a, b = two(s)
    whole = s.node("Concat", a, b, name="both", axis=1)
    size = s.node("Gather", s.node("Shape", a, name="shape"), s.tensor("at", np.array(2)), name="h")
    s.output(whole, s.node("Cast", size, name="height", to=s.element_type))


def the_dtype_of_a_branch_is_read(s):
    a, b = two(s)
    whole = added(s, a, b)
    s.output(whole, s.node("CastLike", s.node("Shape", whole, name="shape"), b, name="cast"))


def a_mean_beside_a_smaller_weight(s):
    """A mean holds no weight: nine times as many would be in the file."""
    x = s.input(*X)
    c = s.node("AveragePool", x, name="p1", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    s.output(s.node("Sub", c, s.conv(x, 4, 4, kernel=1, groups=4), name="minus"))


def a_mean_in_front_of_a_smaller_weight(s):
    p = s.node("AveragePool", s.input(*X), name="p1", kernel_shape=[2, 2], strides=[2, 2])
    s.output(s.conv(p, 4, 4, name="a", groups=4))


def a_weight_is_shared(s):
    x = s.input(*X)
    a = s.conv(x, 4, 4, name="a", bias=False)
    b = s.node("Conv", x, "a_w", name="b")
    s.output(added(s, a, b))


def a_weight_is_shared_with_a_reader(s):
    a, b = two(s)
    s.output(added(s, a, b), s.node("Tanh", "b_w", name="tanh"))


def a_weight_is_an_output(s):
    a, b = two(s)
    s.output(added(s, a, b))
    s.output("b_w", shape=(4, 4, 3, 3))


def a_weight_is_computed(s):
    x = s.input(*X)
    a = s.conv(x, 4, 4, name="a")
    w = s.node("Mul", s.tensor("w", s.uniform(4, 4, 3, 3)), s.input(1, name="y"), name="w2")
    s.output(added(s, a, s.node("Conv", x, w, name="b")))


def a_weight_can_be_overridden(s):
    a, b = two(s)
    s.input(4, 4, 3, 3, name="b_w")
    s.output(added(s, a, b))


def a_bias_can_be_overridden(s):
    a, b = two(s)
    s.input(4, name="b_b")
    s.output(added(s, a, b))


def a_weight_is_quantised(s):
    x = s.input(*X)
    a = s.conv(x, 4, 4, name="a", pad=1)
    s.opset, s.ir = 19, 9
    q = s.tensor("q", s.random.integers(-100, 100, (4, 4, 3, 3)).astype(np.int8))
    scale = s.tensor("q_scale", np.float32(0.01))
    w = s.node("DequantizeLinear", q, scale, name="dq")
    if s.dtype != np.float32:
        w = s.node("Cast", w, name="wide", to=s.element_type)
    s.output(added(s, a, s.node("Conv", x, w, name="b", pads=[1] * 4)))


def a_weight_is_stored_in_half(s):
    x = s.input(*X)
    a = s.conv(x, 4, 4, name="a", pad=1)
    w = s.tensor("w", s.uniform(4, 4, 3, 3).astype(np.float16))
    w = s.node("Cast", w, name="wide", to=s.element_type)
    s.output(added(s, a, s.node("Conv", x, w, name="b", pads=[1] * 4)))


def strides_differ(s):
    x = s.input(2, 4, 6, 6)
    a = s.conv(x, 4, 4, name="a", kernel=1, strides=[2, 2])
    b = s.conv(x, 4, 4, name="b", kernel=4)
    s.output(added(s, a, b))


def strides_differ_on_one_axis(s):
    x = s.input(2, 4, 3, 6)
    a = s.conv(x, 4, 4, name="a", kernel=1, strides=[2, 1])
    s.output(added(s, a, s.conv(x, 4, 4, name="b", kernel=2, pads=[0, 0, 0, 1])))


def sizes_agree_by_chance(s):
    """(6 - 1) // 2 + 1 = (6 - 2) // 2 + 1, but not so for an odd number."""
    x = s.input(2, 4, 6, 6)
    a = s.conv(x, 4, 4, name="a", kernel=1, strides=[2, 2])
    b = s.conv(x, 4, 4, name="b", kernel=2, strides=[2, 2])
    s.output(added(s, a, b))


def halved(s, *branches, **options):
    """Convolutions of any size with a stride, padded by a rule, of kernels or with options."""
    x = s.input("N", 4, "H", "W")
    settings = {"strides": [2, 2], "auto_pad": "SAME_UPPER", "kernel": 3} | options
    parts = [s.conv(x, 4, 4, name=n, **settings | b) for n, b in zip("ab", branches, strict=False)]
    s.output(added(s, *parts))


def same_padding_of_two_kernels_with_a_stride(s):
    halved(s, {}, {"kernel": 5})


def same_padding_beside_one_tap_with_a_stride(s):
    halved(s, {}, {"kernel": 1})


def same_padding_above_and_below_with_a_stride(s):
    halved(s, {}, {"auto_pad": "SAME_LOWER"})


def a_bias_in_front_of_same_padding_with_a_stride(s):
    a = s.conv(s.input("N", 1, "H", "W"), 1, 16, name="a", kernel=1)
    s.output(s.conv(a, 16, 1, name="b", auto_pad="SAME_UPPER", strides=[2, 2]))


def same_padding_with_a_stride_behind_another_kernel(s):
    a = s.conv(s.input(2, 1, "H", "W"), 1, 16, name="a", kernel=2, bias=False)
    s.output(s.conv(a, 16, 1, name="b", auto_pad="SAME_UPPER", strides=[2, 2]))


def same_lower_beside_explicit_pads_with_a_stride(s):
    x = s.input(2, 4, 7, 7)
    a = s.conv(x, 4, 4, name="a", auto_pad="SAME_LOWER", strides=[2, 2])
    b = s.conv(x, 4, 4, name="b", pad=1, strides=[2, 2])
    s.output(added(s, a, b))


def zeros_between_two_convolutions_with_a_bias(s):
    x = s.input(2, 16, 6, 6)
    a = s.conv(x, 16, 2, name="a", kernel=1)
    s.output(s.conv(a, 2, 16, name="b", pad=1))


def zeros_between_two_kernels(s):
    x = s.input(2, 1, 6, 6)
    a = s.conv(x, 1, 16, name="a", kernel=3, bias=False, pad=1)
    s.output(s.conv(a, 16, 1, name="b", pad=1))


def a_shift_between_and_zeros(s):
    x = s.input(2, 1, 6, 6)
    a = s.conv(x, 1, 16, name="a", kernel=1, bias=False)
    shift = s.node("Add", a, s.channels("c", 16), name="shift")
    s.output(s.conv(shift, 16, 1, name="b", pad=1))


def depthwise_beside_dense(s):
    x = s.input(*X)
    a = s.conv(x, 4, 4, name="a", pad=1, groups=4)
    b = s.conv(x, 4, 4, name="b", kernel=1)
    s.output(added(s, a, b))


def depthwise_then_pointwise(s):
    x = s.input(*X)
    a = s.conv(x, 4, 4, name="a", pad=1, groups=4)
    s.output(s.conv(a, 4, 4, name="b", kernel=1))


def a_bottleneck(s):
    x = s.input(2, 8, 6, 6)
    s.output(s.conv(s.conv(x, 8, 2, name="a", kernel=1), 2, 8, name="b", kernel=1))


def reflect_in_front_of_one(s):
    x = s.input(*X)
    pads = s.integers("pads", 0, 0, 1, 1, 0, 0, 1, 1)
    wide = s.node("Pad", x, pads, name="pad", mode="reflect")
    s.output(added(s, s.conv(wide, 4, 4, name="a"), s.conv(x, 4, 4, name="b", pad=1)))


def edges_in_front_of_one(s):
    x = s.input(*X)
    pads = s.integers("pads", 0, 0, 1, 1, 0, 0, 1, 1)
    wide = s.node("Pad", x, pads, name="pad", mode="edge")
    s.output(added(s, s.conv(wide, 4, 4, name="a"), s.conv(x, 4, 4, name="b", pad=1)))


def padded(s, amount, *, mode="constant", value=None, **conv):
    """Pad, then a convolution: `amount` names the constant."""
    x = s.input(2, 4, 6, "w")
    more = [] if value is None else [s.tensor("value", np.array(value, s.dtype))]
    s.output(s.conv(s.node("Pad", x, amount(s, x), *more, name="pad", mode=mode), 4, 4, **conv))


def zeros_by_the_size(s):
    """As many behind as the width is larger than 6: none in the run that is analysed."""

    def amount(s, x):
        shape = s.node("Shape", x, name="shape")
        width = s.node("Gather", shape, s.tensor("at", np.array([3])), name="width")
        rest = s.node("Mod", width, s.integers("two", 2), name="rest")
        return s.node("Concat", s.integers("given", 0, 0, 1, 1, 0, 0, 1), rest, name="c", axis=0)

    padded(s, amount)


def zeros_for_channels(s):
    x = s.input(2, 3, 6, 6)
    pads = s.integers("pads", 0, 1, 1, 1, 0, 0, 1, 1)
    s.output(s.conv(s.node("Pad", x, pads, name="pad"), 4, 4, name="a"))


def something_else_around(s):
    padded(s, lambda s, x: s.integers("pads", 0, 0, 1, 1, 0, 0, 1, 1), value=0.5)


def a_border_around(s):
    padded(s, lambda s, x: s.integers("pads", 0, 0, 1, 1, 0, 0, 1, 1), mode="edge")


def zeros_behind_a_bias(s):
    x = s.input(*X)
    pads = s.integers("pads", 0, 0, 1, 1, 0, 0, 1, 1)
    inner = s.node("Relu", s.node("Pad", s.conv(x, 4, 4, kernel=1, name="a"), pads, name="pad"))
    s.output(s.conv(inner, 4, 4, name="b"))


def a_border_cut_off_alone(s):
    padded(s, lambda s, x: s.integers("pads", 0, 0, -1, 0, 0, 0, -1, 1))


def cut(s, *numbers):
    s.output(sliced(s, s.conv(s.input(2, 4, 8, 6), 4, 4, name="a", pad=2), "cut", *numbers))


def a_slice_up_to_a_place(s):
    cut(s, 0, 8)


def a_slice_from_the_end(s):
    cut(s, -8, 1 << 40)


def every_other_row(s):
    cut(s, 0, 1 << 40, 2, 2)


def a_slice_of_channels(s):
    cut(s, 1, -1, 1)


def more_than_was_padded(s):
    cut(s, 3, -3)


def a_slice_by_the_size(s):
    x = s.input(2, 4, 8, "w")
    half = s.node("Div", s.node("Shape", x, name="shape"), s.integers("two", 1, 1, 8, 2), name="d")
    start = s.node("Slice", half, s.integers("c", 3), s.integers("e", 4), name="start")
    conv = s.conv(x, 4, 4, name="a", pad=1)
    s.output(s.node("Slice", conv, start, s.integers("end", 9999), s.integers("at", 3), name="cut"))


def a_mean_that_rounds_up(s):
    x = s.input(2, 4, 6, 6)
    options = {"kernel_shape": [3, 3], "strides": [2, 2]}
    a = s.node("AveragePool", x, name="pool", ceil_mode=1, **options)
    b = s.conv(x, 4, 4, name="b", strides=[2, 2], pads=[0, 0, 1, 1], groups=4)
    s.output(added(s, a, b))


def a_mean_that_counts_no_zeros(s):
    x = s.input(*X)
    a = s.node("AveragePool", x, name="pool", kernel_shape=[3, 3], pads=[1] * 4)
    s.output(added(s, a, s.conv(x, 4, 4, name="b", pad=1)))


def same_padding_of_a_mean(s):
    x = s.input(*X)
    a = s.node("AveragePool", x, name="pool", kernel_shape=[3, 3], auto_pad="SAME_UPPER")
    s.output(added(s, a, s.conv(x, 4, 4, name="b", pad=1)))


def a_branch_is_broadcast(s):
    x = s.input(2, 4, 1, 1)
    a = s.conv(x, 4, 4, name="a", kernel=1)
    b = s.conv(x, 4, 4, name="b", kernel=1, pad=1)
    s.output(added(s, a, b))


def one_channel_is_broadcast(s):
    x = s.input(*X)
    a = s.conv(x, 4, 1, name="a", kernel=1)
    s.output(added(s, a, s.conv(x, 4, 4, name="b", kernel=1)))


def other_sources(s):
    x, y = s.input(*X), s.input(*X, name="y")
    s.output(added(s, s.conv(x, 4, 4, name="a"), s.conv(y, 4, 4, name="b")))


def an_activation_between(s):
    a, b = two(s)
    s.output(added(s, a, s.node("Relu", b, name="act")))


def a_transposed_one_beside_another(s):
    x = s.input(*X)
    a = s.conv(x, 4, 4, name="a", op="ConvTranspose", pad=1)
    s.output(added(s, a, s.conv(x, 4, 4, name="b", pad=1)))


def a_transposed_one_with_an_output_shape(s):
    a, b = two(s, op="ConvTranspose", pad=0, kernel=2, strides=[2, 2], output_shape=[12, 12])
    s.output(added(s, a, b))


def another_dtype_between(s):
    x = s.input(*X)
    a = s.conv(x, 4, 4, name="a")
    half = s.node("Cast", s.conv(x, 4, 4, name="b"), name="half", to=10)
    s.output(added(s, a, s.node("Cast", half, name="back", to=s.element_type)))


def a_dropout_whose_mask_is_read(s):
    x = s.input(*X)
    a = s.conv(x, 4, 4, name="a")
    dropped = s.node("Dropout", a, name="drop", outputs=["dropped", "mask"])
    mask = s.node("Cast", "mask", name="cast", to=s.element_type)
    s.output(s.node("Mul", added(s, dropped, s.conv(x, 4, 4, name="b")), mask, name="masked"))


def a_step_along_the_width(s):
    x = s.input(*X)
    a = s.node("Mul", x, s.tensor("c", s.uniform(6)), name="step")
    s.output(added(s, a, s.conv(x, 4, 4, name="b", pad=1)))


def a_matrix_on_the_width(s):
    x = s.input(*X)
    a = s.node("MatMul", x, s.tensor("w", s.uniform(6, 6)), name="product")
    s.output(added(s, a, s.conv(x, 4, 4, name="b", kernel=1)))


def matrices_on_either_side(s):
    x = s.input(2, 5, 5)
    a = s.node("MatMul", x, s.tensor("w", s.uniform(5, 5)), name="a")
    b = s.node("MatMul", s.tensor("v", s.uniform(5, 5)), x, name="b")
    s.output(added(s, a, b))


def a_weight_per_batch(s):
    x = s.input(2, 5, 5)
    a = s.node("MatMul", x, s.tensor("w", s.uniform(2, 5, 5)), name="a")
    b = s.node("MatMul", x, s.tensor("v", s.uniform(2, 5, 5)), name="b")
    s.output(added(s, a, b))


def a_bias_per_row(s):
    x = s.input(2, 4)
    a = s.node("Gemm", x, s.tensor("w", s.uniform(4, 4)), s.tensor("c", s.uniform(2, 1)), name="a")
    s.output(added(s, a, s.gemm(x, 4, 4, name="b")))


def a_transposed_input(s):
    x = s.input(4, 4)
    a = s.gemm(x, 4, 4, name="a", transA=1)
    s.output(added(s, a, s.gemm(x, 4, 4, name="b")))


def batch_norm_that_can_be_overridden(s):
    x = s.input(*X)
    a = s.bn(x, 4)
    s.input(4, name="bn_gamma")
    s.output(added(s, a, s.conv(x, 4, 4, name="b", pad=1)))


def the_largest_of_both(s):
    a, b = two(s)
    s.output(s.node("Max", a, b, name="max"))


def a_stack_over_another_axis(s):
    s.output(stacked(s, *two(s), axis=0, over=1))


def a_stack_whose_axis_stays(s):
    s.output(stacked(s, *two(s), keepdims=1))


def a_stack_that_is_read(s):
    a, b = two(s)
    total = stacked(s, a, b)
    s.output(total, s.node("ReduceMax", "stack_out", name="max", axes=[0], keepdims=0))


def a_mean_of_a_stack_of_more(s):
    a, b = two(s)
    s.output(stacked(s, a, b, s.node("Sigmoid", a, name="c"), op="ReduceMean"))


def a_mean_of_something_else_too(s):
    a, b = two(s)
    s.output(stacked(s, a, b, s.node("Sigmoid", "x", name="c"), op="ReduceMean"))


def a_single_operand(s):
    a, _ = two(s, names="a"), None
    s.output(s.node("Sum", *a, name="sum"))


KEPT = [
    a_branch_is_an_output, a_branch_is_read_elsewhere, a_branch_is_read_twice_elsewhere,
    the_shape_of_a_branch_is_read, the_size_of_a_branch_is_read, the_shape_within_a_chain_is_read,
    the_shape_of_one_of_siblings_is_read, the_dtype_of_a_branch_is_read,
    a_mean_beside_a_smaller_weight, a_mean_in_front_of_a_smaller_weight,
    a_weight_is_shared, a_weight_is_shared_with_a_reader, a_weight_is_an_output,
    a_weight_is_computed, a_weight_can_be_overridden, a_bias_can_be_overridden,
    a_weight_is_quantised, a_weight_is_stored_in_half, strides_differ,
    strides_differ_on_one_axis, sizes_agree_by_chance,
    same_padding_of_two_kernels_with_a_stride, same_padding_beside_one_tap_with_a_stride,
    same_padding_above_and_below_with_a_stride,
    a_bias_in_front_of_same_padding_with_a_stride,
    same_padding_with_a_stride_behind_another_kernel,
    same_lower_beside_explicit_pads_with_a_stride, zeros_between_two_convolutions_with_a_bias,
    zeros_between_two_kernels, a_shift_between_and_zeros, depthwise_beside_dense,
    depthwise_then_pointwise, a_bottleneck, reflect_in_front_of_one, edges_in_front_of_one,
    zeros_by_the_size, zeros_for_channels, something_else_around, a_border_around,
    zeros_behind_a_bias, a_border_cut_off_alone, a_slice_up_to_a_place, a_slice_from_the_end,
    every_other_row, a_slice_of_channels, more_than_was_padded, a_slice_by_the_size,
    a_mean_that_rounds_up, a_mean_that_counts_no_zeros, same_padding_of_a_mean,
    a_branch_is_broadcast, one_channel_is_broadcast, other_sources, an_activation_between,
    a_transposed_one_beside_another, a_transposed_one_with_an_output_shape, another_dtype_between,
    a_dropout_whose_mask_is_read, a_step_along_the_width, a_matrix_on_the_width,
    matrices_on_either_side, a_weight_per_batch,
    a_bias_per_row, a_transposed_input,
    batch_norm_that_can_be_overridden, the_largest_of_both, a_single_operand,
    a_stack_over_another_axis, a_stack_whose_axis_stays, a_stack_that_is_read,
    a_mean_of_a_stack_of_more, a_mean_of_something_else_too,
]  # fmt: skip


@pytest.mark.parametrize("draw", KEPT, ids=lambda draw: draw.__name__)
def test_not_merged(draw):
    _, report = folded(draw)
    assert not report.merged
