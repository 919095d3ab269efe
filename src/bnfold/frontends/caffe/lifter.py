"""A lift under way: the values' tensors, and how ops are added to the core's graph.

A size that is not known is 1 in the core's graph: labels never change along such an axis, so they
broadcast; what would need the size is opaque.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from bnfold.core import graph as g
from bnfold.core.weights import Layout
from bnfold.frontends.caffe.caffemodel import Blob
from bnfold.frontends.caffe.memory import overwritten
from bnfold.frontends.caffe.net import Layer, Net, Shape
from bnfold.frontends.caffe.options import Options
from bnfold.frontends.caffe.sharing import Sharing

_NVIDIA = {"default_forward_type", "default_backward_type", "default_forward_math"}
MAX_ELEMENTS = 20_000_000
"""A value with more elements than this is not followed through a change of its axes."""
ROOM = False
"""Whether a ReLU can be given bounds per channel: no layer of Caffe has any."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LinearSite:
    """Where a linear op's weights are."""

    layer: Layer
    layout: Layout
    groups: int
    matrix: tuple[int, ...]
    """The weight's shape; old files write an InnerProduct's as 1 x 1 x N x K."""
    part: str
    """The message that holds bias_term."""
    is_editable: bool = True
    """Whether the weight and the bias may change."""

    @property
    def weight(self) -> Blob:
        """The weight."""
        return self.layer.blobs[0]

    @property
    def bias(self) -> Blob | None:
        """The bias; None if there is none yet."""
        return self.layer.blobs[1] if len(self.layer.blobs) > 1 else None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class AffineSite:
    """Where an affine step's constants are, in case that it stays."""

    layer: Layer
    scale: int | None = None
    """Index of the blob with the factors; None if they cannot be edited."""
    shift: int | None = None
    """Index of the blob with the summands, which may have to be born; None as above."""


Site = LinearSite | AffineSite


@dataclasses.dataclass(slots=True)
class Lifted:
    """The graph, and where its ops come from."""

    graph: g.Graph
    sites: dict[int, Site] = dataclasses.field(default_factory=dict)
    """Per op number, for what may have to be edited or removed."""
    tensors: dict[int, int] = dataclasses.field(default_factory=dict)
    """The graph's tensor of each value."""


class Lifter:
    """The state of a lift."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.graph = g.Graph()
        self.sites: dict[int, Site] = {}
        self.tensors: dict[int, int] = {}
        """The graph's tensor of each value."""
        self.flattened: dict[tuple[int, int, int], int] = {}
        """The tensors that layers make of what they read, by themselves: the axes of a tensor from
        one on as one, each label standing for so many elements."""
        self.sharing = Sharing(net)
        fields = {field.name for field in net.document.root.fields}
        self.is_nvidia = bool(fields & _NVIDIA)
        """Whether the file has fields that only NVIDIA's Caffe knows."""
        types = Options(net.document, net.document.root).texts("default_forward_type")
        self.is_half = "FLOAT16" in types
        """Whether values are float16 by default."""
        self.notes_before = len(net.notes)
        self.overwritten = overwritten(net)
        """Values whose memory a layer overwrites while another one still reads it."""

    def start_again(self) -> None:
        """Forget what was lifted, but not what is known of shared weights."""
        self.graph, self.sites, self.tensors, self.flattened = g.Graph(), {}, {}, {}
        del self.net.notes[self.notes_before :]

    def shape(self, number: int) -> Shape | None:
        """The shape of a value."""
        return self.net.values[number].shape

    def source(self, layer: Layer) -> Shape | None:
        """The shape of a layer's first bottom."""
        return self.shape(layer.inputs[0])

    def add(self, layer: Layer, role: g.Role, inputs: Sequence[int], outputs: Sequence[int]) -> int:
        """Append an op from values to values; returns its number."""
        tensors = [self.tensors[number] for number in inputs]
        shapes = [placeholder(self.shape(number)) for number in outputs]
        made = self.graph.add(layer.name, role, tensors, shapes, kind=layer.type)
        self.tensors.update(zip(outputs, made, strict=True))
        return len(self.graph.ops) - 1

    def add_view(self, layer: Layer, role: g.View, tensor: int, shape: Sequence[int]) -> int:
        """Append a view of one tensor; returns the new tensor."""
        (made,) = self.graph.add(layer.name, role, [tensor], [shape])
        return made

    def opaque(self, layer: Layer) -> None:
        """Append an op of which nothing is known but what it reads."""
        self.add(layer, g.Opaque(), layer.read, layer.outputs)

    def input(self, number: int) -> None:
        """A value that comes from outside."""
        value = self.net.values[number]
        self.tensors[number] = self.graph.input(placeholder(value.shape), value.name)


def placeholder(shape: Shape | None) -> tuple[int, ...]:
    """The shape with 1 for what is not known."""
    return (1,) if shape is None else tuple(1 if size is None else size for size in shape)


def is_one_to_one(layer: Layer) -> bool:
    """Whether it has one bottom and one top."""
    return len(layer.bottoms) == len(layer.tops) == 1


def only_image(lifter: Lifter, layer: Layer) -> Shape | None:
    """The shape of the one bottom of four axes; None where there are more, or other tops."""
    shape = lifter.source(layer)
    return shape if shape is not None and len(shape) == 4 and is_one_to_one(layer) else None


def one_to_one(lifter: Lifter, layer: Layer, role: g.Role) -> bool:
    """Add an op of the one bottom and the one top; False where there are more."""
    if not is_one_to_one(layer):
        return False
    lifter.add(layer, role, layer.inputs, layer.outputs)
    return True


def are_alike(shapes: Sequence[Shape | None]) -> bool:
    """Whether the shapes agree, as far as they are known."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or len({len(shape) for shape in known}) != 1:
        return False
    return all(len(set(sizes) - {None}) <= 1 for sizes in zip(*known, strict=True))
