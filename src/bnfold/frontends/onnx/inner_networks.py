"""What bodies of control flow and local functions share: each is folded as a network of its own.

New tensors become initializers of the main graph; a part that cannot be followed stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from onnx import GraphProto, NodeProto, TensorProto, helper

from bnfold.core.reasons import Reason
from bnfold.frontends.onnx.analysis import Analysis
from bnfold.frontends.onnx.folding import Folding, InnerFolds
from bnfold.frontends.onnx.nodes import described, free_names, nodes_inside
from bnfold.frontends.onnx.read import OnnxModel, inner_graphs
from bnfold.frontends.onnx.shapes import Shape, Shapes
from bnfold.outcomes import Item, Kept, Removed

_AFFINE = frozenset(("Mul", "Add", "Sub", "Div"))
_TAKES_IN = frozenset(
    (
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"),
        *("InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization"),
    )
)
_LARGEST = 1 << 24
"""Bytes up to which a constant that the outer graph computes is handed to a body."""

Prepare = Callable[[OnnxModel, str], Folding]
"""Plans for a part of a model; the names of its ops begin with the text, outside."""


def is_worth_it(nodes: Iterable[NodeProto]) -> bool:
    """Whether there is a step to remove."""
    ops = {node.op_type for node in nodes_inside(GraphProto(node=nodes))}
    return "BatchNormalization" in ops or bool(ops & _AFFINE and ops & _TAKES_IN)


def fold_inner(inner: OnnxModel, prepare: Prepare, prefix: str) -> tuple[Folding, OnnxModel]:
    """A part of a model, folded as one of its own. Raises BnfoldError: it cannot be followed."""
    folding = prepare(inner, prefix)
    folding.check()
    return folding, folding.folded()


def note_fold(inside: InnerFolds, folding: Folding, items: Iterable[Item], prefix: str) -> bool:
    """Note what the fold of a part did, under the names that it has outside; whether it did any."""
    inside.items += items
    inside.clips += [prefix + name for name in folding.report.clips]
    inside.scalars += folding.scalars_gone
    if folding.changes:
        inside.rounded += folding.rounded
    return folding.changes


def unfolded_items(nodes: Iterable[NodeProto], prefix: str, owner: str, why: str) -> Iterator[Item]:
    """A line for each BatchNormalization among nodes that are not folded."""
    for node in nodes:
        called = prefix + (node.name or next(iter(node.output), node.op_type))
        if node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx"):
            yield Item(called, node.op_type, 0, 1, Kept(Reason.NONLINEAR, owner, why))
        for attribute in node.attribute:
            for body in inner_graphs(attribute):
                yield from unfolded_items(body.node, f"{called}/{attribute.name}/", owner, why)


def item_outside(item: Item, prefix: str, owner: str, edge: str) -> Item:
    """The item as the graph around the body calls it; `edge` says why nothing crosses it."""
    outcome = item.outcome
    if isinstance(outcome, Removed):
        outcome = Removed(tuple(prefix + name for name in outcome.into))
    elif outcome.reason in (Reason.GRAPH_INPUT, Reason.GRAPH_OUTPUT):
        outcome = Kept(Reason.NONLINEAR, owner, edge)
    elif outcome.blocker is not None:
        outcome = replace(outcome, blocker=prefix + outcome.blocker)
    return replace(item, name=prefix + item.name, outcome=outcome)


def shapes_inside(shapes: Shapes, names: Mapping[str, str]) -> tuple[dict[str, Shape], ...]:
    """The shapes of inputs of a part, per choice of the open dimensions, from outside.

    One with an axis that only seems to be fixed has none: inside, nothing else would tell.
    """
    return tuple(
        {
            name: shape
            for name, outer in names.items()
            if (shape := shapes.of(outer, choice)) is not None and not shapes.seems_fixed(outer)
        }
        for choice in range(shapes.count)
    )


def constant(analysis: Analysis, name: str) -> TensorProto | None:
    """A constant of the outer graph; the content of a large initializer stays where it is."""
    tensor = analysis.network.initializers.get(name)
    if tensor is not None:
        return tensor
    constants = analysis.constants
    shape = constants.shape(name)
    if not constants.is_constant(name) or shape is None or name in constants.open:
        return None
    if name in constants.quantized:  # as an initializer it would be a float like any other
        return None
    array = constants.array(name)
    if array is None or array.nbytes > _LARGEST or array.dtype.kind not in "fiubV":
        return None
    made = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
    made.dims.extend(array.shape)
    made.raw_data = array.tobytes()
    return made


def add_initializer(model: OnnxModel, tensor: TensorProto) -> None:
    """A new tensor of the main graph."""
    graph = model.proto.graph
    graph.initializer.append(tensor)
    if model.proto.ir_version < 4:  # where every initializer has to be an input too
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        graph.input.append(info)


def drop_unread(model: OnnxModel, before: set[str]) -> None:
    """Drop the constants that bodies read before and nobody reads now."""
    graph = model.proto.graph
    read = {info.name for info in graph.output} | described(model.proto)
    for node in graph.node:
        read.update(node.input)
        for attribute in node.attribute:
            for body in inner_graphs(attribute):
                read |= free_names(body)
    gone = before - read
    if model.outside is not None:  # those that are not this graph's own are not its to drop
        gone -= model.outside.pinned
    if model.proto.ir_version >= 4:  # what the user may pass in stays
        gone -= {info.name for info in graph.input}
    initializers = {tensor.name for tensor in graph.initializer} & gone
    model.drop_initializers(initializers)
    for position in reversed(range(len(graph.input))):
        if graph.input[position].name in initializers:
            del graph.input[position]
    for position in reversed(range(len(graph.node))):
        node = graph.node[position]
        if (
            node.op_type == "Constant"
            and node.domain in ("", "ai.onnx")
            and node.output
            and gone.issuperset(node.output)
        ):
            del graph.node[position]
