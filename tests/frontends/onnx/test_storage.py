"""Weights in 16 bits that are computed with in more: rounded again, or float32; no other dtype."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from tests.frontends.onnx.support import Sketch, assert_same, ops

HALF = [TensorProto.FLOAT16, TensorProto.BFLOAT16]
FLOAT = TensorProto.FLOAT
MODES = ["stored", "float32"]


def half(s: Sketch, name: str, array, data_type: int = TensorProto.FLOAT16) -> str:
    """An initializer in 16 bits."""
    values = np.asarray(array).astype(helper.tensor_dtype_to_np_dtype(data_type))
    s.initializers.append(numpy_helper.from_array(values, name))
    return name


def cast(s: Sketch, name: str, to: int = FLOAT) -> str:
    """A Cast of a value; what comes next reads the same as before."""
    at = s.at
    output = s.node("Cast", name, output=f"{name}_cast", to=to)
    s.at = at
    return output


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def has_note(report: bnfold.FoldReport) -> bool:
    notes = [note for note in report.notes if "--weights float32" in note]
    assert len(notes) <= 1
    return bool(notes)


def fold(model: onnx.ModelProto, weights: str) -> tuple[onnx.ModelProto, bnfold.FoldReport]:
    """Fold with all bounds; the result passes ONNX's own check, with its strict inference."""
    before = model.SerializeToString(deterministic=True)
    folded, report = bnfold.fold(model, weights=weights, clip="always")
    assert model.SerializeToString(deterministic=True) == before
    inferred = onnx.shape_inference.infer_shapes(folded, check_type=True, strict_mode=True)
    onnx.checker.check_model(inferred, full_check=True)
    assert bnfold.inspect(model, weights=weights, clip="always") == report
    return folded, report


def unchanged(old: onnx.ModelProto, new: onnx.ModelProto, *names: str) -> None:
    """These initializers are those of the original, byte for byte."""
    before = {tensor.name: tensor.SerializeToString() for tensor in old.graph.initializer}
    after = {tensor.name: tensor.SerializeToString() for tensor in new.graph.initializer}
    for name in names:
        assert after[name] == before[name]


# -------------------------------------------------------------------- what must not change


@pytest.mark.parametrize("data_type", HALF)
def test_a_model_that_computes_in_16_bits_stays_in_them(data_type):
    s = Sketch(2, 3, 6, 6, data_type=data_type)
    s.conv(3, 4)
    s.bn(4)
    model = s.model(opset=22)
    (folded, report), (same, other) = fold(model, "stored"), fold(model, "float32")
    assert same == folded and report == other and report.removed == 1
    assert set(kinds(same).values()) == {data_type} and not has_note(report)


def test_a_part_that_computes_in_16_bits_stays_in_them():
    """float32, a Cast of the activation, a convolution in float16, and back."""
    s = Sketch(2, 3, 6, 6)
    s.node("Cast", to=TensorProto.FLOAT16)
    s.node("Conv", s.at, half(s, "w", s.rng.normal(size=(4, 3, 3, 3)) * 0.2), name="conv")
    s.node("Cast", to=FLOAT)
    s.bn(4)
    folded, report = fold(s.model(), "float32")
    assert kinds(folded)["w"] == TensorProto.FLOAT16 and ops(folded) == ["Cast", "Conv", "Cast"]
    assert not has_note(report) and report.removed == 1


@pytest.mark.parametrize("reader", ["Sigmoid", "output", "body", "function", "Where"])
def test_rows_that_somebody_reads_in_16_bits(reader):
    s = embedding()
    picked, at = "emb_out", s.at
    outputs = [at]
    if reader == "output":
        outputs.append(picked)
    elif reader == "body":
        value = helper.make_tensor_value_info("inner", TensorProto.FLOAT16, None)
        inner = helper.make_graph([helper.make_node("Neg", [picked], ["inner"])], "g", [], [value])
        s.inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
        s.node("If", "flag", then_branch=inner, else_branch=renamed(inner))
        outputs.append(cast(s, s.at))
    elif reader == "function":
        s.nodes.append(helper.make_node("Own", [picked], ["own"], domain="own"))
        outputs.append(cast(s, "own"))
    else:
        where = (s.constant("c", [True] * 4), picked, half(s, "k", s.rng.normal(size=4)))
        s.node(reader, *(where if reader == "Where" else (picked,)))
        outputs.append(cast(s, s.at))
    model = s.model(*outputs)
    if reader == "output":
        model.graph.output[1].type.tensor_type.elem_type = TensorProto.FLOAT16
    if reader == "function":
        model.opset_import.add(domain="own", version=1)
    folded, report = bnfold.fold(model, weights="float32")
    assert kinds(folded)["table"] == TensorProto.FLOAT16 and "Cast" in ops(folded)
    assert folded == bnfold.fold(model).model and not has_note(report)


