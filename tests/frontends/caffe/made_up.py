"""Weights for a prototxt that comes without: right shapes, random values, sane statistics.

The net runs while its weights are made, so that a BatchNorm can get statistics near those of what
it sees, as training would leave them, and values neither vanish nor explode over a thousand layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnfold.frontends.caffe.run_layers import RUNS, RunLayer
from bnfold.frontends.caffe.run_step import NotRunnableError, Step
from tests.frontends.caffe.plain_text import Message

V1_TYPES = {
    **{"ABSVAL": "AbsVal", "CONCAT": "Concat", "CONVOLUTION": "Convolution", "DATA": "Data"},
    **{"DECONVOLUTION": "Deconvolution", "DROPOUT": "Dropout", "ELTWISE": "Eltwise"},
    **{"FLATTEN": "Flatten", "INNER_PRODUCT": "InnerProduct", "LRN": "LRN", "POOLING": "Pooling"},
    **{"POWER": "Power", "RELU": "ReLU", "SIGMOID": "Sigmoid", "SOFTMAX": "Softmax"},
    **{"SPLIT": "Split", "SLICE": "Slice", "TANH": "TanH"},
}


def tested_layers(net: Message) -> list[Message]:
    """The layers of the TEST phase, in order."""
    layers = [value for key, value in net.entries if key in ("layer", "layers")]
    return [layer for layer in layers if isinstance(layer, Message) and _is_tested(layer)]


def _is_tested(layer: Message) -> bool:
    def meets(rule: Message) -> bool:
        return rule.word("phase", "TEST", {0: "TRAIN", 1: "TEST"}) == "TEST" and not (
            rule.has("stage") or rule.integer("min_level", 0) > 0
        )

    if layer.messages("include"):
        return any(meets(rule) for rule in layer.messages("include"))
    return not any(meets(rule) for rule in layer.messages("exclude"))


def layer_type(layer: Message) -> str:
    text = layer.text("type", "")
    return V1_TYPES.get(text, text)


@dataclass
class MadeUp:
    """Weights, and what the net computes with them in float64."""

    weights: dict[str, tuple[str, list[NDArray[np.float32]]]] = field(default_factory=dict)
    """By layer name: type and blobs."""
    values: dict[str, Tensor] = field(default_factory=dict)
    """The last value of each blob name."""
    unknown: list[str] = field(default_factory=list)
    """Names of layers that could not run."""


def make_up(
    net: Message,
    inputs: Mapping[str, NDArray[np.float32]],
    *,
    seed: int = 0,
    factor: float = 3.7,
) -> MadeUp:
    """Weights for the TEST phase of a net; BatchNorms get sums of statistics over `factor`."""
    rng = np.random.default_rng(seed)
    made = MadeUp(values={name: torch.tensor(x).double() for name, x in inputs.items()})
    owners: dict[str, NDArray[np.float32]] = {}
    with torch.no_grad():
        for layer in tested_layers(net):
            _make_layer(layer, made, rng, owners, factor)
    return made


def _make_layer(
    layer: Message,
    made: MadeUp,
    rng: np.random.Generator,
    owners: dict[str, NDArray[np.float32]],
    factor: float,
) -> None:
    name, kind = layer.text("name", ""), layer_type(layer)
    bottoms, tops = layer.texts("bottom"), layer.texts("top")
    given = [made.values.get(bottom) for bottom in bottoms]
    names = [param.text("name", "") for param in layer.messages("param")]
    expected = 3 if kind == "BatchNorm" else 0
    if kind == "BN":  # the one type whose number of blobs says what it does
        expected = 2 if layer.part("bn_param").text("bn_mode") == "INFERENCE" else 4
    step = MakingStep(
        layer,
        (torch.zeros(()),) * expected,
        tuple(x for x in given if x is not None),
        len(tops),
        kind=kind,
        rng=rng,
        names=names,
        owners=owners,
        factor=factor,
    )
    try:
        if not bottoms or len(step.bottoms) < len(given) or kind not in RUNS:
            raise NotRunnableError
        results: Sequence[Tensor | None] = RUNS[kind](step)
    except NotRunnableError:
        made.unknown.append(name)
        results = [made.values.get(top) if not bottoms else None for top in tops]
    for top, result in zip(tops, results, strict=True):
        if result is None:
            made.values.pop(top, None)
        else:
            made.values[top] = result.contiguous()
    if step.made:
        made.weights[name] = (kind, step.made)


@dataclass(frozen=True)
class MakingStep(Step):
    """A step whose blobs are made when they are asked for."""

    kind: str = ""
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    made: list[NDArray[np.float32]] = field(default_factory=list)
    names: Sequence[str] = ()
    owners: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    factor: float = 1.0

    def blob(self, number: int, shape: Sequence[int]) -> Tensor:
        if number < len(self.made):
            return torch.tensor(self.made[number]).double().reshape(tuple(shape))
        assert number == len(self.made), "blobs are asked for in order"
        name = self.names[number] if number < len(self.names) else ""
        values = self.owners.get(name) if name else None
        if values is None:
            values = np.asarray(self._values(number, tuple(shape)), np.float32).reshape(shape)
        if name:
            self.owners[name] = values
        self.made.append(values)
        return torch.tensor(values).double()

    def _values(self, number: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
        rng = self.rng
        if self.kind == "BatchNorm" and number < 3:
            return self._statistic(number, shape)
        if self.kind == "BatchNorm" and number == 3:
            return rng.uniform(0.5, 1.5, shape) * rng.choice([1.0, 1.0, -1.0], shape)
        if self.kind == "PReLU":
            return rng.uniform(0.1, 0.4, shape)
        if number == 0 and self.kind in ("Scale", "Normalize", "BN"):
            return rng.uniform(0.5, 1.5, shape) * rng.choice([1.0, 1.0, -1.0], shape)
        if number == 0 and len(shape) > 1:
            inputs = int(np.prod(shape[1:]))
            if self.kind == "Deconvolution":
                inputs = shape[0] * int(np.prod(shape[2:]))
            return rng.normal(0, (2 / max(1, inputs)) ** 0.5, shape)
        if self.kind == "BN" and number == 3:
            return rng.uniform(0.5, 2.0, shape)
        return rng.normal(0, 0.3, shape)

    def _statistic(self, number: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Sums of statistics; NVIDIA's are no sums."""
        factor = 1.0 if self.fields.part("batch_norm_param").has("scale_bias") else self.factor
        if number == 2:
            return np.full(shape, factor)
        x = self.bottoms[0]
        axes = [axis for axis in range(x.dim()) if axis != 1]
        deviation = x.std(axes, correction=0).numpy()
        deviation = np.where(np.isfinite(deviation) & (deviation > 1e-3), deviation, 1.0)
        if number == 0:
            mean = x.mean(axes).numpy() + self.rng.normal(0, 0.3, shape) * deviation
            return np.where(np.isfinite(mean), mean, 0.0) * factor
        return deviation**2 * self.rng.uniform(0.6, 1.8, shape) * factor


def run_layers(
    net: Message,
    weights: Mapping[str, tuple[str, Sequence[NDArray[np.float32]]]],
    dtype: torch.dtype,
) -> list[RunLayer]:
    """The TEST phase of a net as the runner takes it."""
    layers = []
    for layer in tested_layers(net):
        if not layer.texts("bottom"):
            continue
        name = layer.text("name", "")
        blobs = tuple(torch.tensor(blob).to(dtype) for blob in weights.get(name, ("", []))[1])
        layers.append(
            RunLayer(
                name,
                layer_type(layer),
                tuple(layer.texts("bottom")),
                tuple(layer.texts("top")),
                layer,
                blobs,
            )
        )
    return layers
