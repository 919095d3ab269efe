"""What every fold with merges owes: asserted of one model, drawn in float32 and in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

import bnfold
from bnfold.report import FoldReport
from tests.conformance.onnx_run import error, feeds, run, run_exactly
from tests.conformance.onnx_sketch import Sketch
from tests.property.networks.run_onnx import run_onnx

Draw = Callable[[Sketch], None]


def drawn(draw: Draw, dtype: Any = np.float64, **options: Any) -> onnx.ModelProto:
    """The model that a function draws."""
    sketch = Sketch(dtype, **options)
    draw(sketch)
    return sketch.model()


def folded(draw: Draw, **options: Any) -> tuple[onnx.ModelProto, FoldReport]:
    """The model in float64, folded with merges; whatever is owed is asserted."""
    for dtype in (np.float32, np.float64):
        model = drawn(draw, dtype, **options)
        made, report = bnfold.fold(model, clip="never")
        assert_owed(model, made, drawn(draw, dtype, **options))
        never, told = bnfold.fold(model, merge="never", clip="never")
        assert not told.merged
        assert_same(model, never)
        if not report.merged:
            assert made == never and report.removed == told.removed
        twice, again = bnfold.fold(made, clip="never")
        assert (again.removed, again.merged) == (0, ())
        assert twice == made
    return made, report


def assert_owed(model: onnx.ModelProto, made: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Everything but how many nodes are left."""
    assert model == original
    onnx.checker.check_model(made, full_check=True)
    assert given(made) == given(model)
    assert [*made.graph.output] == [*model.graph.output]
    assert_tidy(made.graph)
    assert_same(model, made)


def assert_tidy(graph: onnx.GraphProto) -> None:
    """Nothing is named twice, and no constant and no value that is described is dead."""
    read = {name for node in graph.node for name in names_read(node)}
    read |= {value.name for value in graph.output}
    initializers = [tensor.name for tensor in graph.initializer]
    made = [name for node in graph.node for name in node.output if name]
    inputs = [value.name for value in graph.input if value.name not in initializers]
    known = [*initializers, *made, *inputs]
    assert len(known) == len(set(known))
    assert {*initializers} <= read
    assert {value.name for value in graph.value_info} <= {*known}
    named = [node.name for node in graph.node if node.name]
    assert len(named) == len(set(named))


def names_read(node: onnx.NodeProto) -> set[str]:
    """By a node, and inside of it."""
    inner = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    read = {name for graph in inner for each in graph.node for name in names_read(each)}
    read |= {value.name for graph in inner for value in graph.output}
    return read | {*node.input}


def assert_same(model: onnx.ModelProto, made: onnx.ModelProto) -> None:
    """Both compute the same: in float64 to rounding, in ONNX Runtime as far as float32 goes."""
    for feed in feeds(model, {"N": 3, "H": 7, "W": 6}):
        is_double = model.graph.input[0].type.tensor_type.elem_type == TensorProto.DOUBLE
        compute, tolerance = (exactly, 1e-9) if is_double else (run, 2e-5)
        assert error(compute(model, feed), compute(made, feed)) < tolerance


def exactly(model: onnx.ModelProto, feed: Any) -> list[Any]:
    """In float64."""
    if any(node.op_type == "ConvTranspose" for node in model.graph.node):
        return [*run_onnx(model, feed).values()]
    return run_exactly(model, feed)


def ops(model: onnx.ModelProto) -> list[str]:
    """The operators, in order."""
    return [node.op_type for node in model.graph.node]


def given(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs, without initializers: before IR version 4 those have to be inputs too."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


# -------------------------------------------------------------------- drawing

X = (2, 4, 6, 6)


def two(s: Sketch, x: str = "", *, names: str = "ab", **options) -> list[str]:
    """Two 3x3 convolutions of one tensor, or what the options say."""
    x = x or s.input(*X)
    settings = {"kernel": 3, "pad": 1} | options
    return [s.conv(x, 4, 4, name=name, **settings) for name in names]


def added(s: Sketch, *parts: str, name: str = "sum", op: str = "Add") -> str:
    return s.node(op, *parts, name=name)