def renamed(graph: onnx.GraphProto) -> onnx.GraphProto:
    other = onnx.GraphProto()
    other.CopyFrom(graph)
    other.name = "other"
    other.node[0].output[0] = other.output[0].name = "inner_2"
    return other


def test_a_model_without_steps_is_what_it_was():
    s = Sketch(2, 3, 6, 6)
    s.node("Conv", s.at, cast(s, half(s, "w", s.rng.normal(size=(4, 3, 3, 3)))))
    model = s.model()
    folded, report = fold(model, "float32")
    assert folded == model and not has_note(report)


# -------------------------------------------------------------------- constants behind a Cast


def cast_conv(s: Sketch, name: str, data_type: int, *, channels: int = 3) -> None:
    """A convolution whose weight and bias are stored in 16 bits."""
    w = half(s, f"{name}_w", s.rng.normal(size=(4, channels, 3, 3)) * 0.2, data_type)
    b = half(s, f"{name}_b", s.rng.normal(size=4), data_type)
    s.node("Conv", s.at, cast(s, w), cast(s, b), name=name, pads=[1] * 4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("data_type", HALF)
def test_what_changes_behind_a_cast_is_float32_and_the_rest_as_it_was(data_type, mode):
    s = Sketch(2, 3, 6, 6)
    cast_conv(s, "conv", data_type)
    s.bn(4)
    s.node("Sigmoid")
    cast_conv(s, "tail", data_type, channels=4)
    model = s.model()
    folded, report = fold(model, mode)
    assert ops(folded) == ["Conv", "Sigmoid", "Cast", "Cast", "Conv"]
    assert kinds(folded) == {
        **{"conv_w_cast_folded": FLOAT, "conv_b_cast_folded": FLOAT},
        **{"tail_w": data_type, "tail_b": data_type},
    }
    unchanged(model, folded, "tail_w", "tail_b")
    assert not has_note(report)
    assert_same(model, folded, (2, 3, 6, 6), tolerance=1e-6)
    result = bnfold.verify(model, folded)
    assert result.equal and not any("--weights" in note for note in result.notes)


@pytest.mark.parametrize("mode", MODES)
def test_an_initializer_with_another_reader_keeps_the_old_one(mode):
    s = Sketch(2, 3, 6, 6)
    w = half(s, "w", s.rng.normal(size=(4, 3, 3, 3)) * 0.2)
    s.node("Conv", s.at, cast(s, w), name="conv")
    s.bn(4, name="bn")
    y = s.at
    s.node("Cast", "x", to=TensorProto.FLOAT16)
    s.node("Conv", s.at, w, name="in_half")
    model = s.model(y, s.at)
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.FLOAT16
    folded, _ = fold(model, mode)
    assert kinds(folded)["w"] == TensorProto.FLOAT16
    unchanged(model, folded, "w")
    assert ops(folded).count("Cast") == 1  # that of the activation
    assert_same(model, folded, (2, 3, 6, 6), tolerance=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_cast_with_two_readers_stays_for_the_one_that_does_not_change(mode):
    s = Sketch(2, 3, 6, 6)
    w = cast(s, half(s, "w", s.rng.normal(size=(4, 3, 3, 3)) * 0.2))
    s.node("Conv", "x", w, name="plain")
    plain = s.at
    s.node("Conv", "x", w, name="conv", pads=[1] * 4)
    s.bn(4)
    model = s.model(plain, s.at)
    folded, _ = fold(model, mode)
    assert ops(folded) == ["Cast", "Conv", "Conv"]
    unchanged(model, folded, "w")
    assert kinds(folded)["w_cast_folded"] == FLOAT
    assert_same(model, folded, (2, 3, 6, 6), tolerance=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_weight_behind_a_cast_that_two_layers_use_alike(mode):
    s = Sketch(2, 3, 6, 6)
    w = cast(s, half(s, "w", s.rng.normal(size=(4, 3, 3, 3)) * 0.2))
    s.node("Conv", "x", w, name="one")
    one = s.bn(4)
    s.node("Neg", "x")
    s.node("Conv", s.at, w, name="two")
    names = list(s.nodes[2].input[1:])
    two = s.node("BatchNormalization", s.at, *names, name="bn_two")
    model = s.model(one, two)
    folded, report = fold(model, mode)
    assert report.removed == 2 and "Cast" not in ops(folded)
    assert set(kinds(folded).values()) == {FLOAT}
    assert_same(model, folded, (2, 3, 6, 6), tolerance=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_constant_nodes_and_transposed_weights(mode):
    s = Sketch(5, 6)
    w = numpy_helper.from_array((s.rng.normal(size=(4, 6)) * 0.3).astype(np.float16), "value")
    s.node("Constant", "", output="w", value=w)
    s.nodes[-1].ClearField("input")
    s.node("Transpose", cast(s, "w"), output="flipped", perm=[1, 0])
    s.node("MatMul", "x", "flipped", name="dense")
    s.bn(4)
    model = s.model()
    folded, report = fold(model, mode)
    assert report.removed == 1 and ops(folded) == ["MatMul", "Add"]
    assert set(kinds(folded).values()) == {FLOAT}
    assert_same(model, folded, (5, 6), tolerance=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_in_a_function_that_casts_what_it_is_given(mode):
    s = Sketch(2, 3, 6, 6)
    half(s, "w", s.rng.normal(size=(4, 3, 3, 3)) * 0.2)
    s.bn(4)
    parameters = list(s.nodes.pop().input[1:])
    inner = [
        helper.make_node("Cast", ["a_w"], ["a_f"], to=FLOAT),
        helper.make_node("Conv", ["a", "a_f"], ["a_c"], name="conv"),
        helper.make_node("BatchNormalization", ["a_c", "g", "b", "m", "v"], ["a_y"], name="bn"),
    ]
    arguments = ["a", "a_w", "g", "b", "m", "v"]
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("local", "Block", arguments, ["a_y"], inner, opsets)
    s.nodes.append(helper.make_node("Block", ["x", "w", *parameters], ["y"], domain="local"))
    model = s.model("y")
    model.functions.append(function)
    model.opset_import.add(domain="local", version=1)
    folded, report = fold(model, mode)
    assert report.removed == 1 and set(kinds(folded).values()) == {FLOAT}
    assert [node.op_type for node in folded.functions[0].node] == ["Conv"]
    assert_same(model, folded, (2, 3, 6, 6), tolerance=1e-6)


# -------------------------------------------------------------------- rows that are cast


VIEWS = {
    "none": [],
    "transposed": [("Transpose", (), {"perm": [0, 1, 2]}), ("Identity", (), {})],
    "unsqueezed": [("Unsqueeze", ("axis",), {}), ("Squeeze", ("axis",), {})],
    "reshaped": [("Reshape", ("shape",), {}), ("Reshape", ("back",), {})],
}


def embedding(
    views: str = "none", *, data_type: int = TensorProto.FLOAT16, casts: int = 1, readers: int = 1
) -> Sketch:
    """Rows of a table of 16 bits, cast, and steps behind them."""
    s = Sketch(2, 5)
    s.inputs = [helper.make_tensor_value_info("x", TensorProto.INT64, [2, 5])]
    half(s, "table", s.rng.normal(size=(3, 4)), data_type)
    constants = {"axis": [0], "shape": [10, 4], "back": [2, 5, 4]}
    used = {name for _, more, _ in VIEWS[views] for name in more}
    for name in sorted(used):
        s.constant(name, np.array(constants[name]))
    s.node("Gather", "table", "x", name="emb")
    for op, more, attributes in VIEWS[views]:
        s.node(op, s.at, *more, **attributes)
    picked = s.at
    for number in range(casts):
        cast_to = s.node("Cast", picked, output=f"wide{number}", to=FLOAT)
        for _ in range(readers):
            s.node("Transpose", cast_to, perm=[0, 2, 1])
            s.bn(4, name="bn") if not number else s.node("Sigmoid")
    return s


@pytest.mark.parametrize("data_type", HALF)
@pytest.mark.parametrize("views", VIEWS)
def test_a_table_is_rounded_again_and_a_note_says_so(views, data_type):
    model = embedding(views, data_type=data_type).model()
    folded, report = fold(model, "stored")
    assert report.removed == 1 and kinds(folded)["table"] == data_type
    assert "Cast" in ops(folded) and has_note(report)
    name = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}[data_type]
    assert any(f"1 array that changes is stored in {name}" in note for note in report.notes)


@pytest.mark.parametrize("data_type", HALF)
@pytest.mark.parametrize("views", VIEWS)
def test_a_table_in_float32_needs_no_cast(views, data_type):
    model = onnx.shape_inference.infer_shapes(embedding(views, data_type=data_type).model())
    assert model.graph.value_info
    folded, report = fold(model, "float32")
    assert report.removed == 1 and kinds(folded)["table_folded"] == FLOAT
    assert "table" not in kinds(folded) and "Cast" not in ops(folded) and not has_note(report)
    if data_type == TensorProto.FLOAT16:
        assert_same(model, folded, (2, 5), tolerance=1e-6)


def test_a_cast_whose_output_is_an_output():
    s = embedding()
    model = s.model("wide0", s.at)
    folded, report = fold(model, "float32")
    assert report.removed == 0 and folded.graph.output[0].name == "wide0"
    assert_same(model, folded, (2, 5), tolerance=0.0)


def test_two_casts_of_the_same_rows():
    s = embedding()
    (gather, first), rest = s.nodes[:2], s.nodes[2:]
    again = helper.make_node("Cast", ["emb_out"], ["again"], to=FLOAT)
    shape = helper.make_node("Shape", ["emb_out"], ["shape"])
    names = list(rest[-1].input[1:])
    flipped = helper.make_node("Transpose", ["again"], ["flipped"], perm=[0, 2, 1])
    other = helper.make_node("BatchNormalization", ["flipped", *names], ["z"], name="bn_two")
    s.nodes = [gather, first, again, shape, *rest, flipped, other]
    model = s.model(s.at, "z", "shape")
    model.graph.output[2].type.tensor_type.elem_type = TensorProto.INT64
    folded, report = fold(model, "float32")
    assert report.removed == 2 and "Cast" not in ops(folded)
    assert kinds(folded)["table_folded"] == FLOAT
    assert_same(model, folded, (2, 5), tolerance=1e-6)


def tied_tables() -> onnx.ModelProto:
    """One table, two lookups, the same step behind both."""
    s = embedding()
    names = list(s.nodes[-1].input[1:])
    one = s.at
    s.inputs.append(helper.make_tensor_value_info("x2", TensorProto.INT64, [2, 5]))
    s.node("Gather", "table", "x2", name="emb2")
    s.node("Cast", to=FLOAT)
    s.node("Transpose", perm=[0, 2, 1])
    two = s.node("BatchNormalization", s.at, *names, name="bn_two")
    return s.model(one, two)


def test_a_table_that_two_lookups_share_is_stored_once():
    model = tied_tables()
    folded, report = fold(model, "float32")
    assert report.removed == 2 and "Cast" not in ops(folded)
    assert kinds(folded) == {"table_folded": FLOAT}
    assert_same(model, folded, (2, 5), (2, 5), tolerance=1e-6)


def test_a_table_with_a_reader_in_16_bits_gets_another_one():
    s = embedding()
    y = s.at
    s.node("Gather", "table", "x", name="plain")
    model = s.model(y, s.at)
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.FLOAT16
    folded, report = fold(model, "float32")
    assert report.removed == 1
    assert kinds(folded) == {"table": TensorProto.FLOAT16, "table_folded": FLOAT}
    unchanged(model, folded, "table")
    assert_same(model, folded, (2, 5), tolerance=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_table_in_external_data(mode, tmp_path):
    model = embedding().model()
    path = tmp_path / "model.onnx"
    options = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    onnx.save(embedding().model(), path, **options)
    target, report = bnfold.fold(path, weights=mode)
    folded = onnx.load(target)
    assert has_note(report) == (mode == "stored")
    assert kinds(folded) == kinds(fold(model, mode)[0])
    assert_same(model, folded, (2, 5), tolerance=1e-6 if mode == "float32" else 1e-3)
    result = bnfold.verify(path, target)
    assert result.equal
    assert any("--weights float32" in note for note in result.notes) == (mode == "stored")


def test_a_model_of_onnx_ir():
    model = embedding().model()
    folded, report = bnfold.fold(onnx_ir.from_proto(model), weights="float32")
    assert report.removed == 1
    assert_same(model, onnx_ir.to_proto(folded), (2, 5), tolerance=1e-6)


def test_a_table_that_a_branch_reads():
    s = embedding()
    inner, s.nodes = s.nodes, []
    value = helper.make_tensor_value_info(s.at, FLOAT, [2, 4, 5])
    then = helper.make_graph(inner, "then", [], [value])
    zeros = numpy_helper.from_array(np.zeros((2, 4, 5), np.float32), "zeros")
    value = helper.make_tensor_value_info("nothing", FLOAT, [2, 4, 5])
    node = helper.make_node("Constant", [], ["nothing"], value=zeros)
    other = helper.make_graph([node], "else", [], [value])
    s.constant("flag", True)
    s.node("If", "flag", name="if", then_branch=then, else_branch=other)
    model = s.model()
    stored, report = fold(model, "stored")
    assert report.removed == 1 and has_note(report)
    assert_same(model, stored, (2, 5), tolerance=1e-3)
    folded, report = fold(model, "float32")
    assert not has_note(report)
    assert kinds(folded)["table_folded"] == FLOAT
    assert_same(model, folded, (2, 5), tolerance=1e-6)


def in_16_bits(op: str) -> onnx.ModelProto:
    """Rows of a table, an operator in 16 bits, a Cast and a step."""
    s = Sketch(2, 5)
    s.inputs = [helper.make_tensor_value_info("x", TensorProto.INT64, [2, 5])]
    s.node("Gather", half(s, "table", s.rng.normal(size=(3, 4))), "x", name="emb")
    if op == "Relu":
        s.node(op)
    elif op == "Mul":
        s.node(op, s.at, half(s, "k", s.rng.uniform(1.0, 3.0, 4)), name="mul")
    else:
        one = s.at
        s.node("Gather", half(s, "other", s.rng.normal(size=(3, 4))), "x", name="emb2")
        s.node(op, one, s.at, **({"axis": 2} if op == "Concat" else {}))
    s.node("Cast", s.at, to=FLOAT)
    s.node("Transpose", s.at, perm=[0, 2, 1])
    s.bn(8 if op == "Concat" else 4)
    return s.model()


@pytest.mark.parametrize("op", ["Relu", "Concat", "Add"])
def test_a_right_fold_that_is_rounded_in_16_bits_is_equal_and_says_so(op):
    """The network computes in float16 there, so there is nothing to be stored in float32."""
    model = in_16_bits(op)
    folded, report = fold(model, "float32")
    assert report.removed == 1 and not has_note(report)
    assert kinds(folded)["table"] == TensorProto.FLOAT16 and "Cast" in ops(folded)
    result = bnfold.verify(model, folded)
    assert result.equal
    (note,) = (note for note in result.notes if "stored in float16" in note)
    assert "--weights" not in note


def test_a_step_in_16_bits_that_goes_is_no_arithmetic():
    model = in_16_bits("Mul")
    stored, report = fold(model, "stored")
    assert ops(stored) == ["Gather", "Cast", "Transpose"] and has_note(report)
    folded, report = fold(model, "float32")
    assert ops(folded) == ["Gather", "Transpose"] and not has_note(report)
    assert kinds(folded) == {"table_folded": FLOAT}
    assert_same(model, folded, (2, 5), tolerance=2e-3)  # the original rounds its product
    assert bnfold.verify(model, folded).equal


# -------------------------------------------------------------------- parameters of another dtype


def mixed_norm(*narrow: str, data_type: int = TensorProto.FLOAT16, first: bool = False) -> Sketch:
    """A BatchNormalization that stays and takes a step in; some of its parameters are narrow."""
    s = Sketch(2, 4, 5, 5)
    s.node("Sigmoid")
    if first:
        k = s.constant("k", s.rng.uniform(1e4, 2e4, (1, 4, 1, 1)))
        s.node("Mul", s.at, k, name="mul")
    s.bn(4)
    if not first:
        s.node("Mul", s.at, s.weight("k", 1, 4, 1, 1), name="mul")
    s.node("Sigmoid")
    for tensor in s.initializers:
        if tensor.name in narrow:
            array = numpy_helper.to_array(tensor)
            values = array.astype(helper.tensor_dtype_to_np_dtype(data_type))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return s


@pytest.mark.parametrize("narrow", [("bn_g", "bn_b"), ("bn_g", "bn_b", "bn_m", "bn_v")])
def test_a_scale_that_is_narrower_than_the_values(narrow):
    model = mixed_norm(*narrow).model()
    stored, report = fold(model, "stored")
    assert report.removed == 1 and has_note(report)
    assert kinds(stored)["bn_g"] == TensorProto.FLOAT16
    folded, report = fold(model, "float32")
    assert not has_note(report)
    assert (kinds(folded)["bn_g_folded"], kinds(folded)["bn_b_folded"]) == (FLOAT, FLOAT)
    unchanged(model, folded, "bn_m", "bn_v")
    assert_same(model, folded, (2, 4, 5, 5), tolerance=1e-6)
    assert bnfold.verify(model, folded).equal and bnfold.verify(model, stored).equal


@pytest.mark.parametrize("mode", MODES)
def test_statistics_alone_that_are_narrower(mode):
    model = mixed_norm("bn_m", "bn_v").model()
    folded, report = fold(model, mode)
    assert report.removed == 1 and not has_note(report)
    unchanged(model, folded, "bn_m", "bn_v")
    assert_same(model, folded, (2, 4, 5, 5), tolerance=1e-6)


def test_a_mean_that_moves_takes_the_variance_along():
    """Both have one dtype."""
    s = mixed_norm("bn_m", "bn_v", first=True)
    for tensor in s.initializers:
        if tensor.name == "bn_v":
            values = np.array([3e4, 5e4, 4e4, 2e4], np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, "bn_v"))
    model = s.model()
    folded, report = fold(model, "float32")
    assert [item.name for item in report.items if item.is_removed] == ["mul"]
    assert kinds(folded)["bn_m_folded"] == kinds(folded)["bn_v_folded"] == FLOAT
    assert_same(model, folded, (2, 4, 5, 5), tolerance=1e-6)


def dequantized(bias: bool) -> onnx.ModelProto:
    """Integers whose scale is stored in float16 and computed with in float32."""
    s = Sketch(2, 3, 6, 6)
    s.constant("q", s.rng.integers(-100, 100, size=(4, 3, 3, 3)).astype(np.int8))
    scale = half(s, "scale", s.rng.uniform(0.01, 0.02, 4))
    s.node("DequantizeLinear", "q", scale, axis=0, output_dtype=FLOAT)
    inputs = ["x", s.at, *([s.weight("bias", 4)] if bias else [])]
    s.node("Conv", *inputs, name="conv")
    s.bn(4)
    (gamma,) = (tensor for tensor in s.initializers if tensor.name == "bn_g")
    positive = np.abs(numpy_helper.to_array(gamma))
    gamma.CopyFrom(numpy_helper.from_array(positive, "bn_g"))
    return s.model(opset=23, ir_version=11)


@pytest.mark.parametrize("bias", [True, False])
def test_scales_of_integers(bias):
    model = dequantized(bias)
    stored, report = fold(model, "stored")
    assert report.removed == 1 and has_note(report)
    assert kinds(stored)["scale"] == TensorProto.FLOAT16
    folded, report = fold(model, "float32")
    assert kinds(folded)["scale_folded"] == FLOAT and not has_note(report)
    unchanged(model, folded, "q")
    assert_same(model, folded, (2, 3, 6, 6), tolerance=1e-6)


# -------------------------------------------------------------------- values of the option


def test_other_values_are_refused():
    with pytest.raises(bnfold.UsageError, match="'stored' or 'float32'"):
        bnfold.fold(embedding().model(), weights="float64")
    with pytest.raises(bnfold.UsageError, match="'stored' or 'float32'"):
        bnfold.inspect(embedding().model(), weights="half")
