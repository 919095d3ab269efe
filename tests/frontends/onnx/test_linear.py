"""Linear ops in ONNX files: which weight is edited, where, and what becomes of sharers."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import bnfold
from bnfold import Reason
from tests.frontends.onnx.support import Sketch, assert_same, ops, run


def initializer(model, name):
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


# -------------------------------------------------------------------- kept


@pytest.mark.parametrize(
    ("equation", "weight"),
    [
        ("nhwc,dc", (4, 3)),  # what is made is not said
        ("nhwc,dc->nd", (4, 3)),  # more is summed over
        ("nhwc,cw->nhwc", (3, 6)),  # the matrix has no axis of its own
        ("nhwc,nc->nhwc", (2, 3)),
        ("nhwc,dk->nhwcdk", (4, 3)),  # nothing is summed over
        ("nhwc,dd->nhwcd", (3, 3)),
        ("nhwc,cdk->nhwdk", (3, 2, 2)),
        ("nhwc,hcd->nhwd", (6, 3, 4)),  # a matrix for each row
    ],
)
def test_an_einsum_that_is_no_matrix_product(equation, weight):
    s = Sketch(2, 6, 6, 3)
    s.node("Transpose", s.bn(6), perm=[0, 1, 2, 3])
    s.node("Einsum", s.at, s.weight("w", *weight), equation=equation, name="einsum")
    model = s.model()
    folded, report = bnfold.fold(model)
    assert (report.removed, report.items[0].blocker) == (0, "einsum")
    assert folded == model


def test_padding_lets_no_shift_pass():
    s = Sketch(2, 3, 6, 6)
    s.bn(3)
    s.conv(3, 4, pads=[1, 1, 1, 1])
    folded, report = bnfold.fold(s.model())
    assert report.items[0].reason is Reason.PADDING
    assert report.items[0].blocker == "conv"
    assert ops(folded) == ["BatchNormalization", "Conv"]


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_padding_that_the_size_decides(mode):
    s = Sketch(2, 3, 6, 6)
    s.bn(3)
    s.conv(3, 4, auto_pad=mode)
    assert bnfold.inspect(s.model()).items[0].reason is Reason.PADDING


def test_transposed_convolutions_miss_taps():
    s = Sketch(2, 3, 5, 5)
    s.bn(3)
    s.node("ConvTranspose", s.at, s.weight("w", 3, 4, 2, 2), name="up", strides=[2, 2])
    report = bnfold.inspect(s.model())
    assert (report.items[0].reason, report.items[0].blocker) == (Reason.PADDING, "up")


def test_a_bias_that_is_no_constant():
    s = Sketch(2, 3, 6, 6)
    mean = s.node("ReduceMean", "x", axes=[0, 2, 3], keepdims=0)
    s.node("Conv", "x", s.weight("w", 3, 3, 1, 1), mean, name="conv")
    s.bn(3)
    assert bnfold.inspect(s.model()).removed == 0


def test_a_gemm_with_a_bias_per_row():
    s = Sketch(2, 3)
    s.node("Gemm", s.at, s.weight("w", 3, 4), s.weight("c", 2, 1), name="fc")
    s.bn(4)
    folded, report = bnfold.fold(s.model())
    assert report.removed == 1
    assert_same(s.model(), folded, (2, 3))


def test_two_matrix_products_without_a_bias_behind_one_step():
    """One step pays for one Add, not for two."""
    s = Sketch(2, 3)
    x = s.bn(3)
    products = [s.node("MatMul", x, s.weight(f"w{k}", 3, 4), name=f"product{k}") for k in "ab"]
    report = bnfold.inspect(s.model(*products))
    assert (report.items[0].reason, report.items[0].blocker) == (Reason.FIXED_WEIGHT, "productb")


def test_a_matrix_product_gets_an_add_in_place_of_a_step_in_front():
    s = Sketch(2, 5, 3)
    s.node("Transpose", perm=[0, 2, 1])
    s.bn(3)
    s.node("Transpose", perm=[0, 2, 1])
    s.node("MatMul", s.at, s.weight("w", 3, 4), name="product")
    folded, report = bnfold.fold(s.model())
    assert ops(folded) == ["Transpose", "Transpose", "MatMul", "Add"]
    assert report.items[0].into == ("product",)
    assert_same(s.model(), folded, (2, 5, 3))


def both_sides(s):
    return s.node("Concat", s.bn(3), s.node("Tanh", "x"), axis=1)


def two_steps(s):
    first = s.bn(3)
    s.node("Tanh", "x")
    return s.node("Concat", first, s.bn(3, name="bn2"), axis=1)


def a_sum(s):
    s.node("Tanh")
    first = s.bn(3)
    s.node("Add", first, s.node("MatMul", "x", s.weight("v", 3, 3)))
    return s.node("Concat", s.at, "x", axis=1)


@pytest.mark.parametrize("make", [both_sides, two_steps, a_sum])
def test_what_pays_for_an_add_may_meet_others(make):
    s = Sketch("n", 3)
    make(s)
    s.node("MatMul", s.at, s.weight("w", 6, 4), name="product")
    model = s.model()
    folded, report = bnfold.fold(model)
    assert not report.kept
    assert ops(folded)[-2:] == ["MatMul", "Add"]
    assert len(folded.graph.node) <= len(model.graph.node)
    for batch in (1, 2, 5):
        assert_same(model, folded, (batch, 3))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"])
def test_what_pays_for_an_add_may_have_a_pooling_behind_it(op):
    s = Sketch("n", 3, 6, 6)
    s.node("Tanh")
    s.bn(3)
    gamma = s.initializers[0]
    gamma.CopyFrom(numpy_helper.from_array(abs(numpy_helper.to_array(gamma)), gamma.name))
    s.node(op, **({} if op.startswith("Global") else {"kernel_shape": [2, 2], "strides": [2, 2]}))
    s.node("Flatten")
    s.node("MatMul", s.at, s.weight("w", 3 if op.startswith("Global") else 27, 4), name="product")
    model = s.model()
    folded, report = bnfold.fold(model)
    assert not report.kept
    assert ops(folded)[-2:] == ["MatMul", "Add"]
    for batch in (1, 2, 5):
        assert_same(model, folded, (batch, 3, 6, 6))


@pytest.mark.parametrize("step", ["bn", "Add"])
@pytest.mark.parametrize("between", ["Neg", "Max", "Pow", "Slice"])
def test_what_pays_for_an_add_may_have_more_behind_it(between, step):
    s = Sketch("n", 3)
    if step == "bn":
        s.bn(3)
    else:
        s.node("Add", s.at, s.weight("c", 3))
    more = {
        "Pow": [s.constant("one", np.array(1.0))],
        "Slice": [s.constant(f"i{n}", np.array([n])) for n in (0, 2)],
    }
    ends = [s.constant("axis", np.array([1]))] if between == "Slice" else []
    s.node(between, s.at, *more.get(between, []), *ends)
    s.node("MatMul", s.at, s.weight("w", 2 if between == "Slice" else 3, 4), name="product")
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed >= 1 and not report.kept
    for batch in (1, 2, 5):
        assert_same(model, folded, (batch, 3))


@pytest.mark.parametrize("has_steps", [True, False])
@pytest.mark.parametrize(
    "added", [(5, 4), (5, 1), (2, 5, 4), (2, 5, 1), (3, 1, 1, 4), (3, 1, 1, 1)]
)
def test_a_constant_that_is_larger_than_a_matrix_product_is_no_bias(added, has_steps):
    s = Sketch(2, 1, 8)
    s.node("MatMul", s.at, s.weight("w", 8, 4), name="fc")
    s.node("Add", s.at, s.weight("c", *added), name="add")
    if has_steps:
        s.node("Mul", s.at, s.weight("scale", 4), name="mul")
        s.node("MatMul", s.at, s.weight("v", 4, 3), name="last")
    model = s.model()
    folded = bnfold.fold(model).model
    assert ops(folded) == ["MatMul", "Add", *(["MatMul"] if has_steps else [])]
    assert_same(model, folded, (2, 1, 8))


@pytest.mark.parametrize("added", [(4, 5), (1, 5), (2, 4, 5), (2, 1, 1, 5)])
def test_a_constant_that_is_larger_than_a_matrix_times_columns_is_no_bias(added):
    s = Sketch(2, 8, 1)
    s.node("MatMul", s.weight("w", 4, 8), s.at, name="fc")
    s.node("Add", s.weight("c", *added), s.at, name="add")
    s.node("Mul", s.at, s.weight("scale", 4, 1), name="mul")
    s.node("MatMul", s.weight("v", 3, 4), s.at, name="last")
    model = s.model()
    folded = bnfold.fold(model).model
    assert ops(folded) == ["MatMul", "Add", "MatMul"]
    assert_same(model, folded, (2, 8, 1))


def test_batch_norm_over_the_sequence_behind_a_matrix():
    """(N, L, C): the matrix makes C, and channels of the BatchNorm are L, of the same length."""
    s = Sketch(2, 4, 3)
    s.node("MatMul", s.at, s.weight("w", 3, 4))
    s.bn(4)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.kept == 1
    assert_same(model, folded, (2, 4, 3))


def test_a_weight_that_the_user_can_override():
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    s.bn(4)
    s.inputs.append(helper.make_tensor_value_info("conv_w", TensorProto.FLOAT, [4, 3, 3, 3]))
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 0
    assert initializer(folded, "conv_w").tolist() == initializer(model, "conv_w").tolist()


# -------------------------------------------------------------------- removed


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions(groups):
    s = Sketch(2, 4, 6, 6)
    s.conv(4, 8, group=groups, pads=[1, 1, 1, 1])
    s.bn(8)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert ops(folded) == ["Conv"]
    assert report.items[0].into == ("conv",)
    assert_same(model, folded, (2, 4, 6, 6))


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(groups):
    s = Sketch(2, 4, 5, 5)
    s.node("ConvTranspose", s.at, s.weight("w", 4, 6 // groups, 3, 3), group=groups, strides=[2, 2])
    s.bn(6)
    model = s.model()
    folded, _ = bnfold.fold(model)
    assert ops(folded) == ["ConvTranspose"]
    assert_same(model, folded, (2, 4, 5, 5))


@pytest.mark.parametrize("options", [{}, {"alpha": 0.5}, {"beta": 2.0}, {"beta": 0.0}])
@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("bias", [None, (4,), (1, 4), (1,), ()])
def test_gemms_between_batch_norms(options, flip, bias):
    s = Sketch(2, 3)
    s.bn(3, name="before")
    names = [s.at, s.weight("w", *((4, 3) if flip else (3, 4)))]
    if bias is not None:
        names.append(s.weight("c", *bias))
    s.node("Gemm", *names, transB=flip, **options)
    s.bn(4, name="behind")
    model = s.model()
    folded, _ = bnfold.fold(model)
    assert ops(folded) == ["Gemm"]
    assert_same(model, folded, (2, 3))


def test_the_add_behind_a_matrix_product_is_its_bias():
    s = Sketch(2, 5, 3)
    s.node("MatMul", s.at, s.weight("w", 3, 4))
    s.node("Add", s.constant("b", np.arange(4.0)), s.at)
    s.node("Transpose", perm=[0, 2, 1])
    s.bn(4)
    model = s.model()
    folded, _ = bnfold.fold(model)
    assert ops(folded) == ["MatMul", "Add", "Transpose"]
    assert_same(model, folded, (2, 5, 3))


@pytest.mark.parametrize("left", [False, True])
def test_an_add_takes_the_place_of_a_batch_norm(left):
    s = Sketch(2, 3, 3)
    weight = s.weight("w", 4, 3) if left else s.weight("w", 3, 4)
    s.node("MatMul", *([weight, s.at] if left else [s.at, weight]), name="product")
    if not left:
        s.node("Transpose", perm=[0, 2, 1])
    s.bn(4)
    model = s.model()
    folded, _ = bnfold.fold(model)
    assert ops(folded) == (["MatMul", "Add"] if left else ["MatMul", "Add", "Transpose"])
    assert_same(model, folded, (2, 3, 3))


@pytest.mark.parametrize(
    ("between", "left"), [("Mul", ()), ("Div", ()), ("Mul", (4,)), ("Neg", None)]
)
def test_an_add_takes_the_place_of_one_behind_a_factor(between, left):
    """And of a BatchNormalization; a second fold finds nothing more."""
    s = Sketch(2, 5, 3)
    s.node("MatMul", s.at, s.weight("w", 3, 4), name="product")
    s.node(between, s.at, *([] if left is None else [s.weight("f", *left)]))
    s.node("Transpose", perm=[0, 2, 1])
    s.node("Add", s.at, s.weight("c", 4, 1), name="step")
    model = s.model()
    folded, report = bnfold.fold(model)
    assert ops(folded) == ["MatMul", "Add", "Transpose"]
    assert report.kept == 0
    assert_same(model, folded, (2, 5, 3))
    assert bnfold.fold(folded).model == folded


SUMMANDS = ["y + c", "c + y", "y - c", "c - y"]


def summand(s, form, shape):
    """An Add or Sub of what was made last and a constant."""
    y, c = s.at, s.weight("c", *shape)
    operands = (y, c) if form.startswith("y") else (c, y)
    return s.node("Add" if "+" in form else "Sub", *operands, name="step")


@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 4), (1, 1, 4), (5, 4)])
@pytest.mark.parametrize("form", SUMMANDS)
@pytest.mark.parametrize("behind", [True, False])
def test_what_is_added_to_a_matrix_product_or_taken_off(form, shape, behind):
    """It is the bias of the product, or gives way to one; what stands in front goes along."""
    s = Sketch("n", 5, 3)
    if not behind:
        s.node("Transpose", perm=[0, 2, 1])
        s.bn(3)
        s.node("Transpose", perm=[0, 2, 1])
    s.node("MatMul", s.at, s.weight("w", 3, 4), name="product")
    summand(s, form, shape)
    s.node("Transpose", perm=[0, 2, 1])
    if behind:
        s.bn(4)
    s.node("Sigmoid")
    model = s.model()
    folded, report = bnfold.fold(model)
    assert not report.kept
    assert len([op for op in ops(folded) if op in ("Add", "Sub")]) == 1
    assert "BatchNormalization" not in ops(folded)
    for batch in (1, 2, 5):
        assert_same(model, folded, (batch, 5, 3))
    assert bnfold.fold(folded).model == folded


@pytest.mark.parametrize("form", SUMMANDS)
@pytest.mark.parametrize("opset", [6, 17])
def test_a_step_behind_views_pays_for_an_add(form, opset):
    s = Sketch(2, 3)
    s.node("MatMul", s.at, s.weight("w", 3, 4), name="product")
    s.node("Transpose", perm=[1, 0])
    s.node("Transpose", perm=[1, 0])
    if opset == 6 and form.startswith("c"):
        pytest.skip("the second operand alone is spread out at this opset")
    summand(s, form, (4,))
    if opset == 6:
        s.nodes[-1].attribute.append(helper.make_attribute("broadcast", 1))
    s.bn(4, **({"is_test": 1} if opset == 6 else {}))
    s.node("Sigmoid")
    model = s.model(opset=opset)
    folded, report = bnfold.fold(model)
    assert not report.kept
    assert ops(folded) == ["MatMul", "Add", "Transpose", "Transpose", "Sigmoid"]
    expected, actual = (ReferenceEvaluator(m) for m in (model, folded))
    feed = {"x": np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)}
    if opset == 17:
        np.testing.assert_allclose(actual.run(None, feed)[0], expected.run(None, feed)[0], 1e-5)
    assert bnfold.fold(folded).model == folded


@pytest.mark.parametrize("form", SUMMANDS)
def test_products_that_something_is_taken_off_merge(form):
    s = Sketch(2, 3)
    s.node("MatMul", "x", s.weight("w", 3, 4))
    first = summand(s, form, (4,))
    second = s.node("Add", s.node("MatMul", "x", s.weight("v", 3, 4)), s.weight("d", 4))
    s.node("Sub", first, second)
    model = s.model()
    folded, _ = bnfold.fold(model)
    assert len(ops(folded)) == 2
    assert_same(model, folded, (2, 3))


@pytest.mark.parametrize("meeting", ["Sub", "Mean", "Mul"])
def test_what_pays_for_an_add_may_be_taken_off_or_weighed(meeting):
    s = Sketch("n", 3)
    s.node("Tanh")
    first = s.bn(3)
    second = s.weight("f", 3) if meeting == "Mul" else s.node("MatMul", "x", s.weight("v", 3, 3))
    s.node(meeting, *((second, first) if meeting == "Mul" else (first, second)))
    s.node("MatMul", s.at, s.weight("w", 3, 4), name="product")
    model = s.model()
    folded, report = bnfold.fold(model)
    assert not report.kept
    assert len(folded.graph.node) <= len(model.graph.node)
    for batch in (1, 2, 5):
        assert_same(model, folded, (batch, 3))


def test_none_does_behind_a_quotient_by_what_the_product_makes():
    s = Sketch(2, 5, 3)
    s.node("MatMul", s.at, s.weight("w", 3, 4), name="product")
    s.node("Div", s.weight("f", 4), s.at)
    s.node("Add", s.at, s.weight("c", 4), name="step")
    model = s.model()
    assert bnfold.fold(model).model == model


EINSUMS = [
    ("nc,co->no", "nc", False),
    ("nc,oc->no", "nc", False),
    ("co,nc->no", "nc", True),
    ("abc,cd->abd", "abc", False),
    ("abc,dc->adb", "abc", False),
    ("oc,nchw->nohw", "nchw", True),
    ("nchw,dc->ndhw", "nchw", False),
    ("nchw,cd->dwhn", "nchw", False),
    ("...c,cd->...d", "nhwc", False),
    ("...c,cd->d...", "abc", False),
    (" b c ... , d c -> b d ... ", "bchw", False),
]


@pytest.mark.parametrize("added", ["", *SUMMANDS])
@pytest.mark.parametrize("side", ["behind", "in front", "both"])
@pytest.mark.parametrize(("equation", "axes", "first"), EINSUMS)
def test_an_einsum_that_is_a_matrix_product(equation, axes, first, side, added):
    """BatchNorms behind and in front, at its channels; at several sizes."""
    left, _, made = equation.replace(" ", "").partition("->")
    matrix = left.split(",")[0 if first else 1]
    (ins,) = set(matrix) - set(made)
    (outs,) = set(matrix) - {ins}
    s = Sketch(*("n" if letter in "na" else 3 if letter == ins else 5 for letter in axes))
    read = made.replace("...", "".join(letter for letter in axes if letter not in left))
    to_second = [k for k in range(len(axes)) if k != axes.index(ins)]
    if side != "behind":
        order = [to_second[0], axes.index(ins), *to_second[1:]]
        s.node("Transpose", perm=order)
        s.bn(3, name="front")
        s.node("Transpose", perm=[order.index(k) for k in range(len(order))])
    weight = s.weight("w", *(3 if letter == ins else 4 for letter in matrix))
    operands = (weight, s.at) if first else (s.at, weight)
    s.node("Einsum", *operands, equation=equation, name="einsum")
    place = read.index(outs)
    if added:
        summand(s, added, (4, *(1,) * (len(read) - 1 - place)))
    rest = [k for k in range(len(read)) if k != place]
    s.node("Transpose", perm=[rest[0], place, *rest[1:]])
    if side != "in front":
        s.bn(4, name="back")
    model = s.model()
    folded, report = bnfold.fold(model, verify=False)
    assert not report.kept
    assert "BatchNormalization" not in ops(folded)
    assert len([op for op in ops(folded) if op in ("Add", "Sub")]) == 1
    for batch in (1, 2, 7):
        shape = [batch if k in "na" else 3 if k == ins else 5 for k in axes]
        assert_same(model, folded, shape)
    assert bnfold.fold(folded, verify=False).model == folded


def test_an_einsum_is_verified_and_its_axes_may_be_open():
    s = Sketch("batch", "time", 3)
    s.node("Einsum", s.at, s.weight("w", 3, 4), equation="abc,cd->adb")
    s.bn(4)
    model = s.model()
    folded, _ = bnfold.fold(model)
    assert ops(folded) == ["Einsum", "Add"]
    for shape in ((1, 1, 3), (2, 7, 3), (5, 4, 3)):
        assert_same(model, folded, shape)


def test_a_transposed_weight_is_edited_where_it_is():
    s = Sketch(2, 5, 3)
    s.weight("w", 4, 3)
    s.nodes.append(helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]))
    s.node("MatMul", s.at, "wt")
    s.node("Add", s.at, s.constant("b", np.ones(4)))
    s.node("Transpose", perm=[0, 2, 1])
    s.bn(4)
    model = s.model()
    folded, _ = bnfold.fold(model)
    assert [t.name for t in folded.graph.initializer] == ["w", "b"]
    assert_same(model, folded, (2, 5, 3))


def around_a_product(batch, left):
    """A step, a product by a batch of matrices, and two steps behind it."""
    s = Sketch(3, 5, 5)
    s.node("Sigmoid")
    laid = (5, 1) if left else (5,)
    s.node("Mul", s.at, s.weight("before", *laid), name="before_it")
    weight = s.weight("w", *batch, *((4, 5) if left else (5, 4)))
    s.node("MatMul", *([weight, s.at] if left else [s.at, weight]), name="product")
    laid = (4, 1) if left else (4,)
    s.node("Mul", s.at, s.weight("behind", *laid), name="behind_it")
    s.node("Add", s.at, s.weight("last", *laid), name="last_one")
    return s


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("batch", [(1,), (3,), (1, 1), (2, 1), (2, 3)])
def test_factors_go_into_a_batch_of_matrices(batch, left):
    model = around_a_product(batch, left).model()
    folded, _ = bnfold.fold(model)
    assert ops(folded) == ["Sigmoid", "MatMul", "Add"]
    assert_same(model, folded, (3, 5, 5))
    assert bnfold.fold(folded).model == folded


@pytest.mark.parametrize(("batch", "kept"), [((1,), 0), ((1, 1), 0), ((3,), 1), ((2, 1), 1)])
def test_a_shift_goes_into_a_single_matrix_alone(batch, kept):
    s = Sketch(3, 5, 4)
    s.node("Sigmoid")
    s.node("Transpose", perm=[0, 2, 1])
    s.bn(4)
    s.node("Transpose", perm=[0, 2, 1])
    s.node("MatMul", s.at, s.weight("w", *batch, 4, 6), name="product")
    s.node("Add", s.at, s.weight("b", 6), name="bias")
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.kept == kept
    assert [item.blocker for item in report.items if item.reason] == ["product"] * kept
    assert_same(model, folded, (3, 5, 4))


def test_two_products_by_one_batch_of_matrices_get_one_each():
    s = Sketch(3, 5, 5)
    weight = s.weight("w", 3, 5, 4)
    first = s.node("Mul", s.node("MatMul", "x", weight), s.weight("f", 4))
    second = s.node("MatMul", s.node("Tanh", "x"), weight)
    s.node("Concat", first, s.node("Mul", second, s.weight("g", 4)), axis=1)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.kept == 0
    assert_same(model, folded, (3, 5, 5))


def test_batches_of_matrices_are_not_merged():
    s = Sketch(3, 5, 5)
    parts = [s.node("MatMul", "x", s.weight(n, 3, 5, 4), name=n) for n in ("a", "b")]
    s.node("Add", *parts)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert not report.merged
    assert folded == model


def test_an_embedding():
    s = Sketch(2, 5)
    s.inputs = [helper.make_tensor_value_info("x", TensorProto.INT64, [2, 5])]
    s.node("Gather", s.weight("table", 7, 4), "x")
    s.node("Transpose", perm=[0, 2, 1])
    s.bn(4)
    model = s.model()
    folded, _ = bnfold.fold(model)
    assert ops(folded) == ["Gather", "Transpose"]
    assert_same(model, folded, (2, 5))


def test_a_computed_bias():
    """torch's exporter, not optimised: zeros of the shape that the weight has."""
    s = Sketch(2, 3, 6, 6)
    s.weight("w", 4, 3, 3, 3)
    shape = s.constant("shape", np.array([4]))
    s.node("ConstantOfShape", shape, output="zeros")
    s.node("CastLike", "zeros", "x", output="b")
    s.node("Conv", "x", "w", "b")
    s.bn(4)
    model = s.model()
    folded, _ = bnfold.fold(model)
    assert ops(folded) == ["Conv"]
    assert_same(model, folded, (2, 3, 6, 6))


