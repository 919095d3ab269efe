"""Fix the sizes of inputs in the file: 1x3x224x224 where it said batch x 3 x height x width.

A size that has a name gets its number wherever the name stands: in other inputs, in outputs, in
what is declared of tensors inside. Sizes of outputs that follow are inferred. A number may also
become another one, as for a larger image; then what was declared behind it is inferred anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnx import GraphProto, ModelProto, TypeProto, shape_inference

from bnfold.errors import UsageError
from bnfold.frontends.onnx.analysis import analyse
from bnfold.frontends.onnx.facts import sizes
from bnfold.frontends.onnx.nodes import Network, read_network
from bnfold.frontends.onnx.read import OnnxModel


def fix_sizes(model: OnnxModel, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Set the sizes of inputs, in place; says which they were."""
    network = read_network(model.name, model.proto)
    infos = {info.name: info for info in model.proto.graph.input}
    named = {_input(model, network, name, shape): shape for name, shape in shapes.items()}
    before = _contradiction(model.proto)
    numbers: dict[str, tuple[int, str]] = {}
    is_changed = False
    lines = []
    for name, shape in named.items():
        kind = infos[name].type
        lines.append(f"input {name} fixed at {_text(shape)}, was {_said(kind)}")
        is_changed |= _set(model, name, kind, shape, numbers)
    for dim in _dims(model.proto.graph):
        if dim.dim_param in numbers:
            dim.dim_value = numbers[dim.dim_param][0]
    if is_changed:
        _forget_sizes(model.proto.graph)
    why = _contradiction(model.proto)
    if why and not before:
        name, shape = next(iter(named.items()))
        raise UsageError(
            f"{model.name}: with input {name!r} at {_text(shape)} the network does not fit: {why}",
            "choose other sizes",
        )
    _infer_outputs(model)
    return lines


def _input(model: OnnxModel, network: Network, name: str, shape: Sequence[int]) -> str:
    """The name of the input; the only one needs none. Raises UsageError."""
    own = [known for known in network.inputs if known not in network.overridable]
    if not name and len(own) == 1:
        return own[0]
    known = ", ".join(own) or "none"
    example = f"write it like {own[0] if own else 'name'}:{_text(shape)}"
    if not name:
        raise UsageError(f"{model.name}: {_text(shape)} of which of its inputs {known}?", example)
    if name in network.overridable:
        raise UsageError(f"{model.name}: input {name!r} has a default, of its size", "leave it out")
    if name not in own:
        raise UsageError(f"{model.name} has no input {name!r}", f"its inputs are: {known}")
    return name


def _set(
    model: OnnxModel,
    name: str,
    kind: TypeProto,
    shape: Sequence[int],
    numbers: dict[str, tuple[int, str]],
) -> bool:
    """Set the sizes of one input, and the numbers of its names; whether a number was another."""
    tensor = kind.tensor_type
    declared = tensor.shape.dim
    is_tensor = kind.WhichOneof("value") == "tensor_type"
    if not is_tensor or (tensor.HasField("shape") and len(declared) != len(shape)):
        raise UsageError(
            f"{model.name}: input {name!r} cannot have the shape {_text(shape)}",
            f"the model declares {_said(kind)}",
        )
    if any(size < 1 for size in shape):
        raise UsageError(
            f"{model.name}: input {name!r} cannot have the shape {_text(shape)}",
            "give sizes of 1 or more",
        )
    is_changed = False
    for size in shape[len(declared) :]:
        declared.add().dim_value = size
    for dim, size in zip(declared, shape, strict=True):
        other, owner = (
            numbers.setdefault(dim.dim_param, (size, name))
            if dim.dim_param
            else (
                size,
                name,
            )
        )
        if other != size:
            raise UsageError(
                f"{model.name}: {dim.dim_param} is {other} in input {owner!r}, and {size} in"
                f" {name!r}",
                "give both the same size, which the model says they have",
            )
        is_changed |= dim.HasField("dim_value") and dim.dim_value not in (-1, size)
        dim.dim_value = size
    return is_changed


def _dims(graph: GraphProto) -> Iterator[Any]:
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.WhichOneof("value") == "tensor_type":
            yield from info.type.tensor_type.shape.dim


def _forget_sizes(graph: GraphProto) -> None:
    """What is declared behind the inputs holds no longer."""
    del graph.value_info[:]
    for info in graph.output:
        if info.type.WhichOneof("value") == "tensor_type":
            for dim in info.type.tensor_type.shape.dim:
                dim.Clear()


def _contradiction(proto: ModelProto) -> str:
    """Why the sizes cannot be, in onnx's words; empty where it sees no reason."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    copy.ir_version = max(copy.ir_version, 4)  # before, inference knows few initializers
    del copy.graph.value_info[:]
    has_range = any(node.op_type == "Range" for node in copy.graph.node)
    try:
        shape_inference.infer_shapes(copy, strict_mode=True, data_prop=not has_range)
    except Exception as error:  # the C++ side's, whatever it is
        return " ".join(str(error).split()).removeprefix("[ShapeInferenceError] ").rstrip(".")
    return ""


def _infer_outputs(model: OnnxModel) -> None:
    """Give outputs, and what was declared inside, the sizes that follow."""
    shapes = analyse(model, None).shapes
    graph = model.proto.graph
    for info in (*graph.output, *graph.value_info):
        shape, free = shapes.of(info.name), shapes.open_axes(info.name)
        if shape is None or info.type.WhichOneof("value") != "tensor_type":
            continue
        dims = info.type.tensor_type.shape.dim
        if info.type.tensor_type.HasField("shape") and len(dims) != len(shape):
            continue
        for axis, size in enumerate(shape):
            dim = dims[axis] if axis < len(dims) else dims.add()
            if axis not in free and not dim.HasField("dim_value"):
                dim.dim_value = size


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _said(kind: TypeProto) -> str:
    tensor = kind.tensor_type
    if kind.WhichOneof("value") != "tensor_type":
        return (kind.WhichOneof("value") or "no type").removesuffix("_type")
    if not tensor.HasField("shape"):
        return "open"
    return sizes(kind) or "a scalar"
