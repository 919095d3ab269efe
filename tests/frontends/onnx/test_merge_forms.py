"""Odd forms of sums and chains: how many nodes are left of each, and that all is as it was."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.frontends.onnx.merging import X, added, folded, ops, two


def a_mean_that_would_weigh_more(s):
    x = s.input(*X)
    a, b = two(s, x)
    s.output(s.node("Mean", a, s.node("Relu", x, name="r"), b, name="mean"))


def a_mean_that_would_be_left_alone(s):
    x = s.input(*X)
    a, b = two(s, x)
    inner = s.node("Mean", a, s.node("Relu", x, name="r"), name="mean")
    s.output(added(s, inner, b))


def a_mean_of_both_and_another(s):
    x = s.input(*X)
    a, b = two(s, x)
    inner = s.node("Mean", a, b, name="mean")
    s.output(added(s, inner, s.node("Relu", x, name="r")))


def a_subtrahend_would_be_left_alone(s):
    x = s.input(*X)
    a, b = two(s, x)
    r = s.node("Relu", x, name="r")
    s.output(added(s, s.node("Sub", a, r, name="sub"), b))


def subtrahends_would_be_left_alone(s):
    x = s.input(*X)
    a, b = two(s, x)
    r = s.node("Relu", x, name="r")
    s.output(s.node("Sub", s.node("Sub", a, r, name="sub"), b, name="s2"))


def both_are_subtracted(s):
    x = s.input(*X)
    a, b = two(s, x)
    r = s.node("Relu", x, name="r")
    s.output(s.node("Sub", r, added(s, a, b), name="s2"))


def one_tensor_twice(s):
    x = s.input(*X)
    (a,) = two(s, x, names="a")
    s.output(added(s, a, a))


def the_input_twice(s):
    x = s.input(*X)
    s.output(s.node("Relu", s.node("Add", x, x, name="tw"), name="r"))


def batch_norms_and_the_input(s):
    x = s.node("Relu", s.input(*X), name="r0")
    s.output(
        s.node("Relu", s.node("Sum", x, s.bn(x, 4), s.bn(x, 4, name="b2"), name="tw"), name="r")
    )


def the_input_less_its_batch_norm(s):
    x = s.node("Sigmoid", s.input(*X), name="r0")
    s.output(s.node("Sigmoid", s.node("Sub", x, s.bn(x, 4), name="tw"), name="r"))


def the_input_twice_and_its_batch_norm(s):
    x = s.input(*X)
    s.output(s.node("Relu", s.node("Sum", x, s.bn(x, 4), x, name="tw"), name="r"))


def a_sum_that_others_read(s):
    x = s.input(*X)
    a, b = two(s, x)
    q = added(s, a, b)
    s.output(s.node("Identity", q, name="id"), q, s.node("Relu", q, name="r"))


def a_factor_of_0_in_a_channel(s):
    a, b = two(s)
    z = s.node("Mul", b, s.tensor("z", s.round([0.0, 1, 2, 0]).reshape(1, 4, 1, 1)), name="mul")
    s.output(added(s, a, z))


def a_factor_of_0(s):
    a, b = two(s)
    z = s.node("Mul", b, s.tensor("z", s.round(0.0)), name="mul")
    s.output(added(s, a, z))


def negated(s):
    a, b = two(s)
    s.output(added(s, a, s.node("Neg", b, name="neg")))


def subtracted_from_a_constant(s):
    a, b = two(s)
    s.output(added(s, a, s.node("Sub", s.channels("c", 4), b, name="neg")))


def a_matrix_of_rank_one(s):
    x = s.input(2, 6)
    s.output(
        added(
            s,
            s.node("MatMul", x, s.tensor("w", s.uniform(6)), name="a"),
            s.node("MatMul", x, s.tensor("v", s.uniform(6)), name="b"),
        )
    )


def a_bias_that_adds_an_axis(s):
    x = s.input(2, 6)
    a, b = (s.node("MatMul", x, s.tensor(f"w{n}", s.uniform(6, 6)), name=n) for n in "ab")
    b = s.node("Add", b, s.tensor("bias", s.uniform(1, 1, 6)), name="bb")
    s.output(added(s, a, b))


def a_factor_that_adds_an_axis(s):
    x = s.input(2, 6)
    b = s.node("MatMul", x, s.tensor("w", s.uniform(6, 6)), name="b")
    b = s.node("Mul", b, s.tensor("sc", s.uniform(1, 1, 6)), name="bb")
    s.output(s.node("MatMul", b, s.tensor("w2", s.uniform(6, 6)), name="c"))


def every_form_of_bias(s):
    x = s.input(2, 6)
    g = [
        s.node(
            "Gemm",
            x,
            s.tensor(f"w{n}", s.uniform(6, 6)),
            s.tensor(f"b{n}", s.uniform(*sh)),
            name=f"g{n}",
        )
        for n, sh in enumerate([(), (1,), (1, 6), (6,), (1, 1)])
    ]
    s.output(s.node("Sum", *g, name="sum"))


def gemms_in_a_chain(s):
    x = s.input(2, 6)
    s.output(s.gemm(s.gemm(x, 6, 8, name="a"), 8, 3, name="b", transB=1))


def a_matrix_and_a_gemm_behind(s):
    x = s.input(2, 6)
    s.output(s.gemm(s.node("MatMul", x, s.tensor("w", s.uniform(6, 7)), name="b"), 7, 6, name="g"))


def broadcast_of_another_operand(s):
    x = s.input(2, 4, 6, 6)
    a, b = two(s, x)
    y = s.input(2, 4, 1, 1, name="y")
    s.output(added(s, a, added(s, s.node("Relu", y, name="r"), b, name="i")))


def broadcast_in_the_inner_sum(s):
    x = s.input(2, 4, 1, 1)
    a, b = two(s, x, kernel=1, pad=0)
    y = s.input(2, 4, 6, 6, name="y")
    s.output(added(s, a, added(s, s.node("Relu", y, name="r"), b, name="i")))


def broadcast_behind_the_sum(s):
    x = s.input(2, 4, 1, 1)
    a, b = two(s, x, kernel=1, pad=0)
    y = s.input(2, 4, 6, 6, name="y")
    s.output(added(s, s.node("Relu", y, name="r"), added(s, a, b, name="i")))


def a_shortcut_that_stays(s):
    x = s.input(*X)
    a, b = two(s, x)
    r = s.node("Relu", x, name="r")
    s.output(s.node("Relu", added(s, added(s, a, r, name="i"), b), name="q"))


def two_inputs(s):
    x = s.input(*X)
    y = s.input(*X, name="y")
    a, b = two(s, x)
    c, d = two(s, y, names="cd")
    s.output(s.node("Relu", added(s, added(s, a, c, name="i"), added(s, b, d, name="j")), name="q"))


def two_inputs_subtracted(s):
    x = s.input(*X)
    y = s.input(*X, name="y")
    a, b = two(s, x)
    c, d = two(s, y, names="cd")
    s.output(
        s.node(
            "Relu",
            s.node("Sub", s.node("Sub", a, c, name="i"), s.node("Sub", b, d, name="j"), name="k"),
            name="q",
        )
    )


def nodes_without_names(s):
    x = s.input(*X)
    a, b = two(s, x)
    s.output(added(s, a, b))
    for n in s.nodes:
        n.name = ""


def weights_of_constant_nodes(s):
    x = s.input(*X)
    a, b = two(s, x)
    s.output(added(s, a, b))
    for k, i in enumerate(list(s.initializers)):
        s.nodes.insert(0, helper.make_node("Constant", [], [i.name], value=i, name=f"c{k}"))
    s.initializers.clear()


def initializers_that_are_inputs_by_form(s):
    s.ir = 3
    x = s.input(*X)
    a, b = two(s, x)
    s.output(added(s, a, b))
    for i in s.initializers:
        s.inputs.append(helper.make_tensor_value_info(i.name, i.data_type, i.dims))


def values_that_are_described(s):
    x = s.input(*X)
    a, b = two(s, x)
    s.output(added(s, a, b))
    for v in (a, b, "a_w"):
        s.values.append(
            helper.make_tensor_value_info(v, s.element_type, [4, 4, 3, 3] if v == "a_w" else X)
        )


def a_branch_is_captured(s):
    x = s.input(*X)
    a, b = two(s, x)
    flag = s.input(name="flag", element_type=TensorProto.BOOL)
    t_ = helper.make_graph(
        [helper.make_node("Identity", [a], ["t_out"])],
        "t",
        [],
        [helper.make_tensor_value_info("t_out", s.element_type, X)],
    )
    e_ = helper.make_graph(
        [helper.make_node("Identity", [x], ["e_out"])],
        "e",
        [],
        [helper.make_tensor_value_info("e_out", s.element_type, X)],
    )
    s.node("If", flag, name="if", then_branch=t_, else_branch=e_)
    s.output(added(s, "if_out", added(s, a, b, name="i")))


def a_weight_is_captured(s):
    x = s.node("Relu", s.input(*X), name="re")
    a, b = two(s, x)
    flag = s.input(name="flag", element_type=TensorProto.BOOL)
    q = added(s, a, b)
    t_ = helper.make_graph(
        [helper.make_node("Identity", [q], ["t_out"])],
        "t",
        [],
        [helper.make_tensor_value_info("t_out", s.element_type, X)],
    )
    e_ = helper.make_graph(
        [helper.make_node("Identity", ["b_w"], ["e_out"])],
        "e",
        [],
        [helper.make_tensor_value_info("e_out", s.element_type, (4, 4, 3, 3))],
    )
    s.node("If", flag, name="if", then_branch=t_, else_branch=e_)
    s.output(s.node("ReduceSum", "if_out", name="rs"))


def a_reduced_sum_beside_branches(s):
    """So many times a mean is a sum of one operand, which has lost nothing."""
    x = s.input(*X)
    r = s.node("ReduceSum", s.node("Relu", x, name="re"), s.tensor("axes", np.array([2, 3])))
    a, b = two(s, s.node("GlobalAveragePool", x, name="g"))
    s.output(s.node("Relu", added(s, s.node("Add", r, a, name="first"), b), name="last"))


def the_sum_is_captured(s):
    x = s.node("Relu", s.input(*X), name="re")
    a, b = two(s, x)
    flag = s.input(name="flag", element_type=TensorProto.BOOL)
    q = added(s, a, b)
    t_ = helper.make_graph(
        [helper.make_node("Identity", [q], ["t_out"])],
        "t",
        [],
        [helper.make_tensor_value_info("t_out", s.element_type, X)],
    )
    e_ = helper.make_graph(
        [helper.make_node("Identity", [x], ["e_out"])],
        "e",
        [],
        [helper.make_tensor_value_info("e_out", s.element_type, X)],
    )
    s.node("If", flag, name="if", then_branch=t_, else_branch=e_)
    s.output("if_out")


def transposed_and_dilated(s):
    x = s.input(2, 4, 5, 5)
    o = {"op": "ConvTranspose", "strides": [2, 2], "bias": False}
    a = s.conv(x, 4, 4, name="a", kernel=3, pad=2, dilations=[2, 2], **o)
    s.output(added(s, a, s.conv(x, 4, 4, name="b", kernel=1, pad=0, **o)))


def transposed_in_groups(s):
    x = s.input(2, 4, 5, 5)
    o = {"op": "ConvTranspose", "bias": True, "groups": 2, "strides": [2, 2]}
    a = s.conv(x, 4, 6, name="a", kernel=4, pad=1, **o)
    s.output(s.bn(added(s, a, s.conv(x, 4, 6, name="b", kernel=2, pad=0, **o)), 6))


def a_shift_in_front_of_a_transposed_one(s):
    x = s.input(2, 4, 5, 5)
    a = s.conv(x, 4, 4, name="pt", kernel=1)
    a = s.conv(a, 4, 4, name="a", op="ConvTranspose", kernel=3, strides=[2, 2], bias=False)
    s.output(s.conv(a, 4, 4, name="post", kernel=1))


def a_chain_around_a_transposed_one(s):
    x = s.input(2, 4, 5, 5)
    a = s.conv(x, 4, 4, name="pt", kernel=1, bias=False)
    a = s.conv(
        a, 4, 4, name="a", op="ConvTranspose", kernel=3, strides=[2, 2], output_padding=[1, 1]
    )
    s.output(s.conv(a, 4, 4, name="post", kernel=1))


def a_sum_that_no_window_holds(s):
    x = s.input(2, 4, 8, 8)
    a = s.conv(x, 4, 4, name="a", kernel=1, strides=[2, 2])
    b = s.conv(x, 4, 4, name="b", kernel=3, strides=[2, 2], pads=[1, 1, 0, 0])
    s.output(s.conv(added(s, a, b), 4, 4, name="post", kernel=1, strides=[2, 2]))


def a_mean_less_a_convolution(s):
    x = s.input(*X)
    c = s.node("AveragePool", x, name="p1", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    s.output(s.node("Sub", c, s.conv(x, 4, 4, kernel=3, pad=1, groups=4), name="minus"))


def a_mean_less_its_input(s):
    """PoolFormer's token mixer: pool(x) - x."""
    x = s.input(*X)
    c = s.node("AveragePool", x, name="p1", kernel_shape=[3, 3], pads=[1] * 4)
    s.output(s.node("Sub", c, x, name="minus"))


