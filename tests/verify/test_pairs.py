"""Every pair of kinds, what is refused, and where there is nothing to go by but rounding."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

import bnfold
from bnfold import ExampleInputError, UsageError
from bnfold.verify import verdict
from tests.conformance.three_frontends import Network, caffe_files, node, onnx_model, weights_of
from tests.frontends.torch.support import build, image

NODES = [
    node("c1", "conv", "data", channels=3, out=4, kernel=3, pad=1),
    node("b1", "bn", "c1", channels=4),
    node("r1", "relu", "b1"),
    node("d1", "deconv", "r1", channels=4, out=6, kernel=2, stride=2, group=2),
    node("b2", "bn", "d1", channels=6),
    node("g", "global mean", "b2"),
    node("f", "flatten", "g"),
    node("l", "linear", "f", channels=6, out=5),
]
SHAPE = (2, 3, 8, 8)
X = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, tuple[Any, Any]]:
    """One network as each kind, and its fold."""
    folder = tmp_path_factory.mktemp("pairs")
    weights = weights_of(NODES)
    module, proto = Network(NODES, weights), onnx_model(NODES, weights, SHAPE)
    files = caffe_files(NODES, weights, SHAPE, folder)
    program = torch.export.export(module, (X,))
    folded = bnfold.fold(files, output=folder / "folded.prototxt").model
    onnx.save(proto, folder / "net.onnx")
    return {
        "module": (module, bnfold.fold(module, X).model),
        "program": (program, bnfold.fold(program).model),
        "onnx": (proto, bnfold.fold(proto).model),
        "onnx file": (folder / "net.onnx", bnfold.fold(folder / "net.onnx").model),
        "caffe": (files, (folded, Path(folded).with_suffix(".caffemodel"))),
    }


KINDS = ["module", "program", "onnx", "onnx file", "caffe"]


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_every_pair(models, first, second):
    inputs = X if first == second == "module" else None
    result = bnfold.verify(models[first][0], models[second][1], inputs)
    assert result.equal, str(result)
    assert result.truth == "float64"
    one_kind = first.split()[0] == second.split()[0]
    assert bool(result.layers) == one_kind
    assert one_kind or any("Outputs alone" in note for note in result.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_the_same_network(models, kind, tmp_path):
    weights = weights_of(NODES)
    weights["d1"][0][2, 1] *= 1.02
    other = {
        "module": lambda: Network(NODES, weights),
        "program": lambda: torch.export.export(Network(NODES, weights), (X,)),
        "onnx": lambda: onnx_model(NODES, weights, SHAPE),
        "onnx file": lambda: onnx_model(NODES, weights, SHAPE),
        "caffe": lambda: caffe_files(NODES, weights, SHAPE, tmp_path),
    }[kind]()
    result = bnfold.verify(models["onnx"][0], other)
    assert not result.equal and not result.outputs[0].equal
    if kind.startswith("onnx"):
        assert result.parting == "d1"


def test_a_module_without_inputs():
    with pytest.raises(ExampleInputError):
        bnfold.verify(nn.Linear(2, 2).eval(), nn.Linear(2, 2).eval())


def test_other_inputs_or_outputs(models):
    two = build(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), dtype=torch.float32)
    with pytest.raises(UsageError, match="output"):
        bnfold.verify(models["module"][0], two, X)
    narrow = onnx_model(NODES[:1], weights_of(NODES[:1]), (1, 3, 4, 4))
    with pytest.raises(UsageError, match="input"):
        bnfold.verify(models["onnx"][0], narrow)


def test_a_folded_model_that_raises(models):
    broken = copy.deepcopy(models["module"][1])
    broken.l = nn.Linear(7, 5)
    result = bnfold.verify(models["module"][0], broken, X)
    assert not result.equal and "raised RuntimeError" in result.notes[0]


# ------------------------------------------------------------- what is no fault


def test_a_model_that_draws_random_numbers_proves_nothing():
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * np.random.default_rng().uniform(1.0, 2.0)

    result = bnfold.verify(Net().eval(), Net().eval(), image(2, 3, dtype=torch.float32))
    assert any("differs from itself" in note for note in result.notes)
    assert result.verdict == "not proven" and not result.equal
    assert result.summary.startswith("not proven")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_outputs_of_all_sorts(dtype):
    """Saturated, constant, tied, not finite, integers, empty."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = self.bn(self.conv(x))
            return (
                torch.softmax(50 * y.mean((2, 3)), 1),
                y.argmax(1),
                torch.full_like(y, torch.inf),
                torch.zeros_like(y) / 0,
                y[:, :0],
                y > 0,
                y.mean(),
            )

    torch.manual_seed(0)
    model = build(Net(), dtype=dtype)
    x = image(2, 3, 6, 6, dtype=dtype)
    result = bnfold.verify(model, bnfold.fold(model, x).model, x)
    assert result.equal, str(result)


