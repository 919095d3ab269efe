"""Files that do not fit: into one protobuf message, or into memory."""

from __future__ import annotations

import sys

import numpy as np
import onnx
from onnx import numpy_helper

import bnfold
from benchmarks.onnx_large import make
from benchmarks.process import measure
from bnfold.frontends.onnx import write
from tests.conformance.onnx_patterns import load
from tests.conformance.onnx_run import error, random_feed, run
from tests.frontends.onnx.test_bad_input import proto

_MEGABYTE = 1 << 20


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Three times the data takes the memory of a few tensors more at most."""
    peaks = []
    for gigabytes in (0.08, 0.25):
        folder = tmp_path / str(gigabytes)
        folder.mkdir()
        model = make(folder, gigabytes)
        output = folder / "out.onnx"
        command = [sys.executable, "-m", "bnfold", "fold", str(model), "--no-check"]
        peaks.append(measure([*command, "-o", str(output)]).anonymous)
        assert not _batch_norms(output)
    assert min(peaks) > 10 * _MEGABYTE, "the measurement works"
    assert peaks[1] - peaks[0] < 60 * _MEGABYTE


def _batch_norms(path) -> list[str]:
    graph = onnx.load(path, load_external_data=False).graph
    return [node.name for node in graph.node if node.op_type == "BatchNormalization"]


def test_what_does_not_fit_into_a_message_goes_into_a_data_file(tmp_path, monkeypatch):
    """The limit is 2 GB; here it is set to less than the weights."""
    monkeypatch.setattr(write, "_LIMIT", 1000)
    model = proto()
    source = tmp_path / "model.onnx"
    onnx.save(model, source)
    output, report = bnfold.fold(source)
    assert report.kept == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.onnx",
        "model.folded.onnx",
        "model.folded.onnx.data",
    }
    onnx.checker.check_model(str(output), full_check=True)
    feed = random_feed(model)
    assert error(run(model, feed), run(str(output), feed)) < 1e-5


def test_tensors_that_do_not_change_are_copied_bit_by_bit(tmp_path):
    """NaN payloads and all: a weight behind a sigmoid, 16 KB of arbitrary bits, outside and in."""
    bits = np.random.default_rng(0).integers(0, 2**32, (64, 64), dtype=np.uint32)
    pattern = load()["conv_bn"]
    for is_external in (False, True):
        model = pattern.build()
        model.graph.initializer.append(numpy_helper.from_array(bits.view(np.float32), "table"))
        model.graph.node.append(onnx.helper.make_node("Identity", ["table"], ["same"], name="id"))
        model.graph.output.append(
            onnx.helper.make_tensor_value_info("same", onnx.TensorProto.FLOAT, [64, 64])
        )
        source = tmp_path / f"model{is_external}.onnx"
        onnx.save(model, source, save_as_external_data=is_external, size_threshold=100)
        output, report = bnfold.fold(source)
        assert report.removed == 1
        written = {t.name: t for t in onnx.load(output).graph.initializer}
        assert written["table"].raw_data == bits.tobytes()
