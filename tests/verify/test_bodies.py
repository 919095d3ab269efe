"""What is inside of control flow and functions is verified as the original has it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.cli import main
from bnfold.frontends.onnx.runner import model_runner
from tests.frontends.onnx.support import Sketch

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]


def tensors(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    parts = {name: rng.normal(size=4) for name in ("g", "b", "m")}
    parts |= {"w": rng.normal(size=(4, 4, 1, 1)), "v": rng.uniform(0.5, 2.0, 4)}
    return {name: part.astype(np.float32) for name, part in parts.items()}


def steps(source: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Conv", [source, "w"], ["c"], name="c"),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"], name="n"),
    ]


def constants(seed: int) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))
        for name, array in tensors(seed).items()
    ]


def function(*, calls: int = 2) -> onnx.ModelProto:
    """Constants inside of a function that is called once or twice."""
    s = Sketch(2, 4, 6, 5)
    for at in range(calls):
        s.nodes.append(helper.make_node("F", [s.at], [f"f{at}"], domain="my", name=f"f{at}"))
        s.at = f"f{at}"
    model = s.model()
    model.functions.append(
        helper.make_function("my", "F", ["x"], ["n"], [*constants(0), *steps("x")], OPSETS[:1])
    )
    del model.opset_import[:]
    model.opset_import.extend(OPSETS)
    return model


def branch(seed: int, *, initializers: bool) -> onnx.GraphProto:
    held = [numpy_helper.from_array(array, name) for name, array in tensors(seed).items()]
    nodes = steps("x") if initializers else [*constants(seed), *steps("x")]
    output = helper.make_tensor_value_info("n", TensorProto.FLOAT, None)
    return helper.make_graph(nodes, "branch", [], [output], held if initializers else [])


def conditional(*, initializers: bool = True) -> onnx.ModelProto:
    s = Sketch(2, 4, 6, 5)
    mean = s.node("ReduceMean", "x", keepdims=0)
    s.node("Greater", mean, s.constant("zero", np.float32(0)))
    branches = [branch(at, initializers=initializers) for at in range(2)]
    s.node("If", s.at, then_branch=branches[0], else_branch=branches[1])
    return s.model()


def captured() -> onnx.ModelProto:
    """The weights lie outside of the branches, which read them."""
    s = Sketch(2, 4, 6, 5)
    for name, array in tensors(0).items():
        s.constant(name, array)
    mean = s.node("ReduceMean", "x", keepdims=0)
    s.node("Greater", mean, s.constant("zero", np.float32(0)))
    output = helper.make_tensor_value_info("n", TensorProto.FLOAT, None)
    body = helper.make_graph(steps("x"), "branch", [], [output])
    s.node("If", s.at, then_branch=body, else_branch=body)
    return s.model()


MODELS = {
    "a function": function,
    "a function of one call": lambda: function(calls=1),
    "a branch": conditional,
    "a branch of Constants": lambda: conditional(initializers=False),
    "captured weights": captured,
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_original_stays_as_it_is(make):
    """It is the truth: were it folded on the way, a wrong fold would be compared with itself."""
    runner = model_runner(make(), None, "original")
    before = runner.model.proto.SerializeToString(deterministic=True)
    assert runner.rescalings(runner)
    assert runner.model.proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_right_fold(make, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(make(), "net.onnx")
    assert main(["fold", "net.onnx", "--strict"]) == 0
    assert "equal" in capsys.readouterr().out
    assert bnfold.verify("net.onnx", "net.folded.onnx").equal
    folded = bnfold.fold(make()).model
    assert bnfold.verify(make(), folded).equal


def test_an_epsilon_that_is_not_set_is_one_of_float32():
    """As one that is set, and as whoever else runs the body takes it: in float64 it counts."""
    float64 = TensorProto.DOUBLE
    held = [numpy_helper.from_array(a.astype(np.float64), n) for n, a in tensors(1).items()]
    output = helper.make_tensor_value_info("n", float64, None)
    graphs = {
        f"{name}_branch": helper.make_graph(steps("x"), name, [], [output], held)
        for name in ("then", "else")
    }
    graph = helper.make_graph(
        [helper.make_node("If", ["is"], ["y"], name="if", **graphs)],
        "net",
        [
            helper.make_tensor_value_info("x", float64, [2, 4, 5, 5]),
            helper.make_tensor_value_info("is", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", float64, None)],
    )
    model = helper.make_model(graph, opset_imports=OPSETS[:1], ir_version=8)
    folded, report = bnfold.fold(model)
    assert report.removed == 2
    result = bnfold.verify(model, folded)
    assert result.equal, str(result)


def test_a_loop_without_a_condition_runs_as_often_as_it_says():
    """The reference evaluator runs none, and joins what rounds make along an old axis."""
    s = Sketch(2, 4, 6, 5)
    kinds = [("step", TensorProto.INT64), ("go", TensorProto.BOOL), ("x", TensorProto.FLOAT)]
    shapes = ([], [], ["a", 4, "b", "c"])
    inputs = [
        helper.make_tensor_value_info(*kind, shape)
        for kind, shape in zip(kinds, shapes, strict=True)
    ]
    outputs = [
        helper.make_tensor_value_info(n, k, None) for n, k in (("on", 9), ("n", 1), ("n", 1))
    ]
    held = [numpy_helper.from_array(array, name) for name, array in tensors(0).items()]
    nodes = [helper.make_node("Identity", ["go"], ["on"]), *steps("x")]
    body = helper.make_graph(nodes, "body", inputs, outputs, held)
    rounds = s.constant("rounds", np.array(3))
    s.nodes.append(helper.make_node("Loop", [rounds, "", "x"], ["last", "all"], "loop", body=body))
    model = s.model("last", "all")
    (item,) = bnfold.inspect(model).items
    assert item.name == "loop/body/n" and item.reason is None
    x = np.random.default_rng(3).normal(size=(2, 4, 6, 5)).astype(np.float32)
    exact = model_runner(model, None, "original").exact().run([x])
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for output, values in zip(exact, session.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(output.values, values, atol=1e-4 * np.abs(values).max())
