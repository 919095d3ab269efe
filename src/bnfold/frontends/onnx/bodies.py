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

from collections.abc import Sequence

from onnx import GraphProto, ModelProto, ValueInfoProto

from bnfold.errors import BnfoldError
from bnfold.frontends.onnx.analysis import Analysis
from bnfold.frontends.onnx.folding import InnerFolds
from bnfold.frontends.onnx.inner_networks import (
    Prepare,
    add_initializer,
    constant,
    drop_unread,
    fold_inner,
    is_worth_it,
    item_outside,
    note_fold,
    shapes_inside,
    unfolded_items,
)
from bnfold.frontends.onnx.loop_declarations import (
    Given,
    declarations_hold,
    first_shape,
    keeps_its_shape,
    without_shape,
)
from bnfold.frontends.onnx.nodes import Node, free_names, named_values
from bnfold.frontends.onnx.read import OnnxModel, Outside, inner_graphs

_CONTROL_FLOW = frozenset(("If", "Loop", "Scan"))
_EDGE = "what goes in and out of a subgraph stays as it is"


def fold_bodies(model: OnnxModel, analysis: Analysis, prepare: Prepare) -> InnerFolds:
    """Fold what can be folded in the bodies, in the model itself; `prepare` plans for one."""
    inside = InnerFolds()
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
                    inside.items += unfolded_items(body.node, prefix, node.name, why)
                    continue
                before |= free_names(body)
                _fold_body(model, analysis, node, prefix, body, prepare, inside)
    if inside.changed:
        drop_unread(model, before)
    return inside


def _fold_body(
    model: OnnxModel,
    analysis: Analysis,
    node: Node,
    prefix: str,
    body: GraphProto,
    prepare: Prepare,
    inside: InnerFolds,
) -> None:
    shapes, opset = analysis.shapes, analysis.network.opset
    assumed = without_shape(node, body, opset)
    while True:
        inner = as_model(model, analysis, body, assumed)
        try:
            folding, folded = fold_inner(inner, prepare, prefix)
        except BnfoldError as error:
            why = f"its graph could not be followed: {error}"
            inside.items += unfolded_items(body.node, prefix, node.name, why)
            return
        proven = [given for given in assumed if keeps_its_shape(given, shapes, folding.shapes)]
        if len(proven) == len(assumed):
            break
        assumed = proven
    if not declarations_hold(node, body, shapes, folding.shapes, opset):
        why = "what it is given may have other shapes than it declares"
        inside.items += unfolded_items(body.node, prefix, node.name, why)
        return
    items = [item_outside(item, prefix, node.name, _EDGE) for item in folding.report.items]
    if note_fold(inside, folding, items, prefix):
        _put_back(model, body, inner, folded)
        inside.changed = True


# -------------------------------------------------------------------- in


def as_model(
    model: OnnxModel, analysis: Analysis, body: GraphProto, assumed: Sequence[Given]
) -> OnnxModel:
    """The body as a model: what it reads from outside are initializers and inputs.

    What is assumed has the shape in every round that it has in the first one.
    """
    proto = ModelProto(ir_version=max(model.proto.ir_version, 4))
    proto.opset_import.extend(model.proto.opset_import)
    proto.functions.extend(model.proto.functions)
    proto.graph.CopyFrom(body)
    taken = set(named_values(model.proto.graph))
    if model.outside is not None:
        taken |= model.outside.taken
    pinned, inputs = set(), {}
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
        inputs[name] = name
    seen = shapes_inside(analysis.shapes, inputs)
    for choice, known in enumerate(seen):
        for given in assumed:
            shape = first_shape(given, analysis.shapes, choice)
            if shape is not None:
                known[given.info.name] = shape
    inner.outside = Outside(frozenset(pinned), taken, seen)
    return inner


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
