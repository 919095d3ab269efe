"""Constants that meet activations, recurrent layers, biases of any shape: right, and gone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import Reason
from tests.frontends.onnx.support import Sketch, assert_same, ops


def check(s: Sketch, *shapes, removed: int, outputs: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Fold, check, compare for each group of input shapes."""
    model = s.model(*outputs)
    before = model.SerializeToString(deterministic=True)
    folded, report = bnfold.fold(model, clip="always")
    assert report.removed == removed, [item.sentence for item in report.items]
    assert model.SerializeToString(deterministic=True) == before
    inferred = onnx.shape_inference.infer_shapes(folded, check_type=True, strict_mode=True)
    onnx.checker.check_model(inferred, full_check=True)
    for shape in shapes:
        assert_same(model, folded, shape)
    return folded


def conv_in_front(s: Sketch) -> None:
    s.conv(3, 4, 1)


# -------------------------------------------------------------------- summands of any shape


@pytest.mark.parametrize("op", ["Add", "Sub"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("shape", [(1, 4, 5, 5), (4, 5, 5), (1, 4, 5, 1), (5, 5), (1, 1, 5, 5)])
def test_a_step_behind_a_summand_of_any_shape(op, first, shape):
    s = Sketch(2, 3, 5, 5)
    conv_in_front(s)
    k = s.weight("k", *shape)
    s.node(op, *((k, s.at) if first else (s.at, k)))
    s.bn(4)
    check(s, (2, 3, 5, 5), removed=1)


@pytest.mark.parametrize("shape", [(1, 3, 5, 5), (5, 5), (1, 3, 1, 5)])
def test_a_step_in_front_of_a_summand_of_any_shape(shape):
    s = Sketch("n", 3, 5, 5)
    s.bn(3)
    s.node("Add", s.at, s.weight("k", *shape))
    s.conv(3, 4, 3)
    check(s, (2, 3, 5, 5), (3, 3, 5, 5), removed=1)


def test_a_summand_with_two_readers_gets_a_copy():
    s = Sketch(2, 3, 5, 5)
    conv_in_front(s)
    x, k = s.at, s.weight("k", 1, 4, 5, 5)
    s.bn(4) if s.node("Add", x, k) else None
    y = s.at
    other = s.node("Sigmoid", s.node("Add", "x", s.node("Slice", k, *slices(s))))
    folded = check(s, (2, 3, 5, 5), removed=1, outputs=(y, other))
    assert sum(t.name.startswith("k") for t in folded.graph.initializer) == 2


def slices(s: Sketch) -> list[str]:
    return [s.constant(n, np.array(v)) for n, v in (("st", [0]), ("en", [3]), ("ax", [1]))]


def test_a_constant_in_a_concat():
    s = Sketch(2, 3, 5, 5)
    conv_in_front(s)
    s.node("Concat", s.at, s.weight("k", 2, 2, 5, 5), axis=1)
    s.bn(6)
    check(s, (2, 3, 5, 5), removed=1)


def test_a_constant_along_the_height():
    s = Sketch(2, 3, 5, 5)
    conv_in_front(s)
    s.node("Concat", s.at, s.weight("k", 2, 4, 1, 5), axis=2)
    s.bn(4)
    check(s, (2, 3, 5, 5), removed=1)


# -------------------------------------------------------------------- a step of a constant


@pytest.mark.parametrize("reader", ["Add", "Mul", "Sub", "Concat", "Max", "Div"])
def test_a_step_of_a_constant(reader):
    s = Sketch(2, 4, 5, 5)
    s.at = s.weight("k", 2, 4, 5, 5)
    made = s.bn(4)
    s.node(reader, "x", made, **({"axis": 1} if reader == "Concat" else {}))
    folded = check(s, (2, 4, 5, 5), removed=1)
    assert ops(folded) == [reader]


def test_a_step_of_a_constant_that_others_read():
    s = Sketch(2, 4, 5, 5)
    s.at = k = s.weight("k", 2, 4, 5, 5)
    made = s.bn(4)
    s.node("Add", "x", s.node("Mul", k, made))
    check(s, (2, 4, 5, 5), removed=1)


def test_a_step_of_a_constant_that_is_returned():
    s = Sketch(2, 4, 5, 5)
    s.at = s.weight("k", 2, 4, 5, 5)
    made = s.bn(4)
    check(s, (2, 4, 5, 5), removed=1, outputs=(s.node("Relu", "x"), made))


def test_a_step_of_a_constant_with_a_gamma_of_zero():
    s = Sketch(2, 4, 5, 5)
    s.at = s.weight("k", 2, 4, 5, 5)
    made = s.bn(4)
    gamma = next(t for t in s.initializers if t.name == "bn_g")
    gamma.CopyFrom(numpy_helper.from_array(np.array([0, 1, -2, 0], np.float32), "bn_g"))
    s.node("Add", "x", made)
    check(s, (2, 4, 5, 5), removed=1)


def test_two_steps_of_a_constant_node():
    s = Sketch(2, 4, 5, 5)
    value = numpy_helper.from_array(np.full((1, 4, 1, 1), 0.7, np.float32))
    s.nodes.append(helper.make_node("Constant", [], ["k"], value=value))
    s.at = "k"
    s.bn(4)
    s.node("Add", "x", s.bn(4, name="two"))
    assert ops(check(s, (2, 4, 5, 5), removed=2)) == ["Add"]


# -------------------------------------------------------------------- recurrent layers


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_a_recurrent_layer(op, with_bias, direction):
    s = Sketch("t", "n", 3)
    s.node("Transpose", perm=[1, 2, 0])
    s.bn(3)
    s.node("Transpose", perm=[2, 0, 1])
    recurrent(s, op, with_bias=with_bias, direction=direction)
    check(s, (4, 2, 3), (7, 1, 3), removed=1)


def recurrent(s: Sketch, op: str, *, with_bias: bool = True, name: str = "r", **options) -> str:
    count = 2 if options.get("direction") == "bidirectional" else 1
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * 5
    parts = [s.weight(f"{name}_w", count, rows, 3), s.weight(f"{name}_r", count, rows, 5)]
    parts += [s.weight(f"{name}_b", count, 2 * rows)] if with_bias else []
    return s.node(op, s.at, *parts, hidden_size=5, name=name, **options)


def test_a_gru_that_resets_behind_the_product():
    s = Sketch(4, 2, 3)
    s.node("Mul", s.at, s.constant("a", [0.5, -2.0, 3.0]))
    s.node("Add", s.at, s.constant("b", [0.4, 1.2, -0.3]))
    recurrent(s, "GRU", linear_before_reset=1)
    check(s, (4, 2, 3), removed=2)


def test_two_recurrent_layers_with_one_weight():
    s = Sketch(4, 2, 3)
    s.node("Mul", s.at, s.constant("a", [0.5, -2.0, 3.0]))
    first = recurrent(s, "RNN")
    s.node("RNN", "x", "r_w", "r_r", "r_b", hidden_size=5, name="other")
    check(s, (4, 2, 3), removed=1, outputs=(first, s.at))


def test_what_a_recurrent_layer_starts_from_stays():
    s = Sketch(4, 2, 3)
    s.inputs.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, 2, 5]))
    start = s.node("Mul", "h", s.constant("a", np.full(5, 2.0) + np.arange(5)))
    s.at = "x"
    parts = [s.weight("w", 1, 5, 3), s.weight("r", 1, 5, 5)]
    s.node("RNN", s.at, *parts, "", "", start, hidden_size=5)
    assert bnfold.inspect(s.model()).removed == 0


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("steps", ["all", "last"])
def test_behind_a_recurrent_layer_that_starts_from_zeros_for_an_open_batch(op, steps):
    """How PyTorch exports one: the state's batch is taken from the input's shape."""
    s = Sketch("t", "n", 3)
    batch = s.node("Shape", "x", start=1, end=2)
    around = [s.constant(name, np.array([n])) for name, n in (("one", 1), ("five", 5))]
    size = s.node("Concat", around[0], batch, around[1], axis=0)
    zeros = s.node("ConstantOfShape", size)
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * 5
    parts = [s.weight("r_w", 1, rows, 3), s.weight("r_r", 1, rows, 5), s.weight("r_b", 1, 2 * rows)]
    starts = [zeros, zeros] if op == "LSTM" else [zeros]
    outputs = ["made", "last"]
    s.nodes.append(helper.make_node(op, ["x", *parts, "", *starts], outputs, hidden_size=5))
    s.node("Squeeze", *(("made", around[0]) if steps == "all" else ("last", s.constant("at", [0]))))
    if steps == "all":
        s.node("Transpose", perm=[1, 2, 0])
    s.bn(5)
    if steps == "all":
        s.node("Transpose", perm=[0, 2, 1])
    s.node("MatMul", s.at, s.weight("last_w", 5, 4))
    s.node("Add", s.at, s.weight("last_b", 4))
    check(s, (4, 2, 3), (7, 1, 3), removed=1)


