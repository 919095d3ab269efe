"""Bodies of If, Loop and Scan: what a fold there does to the rest of the file."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import Reason
from bnfold.frontends.onnx.nodes import free_names
from tests.conformance.onnx_patterns import load
from tests.conformance.onnx_run import error, feeds, random_feed, run
from tests.conformance.onnx_sketch import Sketch

PATTERNS = load()


def branch_of(s: Sketch, nodes: int, output: str, shape) -> onnx.GraphProto:
    inner = s.nodes[-nodes:]
    del s.nodes[-nodes:]
    value = helper.make_tensor_value_info(output, s.element_type, shape)
    return helper.make_graph(inner, f"branch_{output}", [], [value])


def in_a_branch(channels: int = 4, **options) -> onnx.ModelProto:
    """conv -> bn in one branch; the other gives the input's mean."""
    s = Sketch(**options)
    x = s.input(2, 3, 6, 6)
    s.input(name="flag", element_type=TensorProto.BOOL)
    s.bn(s.conv(x, 3, channels), channels)
    then = branch_of(s, 2, "bn_out", [2, channels, 4, 4])
    s.node("ReduceMean", x, name="mean")
    other = branch_of(s, 1, "mean_out", [1, 1, 1, 1])
    s.node("If", "flag", name="if", then_branch=then, else_branch=other)
    s.output("if_out", shape=("a", "b", "c", "d"))
    return s.model()


def same(model: onnx.ModelProto, folded: onnx.ModelProto | str, tolerance: float = 1e-5) -> None:
    for feed in feeds(model):
        assert error(run(model, feed), run(folded, feed)) < tolerance


