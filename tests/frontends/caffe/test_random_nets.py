"""Random nets are folded and compared: by rule legal, by number the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import bnfold
from bnfold.frontends.caffe.run import run_net
from bnfold.report import FoldReport
from tests.frontends.caffe.made_up import make_up
from tests.frontends.caffe.plain_text import parse
from tests.frontends.caffe.random_nets import assert_is_legal, random_net, restyle
from tests.frontends.caffe.wire import caffemodel

TOLERANCE = 1e-10
"""Of an output's largest value. The weights are stored in double precision."""


def assert_folds(folder: Path, seed: int, *, form: str = "plain") -> FoldReport:
    """Make a net, fold it, and compare."""
    made = random_net(seed)
    text = made.open_text if form == "open" else made.text
    if form == "styled":
        text = restyle(text, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    inputs = {key: rng.normal(size=size).astype(np.float32) for key, size in made.shapes.items()}
    weights = make_up(parse(made.text), inputs, seed=seed).weights
    if form == "dead":
        let_channels_die(weights, np.random.default_rng(seed))
    source, target = folder / "net.prototxt", folder / "folded.prototxt"
    source.write_bytes(text.encode())
    stored = source.with_suffix(".caffemodel")
    is_legacy = form == "legacy"
    stored.write_bytes(caffemodel(weights, double=True, legacy=is_legacy, packed=not is_legacy))
    assert_is_legal(parse(text))
    _, report = bnfold.fold((source, stored), output=target, force=True)
    after = target.read_bytes().decode()
    assert_is_legal(parse(after))
    assert_structure(text, after, report)
    expected = run_net(source, stored, inputs)
    actual = run_net(target, target.with_suffix(".caffemodel"), inputs)
    assert list(actual) == list(expected), "the outputs are not the same ones"
    for name, wanted in expected.items():
        assert np.isfinite(wanted).all(), "the net itself is no good"
        scale = np.abs(wanted).max(initial=0) or 1.0
        assert np.abs(actual[name] - wanted).max(initial=0) <= TOLERANCE * scale, f"{name} differs"
    return report


def let_channels_die(
    weights: dict[str, tuple[str, list[NDArray[np.float32]]]], rng: np.random.Generator
) -> None:
    """As training leaves channels that nobody needs: zeros, denormals, no statistics at all."""
    for kind, blobs in weights.values():
        if kind == "BatchNorm":
            blobs[1][rng.random(blobs[1].shape) < 0.15] = 0.0
            blobs[1][rng.random(blobs[1].shape) < 0.1] = 1e-41
            if rng.random() < 0.15:
                blobs[2][:] = 0.0
        elif kind == "Scale":
            blobs[0][rng.random(blobs[0].shape) < 0.25] = 0.0
        elif kind == "Convolution":
            blobs[0][rng.random(len(blobs[0])) < 0.1] = 0.0


def assert_structure(before: str, after: str, report: FoldReport) -> None:
    """The layers that the report calls removed or merged are gone, and sums of what was merged."""
    kinds = {one.text("name"): one.text("type") for one in parse(before).messages("layer")}
    left = [layer.text("name") for layer in parse(after).messages("layer")]
    removed = {item.name for item in report.items if item.is_removed}
    removed |= {name for one in report.merged for name in one.parts}
    sums = [n for n in kinds if report.merged and kinds[n] == "Eltwise" and n not in left]
    assert left == [name for name in kinds if name not in {*removed, *sums}]


@pytest.mark.parametrize("seed", range(40))
def test_a_random_net_computes_the_same(tmp_path: Path, seed: int) -> None:
    assert_folds(tmp_path, seed)


@pytest.mark.parametrize("seed", [*range(100, 120), 34, 135])
def test_so_does_one_that_does_not_say_how_large_its_inputs_are(tmp_path: Path, seed: int) -> None:
    assert_folds(tmp_path, seed, form="open")


@pytest.mark.parametrize("seed", range(200, 220))
def test_so_does_one_in_another_hand(tmp_path: Path, seed: int) -> None:
    assert_folds(tmp_path, seed, form="styled")


@pytest.mark.parametrize("seed", range(400, 430))
def test_so_does_one_with_dead_channels(tmp_path: Path, seed: int) -> None:
    assert_folds(tmp_path, seed, form="dead")


@pytest.mark.parametrize("seed", [*range(300, 310), 3017, 3137, 3224])
def test_so_does_one_of_an_old_caffe(tmp_path: Path, seed: int) -> None:
    """Four numbers as a shape, whatever the number of axes, and a tag before every value."""
    assert_folds(tmp_path, seed, form="legacy")
