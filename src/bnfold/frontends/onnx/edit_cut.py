"""Cut a part out of a model: what its outputs need, from the inputs on.

    outputs   named tensors, or those that there are
    inputs    named tensors, and of those that there were what the outputs still need

Nothing is left that nobody reads, and nothing is read that nobody makes: an input that was not
named stays as long as an output depends on it. What bodies of If, Loop and Scan read counts as read
by their node.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

from onnx import ModelProto, ValueInfoProto, helper, shape_inference

from bnfold._text import shortened
from bnfold.errors import BnfoldError, UnsupportedModelError, UsageError
from bnfold.frontends.onnx.analysis import analyse
from bnfold.frontends.onnx.nodes import Network, calls_of, needs_of, read_network
from bnfold.frontends.onnx.read import OnnxModel
from bnfold.frontends.onnx.shapes import Shape


def cut(model: OnnxModel, inputs: Sequence[str], outputs: Sequence[str]) -> str:
    """Keep what is between them, in place; says what that was."""
    if model.proto.training_info:
        raise UnsupportedModelError(
            f"{model.name} says how to train it, of all its tensors, and cannot be cut",
            "export it for inference",
        )
    network = read_network(model.name, model.proto)
    starts, ends = list(dict.fromkeys(inputs)), list(dict.fromkeys(outputs or network.outputs))
    for name in starts:
        _check_known(model, network, name, network.inputs)
    for name in ends if outputs else ():
        _check_known(model, network, name, ())
    values, nodes = _needed(network, starts, ends)
    _check_starts(model, network, starts, values, nodes)
    before = len(model.proto.graph.node)
    _keep(model, starts, ends, values, nodes)
    named = [f"from {', '.join(starts)}"] if starts else []
    named += [f"to {', '.join(outputs)}"] if outputs else []
    count = len(model.proto.graph.node)
    return f"cut {' '.join(named)}: {count} of {before} nodes stay"


def shapes_of(model: OnnxModel, names: Sequence[str]) -> dict[str, Shape]:
    """The shapes of tensors inside of a model that is run on usual inputs, where they are known."""
    shapes = analyse(model, None).shapes
    known = {name: shapes.of(name) for name in names}
    return {name: shape for name, shape in known.items() if shape is not None}


def open_shapes(model: OnnxModel, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Of these shapes of inputs, those that fit one which the model leaves open."""
    made = {}
    for info in model.proto.graph.input:
        shape, dims = shapes.get(info.name), info.type.tensor_type.shape.dim
        if shape is None or len(dims) != len(shape):
            continue
        fitted = tuple(dim.dim_value or length for dim, length in zip(dims, shape, strict=True))
        if any(not dim.dim_value for dim in dims):
            made[info.name] = fitted
    return made


def _needed(
    network: Network, starts: Collection[str], ends: Iterable[str]
) -> tuple[set[str], set[int]]:
    """The values that the ends need, and the nodes that make them."""
    values: set[str] = set()
    nodes: set[int] = set()
    stack = list(ends)
    while stack:
        name = stack.pop()
        if name in values:
            continue
        values.add(name)
        maker = network.makers.get(name)
        if maker is None or name in starts:
            continue
        if maker.index not in nodes:
            nodes.add(maker.index)
            stack += needs_of(maker)
    return values, nodes


def _keep(
    model: OnnxModel,
    starts: Sequence[str],
    ends: Sequence[str],
    values: Collection[str],
    nodes: Collection[int],
) -> None:
    graph = model.proto.graph
    types = _Types(model)
    rest = [info for info in graph.input if info.name in values and info.name not in starts]
    inputs = [*map(types.of, starts), *map(_copied, rest)]
    outputs = [*map(types.of, ends)]
    _drop(graph.node, lambda place, _: place in nodes)
    made = {name for node in graph.node for name in node.output}
    inside = (made | set(values)) - set(starts) - set(ends)
    notes = graph.quantization_annotation
    _drop(notes, lambda _, note: note.tensor_name in made or note.tensor_name in values)
    read = {entry.value for note in notes for entry in note.quant_parameter_tensor_names}
    read |= set(values)
    _drop(graph.initializer, lambda _, tensor: tensor.name in read)
    _drop(graph.sparse_initializer, lambda _, sparse: sparse.values.name in read)
    _drop(graph.value_info, lambda _, info: info.name in inside)
    for field, infos in ((graph.input, inputs), (graph.output, outputs)):
        del field[:]
        field.extend(infos)
    left = {tensor.name for tensor in graph.initializer}
    model.tensor_data = {name: data for name, data in model.tensor_data.items() if name in left}
    model.external &= left
    _drop_functions(model.proto)


