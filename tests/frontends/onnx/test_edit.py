"""bnfold.onnx.edit: sizes, a part of a model, another opset; what it refuses comes first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import bnfold
from bnfold.errors import UnsupportedModelError, UsageError
from bnfold.frontends.onnx.facts import facts
from bnfold.onnx import edit
from tests.frontends.onnx.support import Sketch, assert_same, ops, run


def network(*shape: int | str) -> onnx.ModelProto:
    """x -> conv -> bn -> relu -> (second, side); side is an output, too."""
    s = Sketch(*(shape or ("batch", 3, "height", "width")))
    s.conv(3, 4)
    s.bn(4)
    inner = s.node("Relu", name="relu")
    side = s.node("Neg", inner, name="side")
    s.at = inner
    last = s.conv(4, 5, name="second")
    return s.model(last, side)


def with_body(*, deep: bool = False) -> onnx.ModelProto:
    """The body of an If reads what is made in front of it, and an initializer."""

    def branch(name: str, op: str) -> onnx.GraphProto:
        nodes = [helper.make_node(op, ["bn_out", "outer"], [f"{name}_y"])]
        if deep:
            inner = helper.make_graph(
                nodes, "inner", [], [helper.make_tensor_value_info(f"{name}_y", 1, None)]
            )
            nodes = [
                helper.make_node("If", ["yes"], [f"{name}_z"], then_branch=inner, else_branch=inner)
            ]
        made = [helper.make_tensor_value_info(nodes[-1].output[0], 1, None)]
        return helper.make_graph(nodes, name, [], made)

    s = Sketch(2, 3, 8, 8)
    s.conv(3, 4)
    s.bn(4)
    s.constant("yes", np.array(True))
    s.weight("outer", 1, 4, 1, 1)
    s.node("If", "yes", name="if", then_branch=branch("a", "Add"), else_branch=branch("b", "Mul"))
    s.node("Relu")
    s.conv(4, 2, name="behind")
    return s.model()


def names(infos) -> list[str]:
    return [info.name for info in infos]


# -------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("wishes", "texts"),
    [
        ({"outputs": ["relu"]}, ["'relu' is a node", "relu_out"]),
        ({"outputs": ["relu_ot"]}, ["no tensor 'relu_ot'", "relu_out"]),
        ({"outputs": ["conv_w"]}, ["'conv_w' is a constant"]),
        ({"inputs": ["conv_w"]}, ["'conv_w' is a constant"]),
        ({"outputs": ["x"]}, ["'x' is an input"]),
        ({"inputs": ["side_out"], "outputs": ["second_out"]}, ["no output", "'side_out'"]),
        ({"inputs": ["relu_out"], "outputs": ["relu_out"]}, ["no node between"]),
        ({"shapes": {"y": (1, 3, 8, 8)}}, ["no input 'y'", "its inputs are: x"]),
        ({"shapes": {"x": (1, 3, 8)}}, ["1x3x8", "batch x 3 x height x width"]),
        ({"shapes": {"x": (0, 3, 8, 8)}}, ["0x3x8x8", "1 or more"]),
        ({"opset": 6}, ["opsets 7 to", "6 was asked for"]),
        ({"opset": 999}, ["update onnx"]),
    ],
)
def test_what_the_model_has_not(wishes, texts) -> None:
    with pytest.raises(UsageError) as error:
        edit(network(), **wishes)
    assert all(text in str(error.value) for text in ["the model", *texts]), str(error.value)


def test_a_node_that_makes_an_input_and_something_needed(tmp_path: Path) -> None:
    s = Sketch(1, 4, 8, 8)
    s.nodes.append(
        helper.make_node("Split", ["x"], ["a", "b"], name="split", axis=1, num_outputs=2)
    )
    s.node("Add", "a", "b", name="add")
    model = s.model(opset=18)
    with pytest.raises(UsageError, match=r"something else of split.* Next: .* a, b"):
        edit(model, inputs=["a"])
    assert names(edit(model, inputs=["a", "b"]).graph.input) == ["a", "b"]


def test_two_inputs_of_one_named_size() -> None:
    s = Sketch("n", 3, 8, 8)
    s.inputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3, 8, 8]))
    s.node("Add", "x", "z")
    with pytest.raises(UsageError, match=r"n is 2 in input 'x', and 3 in 'z'"):
        edit(s.model(), shapes={"x": (2, 3, 8, 8), "z": (3, 3, 8, 8)})
    made = edit(s.model(), shapes={"x": (2, 3, 8, 8)})
    assert [axis.dim_value for axis in made.graph.input[1].type.tensor_type.shape.dim] == [
        2,
        3,
        8,
        8,
    ]


@pytest.mark.parametrize("shape", [(1, 3, 9, 8), (2, 3, 8, 5)])
def test_sizes_that_do_not_go_through(shape) -> None:
    s = Sketch("n", 3, "h", "w")
    s.conv(3, 4)
    s.node("Add", s.at, s.weight("place", 1, 4, 6, 6))
    with pytest.raises(UsageError, match=r"with input 'x' at .* does not fit: .*Add"):
        edit(s.model(), shapes={"x": shape})
    assert edit(s.model(), shapes={"x": (1, 3, 8, 8)})


def test_a_default_has_its_size() -> None:
    s = Sketch("n", 4)
    s.node("Add", "x", s.constant("offset", np.arange(4.0)))
    s.inputs.append(helper.make_tensor_value_info("offset", TensorProto.FLOAT, [4]))
    with pytest.raises(UsageError, match="has a default"):
        edit(s.model(), shapes={"offset": (1,)})


def test_there_is_no_way_back_for_every_operator() -> None:
    with pytest.raises(UnsupportedModelError, match=r"17 cannot become 11: .* Next: "):
        edit(network(), opset=11)


def test_training_and_sparse_tensors_would_get_lost() -> None:
    trained = network()
    trained.training_info.add()
    for wishes in ({"outputs": ["relu_out"]}, {"opset": 18}):
        with pytest.raises(UnsupportedModelError, match="train"):
            edit(trained, **wishes)
    sparse = network()
    held = sparse.graph.sparse_initializer.add()
    held.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "rare"))
    held.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "rare_at"))
    held.dims.append(4)
    with pytest.raises(UnsupportedModelError, match="sparse"):
        edit(sparse, opset=18)


def test_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"int was given\. Next: "):
        edit(3)  # type: ignore[call-overload]
    onnx.save(network(), tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="say where"):
        edit(tmp_path / "a.onnx")  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="the model itself"):
        edit(tmp_path / "a.onnx", output=tmp_path / "a.onnx", force=True)


# -------------------------------------------------------------------- a part of a model


def test_other_outputs() -> None:
    model = network()
    made = edit(model, outputs=["relu_out"])
    assert ops(made) == ["Conv", "BatchNormalization", "Relu"]
    assert "second_w" not in names(made.graph.initializer)
    assert facts(made)[-1].startswith("output relu_out: float32 batch x 4 x ")
    assert ops(model)[-1] == "Conv" and len(model.graph.output) == 2  # left alone
    whole = edit(model, outputs=["relu_out", "second_out"])
    assert_same(made, edit(whole, outputs=["relu_out"]), (2, 3, 8, 8))
    onnx.checker.check_model(made, full_check=True)


def test_other_inputs() -> None:
    model = network(2, 3, 8, 8)
    made = edit(model, inputs=["bn_out"])
    assert ops(made) == ["Relu", "Neg", "Conv"] and names(made.graph.input) == ["bn_out"]
    onnx.checker.check_model(made, full_check=True)
    inside = run(edit(model, outputs=["bn_out", "second_out", "side_out"]), (2, 3, 8, 8))
    found = ReferenceEvaluator(made).run(None, {"bn_out": inside[0]})
    for expected, actual in zip(inside[1:], found, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_an_input_stays_as_long_as_it_is_needed() -> None:
    s = Sketch(1, 3, 8, 8)
    s.node("Relu")
    s.node("Add", s.at, "x")
    made = edit(s.model(), inputs=["relu0_out"])
    assert names(made.graph.input) == ["relu0_out", "x"]


@pytest.mark.parametrize("deep", [False, True])
def test_what_bodies_read_counts(deep: bool) -> None:
    model = with_body(deep=deep)
    made = edit(model, outputs=["if_out"])
    assert ops(made) == ["Conv", "BatchNormalization", "If"]
    assert {"outer", "conv_w"} <= set(names(made.graph.initializer))
    onnx.checker.check_model(made)
    assert run(made, (2, 3, 8, 8))[0].shape == (2, 4, 6, 6)
    behind = edit(model, inputs=["bn_out"])
    assert ops(behind) == ["If", "Relu", "Conv"] and names(behind.graph.input) == ["bn_out"]
    assert names(behind.graph.initializer) == ["yes", "outer", "behind_w"]


def test_functions_that_nobody_calls_go() -> None:
    model = network()
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    inner = helper.make_function(
        "local", "Inner", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets[:1]
    )
    outer = helper.make_function(
        "local", "Outer", ["a"], ["b"],
        [helper.make_node("Inner", ["a"], ["b"], domain="local")], opsets,
    )  # fmt: skip
    other = helper.make_function(
        "local", "Other", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], opsets[:1]
    )
    model.functions.extend([inner, outer, other])
    model.opset_import.append(opsets[1])
    model.graph.node.append(helper.make_node("Other", ["side_out"], ["o"], domain="local"))
    model.graph.node.append(helper.make_node("Outer", ["second_out"], ["p"], domain="local"))
    model.graph.output.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, None))
    made = edit(model, outputs=["p"])
    assert sorted(function.name for function in made.functions) == ["Inner", "Outer"]
    assert run(made, (1, 3, 8, 8))[0].shape == (1, 5, 4, 4)


def test_what_was_said_of_tensors_goes_with_them() -> None:
    model = onnx.shape_inference.infer_shapes(network())
    for tensor, scale in (("relu_out", "s1"), ("side_out", "s2")):
        model.graph.initializer.append(numpy_helper.from_array(np.float32([1]), scale))
        note = model.graph.quantization_annotation.add(tensor_name=tensor)
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=scale)
    made = edit(model, outputs=["second_out"])
    assert names(made.graph.value_info) == ["conv_out", "bn_out", "relu_out"]
    assert [note.tensor_name for note in made.graph.quantization_annotation] == ["relu_out"]
    assert {"s1", "s2"} & set(names(made.graph.initializer)) == {"s1"}


# -------------------------------------------------------------------- sizes


def test_sizes_and_what_follows() -> None:
    made = edit(network(), shapes={"x": (2, 3, 8, 9)})
    assert list(facts(made))[1:] == [
        "input x: float32 2x3x8x9",
        "output second_out: float32 2x5x4x5",
        "output side_out: float32 2x4x6x7",
    ]
    assert_same(network(), made, (2, 3, 8, 9))


def test_a_named_size_gets_its_number_wherever_it_stands() -> None:
    model = onnx.shape_inference.infer_shapes(network())
    made = edit(model, shapes={"x": (2, 3, 8, 9)})
    inside = {info.name: info for info in made.graph.value_info}
    sizes = [axis.dim_value for axis in inside["bn_out"].type.tensor_type.shape.dim]
    assert sizes == [2, 4, 6, 7] and len(inside) == len(model.graph.value_info)


def test_a_number_may_become_another_one() -> None:
    model = onnx.shape_inference.infer_shapes(network(1, 3, 8, 8))
    made = edit(model, shapes={"x": (2, 3, 10, 12)})
    assert list(facts(made))[1:3] == [
        "input x: float32 2x3x10x12",
        "output second_out: float32 2x5x6x8",
    ]
    onnx.checker.check_model(made, full_check=True)
    assert run(made, (2, 3, 10, 12))[0].shape == (2, 5, 6, 8)


def test_an_input_of_unknown_rank() -> None:
    model = network()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    made = edit(model, shapes={"x": (2, 3, 8, 9)})
    assert facts(made)[2] == "output second_out: float32 2x5x4x5"


def test_shape_arithmetic_follows() -> None:
    s = Sketch("n", 3, "h", "w")
    s.conv(3, 4)
    shape = s.node("Shape", s.at)
    s.node("Gather", shape, s.constant("first", np.array([0])))
    s.node("Concat", s.at, s.constant("rest", np.array([-1])), axis=0)
    s.node("Reshape", "conv_out", s.at)
    made = edit(s.model(), shapes={"x": (2, 3, 8, 9)})
    assert facts(made)[-1].endswith("float32 2x168")


# -------------------------------------------------------------------- opsets


@pytest.mark.parametrize("opset", [18, 21, 16, 15])
def test_another_opset(opset: int) -> None:
    made = edit(network(2, 3, 8, 8), opset=opset)
    assert facts(made)[0].startswith(f"opset {opset};")
    onnx.checker.check_model(made, full_check=True)
    assert_same(network(2, 3, 8, 8), made, (2, 3, 8, 8))
    folded, report = bnfold.fold(made)
    assert (report.removed, report.total) == (1, 1)
    assert_same(made, folded, (2, 3, 8, 8))


def test_the_ir_version_goes_with_the_opset() -> None:
    assert edit(network(), opset=21).ir_version == 10
    assert edit(network(), opset=15).ir_version == 8  # never lowered


def test_large_tensors_are_passed_on() -> None:
    s = Sketch(1, 16, 6, 6)
    s.conv(16, 64)
    s.bn(64)
    model = s.model(opset=9, ir_version=3)
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in s.initializers
    )
    made = edit(model, opset=17)
    held = {tensor.name: tensor.raw_data for tensor in model.graph.initializer}
    assert held == {tensor.name: tensor.raw_data for tensor in made.graph.initializer}
    assert len(held["conv_w"]) > 4096


def test_functions_are_put_in_the_place_of_their_calls() -> None:
    model = network(1, 3, 8, 8)
    opset = [helper.make_opsetid("", 17)]
    axes = helper.make_node("ReduceMean", ["a"], ["b"], axes=[2, 3])
    model.functions.append(helper.make_function("local", "Pool", ["a"], ["b"], [axes], opset))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node.append(helper.make_node("Pool", ["second_out"], ["p"], domain="local"))
    model.graph.output.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, None))
    made = edit(model, opset=18)
    assert not made.functions and "ReduceMean" in ops(made)
    assert_same(model, made, (1, 3, 8, 8))


def test_bodies_are_converted_and_other_domains_left() -> None:
    model = with_body()
    model.graph.node.append(helper.make_node("Gelu", ["behind_out"], ["g"], domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.output.append(helper.make_tensor_value_info("g", TensorProto.FLOAT, None))
    made = edit(model, opset=20)
    assert [node.domain for node in made.graph.node][-1] == "com.microsoft"
    assert_same(model, made, (2, 3, 8, 8))


def test_the_other_name_of_the_domain() -> None:
    model = network(1, 3, 8, 8)
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = "ai.onnx"
    assert_same(network(1, 3, 8, 8), edit(model, opset=18), (1, 3, 8, 8))


# -------------------------------------------------------------------- files


def test_files(tmp_path: Path) -> None:
    source, output = tmp_path / "a.onnx", tmp_path / "b.onnx"
    s = Sketch("n", 16, "h", "w")
    s.conv(16, 64)
    s.bn(64)
    s.conv(64, 8, name="second")
    onnx.save(s.model(), source, save_as_external_data=True, location="a.bin", size_threshold=64)
    made = edit(source, output=output, shapes={"x": (1, 16, 6, 6)}, outputs=["bn_out"], opset=18)
    assert made == output
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.onnx", "a.bin", "b.onnx", "b.onnx.data"
    }  # fmt: skip
    assert_same(edit(s.model(), outputs=["bn_out"]), onnx.load(output), (1, 16, 6, 6))
    with pytest.raises(UsageError, match="exists"):
        edit(source, output=output, opset=18)
    edit(source, output=output, opset=18, force=True)
    assert len(onnx.load(output).graph.output) == 1


def test_data_that_the_output_would_replace(tmp_path: Path) -> None:
    source = tmp_path / "a.onnx"
    s = Sketch(1, 16, 6, 6)
    s.conv(16, 64)
    onnx.save(s.model(), source, save_as_external_data=True, location="b.onnx.data")
    before = (tmp_path / "b.onnx.data").read_bytes()
    with pytest.raises(UsageError, match="the external data of the model itself"):
        edit(source, output=tmp_path / "b.onnx", opset=18, force=True)
    assert (tmp_path / "b.onnx.data").read_bytes() == before