def a_block_around_its_own_input(s):
    x = s.input(*X)
    a = s.conv(x, 4, 4, kernel=1, name="a")
    b = s.conv(a, 4, 4, kernel=1, name="b")
    s.output(added(s, a, b))


def blocks_behind_each_other(s):
    x = s.input(*X)
    for k in range(3):
        a, b = two(s, x, names=(f"a{k}", f"b{k}"), kernel=1, pad=0)
        x = s.node("Add", added(s, a, b, name=f"i{k}"), x, name=f"s{k}")
    s.output(x)


def blocks_with_activations(s):
    x = s.input(*X)
    for k in range(3):
        a, b = two(s, x, names=(f"a{k}", f"b{k}"))
        x = s.node(
            "Relu", s.node("Add", added(s, a, b, name=f"i{k}"), x, name=f"s{k}"), name=f"r{k}"
        )
    s.output(x)


def a_weight_that_is_not_finite(s):
    x = s.input(*X)
    a, b = two(s, x)
    s.output(added(s, a, b))
    for i in s.initializers:
        if i.name == "b_b":
            arr = numpy_helper.to_array(i).copy()
            arr[0] = np.inf
            i.CopyFrom(numpy_helper.from_array(arr, i.name))


def a_step_that_is_not_finite(s):
    x = s.input(*X)
    a, b = two(s, x)
    s.output(added(s, a, s.bn(b, 4, gamma=[1, np.inf, 1, 1])))


