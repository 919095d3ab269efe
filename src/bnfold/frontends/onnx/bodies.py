"""Fold inside of If, Loop and Scan: each body is folded as a network of its own.

    what the body is given, what it returns      stored as it is: nothing crosses the edge
    a value of the graph around it               an input that is stored as it is
    a constant of the graph around it            a constant that others may read: where the body
                                                 needs another one, it gets one of its own

New tensors become initializers of the main graph, which bodies see: there large ones are streamed,
and may lie in another file. A body that cannot be followed stays as it is. Bodies of bodies come
first. https://github.com/onnx/onnx/blob/main/docs/IR.md#names-within-a-graph
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from bnfold.core.reasons import Reason
from bnfold.errors import BnfoldError
from bnfold.frontends.onnx.analysis import Analysis
from bnfold.frontends.onnx.folding import Folding, Inside
from bnfold.frontends.onnx.loop_declarations import hold
from bnfold.frontends.onnx.nodes import Node, described, free_names, named_values, nodes_inside
from bnfold.frontends.onnx.read import OnnxModel, Outside, inner_graphs
from bnfold.outcomes import Item, Kept, Removed

_CONTROL_FLOW = frozenset(("If", "Loop", "Scan"))
_AFFINE = frozenset(("Mul", "Add", "Sub", "Div"))
_LINEAR = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
_EDGE = "what goes in and out of a subgraph stays as it is"
_LARGEST = 1 << 24
"""Bytes up to which a constant that the outer graph computes is handed to a body."""

Prepare = Callable[[OnnxModel], Folding]


def fold_bodies(model: OnnxModel, analysis: Analysis, prepare: Prepare) -> Inside:
    """Fold what can be folded in the bodies, in the model itself; `prepare` plans for one."""
    inside = Inside()
    before: set[str] = set()
    for node in analysis.network.nodes:
        for attribute in node.proto.attribute:
            graphs = inner_graphs(attribute)
            for number, body in enumerate(graphs):
                if not is_worth_it(body.node):
                    continue
                place = f"{attribute.name}_{number}" if len(graphs) > 1 else attribute.name
                prefix = f"{node.name}/{place}/"
                if node.op not in _CONTROL_FLOW:
                    why = "an operator that is not known runs it"
                    inside.items += left_alone(body.node, prefix, node.name, why)
                    continue
                before |= free_names(body)
                _fold_body(model, analysis, node, prefix, body, prepare, inside)
    if inside.changed:
        drop_unread(model, before)
    return inside


def is_worth_it(nodes: Iterable[NodeProto]) -> bool:
    """Whether there is a step to remove."""
    ops = {node.op_type for node in nodes_inside(GraphProto(node=nodes))}
    return "BatchNormalization" in ops or bool(ops & _AFFINE and ops & _LINEAR)


def _fold_body(
    model: OnnxModel,
    analysis: Analysis,
    node: Node,
    prefix: str,
    body: GraphProto,
    prepare: Prepare,
    inside: Inside,
) -> None:
    inner = _as_model(model, analysis, body)
    try:
        folding, folded = fold_inner(inner, prepare)
    except BnfoldError as error:
        why = f"its graph could not be followed: {error}"
        inside.items += left_alone(body.node, prefix, node.name, why)
        return
    if not hold(node, body, analysis.shapes, folding.shapes, analysis.network.opset):
        why = "what it is given may have other shapes than it declares"
        inside.items += left_alone(body.node, prefix, node.name, why)
        return
    items = [placed(item, prefix, node.name, _EDGE) for item in folding.report.items]
    if take_down(inside, folding, items, prefix):
        _put_back(model, body, inner, folded)
        inside.changed = True


def fold_inner(inner: OnnxModel, prepare: Prepare) -> tuple[Folding, OnnxModel]:
    """A part of a model, folded as one of its own. Raises BnfoldError: it cannot be followed."""
    folding = prepare(inner)
    folding.check()
    return folding, folding.folded()


def take_down(inside: Inside, folding: Folding, items: Iterable[Item], prefix: str) -> bool:
    """Note what the fold of a part did, under the names that it has outside; whether it did any."""
    inside.items += items
    inside.clips += [prefix + name for name in folding.report.clips]
    inside.scalars += folding.scalars_gone
    if folding.changes:
        inside.rounded += folding.rounded
    return folding.changes


def left_alone(nodes: Iterable[NodeProto], prefix: str, owner: str, why: str) -> Iterator[Item]:
    """A line for each BatchNormalization among nodes that are not folded."""
    for node in nodes:
        called = prefix + (node.name or next(iter(node.output), node.op_type))
        if node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx"):
            yield Item(called, node.op_type, 0, 1, Kept(Reason.NONLINEAR, owner, why))
        for attribute in node.attribute:
            for body in inner_graphs(attribute):
                yield from left_alone(body.node, f"{called}/{attribute.name}/", owner, why)


def placed(item: Item, prefix: str, owner: str, edge: str) -> Item:
    """The item as the graph around the body calls it; `edge` says why nothing crosses it."""
    outcome = item.outcome
    if isinstance(outcome, Removed):
        outcome = Removed(tuple(prefix + name for name in outcome.into))
    elif outcome.reason in (Reason.GRAPH_INPUT, Reason.GRAPH_OUTPUT):
        outcome = Kept(Reason.NONLINEAR, owner, edge)
    elif outcome.blocker is not None:
        outcome = replace(outcome, blocker=prefix + outcome.blocker)
    return replace(item, name=prefix + item.name, outcome=outcome)


# -------------------------------------------------------------------- in


def _as_model(model: OnnxModel, analysis: Analysis, body: GraphProto) -> OnnxModel:
    """The body as a model: what it reads from outside are initializers and inputs."""
    proto = ModelProto(ir_version=max(model.proto.ir_version, 4))
    proto.opset_import.extend(model.proto.opset_import)
    proto.functions.extend(model.proto.functions)
    proto.graph.CopyFrom(body)
    taken = set(named_values(model.proto.graph))
    if model.outside is not None:
        taken |= model.outside.taken
    shapes = analysis.shapes
    pinned = set()
    seen: list[dict[str, tuple[int, ...]]] = [{} for _ in range(shapes.count)]
    inner = OnnxModel(model.name, proto)
    for name in sorted(free_names(body)):
        tensor = constant(analysis, name)
        if tensor is not None:
            proto.graph.initializer.append(tensor)
            pinned.add(name)
            if name in analysis.network.initializers and name in model.tensor_data:
                inner.tensor_data[name] = model.tensor_data[name]
            continue
        proto.graph.input.append(_value_info(analysis, name))
        for choice in range(shapes.count):
            shape = shapes.of(name, choice)
            if shape is not None:
                seen[choice][name] = shape
    inner.outside = Outside(frozenset(pinned), taken, tuple(seen))
    return inner


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


def _value_info(analysis: Analysis, name: str) -> ValueInfoProto:
    """A value of the outer graph, as an input."""
    info = ValueInfoProto(name=name)
    data_type = analysis.shapes.dtypes.get(name)
    if name in analysis.network.inputs:
        info.type.CopyFrom(analysis.network.inputs[name])
    elif data_type:
        info.type.tensor_type.elem_type = data_type
    if info.type.WhichOneof("value") == "tensor_type":
        info.type.tensor_type.ClearField("shape")  # known better: see Outside.shapes
    return info


# -------------------------------------------------------------------- and back


def _put_back(model: OnnxModel, body: GraphProto, inner: OnnxModel, folded: OnnxModel) -> None:
    """Give the body its new nodes, and the main graph the tensors that are new."""
    assert inner.outside is not None
    own = {tensor.name for tensor in body.initializer}
    made = folded.proto.graph
    for target, source in ((body.node, made.node), (body.value_info, made.value_info)):
        del target[:]
        target.extend(source)  # type: ignore[arg-type]
    del body.quantization_annotation[:]
    body.quantization_annotation.extend(made.quantization_annotation)
    del body.initializer[:]
    for tensor in made.initializer:
        if tensor.name in inner.outside.pinned:
            continue
        data = folded.tensor_data.get(tensor.name)
        if tensor.name in own:
            kept = body.initializer.add()
            kept.CopyFrom(tensor)
            if data is not None:
                kept.raw_data = data.read().tobytes()
            continue
        add_initializer(model, tensor)
        if data is not None:
            model.tensor_data[tensor.name] = data


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
    for position in reversed(range(len(graph.initializer))):
        name = graph.initializer[position].name
        if name in initializers:
            del graph.initializer[position]
            model.tensor_data.pop(name, None)
            model.external.discard(name)
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