# -------------------------------------------------------------------- shared


def twice(same_statistics: bool) -> Sketch:
    s = Sketch(2, 3, 6, 6)
    weight = s.weight("w", 3, 3, 1, 1)
    s.node("Conv", "x", weight, name="conv1")
    s.bn(3, name="bn1")
    s.node("Relu")
    first = s.at
    s.node("Conv", "x", weight, name="conv2")
    if same_statistics:
        s.node("BatchNormalization", s.at, *[f"bn1_{k}" for k in "gbmv"], name="bn2")
    else:
        s.bn(3, name="bn2")
    s.node("Concat", first, s.node("Sigmoid"), axis=1)
    return s


def test_one_weight_and_one_edit():
    model = twice(same_statistics=True).model()
    folded, report = bnfold.fold(model)
    assert report.removed == 2
    assert [t.name for t in folded.graph.initializer if t.name.startswith("w")] == ["w"]
    assert_same(model, folded, (2, 3, 6, 6))


def test_one_weight_and_two_edits():
    model = twice(same_statistics=False).model()
    folded, report = bnfold.fold(model)
    assert report.removed == 2
    assert_same(model, folded, (2, 3, 6, 6))


def test_a_weight_that_is_an_output_too():
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    s.bn(4)
    model = s.model(s.at, "conv_w")
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    assert_same(model, folded, (2, 3, 6, 6))


