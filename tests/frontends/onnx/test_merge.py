"""Branches and chains of linear nodes that become one node."""

from __future__ import annotations

import numpy as np
import pytest

import bnfold
from tests.conformance.onnx_sketch import Sketch
from tests.frontends.onnx.merging import X, added, drawn, folded, ops, two


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


def concatenated(s):
    """A sum first, and then what stands beside it."""
    x = s.input(*X)
    whole = added(s, *two(s, x))
    beside = s.conv(x, 4, 4, name="c", kernel=3, pad=1)
    s.output(s.node("Relu", s.node("Concat", whole, beside, name="cat", axis=1), name="act"))


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


def zeros(s, x, name, amount=1):
    """Pad with zeros in front and behind."""
    pads = s.integers(f"{name}_pads", 0, 0, amount, amount, 0, 0, amount, amount)
    return s.node("Pad", x, pads, name=name)


def diverse_with_pads(s):
    """As published: BatchNorm of zeros between a 1x1 and what does not pad."""
    x = s.input(2, 4, "h", "w")
    first = s.bn(zeros(s, s.conv(x, 4, 4, kernel=1, name="a", bias=False), "pad"), 4, name="n")
    second = s.bn(zeros(s, s.conv(x, 4, 4, kernel=1, name="c", bias=False), "zeros"), 4, name="m")
    mean = s.node("AveragePool", second, name="mean", kernel_shape=[3, 3])
    s.output(s.node("Relu", s.node("Sum", s.conv(x, 4, 4, name="d", pad=1),
                                   s.conv(first, 4, 4, name="b"), mean, name="sum")))  # fmt: skip


def zeros_in_front(s):
    """As TensorFlow pads where it strides: more behind than in front."""
    x = s.input(*X)
    pads = s.integers("pads", 0, 0, 0, 0, 0, 0, 1, 1)
    padded = s.node("Pad", x, pads, name="pad", mode="constant")
    s.output(s.conv(padded, 4, 4, name="a", strides=[2, 2]))


def a_border_cut_off(s):
    x = s.input(*X)
    square = s.conv(x, 4, 4, name="a")
    cut = s.node("Pad", x, s.integers("cut", 0, 0, -1, 0, 0, 0, -1, 0), name="pad")
    s.output(added(s, square, rectangle(s, cut, "b", (1, 3), [0] * 4)))


def sliced(s, x, name, start, end, axis=2, step=1):
    """Some of an axis."""
    numbers = [s.integers(f"{name}_{n}", v) for n, v in enumerate((start, end, axis, step))]
    return s.node("Slice", x, *numbers, name=name)


def asymmetric_without_padding(s):
    x = s.input(2, 4, 6, "w")
    flat = rectangle(s, sliced(s, x, "rows", 1, -1), "flat", (1, 3), [0, 1, 0, 1])
    tall = rectangle(s, x, "tall", (3, 1), [0, 0, 0, 0])
    square = s.conv(x, 4, 4, name="square", pads=[0, 1, 0, 1])
    s.output(s.node("Sum", flat, square, tall, name="sum"))


def padded_and_cut_again(s):
    """As a causal convolution is written."""
    x = s.input(2, 4, "length")
    conv = s.node("Conv", x, s.tensor("w", s.uniform(4, 4, 3)), name="a", pads=[2, 2])
    s.output(sliced(s, s.bn(conv, 4), "chomp", 0, -2))


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


def stacked(s, *xs, axis=0, op="ReduceSum", keepdims=0, over=None, weights=""):
    """As exporters write `torch.stack(xs, axis).sum(axis)`."""
    parts = [
        s.node("Unsqueeze", x, s.integers(f"at{n}", axis), name=f"u{n}") for n, x in enumerate(xs)
    ]
    both = s.node("Concat", *parts, name="stack", axis=axis)
    both = s.node("Mul", both, weights, name="weighted") if weights else both
    listed = [axis if over is None else over]
    if op == "ReduceMean":  # until opset 18
        return s.node(op, both, name="sum", axes=listed, keepdims=keepdims)
    return s.node(op, both, s.integers("over", *listed), name="sum", keepdims=keepdims)


