"""Weights that a caffemodel holds in fewer bits than Caffe computes in: rounded again, or float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bnfold
from bnfold.frontends.caffe import write
from bnfold.frontends.caffe.caffemodel import Blob, read_caffemodel
from bnfold.frontends.caffe.fold import fold_read
from bnfold.frontends.caffe.prototxt import read_text
from bnfold.frontends.caffe.wire import length_field
from tests.frontends.caffe import build
from tests.frontends.caffe.support import Builder, Pair, assert_equal, fold, kept

FORK = length_field(151, b"fork")


def blobs(content: bytes) -> dict[str, list[Blob]]:
    model = read_caffemodel(content, "x")
    return {layer.name: layer.blobs for layer in model.layers}


def dtypes(content: bytes) -> dict[str, list[str]]:
    return {name: [blob.dtype.str for blob in found] for name, found in blobs(content).items()}


def network(**options: bool) -> Builder:
    """conv, bn, scale, relu and a tail that does not change; what a half holds, so exactly."""
    builder = Builder()
    builder.conv(4, name="conv", **options)
    builder.batch_norm(name="bn")
    builder.scale(name="scale")
    builder.relu()
    builder.conv(2, name="tail", bias=True)
    for arrays in builder.arrays.values():
        arrays[:] = [np.asarray(array, dtype=np.float16).astype(float) for array in arrays]
    return builder


def mixed(builder: Builder, forms: dict[str, str]) -> Pair:
    """Each layer in its own form; those that are not named in half."""
    layers = [
        build.layer(
            name,
            "T",
            *(build.blob(one, data=forms.get(name, "half"), extra=FORK) for one in arrays),
        )
        for name, arrays in builder.arrays.items()
    ]
    return Pair(builder.pair().text, build.net(*layers))


# -------------------------------------------------------------------- what must not change


@pytest.mark.parametrize("form", ["packed", "unpacked", "double", "double-unpacked"])
def test_what_is_not_narrower_is_stored_as_it_was(form: str) -> None:
    before = network().pair(form=form)
    after, report = fold(before, storage="float32")
    assert (after, report) == fold(before)
    assert not any("--weights" in note for note in report.notes)


def test_what_does_not_change_is_kept_byte_for_byte() -> None:
    before = mixed(network(), {})
    after, _ = fold(before, storage="float32")
    old, new = blobs(before.weights)["tail"], blobs(after.weights)["tail"]
    for one, two in zip(old, new, strict=True):
        assert one.wire.content[one.start : one.end] == two.wire.content[two.start : two.end]


def test_a_bias_that_does_not_change_stays_half_beside_a_weight_that_does() -> None:
    """A step in front that only scales: the weight takes it, the bias, with its -0, is not read."""
    builder = Builder()
    builder.scale(name="scale", gamma=[2.0, -1.5, 0.5], bias=False)
    builder.conv(2, options="pad: 1", name="tail", bias=True)
    builder.arrays["tail"][1][:] = [-0.0, 1.0]
    before = mixed(builder, {})
    after, report = fold(before, storage="float32")
    assert kept(report) == {}
    assert dtypes(after.weights) == {"tail": ["<f4", "<f2"]}
    (_, old), (_, new) = blobs(before.weights)["tail"], blobs(after.weights)["tail"]
    assert old.read().tobytes() == new.read().tobytes()


def test_a_network_that_does_not_change_is_the_same_file() -> None:
    builder = Builder()
    builder.conv(4, name="conv")
    before = mixed(builder, {})
    after, report = fold(before, storage="float32")
    assert after == before
    assert not any("--weights" in note for note in report.notes)


# -------------------------------------------------------------------- what does


@pytest.mark.parametrize("bias", [True, False])
def test_halves_that_change_become_floats(bias: bool) -> None:
    before = mixed(network(bias=bias), {})
    after, report = fold(before, storage="float32")
    assert kept(report) == {}
    assert dtypes(after.weights) == {"conv": ["<f4", "<f4"], "tail": ["<f2", "<f2"]}
    assert not any("--weights" in note for note in report.notes)
    assert_equal(before, after, network().inputs(), tolerance=1e-6)
    stored, report = fold(before)
    assert dtypes(stored.weights) == {"conv": ["<f2", "<f2"], "tail": ["<f2", "<f2"]}
    (note,) = (note for note in report.notes if "--weights float32" in note)
    assert note.startswith("2 arrays that change are stored in float16")
    with pytest.raises(AssertionError):
        assert_equal(before, stored, network().inputs(), tolerance=1e-5)


@pytest.mark.parametrize("form", ["packed", "double"])
def test_layers_in_several_forms(form: str) -> None:
    before = mixed(network(), {"bn": form, "tail": form})
    after, _ = fold(before, storage="float32")
    other = {"packed": "<f4", "double": "<f8"}[form]
    assert dtypes(after.weights) == {"conv": ["<f4", "<f4"], "tail": [other, other]}
    assert_equal(before, after, network().inputs(), tolerance=1e-6)


def test_a_scale_that_stays_takes_a_batch_norm_in() -> None:
    builder = Builder()
    builder.layer("Sigmoid", name="first")
    builder.batch_norm(name="bn")
    builder.scale(name="scale")
    builder.layer("Sigmoid", name="last")
    before = mixed(builder, {})
    after, report = fold(before, storage="float32")
    assert list(kept(report)) == ["scale"]
    assert dtypes(after.weights) == {"scale": ["<f4", "<f4"]}
    assert_equal(before, after, builder.inputs(), tolerance=1e-6)


@pytest.mark.parametrize("shape", ["packed", "unpacked", "legacy"])
def test_the_form_of_a_half_that_became_a_float(shape: str) -> None:
    """Shape, gradients and fields of forks stay; the field that says "half" goes."""
    values, bias = np.array([[1.5, -2.0, 0.25], [3.0, 4.0, 8.0]]), np.array([0.5, -1.0])
    content = build.net(
        build.layer("a", "T", build.blob(values, shape=shape, data="half", extra=FORK))
    )
    changes = write.Changes(
        arrays={(0, 0): lambda: values / 3}, born={0: bias / 3}, weights="float32"
    )
    model = read_caffemodel(content, "x")
    new = b"".join(bytes(piece) for piece in write.rewrite(model, changes))
    expected = build.blob(values / 3, shape=shape, extra=FORK)
    born = build.blob(bias / 3, shape="legacy" if shape == "legacy" else "packed")
    assert new == build.net(build.layer("a", "T", expected, born))


@pytest.mark.parametrize("version", ["V0", "V1"])
def test_old_layers(version: str) -> None:
    values = np.arange(6.0)
    make = build.layer_v0 if version == "V0" else build.layer_v1
    kind = "conv" if version == "V0" else 4
    old = make("a", kind, build.blob(values, shape="legacy", data="half"))  # type: ignore[arg-type]
    new = make("a", kind, build.blob(values / 3, shape="legacy"))  # type: ignore[arg-type]
    changes = write.Changes(arrays={(0, 0): lambda: values / 3}, weights="float32")
    model = read_caffemodel(build.net(old), "x")
    assert b"".join(bytes(piece) for piece in write.rewrite(model, changes)) == build.net(new)


def test_a_weight_that_overflows_in_half_alone_goes() -> None:
    builder = Builder()
    builder.conv(4, name="conv")
    builder.scale(name="scale", gamma=[1e3, 1.0, 2.0, -1.0])
    builder.arrays["scale"][1][0] = 1e5
    builder.arrays["conv"][0] *= 1e4 / np.abs(builder.arrays["conv"][0]).max()
    before = mixed(builder, {"scale": "packed"})
    assert list(kept(fold(before)[1])) == ["scale"]
    after, report = fold(before, storage="float32")
    assert kept(report) == {}
    assert_equal(before, after, builder.inputs(), tolerance=1e-6)


# -------------------------------------------------------------------- the verdict


def written(folder: Path, model: Pair) -> Path:
    folder.mkdir()
    (folder / "net.caffemodel").write_bytes(model.weights)
    (folder / "net.prototxt").write_bytes(model.text)
    return folder / "net.prototxt"


def test_the_verdict_names_the_rounding_and_float32_has_none(tmp_path: Path) -> None:
    before = mixed(network(), {})
    source = written(tmp_path / "a", before)
    stored, report = bnfold.fold(source)
    assert sum("--weights float32" in note for note in report.notes) == 1
    result = bnfold.verify(source, stored)
    assert result.equal
    (note,) = (note for note in result.notes if "--weights float32" in note)
    assert note.startswith("Weights are stored in float16") and "is off by" in note
    wide, report = bnfold.fold(source, output=tmp_path / "wide.prototxt", weights="float32")
    assert not any("--weights" in note for note in report.notes)
    result = bnfold.verify(source, wide)
    assert result.equal and not any("--weights" in note for note in result.notes)
    assert max(one.max_relative for one in result.outputs) < 1e-6


def test_float32_weights_are_not_excused_by_halves_beside_them(tmp_path: Path) -> None:
    """An error that only float16 would explain, in a weight that is stored in float32."""
    before = mixed(network(), {})
    after, _ = fold(before, storage="float32")
    source = written(tmp_path / "a", before)
    arrays = {name: [blob.read() for blob in found] for name, found in blobs(after.weights).items()}
    arrays["conv"][0] = arrays["conv"][0].astype(np.float16).astype(np.float32)
    layers = [
        build.layer(
            name, "T", *(build.blob(a, data="half" if a.itemsize == 2 else "packed") for a in one)
        )
        for name, one in arrays.items()
    ]
    broken = written(tmp_path / "b", Pair(after.text, build.net(*layers)))
    assert not bnfold.verify(source, broken).equal


def test_inspect_says_it_too(tmp_path: Path) -> None:
    source = written(tmp_path / "a", mixed(network(), {}))
    notes = bnfold.inspect(source).notes
    assert any("--weights float32" in note for note in notes)
    assert not any("--weights" in n for n in bnfold.inspect(source, weights="float32").notes)
    document = bnfold.inspect(source).to_dict()
    assert any("--weights float32" in note for note in document["notes"])


def test_the_default_is_as_stored() -> None:
    before = mixed(network(), {})
    document = read_text(before.text, "x")
    folded, _ = fold_read(document, read_caffemodel(before.weights, "x"), clip="auto", phase=None)
    assert b"".join(bytes(piece) for piece in folded.weights()) == fold(before)[0].weights
