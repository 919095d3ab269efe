"""Ops that shared weights, and got weights of their own with one content, share these."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import bnfold
from tests.conformance.onnx_run import error, feeds, run
from tests.conformance.onnx_sketch import Sketch


def block_on_three_levels(channels, *, apart=False):
    """A RepVGG block, called three times; `apart` says that one identity is scaled otherwise."""
    s = Sketch(np.float32, opset=13)
    x = s.input(1, channels, 6, 6)
    wide = s.tensor("wide", s.uniform(channels, channels, 3, 3))
    point = s.tensor("point", s.uniform(channels, channels, 1, 1))
    norms = {name: s.uniform(4, channels, low=0.5, high=1.5) for name in ("a", "b", "i", "other")}
    for level in range(3):
        y = s.node("Tanh", x) if level else x
        parts = {
            "a": s.node("Conv", y, wide, pads=[1] * 4),
            "b": s.node("Conv", y, point),
            "other" if apart and level == 2 else "i": y,
        }
        made = []
        for name, part in parts.items():
            names = [f"{name}{k}" for k in range(4)]
            if names[0] not in {tensor.name for tensor in s.initializers}:
                for constant, values in zip(names, norms[name], strict=True):
                    s.tensor(constant, values)
            made.append(s.node("BatchNormalization", part, *names))
        x = s.node("Relu", s.node("Add", s.node("Add", *made[:2]), made[2]))
    s.output(x)
    return s.model()


def weights(model):
    return [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4]


@pytest.mark.parametrize("merge", ["auto", "never"])
@pytest.mark.parametrize("channels", [4, 24])  # the larger ones are computed when they are written
def test_what_all_calls_got_alike_is_one(channels, merge, tmp_path):
    model = block_on_three_levels(channels)
    folded, report = bnfold.fold(model, merge=merge)
    assert report.kept == 0
    assert [list(w.dims) for w in weights(folded)].count([channels, channels, 3, 3]) == 1
    assert len(weights(folded)) == (1 if merge == "auto" else 2)
    for feed in feeds(model):
        assert error(run(model, feed), run(folded, feed)) < 1e-4
    assert bnfold.fold(folded, merge=merge).model == folded
    onnx.save(model, tmp_path / "model.onnx")
    written, _ = bnfold.fold(tmp_path / "model.onnx", output=tmp_path / "out.onnx", merge=merge)
    assert len(weights(onnx.load(written))) == len(weights(folded))


def test_what_one_call_got_otherwise_is_its_own():
    model = block_on_three_levels(4, apart=True)
    folded, report = bnfold.fold(model)
    assert report.kept == 0
    assert len(weights(folded)) == 2
    for feed in feeds(model):
        assert error(run(model, feed), run(folded, feed)) < 1e-4


def test_equal_weights_of_a_model_that_shared_none_stay():
    s = Sketch(np.float32, opset=13)
    x = s.input(1, 4, 6, 6)
    kernel = s.uniform(4, 4, 3, 3)
    for name in "ab":
        s.tensor(f"{name}_w", kernel)
        x = s.node("Relu", s.bn(s.node("Conv", x, f"{name}_w"), 4, name=name, gamma=[2.0] * 4))
    s.output(x)
    folded, _ = bnfold.fold(s.model())
    assert len(weights(folded)) == 2
