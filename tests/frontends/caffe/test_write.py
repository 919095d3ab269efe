"""The caffemodel that comes out: only the arrays that change differ; both files or neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bnfold
from bnfold.errors import ModelUnreadableError, UsageError
from bnfold.frontends.caffe import write
from bnfold.frontends.caffe.caffemodel import read_caffemodel
from bnfold.frontends.caffe.fold import fold_read
from bnfold.frontends.caffe.prototxt import read_text
from bnfold.frontends.caffe.wire import length_field, varint_field
from tests.frontends.caffe import build
from tests.frontends.caffe.support import Builder, Pair, assert_equal, fold, kept


def network() -> Builder:
    """conv, bn, scale, conv."""
    builder = Builder()
    builder.conv(4, name="conv")
    builder.batch_norm(name="bn")
    builder.scale(name="scale")
    builder.conv(2, name="tail", bias=True)
    return builder


def rewritten(content: bytes, changes: write.Changes) -> bytes:
    return b"".join(bytes(p) for p in write.rewrite(read_caffemodel(content, "x"), changes))


FORK = varint_field(149, 3) + length_field(151, b"fork")
DIFF = length_field(6, b"\x01\x02\x03\x04")


def test_no_changes_change_no_byte() -> None:
    content = network().pair().weights + FORK
    assert rewritten(content, write.Changes()) == content


def test_only_the_arrays_that_change_differ() -> None:
    """Fields of forks, gradients, layers that are not used and their order stay."""
    values = np.arange(6.0).reshape(2, 3)
    old, new = build.blob(values, extra=DIFF + FORK), build.blob(values * 2, extra=DIFF + FORK)
    layers = [build.layer(f"l{n}", "T", old, build.blob(values), extra=FORK) for n in range(4)]
    content = FORK + build.net(*layers) + FORK
    changes = write.Changes(arrays={(1, 0): lambda: values * 2}, dropped={2})
    layers[1] = build.layer("l1", "T", new, build.blob(values), extra=FORK)
    del layers[2]
    assert rewritten(content, changes) == FORK + build.net(*layers) + FORK


@pytest.mark.parametrize("shape", ["packed", "unpacked", "legacy"])
@pytest.mark.parametrize("data", ["packed", "unpacked", "double", "double-unpacked", "half"])
def test_an_array_keeps_its_form(shape: str, data: str) -> None:
    values = np.array([[1.5, -2.0, 0.25], [3.0, 4.0, 8.0]])
    content = build.net(
        build.layer("a", "T", build.blob(values, shape=shape, data=data, extra=FORK))
    )
    expected = build.blob(values * 2, shape=shape, data=data, extra=FORK)
    changes = write.Changes(arrays={(0, 0): lambda: values * 2})
    assert rewritten(content, changes) == build.net(build.layer("a", "T", expected))


@pytest.mark.parametrize("data", ["packed", "unpacked", "double", "half"])
@pytest.mark.parametrize("shape", ["packed", "legacy"])
def test_an_array_is_born_in_the_form_of_the_first(shape: str, data: str) -> None:
    values, bias = np.ones((2, 3)), np.array([0.5, -1.0])
    weight = build.blob(values, shape=shape, data=data)
    content = build.net(build.layer("a", "T", weight))
    born = build.blob(bias, shape=shape, data=data)
    assert rewritten(content, write.Changes(born={0: bias})) == build.net(
        build.layer("a", "T", weight, born)
    )


def test_values_in_pieces_become_one() -> None:
    values = np.arange(6.0)
    content = build.net(build.layer("a", "T", build.blob(values, data="split")))
    changes = write.Changes(arrays={(0, 0): lambda: values * 2})
    assert rewritten(content, changes) == build.net(build.layer("a", "T", build.blob(values * 2)))


def test_floats_beside_doubles_go() -> None:
    """Readers that know no doubles would read the old values."""
    values = np.arange(6.0)
    both = (
        build.shape_field((6,)) + build.data_field(values) + build.data_field(values, form="double")
    )
    content = build.net(build.layer("a", "T", both))
    changes = write.Changes(arrays={(0, 0): lambda: values * 2})
    expected = build.blob(values * 2, data="double")
    assert rewritten(content, changes) == build.net(build.layer("a", "T", expected))


@pytest.mark.parametrize("version", ["V0", "V1"])
def test_old_layers(version: str) -> None:
    values = np.arange(6.0)
    make = build.layer_v0 if version == "V0" else build.layer_v1
    kind = "conv" if version == "V0" else 4
    old = make("a", kind, build.blob(values, shape="legacy"))  # type: ignore[arg-type]
    new = make(
        "a",
        kind,
        build.blob(values * 2, shape="legacy"),  # type: ignore[arg-type]
        build.blob([1.0], shape="legacy"),
    )
    changes = write.Changes(arrays={(0, 0): lambda: values * 2}, born={0: np.array([1.0])})
    assert rewritten(build.net(old), changes) == build.net(new)


def test_a_file_above_2_gb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "_MAX_SIZE", 100)
    with pytest.raises(ModelUnreadableError, match="2 GB"):
        fold(network().pair())


@pytest.mark.parametrize("form", ["packed", "unpacked", "double", "half"])
def test_a_fold_in_every_form(form: str) -> None:
    builder = network()
    for blobs in builder.arrays.values():
        blobs[:] = [np.asarray(blob, dtype=np.float16).astype(float) for blob in blobs]
    before = builder.pair(form=form)
    after, report = fold(before)
    assert kept(report) == {}
    tolerance = {"double": 1e-9, "half": 1e-2}.get(form, 1e-5)
    assert_equal(before, after, builder.inputs(), tolerance=tolerance)
    stored = read_caffemodel(after.weights, "x").layers
    assert {blob.dtype.str for layer in stored for blob in layer.blobs} == {
        {"double": "<f8", "half": "<f2"}.get(form, "<f4")
    }


def test_a_weight_that_would_overflow_keeps_its_scale() -> None:
    builder = Builder()
    builder.conv(4, name="conv")
    builder.scale(name="scale", gamma=[1e3, 1.0, 2.0, -1.0], bias=False)
    builder.arrays["conv"][0] *= 1e4 / np.abs(builder.arrays["conv"][0]).max()
    before = builder.pair(form="half")
    after, report = fold(before)
    assert list(kept(report)) == ["scale"]
    assert set(kept(report).values()) <= {"overflow", "scale-range"}
    assert after == before


def test_a_bias_that_would_overflow_keeps_its_batch_norm() -> None:
    builder = Builder()
    builder.conv(4, name="conv")
    builder.batch_norm(name="bn", var=[1e-30, 1.0, 1.0, 1.0], options="eps: 1e-30")
    builder.arrays["bn"][0] = np.array([1e30, 0.0, 0.0, 0.0])
    before = builder.pair(form="packed")
    after, report = fold(before)
    assert "bn" in kept(report)
    assert after == before


def test_memory_stays_near_the_largest_array(tmp_path: Path) -> None:
    """12 weights of 4 MB, folded file to file."""
    import tracemalloc

    builder = Builder((1, 64, 4, 4))
    for number in range(12):
        builder.conv(64, 16, "pad: 8", name=f"c{number}")
        builder.batch_norm(name=f"b{number}")
    model = builder.pair(form="packed")
    (tmp_path / "n.prototxt").write_bytes(model.text)
    (tmp_path / "n.caffemodel").write_bytes(model.weights)
    del builder
    tracemalloc.start()
    try:
        bnfold.fold(tmp_path / "n.prototxt")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.4 * len(model.weights)


# ------------------------------------------------------------------- both or neither


def written(folder: Path, builder: Builder) -> Path:
    model = builder.pair(form="packed")
    (folder / "net.prototxt").write_bytes(model.text)
    (folder / "net.caffemodel").write_bytes(model.weights)
    return folder / "net.prototxt"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_both_files_are_written(tmp_path: Path) -> None:
    source = written(tmp_path, network())
    before = contents(tmp_path)
    target, report = bnfold.fold(source)
    assert report.kept == 0
    assert target == tmp_path / "net.folded.prototxt"
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"net.folded.prototxt", "net.folded.caffemodel"}
    pair = Pair(after["net.folded.prototxt"], after["net.folded.caffemodel"])
    assert pair.names == ["conv"]


def test_the_weights_may_have_another_name(tmp_path: Path) -> None:
    source = written(tmp_path, network())
    weights = (tmp_path / "net.caffemodel").rename(tmp_path / "iter_1000.caffemodel")
    with pytest.raises(ModelUnreadableError, match=r"net\.caffemodel: no such file"):
        bnfold.fold(source)
    target, _ = bnfold.fold((source, weights), output=tmp_path / "out.prototxt")
    assert (tmp_path / "out.caffemodel").exists()
    assert target == tmp_path / "out.prototxt"
    report = bnfold.inspect((str(source), str(weights)))
    assert report.removed == 2
    assert report.summary == "1 of 1 BatchNorm, 1 of 1 Scale would be removed"


@pytest.mark.parametrize("name", ["out.prototxt", "out.caffemodel"])
def test_no_file_is_overwritten_unasked(tmp_path: Path, name: str) -> None:
    source = written(tmp_path, network())
    (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="exists and is not overwritten"):
        bnfold.fold(source, output=tmp_path / "out.prototxt")
    assert contents(tmp_path) == before
    bnfold.fold(source, output=tmp_path / "out.prototxt", force=True)
    assert contents(tmp_path)[name] != b"mine"


def test_the_input_is_never_the_output(tmp_path: Path) -> None:
    source = written(tmp_path, network())
    before = contents(tmp_path)
    (tmp_path / "link.prototxt").symlink_to(source)
    for output in ("net.prototxt", "link.prototxt"):
        with pytest.raises(UsageError, match="inputs are never written to"):
            bnfold.fold(source, output=tmp_path / output, force=True)
    (tmp_path / "link.prototxt").unlink()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("step", [0, 1, 2, 3, 5])
def test_a_failure_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The disk is full after some pieces of the weights."""
    source = written(tmp_path, network())
    before = contents(tmp_path)
    original = write._file

    def failing(model, changes):  # type: ignore[no-untyped-def]
        for number, piece in enumerate(original(model, changes)):
            if number == step:

                def full() -> bytes:
                    raise OSError(28, "No space left on device")

                yield write._Piece(piece.length, full)
            else:
                yield piece

    monkeypatch.setattr(write, "_file", failing)
    with pytest.raises(UsageError, match="No space left"):
        bnfold.fold(source, output=tmp_path / "out.prototxt", merge="never")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("suffix", [".prototxt", ".caffemodel"])
def test_a_failure_at_the_last_step_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, *, is_there: bool
) -> None:
    source = written(tmp_path, network())
    if is_there:
        (tmp_path / "out.prototxt").write_text("old text")
        (tmp_path / "out.caffemodel").write_text("old weights")
    before = contents(tmp_path)
    original = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if target.name == f"out{suffix}":
            raise OSError(5, "Input/output error")
        return original(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(UsageError, match="Input/output error"):
        bnfold.fold(source, output=tmp_path / "out.prototxt", force=True)
    assert contents(tmp_path) == before


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    source = written(tmp_path, network())
    with pytest.raises(UsageError, match="there is no folder"):
        bnfold.fold(source, output=tmp_path / "none" / "out.prototxt")


def test_what_is_folded_in_memory_is_not_written() -> None:
    model = network().pair()
    folded, report = fold_read(
        read_text(model.text, "x"), read_caffemodel(model.weights, "x"), clip="auto", phase=None
    )
    assert report.removed == 2
    assert folded.text != model.text
