"""What is read between pixels in float64 is what ONNX Runtime reads."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from bnfold.frontends.onnx.read import read_proto
from bnfold.frontends.onnx.run_exact import ExactModel
from tests.frontends.onnx.support import Sketch

GRIDS = [
    {},
    {"align_corners": 1, "padding_mode": "border"},
    {"mode": "nearest", "padding_mode": "reflection"},
    {"mode": "cubic"},
]
DEFORMED = [
    ((3, 2), 1, 1, {}),
    ((2, 3), 2, 1, {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ((3, 3), 1, 2, {"dilations": [1, 2], "pads": [1, 1, 1, 1]}),
    ((2, 2), 2, 2, {"strides": [1, 3]}),
]


@pytest.fixture(autouse=True)
def _no_reference(monkeypatch):
    monkeypatch.setattr(ExactModel, "_by_reference", None)  # of images it would take minutes


def check(s: Sketch, *, opset: int = 20) -> None:
    model = s.model(opset=opset)
    shape = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = session.run(None, {"x": x})
    (output,) = ExactModel(read_proto(model)).run([x])
    np.testing.assert_allclose(output.values, expected, atol=2e-5)


def grid(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(-1.4, 1.4, shape).astype(np.float32)


@pytest.mark.parametrize("attributes", GRIDS)
def test_a_grid(attributes):
    s = Sketch(2, 3, 7, 6)
    s.node("GridSample", "x", s.constant("grid", grid(2, 4, 5, 2)), **attributes)
    check(s)


def test_a_grid_in_a_volume():
    s = Sketch(2, 3, 7, 6, 5)
    s.node("GridSample", "x", s.constant("grid", grid(2, 4, 5, 3, 3)))
    check(s)


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize(("kernel", "groups", "parts", "attributes"), DEFORMED)
def test_a_deformed_convolution(kernel, groups, parts, attributes, is_masked):
    """Asymmetric in every axis, so that none can stand for another."""
    s = Sketch(2, 4, 9, 7)
    s.node("Conv", "x", s.weight("like", 1, 4, *kernel), **attributes, name="like")
    sample = np.zeros((2, 4, 9, 7), np.float32)
    size = ExactModel(read_proto(s.model())).run([sample])[0].values.shape[2:]
    s.nodes.clear()
    taps = parts * kernel[0] * kernel[1]
    names = [s.weight("w", 6, 4 // groups, *kernel), s.constant("o", 2 * grid(2, 2 * taps, *size))]
    names.append(s.weight("b", 6))
    if is_masked:
        names.append(s.constant("m", grid(2, taps, *size)))
    s.node("DeformConv", "x", *names, **attributes, group=groups, offset_group=parts)
    check(s)


@pytest.mark.parametrize(("opset", "length"), [(18, 2), (21, 6)])
def test_a_group_norm(opset, length):
    s = Sketch(2, 6, 5, 4)
    names = [s.constant(name, grid(length)) for name in ("scale", "bias")]
    s.node("GroupNormalization", "x", *names, num_groups=2, epsilon=1e-2)
    check(s, opset=opset)