def factors_far_apart(s):
    x = s.input(*X)
    a, b = two(s, x)
    s.output(added(s, a, s.bn(b, 4, gamma=[1e-30, 1e30, 1, 1])))


def a_batch_norm_along_another_axis(s):
    x = s.input(5, 4, 4)
    s.output(
        s.node(
            "Relu",
            added(s, s.bn(x, 4), s.node("MatMul", x, s.tensor("w", s.uniform(4, 4)), name="mm")),
            name="r",
        )
    )


def a_scale_in_front_of_a_matrix_on_the_left(s):
    x = s.input(5, 4, 4)
    s.output(
        s.node(
            "Relu",
            added(
                s,
                s.node("Mul", x, s.tensor("c", s.uniform(4, 1)), name="m"),
                s.node("MatMul", s.tensor("w", s.uniform(4, 4)), x, name="mm"),
            ),
            name="r",
        )
    )


def a_sum_of_one_in_a_chain(s):
    x = s.node("Sum", s.conv(s.input(*X), 4, 4, name="a"), name="one")
    s.output(s.conv(s.node("Mean", s.bn(x, 4), name="alone"), 4, 4, name="b"))


def sums_of_one_around_branches(s):
    x = s.input(*X)
    a, b = (s.node("Sum", y, name=f"one_{y}") for y in two(s, x))
    s.output(s.node("Mean", added(s, a, b), name="alone"))


