"""Shapes and dtypes of all values, for one or two choices of what the model leaves open.

An open dimension (a batch size, an image size) gets a number, and inference runs on numbers alone.
If there is any, everything is inferred for two different choices: what holds for one of them only
is not used. See docs/design/0003-reading-onnx.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import (
    ModelProto,
    NodeProto,
    TensorShapeProto,
    TypeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
    shape_inference,
)

from bnfold.errors import UsageError
from bnfold.frontends.onnx.nodes import Network, expanded_nodes
from bnfold.frontends.onnx.schemas import is_like_first_input
from bnfold.frontends.onnx.sizes import Size

Shape = tuple[int, ...]
Partly = tuple[int | None, ...]
"""A shape of which not all lengths are known."""

_NORM = "BatchNormalization"
_BATCH = (2, 5)
_OTHER = (224, 1056)
"""Multiples of 32, which most image networks ask for, and far apart: no common quotient."""
_MOST_NODES = 100_000
"""Nodes that calls of local functions may stand for."""
_ROUNDS = 8
"""How often shapes that were found may lead to further shapes."""


@dataclass(slots=True)
class Shapes:
    """What is known about every value."""

    count: int
    """Number of choices: 1 or 2."""
    choices: list[dict[str, Shape]]
    """The shapes of the inputs, per choice."""
    dtypes: dict[str, int] = field(default_factory=dict)
    """Element types, where they are known."""
    values: list[dict[str, Shape]] = field(default_factory=list)
    """Shapes by name, per choice; a name is in all of them with the same rank, or in none."""
    lengths: dict[str, tuple[Size, ...]] = field(default_factory=dict)
    """What the lengths of the axes depend on, see `open_sizes`; empty if nothing is open."""
    proven: tuple[Mapping[str, TypeProto], ...] = ()
    """What is known, per choice, of values that inference does not see through: see `loops`."""
    partly: list[dict[str, Partly]] = field(default_factory=list)
    """Per choice, the shapes of values of which inference does not know all lengths."""
    told: dict[str, tuple[Size | None, ...]] = field(default_factory=dict)
    """What is known of the lengths of values before they are followed, None where a rule is to
    say: see `own_lengths`."""
    blind: frozenset[int] = frozenset()
    """Indices of nodes through which nothing is followed."""
    has_guesses: bool = False
    """Whether an open axis of an input has numbers that the user did not give."""
    for_given_only: bool = False
    """Only the shapes that the user gave were looked at: the network accepts no others."""

    def given_alone(self) -> Shapes:
        """The first choice alone, with nothing inferred yet."""
        return Shapes(1, self.choices[:1], for_given_only=True)

    def seen_from_inside(self, outside: Sequence[Mapping[str, Shape]]) -> Shapes:
        """With the inputs that are values of a graph around, per choice made there."""
        count = max(self.count, len(outside))
        choices = [
            {**self.choices[min(choice, self.count - 1)], **outside[min(choice, len(outside) - 1)]}
            for choice in range(count)
        ]
        return Shapes(count, choices)

    def of(self, name: str, choice: int = 0) -> Shape | None:
        """The shape of a value, if it is known."""
        return self.values[choice].get(name)

    def open_axes(self, name: str) -> frozenset[int]:
        """The axes whose length is the user's choice, or may depend on it."""
        if self.count == 1 or name not in self.values[0]:
            return frozenset()
        first, second = self.values[0][name], self.values[1][name]
        sizes = self.lengths.get(name)
        return frozenset(
            axis
            for axis in range(len(first))
            if first[axis] != second[axis] or (sizes is not None and not sizes[axis].is_fixed)
        )

    def seems_fixed(self, name: str) -> bool:
        """Whether an axis may be open although it has one length under all choices."""
        if self.count == 1 or name not in self.values[0]:
            return False
        first, second = self.values[0][name], self.values[1][name]
        return any(first[axis] == second[axis] for axis in self.open_axes(name))


Evaluate = Callable[[str, int], NDArray[np.generic] | None]


def choose_inputs(network: Network, pinned: Mapping[str, Sequence[int]] | None) -> Shapes:
    """Numbers for the open dimensions. Raises UsageError for pins that do not fit."""
    pins = _checked_pins(network, pinned or {})
    symbols: dict[str, tuple[int, int]] = {}
    choices: list[dict[str, Shape]] = [{}, {}]
    for name in sorted(network.inputs, key=lambda name: name not in pins):  # these set the symbols
        lengths = _lengths(network, name, pins.get(name), symbols)
        for number, choice in enumerate(choices):
            if lengths is not None:
                choice[name] = tuple(length[number] for length in lengths)
    has_guesses = any(choices[0][name] != choices[1][name] for name in choices[0].keys() - pins)
    if choices[0] == choices[1]:
        choices.pop()
    return Shapes(len(choices), choices, has_guesses=has_guesses)