def names(model: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


# -------------------------------------------------------------------- what must stay


def test_an_unknown_operator_with_a_graph_is_left_alone():
    model = in_a_branch()
    model.graph.node[0].op_type = "Maybe"
    model.graph.node[0].domain = "custom"
    model.opset_import.add(domain="custom", version=1)
    folded, report = bnfold.fold(model)
    (item,) = report.items
    assert (item.name, item.reason, item.blocker) == ("if/then_branch/bn", Reason.NONLINEAR, "if")
    assert folded.graph == model.graph


def test_a_body_that_makes_no_sense_stays_as_it_is():
    """Two nodes of a branch make one name: the rest of the model is folded all the same."""
    model = PATTERNS["folded_on_both_sides_of_the_edge"].build()
    node = next(n for n in model.graph.node if n.op_type == "If")
    body = next(a.g for a in node.attribute if a.name == "then_branch")
    body.node.append(body.node[0])
    folded, report = bnfold.fold(model)
    outcomes = {item.name: item for item in report.items}
    assert outcomes["bn_outer"].is_removed
    assert outcomes["if/then_branch/bn"].reason is Reason.NONLINEAR
    assert "could not be followed" in outcomes["if/then_branch/bn"].sentence
    kept = next(n for n in folded.graph.node if n.op_type == "If")
    assert next(a.g for a in kept.attribute if a.name == "then_branch").node == body.node


def looped(
    declared: list[int | str], start: tuple[int, ...] = (2, 4, 4, 4), *, pad: int = 1
) -> onnx.ModelProto:
    """carried -> conv -> bn -> tanh -> carried, three times."""
    s = Sketch()
    x = s.input(*start)
    s.bn(s.conv("carried", 4, 4, pad=pad), 4)
    s.node("Tanh", "bn_out", name="tanh")
    s.node("Identity", "go_in", name="go", outputs=["go_out"])
    body = branch_of(s, 4, "tanh_out", None)
    for name, kind, shape in (
        ("step", TensorProto.INT64, []),
        ("go_in", TensorProto.BOOL, []),
        ("carried", s.element_type, declared),
    ):
        body.input.append(helper.make_tensor_value_info(name, kind, shape))
    body.output.insert(0, helper.make_tensor_value_info("go_out", TensorProto.BOOL, []))
    rounds, yes = s.tensor("rounds", np.array(3)), s.tensor("yes", np.array(True))
    s.node("Loop", rounds, yes, x, name="loop", body=body)
    s.output("loop_out", shape=("a", "b", "c", "d"))
    return s.model()


@pytest.mark.parametrize(
    ("declared", "start", "pad"),
    [
        ([2, 4, 5, 4], (2, 4, 4, 4), 1),  # not what comes in
        ([2, 4, 9, 9], (2, 4, 9, 9), 0),  # not what comes back
        ([2, 4, 4], (2, 4, 4, 4), 1),  # of another number of axes
    ],
)
def test_a_loop_that_declares_what_is_not_true_in_every_round(declared, start, pad):
    model = looped(declared, start, pad=pad)
    _, report = bnfold.fold(model)
    (item,) = report.items
    assert (item.name, item.reason) == ("loop/body/bn", Reason.NONLINEAR)


@pytest.mark.parametrize(
    ("declared", "start", "pad"),
    [
        ([2, 4, 4, 4], (2, 4, 4, 4), 1),
        (["n", 4, "h", "w"], (2, 4, 9, 9), 0),  # smaller in each round
    ],
)
def test_a_loop_that_declares_what_is_true_in_every_round(declared, start, pad):
    model = looped(declared, start, pad=pad)
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    same(model, folded)


# -------------------------------------------------------------------- where no shape is declared


def carried(body: str, *starts: tuple, opset: int = 17) -> onnx.ModelProto:
    """A loop of three rounds over values a, b, ...; `body` says what becomes of them.

    bn: a -> bn -> conv with padding     shrink: without padding     swap: a and b change places
    grow: b is a with itself behind it   add: both, kept as they are
    """
    s = Sketch(opset=opset)
    names = "abc"[: len(starts)]
    outer = [
        s.input(*start, name=f"start_{name}") for start, name in zip(starts, names, strict=True)
    ]
    s.conv(s.bn("a", 4), 4, 4, 1)
    s.bn("conv_out", 4, name="bn2")
    again = {name: name for name in names} | {"a": "bn2_out"}
    count = 3
    if body == "shrink":
        again["a"] = s.conv("bn2_out", 4, 4, 3, name="narrower", bias=False)
        count += 1
    elif body == "swap":
        again |= {"a": "b", "b": s.node("Identity", "bn2_out", name="same")}
        count += 1
    elif body == "grow":
        again["b"] = s.node("Concat", "b", "b", name="twice", axis=2)
        count += 1
    for name in names:
        s.node("Identity", again[name], name=f"next_{name}")
    s.node("Identity", "go_in", name="go", outputs=["go_out"])
    graph = branch_of(s, count + len(names) + 1, "next_a_out", None)
    for name in names[1:]:
        graph.output.append(helper.make_tensor_value_info(f"next_{name}_out", s.element_type, None))
    graph.input.append(helper.make_tensor_value_info("step", TensorProto.INT64, []))
    graph.input.append(helper.make_tensor_value_info("go_in", TensorProto.BOOL, []))
    for name in names:
        graph.input.append(helper.make_tensor_value_info(name, s.element_type, None))
    graph.output.insert(0, helper.make_tensor_value_info("go_out", TensorProto.BOOL, []))
    rounds, yes = s.tensor("rounds", np.array(3)), s.tensor("yes", np.array(True))
    made = [f"last_{name}" for name in names]
    s.node("Loop", rounds, yes, *outer, name="loop", outputs=made, body=graph)
    for name in made:
        s.output(name, shape=("a", "b", "c", "d"))
    return s.model()


SHAPE = (2, 4, 9, 9)


@pytest.mark.parametrize(
    ("body", "starts"),
    [
        ("shrink", (SHAPE,)),
        ("shrink", ((2, 4, "H", "W"),)),
        ("swap", (SHAPE, (2, 4, 9, 5))),
        ("swap", (SHAPE, ("N", 4, 9, 9))),
    ],
)
def test_of_a_value_whose_shape_changes_the_channels_are_known(body, starts):
    """The convolution behind it asks for them; all other lengths may be any."""
    starts = tuple(starts)
    model = carried(body, *starts)
    folded, report = bnfold.fold(model)
    assert report.removed == 2
    for sizes in ({"N": 2, "H": 9, "W": 9}, {"N": 1, "H": 8, "W": 7}):
        if body == "swap" and "N" in starts[1] and sizes["N"] == 1:
            continue
        feed = random_feed(model, sizes)
        assert error(run(model, feed), run(folded, feed)) < 1e-5


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize(
    ("body", "starts"),
    [
        ("bn", (SHAPE,)),
        ("bn", (("N", 4, "H", "W"),)),
        ("bn", (("N", 4, 9, 9), SHAPE)),
        ("swap", (SHAPE, SHAPE)),
        ("grow", (SHAPE, SHAPE)),
        ("grow", (("N", 4, "H", "W"), ("N", 4, "H", "W"))),
    ],
)
def test_a_value_whose_shape_stays_has_that_of_the_first_one(body, starts, opset):
    model = carried(body, *starts, opset=opset)
    folded, report = bnfold.fold(model)
    assert report.removed == 2
    for sizes in ({"N": 2, "H": 9, "W": 9}, {"N": 1, "H": 4, "W": 7}):
        feed = random_feed(model, sizes)
        assert error(run(model, feed), run(folded, feed)) < 1e-5
    assert bnfold.fold(folded).model == folded


@pytest.mark.parametrize("axis", [0, 1, -5, 2])
def test_state_and_slices_of_a_scan_without_a_shape(axis):
    s = Sketch()
    whole, start = [5, 2, 4, 6, 6], [2, 4, 6, 6]
    whole.insert(axis % 5, whole.pop(0))
    x, first = s.input(*whole), s.input(*start, name="start")
    y = s.conv(s.bn("slice", 4), 4, 4, 1)
    s.node("Tanh", s.node("Add", s.bn(y, 4, name="bn2"), "state", name="add"), name="act")
    s.node("Identity", "act_out", name="copy")
    body = branch_of(s, 6, "act_out", None)
    for name in ("state", "slice"):
        body.input.append(helper.make_tensor_value_info(name, s.element_type, None))
    body.output.append(helper.make_tensor_value_info("copy_out", s.element_type, None))
    options = {"num_scan_inputs": 1, "scan_input_axes": [axis]}
    s.node("Scan", first, x, name="scan", outputs=["last", "all"], body=body, **options)
    s.output("last", shape=start)
    s.output("all", shape=("a", "b", "c", "d", "e"))
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 2
    same(model, folded)


def behind(model: onnx.ModelProto, name: str, *, output: int = 0) -> onnx.ModelProto:
    """The model with value -> bn -> conv behind it."""
    s = Sketch(seed=1)
    s.output(s.conv(s.bn(name, 4, name="behind"), 4, 3, 3, name="final"), shape=list("abcd"))
    model.graph.node.extend(s.nodes)
    model.graph.initializer.extend(s.initializers)
    model.graph.output[output].CopyFrom(s.outputs[0])
    return model


@pytest.mark.parametrize(
    ("body", "starts", "value"),
    [
        ("shrink", (SHAPE,), "last_a"),
        ("swap", (SHAPE, (2, 4, 9, 5)), "last_b"),
        ("grow", (SHAPE, SHAPE), "last_b"),
    ],
)
def test_what_a_value_behind_a_loop_needs_is_said(body, starts, value):
    """Its shape changes from round to round; the user's inputs have theirs."""
    model = behind(carried(body, *starts), value, output=int(value == "last_b"))
    for node in model.graph.node:
        if node.name == "final":  # which would ask for channels
            node.op_type = "Sigmoid"
            del node.input[1:], node.attribute[:]
    (item,) = (i for i in bnfold.inspect(model).items if i.name == "behind")
    assert not item.is_removed
    assert "no known shape" in item.sentence and "--input" not in item.sentence


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize(
    ("body", "starts", "value"),
    [
        ("bn", (SHAPE,), "last_a"),
        ("bn", (("N", 4, "H", "W"),), "last_a"),
        ("bn", (SHAPE, ("N", 4, 9, 9)), "last_b"),
        ("swap", (SHAPE, SHAPE), "last_b"),
        ("grow", (SHAPE, SHAPE), "last_a"),
        ("grow", (("N", 4, "H", "W"), ("N", 4, "H", "W")), "last_a"),
    ],
)
def test_behind_a_loop_a_value_whose_shape_stays_has_one(body, starts, value, opset):
    model = behind(carried(body, *starts, opset=opset), value, output=int(value == "last_b"))
    folded, report = bnfold.fold(model)
    assert report.removed == 3
    assert "behind" not in {node.name for node in folded.graph.node}
    for sizes in ({"N": 2, "H": 9, "W": 9}, {"N": 1, "H": 4, "W": 7}):
        feed = random_feed(model, sizes)
        assert error(run(model, feed), run(folded, feed)) < 1e-5
    assert bnfold.fold(folded).model == folded


def test_behind_two_loops_in_a_row():
    model = carried("bn", SHAPE)
    (loop,) = (n for n in model.graph.node if n.op_type == "Loop")
    second = onnx.NodeProto()
    second.CopyFrom(loop)
    second.name, second.input[2], second.output[0] = "again", "last_a", "last"
    body = next(a.g for a in second.attribute if a.name == "body")
    for node in body.node:
        node.name = f"again_{node.name}"
        node.output[:] = [f"again_{name}" for name in node.output]
        node.input[:] = [
            f"again_{name}" if name in {"step", "go_in", "a"} or name.endswith("_out") else name
            for name in node.input
        ]
    for info in (*body.input, *body.output):
        info.name = f"again_{info.name}"
    model.graph.node.append(second)
    folded, report = bnfold.fold(behind(model, "last"))
    assert report.removed == 5
    same(model, folded)


def test_behind_a_scan():
    s = Sketch()
    x, first = s.input(5, 2, 4, 6, 6), s.input(2, 4, 6, 6, name="start")
    s.node("Tanh", s.node("Add", "slice", "state", name="add"), name="act")
    s.node("Identity", "act_out", name="copy")
    body = branch_of(s, 3, "act_out", None)
    for name in ("state", "slice"):
        body.input.append(helper.make_tensor_value_info(name, s.element_type, None))
    body.output.append(helper.make_tensor_value_info("copy_out", s.element_type, None))
    s.node("Scan", first, x, name="scan", outputs=["last", "all"], body=body, num_scan_inputs=1)
    s.output("last", shape=list("abcd"))
    s.output("all", shape=list("abcde"))
    model = behind(s.model(), "last")
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    same(model, folded)


@pytest.mark.parametrize(("axis", "is_true"), [(0, False), (1, True), (-4, True)])
def test_slices_of_a_scan_have_the_declared_shape_or_not(axis, is_true):
    """(5, 2, 3, 6, 6) is cut along an axis; the body declares what is left without axis 1."""
    s = Sketch()
    x = s.input(5, 2, 3, 6, 6)
    s.bn(s.conv("slice", 3, 4), 4)
    body = branch_of(s, 2, "bn_out", None)
    body.input.append(helper.make_tensor_value_info("slice", s.element_type, [5, 3, 6, 6]))
    s.node("Scan", x, name="scan", body=body, num_scan_inputs=1, scan_input_axes=[axis])
    s.output("scan_out", shape=("a", "b", "c", "d", "e"))
    _, report = bnfold.fold(s.model())
    assert report.removed == is_true


def test_a_name_of_an_inner_branch_does_not_hide_one_from_outside():
    """The branch reads x from outside; a branch within has another x of its own."""
    own = helper.make_graph(
        [helper.make_node("Neg", ["y"], ["x"])],
        "inner",
        [],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
    )
    outer = helper.make_graph(
        [
            helper.make_node("If", ["flag"], ["z"], then_branch=own, else_branch=own),
            helper.make_node("Add", ["x", "z"], ["sum"]),
        ],
        "outer",
        [],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1])],
    )
    assert free_names(own) == {"y"}
    assert free_names(outer) == {"flag", "x", "y"}


