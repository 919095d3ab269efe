"""Whatever a model returns is compared: tensors, numbers, texts, None, however they are nested."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import bnfold


@dataclasses.dataclass
class Answer:
    """What a detector may return."""

    scores: Any
    label: Any


WORDS = ("cat", "dog", "cow", "pig")


def top(y: Tensor) -> int:
    return int(y.mean((0, 2, 3)).argmax())


RETURNED = {
    "a number": lambda y: float(y.mean()),
    "an index": top,
    "a text": lambda y: WORDS[top(y)],
    "a truth": lambda y: bool(y.mean((0, 2, 3))[2] > 2.0),
    "None and a number": lambda y: [1.0, None, float(y.sum())],
    "a dictionary": lambda y: {"a": {"b": [y.sum().item(), "x"]}, "c": None},
    "a dataclass": lambda y: Answer(y.mean((2, 3)), Answer(None, WORDS[top(y)])),
    "a tuple of all": lambda y: (y, 3, (True, {"k": y.amax().item()})),
    "an array": lambda y: y.mean((2, 3)).numpy(),
    "a sparse tensor": lambda y: y.to_sparse(),
}


class Net(nn.Module):
    """Conv, BatchNorm, and an answer."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self.answer = answer
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        return RETURNED[self.answer](self.bn(self.conv(x)))


def merged(model: Net) -> Net:
    """The two made one by hand."""
    folded = copy.deepcopy(model)
    bn = model.bn
    factor = bn.weight / (bn.running_var + bn.eps).sqrt()
    with torch.no_grad():
        folded.conv.weight.mul_(factor[:, None, None, None])
        folded.conv.bias.copy_((model.conv.bias - bn.running_mean) * factor + bn.bias)
    folded.bn = nn.Identity()
    return folded


@pytest.mark.parametrize("answer", RETURNED)
def test_modules(answer):
    torch.manual_seed(0)
    model = Net(answer).eval()
    model.bn.running_mean.normal_()
    model.bn.running_var.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, 9, 9)
    folded = merged(model)
    result = bnfold.verify(model, folded, x)
    assert result.equal and result.outputs, str(result)
    folded.conv.bias.data[2] += 4.0
    result = bnfold.verify(model, folded, x, layers=False)
    assert result.verdict == "not equal", str(result)


@pytest.mark.parametrize(
    "quotient",
    [
        lambda y: y.amax() / y,
        lambda y: 1.0 / (y - y.mean()),
        lambda y: torch.log(y.abs()) / y,
        lambda y: torch.tan(y * 50.0),
        lambda y: y.mean((2, 3)) / y.std((2, 3)),
        lambda y: y / (y.roll(1, 3) - y),
    ],
)
def test_a_division_by_what_comes_near_0(monkeypatch, quotient):
    monkeypatch.setitem(RETURNED, "a quotient", quotient)
    for seed in range(4):
        torch.manual_seed(seed)
        model = Net("a quotient").eval()
        model.bn.running_mean.normal_()
        x = torch.randn(2, 3, 20, 20)
        folded = merged(model)
        result = bnfold.verify(model, folded, x)
        assert result.equal, str(result)
        folded.conv.bias.data[2] += 0.01
        assert not bnfold.verify(model, folded, x).equal


def texts(limit: float) -> onnx.ModelProto:
    """A text, a list of tensors and a number per row."""
    constants = {
        "limit": np.float32(limit),
        "yes": np.array(["yes"], dtype=object),
        "no": np.array(["no"], dtype=object),
    }
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=1),
        helper.make_node("Greater", ["m", "limit"], ["is"]),
        helper.make_node("Where", ["is", "yes", "no"], ["text"]),
        helper.make_node("SplitToSequence", ["x"], ["parts"], axis=1, keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "texts",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4])],
        [
            helper.make_tensor_value_info("text", TensorProto.STRING, [3, 1]),
            helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_onnx_texts_and_sequences():
    assert bnfold.verify(texts(0.0), texts(0.0)).equal
    result = bnfold.verify(texts(-10.0), texts(10.0))
    assert result.verdict == "not equal"
    assert [o.name for o in result.outputs if not o.equal] == ["text"], str(result)
    assert len(result.outputs) == 6  # how many parts there are, and each of them
