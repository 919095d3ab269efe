"""What stays in a file: names, outputs, what subgraphs read, and everything that is not a layer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from tests.frontends.onnx.support import Sketch, assert_same, ops


def branch(name: str, value: str) -> onnx.GraphProto:
    """A subgraph that returns a value of the graph outside."""
    output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
    node = helper.make_node("Identity", [value], [f"{name}_out"])
    return helper.make_graph([node], name, [], [output])


def test_a_value_that_a_subgraph_reads_keeps_its_value_and_name():
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    inner = s.bn(4)
    condition = s.constant("condition", np.array(True))
    branches = {"then_branch": branch("then", inner), "else_branch": branch("else", "conv_out")}
    chosen = s.node("If", condition, **branches)
    s.node("Relu", inner)
    model = s.model(chosen, s.at)
    folded, report = bnfold.fold(model)
    assert report.kept == 1
    assert_same(model, folded, (2, 3, 6, 6))


def test_a_subgraph_reads_what_a_removed_batch_norm_made():
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    inner = s.bn(4)
    condition = s.constant("condition", np.array(True))
    branches = {"then_branch": branch("then", inner), "else_branch": branch("else", inner)}
    model_output = s.node("If", condition, **branches)
    model = s.model(model_output)
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    assert "BatchNormalization" not in ops(folded)
    assert_same(model, folded, (2, 3, 6, 6))


def test_a_parameter_that_is_computed_is_read_as_it_is():
    s = Sketch(1, 3)
    s.bn(3)
    gamma = s.node("Squeeze", s.at, s.constant("first", np.array([0])))
    s.inputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 3, 5)))
    statistics = [s.constant(name, np.ones(3)) for name in ("beta", "mean", "var")]
    s.node("BatchNormalization", "y", gamma, *statistics)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.kept == 2
    assert_same(model, folded, (1, 3), (2, 3, 5))


@pytest.mark.parametrize("spelled", ["", "ai.onnx"])
@pytest.mark.parametrize("imported", ["", "ai.onnx"])
def test_the_domain_of_onnx_has_two_spellings(spelled, imported):
    s = Sketch(2, 3)
    s.node("MatMul", "x", s.weight("w", 3, 4))
    s.bn(4)
    model = s.model()
    model.opset_import[0].domain = imported
    for node in model.graph.node:
        node.domain = spelled
    folded, report = bnfold.fold(model)
    assert (report.removed, ops(folded)) == (1, ["MatMul", "Add"])
    assert_same(model, folded, (2, 3))


@pytest.mark.parametrize("is_read", [False, True])
def test_a_dropout_with_a_mask(is_read):
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    s.nodes.append(helper.make_node("Dropout", [s.at], ["dropped", "mask"]))
    s.at = "dropped"
    s.bn(4)
    if is_read:
        output = s.at
        s.node("Mul", output, s.node("Cast", "mask", to=TensorProto.FLOAT))
    model = s.model(opset=12)
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    assert_same(model, folded, (2, 3, 6, 6))


def test_a_value_that_an_annotation_describes_keeps_its_meaning():
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    s.bn(4)
    model = s.model()
    note = model.graph.quantization_annotation.add(tensor_name="conv_out")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    folded, report = bnfold.fold(model)
    assert report.kept == 1
    assert folded.graph.quantization_annotation == model.graph.quantization_annotation


def test_nodes_that_are_not_in_order():
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    s.bn(4)
    s.node("Relu")
    s.nodes.reverse()
    folded, report = bnfold.fold(s.model())
    assert report.removed == 1
    assert ops(folded) == ["Relu", "Conv"]


def test_two_batch_norms_that_stay_and_share_their_parameters():
    """Each gets parameters of its own where it has to take something in."""
    s = Sketch(2, 3, 6, 6)
    s.bn(3)
    first = s.at
    s.node("BatchNormalization", "x", "bn_g", "bn_b", "bn_m", "bn_v", name="bn2")
    second = s.at
    for value, name in ((first, "one"), (second, "two")):
        s.at = value
        s.node("Mul", s.at, s.constant(f"{name}_c", s.rng.normal(size=(3, 1, 1))))
        s.conv(3, 4, name=name, pads=[1, 1, 1, 1])
    s.node("Concat", "one_out", "two_out", axis=1)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.kept == 2 and report.removed == 2
    assert_same(model, folded, (2, 3, 6, 6))


def test_a_removed_output_keeps_its_name():
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    s.bn(4)
    folded, _ = bnfold.fold(s.model())
    assert folded.graph.node[0].output[0] == folded.graph.output[0].name == "bn_out"


def test_two_outputs_of_one_value():
    """What makes the value can have one of the names; the other one is a copy."""
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    conv = s.at
    one = s.constant("one", np.array(1.0))
    first = s.node("Mul", conv, one)
    second = s.node("Mul", conv, one)
    model = s.model(first, second)
    folded, _ = bnfold.fold(model)
    assert sorted(ops(folded)) == ["Conv", "Identity"]
    assert_same(model, folded, (2, 3, 6, 6))


def test_an_output_that_is_listed_twice():
    """As ONNX and its Runtime allow."""
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    output = s.bn(4)
    model = s.model(output, output)
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    assert [info.name for info in folded.graph.output] == [output, output]
    assert_same(model, folded, (2, 3, 6, 6))
    assert bnfold.verify(model, folded).equal


def test_a_variance_of_infinity_makes_a_constant_without_a_word(recwarn):
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    s.bn(4)
    for tensor in s.initializers:
        if tensor.name == "bn_v":
            tensor.raw_data = np.array([1.0, np.inf, 2.0, 0.5], s.dtype).tobytes()
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    assert_same(model, folded, (2, 3, 6, 6))
    assert not recwarn.list


def test_names_do_not_collide():
    s = Sketch(2, 3, 6, 6)
    s.node("Add", s.at, s.constant("conv_bias", np.ones((3, 1, 6))))
    s.conv(3, 4)
    s.bn(4)
    s.node("Relu", output="conv_bias_1")
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    names = [t.name for t in folded.graph.initializer]
    assert len(set(names)) == len(names) == 3
    assert_same(model, folded, (2, 3, 6, 6))


@pytest.mark.parametrize("read_by", ["nobody", "the user", "an unpooling", "a shape"])
def test_a_constant_in_front_of_a_pooling_that_tells_places(read_by):
    """Of what a channel of gamma 0 is stored as, the largest value is anywhere."""
    s = Sketch(2, 4, 8, 8)
    s.node("Sigmoid")
    s.bn(4)
    s.node("MaxPool", s.at, kernel_shape=[2, 2], strides=[2, 2])
    if read_by != "nobody":
        s.nodes[-1].output.append("places")
    outputs = [s.conv(4, 3, 1)]
    if read_by == "an unpooling":
        ones = s.constant("ones", np.ones((2, 4, 4, 4)))
        outputs.append(s.node("MaxUnpool", ones, "places", kernel_shape=[2, 2], strides=[2, 2]))
    elif read_by == "the user":
        outputs.append(s.node("Cast", "places", to=TensorProto.FLOAT))
    elif read_by == "a shape":
        outputs.append(s.node("Cast", s.node("Shape", "places"), to=TensorProto.FLOAT))
    model = s.model(*outputs)
    for tensor in model.graph.initializer:
        if tensor.name == "bn_g":
            tensor.raw_data = np.array([0.0, 1.3, 0.0, 0.4], s.dtype).tobytes()
    folded, report = bnfold.fold(model)
    assert report.removed == (0 if read_by in ("the user", "an unpooling") else 1)
    assert_same(model, folded, (2, 4, 8, 8))


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("bounds", [(), (-0.5, 0.5)])
def test_nodes_that_become_bounds_get_no_name_twice(bounds, named):
    """ONNX Runtime refuses a name that two nodes have; any number of nodes may have none."""
    s = Sketch(2, 4, 6, 6)
    limits = [s.constant(f"bound {bound}", bound) for bound in bounds]
    for number in range(3):
        s.bn(4, name=f"bn{number}")
        s.node("Clip" if bounds else "Relu", s.at, *limits)
        s.conv(4, 4, 1, name=f"conv{number}")
    model = s.model()
    if not named:
        for node in model.graph.node:
            node.ClearField("name")
    folded, report = bnfold.fold(model, clip="always")
    assert report.removed == 3
    names = [node.name for node in folded.graph.node if node.name]
    assert len(set(names)) == len(names)
    assert_same(model, folded, (2, 4, 6, 6))


def test_a_copy_of_an_output_gets_a_name_that_no_node_has():
    s = Sketch(2, 3, 6, 6)
    one = s.constant("unit", np.array(1.0))
    source = s.conv(3, 4, name="second_identity")
    outputs = [s.node("Mul", source, one, output=name) for name in ("first", "second")]
    model = s.model(*outputs)
    folded, _ = bnfold.fold(model)
    assert sorted(ops(folded)) == ["Conv", "Identity"]
    assert_same(model, folded, (2, 3, 6, 6))


def test_constants_that_nobody_reads_any_more_are_gone():
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    for key, array in (("gamma", np.arange(1.0, 5)), ("beta", np.arange(4.0))):
        tensor = numpy_helper.from_array(array.astype(np.float32))
        s.nodes.append(helper.make_node("Constant", [], [key], value=tensor))
    conv = s.at
    s.node("Mul", conv, s.node("Unsqueeze", "gamma", s.constant("axes", np.array([1, 2]))))
    s.node("Add", s.at, s.node("Unsqueeze", "beta", "axes"))
    folded, report = bnfold.fold(s.model())
    assert report.removed == 2
    assert ops(folded) == ["Conv"]
    assert {t.name for t in folded.graph.initializer} == {"conv_w", "conv_bias"}


def test_what_was_unused_before_stays():
    s = Sketch(2, 3, 6, 6)
    s.constant("unused", np.ones(2))
    s.conv(3, 4)
    s.bn(4)
    folded, _ = bnfold.fold(s.model())
    assert "unused" in {t.name for t in folded.graph.initializer}


def test_a_parameter_that_training_speaks_of_stays():
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    s.bn(4)
    model = s.model()
    training = model.training_info.add()
    step = helper.make_node("Identity", ["bn_g"], ["next"])
    output = helper.make_tensor_value_info("next", TensorProto.FLOAT, (4,))
    training.algorithm.CopyFrom(helper.make_graph([step], "step", [], [output]))
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    assert "bn_g" in {tensor.name for tensor in folded.graph.initializer}


def test_everything_else_stays():
    s = Sketch("batch", 3, 6, 6)
    s.conv(3, 4)
    s.bn(4)
    s.node("Relu")
    model = s.model()
    model.producer_name, model.doc_string = "somebody", "a text"
    model.metadata_props.add(key="classes", value="cat,dog")
    model.graph.value_info.add(name="bn_out")
    model.graph.doc_string = "another"
    before = model.SerializeToString()
    folded, _ = bnfold.fold(model)
    assert model.SerializeToString() == before
    assert (folded.producer_name, folded.doc_string) == ("somebody", "a text")
    assert folded.metadata_props[0].value == "cat,dog"
    assert folded.graph.doc_string == "another"
    assert folded.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert folded.opset_import == model.opset_import
    assert folded.ir_version == model.ir_version
    assert "bn_out" not in {info.name for info in folded.graph.value_info}


def test_a_second_fold_finds_nothing():
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    s.bn(4)
    s.node("Relu")
    s.conv(4, 4, name="last")
    once, _ = bnfold.fold(s.model())
    twice, report = bnfold.fold(once)
    assert report.total == 0
    assert twice.SerializeToString() == once.SerializeToString()


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21])
def test_opsets(opset):
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    s.bn(4)
    s.node("Relu")
    s.bn(4, name="bn2")
    s.conv(4, 5, name="last", pads=[1, 1, 1, 1])
    model = s.model(opset=opset)
    folded, report = bnfold.fold(model, clip="always")
    # Before opset 8 Max does not broadcast, so the activation has no room for bounds.
    assert report.removed == (1 if opset == 7 else 2)
    assert_same(model, folded, (2, 3, 6, 6))


# -------------------------------------------------------------------- what bounds cost


def test_bounds_cost_a_runtime_more_than_the_batch_norm_in_front_of_a_relu():
    """Runtimes run BatchNorm and Relu as one op, and neither with a Max."""
    s = Sketch(1, 4, 6, 6)
    stream = s.conv(4, 4, name="stem")
    s.bn(4, name="norm")
    s.node("Relu", name="relu")
    branch = s.conv(4, 4, name="conv", pads=[1, 1, 1, 1])
    s.node("Add", stream, branch)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert ops(folded) == ["Conv", "BatchNormalization", "Relu", "Conv", "Add"]
    (item,) = report.items
    assert (item.reason, item.blocker) == (bnfold.Reason.CLIP_COST, "relu")
    always, report = bnfold.fold(model, clip="always")
    assert report.removed == 1
    assert "BatchNormalization" not in ops(always)
    assert_same(model, always, (1, 4, 6, 6))


def test_what_needs_no_bounds_folds_as_before():
    s = Sketch(1, 3, 6, 6)
    s.conv(3, 4)
    s.bn(4)
    s.node("Relu")
    s.bn(4, name="bn2")
    s.conv(4, 5, name="last")  # no padding: bn2 goes there, and the Relu stays
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.kept == 0
    assert ops(folded) == ["Conv", "Relu", "Conv"]
    assert_same(model, folded, (1, 3, 6, 6))


def dense_start() -> Sketch:
    """The start of a dense block: a Concat of one tensor in front of a BatchNorm."""
    s = Sketch(2, 3, 6, 6)
    s.conv(3, 4)
    s.node("Concat", axis=1, name="copy")
    s.bn(4)
    s.node("Relu")
    return s


def test_a_concat_of_one_tensor_goes_along():
    model = dense_start().model()
    folded, report = bnfold.fold(model)
    assert report.removed == 1 and ops(folded) == ["Conv", "Relu"]
    assert_same(model, folded, (2, 3, 6, 6))


def test_a_concat_of_one_tensor_stays_where_others_know_its_output():
    s = dense_start()
    model = s.model("copy_out", s.at)
    folded, _ = bnfold.fold(model)
    assert "Concat" in ops(folded)
    assert [info.name for info in folded.graph.output] == ["copy_out", s.at]
    assert_same(model, folded, (2, 3, 6, 6))


def test_a_concat_of_one_tensor_stays_where_nothing_is_removed():
    s = Sketch(2, 3, 6, 6)
    s.node("Concat", axis=1)
    s.node("Relu")
    folded, _ = bnfold.fold(s.model())
    assert ops(folded) == ["Concat", "Relu"]


def test_a_concat_that_no_runtime_takes_is_left_alone():
    """It has two outputs: whatever that is, it is no copy."""
    model = dense_start().model()
    (concat,) = (node for node in model.graph.node if node.op_type == "Concat")
    concat.output.append("second")
    folded, _ = bnfold.fold(model)
    assert "Concat" in ops(folded)
