"""Odd windows, groups, ranks and constants of merged nodes: what is left, and that all is right."""

from __future__ import annotations

import pytest

from tests.frontends.onnx.merging import X, added, folded, ops, two


def c1(s, x, name, kernel, pads, ins=4, outs=4, op="Conv", **options):
    """A kernel that is no square, without a bias."""
    weight = s.tensor(f"{name}_w", s.uniform(outs, ins, *kernel))
    return s.node(op, x, weight, name=name, pads=pads, **options)


def a_matrix_beside_lines(s):
    x = s.input(2, 4, 9)
    m = s.node("MatMul", s.tensor("w", s.uniform(4, 4)), x, name="mm")
    a = c1(s, x, "a", (2,), [1, 0])
    b = c1(s, x, "b", (2,), [0, 1])
    s.output(s.node("Sum", m, a, b, name="sum"))


def a_matrix_in_front_of_a_line(s):
    x = s.input(2, 4, 9)
    m = s.node("MatMul", s.tensor("w", s.uniform(4, 4)), x, name="mm")
    s.output(c1(s, m, "a", (2,), [1, 0]))


def a_matrix_behind_a_line(s):
    x = s.input(2, 4, 9)
    m = c1(s, x, "a", (1,), [0, 0])
    s.output(s.node("MatMul", s.tensor("w", s.uniform(4, 4)), m, name="mm"))


def a_matrix_beside_a_mean(s):
    x = s.input(2, 4, 9)
    m = s.node("MatMul", s.tensor("w", s.uniform(4, 4)), x, name="mm")
    p = s.node("AveragePool", x, name="p", kernel_shape=[3], pads=[1, 1], count_include_pad=1)
    s.output(added(s, m, p))


def transposed_ones_that_cross(s):
    x = s.input(2, 4, 6, 6)
    p = s.conv(x, 4, 4, kernel=1, name="p")
    a = c1(s, x, "a", (1, 3), [0, 1, 0, 1], op="ConvTranspose")
    b = c1(s, x, "b", (3, 1), [1, 0, 1, 0], op="ConvTranspose")
    s.output(s.node("Sum", p, a, b, name="sum"))


def transposed_and_pointwise(s):
    x = s.input(2, 4, 6, 6)
    p = s.conv(x, 4, 4, kernel=1, name="p", op="ConvTranspose")
    s.output(
        s.node(
            "Sum",
            p,
            s.conv(x, 4, 4, kernel=1, name="q", op="ConvTranspose"),
            s.conv(x, 4, 4, kernel=1, name="r"),
            name="sum",
        )
    )


def transposed_with_output_padding(s):
    x = s.input(2, 4, 6, 6)
    o = {"op": "ConvTranspose", "strides": [2, 2]}
    p = s.conv(x, 4, 4, kernel=1, name="p", output_padding=[1, 1], **o)
    s.output(s.node("Sum", p, s.conv(x, 4, 4, kernel=2, name="q", **o), name="sum"))


def transposed_with_uneven_pads(s):
    x = s.input(2, 4, 6, 6)
    o = {"op": "ConvTranspose", "strides": [2, 2]}
    p = s.conv(x, 4, 4, kernel=3, name="p", pads=[1, 0, 0, 1], **o)
    q = s.conv(x, 4, 4, kernel=2, name="q", pads=[0, 0, 0, 0], **o)
    s.output(s.node("Sum", p, q, name="sum"))


def uneven_pads(s):
    x = s.input(2, 4, 6, 7)
    a = c1(s, x, "a", (2, 3), [1, 0, 0, 2])
    b = c1(s, x, "b", (3, 1), [0, 0, 2, 0])
    c = c1(s, x, "c", (1, 4), [0, 3, 0, 0])
    s.output(s.node("Sum", a, b, c, name="sum"))


