"""Very deep and very wide ONNX models: no recursion, no time that grows with the square."""

from __future__ import annotations

import json

import numpy as np
import onnx
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

import bnfold
from bnfold.cli import main
from tests.frontends import deep
from tests.frontends.onnx.support import Sketch, ops

DOUBLE = TensorProto.DOUBLE


def batch_norm(net: Sketch, norm: deep.Norm, name: str) -> str:
    parts = (norm.gamma, norm.beta, norm.mean, norm.var)
    names = [net.constant(f"{name}_{k}", v) for k, v in zip("gbmv", parts, strict=True)]
    return net.node("BatchNormalization", net.at, *names, name=name, epsilon=norm.eps)


def conv(net: Sketch, kernel, name: str, **options) -> str:
    return net.node("Conv", net.at, net.constant(f"{name}_w", kernel), name=name, **options)


def chain() -> onnx.ModelProto:
    net = Sketch(1, 2, 1, 1, data_type=DOUBLE)
    for index, block in enumerate(deep.chain()):
        conv(net, block.kernel, f"conv{index}", group=2)
        batch_norm(net, block.norm, f"bn{index}")
        net.node("Relu")
    return net.model()


def branches() -> onnx.ModelProto:
    net = Sketch(1, 2, 1, 1, data_type=DOUBLE)
    for index, block in enumerate(deep.branches()):
        if index == 0:
            conv(net, block.kernel, "stem")
        stream = net.at
        batch_norm(net, block.norm, f"bn{index}")
        net.node("Relu")
        conv(net, block.kernel, f"conv{index}")
        net.node("Add", stream, net.at)
    return net.model()


def assert_folds(model: onnx.ModelProto) -> None:
    folded, report = bnfold.fold(model, clip="always")
    assert report.kept == 0
    assert "BatchNormalization" not in ops(folded)
    assert_same(model, folded)


def assert_same(model: onnx.ModelProto, folded: onnx.ModelProto) -> None:
    """In float64, by the evaluator of the standard."""
    x = np.array([0.7, 1.3]).reshape(1, 2, 1, 1)
    expected, actual = (ReferenceEvaluator(one).run(None, {"x": x})[0] for one in (model, folded))
    assert np.abs(expected).max() > 0.1
    assert np.abs(expected - actual).max() <= deep.TOLERANCE * np.abs(expected).max()


def test_a_residual_stream_through_two_thousand_nodes():
    assert_folds(branches())


def test_what_bounds_cost_is_weighed_through_two_thousand_nodes():
    model = branches()
    folded, report = bnfold.fold(model)
    kept = [item for item in report.items if isinstance(item.outcome, bnfold.Kept)]
    assert {item.reason for item in kept} == {bnfold.Reason.CLIP_COST}
    # A gamma below 0 turns a ReLU over; elsewhere the stream's shift may change at every Add.
    upright = [all(block.norm.gamma > 0) for block in deep.branches()]
    assert report.removed == sum(upright)
    assert_same(model, folded)


def test_a_hundred_thousand_channels():
    first, second, last = deep.wide()
    net = Sketch(1, 2, 1, 1, data_type=DOUBLE)
    conv(net, first.kernel, "first")
    batch_norm(net, first.norm, "one")
    net.node("Relu")
    conv(net, second.kernel, "second", group=deep.WIDE)
    batch_norm(net, second.norm, "two")
    net.node("Relu")
    conv(net, last, "last")
    assert_folds(net.model())


def test_a_chain_of_two_thousand_nodes_through_the_command(tmp_path, capsys):
    model, path, out = chain(), tmp_path / "deep.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    assert main(["fold", str(path), "-o", str(out), "--no-check", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["removed"] == len(document["items"]) == deep.CHAIN_BLOCKS
    folded = onnx.load(out)
    assert "BatchNormalization" not in ops(folded)
    assert_same(model, folded)
