"""Random ONNX models: what comes out of a fold computes the same, and the report says the truth."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.core.modes import ClipMode
from bnfold.frontends.onnx.nodes import nodes_inside
from tests.conformance.onnx_run import run, run_exactly
from tests.property.onnx_graphs import Builder

BATCHES = 20
PER_BATCH = 10


@pytest.mark.parametrize("batch", range(BATCHES))
def test_folded_models_compute_the_same(batch):
    for seed in range(batch * PER_BATCH, (batch + 1) * PER_BATCH):
        check(seed)


def check(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps, clip = int(rng.integers(4, 22)), get_args(ClipMode)[seed % 3]
    builder = Builder(seed, data_type=onnx.TensorProto.FLOAT)
    model = builder.model(steps)
    onnx.checker.check_model(model, full_check=True)
    folded, report = bnfold.fold(model, clip=clip)
    onnx.checker.check_model(folded, full_check=True)
    left = [node.name for node in folded.graph.node if node.op_type == "BatchNormalization"]
    kept = [i for i in report.items if i.kind == "BatchNormalization" and not i.is_removed]
    assert len(left) == len(kept), (seed, str(report))
    x = rng.normal(size=builder.values["x"]).astype(np.float32)
    for expected, actual in zip(run(model, {"x": x}), run(folded, {"x": x}), strict=True):
        assert same(expected, actual, 1e-3), seed


def same(expected: np.ndarray, actual: np.ndarray, tolerance: float) -> bool:
    scale = np.abs(expected).max(initial=0.0)
    return expected.shape == actual.shape and bool(
        np.allclose(expected, actual, rtol=tolerance, atol=tolerance * scale + 1e-30)
    )


@pytest.mark.parametrize("batch", range(5))
def test_folded_models_compute_the_same_exactly(batch):
    """In float64, where a small mistake does not hide behind rounding; one image at a time."""
    for seed in range(1000 + batch * 10, 1006 + batch * 10):
        builder = Builder(seed, data_type=onnx.TensorProto.DOUBLE, batch=1, wide=False)
        model = builder.model(int(np.random.default_rng(seed).integers(4, 18)))
        folded, _ = bnfold.fold(model, clip=get_args(ClipMode)[seed % 3])
        feed = {"x": np.random.default_rng(seed).normal(size=builder.values["x"])}
        for expected, actual in zip(
            run_exactly(model, feed), run_exactly(folded, feed), strict=True
        ):
            assert same(expected, actual, 1e-9), seed


@pytest.mark.parametrize("batch", range(4))
def test_inside_of_branches(batch):
    """The end of a random model in both branches of an If, and again in branches of these.

    So every weight there has several readers, and each branch must get what is right for it.
    """
    for seed in range(2000 + batch * 10, 2010 + batch * 10):
        check_in_branches(seed)


def check_in_branches(seed: int) -> None:
    rng = np.random.default_rng(seed)
    builder = Builder(seed, data_type=onnx.TensorProto.DOUBLE, batch=1, wide=False)
    plain = builder.model(int(rng.integers(4, 18)))
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    for level in range(int(rng.integers(1, 3))):
        move_into_branches(model.graph, f"_{level}", float(rng.uniform()))
    model.graph.input.append(onnx.helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []))
    onnx.checker.check_model(model, full_check=True)
    folded, report = bnfold.fold(model, clip=get_args(ClipMode)[seed % 3])
    onnx.checker.check_model(folded, full_check=True)
    left = [n for n in nodes_inside(folded.graph) if n.op_type == "BatchNormalization"]
    kept = [i for i in report.items if i.kind == "BatchNormalization" and not i.is_removed]
    assert len(left) == len(kept), (seed, str(report))
    x = rng.normal(size=builder.values["x"])
    expected = run_exactly(plain, {"x": x})
    for flag in (True, False):
        actual = run_exactly(folded, {"x": x, "flag": np.array(flag)})
        for one, other in zip(expected, actual, strict=True):
            assert same(one, other, 1e-9), seed


def move_into_branches(graph: onnx.GraphProto, mark: str, part: float) -> None:
    """The nodes behind some place go into both branches of an If, with names of their own each."""
    at = int(part * len(graph.node))
    inner = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node[at:]]
    made = {name for node in inner for name in node.output}
    outputs = [value for value in graph.output if value.name in made]
    if not outputs:
        return
    branches = {
        f"{branch}_branch": renamed(inner, outputs, made, f"{mark}_{branch}")
        for branch in ("then", "else")
    }
    names = [value.name for value in outputs]
    del graph.node[at:]
    # What is behind reads nothing of it but outputs: it was the end of the list.
    graph.node.append(onnx.helper.make_node("If", ["flag"], names, name=f"if{mark}", **branches))
    for position in reversed(range(len(graph.value_info))):
        if graph.value_info[position].name in made:
            del graph.value_info[position]


def renamed(
    nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto], made: set[str], mark: str
) -> onnx.GraphProto:
    """A branch of the nodes, in which everything that they make is called something else."""
    values = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in outputs]
    branch = onnx.GraphProto()
    branch.CopyFrom(onnx.helper.make_graph(nodes, f"branch{mark}", [], values))
    _rename(branch, made, mark)
    return branch


def _rename(graph: onnx.GraphProto, made: set[str], mark: str) -> None:
    made = made | {name for node in graph.node for name in node.output}
    for value in graph.output:
        value.name += mark
    for node in graph.node:
        node.name += mark
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name in made:
                    names[position] = name + mark
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, made, mark)
