"""Fold a network in memory and run it before and after, in float64, by the independent runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold._storage import Weights
from bnfold.core.modes import ClipMode, MergeMode
from bnfold.frontends.caffe.caffemodel import read_caffemodel
from bnfold.frontends.caffe.fold import fold_read
from bnfold.frontends.caffe.prototxt import read_text
from bnfold.frontends.caffe.read import read_net
from bnfold.frontends.caffe.run import run as run_layers_of
from bnfold.frontends.caffe.run_layers import Execution
from bnfold.frontends.caffe.shapes import infer
from bnfold.frontends.caffe.text_tree import Message
from bnfold.report import FoldReport
from tests.frontends.caffe import build, plain_text
from tests.frontends.caffe.made_up import make_up
from tests.tolerances import EXACT

Arrays = Mapping[str, Sequence[NDArray[Any]]]


@dataclass(frozen=True)
class Pair:
    """A prototxt and a caffemodel."""

    text: bytes
    weights: bytes

    @property
    def names(self) -> list[str]:
        """The names of its layers, in order."""
        return [one.scalars("name")[-1].string for one in _layers(self.text)]

    def types(self) -> list[str]:
        """The types of its layers, in order."""
        return [one.scalars("type")[-1].string for one in _layers(self.text)]

    def stored(self) -> dict[str, list[NDArray[Any]]]:
        """The arrays in the file, by layer."""
        model = read_caffemodel(self.weights, "x")
        return {layer.name: [blob.read() for blob in layer.blobs] for layer in model.layers}


@lru_cache(maxsize=2)
def _layers(text: bytes) -> list[Message]:
    root = read_text(text, "x").root
    return root.messages("layer") or root.messages("layers")


def pair(text: str, arrays: Arrays, *, form: str = "double") -> Pair:
    """A network with these arrays; in double, so that a fold can be compared in float64."""
    layers = []
    for name, blobs in arrays.items():
        layers.append(build.layer(name, "T", *(build.blob(blob, data=form) for blob in blobs)))
    return Pair(text.encode(), build.net(*layers))


def fold(
    model: Pair,
    *,
    clip: ClipMode = "auto",
    phase: str | None = None,
    storage: Weights = "stored",
    merge: MergeMode = "auto",
) -> tuple[Pair, FoldReport]:
    """The folded pair and the report."""
    document = read_text(model.text, "net.prototxt")
    weights = read_caffemodel(model.weights, "net.caffemodel")
    folded, report = fold_read(
        document, weights, clip=clip, phase=phase, storage=storage, merge=merge
    )
    content = b"".join(bytes(piece) for piece in folded.weights())
    return Pair(folded.text, content), report


def run(model: Pair, inputs: Mapping[str, NDArray[Any]]) -> Execution:
    """The outputs of the TEST phase, in float64."""
    net = read_net(read_text(model.text, "x"), read_caffemodel(model.weights, "x"))
    infer(net)
    return run_layers_of(net, inputs)


def values(model: Pair, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """All that a run shows: the outputs, and what layers that cannot run would have read."""
    done = run(model, inputs)
    return {name: value.numpy() for name, value in done.values.items()}


def assert_equal(
    before: Pair, after: Pair, inputs: Mapping[str, NDArray[Any]], *, tolerance: float = EXACT
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


class Builder:
    """Writes a network layer by layer; every layer reads the last one's top unless told."""

    def __init__(self, shape: Sequence[int] | None = (2, 3, 8, 8), *, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = shape
        dims = " ".join(f"dim: {size}" for size in shape or ())
        self.parts = [f'input: "data"\ninput_shape {{ {dims} }}\n' if shape else ""]
        self.arrays: dict[str, list[NDArray[Any]]] = {}
        self.channels = {"data": shape[1] if shape and len(shape) > 1 else 1}
        self.last = "data"
        self.count = 0

    def layer(
        self,
        kind: str,
        extra: str = "",
        *,
        name: str | None = None,
        bottom: str | Sequence[str] | None = None,
        top: str | Sequence[str] | None = None,
        blobs: Sequence[NDArray[Any]] = (),
        channels: int | None = None,
    ) -> str:
        """Append a layer; returns the name of its first top. top="same" works in place."""
        self.count += 1
        name = name or f"{kind.lower()}{self.count}"
        bottoms = [bottom or self.last] if bottom is None or isinstance(bottom, str) else bottom
        if top == "same":
            top = bottoms[0]
        tops = [top or name] if top is None or isinstance(top, str) else top
        lines = [f'  name: "{name}"', f'  type: "{kind}"']
        lines += [f'  bottom: "{one}"' for one in bottoms] + [f'  top: "{one}"' for one in tops]
        lines += [f"  {extra}"] if extra else []
        self.parts.append("layer {\n" + "\n".join(lines) + "\n}\n")
        if blobs:
            self.arrays[name] = list(blobs)
        for one in tops:
            self.channels[one] = self.channels.get(bottoms[0], 1) if channels is None else channels
        self.last = tops[0] if tops else self.last
        return self.last

    def conv(
        self,
        out: int,
        kernel: int = 3,
        options: str = "",
        *,
        bias: bool = False,
        group: int = 1,
        kind: str = "Convolution",
        extra: str = "",
        **where: Any,
    ) -> str:
        """A convolution, or a Deconvolution, with random weights."""
        source = where.get("bottom") or self.last
        ins = self.channels[source if isinstance(source, str) else source[0]]
        shape = (ins, out // group) if kind == "Deconvolution" else (out, ins // group)
        blobs = [self.rng.normal(size=(*shape, kernel, kernel)) / kernel / shape[1] ** 0.5]
        if bias:
            blobs.append(self.rng.normal(size=out))
        text = f"convolution_param {{ num_output: {out} kernel_size: {kernel} {options}"
        text += f" group: {group}" if group != 1 else ""
        text += "" if bias else " bias_term: false"
        return self.layer(kind, f"{extra} {text} }}", blobs=blobs, channels=out, **where)

    def batch_norm(
        self, options: str = "", *, factor: float = 1.7, var: Any = None, **where: Any
    ) -> str:
        """A BatchNorm with random statistics, stored times `factor`."""
        count = self.channels[where.get("bottom") or self.last]
        mean = self.rng.normal(size=count)
        var = self.rng.uniform(0.2, 2.0, count) if var is None else np.asarray(var, float)
        blobs = [mean * factor, var * factor, np.array([factor])]
        text = f"batch_norm_param {{ {options} }}" if options else ""
        return self.layer("BatchNorm", text, blobs=blobs, **where)

    def scale(
        self, options: str = "", *, bias: bool = True, gamma: Any = None, **where: Any
    ) -> str:
        """A Scale with factors of both signs."""
        count = self.channels[where.get("bottom") or self.last]
        if gamma is None:
            gamma = self.rng.uniform(0.4, 1.6, count) * np.where(np.arange(count) % 3, 1, -1)
        blobs = [np.asarray(gamma, float)]
        if bias:
            blobs.append(self.rng.normal(size=blobs[0].shape))
        text = f"scale_param {{ {options} {'bias_term: true' if bias else ''} }}"
        return self.layer("Scale", text, blobs=blobs, **where)

    def inner_product(
        self,
        out: int,
        elements: int,
        *,
        bias: bool = False,
        options: str = "",
        shape: Sequence[int] | None = None,
        **where: Any,
    ) -> str:
        """An InnerProduct."""
        blobs = [self.rng.normal(size=shape or (out, elements)) / elements**0.5]
        if bias:
            blobs.append(self.rng.normal(size=out))
        text = f"inner_product_param {{ num_output: {out} {options}"
        text += " }" if bias else " bias_term: false }"
        return self.layer("InnerProduct", text, blobs=blobs, channels=out, **where)

    def relu(self, options: str = "", **where: Any) -> str:
        """In place, unless told otherwise."""
        return self.layer("ReLU", options, **{"top": "same", **where})

    def pair(self, *, form: str = "double") -> Pair:
        """What was written so far."""
        return pair("".join(self.parts), self.arrays, form=form)

    def inputs(self, **others: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Random values for the network's inputs."""
        shapes = {"data": self.shape or (2, 3, 8, 8), **others}
        return {name: self.rng.normal(size=tuple(shape)) for name, shape in shapes.items()}


def check(
    builder: Builder,
    *,
    tolerance: float = EXACT,
    clip: ClipMode = "auto",
    phase: str | None = None,
    merge: MergeMode = "auto",
    **inputs: Sequence[int],
) -> tuple[Pair, FoldReport]:
    """Fold what was built, compare the numbers, and return it with the report."""
    before = builder.pair()
    after, report = fold(before, clip=clip, phase=phase, merge=merge)
    assert_equal(before, after, builder.inputs(**inputs), tolerance=tolerance)
    again, _ = fold(after, clip=clip, phase=phase, merge=merge)
    assert again == after, "a fold of a fold changes something"
    return after, report


def kept(report: FoldReport) -> dict[str, str]:
    """The reasons of the layers that stay, by name."""
    return {item.name: str(item.reason) for item in report.items if not item.is_removed}


def assert_caffe_takes_it(model: Pair) -> None:
    """InsertSplits and AppendTop: a name is taken again only in place, by the only reader."""
    net = read_net(read_text(model.text, "x"), read_caffemodel(model.weights, "x"))
    seen: dict[str, int] = {}
    for number in net.inputs:
        seen[net.values[number].name] = number
    for layer in net.layers:
        for position, (top, number) in enumerate(zip(layer.tops, layer.outputs, strict=True)):
            if top.string in seen:
                before = seen[top.string]
                assert position < len(layer.inputs), layer.name
                assert layer.inputs[position] == before, layer.name
                assert len(net.values[before].readers) == 1, layer.name
            seen[top.string] = number
