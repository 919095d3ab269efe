"""A file whose statistics do not fit what is read: steps stay until the fold keeps its digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.cli import main
from bnfold.frontends.fold_less import _Search
from bnfold.verify.api import Comparison
from bnfold.verify.result import VerifyResult
from tests.conformance.three_frontends import caffe_files, node, onnx_model, weights_of

SHAPE = (2, 3, 6, 6)
BRANCHES = [
    node("c", "conv", "data", channels=3, out=4, kernel=3),
    node("b", "bn", "c", channels=4),
    node("r", "relu", "b"),
    node("d", "conv", "r", channels=4, out=4, kernel=3, pad=1),
    node("e", "bn", "d", channels=4),
    node("f", "conv", "c", channels=4, out=2, kernel=1),
]
"""What `b` reads is read by `f` as well."""


def written(tmp_path: Path, kind: str, mean: float) -> tuple[Path, Path]:
    """The network, with one mean that is far away; and where the fold goes."""
    weights = weights_of(BRANCHES)
    weights["b"][2][1] = mean
    if kind == "onnx":
        onnx.save(onnx_model(BRANCHES, weights, SHAPE), tmp_path / "model.onnx")
        return tmp_path / "model.onnx", tmp_path / "folded.onnx"
    caffe_files(BRANCHES, weights, SHAPE, tmp_path)
    return tmp_path / "network.prototxt", tmp_path / "folded.prototxt"


def folded(capsys: pytest.CaptureFixture[str], source: Path, output: Path) -> dict[str, str | None]:
    """The reason of each step, as the command says them."""
    assert main(["fold", str(source), "-o", str(output), "--clip", "always", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verify"]["equal"]
    return {item["name"]: item.get("reason") for item in document["items"]}


@pytest.mark.parametrize("kind", ["onnx", "caffe"])
def test_nothing_is_written_of_a_fold_that_is_wrong(capsys, monkeypatch, tmp_path, kind):
    def differ(self, original, made):
        return VerifyResult(False, notes=("They differ.",))

    monkeypatch.setattr(Comparison, "of", differ)
    source, output = written(tmp_path, kind, 1e5)
    assert main(["fold", str(source), "-o", str(output), "--clip", "always"]) == 70
    assert not output.exists()


@pytest.mark.parametrize("kind", ["onnx", "caffe"])
def test_what_loses_no_digits_goes(capsys, tmp_path, kind):
    assert set(folded(capsys, *written(tmp_path, kind, 10.0)).values()) == {None}


@pytest.mark.parametrize("kind", ["onnx", "caffe"])
def test_the_step_to_blame_stays_alone(capsys, tmp_path, kind):
    source, output = written(tmp_path, kind, 1e5)
    reasons = folded(capsys, source, output)
    assert reasons["b"] == "scale-range"
    assert all(reasons[name] is None for name in reasons if not name.startswith("b")), reasons
    assert bnfold.verify(str(source), str(output)).equal


def test_no_fold_is_tried_twice(capsys, monkeypatch, tmp_path):
    tried = []
    plain = _Search.attempt

    def attempt(self, request):
        tried.append(set(request.stays))
        return plain(self, request)

    monkeypatch.setattr(_Search, "attempt", attempt)
    folded(capsys, *written(tmp_path, "onnx", 1e5))
    assert tried == [{"b", "e"}, {"e"}, {"b"}]


def test_in_a_body_of_control_flow_too(capsys, tmp_path):
    weights = weights_of(BRANCHES)
    weights["b"][2][1] = 1e5
    whole = onnx_model(BRANCHES, weights, SHAPE)
    body = onnx.helper.make_graph(
        list(whole.graph.node), "body", [], list(whole.graph.output), list(whole.graph.initializer)
    )
    choice = onnx.numpy_helper.from_array(np.array(True), "choice")
    names = [info.name for info in whole.graph.output]
    node_of_choice = onnx.helper.make_node(
        "If", ["choice"], [f"{name}_" for name in names], "if", then_branch=body, else_branch=body
    )
    outputs = [
        onnx.helper.make_tensor_value_info(f"{name}_", onnx.TensorProto.FLOAT, None)
        for name in names
    ]
    graph = onnx.helper.make_graph(
        [node_of_choice], "net", list(whole.graph.input), outputs, [choice]
    )
    model = onnx.helper.make_model(graph, opset_imports=whole.opset_import, ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    reasons = folded(capsys, tmp_path / "model.onnx", tmp_path / "folded.onnx")
    assert reasons["if/then_branch/b"] == "scale-range"
    assert reasons["if/then_branch/e"] is None


def test_what_is_merged_is_merged_beside_steps_that_stay(capsys, tmp_path):
    twins = [node(name, "conv", "r", channels=4, out=4, kernel=1) for name in ("g", "h")]
    nodes = [*BRANCHES, *twins, node("s", "add", "g", "h")]
    weights = weights_of(nodes)
    weights["b"][2][1] = 1e5
    onnx.save(onnx_model(nodes, weights, SHAPE), tmp_path / "model.onnx")
    output = tmp_path / "folded.onnx"
    reasons = folded(capsys, tmp_path / "model.onnx", output)
    assert reasons == {"b": "scale-range", "e": None}
    assert sum(made.op_type == "Conv" for made in onnx.load(output).graph.node) == 4


def test_what_an_earlier_fold_rounded_beside_large_numbers_is_not_built_on(capsys, tmp_path):
    """Nobody reads `b`: the first fold stores what it reads beside its mean."""
    nodes = [
        node("c", "conv", "data", channels=3, out=4, kernel=3),
        node("b", "bn", "c", channels=4),
        node("s", "sub", "c", "number"),
        node("e", "bn", "s", channels=4),
        node("a", "add", "e", "numbers"),
        node("d", "conv", "a", channels=4, out=4, kernel=1),
    ]
    weights = weights_of(nodes)
    weights["b"][2][2] = -1e5
    model = onnx_model(nodes, weights, SHAPE)
    numbers = np.arange(1.0, 5.0, dtype=np.float32).reshape(4, 1, 1)
    for name, value in {"number": np.float32(1.0), "numbers": numbers}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    del model.graph.output[0]  # b
    onnx.save(model, tmp_path / "model.onnx")
    reasons = folded(capsys, tmp_path / "model.onnx", tmp_path / "folded.onnx")
    assert reasons["e"] is None
