"""The wire format: hostile files are refused without taking memory; every form reads alike."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from bnfold.errors import ModelUnreadableError
from bnfold.frontends.caffe.caffemodel import open_caffemodel, read_caffemodel
from bnfold.frontends.caffe.wire import length_field, tag_bytes, varint_bytes, varint_field
from tests.frontends.caffe import build
from tests.frontends.caffe.shared import MODELS, needs_shared

VALUES = np.array([[1.5, -2.0, 3.25], [0.0, 5.0, -6.5]])
FOUR_GB = varint_bytes(1 << 32)


@pytest.mark.parametrize(
    "content",
    [
        tag_bytes(100, 2) + FOUR_GB,
        tag_bytes(100, 2) + FOUR_GB + b"x" * 100,
        length_field(100, tag_bytes(1, 2) + FOUR_GB),
        length_field(100, tag_bytes(7, 2) + FOUR_GB),
        length_field(100, length_field(7, tag_bytes(5, 2) + FOUR_GB)),
        length_field(100, length_field(7, length_field(7, tag_bytes(1, 2) + FOUR_GB))),
        length_field(100, length_field(7, length_field(7, length_field(1, b"\x01" * 40)))),
        b"\xff" * 11,
        b"\x80",
        b"\x00\x00",
        b"\x07",
        b"\x0c",
        tag_bytes(9, 1) + b"123",
        tag_bytes(9, 5) + b"123",
        tag_bytes(9, 3) * 200_000,
        tag_bytes(9, 3) + tag_bytes(9, 2) + FOUR_GB + tag_bytes(9, 4),
        length_field(100, length_field(1, b"n" * 70_000)),
        length_field(100, length_field(7, varint_field(10, 7) + length_field(12, b"1234"))),
        b"name: 'a text file'",
        b"\x89HDF\r\n\x1a\n and so on",
    ],
    ids=range(20),
)
def test_hostile_files_are_refused_without_taking_memory(content: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ModelUnreadableError, match=r"x\.caffemodel: "):
            read_caffemodel(content, "x.caffemodel")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("shape", "found"),
    [(shape, 6) for shape in ((2, 4), (2, 2), (), (-2, -3), (1 << 40, 1 << 40), (0,), (1 << 63,))],
)
def test_a_shape_that_does_not_fit_the_values_is_refused(
    shape: tuple[int, ...], found: int
) -> None:
    dims = b"".join(varint_bytes(size & (1 << 64) - 1) for size in shape)
    content = length_field(7, length_field(1, dims)) + build.data_field(VALUES)
    model = read_caffemodel(build.net(build.layer("conv", "Convolution", content)), "x")
    with pytest.raises(ModelUnreadableError, match=r"'conv'\[0\] is .*holds 6 values"):
        model.layers[0].blobs[0].read()


def test_a_part_of_a_value_is_refused() -> None:
    content = build.shape_field((2,)) + length_field(5, b"12345678" + b"9")
    model = read_caffemodel(build.net(build.layer("a", "Scale", content)), "x")
    with pytest.raises(ModelUnreadableError, match="a part of one"):
        model.layers[0].blobs[0].read()


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_a_truncated_file_is_refused_or_lacks_layers(cut: int) -> None:
    whole = build.net(*(build.layer(f"l{n}", "Scale", build.blob(VALUES)) for n in range(5)))
    short = whole[: len(whole) - cut - 1]
    try:
        model = read_caffemodel(short, "x")
    except ModelUnreadableError:
        return
    assert len(model.layers) < 5
    assert all((layer.blobs[0].read() == VALUES).all() for layer in model.layers)


def test_many_small_parts_are_refused_before_they_take_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bnfold.frontends.caffe.caffemodel._MAX_PARTS", 1000)
    with pytest.raises(ModelUnreadableError, match="more than 1000"):
        read_caffemodel(length_field(100, b"") * 2000, "x")
    with pytest.raises(ModelUnreadableError, match="more than 1000"):
        read_caffemodel(length_field(100, length_field(7, length_field(5, b"") * 2000)), "x")


def test_broken_runs_take_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []
    original = np.frombuffer

    def counting(buffer, dtype):  # type: ignore[no-untyped-def]
        looked_at.append(len(buffer))
        return original(buffer, dtype=dtype)

    monkeypatch.setattr(np, "frombuffer", counting)
    pieces = (build.data_field([1.0], form="unpacked") + varint_field(99, 1)) * 20_000
    read_caffemodel(length_field(100, length_field(7, pieces)), "x")
    assert sum(looked_at) < 100 * len(pieces)


@pytest.mark.parametrize("path", ["", "folder", "missing.caffemodel"])
def test_what_is_no_file_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelUnreadableError):
        open_caffemodel(tmp_path / path)


def test_an_empty_file_has_no_layers(tmp_path: Path) -> None:
    (tmp_path / "empty.caffemodel").touch()
    assert open_caffemodel(tmp_path / "empty.caffemodel").layers == []


@pytest.mark.parametrize("shape", ["packed", "unpacked", "legacy"])
@pytest.mark.parametrize(
    "data", ["packed", "unpacked", "split", "double", "double-unpacked", "half"]
)
def test_every_form_of_a_blob_reads_alike(shape: str, data: str) -> None:
    content = build.blob(VALUES, shape=shape, data=data)
    model = read_caffemodel(build.net(build.layer("a", "Scale", content)), "x")
    blob = model.layers[0].blobs[0]
    assert blob.shape == ((1, 1, 2, 3) if shape == "legacy" else (2, 3))
    assert blob.is_legacy == (shape == "legacy")
    assert blob.dtype == {"half": "<f2", "double": "<f8", "double-unpacked": "<f8"}.get(data, "<f4")
    assert blob.is_packed == ("unpacked" not in data)
    assert (blob.read().reshape(2, 3) == VALUES).all()


def test_doubles_win_over_floats_and_the_old_shape_over_the_new() -> None:
    content = (
        build.shape_field((7,))
        + build.shape_field((2, 3), form="legacy")
        + build.data_field(VALUES * 0)
        + build.data_field(VALUES, form="double")
    )
    blob = read_caffemodel(build.net(build.layer("a", "Scale", content)), "x").layers[0].blobs[0]
    assert blob.shape == (1, 1, 2, 3)
    assert (blob.read().reshape(2, 3) == VALUES).all()


def test_packed_and_single_values_may_mix() -> None:
    content = (
        build.shape_field((6,))
        + build.data_field(VALUES[0, :1], form="unpacked")
        + build.data_field(VALUES[0, 1:])
        + varint_field(999, 5)
        + build.data_field(VALUES[1], form="unpacked")
    )
    blob = read_caffemodel(build.net(build.layer("a", "Scale", content)), "x").layers[0].blobs[0]
    assert blob.read().tolist() == VALUES.reshape(-1).tolist()


def test_a_scalar_has_an_empty_shape() -> None:
    content = length_field(7, b"") + build.data_field([3.0])
    blob = read_caffemodel(build.net(build.layer("a", "Scale", content)), "x").layers[0].blobs[0]
    assert (blob.shape, float(blob.read())) == ((), 3.0)


@pytest.mark.parametrize("version", ["V0", "V1", "V2"])
def test_every_version_of_a_layer_reads_alike(version: str) -> None:
    one, two = build.blob(VALUES, shape="legacy"), build.blob(VALUES[0], shape="legacy")
    made = {
        "V0": lambda: build.layer_v0("a", "conv", one, two),
        "V1": lambda: build.layer_v1("a", 4, one, two),
        "V2": lambda: build.layer("a", "Convolution", one, two),
    }[version]()
    (layer,) = read_caffemodel(build.net(made), "x").layers
    assert (layer.name, layer.type) == ("a", {"V0": "conv", "V1": 4, "V2": "Convolution"}[version])
    assert [blob.count for blob in layer.blobs] == [6, 3]


def test_old_layers_hide_new_ones() -> None:
    content = build.net(build.layer("new", "Scale"), build.layer_v1("old", 4))
    assert [layer.name for layer in read_caffemodel(content, "x").layers] == ["old"]


def test_the_last_layer_of_a_name_counts() -> None:
    content = build.net(build.layer("a", "Scale"), build.layer("b", "Scale"), build.layer("a", "X"))
    assert read_caffemodel(content, "x").by_name() == {"a": 2, "b": 1}


def test_fields_of_forks_are_passed_over() -> None:
    extra = (
        varint_field(149, 3)
        + tag_bytes(150, 3)
        + length_field(1, b"in a group")
        + tag_bytes(150, 4)
        + tag_bytes(151, 1)
        + b"12345678"
        + tag_bytes(152, 5)
        + b"1234"
        + tag_bytes(7, 0)
        + b"\x01"
    )
    content = build.net(build.layer("a", "Scale", build.blob(VALUES), extra=extra))
    assert read_caffemodel(content, "x").layers[0].blobs[0].count == 6


@needs_shared
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_real_weights_are_mapped_not_loaded(path: Path) -> None:
    tracemalloc.start()
    try:
        model = open_caffemodel(path.with_suffix(".caffemodel"))
        started = tracemalloc.get_traced_memory()[0]
        assert all(np.isfinite(blob.read()).all() for one in model.layers for blob in one.blobs)
        assert started < 1_000_000
    finally:
        tracemalloc.stop()
    total = sum(blob.count for layer in model.layers for blob in layer.blobs)
    assert 0.8 * model.size < 4 * total < model.size


def test_what_is_not_looked_at_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.caffemodel"
    size = (1 << 31) - 1000
    with path.open("wb") as file:  # a hole of 2 GB in a layer that nobody asks about
        file.write(build.layer("a", "Scale", build.blob(VALUES)))
        inner = tag_bytes(7, 2) + varint_bytes(size + 6) + tag_bytes(5, 2) + varint_bytes(size)
        file.write(tag_bytes(100, 2) + varint_bytes(size + len(inner)) + inner)
        file.truncate(file.tell() + size)
    tracemalloc.start()
    try:
        model = open_caffemodel(path)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert [len(layer.blobs) for layer in model.layers] == [1, 1]
    assert model.layers[1].blobs[0].runs[0].end == model.size