def a_sum_of_one_in_a_narrow_place(s):
    a = s.node("Mean", s.conv(s.input(*X), 4, 2, kernel=1, name="a", bias=False), name="one")
    s.output(s.conv(a, 2, 4, kernel=1, name="b"))


def halves_of_one_weight(s):
    """Read by one each, and computed."""
    x = s.input(*X)
    whole = s.tensor("whole", s.uniform(8, 4, 3, 3))
    s.node("Split", whole, s.integers("four", 4, 4), axis=0, outputs=["w1", "w2"])
    a, b = (s.node("Conv", x, w, pads=[1] * 4, name=f"c{w}") for w in ("w1", "w2"))
    s.output(added(s, s.bn(a, 4), s.bn(b, 4, name="b2")))


def a_weight_of_a_given_norm(s):
    x = s.input(*X)
    v = s.tensor("v", s.uniform(4, 4, 3, 3))
    w = s.node("Div", v, s.node("ReduceL2", v, axes=[1, 2, 3], keepdims=1))
    a = s.node("Conv", x, s.node("Mul", w, s.tensor("g", s.uniform(4, 1, 1, 1))), pads=[1] * 4)
    s.output(added(s, a, s.conv(x, 4, 4, kernel=1, name="b")))


def a_weight_that_is_one_number(s):
    x = s.input(*X)
    w = s.node("Expand", s.tensor("v", s.uniform(1, 1, 1, 1)), s.integers("shape", 4, 4, 3, 3))
    a = s.node("Conv", x, w, pads=[1] * 4, name="a")
    s.output(added(s, a, s.conv(x, 4, 4, kernel=1, name="b")))