def test_a_bias_that_two_layers_share():
    s = Sketch(2, 3, 6, 6)
    bias = s.constant("b", np.array([1.0, -2.0, 3.0]))
    s.node("Conv", "x", s.weight("w1", 3, 3, 1, 1), bias)
    s.bn(3)
    s.node("Conv", s.at, s.weight("w2", 3, 3, 1, 1), bias)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    assert_same(model, folded, (2, 3, 6, 6))


def test_initializers_that_are_inputs_in_an_old_file():
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    s.bn(4)
    for tensor in s.initializers:
        s.inputs.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    model = s.model(ir_version=3, opset=8)
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    names = {info.name for info in folded.graph.input}
    assert {t.name for t in folded.graph.initializer} <= names
    assert "bn_g" not in names
    expected, actual = run(model, (2, 3, 6, 6)), run(folded, (2, 3, 6, 6))
    np.testing.assert_allclose(expected[0], actual[0], rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------- integers


def quantised(gamma_sign: float, bias: str) -> Sketch:
    s = Sketch(2, 3, 6, 6)
    q = s.rng.integers(-120, 120, (4, 3, 3, 3)).astype(np.int8)
    parts = [s.constant("q", q), s.constant("scale", np.array([0.1, 0.2, 0.3, 0.4]))]
    weight = s.node("DequantizeLinear", *parts, axis=0)
    names = ["x", weight]
    if bias == "float":
        names.append(s.weight("b", 4))
    if bias == "integer":
        s.constant("qb", np.array([5, -6, 7, -8], np.int32))
        names.append(s.node("DequantizeLinear", "qb", "scale", axis=0))
    s.node("Conv", *names, name="conv")
    s.bn(4)
    for tensor in s.initializers:
        if tensor.name == "bn_g":
            signs = np.abs(numpy_helper.to_array(tensor)) * gamma_sign
            tensor.CopyFrom(numpy_helper.from_array(signs.astype(np.float32), "bn_g"))
    return s


def test_integers_and_their_bias_stay():
    for sign, bias in ((-1.0, ""), (1.0, "integer")):
        model = quantised(sign, bias).model()
        folded, report = bnfold.fold(model)
        assert report.kept == 1
        assert_same(model, folded, (2, 3, 6, 6))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("bias", ["", "float", "integer"])
def test_a_scale_for_all_channels_stays_one(bias, seed):
    """Two groups, and a rescaling for each: the scale of the weight is not touched."""
    s = Sketch(2, 4, 6, 6, seed=seed)
    s.bn(4, name="before")
    names = [s.at, s.constant("q", s.rng.integers(-120, 120, (6, 2, 2, 2)).astype(np.int8))]
    s.constant("scale", np.array(0.013))
    names[1] = s.node("DequantizeLinear", names[1], "scale")
    if bias == "float":
        names.append(s.weight("b", 6))
    if bias == "integer":
        s.constant("qb", np.array([0, -6, 7, -8, 0, 4], np.int32))
        names.append(s.node("DequantizeLinear", "qb", "scale"))
    s.node("Conv", *names, group=2)
    s.bn(6)
    gamma = numpy_helper.from_array(np.abs(numpy_helper.to_array(s.initializers[-4])), "bn_g")
    s.initializers[-4].CopyFrom(gamma)
    s.node("Relu")
    s.bn(6, name="behind")
    s.node("Mul", s.at, s.constant("half", np.array(0.5)))
    model = s.model()
    folded = bnfold.fold(model).model
    assert initializer(folded, "scale") == initializer(model, "scale")
    assert ops(folded).count("DequantizeLinear") == ops(model).count("DequantizeLinear")
    assert_same(model, folded, (2, 4, 6, 6))


def quantised_product(scale: float | list[float], bias: list[float]) -> Sketch:
    """x @ W + bias, W integers."""
    s = Sketch(3, 4)
    s.node("Mul", "x", s.constant("three", np.array(3.0)))
    q = s.constant("q", s.rng.integers(-120, 120, (4, 3)).astype(np.int8))
    source, axis = s.at, {"axis": 1} if isinstance(scale, list) else {}
    weight = s.node("DequantizeLinear", q, s.constant("scale", np.array(scale)), **axis)
    s.node("MatMul", source, weight)
    s.node("Add", s.at, s.constant("b", np.array(bias)))
    return s


@pytest.mark.parametrize("scale", [0.1, [0.1, 0.2, 0.3]])
def test_an_add_of_zeros_behind_integers_hides_nothing(scale):
    s = quantised_product(scale, [0.0, 0.0, 0.0])
    s.node("Sigmoid")
    model = s.model()
    assert_same(model, bnfold.fold(model).model, (3, 4))


def test_an_add_and_a_batch_norm_behind_integers_become_one_step():
    s = quantised_product([0.1, 0.2, 0.3], [1.0, -2.0, 3.0])
    s.bn(3)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert (report.removed, len(ops(folded))) == (1, 3)
    assert initializer(folded, "q").tolist() == initializer(model, "q").tolist()
    assert_same(model, folded, (3, 4))


@pytest.mark.parametrize("bias", ["", "float"])
def test_the_scale_of_an_integer_weight_takes_a_batch_norm(bias):
    model = quantised(1.0, bias).model()
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    assert initializer(folded, "q").tolist() == initializer(model, "q").tolist()
    assert (initializer(folded, "scale") > 0).all()
    assert_same(model, folded, (2, 3, 6, 6))


# -------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("statistics", [np.float16, np.float32])
def test_float16(statistics):
    s = Sketch("N", 3, 6, 6, data_type=TensorProto.FLOAT16)
    s.conv(3, 4)
    s.dtype = np.dtype(statistics)
    s.bn(4)
    model = s.model(opset=15)
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    assert {t.data_type for t in folded.graph.initializer} == {TensorProto.FLOAT16}
    assert_same(model, folded, (2, 3, 6, 6), tolerance=1e-2)


def test_a_weight_that_went_through_eight_bits():
    """Values too large for them are clipped in one runtime and lost in another."""
    s = Sketch(2, 3, 6, 6)
    s.node(
        "Cast", s.constant("w", 1e6 * s.rng.normal(size=(4, 3, 1, 1))), to=TensorProto.FLOAT8E5M2
    )
    weight = s.node("Cast", s.at, to=TensorProto.FLOAT)
    s.node("Conv", "x", weight)
    s.bn(4)
    model = s.model(opset=19)
    assert_same(model, bnfold.fold(model).model, (2, 3, 6, 6))


@pytest.mark.parametrize("start", [-1, -4, -100])
def test_channels_that_are_picked_backwards(start):
    s = Sketch(2, 4, 6, 6)
    s.bn(4)
    numbers = {"start": start, "end": -100, "axis": 1, "step": -1}
    s.node("Slice", s.at, *(s.constant(k, np.array([v])) for k, v in numbers.items()))
    s.conv(4 if start == -1 else 1, 5)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    assert_same(model, folded, (2, 4, 6, 6))


@pytest.mark.parametrize(
    ("data_type", "tolerance"), [(TensorProto.BFLOAT16, 3e-2), (TensorProto.DOUBLE, 1e-12)]
)
def test_dtypes_that_onnx_runtime_has_no_convolution_for(data_type, tolerance):
    s = Sketch(1, 3, 6, 6, data_type=data_type)
    s.conv(3, 4)
    s.bn(4)
    s.node("Relu")
    s.bn(4, name="bn2")
    s.conv(4, 5, name="last", pads=[1, 1, 1, 1])
    model = s.model()
    folded, report = bnfold.fold(model, clip="always")
    assert report.removed == 2
    assert {t.data_type for t in folded.graph.initializer} == {data_type}
    x = np.random.default_rng(1).normal(size=(1, 3, 6, 6)).astype(s.dtype)
    (expected,), (actual,) = (
        [np.asarray(out, np.float64) for out in ReferenceEvaluator(m).run(None, {"x": x})]
        for m in (model, folded)
    )
    assert np.abs(expected - actual).max() <= tolerance * np.abs(expected).max()
