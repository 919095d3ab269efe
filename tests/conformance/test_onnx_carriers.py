"""A path, a ModelProto and an onnx_ir.Model of the same network come back as what they were, with
the same nodes and the same numbers; so does a file with external data.

Each pattern is carried in one way, and every op, opset, dtype and kind of pattern in each.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest

import bnfold
from tests.conformance.onnx_nodes import interface, op_types
from tests.conformance.onnx_patterns import Pattern, load
from tests.conformance.onnx_run import error, random_feed, run
from tests.conformance.test_onnx_patterns import outcomes
from tests.pairwise import pairwise

PATTERNS = load()
_SMALL = 100
"""Bytes. ONNX Runtime does not read the shape of a Reshape from another file."""


def traits(pattern: Pattern) -> set[object]:
    model = pattern.build()
    dtypes = {tensor.data_type for tensor in model.graph.initializer}
    sort = (pattern.draw.__module__, pattern.clip, pattern.dtype, pattern.runs)
    return {*op_types(model), ("opset", pattern.opset), ("ir", pattern.ir), sort, *dtypes}


CARRIED = pairwise(list(PATTERNS.values()), ("file", "external data", "onnx_ir"), traits)


def each_pattern(carrier: str) -> pytest.MarkDecorator:
    carried = [pattern for pattern, name in CARRIED if name == carrier]
    return pytest.mark.parametrize("pattern", carried, ids=lambda pattern: pattern.name)


@pytest.fixture
def path(tmp_path, pattern):
    path = tmp_path / "model.onnx"
    onnx.save(pattern.build(), path)
    return path


@each_pattern("file")
def test_a_file(pattern: Pattern, path):
    before = path.read_bytes()
    expected, report = bnfold.fold(pattern.build(), clip=pattern.clip)
    output, of_file = bnfold.fold(path, clip=pattern.clip)
    assert output == path.with_name("model.folded.onnx")
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.folded.onnx", "model.onnx"]
    assert outcomes(of_file) == outcomes(report)
    assert_same(pattern, expected, onnx.load(output))


@each_pattern("external data")
def test_external_data(pattern: Pattern, tmp_path):
    path, output = tmp_path / "model.onnx", tmp_path / "out" / "small.onnx"
    output.parent.mkdir()
    model = pattern.build()
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=_SMALL,
    )
    expected, report = bnfold.fold(pattern.build(), clip=pattern.clip)
    written, of_file = bnfold.fold(path, output=output, clip=pattern.clip)
    assert written == output
    assert outcomes(of_file) == outcomes(report)
    assert_same(pattern, expected, onnx.load(output))
    if pattern.runs:  # ONNX Runtime reads the external data itself
        run(str(output), random_feed(model, pattern.shapes))


@each_pattern("onnx_ir")
def test_an_onnx_ir_model(pattern: Pattern):
    model = onnx_ir.from_proto(pattern.build())
    before = onnx_ir.to_proto(model).SerializeToString(deterministic=True)
    expected, report = bnfold.fold(pattern.build(), clip=pattern.clip)
    folded, of_model = bnfold.fold(model, clip=pattern.clip)
    assert isinstance(folded, onnx_ir.Model)
    assert onnx_ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert outcomes(of_model) == outcomes(report)
    assert_same(pattern, expected, onnx_ir.to_proto(folded))


def assert_same(pattern: Pattern, one: onnx.ModelProto, other: onnx.ModelProto) -> None:
    onnx.checker.check_model(other, full_check=True)
    assert op_types(one) == op_types(other)
    assert [v.name for v in other.graph.input] == [v.name for v in one.graph.input]
    assert interface(other)[1] == interface(one)[1]
    if pattern.runs:
        feed = random_feed(one, pattern.shapes)
        epsilon = float(np.finfo(pattern.dtype).eps)
        assert error(run(one, feed), run(other, feed)) <= 4 * epsilon