def identities_in_every_place(s):
    x = s.input(*X)
    a = s.conv(s.node("Identity", x, name="i1"), 4, 4, kernel=3, pad=1, name="a")
    b = s.conv(s.node("Dropout", x, name="d1"), 4, 4, kernel=1, name="b")
    s.output(added(s, s.node("Identity", a, name="i2"), s.node("Dropout", b, name="d2")))


def an_identity_branch(s):
    x = s.node("Sigmoid", s.input(*X), name="first")
    (a,) = two(s, x, names="a")
    s.output(added(s, a, s.node("Identity", x, name="i1")))


def a_copy_of_an_inner_sum(s):
    x = s.input(*X)
    a, b, c = two(s, x, names="abc")
    s.output(added(s, s.node("Identity", added(s, a, b, name="inner"), name="i1"), c))


def a_copy_in_a_narrow_place(s):
    a = s.conv(s.input(*X), 4, 2, kernel=1, name="a", bias=False)
    s.output(s.conv(s.node("Dropout", a, name="d1"), 2, 4, kernel=1, name="b"))


def a_copy_that_is_an_output(s):
    x = s.input(*X)
    a, b = two(s, x)
    copy = s.node("Identity", a, name="i1")
    s.output(added(s, copy, b), copy)


def a_dropout_whose_mask_is_read(s):
    x = s.input(*X)
    a, b = two(s, x)
    dropped = s.node("Dropout", a, name="d1", outputs=["kept", "mask"])
    s.output(added(s, dropped, b))
    s.output(s.node("Cast", "mask", to=s.element_type, name="cast"))


def a_tensor_and_its_copy(s):
    x = s.node("Sigmoid", s.input(*X), name="first")
    s.output(added(s, x, s.node("Identity", x, name="i1")))


def a_cast_there_and_back(s):
    x = s.input(*X)
    a, b = two(s, x)
    half = s.node("Cast", a, to=TensorProto.BFLOAT16, name="there")
    s.output(added(s, s.node("Cast", half, to=s.element_type, name="back"), b))


def lerp(s, a, b, weight, *, first=True, shape=()):
    """As exporters write `torch.lerp(a, b, weight)`: in two ways, of which one is taken."""
    between = s.node("Sub", b, a, name="between")
    weights = [s.tensor(f"w{n}", np.array(w, s.dtype)) for n, w in enumerate((weight, 1 - weight))]
    near = s.node("Add", a, s.node("Mul", between, weights[0], name="m0"), name="near")
    far = s.node("Sub", b, s.node("Mul", between, weights[1], name="m1"), name="far")
    is_near = s.tensor("is_near", np.broadcast_to(np.array(first), shape).copy())
    return s.node("Where", is_near, near, far, name="lerp")


