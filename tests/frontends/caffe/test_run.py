"""A network run from its files, its example inputs, and the command's comparison."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnfold.cli import main
from bnfold.errors import ModelUnreadableError
from bnfold.frontends.caffe import apply
from bnfold.frontends.caffe.caffemodel import open_caffemodel
from bnfold.frontends.caffe.prototxt import read_text
from bnfold.frontends.caffe.read import read_net
from bnfold.frontends.caffe.run import example_inputs, run_net
from bnfold.frontends.caffe.shapes import infer
from tests.frontends.caffe.wire import caffemodel

CONV = """layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 2 kernel_size: 1 bias_term: false } }
"""
NORM = 'layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }\n'
WEIGHT = np.array([[2.0, -1.0, 0.5], [1.0, 3.0, -0.25]], np.float32).reshape(2, 3, 1, 1)
STATISTICS = [np.array(v, np.float32) for v in ([1.0, -2.0], [4.0, 0.5], [2.0])]
ARRAYS = {"conv": ("", [WEIGHT]), "bn": ("", STATISTICS)}


def declared(*shape: int) -> str:
    return f'input: "data" input_shape {{ {" ".join(f"dim: {n}" for n in shape)} }}\n'


def files(
    folder: Path, text: str, arrays: Mapping[str, tuple[str, list[np.ndarray]]] = ARRAYS
) -> tuple[Path, Path]:
    network, weights = folder / "net.prototxt", folder / "net.caffemodel"
    network.write_text(text)
    weights.write_bytes(caffemodel(arrays))
    return network, weights


def drawn(folder: Path, text: str) -> dict[str, Any]:
    network, weights = files(folder, text)
    net = read_net(read_text(network.read_bytes(), "net"), open_caffemodel(weights))
    infer(net)
    return example_inputs(net)


class TestInputs:
    def test_a_declared_shape_is_taken(self, tmp_path: Path) -> None:
        assert drawn(tmp_path, declared(2, 3, 5, 4) + CONV)["data"].shape == (2, 3, 5, 4)

    def test_channels_that_no_text_says_are_those_that_a_convolution_reads(
        self, tmp_path: Path
    ) -> None:
        data = """layer { name: "data" type: "Data" top: "data" top: "label"
        transform_param { crop_size: 7 } }\n"""
        inputs = drawn(tmp_path, data + CONV)
        assert {name: x.shape for name, x in inputs.items()} == {"data": (1, 3, 7, 7)}

    def test_they_are_the_same_each_time(self, tmp_path: Path) -> None:
        text = declared(1, 3, 2, 2) + CONV
        assert np.array_equal(drawn(tmp_path, text)["data"], drawn(tmp_path, text)["data"])


class TestRun:
    def test_a_given_input_counts(self, tmp_path: Path) -> None:
        x = np.arange(12, dtype=np.float64).reshape(1, 3, 2, 2) ** 0.5
        found = run_net(*files(tmp_path, declared(1, 3, 2, 2) + CONV + NORM), {"data": x})
        y = np.einsum("oc,nchw->nohw", WEIGHT[:, :, 0, 0].astype(np.float64), x)
        mean, variance = np.array([0.5, -1.0]), np.array([2.0, 0.25])
        eps = float(np.float32(1e-5))
        by_hand = (y - mean[:, None, None]) / np.sqrt(variance + eps)[:, None, None]
        assert found["conv"] == pytest.approx(by_hand, rel=1e-13)

    def test_float32_runs_in_float32(self, tmp_path: Path) -> None:
        pair = files(tmp_path, declared(1, 3, 2, 2) + CONV)
        assert run_net(*pair, dtype="float32")["conv"].dtype == np.float32
        assert run_net(*pair)["conv"].dtype == np.float64

    def test_of_shared_arrays_the_one_that_is_loaded_last_counts(self, tmp_path: Path) -> None:
        shared = CONV.replace('name: "conv"', 'name: "first" param { name: "w" }')
        other = shared.replace('"first"', '"second"').replace('top: "conv"', 'top: "other"')
        arrays = {"first": ("", [WEIGHT]), "second": ("", [2 * WEIGHT])}
        found = run_net(*files(tmp_path, declared(1, 3, 2, 2) + shared + other, arrays))
        assert np.array_equal(found["conv"], found["other"])
        last = run_net(*files(tmp_path, declared(1, 3, 2, 2) + other, {"second": arrays["second"]}))
        assert np.array_equal(found["conv"], last["other"])

    def test_a_sharer_without_arrays_of_its_own_has_those(self, tmp_path: Path) -> None:
        shared = CONV.replace('name: "conv"', 'name: "first" param { name: "w" }')
        other = shared.replace('"first"', '"second"').replace('top: "conv"', 'top: "other"')
        pair = files(tmp_path, declared(1, 3, 2, 2) + shared + other, {"first": ("", [WEIGHT])})
        found = run_net(*pair)
        assert np.array_equal(found["conv"], found["other"])

    def test_no_file_is_an_error_with_its_name(self, tmp_path: Path) -> None:
        with pytest.raises(ModelUnreadableError, match=r"nowhere\.prototxt"):
            run_net(tmp_path / "nowhere.prototxt", tmp_path / "nowhere.caffemodel")


class TestCompare:
    """What the command says about the two runs."""

    def fold(self, folder: Path, text: str, *options: str) -> int:
        pair = map(str, files(folder, text))
        return main(["fold", *pair, "-o", str(folder / "folded.prototxt"), *options])

    def test_the_difference_is_told(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.fold(tmp_path, declared(1, 3, 2, 2) + CONV + NORM) == 0
        assert "largest difference" in capsys.readouterr().out

    def test_a_wrong_fold_is_a_bug_and_nothing_is_written(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        right = apply.fold_weight
        monkeypatch.setattr(apply, "fold_weight", lambda *given: 1.01 * right(*given))
        assert self.fold(tmp_path, declared(1, 3, 2, 2) + CONV + NORM) == 70
        assert "does not compute the same" in capsys.readouterr().err
        assert not (tmp_path / "folded.prototxt").exists()

    def test_layers_that_cannot_run_are_named_and_what_they_read_is_compared(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        strange = 'layer { name: "yolo" type: "Yolov3" bottom: "conv" top: "boxes" }\n'
        assert self.fold(tmp_path, declared(1, 3, 2, 2) + CONV + NORM + strange) == 0
        told = capsys.readouterr()
        assert "Not run" in told.err
        assert "yolo" in told.err
        assert "largest difference" in told.out

    def test_an_input_of_unknown_size_that_does_not_fit_is_no_error(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = 'layer { name: "data" type: "Data" top: "data" }\n'
        reshape = """layer { name: "r" type: "Reshape" bottom: "conv" top: "r"
        reshape_param { shape { dim: 11 dim: -1 } } }\n"""
        assert self.fold(tmp_path, data + CONV + NORM + reshape) == 0
        assert "nothing was verified" in capsys.readouterr().out

    def test_without_pytorch_it_says_that_nothing_was_compared(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        real = builtins.__import__

        def without_torch(name: str, *args: Any, **kwargs: Any) -> Any:
            if name == "torch":
                raise ImportError(name)
            return real(name, *args, **kwargs)

        for name in ("run", "runner"):
            monkeypatch.delitem(sys.modules, f"bnfold.frontends.caffe.{name}", raising=False)
        monkeypatch.setattr(builtins, "__import__", without_torch)
        assert self.fold(tmp_path, declared(1, 3, 2, 2) + CONV + NORM) == 0
        assert "PyTorch is not installed, and it is what runs" in capsys.readouterr().out
        assert (tmp_path / "folded.caffemodel").exists()
