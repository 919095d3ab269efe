"""What a lifted graph says of the model: for each op that a plan may change, where it lives."""

from __future__ import annotations

from dataclasses import dataclass, field

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.weights import Layout
from bnfold.frontends.onnx.constants import Constants
from bnfold.frontends.onnx.nodes import Network, Node
from bnfold.frontends.onnx.shapes import Shape


@dataclass(frozen=True, slots=True, eq=False)
class BiasSite:
    """Where a linear op has its bias, or can be given one."""

    node: Node
    """The op itself, or the Add or Sub behind a MatMul."""
    position: int
    """Which input it is; -1 for an Add that has to be born behind the op."""
    name: str
    """The constant that is there; "" if there is none."""
    shape: Shape
    """How it is stored: (N,), or (1, N) as some Gemms have it."""
    factor: float = 1.0
    """What the op multiplies it by: Gemm's beta, or -1 where a Sub takes it off."""
    axis: int | None = None
    """Set where it is not one number per channel: the axis of the channels, from the back."""

    @property
    def place(self) -> tuple[Node, int, str, Shape]:
        """The input of a node that it is, and what is there."""
        return self.node, self.position, self.name, self.shape


@dataclass(frozen=True, slots=True, eq=False)
class LinearSite:
    """Where a linear op keeps its weight and bias."""

    node: Node
    position: int
    """Which input the weight is."""
    weight: str
    """The constant, in front of its transposition if there is one."""
    layout: Layout
    groups: int
    factor: float
    """What the op multiplies the weight by: Gemm's alpha, or -1 where a Sub takes it off."""
    bias: BiasSite | None
    """None where it cannot have one."""


@dataclass(frozen=True, slots=True, eq=False)
class AffineSite:
    """Where an affine step lives."""

    node: Node
    source: str
    """What goes in."""
    output: str
    """What comes out."""
    mean: FloatArray | None = None
    """Of a BatchNormalization; 0 for the norm of a sample, whose deviation is 1."""
    deviation: FloatArray | None = None
    """sqrt(var + eps)"""
    position: int = -1
    """Which input is the constant, in arithmetic."""


@dataclass(frozen=True, slots=True, eq=False)
class ClipSite:
    """Where an activation lives."""

    node: Node
    source: str
    """What goes in: a Max or Min may have its bound in front of it."""
    data_type: int


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedSite:
    """A linear op with an integer weight: its DequantizeLinear has a scale per output channel."""

    node: Node
    dequantize: Node
    bias: BiasSite


@dataclass(frozen=True, slots=True, eq=False)
class ConstantSite:
    """A constant that meets activations, as an input of a node."""

    node: Node
    position: int
    name: str
    axis: int
    """Along which its channels lie."""
    shape: Shape
    """What it has if there is a number for each channel, at the rank of what it meets."""


@dataclass(frozen=True, slots=True, eq=False)
class RecurrentSite:
    """The part of an LSTM, GRU or RNN that its input is multiplied by."""

    node: Node
    weight: str
    """(directions, rows, inputs)"""
    bias: str
    """(directions, 2 * rows); "" if there is none."""
    directions: int
    rows: int


Site = LinearSite | AffineSite | ClipSite | QuantizedSite | ConstantSite | RecurrentSite


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """Nodes that lay operands along a new axis, over which another one adds up."""

    concat: Node
    parts: tuple[Node, ...]
    """One per operand, which it reads first."""


@dataclass(slots=True)
class Lifted:
    """The core's view of a model, with the way back."""

    graph: g.Graph
    network: Network
    constants: Constants
    sites: dict[int, Site] = field(default_factory=dict)
    """Per op number."""
    gelu: frozenset[int] = frozenset()
    """Indices of the nodes whose numbers stay, see `gelu`."""
    scalars: set[int] = field(default_factory=set)
    """Numbers of the affine steps with one constant for all channels."""
    tensors: dict[str, int] = field(default_factory=dict)
    """Graph tensor per value."""
    stacks: dict[int, Stack] = field(default_factory=dict)
    """Per number of a sum, what stacks its operands first."""