def a_lerp(s):
    x = s.input(*X)
    s.output(s.node("Relu", lerp(s, *two(s, x), 0.3), name="act"))


def a_lerp_taken_the_other_way(s):
    x = s.input(*X)
    s.output(s.node("Relu", lerp(s, *two(s, x), 0.7, first=False, shape=(4, 1, 1)), name="act"))


def a_lerp_beside_a_shortcut(s):
    x = s.input(*X)
    a, b = two(s, x)
    s.output(s.node("Add", lerp(s, a, b, 0.3), s.node("Relu", x, name="r"), name="sum"))


def a_choice_per_channel(s):
    x = s.input(*X)
    a, b = two(s, x)
    chosen = s.tensor("chosen", np.array([True, False, True, True]).reshape(4, 1, 1))
    s.output(s.node("Where", chosen, a, b, name="choice"))


def a_choice_by_the_input(s):
    x = s.input(*X)
    a, b = two(s, x)
    largest = s.node("ReduceMax", x, name="largest", keepdims=0)
    zero = s.tensor("zero", np.array(0, s.dtype))
    s.output(s.node("Where", s.node("Greater", largest, zero, name="is"), a, b, name="choice"))


def on_the_way_from_one_to_the_other(s):
    x = s.input(*X)
    a, b = two(s, x)
    step = s.node("Mul", s.node("Sub", b, a, name="d"), s.tensor("w", s.uniform(4, 1, 1)), name="m")
    s.output(added(s, a, step))


def between(s, kind, *more, of=("h", "w"), **options):
    """Branches with a node behind one of them."""
    x = s.input(2, 4, *of)
    a, b = two(s, x)
    b = s.node(kind, b, *more, name="between", **options)
    s.output(s.node("Relu", added(s, a, b), name="act"))


def a_pool_of_one(s):
    between(s, "MaxPool", kernel_shape=[1, 1])


def a_mean_of_one(s):
    between(s, "AveragePool", kernel_shape=[1, 1], strides=[1, 1])