def test_an_overflow_in_a_branch_keeps_the_batch_norm():
    model = in_a_branch()
    gamma = next(t for t in model.graph.initializer if t.name == "bn_gamma")
    gamma.CopyFrom(numpy_helper.from_array(np.full(4, 3e38, np.float32), "bn_gamma"))
    weight = next(t for t in model.graph.initializer if t.name == "conv_w")
    large = numpy_helper.to_array(weight) * np.float32(1e3)
    weight.CopyFrom(numpy_helper.from_array(large, "conv_w"))
    folded, report = bnfold.fold(model)
    assert [item.reason for item in report.items] == [Reason.OVERFLOW]
    assert report.items[0].blocker == "if/then_branch/conv"
    assert folded.graph == model.graph


def test_a_default_that_the_user_may_override_is_not_dropped():
    """The weight has a reader that goes on reading it, and the mean none, but it is an input."""
    model = in_a_branch()
    model.graph.input.append(helper.make_tensor_value_info("conv_b", TensorProto.FLOAT, [4]))
    folded, report = bnfold.fold(model)
    assert report.removed == 0
    assert "conv_b" in names(folded)
    same(model, folded)


# -------------------------------------------------------------------- what goes


def test_weights_that_nobody_reads_any_more_are_gone():
    model = in_a_branch()
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    assert names(folded) == {"conv_w_folded", "conv_b_folded"}
    same(model, folded)