def taps_outside_of_the_image(s):
    """taps left of the image only."""
    x = s.input(2, 4, 6, 7)
    a = c1(s, x, "a", (1, 1), [1, 0, 0, 0])
    b = c1(s, x, "b", (1, 1), [0, 0, 1, 0])
    s.output(s.node("Sum", a, b, name="sum"))


def two_strides(s):
    x = s.input(1, 3, 15, 15)
    a = c1(s, x, "a", (3, 3), [1, 1, 1, 1], 3, 16, strides=[2, 2])
    s.output(c1(s, a, "b", (3, 3), [0] * 4, 16, 2, strides=[2, 2]))


def two_dilations(s):
    x = s.input(1, 3, 15, 15)
    a = c1(s, x, "a", (2, 1), [1, 0, 0, 0], 3, 16, strides=[1, 2], dilations=[3, 1])
    s.output(c1(s, a, "b", (1, 3), [0] * 4, 16, 2, strides=[2, 1], dilations=[1, 2]))


def zeros_along_the_other_axis(s):
    """1x3 then 3x1 padded, separable."""
    x = s.input(1, 3, 9, 9)
    a = c1(s, x, "a", (1, 3), [0, 1, 0, 1], 3, 16)
    s.output(c1(s, a, "b", (3, 1), [1, 0, 1, 0], 16, 2))


def zeros_that_see_a_shift(s):
    x = s.input(1, 3, 9, 9)
    a = c1(s, x, "a", (1, 3), [0, 1, 0, 1], 3, 16)
    a = s.node("Add", a, s.channels("c", 16), name="add")
    s.output(c1(s, a, "b", (3, 1), [1, 0, 1, 0], 16, 2))


def a_bottleneck_in_a_chain(s):
    x = s.input(1, 3, 9, 9)
    for number, (ins, outs) in enumerate(((3, 8), (8, 3), (3, 8))):
        x = c1(s, x, f"a{number}", (1, 1), [0] * 4, ins, outs)
    s.output(x)


def sums_of_sums(s):
    x = s.input(2, 4, 6, 6)
    a, b = two(s, x, kernel=1, pad=0)
    y = added(s, a, b)
    c, d = two(s, y, names="cd")
    z = added(s, c, d, name="s2")
    e, f = two(s, z, names="ef", kernel=1, pad=0)
    s.output(s.node("Add", added(s, e, f, name="s3"), z, name="s4"))


def groups_in_a_chain(s):
    x = s.input(2, 4, 6, 6)
    a = s.conv(x, 4, 8, name="a", groups=2, kernel=1)
    s.output(s.conv(a, 8, 4, name="b", groups=4, kernel=1))


def groups_that_do_not_fit(s):
    x = s.input(2, 6, 6, 6)
    a = s.conv(x, 6, 6, name="a", groups=2, kernel=3)
    s.output(added(s, a, s.conv(x, 6, 6, name="b", groups=3, kernel=3)))


