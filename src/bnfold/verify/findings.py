"""What a verification found: per output, per layer, and the verdict.

A distance is a root mean square (RMS) of a difference, in the units of the output; `relative`
says that it was divided by the size of what it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

from bnfold._document import Document, told


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """How far one output of the folded model is from the original's."""

    name: str
    """As the original calls it."""
    dtype: str
    """As the model returns it: float32, bfloat16, int64, ..."""
    shape: tuple[int, ...]
    """Its size along each axis."""
    max_absolute: float
    """Largest absolute difference; infinite where one is NaN or infinite and the other is not."""
    mean_absolute: float
    """Mean absolute difference."""
    max_relative: float
    """Largest absolute difference, relative to the largest value of the output."""
    mean_relative: float
    """Mean absolute difference, relative to the mean absolute value of the output."""
    cosine: float
    """Cosine of the angle between the two outputs, as vectors; 1 where both are 0."""
    top1: float | None
    """The share of samples whose largest class is the same; None where it is no class score."""
    error: float
    """RMS distance of the folded model's output from the truth."""
    own_error: float
    """RMS distance of the original's output, in its own dtype, from the truth."""
    allowed: float
    """What `error` may be: see docs/design/0005-verdict.md."""
    equal: bool
    """Whether rounding explains the difference, in the output and in each of its channels."""
    detail: str = ""
    """Where it is not equal: what was found, in words."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return _as_dict(self)


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """How far one tensor inside the folded model is from the original's."""

    name: str
    """The layer that makes it, or the tensor: a module path, a node, a blob."""
    kind: str
    """What the layer is: Conv2d, Relu, InnerProduct, ..."""
    relative: float
    """RMS difference, the folded tensor rescaled back by the plan, relative to the tensor's RMS."""
    own: float | None
    """What rounding the folded model's weights does there, in the same units; None where it is not
    known."""
    equal: bool
    """Whether rounding explains the difference, in each channel."""
    allowed: float | None = None
    """What the worst channel's difference may be, relative to its size; None where it is equal."""
    channel: int | None = None
    """The channel where the difference is the least explained; None where all are equal."""
    excess: float = 0.0
    """The worst channel's difference, in units of what rounding explains: more than 1 is wrong."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return _as_dict(self)


@dataclass(frozen=True, slots=True)
class Findings(Document):
    """The verdict, and what it rests on: a `VerifyResult` without its looks."""

    schema: ClassVar[str] = "bnfold.verify/1"

    equal: bool
    """Whether rounding explains every difference that was found."""
    outputs: tuple[OutputDifference, ...] = ()
    """In the order of the original's outputs."""
    layers: tuple[LayerDifference, ...] = ()
    """In the order of the network; empty where layers were not compared."""
    parting: str | None = None
    """The first layer where the two part; None if they do not, or if layers were not compared."""
    samples: int = 0
    """How many inputs both were run on."""
    seed: int | None = None
    """Of the random inputs; None where the inputs were given."""
    truth: str = "float64"
    """What the distances are measured from: "float64", the original in float64; "nudged", the
    original itself, its rounding error seen by moving its inputs and weights by their last bit;
    "original", the original itself, which has no rounding error to speak of."""
    runtimes: Mapping[str, str] = field(default_factory=dict)
    """What ran the two, with versions."""
    notes: tuple[str, ...] = ()
    """What could not be looked at, and what else the reader should know."""
    proven: bool = True
    """Whether the verdict is certain. If not, the two are farther apart than rounding is known to
    move them, but rounding could not be measured well enough to call that a fault; `equal` is
    False then."""

    scope: str = ""
    """What was run on what, where float64 was run on smaller inputs than those that the model
    declares; empty where not. Then an output's `error` is the distance of the two models in their
    own dtype, and what float64 says of the smaller one is in units of its size."""

    loses_digits: bool = False
    """Whether the fold is right, and all that parts the two is what their own dtype holds; not
    known of a document."""

    @property
    def verdict(self) -> str:
        """equal, not equal, or not proven."""
        if self.equal:
            return "equal"
        return "not equal" if self.proven else "not proven"

    @property
    def summary(self) -> str:
        """One line: the verdict, and the largest difference."""
        if not self.equal:
            wrong = [output.name for output in self.outputs if not output.equal]
            where = f" in {', '.join(wrong[:3])}" if wrong else ""
            parted = f"; they part at {self.parting}" if self.parting else ""
            if not self.proven:
                where = f": rounding may or may not explain the difference{where}"
            return f"{self.verdict}{where}{parted}"
        if not self.outputs:
            return "equal: nothing to compare"
        worst = max(self.outputs, key=lambda output: output.max_relative)
        return (
            f"equal: largest difference {max(o.max_absolute for o in self.outputs):.2g} absolute,"
            f" {worst.max_relative:.2g} relative"
        )

    def _content(self) -> dict[str, Any]:  # what is not finite is "inf", "-inf" or "nan"
        settings = told(self, "equal", "verdict", "parting", "truth", "samples", "seed")
        results = told(self, "outputs", "layers", "runtimes", "notes", "scope")
        return {**settings, **results}

    @classmethod
    def _read(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["equal"],
            tuple(_read(OutputDifference, output) for output in data["outputs"]),
            tuple(_read(LayerDifference, layer) for layer in data["layers"]),
            data["parting"],
            data["samples"],
            data["seed"],
            data["truth"],
            dict(data["runtimes"]),
            tuple(data["notes"]),
            data.get("verdict") != "not proven",
            data.get("scope", ""),
        )


_TEXTS = ("name", "dtype", "kind", "detail")


def _as_dict(value: OutputDifference | LayerDifference) -> dict[str, Any]:
    """The fields, in JSON's types."""
    return {name: _number(content) for name, content in asdict(value).items()}


def _number(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _read(cls: Any, data: Mapping[str, Any]) -> Any:
    values = {}
    for entry in fields(cls):
        if entry.name not in data and entry.name == "excess":  # younger than the schema
            continue
        value = data[entry.name]
        if isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, str) and entry.name not in _TEXTS:
            value = float(value)
        values[entry.name] = value
    return cls(**values)