@pytest.mark.parametrize("reader", ["outside", "the other branch", "the output"])
def test_a_weight_that_somebody_else_reads_stays(reader):
    model = in_a_branch()
    node = next(n for n in model.graph.node if n.op_type == "If")
    if reader == "outside":
        model.graph.node.append(helper.make_node("Neg", ["conv_w"], ["negative"]))
    elif reader == "the output":
        model.graph.node.append(helper.make_node("Identity", ["conv_w"], ["negative"]))
    else:
        other = next(a.g for a in node.attribute if a.name == "else_branch")
        del other.node[:]
        other.node.append(helper.make_node("Identity", ["conv_w"], ["mean_out"]))
        del other.output[0].type.tensor_type.shape.dim[:]
        for length in (4, 3, 3, 3):
            other.output[0].type.tensor_type.shape.dim.add().dim_value = length
    if reader != "the other branch":
        info = helper.make_tensor_value_info("negative", TensorProto.FLOAT, [4, 3, 3, 3])
        model.graph.output.append(info)
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    assert {"conv_w", "conv_w_folded"} <= names(folded)
    assert "bn_mean" not in names(folded)
    same(model, folded)


def test_new_names_are_new_in_the_whole_file():
    """conv_w_folded is taken in the other branch, and bn_mean is a node's name."""
    model = in_a_branch()
    node = next(n for n in model.graph.node if n.op_type == "If")
    other = next(a.g for a in node.attribute if a.name == "else_branch")
    other.node[0].output[0] = other.output[0].name = "conv_w_folded"
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    assert names(folded) == {"conv_w_folded_1", "conv_b_folded"}
    same(model, folded)