def _drop(field: Any, is_kept: Callable[[int, Any], bool]) -> None:
    for place in reversed(range(len(field))):
        if not is_kept(place, field[place]):
            del field[place]


def _drop_functions(proto: ModelProto) -> None:
    """Local functions that nobody calls any more."""
    calls = set(calls_of(proto.graph.node))
    functions = {(function.domain, function.name): function for function in proto.functions}
    called: set[tuple[str, str]] = set()
    queue = [key for key in functions if key in calls]
    while queue:
        key = queue.pop()
        if key not in called:
            called.add(key)
            queue += [inner for inner in calls_of(functions[key].node) if inner in functions]
    _drop(proto.functions, lambda _, function: (function.domain, function.name) in called)


def _copied(info: ValueInfoProto) -> ValueInfoProto:
    copy = ValueInfoProto()
    copy.CopyFrom(info)
    return copy


# -------------------------------------------------------------------- what cannot be


def _check_known(model: OnnxModel, network: Network, name: str, others: Collection[str]) -> None:
    """Raise UsageError for what no node makes, unless it is one of the others."""
    if name in network.makers or name in others:
        return
    if name in network.inputs:
        raise UsageError(f"{model.name}: {name!r} is an input, and no output", "leave it out")
    if name in network.initializers or name in network.sparse:
        raise UsageError(
            f"{model.name}: {name!r} is a constant, which the model holds",
            "name a tensor that a node makes",
        )
    made = [node.outputs for node in network.nodes if node.name == name]
    if made:
        raise UsageError(
            f"{model.name}: {name!r} is a node, and a tensor is wanted",
            f"name what it makes: {', '.join(filter(None, made[0]))}",
        )
    raise UsageError(
        f"{model.name} has no tensor {name!r} in its main graph", _names_like(name, network)
    )


def _names_like(name: str, network: Network) -> str:
    """What to do about a name that there is not; without a similar one, the last are shown."""
    known = [*network.makers, *network.inputs]
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    near += [other for other in reversed(known) if name.lower() in other.lower()]
    shown = list(dict.fromkeys(near))[:3] or [node.outputs[0] for node in network.nodes[-4:-1]]
    names = ", ".join(shortened(other, 60) for other in shown)
    return f"name one like {names}" if near else f"name one of its tensors; the last are {names}"


def _check_starts(
    model: OnnxModel,
    network: Network,
    starts: Sequence[str],
    values: Collection[str],
    nodes: Collection[int],
) -> None:
    unread = [name for name in starts if name not in values]
    if unread:
        raise UsageError(
            f"{model.name}: no output that is left depends on {unread[0]!r}",
            "name a tensor in front of an output",
        )
    if not nodes:
        raise UsageError(
            f"{model.name}: there is no node between {starts[0]!r} and the outputs",
            "name tensors farther apart",
        )
    for name in starts:
        maker = network.makers.get(name)
        if maker is not None and maker.index in nodes:
            raise UsageError(
                f"{model.name}: {name!r} cannot become an input, because the outputs need"
                f" something else of {maker.name}, which makes it",
                f"name all that it makes: {', '.join(filter(None, maker.outputs))}",
            )


class _Types:
    """The types of tensors, as the model declares them, or as they are inferred."""

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.infos = {info.name: _copied(info) for info in _inferred(model.proto)}

    def of(self, name: str) -> ValueInfoProto:
        """Raises UsageError where nothing is known."""
        info = self.infos.get(name)
        if info is not None and _is_complete(info):
            return info
        try:
            shapes = analyse(self.model, None).shapes
        except BnfoldError:
            shapes = None
        if shapes is not None and name in shapes.dtypes:
            shape, free = shapes.of(name), shapes.open_axes(name)
            sizes = (
                None
                if shape is None
                else [None if axis in free else length for axis, length in enumerate(shape)]
            )
            return helper.make_tensor_value_info(name, shapes.dtypes[name], sizes)
        if info is not None and info.type.WhichOneof("value"):
            return info
        raise UsageError(
            f"{self.model.name}: the type of {name!r} is not known",
            "name another tensor, in front of it or behind",
        )


def _inferred(proto: ModelProto) -> list[ValueInfoProto]:
    """What is declared, and what onnx infers."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    copy.ir_version = max(copy.ir_version, 4)  # before, inference knows few initializers
    if not any(node.op_type == "Range" for node in copy.graph.node):  # which would be counted out
        with suppress(Exception):  # the C++ side's, whatever it is
            copy = shape_inference.infer_shapes(copy, data_prop=True)
    graph = copy.graph
    return [*graph.value_info, *graph.output, *graph.input]


def _is_complete(info: ValueInfoProto) -> bool:
    tensor = info.type.tensor_type
    return bool(tensor.elem_type) and tensor.HasField("shape")