def test_a_fold_by_other_means_is_judged_by_its_outputs():
    """The same function, every tensor stored in another way than ours."""
    torch.manual_seed(0)
    model = build(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)),
        dtype=torch.float32,
    )
    x = image(2, 3, 5, 5, dtype=torch.float32)
    folded = bnfold.fold(model, x).model
    for tensor in (folded[0].weight, folded[0].bias):
        tensor.data *= 8.0
    folded[3].weight.data /= 8.0
    result = bnfold.verify(model, folded, x)
    assert result.equal, str(result)
    assert not result.layers and any("only outputs" in note for note in result.notes)


def test_k_grows_with_the_number_of_comparisons():
    assert verdict.factor(1) < verdict.factor(10**5) < 8


def test_flips_of_integers():
    assert verdict.allowed_flips(0.0, 1, 5.0) == 0.0
    assert verdict.allowed_flips(0.5, 1, 5.0) == 1.0
    assert verdict.allowed_flips(1e-4, 10**6, 5.0) == pytest.approx(1.5e-4, rel=0.01)
    near = 1e-6  # the probability that a number is nearly tied, where no draw flips any
    allowed = [verdict.allowed_flips(0.0, n, 5.0, near) * n for n in (1, 10, 10**3, 10**6, 10**9)]
    assert allowed[:3] == [0, 0, 1] and 4 < allowed[3] < 10 and 1000 < allowed[4] < 1300


def test_an_operator_that_only_float64_knows_wrongly_is_not_believed(monkeypatch):
    """Both models agree, and float64 says something else: then float64 is wrong."""
    from bnfold.frontends.onnx import run_ops

    monkeypatch.setitem(run_ops.TABLE, "Relu", lambda node, x, opset: x[0].abs())
    weights = weights_of(NODES)
    proto = onnx_model(NODES, weights, SHAPE)
    result = bnfold.verify(proto, bnfold.fold(proto).model)
    assert result.truth == "nudged" and result.outputs[0].equal, str(result)


def test_quantised_weights_and_an_if_run_in_float64():
    q = np.random.default_rng(0).integers(-90, 90, (4, 3, 1, 1)).astype(np.int8)
    constants = {
        "q": q,
        "s": np.array([0.01, 0.02, 0.03, 0.04], np.float32),
        "g": np.array([1.0, -0.5, 2.0, 1.5], np.float32),
        "z": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        "one": np.ones(4, np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "g", "z", "z", "one"], ["y"]),
    ]
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "q",
        [tensor("x", onnx.TensorProto.FLOAT, [1, 3, 4, 4])],
        [tensor("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = bnfold.verify(model, bnfold.fold(model).model)
    assert result.equal and result.truth == "float64", str(result)


def test_no_framework_outside_of_the_frontends():
    code = (
        "import sys, bnfold.verify.api, bnfold.verify.thorough, bnfold.verify.render\n"
        "print(*{'torch', 'onnx', 'onnxruntime', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# ------------------------------------------------------------------- the wrong way round


@pytest.mark.parametrize("kind", KINDS)
def test_a_fold_and_its_original_the_other_way_round(models, kind):
    original, folded = models[kind]
    inputs = X if kind == "module" else None
    result = bnfold.verify(folded, original, inputs)
    assert result.equal and result.parting is None, str(result)
    assert any("the other way round" in note for note in result.notes)
    straight = bnfold.verify(original, folded, inputs)
    assert not any("the other way round" in note for note in straight.notes)


def test_a_fault_that_outputs_hide_is_one_either_way():
    """Behind a ReLU that nothing passes, outputs are what they were."""
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2])

    def model(factor: float) -> onnx.ModelProto:
        constants = {"w": np.eye(2) * factor, "b": [-1e4, -1e4], "v": np.eye(2)}
        nodes = [
            helper.make_node("Gemm", ["x", "w", "b"], ["a"], name="first"),
            helper.make_node("Relu", ["a"], ["r"]),
            helper.make_node("Gemm", ["r", "v"], ["y"], name="last"),
        ]
        tensors = [
            numpy_helper.from_array(np.asarray(array, np.float32), name)
            for name, array in constants.items()
        ]
        graph = helper.make_graph(nodes, "net", [x], [y], tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    for pair in ((1.0, 1e3), (1e3, 1.0)):
        result = bnfold.verify(*map(model, pair))
        assert not result.equal and result.parting == "a"
        assert all(output.equal for output in result.outputs)
