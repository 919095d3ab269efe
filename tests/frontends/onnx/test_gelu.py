"""GELU written out keeps its numbers, so that runtimes know it; all around it folds as before."""

from __future__ import annotations

import onnx
import onnxruntime as ort
import pytest

from tests.conformance.onnx_sketch import Sketch
from tests.frontends.onnx.merging import X, added, folded


def scalar(s: Sketch, value: float, name: str) -> str:
    return s.tensor(name, s.uniform(1).reshape(()) * 0 + value)


def gelu(s: Sketch, x: str, name: str, form: str, op: str = "Erf") -> str:
    """x * (1 + f(x * c)) * 0.5, its factors in some order."""
    inner = s.node("Div", x, scalar(s, 1.4142135, f"{name}_root"), name=f"{name}_inner")
    half, one = scalar(s, 0.5, f"{name}_half"), scalar(s, 1.0, f"{name}_one")
    total = s.node("Add", s.node(op, inner, name=f"{name}_f"), one, name=f"{name}_sum")
    if form == "half last":
        return s.node("Mul", s.node("Mul", x, total, name=f"{name}_x"), half, name=name)
    if form == "half of x":
        return s.node("Mul", s.node("Mul", x, half, name=f"{name}_x"), total, name=name)
    return s.node("Mul", x, s.node("Mul", half, total, name=f"{name}_x"), name=name)


def network(form: str, op: str):
    """conv, bn, GELU, bn, then two convolutions that become one."""

    def draw(s: Sketch) -> None:
        at = s.bn(s.conv(s.input(*X), 4, 4, name="c1", pad=1), 4, name="b1")
        at = s.bn(gelu(s, at, "act", form, op), 4, name="b2")
        parts = (s.conv(at, 4, 4, name=f"p{k}", kernel=1) for k in range(2))
        s.output(s.node("Relu", added(s, *parts), name="end"))

    return draw


FORMS = ("half last", "half of x", "half of the sum")


@pytest.mark.parametrize("op", ["Erf", "Tanh"])
@pytest.mark.parametrize("form", FORMS)
def test_its_nodes_stay_and_the_batch_norms_go(form, op):
    made, report = folded(network(form, op))
    assert (report.removed, report.kept) == (2, 0)
    assert [node.op_type for node in made.graph.node].count("Conv") == 2
    names = {node.name for node in made.graph.node}
    assert {"act", "act_inner", "act_f", "act_sum", "act_x"} <= names


@pytest.mark.parametrize("form", FORMS[:2])
def test_onnx_runtime_knows_it_still(form, tmp_path):
    made, _ = folded(network(form, "Erf"))
    for tensor in made.graph.initializer:  # drawn in float64, which it does not fuse
        array = onnx.numpy_helper.to_array(tensor).astype("float32")
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for value in (*made.graph.input, *made.graph.output, *made.graph.value_info):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    assert [node.op_type for node in optimised.graph.node].count("Gelu") == 1


@pytest.mark.parametrize("op", ["Erf", "Tanh"])
def test_a_number_in_front_of_a_function_alone_goes(op):
    """No GELU: nothing else reads what is scaled."""

    def draw(s: Sketch) -> None:
        at = s.conv(s.input(*X), 4, 4, name="c1", pad=1)
        at = s.node("Mul", at, scalar(s, 0.7, "c"), name="scaled")
        s.output(s.node(op, at, name="f"))

    made, _ = folded(draw)
    assert [node.op_type for node in made.graph.node] == ["Conv", op]