def groups_of_all_kinds(s):
    x = s.input(2, 6, 6, 6)
    p = [
        s.conv(x, 6, 6, name=f"a{g}{k}", groups=g, kernel=k, pad=k // 2)
        for g, k in ((6, 3), (6, 1), (3, 3), (2, 1), (2, 3), (1, 3))
    ]
    s.output(s.node("Sum", *p, s.bn(x, 6), x, name="sum"))


def a_batch_norm_that_zeros_keep(s):
    x = s.input(2, 4, 6, 6)
    b = s.bn(x, 4)
    a1 = s.conv(b, 4, 4, name="a", kernel=3, pad=1)
    a2 = s.conv(b, 4, 4, name="b", kernel=1)
    s.output(s.node("Add", added(s, a1, a2), b, name="q"))


def numbers_in_front(s):
    x = s.input(2, 4, 6, 6)
    b = s.node("Mul", x, s.tensor("c", s.round(2.5)), name="m")
    b = s.node("Add", b, s.tensor("d", s.round(0.5)), name="ad")
    a1 = s.conv(b, 4, 4, name="a", kernel=3, pad=1)
    a2 = s.conv(b, 4, 4, name="b", kernel=1)
    s.output(s.node("Add", added(s, a1, a2), b, name="q"))


def a_number_is_added(s):
    x = s.input(2, 4, 6, 6)
    b = s.node("Add", x, s.tensor("d", s.round(0.5)), name="ad")
    s.output(s.node("Sub", s.conv(x, 4, 4, name="a", kernel=3, pad=1), b, name="q"))


def a_scale_per_row(s):
    x = s.input(2, 5, 6)
    w = s.node("MatMul", x, s.tensor("w", s.uniform(6, 6)), name="mm")
    b = s.node("Mul", x, s.tensor("g", s.uniform(5, 1)), name="m")
    s.output(added(s, w, b))


def a_scale_that_spreads_one_channel(s):
    x = s.input(2, 1, 6, 6)
    b = s.node("Mul", x, s.tensor("g", s.uniform(1, 4, 1, 1)), name="m")
    s.output(added(s, s.conv(x, 1, 4, name="a", kernel=1), b))


def a_scale_that_spreads_a_branch(s):
    x = s.input(2, 4, 6, 6)
    b = s.node(
        "Mul", s.conv(x, 4, 1, name="a", kernel=1), s.tensor("g", s.uniform(1, 4, 1, 1)), name="m"
    )
    s.output(added(s, s.conv(x, 4, 4, name="b", kernel=1), b))


def names_that_are_taken(s):
    x = s.input(*X)
    a, b = two(s, x)
    r = s.node("Relu", x, name="a_out_merged", outputs=["a_weight"])
    q = s.node("Relu", x, name="q", outputs=["a_out_merged"])
    s.output(s.node("Add", s.node("Sum", a, r, b, name="su"), q, name="z"))


def a_partial_sum_is_an_output(s):
    x = s.input(*X)
    a, b, c = two(s, x, names="abc")
    q = added(s, a, b)
    s.output(q, added(s, q, c, name="s2"))


def a_batch_norm_in_a_longer_sum(s):
    x = s.node("Relu", s.input(*X), name="re")
    y = s.node("Sigmoid", x, name="si")
    s.output(s.node("Relu", s.node("Sub", added(s, x, y), s.bn(x, 4), name="z"), name="q"))


def a_dead_reader(s):
    x = s.input(*X)
    a, b = two(s, x)
    s.node("Relu", b, name="dead")
    s.output(added(s, a, b))


def a_shared_bias(s):
    x = s.input(*X)
    a = s.conv(x, 4, 4, name="a")
    b = s.node("Conv", x, s.tensor("w", s.uniform(4, 4, 3, 3)), "a_b", name="b")
    s.output(added(s, a, b))


def a_bias_is_an_output(s):
    x = s.input(*X)
    a = s.conv(x, 4, 4, name="a")
    b = s.node("Conv", x, s.tensor("w", s.uniform(4, 4, 3, 3)), "a_b", name="b")
    s.output(added(s, a, b))
    s.output("a_b", shape=(4,))


def a_computed_bias(s):
    x = s.input(*X)
    m = s.node("ReduceMean", x, name="rm", axes=[0, 2, 3], keepdims=0)
    a = s.conv(x, 4, 4, name="a")
    b = s.node("Conv", x, s.tensor("w", s.uniform(4, 4, 3, 3)), m, name="b")
    s.output(added(s, a, b))


def a_product_read_before_its_bias(s):
    x = s.input(2, 5, 6)
    m = s.node("MatMul", x, s.tensor("w", s.uniform(6, 6)), name="mm")
    w = s.node("Add", s.tensor("b", s.uniform(6)), m, name="mmb")
    v = s.node("MatMul", x, s.tensor("w2", s.uniform(6, 6)), name="mm2")
    s.output(added(s, w, v), m)


def a_bias_per_row_of_a_matrix(s):
    x = s.input(2, 5, 6)
    m = s.node("MatMul", x, s.tensor("w", s.uniform(6, 6)), name="mm")
    w = s.node("Add", s.tensor("b", s.uniform(5, 6)), m, name="mmb")
    v = s.node("MatMul", x, s.tensor("w2", s.uniform(6, 6)), name="mm2")
    s.output(added(s, w, v))


def a_weight_of_rank_three(s):
    x = s.input(2, 5, 6)
    m = s.node("MatMul", x, s.tensor("w", s.uniform(1, 6, 6)), name="mm")
    v = s.node("MatMul", x, s.tensor("w2", s.uniform(6, 6)), name="mm2")
    s.output(added(s, m, v))


def a_weight_that_adds_an_axis(s):
    x = s.input(5, 6)
    m = s.node("MatMul", x, s.tensor("w", s.uniform(1, 6, 6)), name="mm")
    v = s.node("MatMul", x, s.tensor("w2", s.uniform(6, 6)), name="mm2")
    s.output(added(s, m, v))


def a_branch_that_a_branch_reads(s):
    """The depthwise one and what reads it do not pay alone: beside another dense one they do."""
    x = s.input(*X)
    dense = s.conv(x, 4, 4, name="dense", pad=1)
    deep = s.conv(x, 4, 4, name="deep", pad=1, groups=4)
    both = added(s, dense, s.conv(deep, 4, 4, name="point", kernel=1))
    s.output(added(s, both, deep, name="less", op="Sub"))


FORMS = {
    a_branch_that_a_branch_reads: "Conv",
    a_matrix_beside_lines: "Conv",
    a_matrix_in_front_of_a_line: "Conv",
    a_matrix_behind_a_line: "Conv",
    a_matrix_beside_a_mean: "MatMul AveragePool Add",
    transposed_ones_that_cross: "ConvTranspose ConvTranspose Sum",
    transposed_and_pointwise: "Conv",
    transposed_with_output_padding: "ConvTranspose",
    transposed_with_uneven_pads: "ConvTranspose",
    uneven_pads: "Conv Conv Conv Sum",
    taps_outside_of_the_image: "Conv",
    two_strides: "Conv",
    two_dilations: "Conv",
    zeros_along_the_other_axis: "Conv",
    zeros_that_see_a_shift: "Conv Conv",
    a_bottleneck_in_a_chain: "Conv",
    sums_of_sums: "Conv Conv",
    groups_in_a_chain: "Conv",
    groups_that_do_not_fit: "Conv Conv Add",
    groups_of_all_kinds: "Conv",
    a_batch_norm_that_zeros_keep: "BatchNormalization Conv",
    numbers_in_front: "Mul Add Conv",
    a_number_is_added: "Conv",
    a_scale_per_row: "MatMul Mul Add",
    a_scale_that_spreads_one_channel: "Mul Conv Add",
    a_scale_that_spreads_a_branch: "Conv Mul Conv Add",
    names_that_are_taken: "Conv Relu Relu Sum Add",
    a_partial_sum_is_an_output: "Conv Conv Add",
    a_batch_norm_in_a_longer_sum: "Relu Sigmoid BatchNormalization Sub Relu",
    a_dead_reader: "Conv Conv Relu Add",
    a_shared_bias: "Conv",
    a_bias_is_an_output: "Conv Conv Add",
    a_computed_bias: "ReduceMean Conv Conv Add",
    a_product_read_before_its_bias: "MatMul Add MatMul Add",
    a_bias_per_row_of_a_matrix: "MatMul Add MatMul Add",
    a_weight_of_rank_three: "MatMul MatMul Add",
    a_weight_that_adds_an_axis: "MatMul MatMul Add",
}
"""What is left, by what it was."""


@pytest.mark.parametrize("draw", FORMS, ids=lambda draw: draw.__name__)
def test_what_is_left(draw):
    made, _ = folded(draw)
    assert " ".join(ops(made)) == FORMS[draw]