def a_concat_of_one(s):
    """As the exporter leaves padding that goes round where nothing is padded."""
    x = s.input(*X)
    y = s.node("Concat", s.conv(x, 4, 4, kernel=1, name="a"), name="round", axis=3)
    s.output(s.conv(y, 4, 4, name="b"))


def a_stack(s):
    x = s.input(2, 4, "h", "w")
    branches = s.conv(x, 4, 4, name="a", pad=1), s.conv(x, 4, 4, kernel=1, name="b"), s.bn(x, 4)
    s.output(s.node("Relu", stacked(s, *branches), name="act"))


def a_stack_behind(s):
    x = s.input(*X)
    a, b = s.bn(s.conv(x, 4, 4, name="a", pad=1), 4), s.conv(x, 4, 4, kernel=1, name="b")
    s.output(stacked(s, a, b, axis=-1, op="ReduceMean"))


def a_weighted_stack(s):
    """The weights go first; then it is one that is added up."""
    x = s.input(*X)
    a, b = s.conv(x, 4, 4, name="a", pad=1), s.conv(x, 4, 4, kernel=1, name="b")
    weights = s.tensor("weights", s.uniform(2, 1, 1, 1, 1))
    s.output(s.bn(stacked(s, a, b, weights=weights), 4))


def a_stack_of_more(s):
    x = s.input(*X)
    a, b = s.conv(x, 4, 4, name="a", pad=1), s.conv(x, 4, 4, kernel=1, name="b")
    more = s.node("Sigmoid", x, name="c"), s.node("Tanh", x, name="d")
    s.output(stacked(s, more[0], a, b, more[1], axis=2))


def a_stack_of_one_more(s):
    x = s.input(*X)
    a, b = s.conv(x, 4, 4, name="a", pad=1), s.conv(x, 4, 4, kernel=1, name="b")
    s.output(s.node("Relu", stacked(s, a, s.node("Sigmoid", x, name="c"), b), name="act"))


def slopes_of_one(s):
    """Activations that were trained away."""
    a = s.node("LeakyRelu", s.conv(s.input(*X), 4, 4, name="a", kernel=1), name="leaky", alpha=1.0)
    ones = s.tensor("slopes", np.ones((4, 1, 1), s.dtype))
    s.output(s.conv(s.node("PRelu", a, ones, name="act"), 4, 4, name="b"))


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


def same_padding_with_a_stride(s):
    """Of one kernel, behind a 1x1, and with one tap, which needs no zeros."""
    x = s.input("N", 4, "H", "W")
    settings = {"strides": [2, 2], "auto_pad": "SAME_UPPER", "bias": False}
    three, more = (branch(s, x, name, pad=0, **settings) for name in "ab")
    inner = s.conv(x, 4, 8, name="inner", kernel=1, bias=False)
    last = s.conv(inner, 8, 4, name="last", kernel=3, **settings)
    behind = added(s, *(branch(s, last, name, 1) for name in "cd"), name="behind")
    s.output(added(s, added(s, three, more), behind, name="all"))


def same_padding_of_one_tap(s):
    x = s.input("N", 4, "H", "W")
    a = s.conv(x, 4, 4, name="a", kernel=1, strides=[2, 2], auto_pad="SAME_LOWER")
    s.output(added(s, a, s.conv(x, 4, 4, name="b", kernel=3, pad=1, strides=[2, 2])))


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


def dropped_out(s):
    x = s.input(*X)
    a = s.node("Dropout", s.conv(x, 4, 4, name="a", kernel=1, bias=False), name="drop")
    s.output(s.node("Relu", s.conv(a, 4, 4, name="b", pad=1), name="act"))


