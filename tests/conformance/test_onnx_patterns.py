"""The small patterns of the laws, folded: what is gone, what stayed and why, and the numbers.

Each pattern is folded twice. Its own model (float32 mostly) runs in ONNX Runtime with all
optimisations off, its exact twin in float64 in the reference evaluator. The twin's outputs must be
the same to 1e-11. What ONNX Runtime computes may be as far from the truth as what it computes for
the original, times a small factor: the tolerance is measured, not chosen.
"""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest

import bnfold
from bnfold import FoldReport
from bnfold.frontends.onnx.nodes import nodes_inside
from tests.conformance.onnx_nodes import AFFINE, all_nodes, interface, op_types
from tests.conformance.onnx_patterns import Pattern, load
from tests.conformance.onnx_run import error, feeds, random_feed, run, run_exactly

PATTERNS = load()

EXACT = 1e-11
"""Relative to the largest output: float64 rounding over a few ops, and no more."""
OWN_ROUNDING = 8.0
"""How many times the error of the original model the folded one may have."""

each_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)


@each_pattern
def test_the_pattern_itself_is_sound(pattern: Pattern):
    """It is valid, it runs, and its float32 numbers are those of its twin."""
    model = pattern.build()
    onnx.checker.check_model(model, full_check=True)
    names = [node.name for node in all_nodes(model)]
    assert pattern.removed | set(pattern.kept) | pattern.untouched <= set(names)
    assert not pattern.removed & set(pattern.kept)
    if not (pattern.runs and pattern.has_twin):
        return
    feed = random_feed(model, pattern.shapes)
    assert error(run_exactly(pattern.build(np.float64), feed), run(model, feed)) < 1e-4


@each_pattern
def test_what_goes_and_what_stays(pattern: Pattern):
    """Counted in the file, and as the report says it."""
    model = pattern.build()
    before = model.SerializeToString(deterministic=True)
    folded, report = bnfold.fold(copy.deepcopy(model), clip=pattern.clip, merge="never")

    onnx.checker.check_model(folded, full_check=True)
    assert interface(folded) == interface(model)
    assert {op.domain: op.version for op in folded.opset_import} == {
        op.domain: op.version for op in model.opset_import
    }
    assert_structure(pattern, model, folded)
    assert_report(pattern, model, report)
    given = copy.deepcopy(model)
    bnfold.fold(given, clip=pattern.clip, merge="never")
    assert given.SerializeToString(deterministic=True) == before, "the input was changed"
    inspected = bnfold.inspect(model, clip=pattern.clip, merge="never")
    assert outcomes(inspected) == outcomes(report)


@each_pattern
def test_the_numbers_are_the_same(pattern: Pattern):
    """Exactly in float64, and in ONNX Runtime as close to the truth as before."""
    model = pattern.build()
    folded, report = bnfold.fold(model, clip=pattern.clip, merge="never")
    for feed in feeds(model, pattern.shapes):
        truth = None
        if pattern.has_twin:
            twin = pattern.build(np.float64)
            folded_twin, twin_report = bnfold.fold(twin, clip=pattern.clip, merge="never")
            assert outcomes(twin_report) == outcomes(report), "decisions depend on the dtype"
            truth = run_exactly(twin, feed)
            assert error(truth, run_exactly(folded_twin, feed)) <= EXACT
        if pattern.runs:
            assert_close_in_runtime(pattern, model, folded, feed, truth)


@each_pattern
def test_folding_again_finds_nothing(pattern: Pattern):
    """What could go is gone, and what was made by the first fold is no obstacle to the second."""
    model = pattern.build()
    once, first = bnfold.fold(model, clip=pattern.clip, merge="never")
    twice, second = bnfold.fold(once, clip=pattern.clip, merge="never")
    assert second.removed == 0, f"{first}\n{second}"
    assert op_types(twice) == op_types(once)
    if pattern.runs:
        feed = random_feed(model, pattern.shapes)
        assert error(run(once, feed), run(twice, feed)) <= 64 * float(np.finfo(pattern.dtype).eps)


def assert_close_in_runtime(pattern, model, folded, feed, truth) -> None:
    expected, actual = run(model, feed), run(folded, feed)
    epsilon = float(np.finfo(pattern.dtype).eps)
    if truth is None:
        assert error(expected, actual) <= 64 * epsilon
        return
    allowed = OWN_ROUNDING * max(error(truth, expected), 4 * epsilon)
    assert error(truth, actual) <= allowed


