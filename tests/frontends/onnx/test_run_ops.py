"""Operators in float64 compute what ONNX Runtime does, where the reference evaluator does not."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from bnfold.frontends.onnx.read import read_proto
from bnfold.frontends.onnx.run_exact import ExactModel
from tests.frontends.onnx.support import Sketch

SCALES = np.array([1, 1, 2, 3], np.float32)


@pytest.mark.parametrize(
    ("opset", "op", "constants", "attributes"),
    [
        (7, "Upsample", [], {"scales": SCALES.tolist()}),
        (9, "Upsample", [SCALES], {}),
        (10, "Resize", [SCALES], {}),
        (11, "Resize", [SCALES[:0], SCALES], {"coordinate_transformation_mode": "asymmetric"}),
    ],
)
def test_lines_that_begin_at_a_pixel(opset, op, constants, attributes, monkeypatch):
    monkeypatch.setattr(ExactModel, "_by_reference", None)  # it does not know the oldest form
    s = Sketch(2, 3, 4, 5)
    names = [s.constant(f"k{at}", constant) for at, constant in enumerate(constants)]
    s.node(op, "x", *names, mode="linear", **attributes)
    model = s.model(opset=opset)
    x = np.random.default_rng(2).normal(size=(2, 3, 4, 5)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = session.run(None, {"x": x})
    (output,) = ExactModel(read_proto(model)).run([x])
    np.testing.assert_allclose(output.values, expected, atol=1e-5)