def a_pool_of_three(s):
    between(s, "MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def a_pool_of_one_that_skips(s):
    between(s, "MaxPool", kernel_shape=[1, 1], strides=[2, 2], of=(1, 1))


def a_pool_of_all(s):
    between(s, "GlobalMaxPool", of=(1, 1))


def resized_by_one(s):
    scales = s.tensor("scales", np.ones(4, np.float32))
    between(s, "Resize", "", scales, mode="linear")


def resized_by_nearly_one(s):
    """To as many places, of which the last reads elsewhere."""
    scales = s.tensor("scales", np.array([1, 1, 1, 1.1], np.float32))
    between(s, "Resize", "", scales, of=(5, 6), mode="linear")


FORMS = {
    a_pool_of_one: "Conv Relu",
    a_mean_of_one: "Conv Relu",
    a_pool_of_three: "Conv Conv MaxPool Add Relu",
    a_pool_of_one_that_skips: "Conv Conv MaxPool Add Relu",
    a_pool_of_all: "Conv Conv GlobalMaxPool Add Relu",
    resized_by_one: "Conv Relu",
    resized_by_nearly_one: "Conv Conv Resize Add Relu",
    a_lerp: "Conv Relu",
    a_lerp_taken_the_other_way: "Conv Relu",
    a_lerp_beside_a_shortcut: "Conv Relu Add",
    a_choice_per_channel: "Conv Conv Where",
    a_choice_by_the_input: "Conv Conv ReduceMax Greater Where",
    on_the_way_from_one_to_the_other: "Conv",
    a_mean_that_would_weigh_more: "Conv Conv Relu Mean",
    a_mean_that_would_be_left_alone: "Conv Relu Mean",
    a_mean_of_both_and_another: "Conv Relu Add",
    a_subtrahend_would_be_left_alone: "Conv Relu Sub",
    subtrahends_would_be_left_alone: "Conv Relu Sub",
    both_are_subtracted: "Conv Relu Sub",
    one_tensor_twice: "Conv",
    the_input_twice: "Add Relu",
    batch_norms_and_the_input: "Relu BatchNormalization Relu",
    the_input_less_its_batch_norm: "Sigmoid BatchNormalization Sigmoid",
    the_input_twice_and_its_batch_norm: "BatchNormalization Relu",
    a_sum_that_others_read: "Conv Identity Relu",
    a_factor_of_0_in_a_channel: "Conv",
    a_factor_of_0: "Conv",
    negated: "Conv",
    subtracted_from_a_constant: "Conv",
    a_matrix_of_rank_one: "MatMul MatMul Add",
    a_bias_that_adds_an_axis: "MatMul MatMul Add Add",
    a_factor_that_adds_an_axis: "MatMul Mul MatMul",
    every_form_of_bias: "Gemm",
    gemms_in_a_chain: "Gemm",
    a_matrix_and_a_gemm_behind: "MatMul Add",
    broadcast_of_another_operand: "Conv Conv Relu Add Add",
    broadcast_in_the_inner_sum: "Conv Conv Relu Add Add",
    broadcast_behind_the_sum: "Conv Relu Add",
    a_shortcut_that_stays: "Conv Relu Add Relu",
    two_inputs: "Conv Conv Add Relu",
    two_inputs_subtracted: "Conv Conv Sub Relu",
    nodes_without_names: "Conv",
    weights_of_constant_nodes: "Conv",
    initializers_that_are_inputs_by_form: "Conv",
    values_that_are_described: "Conv",
    a_branch_is_captured: "Conv Conv If Add Add",
    a_weight_is_captured: "Relu Conv Conv Add If ReduceSum",
    a_reduced_sum_beside_branches: "Relu ReduceSum GlobalAveragePool Conv Add Relu",
    the_sum_is_captured: "Relu Conv If",
    transposed_and_dilated: "ConvTranspose",
    transposed_in_groups: "ConvTranspose",
    a_shift_in_front_of_a_transposed_one: "Conv ConvTranspose",
    a_chain_around_a_transposed_one: "ConvTranspose",
    a_sum_that_no_window_holds: "Conv Conv Add Conv",
    a_mean_less_a_convolution: "Conv",
    a_mean_less_its_input: "AveragePool Sub",
    a_block_around_its_own_input: "Conv",
    blocks_behind_each_other: "Conv",
    blocks_with_activations: "Conv Relu Conv Relu Conv Relu",
    a_weight_that_is_not_finite: "Conv Conv Add",
    a_step_that_is_not_finite: "Conv Conv BatchNormalization Add",
    factors_far_apart: "Conv",
    a_batch_norm_along_another_axis: "BatchNormalization MatMul Add Relu",
    a_scale_in_front_of_a_matrix_on_the_left: "MatMul Relu",
    a_sum_of_one_in_a_chain: "Conv Sum Mean Conv",
    sums_of_one_around_branches: "Conv",
    a_sum_of_one_in_a_narrow_place: "Conv",
    halves_of_one_weight: "Conv",
    a_weight_of_a_given_norm: "Conv",
    a_weight_that_is_one_number: "Expand Conv Conv Add",
    identities_in_every_place: "Conv",
    an_identity_branch: "Sigmoid Conv",
    a_copy_of_an_inner_sum: "Conv",
    a_copy_in_a_narrow_place: "Conv",
    a_copy_that_is_an_output: "Conv Conv Identity Add",
    a_dropout_whose_mask_is_read: "Conv Conv Dropout Add Cast",
    a_tensor_and_its_copy: "Sigmoid Identity Add",
    a_cast_there_and_back: "Conv Conv Cast Cast Add",
}
"""What is left, by what it was."""


@pytest.mark.parametrize("draw", FORMS, ids=lambda draw: draw.__name__)
def test_what_is_left(draw):
    made, _ = folded(draw)
    assert " ".join(ops(made)) == FORMS[draw]