def assert_structure(pattern: Pattern, model: onnx.ModelProto, folded: onnx.ModelProto) -> None:
    """Removed nodes are gone and have not come back under another name."""
    left = {node.name: node for node in all_nodes(folded)}
    assert not pattern.removed & set(left), "still there"
    originals = {node.name: node for node in all_nodes(model)}
    for name in {*pattern.kept, *pattern.untouched}:
        assert name in left, f"{name} is gone"
        assert left[name].op_type == originals[name].op_type
        assert left[name].domain == originals[name].domain
    for name in pattern.untouched:
        assert left[name].attribute == originals[name].attribute
    had, has = op_types(model), op_types(folded)
    had.subtract(originals[name].op_type for name in pattern.removed)
    had["Add"] += had["MatMul"]  # a MatMul that needs a bias has an Add
    assert all(has[kind] <= had[kind] for kind in AFFINE), (had, has)


def assert_report(pattern: Pattern, model: onnx.ModelProto, report: FoldReport) -> None:
    """Every expected node has its line; every BatchNorm is expected, those in bodies too.

    The report calls those by their place, such as if/then_branch/bn.
    """
    removed, kept = outcomes(report)
    assert len(removed) + len(kept) == report.total, "two have one name"
    removed = {name.split("/")[-1] for name in removed}
    kept = {name.split("/")[-1]: reason for name, reason in kept.items()}
    for name, reason in pattern.kept.items():
        assert kept.get(name) == reason, str(report)
    norms = {
        node.name
        for node in nodes_inside(model.graph)
        if node.op_type == "BatchNormalization" and not node.domain
    }
    assert removed & norms == pattern.removed & norms, str(report)
    assert set(kept) & norms == set(pattern.kept) & norms, str(report)


def outcomes(report: FoldReport) -> tuple[set[str], dict[str, str]]:
    """Names of what is gone, and the reason for each that stays."""
    removed = {item.name for item in report.items if item.is_removed}
    kept = {item.name: str(item.reason) for item in report.items if not item.is_removed}
    return removed, kept


# ---------------------------------------------------------------- the checks can fail


def test_a_batch_norm_left_out_is_noticed():
    pattern = PATTERNS["conv_bn"]
    model = pattern.build()
    wrong = copy.deepcopy(model)
    bn = next(node for node in wrong.graph.node if node.name == "bn")
    bn.op_type = "Identity"
    del bn.input[1:], bn.attribute[:]
    feed = random_feed(model)
    with pytest.raises(AssertionError):
        assert_close_in_runtime(pattern, model, wrong, feed, None)
    with pytest.raises(AssertionError):
        assert_structure(pattern, model, model)


def test_a_wrong_axis_is_noticed():
    """Square weights: scaling the inputs in place of the outputs gives a model that runs."""
    pattern = PATTERNS["conv_transpose_square_bn"]
    truth = run_exactly(pattern.build(np.float64), random_feed(pattern.build()))
    model = pattern.build()
    wrong = copy.deepcopy(model)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    scale = constants["bn_gamma"] / np.sqrt(constants["bn_var"] + 1e-3)
    shift = constants["bn_beta"] - scale * constants["bn_mean"]
    for axis, is_right in (((1, -1, 1, 1), True), ((-1, 1, 1, 1), False)):
        weight = constants["conv_w"] * scale.reshape(axis)
        del wrong.graph.node[:], wrong.graph.initializer[:]
        wrong.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
        wrong.graph.initializer.append(onnx.numpy_helper.from_array(shift, "b"))
        wrong.graph.node.append(onnx.helper.make_node("ConvTranspose", ["x", "w", "b"], ["bn_out"]))
        feed = random_feed(model)
        if is_right:
            assert_close_in_runtime(pattern, model, wrong, feed, truth)
            continue
        with pytest.raises(AssertionError):
            assert_close_in_runtime(pattern, model, wrong, feed, truth)


def test_the_promised_number_of_patterns():
    assert len(PATTERNS) >= 58
    stays = sum(not pattern.removed for pattern in PATTERNS.values())
    assert stays >= 40
