"""Files: paths in and out, external data, what is written and what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, numpy_helper

import bnfold
from bnfold.core.fitting import Overflow
from bnfold.errors import UsageError
from bnfold.frontends.onnx import tensor_data, wire, write
from bnfold.frontends.onnx.read import read_file
from bnfold.frontends.onnx.write import to_proto
from tests.frontends.onnx.support import Sketch, assert_same, ops


def sketch(channels: int = 16) -> Sketch:
    s = Sketch(1, 3, 8, 8)
    s.conv(3, channels)
    s.bn(channels)
    s.node("Relu")
    s.conv(channels, 20, name="last")
    return s


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(sketch().model(), "model.onnx")
    return tmp_path


@pytest.fixture
def external(folder):
    onnx.save(
        sketch().model(),
        "big.onnx",
        save_as_external_data=True,
        location="big.bin",
        size_threshold=1024,
    )
    return folder


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"output": "model.onnx", "force": True}, "is the model itself"),
        ({"output": "./model.onnx"}, "is the model itself"),
        ({"output": "there.onnx"}, "exists and is not overwritten"),
        ({"output": "nowhere/o.onnx"}, "there is no folder nowhere"),
        ({"output": "o.pt2"}, "does not end in .onnx"),
        ({"inplace": True}, "inplace means nothing"),
        ({"also": [1]}, "also means nothing"),
        ({"inputs": np.zeros(3)}, "shapes by name"),
    ],
)
def test_usage(folder, options, text):
    (folder / "there.onnx").write_bytes(b"mine")
    before = listing(folder)
    with pytest.raises(UsageError, match=text):
        bnfold.fold("model.onnx", **options)
    assert listing(folder) == before
    assert (folder / "there.onnx").read_bytes() == b"mine"


@pytest.mark.parametrize("option", [{"output": "o.onnx"}, {"force": True}])
def test_a_model_in_memory_has_no_output_file(option):
    with pytest.raises(UsageError, match="means nothing"):
        bnfold.fold(sketch().model(), **option)


def test_overflow_keeps_the_batch_norm(folder):
    s = Sketch(1, 3, 8, 8, data_type=TensorProto.FLOAT)
    s.conv(3, 16)
    s.bn(16, epsilon=1e-12)
    for tensor in s.initializers:
        if tensor.name == "bn_v":
            small = np.full(16, 1e-12, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(small, "bn_v"))
        if tensor.name == "conv_w":
            large = np.full((16, 3, 3, 3), 1e34, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(large, "conv_w"))
    onnx.save(s.model(), "large.onnx")
    _, report = bnfold.fold("large.onnx")
    assert report.items[0].reason is bnfold.Reason.OVERFLOW
    assert report.items[0].blocker == "conv"
    assert ops(onnx.load("large.folded.onnx")) == ["Conv", "BatchNormalization"]
    assert bnfold.inspect("large.onnx").items == report.items
    assert bnfold.fold(onnx.load("large.onnx")).report.items == report.items


def test_blocks_of_rows_that_overflow():
    content = np.arange(6, dtype=np.float32).reshape(2, 3)
    source = tensor_data.MemoryData(content.tobytes())
    factor = np.array([[1.0], [1e38]])
    scaled = tensor_data.ScaledData(source, content.dtype, (2, 3), factor, Overflow(7))
    with pytest.raises(Overflow):
        scaled.read()


# -------------------------------------------------------------------- written


def test_beside_the_model(folder):
    path, report = bnfold.fold("model.onnx")
    assert (path, report.removed) == (Path("model.folded.onnx"), 1)
    assert listing(folder) == {"model.onnx", "model.folded.onnx"}
    assert_same(onnx.load("model.onnx"), onnx.load(path), (1, 3, 8, 8))


def test_to_a_place_of_choice(folder):
    (folder / "sub").mkdir()
    for _ in range(2):
        path, _ = bnfold.fold(folder / "model.onnx", output=folder / "sub" / "o.onnx", force=True)
    assert path == folder / "sub" / "o.onnx"
    assert listing(folder / "sub") == {"o.onnx"}


def test_all_kinds_of_a_model_give_the_same(folder):
    from_file = onnx.load(bnfold.fold("model.onnx").model)
    in_memory, report = bnfold.fold(onnx.load("model.onnx"))
    assert in_memory.SerializeToString() == from_file.SerializeToString()
    ir_model, ir_report = bnfold.fold(onnx_ir.load("model.onnx"))
    assert isinstance(ir_model, onnx_ir.Model)
    assert ir_report == report == bnfold.inspect(onnx_ir.load("model.onnx"))
    assert_same(in_memory, onnx_ir.to_proto(ir_model), (1, 3, 8, 8), tolerance=0.0)


def test_external_data_stays_external(external):
    before = {name: (external / name).read_bytes() for name in ("big.onnx", "big.bin")}
    path, report = bnfold.fold("big.onnx")
    assert report.removed == 1
    assert listing(external) == {
        *("model.onnx", "big.onnx", "big.bin", "big.folded.onnx", "big.folded.onnx.data")
    }
    assert {name: (external / name).read_bytes() for name in before} == before
    bare = onnx.load(path, load_external_data=False)
    places = {t.name: t.data_location for t in bare.graph.initializer}
    assert places["conv_w"] == places["last_w"] == TensorProto.EXTERNAL
    assert places["conv_bias"] == TensorProto.DEFAULT
    assert_same(onnx.load("big.onnx"), onnx.load(path), (1, 3, 8, 8))


def test_external_data_of_a_model_in_memory(external):
    with pytest.raises(bnfold.UnsupportedModelError, match="in which folder"):
        bnfold.fold(onnx.load("big.onnx", load_external_data=False))
    source = onnx_ir.load("big.onnx")
    folded, _ = bnfold.fold(source)
    kept = folded.graph.initializers["last_w"].const_value
    assert kept is source.graph.initializers["last_w"].const_value
    assert_same(onnx.load("big.onnx"), onnx_ir.to_proto(_loaded(folded)), (1, 3, 8, 8))


def _loaded(model: onnx_ir.Model) -> onnx_ir.Model:
    return onnx_ir.external_data.load_to_model(model)


def test_data_that_a_message_has_no_room_for_overwrites_nothing(folder, monkeypatch):
    monkeypatch.setattr(write, "_LIMIT", 1000)
    (folder / "model.folded.onnx.data").write_bytes(b"mine")
    before = listing(folder)
    with pytest.raises(UsageError, match="exists and is not overwritten"):
        bnfold.fold("model.onnx")
    assert listing(folder) == before
    assert (folder / "model.folded.onnx.data").read_bytes() == b"mine"


def test_a_failed_move_leaves_what_was_there(external, monkeypatch):
    (external / "o.onnx").write_bytes(b"old model")
    (external / "o.onnx.data").write_bytes(b"old data")
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if Path(target).name == "o.onnx":
            raise PermissionError(13, "no")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    before = listing(external)
    with pytest.raises(UsageError, match="could not be written"):
        bnfold.fold("big.onnx", output="o.onnx", force=True)
    assert listing(external) == before
    assert (external / "o.onnx").read_bytes() == b"old model"
    assert (external / "o.onnx.data").read_bytes() == b"old data"


# -------------------------------------------------------------------- bytes


@pytest.mark.parametrize("threshold", [1, 100, 4096, 1 << 30])
def test_taking_large_tensors_out_and_putting_them_back(threshold):
    content = sketch().model().SerializeToString()
    split = wire.split(content, threshold)
    parts = {
        n: tensor_data.MemoryData(content[at : at + size]) for n, (at, size) in split.spans.items()
    }
    assert bool(parts) == (threshold < 1 << 30)
    pieces = wire.assemble(split.skeleton, parts)
    whole = b"".join(p if isinstance(p, bytes) else bytes(p.read()) for p in pieces)
    assert onnx.ModelProto.FromString(whole) == onnx.ModelProto.FromString(content)


def test_large_tensors_are_not_read_with_the_model(folder):
    model = read_file(folder / "model.onnx")
    assert set(model.tensor_data) == {"last_w"}
    assert model.proto.ByteSize() < 4096
    assert to_proto(model) == onnx.load("model.onnx")


def test_blocks_of_rows_are_the_product():
    rng = np.random.default_rng(0)
    content = rng.normal(size=(700, 9, 7)).astype(np.float32)
    factor = rng.normal(size=(700, 9, 1))
    source = tensor_data.MemoryData(content.tobytes())
    scaled = tensor_data.ScaledData(source, content.dtype, content.shape, factor, Overflow(0))
    made = scaled.read().view(np.float32).reshape(content.shape)
    np.testing.assert_array_equal(made, (content * factor).astype(np.float32))
