"""Random nets are folded and compared: by rule legal, by number the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bnfold.frontends.caffe import fold_files
from bnfold.frontends.caffe.run import run_net
from bnfold.report import FoldReport
from tests.frontends.caffe.made_up import make_up
from tests.frontends.caffe.plain_text import parse
from tests.frontends.caffe.random_nets import assert_is_legal, random_net
from tests.frontends.caffe.wire import caffemodel

TOLERANCE = 1e-10
"""Of an output's largest value. The weights are stored in double precision."""


def assert_folds(folder: Path, seed: int) -> FoldReport:
    """Make a net, fold it, and compare."""
    text = random_net(seed).text
    net = parse(text)
    assert_is_legal(net)
    rng = np.random.default_rng(seed)
    inputs = {
        name: rng.normal(size=shape.integers("dim")).astype(np.float32)
        for name, shape in zip(net.texts("input"), net.messages("input_shape"), strict=True)
    }
    made = make_up(net, inputs, seed=seed)
    source, target = folder / "net.prototxt", folder / "folded.prototxt"
    source.write_text(text)
    weights = source.with_suffix(".caffemodel")
    weights.write_bytes(caffemodel(made.weights, double=True))
    _, report = fold_files(source, weights, target, clip="auto", force=True)
    assert_is_legal(parse(target.read_text()))
    assert_structure(text, target.read_text(), report)
    expected = run_net(source, weights, inputs)
    actual = run_net(target, target.with_suffix(".caffemodel"), inputs)
    assert list(actual) == list(expected), "the outputs are not the same ones"
    for name, wanted in expected.items():
        assert np.isfinite(wanted).all(), "the net itself is no good"
        scale = np.abs(wanted).max(initial=0) or 1.0
        assert np.abs(actual[name] - wanted).max(initial=0) <= TOLERANCE * scale, f"{name} differs"
    return report


def assert_structure(before: str, after: str, report: FoldReport) -> None:
    """Exactly the layers that the report calls removed are gone."""
    names = [layer.text("name") for layer in parse(before).messages("layer")]
    left = [layer.text("name") for layer in parse(after).messages("layer")]
    removed = {item.name for item in report.items if item.is_removed}
    assert left == [name for name in names if name not in removed]


@pytest.mark.parametrize("seed", range(40))
def test_a_random_net_computes_the_same(tmp_path: Path, seed: int) -> None:
    assert_folds(tmp_path, seed)
