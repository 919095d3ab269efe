"""Branches and chains of linear nodes: what becomes one node, and what must not."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.onnx_sketch import Sketch
from tests.frontends.onnx.merging import folded, ops

X = (2, 4, 6, 6)


def two(s: Sketch, x: str = "", *, names: str = "ab", **options) -> list[str]:
    """Two 3x3 convolutions of one tensor, or what the options say."""
    x = x or s.input(*X)
    settings = {"kernel": 3, "pad": 1} | options
    return [s.conv(x, 4, 4, name=name, **settings) for name in names]


def added(s: Sketch, *parts: str, name: str = "sum", op: str = "Add") -> str:
    return s.node(op, *parts, name=name)


# -------------------------------------------------------------------- must not merge


def a_branch_is_an_output(s):
    a, b = two(s)
    s.output(added(s, a, b), b)


def a_branch_is_read_elsewhere(s):
    a, b = two(s)
    s.output(added(s, a, b), s.node("Relu", b, name="act"))


def a_branch_is_read_twice_elsewhere(s):
    a, b = two(s)
    s.output(s.node("Mul", added(s, a, b), s.node("Sigmoid", b, name="g"), name="gate"))


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


def same_padding_with_a_stride(s):
    a, b = two(s, pad=0, auto_pad="SAME_UPPER", strides=[2, 2])
    s.output(added(s, a, b))


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


def a_single_operand(s):
    a, _ = two(s, names="a"), None
    s.output(s.node("Sum", *a, name="sum"))


KEPT = [
    a_branch_is_an_output, a_branch_is_read_elsewhere, a_branch_is_read_twice_elsewhere,
    a_weight_is_shared, a_weight_is_shared_with_a_reader, a_weight_is_an_output,
    a_weight_is_computed, a_weight_can_be_overridden, a_bias_can_be_overridden,
    a_weight_is_quantised, a_weight_is_stored_in_half, strides_differ,
    strides_differ_on_one_axis, sizes_agree_by_chance, same_padding_with_a_stride,
    same_lower_beside_explicit_pads_with_a_stride, zeros_between_two_convolutions_with_a_bias,
    zeros_between_two_kernels, a_shift_between_and_zeros, depthwise_beside_dense,
    depthwise_then_pointwise, a_bottleneck, reflect_in_front_of_one, edges_in_front_of_one,
    a_mean_that_rounds_up, a_mean_that_counts_no_zeros, same_padding_of_a_mean,
    a_branch_is_broadcast, one_channel_is_broadcast, other_sources, an_activation_between,
    a_transposed_one_beside_another, a_transposed_one_with_an_output_shape, another_dtype_between,
    a_step_along_the_width, a_matrix_on_the_width, matrices_on_either_side, a_weight_per_batch,
    a_bias_per_row, a_transposed_input,
    batch_norm_that_can_be_overridden, the_largest_of_both, a_single_operand,
]  # fmt: skip


@pytest.mark.parametrize("draw", KEPT, ids=lambda draw: draw.__name__)
def test_not_merged(draw):
    _, report = folded(draw)
    assert not report.merged


# -------------------------------------------------------------------- merge


def branch(s: Sketch, x: str, name: str, kernel: int = 3, ins: int = 4, outs: int = 4, **options):
    """A convolution and its BatchNorm."""
    options = {"pad": kernel // 2, "bias": False} | options
    conv = s.conv(x, ins, outs, name=f"{name}_conv", kernel=kernel, **options)
    return s.bn(conv, outs, name=f"{name}_bn")


def rectangle(s: Sketch, x: str, name: str, kernel: tuple[int, int], pads: list[int], outs=4):
    weight = s.tensor(f"{name}_w", s.uniform(outs, 4, *kernel))
    return s.node("Conv", x, weight, name=name, pads=pads)


def repvgg(s):
    x = s.input(*X)
    parts = branch(s, x, "dense"), branch(s, x, "point", 1), s.bn(x, 4, name="same")
    both = added(s, *parts[:2])
    s.output(s.node("Relu", added(s, both, parts[2], name="all"), name="act"))


def repvgg_downsampling(s):
    x = s.input("N", 4, "H", "W")
    dense, point = (branch(s, x, n, k, outs=6, strides=[2, 2]) for n, k in (("a", 3), ("b", 1)))
    s.output(s.node("Relu", added(s, dense, point), name="act"))


def mobileone(s):
    x = s.input(*X)
    at = s.bn(x, 4, name="same")
    for number in range(3):
        at = added(s, at, branch(s, x, f"deep{number}", groups=4), name=f"sum{number}")
    at = added(s, branch(s, x, "scale", 1, groups=4), at, name="all")
    s.output(s.node("Relu", at, name="act"))


def mobileone_pointwise(s):
    x = s.input(*X)
    at = branch(s, x, "one", 1)
    for number in range(3):
        at = added(s, branch(s, x, f"more{number}", 1), at, name=f"sum{number}")
    s.output(s.node("Relu", added(s, at, s.bn(x, 4, name="same"), name="all"), name="act"))


def asymmetric(s):
    x = s.input(*X)
    square = branch(s, x, "square")
    flat = s.bn(rectangle(s, x, "flat", (1, 3), [0, 1, 0, 1]), 4, name="flat_bn")
    tall = s.bn(rectangle(s, x, "tall", (3, 1), [1, 0, 1, 0]), 4, name="tall_bn")
    s.output(s.node("Relu", added(s, added(s, square, flat), tall, name="all"), name="act"))


def diverse(s):
    """kxk; 1x1; 1x1 then kxk; 1x1 then a mean: without padding, as zeros would be no zeros."""
    x = s.input(*X)
    square = branch(s, x, "square", pad=0)
    chain = branch(s, branch(s, x, "first", 1), "second", pad=0)
    pooled = s.node("AveragePool", branch(s, x, "before", 1), name="pool", kernel_shape=[3, 3])
    at = added(s, added(s, square, chain), s.bn(pooled, 4, name="pool_bn"), name="all")
    s.output(s.node("Relu", at, name="act"))


def fastvit(s):
    x = s.input(*X)
    mixer = added(s, branch(s, x, "deep", groups=4), s.bn(x, 4, name="skip"), name="mixer")
    less = s.node("Sub", mixer, s.bn(x, 4, name="norm"), name="less")
    scaled = s.node("Mul", s.channels("gamma", 4), less, name="scaled")
    s.output(s.node("Relu", added(s, x, scaled), name="act"))


def fastvit_the_other_way_round(s):
    x = s.input(*X)
    less = s.node("Sub", s.bn(x, 4, name="norm"), branch(s, x, "deep", groups=4), name="less")
    scaled = s.node("Mul", less, s.channels("gamma", 4), name="scaled")
    s.output(s.node("Relu", s.node("Sub", scaled, x, name="minus"), name="act"))


def convolution_and_its_batch_norm(s):
    x = s.input(*X)
    s.output(s.node("Relu", added(s, s.conv(x, 4, 4, pad=1), s.bn(x, 4)), name="act"))


def convolution_and_input(s):
    x = s.input(*X)
    s.output(s.node("Relu", added(s, x, s.conv(x, 4, 4, pad=1)), name="act"))


def batch_norm_behind(s):
    a, b = two(s)
    s.output(s.node("Relu", s.bn(added(s, a, b), 4), name="act"))


def convolution_behind(s):
    a, b = two(s)
    s.output(s.conv(added(s, a, b), 4, 4, kernel=1, name="behind"))


def sum_of_many(s):
    x = s.input(*X)
    parts = [*two(s, x, names="abcd"), x]
    s.output(s.node("Sum", *parts, name="sum"))


def mean_of_many(s):
    x = s.input(*X)
    s.output(s.node("Mean", *two(s, x, names="abc"), x, name="mean"))


def one_by_one(s):
    x = s.input(*X)
    s.output(s.conv(s.conv(x, 4, 4, kernel=1, name="a"), 4, 4, kernel=1, name="b"))


def pointwise_then_padded(s):
    x = s.input(*X)
    inner = s.conv(x, 4, 4, kernel=1, name="a", bias=False)
    s.output(s.conv(inner, 4, 4, name="b", pad=1))


def strides_in_a_chain(s):
    x = s.input(2, 2, "H", "W")
    inner = s.conv(x, 2, 8, kernel=1, name="a", strides=[2, 2])
    s.output(s.conv(inner, 8, 2, kernel=3, name="b", strides=[2, 2]))


def padded_then_pointwise(s):
    x = s.input(*X)
    s.output(s.conv(s.conv(x, 4, 8, name="a", pad=1), 8, 2, kernel=1, name="b"))


def dilations_with_a_grid(s):
    x = s.input(*X)
    a = s.conv(x, 4, 4, name="a", pad=2, dilations=[2, 2])
    s.output(added(s, a, s.conv(x, 4, 4, name="b", kernel=1)))


def dilated_beside_dense(s):
    x = s.input(2, 4, 9, 9)
    a = s.conv(x, 4, 4, name="a", pad=2, dilations=[2, 2])
    s.output(added(s, a, s.conv(x, 4, 4, name="b", kernel=5, pad=2)))


def groups_within_groups(s):
    x = s.input(*X)
    a = s.conv(x, 4, 8, name="a", pad=1, groups=2)
    s.output(added(s, a, s.conv(x, 4, 8, name="b", pad=1, groups=2)))


def groups_beside_dense(s):
    x = s.input(*X)
    parts = two(s, x, names="a") + two(s, x, names="b", groups=2) + two(s, x, names="c", groups=4)
    s.output(s.node("Sum", *parts, name="sum"))


def depth_multipliers(s):
    x = s.input(*X)
    a = s.conv(x, 4, 8, name="a", pad=1, groups=4)
    s.output(added(s, s.conv(x, 4, 8, name="b", kernel=1, groups=4), a))


def same_padding(s):
    x = s.input("N", 4, "H", "W")
    a = s.conv(x, 4, 4, name="a", kernel=2, auto_pad="SAME_UPPER")
    b = s.conv(x, 4, 4, name="b", kernel=2, auto_pad="SAME_LOWER")
    c = s.conv(x, 4, 4, name="c", kernel=3, pad=1)
    s.output(added(s, added(s, a, b), c, name="all"))


def valid_padding(s):
    a, b = two(s, pad=0, auto_pad="VALID")
    s.output(added(s, a, b))


def lines(s):
    x = s.input(2, 4, 9)
    a = s.conv(x, 4, 4, name="a", rank=1, pad=1)
    s.output(added(s, a, added(s, s.conv(x, 4, 4, name="b", rank=1, kernel=1), x, name="inner")))


def volumes(s):
    x = s.input(1, 2, 4, 4, 4)
    a = s.conv(x, 2, 2, name="a", rank=3, pad=1)
    b = s.conv(x, 2, 2, name="b", rank=3, kernel=1)
    s.output(added(s, added(s, x, a), s.bn(b, 2), name="all"))


def means_beside(s):
    x = s.input(*X)
    pool = s.node("AveragePool", x, name="pool", kernel_shape=[3, 3], pads=[1] * 4,
                  count_include_pad=1)  # fmt: skip
    s.output(added(s, pool, s.conv(x, 4, 4, name="conv", pad=1)))


def subtrahend(s):
    a, b = two(s)
    s.output(added(s, a, b, op="Sub"))


def subtrahend_is_the_input(s):
    x = s.input(*X)
    s.output(added(s, x, *two(s, x, names="a"), op="Sub"))


def added_to_itself(s):
    x = s.input(*X)
    a = s.conv(x, 4, 4, name="a", pad=1)
    s.output(added(s, s.node("Add", x, x, name="twice"), a))


def a_scale_that_is_left_over(s):
    x = s.input(*X)
    a = s.node("Mul", s.conv(x, 4, 4, name="a", pad=1), s.channels("c", 4), name="scale")
    s.output(added(s, a, s.node("Mul", x, s.tensor("two", s.round(2.0)), name="double")))


def low_rank(s):
    x = s.input(2, 5, 6)
    dense = s.node("MatMul", x, s.tensor("w", s.uniform(6, 6)), name="dense")
    down = s.node("MatMul", x, s.tensor("down", s.uniform(6, 2)), name="lower")
    up = s.node("MatMul", down, s.tensor("up", s.uniform(2, 6)), name="raise")
    less = s.node("Mul", up, s.tensor("alpha", s.round(0.25)), name="less")
    biased = s.node("Add", dense, s.tensor("bias", s.uniform(6)), name="biased")
    s.output(added(s, biased, less))


def gemms(s):
    x = s.input(2, 6)
    a = s.gemm(x, 6, 6, name="a", transB=1, alpha=0.5, beta=2.0)
    b = s.gemm(x, 6, 6, name="b", alpha=-1.5, bias=False)
    s.output(added(s, added(s, a, b), x, name="all"))


def gemm_and_matrix(s):
    x = s.input(2, 6)
    b = s.node("MatMul", x, s.tensor("w", s.uniform(6, 6)), name="product")
    s.output(added(s, b, s.gemm(x, 6, 6, name="a")))


def matrices_of_rank_four(s):
    x = s.input(2, 3, 5, 6)
    a = s.node("MatMul", x, s.tensor("w", s.uniform(6, 6)), name="a")
    b = s.node("MatMul", x, s.tensor("v", s.uniform(6, 6)), name="b")
    s.output(added(s, a, added(s, b, x, name="inner")))


def matrices_on_the_left(s):
    x = s.input(2, 3, 5, 6)
    a = s.node("MatMul", s.tensor("w", s.uniform(5, 5)), x, name="a")
    b = s.node("MatMul", s.tensor("v", s.uniform(5, 5)), x, name="b")
    b = s.node("Add", b, s.tensor("c", s.uniform(5, 1)), name="shift")
    s.output(added(s, a, b))


def transposed(s):
    a, b = two(s, op="ConvTranspose", strides=[2, 2])
    s.output(added(s, a, b))


def transposed_with_more(s):
    x = s.input(2, 4, 5, 5)
    options = {"op": "ConvTranspose", "strides": [2, 2], "bias": False}
    a = s.conv(x, 4, 6, name="a", pad=1, output_padding=[1, 1], **options)
    s.output(added(s, a, s.conv(x, 4, 6, name="b", kernel=2, **options)))


def transposed_and_scaled(s):
    x = s.input(2, 4, 5, 5)
    a = s.conv(x, 4, 4, name="a", op="ConvTranspose", pad=1)
    s.output(added(s, s.bn(a, 4), s.bn(x, 4, name="same")))


MERGED = {
    repvgg: ["Conv", "Relu"],
    repvgg_downsampling: ["Conv", "Relu"],
    mobileone: ["Conv", "Relu"],
    mobileone_pointwise: ["Conv", "Relu"],
    asymmetric: ["Conv", "Relu"],
    diverse: ["Conv", "Relu"],
    fastvit: ["Conv", "Relu"],
    fastvit_the_other_way_round: ["Conv", "Relu"],
    convolution_and_its_batch_norm: ["Conv", "Relu"],
    convolution_and_input: ["Conv", "Relu"],
    batch_norm_behind: ["Conv", "Relu"],
    convolution_behind: ["Conv"],
    sum_of_many: ["Conv"],
    mean_of_many: ["Conv"],
    one_by_one: ["Conv"],
    pointwise_then_padded: ["Conv"],
    strides_in_a_chain: ["Conv"],
    padded_then_pointwise: ["Conv"],
    dilations_with_a_grid: ["Conv"],
    dilated_beside_dense: ["Conv"],
    groups_within_groups: ["Conv"],
    groups_beside_dense: ["Conv"],
    depth_multipliers: ["Conv"],
    same_padding: ["Conv"],
    valid_padding: ["Conv"],
    lines: ["Conv"],
    volumes: ["Conv"],
    means_beside: ["Conv"],
    subtrahend: ["Conv"],
    subtrahend_is_the_input: ["Conv"],
    added_to_itself: ["Conv"],
    a_scale_that_is_left_over: ["Conv"],
    low_rank: ["MatMul", "Add"],
    gemms: ["Gemm"],
    gemm_and_matrix: ["MatMul", "Add"],
    matrices_of_rank_four: ["MatMul"],
    matrices_on_the_left: ["MatMul", "Add"],
    transposed: ["ConvTranspose"],
    transposed_with_more: ["ConvTranspose"],
    transposed_and_scaled: ["ConvTranspose"],
}


@pytest.mark.parametrize("draw", MERGED, ids=lambda draw: draw.__name__)
def test_merged(draw):
    made, report = folded(draw)
    assert ops(made) == MERGED[draw]
    assert report.kept == 0
