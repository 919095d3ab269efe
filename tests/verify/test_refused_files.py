"""A fold that ONNX Runtime refuses, where it runs the original, is not equal: whatever it says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from tests.conformance.onnx_sketch import Sketch

# What float64 runs, and ONNX Runtime does not.


def without_the_bias_of_a_gemm(model: onnx.ModelProto) -> None:
    del model.graph.node[0].input[2]


def with_an_attribute_that_nobody_knows(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("speed", 2))


def with_one_dtype_more(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "b_b":
            wide = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


def of_an_opset_to_come(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 999


def of_an_ir_to_come(model: onnx.ModelProto) -> None:
    model.ir_version = 999


def with_another_type_of_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32


BREAKERS = [
    without_the_bias_of_a_gemm, with_an_attribute_that_nobody_knows, with_one_dtype_more,
    of_an_opset_to_come, of_an_ir_to_come, with_another_type_of_output,
]  # fmt: skip


def gemms(opset: int = 9) -> onnx.ModelProto:
    s = Sketch(np.float32, opset=opset)
    options = {"broadcast": 1} if opset < 7 else {}
    x = s.input(2, 6)
    weight = s.tensor("a_w", s.uniform(6, 5))
    x = s.node("Gemm", x, weight, s.tensor("a_b", np.zeros(5, np.float32)), name="a", **options)
    s.output(s.gemm(x, 5, 3, name="b", **options))
    return s.model()


@pytest.mark.parametrize("broken", BREAKERS)
def test_a_file_that_onnx_runtime_refuses_is_not_equal(broken: Callable, tmp_path):
    model, other = gemms(), gemms()
    broken(other)
    onnx.save(model, tmp_path / "model.onnx")
    onnx.save(other, tmp_path / "other.onnx")
    for first, second in (
        (model, other),
        (str(tmp_path / "model.onnx"), str(tmp_path / "other.onnx")),
    ):
        result = bnfold.verify(first, second)
        assert result.verdict == "not equal"
        assert any("cannot be run where" in note for note in result.notes)
        assert any("ONNXRuntimeError" in note for note in result.notes)


def test_the_command_says_so(tmp_path):
    other = gemms()
    without_the_bias_of_a_gemm(other)
    onnx.save(gemms(), tmp_path / "model.onnx")
    onnx.save(other, tmp_path / "other.onnx")
    command = [sys.executable, "-m", "bnfold", "verify", "model.onnx", "other.onnx"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "input size 2 not in range" in " ".join((done.stdout + done.stderr).split())


def test_where_the_original_is_refused_too_float64_decides():
    model, other = gemms(6), gemms(6)
    result = bnfold.verify(model, other)
    assert result.equal
    assert any("float64 alone" in note for note in result.notes)
    (tensor,) = (t for t in other.graph.initializer if t.name == "a_w")
    tensor.CopyFrom(numpy_helper.from_array(1.01 * numpy_helper.to_array(tensor), "a_w"))
    assert not bnfold.verify(model, other).equal
