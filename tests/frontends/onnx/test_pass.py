"""bnfold.onnx.FoldPass in the pipelines of onnx_ir, beside onnx_ir's and onnxscript's passes.

What must not happen first: a model that changes without need, or while a pass fails; data that is
loaded without need; a tensor of before under the name of one that changed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxscript.optimizer
import pytest
import torch
from onnx import TensorProto, helper
from onnx_ir.passes import PassError, PassManager, Sequential, common
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules_of_onnxscript
from torch import nn

import bnfold
from bnfold.onnx import FoldPass, FoldPassResult
from tests.frontends.onnx.support import Sketch, assert_same

SHAPE = (1, 3, 8, 8)


def sketch(**options: Any) -> Sketch:
    """bn0, conv, bn1, relu, a large last convolution."""
    net = Sketch(*SHAPE, **options)
    net.bn(3, name="bn0")
    net.conv(3, 16)
    net.bn(16, name="bn1")
    net.node("Relu")
    net.conv(16, 16, name="last")
    return net


def text(model: onnx_ir.Model) -> bytes:
    return onnx_ir.to_proto(model).SerializeToString(deterministic=True)


def ops(model: onnx_ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


class Counted(onnx_ir.LazyTensor):
    """Counts how often its content is asked for."""

    asked = 0

    def __init__(self, array: np.ndarray, name: str) -> None:
        def compute() -> onnx_ir.Tensor:
            self.asked += 1
            return onnx_ir.Tensor(array, name=name)

        kind = onnx_ir.DataType.from_numpy(array.dtype)
        super().__init__(compute, dtype=kind, shape=onnx_ir.Shape(array.shape), name=name)


# -------------------------------------------------------------------- what must not happen


def test_where_nothing_goes_the_model_is_not_touched() -> None:
    net = Sketch(*SHAPE)
    net.node("Sigmoid")
    net.bn(3)
    net.node("Sigmoid")
    model = onnx_ir.from_proto(net.model())
    before, graph, nodes = text(model), model.graph, list(model.graph)
    result = FoldPass()(model)
    assert (result.modified, result.model is model) == (False, True)
    assert model.graph is graph
    assert list(model.graph) == nodes
    assert text(model) == before


def test_a_pass_manager_stops_when_nothing_more_goes() -> None:
    fold = FoldPass()
    result = PassManager([fold], steps=9, early_stop=True)(onnx_ir.from_proto(sketch().model()))
    assert result.modified
    assert [report.removed for report in fold.reports] == [2, 0]


def test_functionalized_it_leaves_the_model_alone() -> None:
    model = onnx_ir.from_proto(sketch().model())
    before = text(model)
    result = onnx_ir.passes.functionalize(FoldPass())(model)
    assert isinstance(result, FoldPassResult)
    assert result.model is not model
    assert text(model) == before
    assert "BatchNormalization" not in ops(result.model)


@pytest.mark.parametrize("why", ["lost", "unknown input"])
def test_a_fold_that_fails_leaves_the_model_as_it_was(why: str) -> None:
    def lose() -> onnx_ir.Tensor:
        raise OSError("the weights are gone")

    model = onnx_ir.from_proto(sketch().model())
    shape, kind = onnx_ir.Shape((16, 3, 5, 5)), onnx_ir.DataType.FLOAT
    lazy = onnx_ir.LazyTensor(lose, dtype=kind, shape=shape, name="conv_w")
    if why == "lost":
        model.graph.initializers["conv_w"].const_value = lazy
    before, graph = ops(model), model.graph
    held = {name: value.const_value for name, value in graph.initializers.items()}
    with pytest.raises(PassError) as raised:
        Sequential(FoldPass({"y": SHAPE} if why != "lost" else None))(model)
    assert isinstance(raised.value.__cause__, OSError if why == "lost" else bnfold.UsageError)
    assert (ops(model), model.graph is graph) == (before, True)
    assert all(value.const_value is held[name] for name, value in graph.initializers.items())


@pytest.mark.parametrize("inputs", [None, {"x": SHAPE}])
def test_an_option_that_is_not_known_is_refused_at_once(inputs: Any) -> None:
    with pytest.raises(bnfold.UsageError, match="clip='often'"):
        FoldPass(inputs, clip="often")  # type: ignore[arg-type]


def test_import_bnfold_does_not_load_it() -> None:
    code = (
        "import sys, bnfold; bnfold.fold\n"
        "print(*{'onnx', 'onnx_ir', 'bnfold.onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_missing_package_is_named_with_the_extra() -> None:
    code = "import sys; sys.modules['onnx_ir'] = None; import bnfold.onnx"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "bnfold[onnx]" in done.stderr.splitlines()[-1]


# -------------------------------------------------------------------- by itself


@pytest.mark.parametrize("clip", ["auto", "always", "never"])
def test_it_does_what_fold_does(clip: Any) -> None:
    proto = sketch().model()
    model = onnx_ir.from_proto(proto)
    model.metadata_props["who"] = "me"
    model.meta["analysis"] = held = object()
    result = FoldPass(clip=clip)(model)
    expected, report = bnfold.fold(onnx_ir.from_proto(proto), clip=clip)
    assert isinstance(result, FoldPassResult)
    assert (result.model is model, result.modified, result.report) == (True, True, report)
    assert ops(model) == ops(expected)
    assert (model.metadata_props["who"], model.meta["analysis"]) == ("me", held)
    assert_same(proto, onnx_ir.to_proto(model), SHAPE)


def test_shapes_of_open_inputs() -> None:
    net = Sketch("batch", 3, "height", "width")
    net.conv(3, 16)
    net.bn(16)
    net.node("Relu")
    model = onnx_ir.from_proto(net.model())
    assert FoldPass({"x": SHAPE})(model).modified
    assert str(model.graph.inputs[0].shape) == "[batch,3,height,width]"
    with pytest.raises(bnfold.BnfoldError):
        FoldPass({"y": SHAPE})(onnx_ir.from_proto(net.model()))


def test_bodies() -> None:
    net = Sketch(*SHAPE)
    for name in ("w", "g", "b", "m", "v"):
        shape = (4, 3, 3, 3) if name == "w" else (4,)
        net.constant(name, np.random.default_rng(len(name)).uniform(0.5, 2, shape))
    inner = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["y"], name="inner"),
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    body = helper.make_graph(inner, "body", [], [out])
    condition = net.constant("yes", np.array(True))
    net.node("If", condition, then_branch=body, else_branch=body)
    proto = net.model()
    model = onnx_ir.from_proto(proto)
    result = FoldPass()(model)
    assert result.report.removed == 2
    assert_same(proto, onnx_ir.to_proto(model), SHAPE)


# -------------------------------------------------------------------- beside other passes

BEFORE = {
    "none": (),
    "inline": (common.InlinePass(), common.NameFixPass()),
    "lift": (common.LiftConstantsToInitializersPass(), common.DeduplicateInitializersPass()),
    "shapes": (common.ShapeInferencePass(), common.TopologicalSortPass()),
    "inputs": (common.AddInitializersToInputsPass(), common.RemoveInitializersFromInputsPass()),
}
AFTER = {
    "cleaning": (
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
    ),
    "sharing": (
        common.CommonSubexpressionEliminationPass(),
        common.DeduplicateHashedInitializersPass(),
    ),
    "checked": (common.ShapeInferencePass(), common.CheckerPass()),
    "plain": (common.ClearMetadataAndDocStringPass(), common.OutputFixPass()),
}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("after", AFTER)
def test_in_a_pipeline(before: str, after: str) -> None:
    proto = sketch().model()
    fold = FoldPass()
    model = onnx_ir.from_proto(proto)
    result = Sequential(*BEFORE[before], fold, *AFTER[after])(model)
    assert result.modified
    assert [(report.removed, report.kept) for report in fold.reports] == [(2, 0)]
    assert_same(proto, onnx_ir.to_proto(result.model), SHAPE)


def test_beside_onnxscripts_rewriter_and_optimizer() -> None:
    """Their rule folds a BatchNorm behind a convolution; ours takes what is left."""
    proto = sketch().model()
    fold = FoldPass()
    rules = [rules_of_onnxscript.fuse_batchnorm_into_conv_rule]
    model = onnx_ir.from_proto(proto)
    Sequential(RewritePass(rules), common.RemoveUnusedNodesPass(), fold)(model)
    assert [report.removed for report in fold.reports] == [1]
    onnxscript.optimizer.optimize_ir(model)
    assert "BatchNormalization" not in ops(model)
    assert_same(proto, onnx_ir.to_proto(model), SHAPE)


def test_on_what_pytorch_exports() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 16, 3), nn.ReLU(), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3)
    )
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.running_mean)
    program = torch.onnx.export(net.eval(), (torch.rand(SHAPE),), dynamo=True, verbose=False)
    assert program is not None
    expected = onnx_ir.to_proto(program.model)
    result = FoldPass(clip="always")(program.model)
    assert (result.report.removed, result.report.kept) == (2, 0)
    assert_same(expected, program.model_proto, SHAPE)


# -------------------------------------------------------------------- tensors that are not loaded


@pytest.fixture
def big(tmp_path: Path) -> Path:
    model = sketch().model()
    onnx.save(
        model,
        tmp_path / "big.onnx",
        save_as_external_data=True,
        location="big.bin",
        size_threshold=0,
    )
    return tmp_path / "big.onnx"


def test_external_tensors_stay_where_they_are(big: Path) -> None:
    model = onnx_ir.load(big)
    last = model.graph.initializers["last_w"].const_value
    result = FoldPass()(model)
    assert result.report.removed == 2
    assert model.graph.initializers["last_w"].const_value is last
    assert isinstance(last, onnx_ir.ExternalTensor)
    onnx_ir.save(model, big.with_name("out.onnx"), external_data="out.bin")
    assert_same(onnx.load(big), onnx.load(big.with_name("out.onnx")), SHAPE)


def test_external_tensors_in_a_pipeline(big: Path) -> None:
    expected = onnx.load(big)
    passes = Sequential(
        common.DeduplicateInitializersPass(), FoldPass(), common.RemoveUnusedNodesPass()
    )
    result = passes(onnx_ir.load(big))
    assert_same(
        expected, onnx_ir.to_proto(onnx_ir.external_data.load_to_model(result.model)), SHAPE
    )


def test_external_tensors_of_bodies_and_attributes(tmp_path: Path) -> None:
    net = Sketch(*SHAPE)
    inner = Sketch(*SHAPE, seed=4)
    inner.conv(3, 16, name="inner_conv")
    inner.bn(16, name="inner_bn")
    out = helper.make_tensor_value_info(inner.at, TensorProto.FLOAT, None)
    body = helper.make_graph(inner.nodes, "body", [], [out], inner.initializers)
    net.node("If", net.constant("yes", np.array(True)), then_branch=body, else_branch=body)
    kernel = net.rng.normal(size=(8, 16, 3, 3)).astype(np.float32)
    net_at = net.at
    net.nodes.append(
        helper.make_node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(kernel, "k"))
    )
    net.node("Conv", net_at, "k")
    net.bn(8)
    proto = net.model()
    path = tmp_path / "net.onnx"
    onnx.save(
        proto,
        path,
        save_as_external_data=True,
        location="net.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    model = onnx_ir.load(path)
    held = [node.attributes["value"].value for node in model.graph if node.op_type == "Constant"]
    before = bnfold.inspect(model)
    assert [isinstance(tensor, onnx_ir.ExternalTensor) for tensor in held] == [True]
    constants = [node for node in model.graph if node.op_type == "Constant"]
    assert constants[0].attributes["value"].value is held[0]
    assert FoldPass()(model).report == before
    assert before.removed == 3
    loaded = onnx_ir.external_data.load_to_model(model)
    assert_same(onnx.load(path), onnx_ir.to_proto(loaded), SHAPE)


@pytest.mark.parametrize("where", ["last_w", "conv_w"])
def test_lazy_tensors_are_asked_when_they_are_needed(where: str) -> None:
    proto = sketch().model()
    model = onnx_ir.from_proto(proto)
    value = model.graph.initializers[where]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    value.const_value = lazy = Counted(array, where)
    assert FoldPass()(model).report.removed == 2
    after = model.graph.initializers.get(where)
    if where == "last_w":
        assert after is not None
        assert after.const_value is lazy
        assert lazy.asked == 0
    else:
        assert lazy.asked > 0
    assert_same(proto, onnx_ir.to_proto(model), SHAPE)


def test_what_a_lazy_tensor_becomes_is_lazy_as_well() -> None:
    net = Sketch(1, 32, 8, 8)
    net.conv(32, 32)
    net.bn(32)
    proto = net.model()
    model = onnx_ir.from_proto(proto)
    value = model.graph.initializers["conv_w"]
    assert value.const_value is not None
    value.const_value = Counted(value.const_value.numpy().copy(), "conv_w")
    FoldPass()(model)
    made = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    assert [type(tensor) for tensor in made if tensor.nbytes > 4096] == [onnx_ir.LazyTensor]
    assert_same(proto, onnx_ir.to_proto(model), (1, 32, 8, 8))
