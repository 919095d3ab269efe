"""Where float64 cannot be had: right folds are accepted, faults are found, doubts are named."""

from __future__ import annotations

import sys
from typing import get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.core.modes import ClipMode
from tests.verify.without_truth import draw


@pytest.fixture(autouse=True)
def _no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch, which does the arithmetic in float64, is not installed."""
    monkeypatch.delitem(sys.modules, "bnfold.frontends.onnx.run_exact", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.parametrize("seed", range(1000, 1015))
def test_right_folds(seed):
    model, shapes = draw(seed)
    folded = bnfold.fold(model, clip=get_args(ClipMode)[seed % 3]).model
    result = bnfold.verify(model, folded, shapes)
    assert result.truth == "nudged" and result.equal, str(result)


def network(
    *, kind: int = TensorProto.FLOAT, own: str = "", scalar: bool = False
) -> onnx.ModelProto:
    """Conv, BatchNormalization, an operator of ONNX Runtime's own, Conv."""
    rng = np.random.default_rng(3)
    arrays = {
        "t": rng.normal(size=7),
        "w": rng.normal(size=(4, 3, 3, 3)),
        **{name: rng.uniform(0.5, 1.5, 4) for name in ("g", "b", "m", "v")},
        "u": rng.normal(size=(2, 4, 1, 1)),
    }
    nodes = [helper.make_node("Conv", ["f", "w"], ["c"])]
    nodes += [helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"])]
    first = "Gather" if kind == TensorProto.INT64 else "Identity"
    nodes.insert(0, helper.make_node(first, ["t", "x"] if first == "Gather" else ["x"], ["f"]))
    infos = [helper.make_tensor_value_info("x", kind, ["N", 3, 6, 6])]
    last = "n"
    if scalar:
        infos.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, []))
        nodes.append(helper.make_node("Mul", ["n", "s"], ["k"]))
        last = "k"
    if own:
        nodes.append(helper.make_node(own, [last], ["o"], domain="com.microsoft"))
        last = "o"
    nodes.append(helper.make_node("Conv", [last, "u"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "net",
        infos,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


FORMS = [
    {},
    {"scalar": True},
    {"scalar": True, "own": "FastGelu"},
    {"kind": TensorProto.INT64},
    {"kind": TensorProto.INT64, "own": "Gelu"},
    {"kind": TensorProto.INT64, "own": "QuickGelu", "scalar": True},
]


@pytest.mark.parametrize("form", FORMS)
def test_scalars_integers_and_foreign_operators(form):
    model = network(**form)
    folded = bnfold.fold(model, merge="never").model
    assert bnfold.verify(model, folded).verdict == "equal"
    (weight,) = [t for t in folded.graph.initializer if t.name.startswith("u")]
    array = numpy_helper.to_array(weight).copy()
    array[1, 2] *= 1.001
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    result = bnfold.verify(model, folded)
    assert result.verdict == "not equal", str(result)


def test_what_nothing_moves_is_not_proven():
    """Integers go in, no constant is a weight: there is no rounding to be seen."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["f"], ["y"]),
    ]
    model = one_output(nodes, [])
    other = one_output(
        [*nodes[:1], helper.make_node("Pow", ["f", "half"], ["y"])], [half(0.5000001)]
    )
    result = bnfold.verify(model, other)
    assert result.verdict == "not proven" and not result.equal
    assert "may or may not" in result.summary
    assert bnfold.verify(model, model).equal


def half(value: float) -> TensorProto:
    return numpy_helper.from_array(np.float32(value), "half")


def one_output(nodes: list[onnx.NodeProto], constants: list[TensorProto]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
