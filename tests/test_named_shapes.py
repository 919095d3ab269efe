"""Inputs of ONNX models: what is no shape by name is said at every door."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.errors import UsageError

MODEL = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["": 17]>'
    " g (float[N, 3, H, W] x) => (float[N, 3, H, W] y) { y = Relu(x) }"
)
SHAPE = (1, 3, 5, 5)


def inspect_file(inputs: Any, folder: Path) -> object:
    onnx.save(MODEL, folder / "model.onnx")
    return bnfold.inspect(folder / "model.onnx", inputs)


DOORS: dict[str, Callable[[Any, Path], object]] = {
    "fold": lambda inputs, folder: bnfold.fold(MODEL, inputs),
    "inspect": inspect_file,
    "verify": lambda inputs, folder: bnfold.verify(MODEL, MODEL, inputs),
    "bench": lambda inputs, folder: bnfold.bench(MODEL, MODEL, inputs, rounds=1),
    "bench a fold": lambda inputs, folder: bnfold.bench(MODEL, inputs=inputs, rounds=1),
}


@pytest.mark.usefixtures("tests_are_no_garbage")
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("shape", [SHAPE, list(SHAPE), tuple(np.array(SHAPE))])
def test_shapes_by_name(door: str, shape: Any, tmp_path: Path) -> None:
    assert DOORS[door]({"x": shape}, tmp_path)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("inputs", "given", "step"),
    [
        (SHAPE, "(1, 3, 5, 5) was given", "inputs={'input': (1, 3, 5, 5)}"),
        (list(SHAPE), "[1, 3, 5, 5] was given", "inputs={'input': (1, 3, 5, 5)}"),
        ("1x3x5x5", "'1x3x5x5' was given", "inputs={'input': (1, 3, 224, 224)}"),
        (np.zeros(SHAPE), "a NumPy array of 1x3x5x5", "inputs={'input': (1, 3, 5, 5)}"),
        (224, "224 was given", "inputs={'input': (1, 3, 224, 224)}"),
        ([np.zeros(SHAPE)], "was given", "inputs={'input': (1, 3, 224, 224)}"),
        (onnx.ModelProto, "an object of", "inputs={'input': (1, 3, 224, 224)}"),
        ({"x": "1x3x5x5"}, "'1x3x5x5' was given for 'x'", "inputs={'x': (1, 3, 224, 224)}"),
        ({"x": 5}, "5 was given for 'x'", "inputs={'x': (1, 3, 224, 224)}"),
        ({"x": (None, 3, 5, 5)}, "(None, 3, 5, 5) was given for 'x'", "{'x': (1, 3, 224, 224)}"),
        ({"x": (1.0, 3.0)}, "(1.0, 3.0) was given for 'x'", "{'x': (1, 3, 224, 224)}"),
        ({"x": None}, "None was given for 'x'", "{'x': (1, 3, 224, 224)}"),
    ],
)
def test_what_is_none(door: str, inputs: Any, given: str, step: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="inputs of an ONNX model are shapes") as caught:
        DOORS[door](inputs, tmp_path)
    assert given in caught.value.problem
    assert step in caught.value.next_step


def test_arrays_are_for_verify(tmp_path: Path) -> None:
    array = np.ones(SHAPE, np.float32)
    assert bnfold.verify(MODEL, MODEL, {"x": array}, samples=1).equal
    for door in DOORS.keys() - {"verify"}:
        with pytest.raises(UsageError, match="a NumPy array of 1x3x5x5 was given for 'x'"):
            DOORS[door]({"x": array}, tmp_path)
