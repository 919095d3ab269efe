"""Merges in models of onnx_ir, in files with external data, in bodies, functions and halves."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.onnx import FoldPass
from tests.conformance.onnx_run import error, random_feed, run
from tests.conformance.onnx_sketch import Sketch
from tests.frontends.onnx.merging import X, added, assert_owed, assert_tidy, drawn, ops, two


def wide(s: Sketch) -> None:
    """Weights large enough to lie outside of a message; one convolution that stays as it is."""
    x = s.node("Relu", s.conv(s.input(2, 16, 6, 6), 16, 16, name="kept", pad=1), name="first")
    a, b = (s.conv(x, 16, 16, name=name, pad=1) for name in "ab")
    s.output(s.node("Relu", added(s, s.bn(added(s, a, b), 16), x, name="all"), name="act"))


def test_a_model_of_onnx_ir():
    model = drawn(wide, np.float32)
    source = onnx_ir.from_proto(model)
    folded, report = bnfold.fold(source)
    assert [merged.into for merged in report.merged] == ["a"]
    made = onnx_ir.to_proto(folded)
    assert_owed(model, made, drawn(wide, np.float32))
    assert ops(made) == ["Conv", "Relu", "Conv", "Relu"]
    kept = (m.graph.initializers["kept_w"].const_value for m in (source, folded))
    assert len({value.tobytes() for value in kept}) == 1


def test_the_pass_merges_in_place():
    model = drawn(wide, np.float32)
    result = FoldPass()(onnx_ir.from_proto(model))
    assert result.modified
    assert_owed(model, onnx_ir.to_proto(result.model), drawn(wide, np.float32))
    again = FoldPass()(result.model)
    assert not again.modified


def test_a_file_with_external_data(tmp_path):
    model = drawn(wide, np.float32)
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    onnx.save_model(
        drawn(wide, np.float32),
        str(source),
        save_as_external_data=True,
        location="source.data",
        size_threshold=0,
    )
    bnfold.fold(str(source), output=str(target))
    made = onnx.load(str(target))
    assert_owed(model, made, drawn(wide, np.float32))
    assert ops(made) == ["Conv", "Relu", "Conv", "Relu"]


@pytest.mark.parametrize("where", ["then", "else"])
def test_a_branch_of_an_if(where):
    """Merges are of the main graph: what is inside is folded, and right."""
    s = Sketch(np.float32)
    x = s.input(*X)
    flag = s.input(name="flag", element_type=TensorProto.BOOL)
    a, b = two(s, x)
    s.bn(added(s, a, b), 4)
    inner, s.nodes = s.nodes, []
    graphs = {
        "then": _graph(s, inner, "bn_out"),
        "else": _graph(s, [helper.make_node("Relu", [x], ["r"], name="r")], "r"),
    }
    one, other = (graphs["then"], graphs["else"]) if where == "then" else (
        graphs["else"], graphs["then"])  # fmt: skip
    s.output(s.node("If", flag, name="if", then_branch=one, else_branch=other), shape=X)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert (report.removed, report.kept) == (1, 0)
    onnx.checker.check_model(folded, full_check=True)
    for value in (True, False):
        feed = random_feed(model) | {"flag": np.array(value)}
        assert error(run(model, feed), run(folded, feed)) < 1e-5


def _graph(s: Sketch, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(output, s.element_type, X)
    return helper.make_graph(nodes, f"of_{output}", [], [value])


def halves(s: Sketch) -> None:
    a, b = two(s)
    s.output(s.node("Relu", added(s, a, b), name="act"))


def test_halves_merge():
    model = drawn(halves, np.float16)
    folded, report = bnfold.fold(model)
    assert [merged.into for merged in report.merged] == ["a"]
    assert_tidy(folded.graph)
    assert {t.data_type for t in folded.graph.initializer} == {TensorProto.FLOAT16}
    feed = random_feed(model)
    assert error(run(model, feed), run(folded, feed)) < 1e-2


@pytest.mark.parametrize("name", ["w", "b"])
def test_halves_whose_sum_is_too_large(name):
    """40000 + 40000 is no float16."""
    model = drawn(halves, np.float16)
    for tensor in model.graph.initializer:
        if tensor.name in (f"a_{name}", f"b_{name}"):
            array = numpy_helper.to_array(tensor).copy()
            array.reshape(-1)[0] = 40_000.0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    folded, report = bnfold.fold(model)
    assert not report.merged
    assert folded == model


def test_one_sum_too_large_leaves_the_others():
    def draw(s: Sketch) -> None:
        x = s.input(*X)
        a, b = two(s, x)
        x = s.node("Relu", added(s, a, b), name="act")
        s.output(s.node("Relu", added(s, *two(s, x, names="cd"), name="more"), name="end"))

    model = drawn(draw, np.float16)
    for tensor in model.graph.initializer:
        if tensor.name in ("a_b", "b_b"):
            tensor.CopyFrom(numpy_helper.from_array(np.full(4, 60_000, np.float16), tensor.name))
    folded, report = bnfold.fold(model)
    assert [merged.into for merged in report.merged] == ["c"]
    assert ops(folded) == ["Conv", "Conv", "Add", "Relu", "Conv", "Relu"]


@pytest.mark.parametrize("sizes", [(5, 4, 5, 4), (1, 1, 5, 4), (5, 4, 1, 1), (1, 4, 5, 1)])
def test_a_sum_that_some_sizes_broadcast(sizes):
    def draw(s: Sketch) -> None:
        x = s.input("N", 4, "H", "W")
        y = s.node("Relu", s.input("N", 4, "A", "B", name="y"), name="act")
        a, b = two(s, x, kernel=1, pad=0)
        s.output(added(s, a, added(s, y, b, name="inner")))

    model = drawn(draw, np.float32)
    folded, _ = bnfold.fold(model)
    feed = random_feed(model, dict(zip("HWAB", sizes, strict=True)))
    assert error(run(model, feed), run(folded, feed)) < 1e-5


@pytest.mark.parametrize("width", [1, 6])
def test_a_width_that_a_factor_may_broadcast(width):
    def draw(s: Sketch) -> None:
        scaled = s.node("Mul", s.input("N", "K"), s.tensor("c", s.uniform(6)), name="scale")
        s.output(s.node("MatMul", scaled, s.tensor("w", s.uniform(6, 6)), name="product"))

    model = drawn(draw, np.float32)
    folded, _ = bnfold.fold(model)
    feed = random_feed(model, {"K": width})
    assert error(run(model, feed), run(folded, feed)) < 1e-5


@pytest.mark.parametrize("opset", [1, 6])
def test_operators_older_than_broadcasting(opset):
    def draw(s: Sketch) -> None:
        a, b = two(s)
        s.output(added(s, a, b))
        for tensor in s.initializers:
            s.input(*tensor.dims, name=tensor.name)

    model = drawn(draw, np.float32, opset=opset, ir=3)
    folded, report = bnfold.fold(model)
    assert len(report.merged) == 1
    assert ops(folded) == ["Conv"]
    assert bnfold.verify(model, folded).equal
