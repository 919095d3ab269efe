"""The network that Caffe makes of a prototxt and its weights, in one phase.

layers    in the order of the file, which is the order in which they run
values    a blob name is taken again by a layer that works in place: each version is a value
weights   the stored layer of the same name; Caffe looks at nothing but the name
"""

from __future__ import annotations

import dataclasses

from bnfold.frontends.caffe.caffemodel import Blob, Caffemodel, StoredLayer
from bnfold.frontends.caffe.options import Options
from bnfold.frontends.caffe.text_tree import Document, Field, Message, Scalar

Shape = tuple[int | None, ...]
"""Sizes along the axes; None where a size is not known."""

_SHAPE_READERS = {"Crop": 1, "PriorBox": 0, "PriorBoxClustered": 0, "Silence": 0}
"""Types that read nothing but shapes, from this bottom on."""


@dataclasses.dataclass(slots=True, eq=False)
class Layer:
    """A layer of the text."""

    name: str
    type: str
    """Today's name of the type; '' for a layer in the form of V0."""
    options: Options
    place: Field
    message: Message
    bottoms: list[Scalar]
    tops: list[Scalar]
    phase: str
    """TRAIN or TEST: its own, or the network's."""
    inputs: list[int] = dataclasses.field(default_factory=list)
    """Value numbers, one per bottom."""
    outputs: list[int] = dataclasses.field(default_factory=list)
    """Value numbers, one per top."""
    stored: StoredLayer | None = None
    """Its weights; None if the file has none for it."""

    @property
    def read(self) -> list[int]:
        """The inputs whose values it reads; of the others it reads the shape, if anything."""
        return self.inputs[: _SHAPE_READERS.get(self.type)]

    @property
    def blobs(self) -> list[Blob]:
        """Its arrays; none if the file has none."""
        return [] if self.stored is None else self.stored.blobs

    @property
    def param_names(self) -> list[str]:
        """The names under which its arrays are shared; '' for one that has no name."""
        if any(
            isinstance(v, Scalar) for field in self.message.named("param") for v in field.values
        ):
            return self.options.texts("param")  # V1 has the bare names
        return [param.text("name") for param in self.options.parts("param")]


@dataclasses.dataclass(slots=True)
class Value:
    """One version of a blob."""

    name: str
    maker: Layer | None
    """None for an input of the network."""
    readers: list[Layer] = dataclasses.field(default_factory=list)
    """A layer that reads it twice is here twice."""
    shape: Shape | None = None
    """None where not even the number of axes is known."""


@dataclasses.dataclass(slots=True)
class Net:
    """A network in one phase."""

    document: Document
    weights: Caffemodel
    layers: list[Layer] = dataclasses.field(default_factory=list)
    """Those of the phase."""
    others: list[Layer] = dataclasses.field(default_factory=list)
    """Those of the other phase alone."""
    values: list[Value] = dataclasses.field(default_factory=list)
    inputs: list[int] = dataclasses.field(default_factory=list)
    """Values that come from outside."""
    outputs: dict[int, str] = dataclasses.field(default_factory=dict)
    """Values that somebody outside sees, and how to call that; their names must survive."""
    elsewhere: dict[int, str] = dataclasses.field(default_factory=dict)
    """Values that the other phase needs as they are, and the layer to blame; names, too."""
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """What to call it in errors."""
        return self.document.name
