"""Windows in float64 are those of ONNX Runtime, where sizes round up, too."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from bnfold.frontends.onnx.read import read_proto
from bnfold.frontends.onnx.run_exact import ExactModel
from tests.frontends.onnx.support import Sketch

UP = {"kernel_shape": [3, 2], "strides": [2, 3], "ceil_mode": 1}
FORMS = [
    ("MaxPool", UP),
    ("MaxPool", {**UP, "pads": [1, 1, 2, 1]}),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [1, 0, 0, 2], "ceil_mode": 1}),
    ("MaxPool", {**UP, "storage_order": 1}),
    ("AveragePool", UP),
    ("AveragePool", {**UP, "pads": [1, 1, 2, 1]}),
    ("AveragePool", {**UP, "pads": [1, 1, 2, 1], "count_include_pad": 1}),
    ("AveragePool", {**UP, "count_include_pad": 1}),
    ("AveragePool", {**UP, "dilations": [2, 3]}),
    ("AveragePool", {"kernel_shape": [2, 3], "dilations": [3, 1], "pads": [1, 0, 0, 2]}),
    ("LpPool", {"kernel_shape": [3, 2], "strides": [2, 3]}),
    ("LpPool", {**UP, "p": 3, "dilations": [2, 1], "pads": [1, 0, 1, 1]}),
    ("LpPool", {"kernel_shape": [3, 2], "auto_pad": "SAME_UPPER", "p": 1}),
    ("GlobalLpPool", {}),
    ("GlobalLpPool", {"p": 3}),
]


@pytest.mark.parametrize("shape", [(2, 3, 10, 9), (1, 2, 7, 8)])
@pytest.mark.parametrize(("op", "attributes"), FORMS)
def test_windows(op, attributes, shape, monkeypatch):
    monkeypatch.setattr(ExactModel, "_by_reference", None)  # of images it would take minutes
    s = Sketch(*shape)
    s.node(op, "x", **attributes)
    model = s.model(opset=19)
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = session.run(None, {"x": x})
    (output,) = ExactModel(read_proto(model)).run([x])
    np.testing.assert_allclose(output.values, expected, atol=1e-5)
