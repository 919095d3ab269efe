"""Fold a network in memory and run it before and after, in float64, by the independent runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bnfold.core.solver import ClipMode
from bnfold.frontends.caffe.caffemodel import read_caffemodel
from bnfold.frontends.caffe.fold import fold_read
from bnfold.frontends.caffe.prototxt import Message, read_text
from bnfold.frontends.caffe.run_layers import Execution, RunLayer, execute
from bnfold.report import FoldReport
from tests.frontends.caffe import build, plain_text
from tests.frontends.caffe.made_up import layer_type, make_up, tested_layers

Arrays = Mapping[str, Sequence[NDArray[Any]]]


@dataclass(frozen=True)
class Pair:
    """A prototxt and a caffemodel."""

    text: bytes
    weights: bytes

    @property
    def names(self) -> list[str]:
        """The names of its layers, in order."""
        return [one.scalars("name")[-1].string for one in self._layers()]

    def types(self) -> list[str]:
        """The types of its layers, in order."""
        return [one.scalars("type")[-1].string for one in self._layers()]

    def _layers(self) -> list[Message]:
        root = read_text(self.text, "x").root
        return root.messages("layer") or root.messages("layers")

    def stored(self) -> dict[str, list[NDArray[Any]]]:
        """The arrays in the file, by layer."""
        model = read_caffemodel(self.weights, "x")
        return {layer.name: [blob.read() for blob in layer.blobs] for layer in model.layers}


def pair(text: str, arrays: Arrays, *, form: str = "double") -> Pair:
    """A network with these arrays; in double, so that a fold can be compared in float64."""
    layers = []
    for name, blobs in arrays.items():
        layers.append(build.layer(name, "T", *(build.blob(blob, data=form) for blob in blobs)))
    return Pair(text.encode(), build.net(*layers))


def fold(
    model: Pair, *, clip: ClipMode = "auto", phase: str | None = None
) -> tuple[Pair, FoldReport]:
    """The folded pair and the report."""
    document = read_text(model.text, "net.prototxt")
    weights = read_caffemodel(model.weights, "net.caffemodel")
    folded, report = fold_read(document, weights, clip=clip, phase=phase)
    content = b"".join(bytes(piece) for piece in folded.weights())
    return Pair(folded.text, content), report


def run(model: Pair, inputs: Mapping[str, NDArray[Any]]) -> Execution:
    """The outputs of the TEST phase, in float64."""
    net = plain_text.parse(model.text.decode("utf-8", "surrogateescape"))
    stored = model.stored()
    layers = []
    for layer in tested_layers(net):
        if not layer.texts("bottom"):
            continue
        name = layer.word("name", "")
        blobs = tuple(torch.tensor(np.asarray(b, np.float64)) for b in stored.get(name, ()))
        tops, bottoms = tuple(layer.texts("top")), tuple(layer.texts("bottom"))
        layers.append(RunLayer(name, layer_type(layer), bottoms, tops, layer, blobs))
    given = {name: torch.tensor(x).double() for name, x in inputs.items()}
    return execute(layers, given)


def values(model: Pair, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """All that a run shows: the outputs, and what layers that cannot run would have read."""
    done = run(model, inputs)
    return {name: value.numpy() for name, value in {**done.outputs, **done.read}.items()}


def assert_equal(
    before: Pair, after: Pair, inputs: Mapping[str, NDArray[Any]], *, tolerance: float = 1e-9
) -> float:
    """Compare all outputs, relative to the largest value of each; returns the worst."""
    expected, actual = values(before, inputs), values(after, inputs)
    assert expected.keys() == actual.keys()
    assert expected
    worst = 0.0
    for name, value in expected.items():
        assert value.shape == actual[name].shape
        assert np.isfinite(value).all()
        size = float(np.abs(value).max(initial=0)) or 1.0
        worst = max(worst, float(np.abs(value - actual[name]).max(initial=0)) / size)
    assert worst <= tolerance, f"{worst:.2e}"
    return worst


def made_up(text: str, inputs: Mapping[str, NDArray[Any]], *, seed: int = 0) -> Pair:
    """A network with random weights, and statistics like those of its values, in double."""
    made = make_up(plain_text.parse(text), inputs, seed=seed)
    return pair(text, {name: blobs for name, (_, blobs) in made.weights.items()})