def test_a_recurrent_layer_makes_no_linear_value():
    s = Sketch(4, 2, 3)
    s.at = recurrent(s, "LSTM")
    s.node("Mul", s.at, s.constant("a", np.arange(1.0, 6.0)))
    assert bnfold.inspect(s.model()).removed == 0


# -------------------------------------------------------------------- the C of a Gemm


@pytest.mark.parametrize("c", [(), (1,), (4,), (1, 4), (2, 1), (2, 4), (1, 1), None])
@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("numbers", [{}, {"alpha": 0.5, "beta": 2.0}])
@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_with_any_c(c, behind, numbers, transposed):
    s = Sketch(2, 3)
    if not behind:
        s.bn(3)
    weight = s.weight("w", *((4, 3) if transposed else (3, 4)))
    extra = [] if c is None else [s.weight("c", *c)]
    s.node("Gemm", s.at, weight, *extra, transB=transposed, **numbers)
    if behind:
        s.bn(4)
    check(s, (2, 3), removed=1)


@pytest.mark.parametrize("shape", [(5, 4), (1, 5, 1), (2, 5, 4), (5, 1)])
def test_a_matrix_product_and_a_summand_of_any_shape(shape):
    s = Sketch(2, 5, 3)
    s.node("Mul", s.at, s.constant("m", [0.5, -2.0, 3.0]))
    s.node("Add", s.at, s.constant("n", [0.4, 1.2, -0.3]))
    s.node("MatMul", s.at, s.weight("w", 3, 4))
    s.node("Add", s.at, s.weight("k", *shape))
    assert ops(check(s, (2, 5, 3), removed=2)) == ["MatMul", "Add"]


