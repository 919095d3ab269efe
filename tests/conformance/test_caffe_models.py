"""Real, trained Caffe networks: every BatchNorm and every Scale goes, and they compute the same.

The weights are float32, so a folded weight is rounded once, to 2^-24 of itself. Executed in
float64, what is left of that at the outputs was 4.9e-6 at worst and 3.8e-7 in the median; executed
in float32, with the rounding of both runs, 1.1e-5 and 1.4e-6.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import bnfold
from bnfold.core.plan import make_plan
from bnfold.frontends.caffe.fold import read_files
from bnfold.frontends.caffe.lift import lift
from bnfold.frontends.caffe.read import read_net
from bnfold.frontends.caffe.run import run_net
from bnfold.frontends.caffe.shapes import infer
from tests.conformance.caffe_models import MODELS, CaffeModel
from tests.core.moving import changed
from tests.frontends.caffe.plain_text import Message, parse
from tests.frontends.caffe.wire import read_caffemodel

IN_FLOAT64, IN_FLOAT32 = 1e-5, 3e-5

folded_models = pytest.mark.parametrize(
    "folded", [pytest.param(model, id=model.name) for model in MODELS], indirect=True
)


class Folded:
    """A model, folded once for all tests."""

    def __init__(self, model: CaffeModel, folder: Path) -> None:
        self.model = model
        self.digests = [_digest(path) for path in (model.network, model.weights)]
        self.network = folder / f"{model.name}.prototxt"
        self.weights = self.network.with_suffix(".caffemodel")
        result = bnfold.fold((model.network, model.weights), output=self.network)
        self.report = result.report
        self.gone = {item.name for item in result.report.items}
        self.gone |= {name for one in result.report.merged for name in one.parts}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


_DONE: dict[str, Folded] = {}


@pytest.fixture
def folded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folded:
    model: CaffeModel = request.param
    if model.missing:
        pytest.skip(model.missing)
    if model.name not in _DONE:
        _DONE[model.name] = Folded(model, tmp_path_factory.mktemp("folded"))
    return _DONE[model.name]


def layers(path: Path) -> list[Message]:
    return parse(path.read_text(encoding="utf-8")).messages("layer")


@folded_models
def test_every_batch_norm_and_scale_is_gone(folded: Folded) -> None:
    model = folded.model
    before, after = layers(model.network), layers(folded.network)
    assert (len(before), len(after)) == model.layers
    for kind, counts in (("BatchNorm", model.batch_norms), ("Scale", model.scales)):
        found = tuple(
            Counter(layer.text("type") for layer in some)[kind] for some in (before, after)
        )
        assert found == counts, kind
    assert folded.report.kept == 0
    assert len(folded.gone) == len(before) - len(after)


@folded_models
def test_all_other_layers_are_there_in_their_order(folded: Folded) -> None:
    expected = [
        (layer.text("name"), layer.text("type"))
        for layer in layers(folded.model.network)
        if layer.text("name") not in folded.gone
    ]
    assert expected == [(x.text("name"), x.text("type")) for x in layers(folded.network)]


@folded_models
def test_the_layers_of_the_weights_are_those_of_the_network(folded: Folded) -> None:
    before = read_caffemodel(folded.model.weights.read_bytes())
    after = read_caffemodel(folded.weights.read_bytes())
    assert list(after) == [name for name in before if name not in folded.gone]
    for name in after.keys() - {one.into for one in folded.report.merged}:
        blobs = after[name]
        assert [blob.shape for blob in blobs[:1]] == [blob.shape for blob in before[name][:1]]


@folded_models
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", IN_FLOAT64), ("float32", IN_FLOAT32)])
def test_it_computes_the_same(folded: Folded, dtype: str, tolerance: float) -> None:
    expected = run_net(folded.model.network, folded.model.weights, dtype=dtype)
    actual = run_net(folded.network, folded.weights, dtype=dtype)
    assert list(actual) == list(expected)
    assert len(actual) == folded.model.outputs
    for name, wanted in expected.items():
        scale = np.abs(wanted).max()
        assert scale > 0, f"{name} is 0 everywhere: nothing is shown"
        assert np.abs(actual[name] - wanted).max() <= tolerance * scale, name


@folded_models
def test_the_input_files_are_not_touched(folded: Folded) -> None:
    files = (folded.model.network, folded.model.weights)
    assert folded.digests == [_digest(path) for path in files]


@folded_models
def test_a_second_fold_finds_nothing_to_do(folded: Folded, tmp_path: Path) -> None:
    again = tmp_path / "again.prototxt"
    report = bnfold.fold((folded.network, folded.weights), output=again).report
    assert report.total == 0
    assert again.read_bytes() == folded.network.read_bytes()
    assert again.with_suffix(".caffemodel").read_bytes() == folded.weights.read_bytes()


@folded_models
def test_each_step_names_the_layers_that_it_moves(folded: Folded) -> None:
    """One in nine of them, as each costs a plan."""
    net = read_net(*read_files(folded.model.network, folded.model.weights))
    infer(net)
    graph = lift(net).graph
    plan = make_plan(graph)
    files = (folded.model.network, folded.model.weights)
    named = {item.name: item.into for item in bnfold.inspect(files, merge="never").items}
    for number in list(plan.removed)[::9]:
        name = graph.ops[number].name
        assert set(named[name]) == changed(graph, plan, number, "auto"), name
