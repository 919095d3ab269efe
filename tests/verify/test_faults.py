"""Faults are planted in right folds, one at a time, and all are found."""

from __future__ import annotations

import copy
import random

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

import bnfold
from bnfold.verify import VerifyResult
from tests.frontends.torch.support import build, image


class Block(nn.Module):
    """Pre-activation, its second ReLU in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(channels), nn.ReLU()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.relu2(self.bn2(self.conv1(self.relu1(self.bn1(x))))))


def network() -> nn.Module:
    """Plain, pre-activation, depthwise and grouped transposed convolutions, a head."""
    torch.manual_seed(0)
    model = build(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            Block(8),
            Block(8),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.ConvTranspose2d(8, 12, 4, 2, 1, groups=2, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 5),
        ),
        dtype=torch.float32,
    )
    # Statistics of real values: a weight that reads a dead channel does nothing.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        model.train()(torch.randn(16, 3, 9, 9))
    return model.eval()


X = image(2, 3, 9, 9, dtype=torch.float32)


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    model = network()
    folded, report = bnfold.fold(model, X)
    assert report.kept == 0
    return model, folded


def is_found(result: VerifyResult, parting: str | None) -> None:
    assert not result.equal, str(result)
    if parting is not None:
        assert result.parting == parting, str(result)


def test_the_fold_itself_is_right(pair):
    result = bnfold.verify(*pair, X)
    assert result.equal and result.parting is None, str(result)
    assert result.truth == "float64"
    assert len(result.layers) == 26 and all(layer.own is not None for layer in result.layers)


def weighty(model: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("what", ["relative", "absolute"])
@pytest.mark.parametrize("seed", range(10))
def test_one_weight_of_one_channel_is_off_by_a_thousandth(pair, what, seed):
    model, folded = pair
    wrong = copy.deepcopy(folded)
    generator = random.Random(seed)
    name, module = generator.choice(weighty(wrong))
    flat = module.weight.data.view(-1)
    size = flat.square().mean().sqrt()
    large = [n for n, w in enumerate(flat.tolist()) if abs(w) > size / 10]
    at = generator.choice(large if what == "relative" else range(len(flat)))
    flat[at] += 1e-3 * (flat[at] if what == "relative" else 1.0)
    is_found(bnfold.verify(model, wrong, X), name)


@pytest.mark.parametrize("name", [name for name, _ in weighty(network())])
def test_a_forgotten_bias(pair, name):
    model, folded = pair
    wrong = copy.deepcopy(folded)
    module = wrong.get_submodule(name)
    if module.bias is None or not module.bias.any():
        pytest.skip("the fold gave it none")
    module.bias.data.zero_()
    is_found(bnfold.verify(model, wrong, X), name)


def test_a_wrong_axis_in_a_grouped_transposed_convolution(pair):
    """The factors of the output channels along the input's axis, as if it were a convolution."""
    model, folded = pair
    wrong = copy.deepcopy(folded)
    bn, conv = model[9], wrong[8]
    factor = bn.weight / (bn.running_var + bn.eps).sqrt()
    conv.weight.data = model[8].weight.data * factor.detach()[:8, None, None, None]
    is_found(bnfold.verify(model, wrong, X), "8")


class Overwrites(nn.Module):
    """What a removed BatchNorm leaves behind if nobody takes care of work in place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu_()


def test_an_activation_that_overwrites_what_the_shortcut_still_reads(pair):
    model, folded = pair
    wrong = copy.deepcopy(folded)
    wrong[1].relu1 = Overwrites()
    is_found(bnfold.verify(model, wrong, X), None)


def test_a_fault_in_a_channel_that_never_reaches_the_output():
    """Behind the faulty channel stands a ReLU that is never active there."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False)
    )
    model = build(model, dtype=torch.float32)
    model[1].bias.data[2] = -100.0
    folded = bnfold.fold(model, X).model
    folded[0].weight.data[2, 1, 1, 1] *= 1.01
    with torch.no_grad():
        assert torch.allclose(folded(X), model(X), atol=1e-6)
    result = bnfold.verify(model, folded, X)
    assert all(output.equal for output in result.outputs)
    is_found(result, "0")
    assert next(layer for layer in result.layers if not layer.equal).channel == 2
    assert bnfold.verify(model, folded, X, layers=False).equal


def test_an_exported_program():
    program = torch.export.export(network(), (X,))
    folded, _ = bnfold.fold(program)
    assert bnfold.verify(program, folded).equal
    name = next(name for name in folded.state_dict if name.endswith("conv1.weight"))
    folded.state_dict[name].data[3, 2, 1, 1] *= 1.001
    is_found(bnfold.verify(program, folded), "conv2d_1")


def onnx_network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    arrays = {
        "w1": rng.normal(size=(6, 3, 3, 3)),
        **{f"{n}1": rng.uniform(0.5, 1.5, 6) for n in ("g", "b", "m", "v")},
        "w2": rng.normal(size=(6, 2, 2, 2)),
        **{f"{n}2": rng.uniform(0.5, 1.5, 4) for n in ("g", "b", "m", "v")},
    }
    bn = "BatchNormalization"
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1] * 4),
        helper.make_node(bn, ["c1", "g1", "b1", "m1", "v1"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("ConvTranspose", ["r1", "w2"], ["c2"], strides=[2, 2], group=2),
        helper.make_node(bn, ["c2", "g2", "b2", "m2", "v2"], ["n2"]),
        helper.make_node("Relu", ["n2"], ["y"]),
    ]
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "net",
        [tensor("x", onnx.TensorProto.FLOAT, ["N", 3, 6, 6])],
        [tensor("y", onnx.TensorProto.FLOAT, ["N", 4, 12, 12])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("name", ["w1", "w2"])
@pytest.mark.parametrize("seed", range(5))
def test_one_weight_in_an_onnx_model(name, seed):
    model = onnx_network()
    folded = bnfold.fold(model).model
    assert bnfold.verify(model, folded).equal
    (tensor,) = [t for t in folded.graph.initializer if t.name.startswith(name)]
    array = numpy_helper.to_array(tensor).copy()
    at = int(np.random.default_rng(seed).integers(array.size))
    array.reshape(-1)[at] += 1e-3
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    is_found(bnfold.verify(model, folded), {"w1": "c1", "w2": "c2"}[name])