def test_a_matrix_on_the_left():
    s = Sketch(2, 3, 5)
    s.bn(3)
    s.node("MatMul", s.weight("w", 4, 3), s.at)
    assert ops(check(s, (2, 3, 5), removed=1)) == ["MatMul", "Add"]


def test_a_relu_between_a_step_and_a_matrix_product():
    s = Sketch("n", 3)
    s.bn(3)
    s.node("Relu")
    s.node("MatMul", s.at, s.weight("w", 3, 4))
    check(s, (2, 3), (7, 3), removed=1)


# -------------------------------------------------------------------- computed parameters


def dequantized(s: Sketch, name: str, values, axis: bool = False) -> str:
    array = np.asarray(values, np.int8)
    scale = np.full(len(array), 0.03, np.float32) if axis else np.float32(0.03)
    parts = [s.constant(f"{name}_q", array)]
    s.initializers.append(numpy_helper.from_array(np.asarray(scale), f"{name}_s"))
    options = {"axis": 0} if axis else {}
    return s.node("DequantizeLinear", *parts, f"{name}_s", name=name, **options)


def test_parameters_behind_dequantize_linear():
    s = Sketch(2, 3, 5, 5)
    conv_in_front(s)
    x = s.at
    names = [dequantized(s, n, [30, -40, 70, 50], n == "g") for n in "gb"]
    names += [s.weight("m", 4), s.constant("v", [0.5, 1.0, 2.0, 0.7])]
    s.node("BatchNormalization", x, *names, name="bn")
    assert ops(check(s, (2, 3, 5, 5), removed=1)) == ["Conv"]


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_arithmetic_with_a_dequantized_constant(op):
    s = Sketch(2, 3, 5, 5)
    conv_in_front(s)
    x = s.at
    k = dequantized(s, "k", np.array([30, -40, 70, 50]).reshape(4, 1, 1))
    s.node(op, x, k)
    check(s, (2, 3, 5, 5), removed=1)


def test_a_dequantized_weight_stays_what_it_is():
    """Its integers are what the user wants."""
    s = Sketch(2, 3, 5, 5)
    s.bn(3)
    x = s.at
    k = dequantized(s, "w", np.random.default_rng(0).integers(-90, 90, (4, 3, 1, 1)))
    s.node("Conv", x, k)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 0
    assert "DequantizeLinear" in ops(folded)