def copied(s):
    x = s.input(*X)
    a = s.node("Identity", s.conv(x, 4, 4, name="a", pad=1), name="same")
    b = s.node("Cast", s.conv(x, 4, 4, name="b", pad=1), name="cast", to=s.element_type)
    total = s.node("Identity", added(s, a, b, name="inner"), name="inner_copy")
    s.output(added(s, total, s.node("Dropout", x, name="drop")))


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
    diverse_with_pads: ["Conv", "Relu"],
    zeros_in_front: ["Conv"],
    a_border_cut_off: ["Conv"],
    asymmetric_without_padding: ["Conv"],
    padded_and_cut_again: ["Conv"],
    fastvit: ["Conv", "Relu"],
    fastvit_the_other_way_round: ["Conv", "Relu"],
    convolution_and_its_batch_norm: ["Conv", "Relu"],
    convolution_and_input: ["Conv", "Relu"],
    batch_norm_behind: ["Conv", "Relu"],
    convolution_behind: ["Conv"],
    sum_of_many: ["Conv"],
    mean_of_many: ["Conv"],
    one_by_one: ["Conv"],
    slopes_of_one: ["Conv"],
    a_concat_of_one: ["Conv"],
    a_stack: ["Conv", "Relu"],
    a_stack_behind: ["Conv"],
    a_weighted_stack: ["Conv"],
    a_stack_of_more: [
        "Conv",
        "Sigmoid",
        "Tanh",
        "Unsqueeze",
        "Unsqueeze",
        "Unsqueeze",
        "Concat",
        "ReduceSum",
    ],
    a_stack_of_one_more: [
        "Conv",
        "Sigmoid",
        "Unsqueeze",
        "Unsqueeze",
        "Concat",
        "ReduceSum",
        "Relu",
    ],
    pointwise_then_padded: ["Conv"],
    strides_in_a_chain: ["Conv"],
    padded_then_pointwise: ["Conv"],
    dilations_with_a_grid: ["Conv"],
    dilated_beside_dense: ["Conv"],
    groups_within_groups: ["Conv"],
    groups_beside_dense: ["Conv"],
    depth_multipliers: ["Conv"],
    same_padding: ["Conv"],
    same_padding_with_a_stride: ["Conv"],
    same_padding_of_one_tap: ["Conv"],
    valid_padding: ["Conv"],
    lines: ["Conv"],
    volumes: ["Conv"],
    means_beside: ["Conv"],
    subtrahend: ["Conv"],
    subtrahend_is_the_input: ["Conv"],
    added_to_itself: ["Conv"],
    a_scale_that_is_left_over: ["Conv"],
    dropped_out: ["Conv", "Relu"],
    copied: ["Conv"],
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


@pytest.mark.parametrize("shared", [False, True])
def test_what_a_step_parted_is_merged_at_once(shared):
    """Two sums with a BatchNormalization between them; or a weight that two had until then."""

    def draw(s):
        x, y = s.input(*X), s.input(*X, name="y")
        b = s.conv(x, 4, 4, name="b", pad=1)
        if shared:
            other = s.node("Conv", y, "b_w", name="c", pads=[1] * 4)
            first = s.bn(b, 4, name="bn")
            s.output(s.node("Relu", other, name="other"))
        else:
            first = s.bn(added(s, b, s.conv(y, 4, 4, name="c", pad=1), name="inner"), 4, name="bn")
        a = s.conv(x, 4, 4, name="a", kernel=1)
        s.output(s.node("Relu", added(s, a, first, name="outer"), name="act"))

    made, report = folded(draw)
    assert ops(made).count("Conv") == 2
    assert [(item.name, item.is_removed) for item in report.items] == [("bn", True)]
    assert [merged.into for merged in report.merged] == ["b"]


@pytest.mark.parametrize("form", [concatenated, repvgg, mobileone])
def test_nodes_without_names(form):
    """What is merged in one round, and again in the next, is told once, of a node that is there."""
    model = drawn(form, np.float32)
    for node in model.graph.node:
        node.name = ""
    made, report = bnfold.fold(model)
    assert made.graph.node and len(report.merged) == ops(made).count("Conv")
    assert {merged.into for merged in report.merged} <= {node.name for node in made.graph.node}