def test_constant_nodes_that_only_a_branch_read_are_gone():
    model = PATTERNS["statistics_that_the_outer_graph_computes"].build()
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    assert "Constant" not in {node.op_type for node in folded.graph.node}


def test_before_ir_4_new_initializers_are_inputs_too():
    model = in_a_branch(ir=3)
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    onnx.checker.check_model(folded, full_check=True)
    assert {value.name for value in folded.graph.input} == {"x", "flag", *names(folded)}
    same(model, folded)


@pytest.mark.parametrize("is_external", [False, True])
def test_large_weights_of_branches_go_from_file_to_file(tmp_path, is_external):
    """Those that a runtime maps are read where they are, and the report is that of inspect."""
    model = in_a_branch(channels=64)
    source = tmp_path / "model.onnx"
    onnx.save(
        in_a_branch(channels=64), source, save_as_external_data=is_external, size_threshold=100
    )
    output, report = bnfold.fold(source)
    assert report.removed == 1
    assert bnfold.inspect(source).items == report.items
    onnx.checker.check_model(str(output), full_check=True)
    assert names(onnx.load(output)) == {"conv_w_folded", "conv_b_folded"}
    same(model, str(output))


def test_an_ir_model_with_branches():
    model = in_a_branch(channels=64)
    folded, report = bnfold.fold(onnx_ir.from_proto(model))
    assert report.removed == 1
    proto = onnx_ir.to_proto(folded)
    onnx.checker.check_model(proto, full_check=True)
    same(model, proto)


def test_activations_in_branches_get_bounds():
    """Told by their place, too."""
    s = Sketch()
    x = s.input(2, 3, 6, 6)
    s.input(name="flag", element_type=TensorProto.BOOL)
    s.conv(x, 3, 4)
    s.bn("conv_out", 4)
    s.node("Relu", "bn_out", name="relu")
    s.conv("relu_out", 4, 4, kernel=1, name="next")
    s.node("Add", "conv_out", "next_out", name="add")
    then = branch_of(s, 5, "add_out", [2, 4, 4, 4])
    s.node("ReduceMean", x, name="mean")
    other = branch_of(s, 1, "mean_out", [1, 1, 1, 1])
    s.node("If", "flag", name="if", then_branch=then, else_branch=other)
    s.output("if_out", shape=("a", "b", "c", "d"))
    model = s.model()
    folded, report = bnfold.fold(model, clip="always")
    assert report.removed == 1
    assert report.clips == ("if/then_branch/relu",)
    same(model, folded)


def test_steps_with_a_single_number_are_counted():
    s = Sketch()
    x = s.input(2, 3, 6, 6)
    s.input(name="flag", element_type=TensorProto.BOOL)
    s.node("Mul", s.conv(x, 3, 4), s.tensor("half", np.float32(0.5)), name="half_of_it")
    then = branch_of(s, 2, "half_of_it_out", [2, 4, 4, 4])
    s.node("ReduceMean", x, name="mean")
    other = branch_of(s, 1, "mean_out", [1, 1, 1, 1])
    s.node("If", "flag", name="if", then_branch=then, else_branch=other)
    s.output("if_out", shape=("a", "b", "c", "d"))
    model = s.model()
    folded, report = bnfold.fold(model)
    assert any("1 further step" in note for note in report.notes)
    same(model, folded)
    assert random_feed(model).keys() == random_feed(folded).keys()
