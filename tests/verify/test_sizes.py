"""What leaves sizes open is run on two of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.export import Dim

import bnfold
from bnfold.verify.inputs import odd_size, other_size


def pooled(head: list[onnx.NodeProto], size: int | str, batch: int | str = 1) -> onnx.ModelProto:
    """Conv and what follows, on images of that size."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "axes": np.array([2, 3]),
        "count": np.float32(6 * 6),
        "last": np.array([-1]),
        "fifth": np.array([5]),
        "one": np.array([1]),
    }
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4), *head]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def reshaped() -> onnx.ModelProto:
    """A BatchNorm that folds only where the sizes are known, beside one that always does."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.uniform(0.5, 2.0, shape).astype(np.float32)

    constants = {name: draw(6) for name in ("g", "b", "m", "v", "g2", "b2", "m2", "v2")}
    constants |= {"w1": draw(4, 6), "w2": draw(6, 5), "w3": draw(4, 6)}
    whole = {"start": [0], "end": [2], "six": [6], "flat": [-1, 6]}
    constants |= {name: np.array(numbers) for name, numbers in whole.items()}
    nodes = [
        helper.make_node("MatMul", ["z", "w3"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "g2", "b2", "m2", "v2"], ["u"]),
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "start", "end"], ["front"]),
        helper.make_node("Concat", ["front", "six"], ["back"], axis=0),
        helper.make_node("Reshape", ["a", "back"], ["a2"]),
        helper.make_node("Reshape", ["a2", "flat"], ["r"]),
        helper.make_node("BatchNormalization", ["r", "g", "b", "m", "v"], ["n"]),
        helper.make_node("Reshape", ["n", "back"], ["q"]),
        helper.make_node("MatMul", ["q", "w2"], ["y"]),
    ]
    shapes = {"x": ["n", "s", "c"], "z": [3, 4]}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "u")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("clip", ["auto", "never"])
@pytest.mark.parametrize(("shapes", "removed"), [(None, 1), ({"x": (2, 3, 4)}, 2)])
def test_a_fold_with_shapes_or_without_is_equal_on_shapes(clip, shapes, removed):
    """What is stored how is another thing where nobody gave the fold the shapes."""
    model = reshaped()
    folded, report = bnfold.fold(model, shapes, clip=clip)
    assert report.removed == removed
    result = bnfold.verify(model, folded, {"x": (2, 3, 4)})
    assert result.equal and result.layers, str(result)
    folded.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(
            numpy_helper.to_array(folded.graph.initializer[0]) * np.float32(1.001),
            folded.graph.initializer[0].name,
        )
    )
    assert not bnfold.verify(model, folded, {"x": (2, 3, 4)}).equal


def test_shapes_that_a_model_does_not_take_are_said_to_be_to_blame():
    model = reshaped()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "c"
    with pytest.raises(bnfold.ExampleInputError, match="give other shapes") as caught:
        bnfold.verify(model, model, {"x": (2, 3, 5)})
    assert "inputs={'x': (2, 3, 5)}, or --input x:2x3x5" in caught.value.next_step


MEAN = [helper.make_node("GlobalAveragePool", ["c"], ["y"])]
SAME = {
    "a sum by a number": [
        helper.make_node("ReduceSum", ["c", "axes"], ["s"]),
        helper.make_node("Div", ["s", "count"], ["y"]),
    ],
    "a window of that size": [
        helper.make_node("AveragePool", ["c"], ["p"], kernel_shape=[6, 6]),
        helper.make_node("Identity", ["p"], ["y"]),
    ],
}


@pytest.mark.parametrize("what", SAME)
def test_onnx_models_that_are_equal_for_one_size_only(what):
    shapes = {"x": (1, 3, 6, 6)}
    fixed = pooled(MEAN, 6), pooled(SAME[what], 6)
    assert bnfold.verify(*fixed).equal
    result = bnfold.verify(pooled(MEAN, "S"), pooled(SAME[what], "S"), shapes)
    assert not result.equal, str(result)
    again = bnfold.verify(pooled(MEAN, "S"), pooled(MEAN, "S"), shapes)
    assert again.equal and again.samples == 4


def test_a_size_that_the_original_does_not_take():
    cut = [helper.make_node("Reshape", ["c", "shape"], ["y"])]
    model = pooled(cut, "S")
    shape = numpy_helper.from_array(np.array([1, 4 * 6 * 6]), "shape")
    model.graph.initializer.append(shape)
    result = bnfold.verify(model, model, {"x": (1, 3, 6, 6)})
    assert result.equal and result.samples == 2, str(result)


class Picks(nn.Module):
    """A channel more or less, which is the same for one batch only."""

    def __init__(self, *, fixed: bool) -> None:
        super().__init__()
        self.conv, self.fixed = nn.Conv2d(3, 4, 3), fixed

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.sum(0) / (4.0 if self.fixed else y.shape[0])


def test_exported_programs():
    x = torch.randn(4, 3, 6, 6)
    shapes = {"x": {0: Dim("batch", min=2, max=64)}}
    torch.manual_seed(0)
    model, other = Picks(fixed=False).eval(), Picks(fixed=True).eval()
    other.load_state_dict(model.state_dict())
    for dynamic, equal, samples in ((None, True, 2), (shapes, False, 2)):
        one = torch.export.export(model, (x,), dynamic_shapes=dynamic)
        two = torch.export.export(other, (x,), dynamic_shapes=dynamic)
        assert bnfold.verify(one, two).equal is equal
        result = bnfold.verify(one, one)
        assert result.equal and result.samples == samples + (dynamic is not None)


def test_another_size():
    assert [other_size(n, 0) for n in (1, 2, 64)] == [2, 3, 65]
    assert [other_size(n, 2) for n in (1, 7, 32, 224, 65)] == [2, 14, 64, 112, 130]


def test_an_odd_size():
    """Odd, and another one for the next axis, so that a square does not stay one."""
    assert [odd_size(n, 0) for n in (1, 2, 64)] == [3, 1, 1]
    assert [odd_size(n, 2) for n in (1, 6, 7, 32, 224)] == [3, 7, 9, 41, 169]
    assert [odd_size(n, 3) for n in (1, 6, 7, 32, 224)] == [3, 9, 11, 49, 281]


def scaled(by: list[onnx.NodeProto]) -> onnx.ModelProto:
    """A convolution, times a number that is computed from the shape."""
    model = pooled([*by, helper.make_node("Mul", ["c", "f"], ["y"])], "H", "N")
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "W"
    for axis in range(4):
        model.graph.initializer.append(numpy_helper.from_array(np.array(axis), f"axis{axis}"))
    return model


def length(axis: int, name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Shape", ["x"], [f"{name}_shape"]),
        helper.make_node("Gather", [f"{name}_shape", f"axis{axis}"], [f"{name}_long"]),
        helper.make_node("Cast", [f"{name}_long"], [name], to=TensorProto.FLOAT),
    ]


ONE = [*length(2, "h"), helper.make_node("Div", ["h", "h"], ["f"])]
SEEMS_ONE = {
    "H / W": [*length(2, "h"), *length(3, "u"), helper.make_node("Div", ["h", "u"], ["f"])],
    "2 floor(H / 2) / H": [
        *length(2, "h"),
        helper.make_node("Div", ["h_long", "axis2"], ["half"]),
        helper.make_node("Mul", ["half", "axis2"], ["even"]),
        helper.make_node("Cast", ["even"], ["e"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["e", "h"], ["f"]),
    ],
    "min(N, 2) / 2": [
        *length(0, "n"),
        helper.make_node("Cast", ["axis2"], ["two"], to=TensorProto.FLOAT),
        helper.make_node("Min", ["n", "two"], ["least"]),
        helper.make_node("Div", ["least", "two"], ["f"]),
    ],
}


@pytest.mark.parametrize("what", SEEMS_ONE)
def test_what_is_equal_for_even_squares_alone(what):
    shapes = {"x": (2, 3, 6, 6)}
    assert bnfold.verify(scaled(ONE), scaled(ONE), shapes).equal
    result = bnfold.verify(scaled(ONE), scaled(SEEMS_ONE[what]), shapes)
    assert not result.equal, str(result)