def _lengths(
    network: Network, name: str, given: Shape | None, symbols: dict[str, tuple[int, int]]
) -> list[tuple[int, int]] | None:
    """Both lengths of each axis of an input; None where not even their number is known.

    What the user gives is the first choice; open axes have another length in the second.
    """
    kind = network.inputs[name]
    tensor = kind.tensor_type
    declared = list(tensor.shape.dim) if tensor.HasField("shape") else None
    if declared is None and given is not None:
        declared = [TensorShapeProto.Dimension() for _ in given]
    if kind.WhichOneof("value") != "tensor_type" or declared is None:
        return None
    lengths = []
    for axis, dim in enumerate(declared):
        if dim.HasField("dim_value") and dim.dim_value > 0:
            lengths.append((dim.dim_value, dim.dim_value))
            continue
        known = known_channels(network, name) if axis == 1 else None
        guess = _BATCH if axis == 0 else _OTHER
        if given is not None:
            guess = (given[axis], 2 * given[axis])
        if known:
            guess = (known, known)
        if dim.dim_param:
            guess = symbols.setdefault(dim.dim_param, guess)
        lengths.append(guess if given is None else (given[axis], guess[1]))
    return lengths


def known_channels(network: Network, name: str) -> int | None:
    """The channels that a convolution of the input asks for, or a BatchNormalization."""
    for node, position in network.readers.get(name, ()):
        scale = network.initializers.get(node.input(1)) if node.op == _NORM else None
        if scale is not None and position == 0 and len(scale.dims) == 1:
            return int(scale.dims[0])
        weight = network.initializers.get(node.input(1)) if node.op == "Conv" else None
        if weight is not None and position == 0 and len(weight.dims) > 2:
            return int(weight.dims[1]) * node.integer("group", 1)
    return None


