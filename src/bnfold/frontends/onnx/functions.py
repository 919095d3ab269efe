"""Fold inside of local functions that the main graph calls.

    what a call passes, what it gets back        stored as it is: nothing crosses the edge
    an initializer that every call passes        a constant; where the function needs another one,
                                                 all calls pass that as well
    arguments that nobody reads any more         are passed no longer

A function is one body for all its calls, so it is folded only if it is the same for all: they pass
values of the same shapes and dtypes, and it takes no attributes from them. What is called from
another function, or in a body of control flow, is left alone.
https://github.com/onnx/onnx/blob/main/docs/IR.md#functions
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from bnfold.errors import BnfoldError
from bnfold.frontends.onnx import inner_networks
from bnfold.frontends.onnx.analysis import Analysis
from bnfold.frontends.onnx.folding import InnerFolds
from bnfold.frontends.onnx.inner_networks import Prepare
from bnfold.frontends.onnx.nodes import free_names, named_values, nodes_inside
from bnfold.frontends.onnx.read import OnnxModel, Outside, inner_graphs

_EDGE = "what goes in and out of a local function stays as it is"
_INLINE = "onnx.inliner puts it in the place of its calls, where it can be folded"


def fold_functions(
    model: OnnxModel, analysis: Analysis, prepare: Prepare, inside: InnerFolds
) -> None:
    """Fold what can be folded in local functions, in the model itself; `inside` says what."""
    before: set[str] = set()
    changed = False
    for function in model.proto.functions:
        if not inner_networks.is_worth_it(function.node):
            continue
        calls = [node for node in model.proto.graph.node if _is_call(node, function)]
        why = _why_not(model, analysis, function, calls)
        if why:
            inside.items += inner_networks.unfolded_items(
                function.node, f"{function.name}/", function.name, f"{why}; {_INLINE}"
            )
            continue
        before.update(name for call in calls for name in call.input)
        changed |= _fold_function(model, analysis, function, calls, prepare, inside)
    if changed:
        inner_networks.drop_unread(model, before)
        inside.changed = True


def _is_call(node: NodeProto, function: FunctionProto) -> bool:
    return (node.domain, node.op_type) == (function.domain, function.name)


def _why_not(
    model: OnnxModel, analysis: Analysis, function: FunctionProto, calls: Sequence[NodeProto]
) -> str:
    """Why a function is left alone; "" if it is not."""
    same_name = [f for f in model.proto.functions if (f.domain, f.name) == _key(function)]
    everywhere = sum(_is_call(node, function) for node in _all_nodes(model.proto))
    if len(same_name) > 1:
        return "another function has its name"
    if everywhere != len(calls):
        return "it is called from another function or a subgraph"
    if not calls:
        return "nothing calls it"
    inner = nodes_inside(GraphProto(node=function.node))
    if any(attribute.ref_attr_name for node in inner for attribute in node.attribute):
        return "its attributes come from the calls"
    if any(len(call.input) != len(function.input) or "" in call.input for call in calls):
        return "a call leaves arguments out"
    for position in range(len(function.input)):
        if len({_kind(analysis, call.input[position]) for call in calls}) > 1:
            return "its calls pass values of different shapes"
    return ""


def _key(function: FunctionProto) -> tuple[str, str]:
    return function.domain, function.name


def _all_nodes(proto: ModelProto) -> Iterator[NodeProto]:
    yield from nodes_inside(proto.graph)
    for function in proto.functions:
        yield from nodes_inside(GraphProto(node=function.node))


def _kind(analysis: Analysis, name: str) -> object:
    """Dtype and shapes of a value."""
    shapes = analysis.shapes
    return shapes.dtypes.get(name), *(shapes.of(name, choice) for choice in range(shapes.count))


def _fold_function(
    model: OnnxModel,
    analysis: Analysis,
    function: FunctionProto,
    calls: Sequence[NodeProto],
    prepare: Prepare,
    inside: InnerFolds,
) -> bool:
    prefix = f"{function.name}/"
    inner = _as_model(model, analysis, function, calls)
    try:
        folding, folded = inner_networks.fold_inner(inner, prepare, prefix)
    except BnfoldError as error:
        why = f"it could not be followed: {error}"
        inside.items += inner_networks.unfolded_items(function.node, prefix, function.name, why)
        return False
    items = [
        replace(inner_networks.item_outside(item, prefix, function.name, _EDGE), calls=len(calls))
        for item in folding.report.items
    ]
    if not inner_networks.note_fold(inside, folding, items, prefix):
        return False
    _put_back(model, function, calls, inner, folded)
    return True


def _as_model(
    model: OnnxModel, analysis: Analysis, function: FunctionProto, calls: Sequence[NodeProto]
) -> OnnxModel:
    """The function as a model; it does not know the names of its arguments, only its own."""
    proto = ModelProto(ir_version=max(model.proto.ir_version, 4))
    proto.opset_import.extend(function.opset_import)
    proto.functions.extend(f for f in model.proto.functions if _key(f) != _key(function))
    proto.graph.name = function.name
    proto.graph.node.extend(function.node)
    proto.graph.output.extend(ValueInfoProto(name=name) for name in function.output)
    shapes = analysis.shapes
    pinned, inputs = set(), {}
    inner = OnnxModel(model.name, proto)
    for position, own in enumerate(function.input):
        passed = {call.input[position] for call in calls}
        name = next(iter(passed))
        tensor = inner_networks.constant(analysis, name) if len(passed) == 1 else None
        if tensor is not None:
            proto.graph.initializer.add().CopyFrom(tensor)
            proto.graph.initializer[-1].name = own
            pinned.add(own)
            if name in analysis.network.initializers and name in model.tensor_data:
                inner.tensor_data[own] = model.tensor_data[name]
            continue
        info = ValueInfoProto(name=own)
        info.type.tensor_type.elem_type = shapes.dtypes.get(name, TensorProto.UNDEFINED)
        proto.graph.input.append(info)
        inputs[own] = name
    taken = set(named_values(model.proto.graph))
    inner.outside = Outside(frozenset(pinned), taken, inner_networks.shapes_inside(shapes, inputs))
    return inner


def _put_back(
    model: OnnxModel,
    function: FunctionProto,
    calls: Sequence[NodeProto],
    inner: OnnxModel,
    folded: OnnxModel,
) -> None:
    """Give the function its new nodes, and let all calls pass what is new."""
    assert inner.outside is not None
    made = folded.proto.graph
    was_read = _read(function)
    del function.node[:]
    function.node.extend(made.node)
    names = {name for node in made.node for name in node.output}
    for position in reversed(range(len(function.value_info))):
        if function.value_info[position].name not in names:
            del function.value_info[position]
    for tensor in made.initializer:
        if tensor.name in inner.outside.pinned:
            continue
        inner_networks.add_initializer(model, tensor)
        if tensor.name in folded.tensor_data:
            model.tensor_data[tensor.name] = folded.tensor_data[tensor.name]
        function.input.append(tensor.name)
        for call in calls:
            call.input.append(tensor.name)
    unread = was_read - _read(function)
    for position in reversed(range(len(function.input))):
        if function.input[position] in unread:
            del function.input[position]
            for call in calls:
                del call.input[position]


def _read(function: FunctionProto) -> set[str]:
    """What a function does with its arguments: all names that are read in it."""
    read = set(function.output)
    for node in function.node:
        read.update(node.input)
        for attribute in node.attribute:
            for body in inner_graphs(attribute):
                read |= free_names(body)
    return read