@pytest.mark.parametrize(
    "how",
    [
        ("Reshape", [4]),
        ("Unsqueeze", None),
        ("Identity", None),
        ("Cast", None),
        ("Concat", None),
        ("Expand", [4]),
    ],
)
def test_parameters_that_are_computed(how):
    s = Sketch(2, 3, 5, 5)
    conv_in_front(s)
    x = s.at
    op, shape = how
    if op == "Reshape":
        k = s.node(op, s.weight("k", 2, 2), s.constant("to", np.array(shape)))
    elif op == "Expand":
        k = s.node(op, s.weight("k", 1), s.constant("to", np.array(shape)))
    elif op == "Concat":
        k = s.node(op, s.weight("k", 2), s.weight("l", 2), axis=0)
    elif op == "Cast":
        s.initializers.append(numpy_helper.from_array(np.array([0.5, 2, -1, 3], np.float16), "k"))
        k = s.node(op, "k", to=TensorProto.FLOAT)
    elif op == "Unsqueeze":
        k = s.node("Squeeze", s.node(op, s.weight("k", 4), s.constant("ax", np.array([0]))))
    else:
        k = s.node(op, s.weight("k", 4))
    names = [s.weight("b", 4), s.weight("m", 4), s.constant("v", [0.5, 1.0, 2.0, 0.7])]
    s.node("BatchNormalization", x, k, *names, name="bn")
    assert ops(check(s, (2, 3, 5, 5), removed=1)) == ["Conv"]


# -------------------------------------------------------------------- true reasons


def test_an_initializer_that_is_an_input():
    s = Sketch(2, 3, 5, 5)
    conv_in_front(s)
    s.bn(4)
    s.inputs.append(helper.make_tensor_value_info("bn_m", TensorProto.FLOAT, [4]))
    report = bnfold.inspect(s.model())
    assert report.items[0].reason is Reason.OVERRIDABLE
    assert "drop bn_m from the inputs" in report.items[0].sentence
    assert any("bn_m are initializers and inputs" in note for note in report.notes)


@pytest.mark.parametrize(("is_test", "reason"), [(1, None), (0, Reason.BATCH_STATISTICS)])
def test_an_old_batch_normalization(is_test, reason):
    s = Sketch(2, 3, 5, 5)
    conv_in_front(s)
    s.bn(4, is_test=is_test)
    report = bnfold.inspect(s.model(opset=6))
    assert report.items[0].reason is reason


def test_an_operator_of_another_domain_is_not_known():
    s = Sketch(2, 3, 5, 5)
    s.bn(3)
    s.conv(3, 4, 1, domain="my.domain")
    assert bnfold.inspect(s.model()).removed == 0


def test_an_attribute_that_the_operator_has_not():
    s = Sketch(2, 3, 5, 5)
    s.bn(3)
    s.conv(3, 4, 1, slope=0.5)
    assert bnfold.inspect(s.model()).removed == 0


# -------------------------------------------------------------------- which channel: by the size


def flatten_and_slice(s: Sketch) -> None:
    s.node("Flatten")
    cut(s, 0, 6, 1)


def heights_as_channels(s: Sketch) -> None:
    s.node("Reshape", s.at, s.constant("to", np.array([0, -1, 2, 1])))
    cut(s, 1, 6, 1)


def gathered(s: Sketch) -> None:
    s.node("Flatten")
    s.node("Gather", s.at, s.constant("at", np.array([0, 5, 7])), axis=1)


def beside_a_constant_in_height(s: Sketch) -> None:
    s.node("Concat", s.at, s.constant("k", np.ones((2, 4, 1, 2))), axis=2)


def beside_another_value_in_height(s: Sketch) -> None:
    x = s.at
    s.node("Concat", x, s.bn(4, name="other"), axis=2)


def pixels_as_channels(s: Sketch) -> None:
    s.node("DepthToSpace", blocksize=2)


def last_rows(s: Sketch) -> None:
    s.node("Flatten", axis=2)
    cut(s, -3, 1 << 40, 1)


def cut(s: Sketch, start: int, end: int, axis: int) -> None:
    numbers = {"from": start, "until": end, "along": axis}
    names = [s.constant(name, np.array([value])) for name, value in numbers.items()]
    s.node("Slice", s.at, *names)


@pytest.mark.parametrize(
    "view",
    [
        flatten_and_slice,
        heights_as_channels,
        gathered,
        beside_a_constant_in_height,
        beside_another_value_in_height,
        pixels_as_channels,
        last_rows,
    ],
)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("known", [None, (2, 3, 4, 2)])
def test_which_channel_it_is_depends_on_the_size(view, relu, known):
    """Right for every size, whatever goes."""
    s = Sketch(2, 3, "h", 2)
    conv_in_front(s)
    s.bn(4)
    if relu:
        s.node("Relu")
    view(s)
    s.node("Abs") if relu else s.node("Neg")
    model = s.model()
    folded, _ = bnfold.fold(model, {"x": known} if known else None, clip="always")
    for height in (2, 3, 4, 8, 17):
        assert_same(model, folded, (2, 3, height, 2))