def _checked_pins(network: Network, pinned: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    pins: dict[str, Shape] = {}
    for name, lengths in pinned.items():
        if name not in network.inputs:
            known = ", ".join(network.inputs) or "none"
            raise UsageError(f"the model has no input {name!r}", f"its inputs are: {known}")
        shape = tuple(int(length) for length in lengths)
        tensor = network.inputs[name].tensor_type
        declared = tensor.shape.dim if tensor.HasField("shape") else None
        fits = declared is None or (
            len(declared) == len(shape)
            and all(d.dim_value in (0, -1, n) for d, n in zip(declared, shape, strict=True))
        )
        if not fits or any(length < 1 for length in shape):
            said = "x".join(str(d.dim_value or d.dim_param or "?") for d in declared or ())
            raise UsageError(
                f"input {name!r} cannot have the shape {'x'.join(map(str, shape))}",
                f"the model declares {said}",
            )
        pins[name] = shape
    return pins


def infer(network: Network, shapes: Shapes, evaluate: Evaluate) -> None:
    """Fill in shapes and dtypes; `evaluate` gives small constants for what was found so far."""
    helpers: list[dict[str, NDArray[np.generic]]] = [{} for _ in range(shapes.count)]
    for _ in range(_ROUNDS):
        inferred = [
            _infer_once(
                network,
                shapes.choices[choice],
                helpers[choice],
                shapes.proven[choice] if shapes.proven else {},
            )
            for choice in range(shapes.count)
        ]
        shapes.dtypes = inferred[0][1]
        common = inferred[0][0].keys() & inferred[-1][0].keys()
        shapes.values = [
            {n: s for n, s in shape.items() if n in common and _agree(n, inferred)}
            for shape, _, _ in inferred
        ]
        shapes.partly = [partly for _, _, partly in inferred]
        if not _more_helpers(network, shapes, evaluate, helpers):
            return


_Types = tuple[dict[str, Shape], dict[str, int], dict[str, Partly]]
"""Shapes, dtypes, and shapes that are known in part."""


def _agree(name: str, inferred: Sequence[_Types]) -> bool:
    """Whether a value has one rank and dtype under all choices."""
    ranks = {len(shape[name]) for shape, _, _ in inferred}
    return len(ranks) == 1 and len({dtypes.get(name) for _, dtypes, _ in inferred}) == 1


def _more_helpers(
    network: Network,
    shapes: Shapes,
    evaluate: Evaluate,
    helpers: list[dict[str, NDArray[np.generic]]],
) -> bool:
    """Constants that inference did not see through, in front of nodes whose shape is unknown."""
    more = False
    for node in network.nodes:
        if all(name in shapes.values[0] for name in node.outputs if name):
            continue
        for name in node.inputs:
            if not name or name in helpers[0] or name not in network.makers:
                continue
            maker = network.makers[name]
            if maker.op == "Constant" or len(maker.outputs) != 1:
                continue
            arrays = [evaluate(name, choice) for choice in range(shapes.count)]
            if any(array is None for array in arrays):
                continue
            for choice, array in enumerate(arrays):
                assert array is not None
                helpers[choice][name] = array
            more = True
    return more


def _infer_once(
    network: Network,
    inputs: Mapping[str, Shape],
    helpers: Mapping[str, NDArray[np.generic]],
    proven: Mapping[str, TypeProto],
) -> _Types:
    proto = _prepared(network, inputs, helpers)
    graph = proto.graph
    declared = {info.name: info for info in (*graph.input, *graph.value_info, *graph.output)}
    for name, kind in proven.items():
        info = declared.get(name) or graph.value_info.add(name=name)
        info.type.CopyFrom(kind)
    content = proto.SerializeToString()
    # Propagation of data counts a Range out, however long; where it is not used, `evaluate` serves.
    has_range = any(node.op == "Range" for node in network.nodes)
    for data_prop in (False,) if has_range else (True, False):
        try:
            inferred = shape_inference.infer_shapes(content, data_prop=data_prop)
        except Exception:  # the message of the C++ side, whatever it is: no shapes, then
            continue
        return _read_types(inferred)
    return _read_types(proto)


def _prepared(
    network: Network, inputs: Mapping[str, Shape], helpers: Mapping[str, NDArray[np.generic]]
) -> ModelProto:
    """A copy without anything that claims to know shapes, but of what inference does not know."""
    proto = ModelProto()
    proto.CopyFrom(network.proto)
    graph = proto.graph
    # Before IR 4 inference knows the initializers alone that are inputs, too; runtimes know all.
    proto.ir_version = max(proto.ir_version, 4)
    for each in graph.node:
        if each.domain == "ai.onnx":  # the same as none, and inference knows only none
            each.domain = ""
    for node in network.nodes:
        if is_like_first_input(node.op, network.opset) and not any(node.outputs[1:]):
            _stand_in(graph.node[node.index])
    foreign = {o for node in network.nodes if "::" in node.op for o in node.outputs}
    for position in reversed(range(len(graph.value_info))):
        if not _is_declared(graph.value_info[position], foreign):
            del graph.value_info[position]
    for position in reversed(range(len(graph.output))):
        if graph.output[position].name not in network.makers:
            del graph.output[position]  # an initializer or input, whose shape is known already
    for info in graph.output:
        if _is_declared(info, foreign):
            continue
        if info.type.WhichOneof("value") == "tensor_type":
            info.type.tensor_type.ClearField("shape")
    for info in graph.input:
        shape = inputs.get(info.name)
        if shape is not None:
            dims = info.type.tensor_type.shape
            del dims.dim[:]
            for length in shape:
                dims.dim.add().dim_value = length
    for sparse in graph.sparse_initializer:  # inference passes over them
        values = sparse.values
        graph.input.append(
            helper.make_tensor_value_info(values.name, values.data_type, list(sparse.dims))
        )
    del graph.sparse_initializer[:]
    if expanded_nodes(proto) > _MOST_NODES:  # inference follows every call, however deep
        del proto.functions[:]
    is_sorted = all(node.index == index for index, node in enumerate(network.nodes))
    if helpers or not is_sorted:
        order = [graph.node[node.index] for node in network.nodes]
        nodes = [node for node in order if not any(name in helpers for name in node.output)]
        kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
        for name, array in helpers.items():
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return proto


def _stand_in(node: NodeProto) -> None:
    """Make it a node that inference knows, and that makes a tensor like its first input, too."""
    del node.input[1:], node.output[1:], node.attribute[:]
    node.op_type = "Identity"


def _is_declared(info: ValueInfoProto, foreign: set[str]) -> bool:
    """Whether it is the output of a custom operator, with a shape in plain numbers."""
    if info.name not in foreign or info.type.WhichOneof("value") != "tensor_type":
        return False
    tensor = info.type.tensor_type
    return tensor.HasField("shape") and all(dim.dim_value > 0 for dim in tensor.shape.dim)


def _read_types(proto: ModelProto) -> _Types:
    types: _Types = ({}, {}, {})
    shapes, dtypes, _ = types
    graph = proto.graph
    for info in (*graph.value_info, *graph.output, *graph.input):
        _read_type(info.name, info.type, types)
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        dtypes[tensor.name] = tensor.data_type
    return types


def _read_type(name: str, kind: TypeProto, types: _Types) -> None:
    shapes, dtypes, partly = types
    if kind.WhichOneof("value") != "tensor_type":
        return
    tensor = kind.tensor_type
    if tensor.elem_type:
        dtypes[name] = tensor.elem_type
    if tensor.HasField("shape"):
        dims = [
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None
            for dim in tensor.shape.dim
        ]
        numbers = tuple(length for length in dims if length is not None)
        if len(numbers) == len(dims):
            shapes[name] = numbers
        else:
            partly[name] = tuple(dims)
