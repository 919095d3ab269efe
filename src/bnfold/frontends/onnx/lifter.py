"""A lift under way: what is known of the model, and how ops are added to the core's graph.

Where dimensions are open (see `shapes`), labels may only vary along axes whose length is fixed;
an op that would make them vary along an open one is opaque.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.core import graph as g
from bnfold.core import labels as lab
from bnfold.core.affine import FloatArray
from bnfold.core.forest import IntArray
from bnfold.core.reasons import Reason
from bnfold.frontends.onnx.constants import Constants
from bnfold.frontends.onnx.gelu import gelu_nodes
from bnfold.frontends.onnx.limits import narrowing
from bnfold.frontends.onnx.nodes import Network, Node, aligned
from bnfold.frontends.onnx.shapes import Shape, Shapes
from bnfold.frontends.onnx.sites import Lifted
from bnfold.frontends.onnx.tensors import FLOATS
from bnfold.frontends.onnx.written import BROADCASTS

_MOST_AXES, _LONGEST_AXIS, _MOST_ELEMENTS = 16, 1 << 24, 1 << 48

Handler = Callable[["Lifter", Node], bool]


class Lifter:
    """The state of a lift."""

    def __init__(
        self, network: Network, constants: Constants, shapes: Shapes, *, ties: bool
    ) -> None:
        self.network = network
        self.constants = constants
        self.shapes = shapes
        self.graph = g.Graph()
        self.lifted = Lifted(self.graph, network, constants, gelu=gelu_nodes(network))
        self.tensors = self.lifted.tensors
        self.names: dict[int, str] = {}
        """The other way round."""
        self.varying: dict[int, frozenset[int]] = {}
        """Axes along which the labels of a graph tensor may vary."""
        self.ties = ties
        """Whether ops that share a weight get one edit, or weights of their own."""
        self.claimed: set[int] = set()
        """Indices of the steps that each pay for the Add that a MatMul may be given."""
        self.takes_signs = any(node.op == "Sign" for node in network.nodes)

    # ---------------------------------------------------------------- what is known

    def shape(self, name: str) -> Shape | None:
        """The shape of a value; None if it is unknown, empty, or none that an array can have."""
        shape = self.shapes.of(name) if name else None
        return None if shape is None or 0 in shape or not _is_sane(shape) else shape

    def is_float(self, name: str) -> bool:
        """Whether the value can be stored rescaled, as far as its dtype and shape go."""
        return self.shapes.dtypes.get(name) in FLOATS and self.shape(name) is not None

    def is_activation(self, name: str) -> bool:
        """Whether the value is a float that depends on what the user passes in."""
        return bool(name) and not self.constants.is_constant(name) and self.is_float(name)

    def only_reader(self, name: str) -> Node | None:
        """The node that alone reads the value."""
        readers = self.network.value_readers(name)
        if len(readers) != 1 or self.network.is_pinned(name):
            return None
        return readers[0][0]

    # ---------------------------------------------------------------- ops

    def tensor(self, name: str) -> int:
        """The graph tensor of a value; one that nothing made is stored as it is."""
        known = self.tensors.get(name)
        if known is None:
            known = self.graph.tensor(self.shape(name) or ())
            self.name(name, known)
        return known

    def name(self, name: str, number: int) -> None:
        """Say which graph tensor a value is."""
        self.tensors[name] = number
        self.names[number] = name

    def emit(
        self,
        node: Node,
        role: g.Role,
        inputs: Sequence[int],
        varying: frozenset[int] | Sequence[frozenset[int]],
        *,
        outputs: Sequence[str] | None = None,
        name: str | None = None,
    ) -> int | None:
        """Add an op that makes the outputs; returns its number.

        `varying` says along which axes of the outputs labels may vary; None comes back, and
        nothing is added, if one of them is open.
        """
        made = [o for o in (node.outputs if outputs is None else outputs) if o]
        each = [varying] * len(made) if isinstance(varying, frozenset) else list(varying)
        if self.shapes.count > 1 and any(
            axes & self.shapes.open_axes(output) for output, axes in zip(made, each, strict=True)
        ):
            return None
        shapes = [self.shape(output) or () for output in made]
        numbers = self.graph.add(name or node.name, role, inputs, shapes, kind=node.op)
        for output, number, axes in zip(made, numbers, each, strict=True):
            self.name(output, number)
            self.varying[number] = axes
        return len(self.graph.ops) - 1

    def axes_of(self, tensor: int, rank: int | None = None) -> frozenset[int]:
        """The varying axes of a graph tensor, counted as in a tensor of higher rank."""
        axes = self.varying.get(tensor, frozenset())
        if rank is None:
            return axes
        behind = rank - len(self.graph.shapes[tensor])
        return frozenset(axis + behind for axis in axes)

    def opaque(self, node: Node, reason: Reason = Reason.NONLINEAR) -> None:
        """Nothing is known about the node."""
        read = dict.fromkeys(n for n in node.inputs if n and not self.constants.is_constant(n))
        inputs = [self.tensor(name) for name in read]
        self.emit(node, g.Opaque(reason), inputs, frozenset())

    def emit_view(
        self,
        node: Node,
        inputs: Sequence[int],
        outputs: Sequence[str],
        make: Callable[[int], lab.Apply],
        *,
        concat: int | None = None,
        keeps_all: bool = False,
        one_entry: lab.Apply | None = None,
    ) -> bool:
        """Add an op that moves values; `make` gives it for each choice of the open dimensions.

        `keeps_all` says that it makes what it reads, perhaps in another dtype. `one_entry` is for
        an op that lays the same along an open axis over and over: what it makes of inputs that have
        one entry along each.
        """
        if one_entry is not None and self.shapes.open_axes(outputs[0]):
            return self._emit_alike(node, inputs, outputs[0], one_entry)
        varying = self._moved_alike(inputs, outputs, make)
        if varying is None:
            return False
        dtypes = [self.shapes.dtypes.get(name) for name in (*node.inputs[:1], *outputs[:1])]
        limits = narrowing(*dtypes) if outputs else {}
        is_copy = keeps_all and dtypes[0] == dtypes[-1]
        view = g.View(make(0), concat, is_copy, **limits)
        return self.emit(node, view, inputs, varying, outputs=outputs) is not None

    def _moved_alike(
        self, inputs: Sequence[int], outputs: Sequence[str], make: Callable[[int], lab.Apply]
    ) -> list[frozenset[int]] | None:
        """The varying axes of the outputs, if the labels come out the same for all choices.

        Tried with the finest labels that the inputs can have: one for each place along their
        varying axes. What holds for these holds for all coarser ones.
        """
        results = []
        for choice in range(self.shapes.count):
            count = 1
            labels = []
            for tensor in inputs:
                shape = self.graph.shapes[tensor]
                name = self.names.get(tensor)  # a constant has none, and one shape
                full = shape if name is None else self.shapes.of(name, choice) or shape
                if not _is_sane(full):
                    return None
                lengths = [shape[a] if a in self.axes_of(tensor) else 1 for a in range(len(shape))]
                stop = count + int(np.prod(lengths))
                labels.append(lab.expand(np.arange(count, stop).reshape(lengths), full))
                count = stop
            try:
                results.append([lab.compress(np.asarray(a)) for a in make(choice)(labels)])
            except (ValueError, IndexError, MemoryError):  # it does not fit its input, or memory
                return None
        for output, first, *others in zip(outputs, *results, strict=True):
            if any(not np.array_equal(first, other) for other in others):
                return None
            if any(first.shape[axis] > 1 for axis in self.shapes.open_axes(output)):
                return None
        return [
            frozenset(axis for axis, length in enumerate(array.shape) if length > 1)
            for array in results[0]
        ]

    def _emit_alike(
        self, node: Node, inputs: Sequence[int], output: str, one_entry: lab.Apply
    ) -> bool:
        """Add it with all that lies along an open axis stored alike, as in a mean over that."""
        parts = [
            tuple(slice(1) if axis in opened else slice(None) for axis in range(len(shape)))
            for opened, shape in (
                (self.shapes.open_axes(self.names.get(t, "")), self.graph.shapes[t]) for t in inputs
            )
        ]
        full = [np.broadcast_to(np.int64(0), self.graph.shapes[tensor]) for tensor in inputs]
        cuts = [
            np.zeros(whole[part].shape, np.int64) for whole, part in zip(full, parts, strict=True)
        ]
        shape = np.asarray(one_entry(cuts)[0]).shape

        def apply(labels: Sequence[IntArray]) -> list[IntArray]:
            cut = [array[part] for array, part in zip(labels, parts, strict=True)]
            return [lab.expand(np.asarray(one_entry(cut)[0]), shape)]

        (number,) = self.graph.add(node.name, g.View(apply), inputs, [shape], kind=node.op)
        axes = self.shapes.open_axes(output)
        varying = frozenset(a for a, length in enumerate(shape) if length > 1) - axes
        role = g.Mean(tuple(sorted(axes)))
        return self.emit(node, role, [number], varying, outputs=[output]) is not None


def _is_sane(shape: Shape) -> bool:
    if len(shape) > _MOST_AXES or max(shape, default=0) > _LONGEST_AXIS:
        return False
    return math.prod(shape) <= _MOST_ELEMENTS


def is_constant(lifter: Lifter, name: str) -> bool:
    """Whether the value is a float of its own: not only a shape, nor integers dequantised."""
    constants = lifter.constants
    is_own = name not in constants.open and name not in constants.quantized
    return is_own and constants.is_constant(name)


def laid_out(lifter: Lifter, node: Node, name: str, rank: int) -> Shape | None:
    """The shape of a constant such that it meets the activation as in NumPy.

    Of old, the second operand is spread out, where that is asked for, from the axis given.
    """
    shape = lifter.constants.shape(name)
    if shape is None or lifter.network.opset >= BROADCASTS:
        return shape
    axis = node.integer("axis", rank - len(shape))
    axis += rank if axis < 0 else 0
    behind = rank - axis - len(shape)
    is_second = node.inputs[1] == name
    return (*shape, *(1,) * behind) if is_second and axis >= 0 and behind >= 0 else None


def as_float64(array: NDArray[Any]) -> FloatArray:
    """A constant to compute with."""
    return np.asarray(array, dtype=np.float64)


def constant_at_rank(array: NDArray[Any], rank: int) -> FloatArray:
    """A constant with leading axes of length 1 up to a rank."""
    return as_float64(array).reshape(aligned(array.shape, rank))
