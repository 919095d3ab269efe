"""Carry out edits on a model's message, and clear away the constants that nobody reads any more.

Names that somebody outside reads stay: of the graph's inputs and outputs, and of what subgraphs
read. Where a removed node made such a value, what made its input takes over the name; if that
cannot be, an Identity does.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import GraphProto, NodeProto, TensorProto, helper

from bnfold.core.fitting import Overflow
from bnfold.frontends.onnx.edits import Edits, NewTensor
from bnfold.frontends.onnx.nodes import Network, free_names
from bnfold.frontends.onnx.read import OnnxModel, inner_graphs
from bnfold.frontends.onnx.sites import Lifted
from bnfold.frontends.onnx.tensor_data import (
    ComputedData,
    FileData,
    MemoryData,
    ScaledData,
    TensorData,
)
from bnfold.frontends.onnx.tensors import clear_content, numpy_dtype

_SMALL = 1 << 12
"""Bytes up to which new content goes into the message itself."""


def rewrite(model: OnnxModel, lifted: Lifted, edits: Edits) -> OnnxModel:
    """The folded model. Raises Overflow; the model that was read is left alone."""
    folded = OnnxModel(
        model.name, type(model.proto)(), dict(model.tensor_data), set(model.external)
    )
    folded.proto.CopyFrom(model.proto)
    graph = folded.proto.graph
    before = _named(graph)
    nodes = _edited_nodes(graph, edits)
    nodes = _rewired(nodes, lifted.network, edits)
    nodes = _without_dead(folded, nodes, lifted)
    holder = GraphProto()
    holder.node.extend(nodes)
    del graph.node[:]
    graph.node.MergeFrom(holder.node)
    _put_tensors(folded, edits, model.tensor_data)
    _forget_values(graph, (before - _named(graph)) | edits.retyped)
    return folded


def _edited_nodes(graph: GraphProto, edits: Edits) -> list[NodeProto]:
    nodes: list[NodeProto] = []
    changed: dict[int, list[tuple[int, str]]] = {}
    for (index, position), name in edits.inputs.items():
        changed.setdefault(index, []).append((position, name))
    for index, node in enumerate(graph.node):
        if index in edits.removed:
            continue
        if index in edits.nodes:
            nodes += edits.nodes[index]
            continue
        for position, name in changed.get(index, ()):
            _set_input(node, position, name)
        if index in edits.unit_factors:
            for attribute in node.attribute:
                if attribute.name == "beta":
                    attribute.f = 1.0
        nodes.append(node)
        if index in edits.behind:
            inner, add = edits.behind[index]
            node.output[0] = inner
            nodes.append(add)
    return nodes


def _set_input(node: NodeProto, position: int, name: str) -> None:
    while len(node.input) <= position:
        node.input.append("")
    node.input[position] = name


def _rewired(nodes: list[NodeProto], network: Network, edits: Edits) -> list[NodeProto]:
    """Let everybody read what removed nodes read."""
    if not edits.bypassed:
        return nodes
    roots = {name: _root(name, edits.bypassed) for name in edits.bypassed}
    made = {output for node in nodes for output in node.output}
    renamed: dict[str, str] = {}
    copies: list[NodeProto] = []
    for name, root in roots.items():
        if not network.is_pinned(name):
            continue
        if root in made and root not in renamed and not network.is_pinned(root):
            renamed[root] = name
        else:
            label = f"{name}_identity"
            label = "" if any(node.name == label for node in nodes) else label
            copies.append(helper.make_node("Identity", [root], [name], name=label))
    for node in nodes:
        for position, name in enumerate(node.input):
            target = roots.get(name, name)
            target = renamed.get(target, target)
            if target != name:
                node.input[position] = target
        for position, name in enumerate(node.output):
            if name in renamed:
                node.output[position] = renamed[name]
    for copy in copies:
        copy.input[0] = renamed.get(copy.input[0], copy.input[0])
    return _inserted(nodes, copies)


def _root(name: str, bypassed: dict[str, str]) -> str:
    while name in bypassed:
        name = bypassed[name]
    return name


def _inserted(nodes: list[NodeProto], copies: list[NodeProto]) -> list[NodeProto]:
    """The copies, each as soon as its source is made."""
    by_source: dict[str, list[NodeProto]] = {}
    for copy in copies:
        by_source.setdefault(copy.input[0], []).append(copy)
    result: list[NodeProto] = []
    made = {output for node in nodes for output in node.output}
    for source in [source for source in by_source if source not in made]:
        result += by_source.pop(source)
    for node in nodes:
        result.append(node)
        for output in node.output:
            result += by_source.pop(output, [])
    return result


def _without_dead(folded: OnnxModel, nodes: list[NodeProto], lifted: Lifted) -> list[NodeProto]:
    """Drop constants that somebody read before and nobody reads now."""
    graph, network = folded.proto.graph, lifted.network
    outputs = set(network.outputs)
    constants = lifted.constants.nodes
    dead: set[int] = set()
    counts: dict[str, int] = {}
    for node in nodes:
        for name in _reads(node):
            counts[name] = counts.get(name, 0) + 1
    queue = [
        number
        for number, node in enumerate(nodes)
        if _is_dead(node, counts, outputs, constants, network)
    ]
    makers = {output: number for number, node in enumerate(nodes) for output in node.output}
    while queue:
        number = queue.pop()
        if number in dead:
            continue
        dead.add(number)
        for name in _reads(nodes[number]):
            counts[name] -= 1
            maker = makers.get(name)
            if maker is not None and _is_dead(nodes[maker], counts, outputs, constants, network):
                queue.append(maker)
    unread = [
        name
        for name in network.initializers
        if not counts.get(name) and not network.is_pinned(name) and name in network.readers
    ]
    folded.drop_initializers(set(unread))
    for position in reversed(range(len(graph.input))):
        if graph.input[position].name in unread:
            del graph.input[position]
    return [node for number, node in enumerate(nodes) if number not in dead]


def _is_dead(
    node: NodeProto,
    counts: dict[str, int],
    outputs: set[str],
    constants: dict[str, object] | dict[str, NodeProto] | object,
    network: Network,
) -> bool:
    return all(
        not name
        or (
            name in constants  # type: ignore[operator]
            and name in network.readers
            and not counts.get(name)
            and name not in outputs
        )
        for name in node.output
    )


def _reads(node: NodeProto) -> Iterable[str]:
    """What a node reads, in its subgraphs too."""
    yield from node.input
    for attribute in node.attribute:
        for inner in inner_graphs(attribute):
            yield from free_names(inner)


def _put_tensors(folded: OnnxModel, edits: Edits, sources: dict[str, TensorData]) -> None:
    present = {tensor.name: tensor for tensor in folded.proto.graph.initializer}
    for name, new in edits.replaced.items():
        if name in present:
            _fill(folded, present[name], new, sources)
    for name, new in edits.born.items():
        tensor = folded.proto.graph.initializer.add(name=name, data_type=new.data_type)
        tensor.dims.extend(new.shape)
        if folded.proto.ir_version < 4:  # where every initializer has to be an input too
            info = helper.make_tensor_value_info(name, new.data_type, new.shape)
            folded.proto.graph.input.append(info)
        _fill(folded, tensor, new, sources)


def _fill(
    folded: OnnxModel, tensor: TensorProto, new: NewTensor, sources: dict[str, TensorData]
) -> None:
    clear_content(tensor)
    if new.nbytes > _SMALL or tensor.name in folded.external:
        source = sources.get(new.source)
        is_plain = new.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE)
        if new.factor is not None and is_plain and isinstance(source, FileData | MemoryData):
            dtype = numpy_dtype(new.data_type)
            folded.tensor_data[tensor.name] = ScaledData(
                source, dtype, new.shape, new.factor, Overflow(new.op)
            )
            return
        folded.tensor_data[tensor.name] = ComputedData(new.nbytes, new.compute)
        return
    folded.tensor_data.pop(tensor.name, None)
    tensor.raw_data = new.compute().tobytes()


def _named(graph: GraphProto) -> set[str]:
    names = {info.name for info in graph.input} | {t.name for t in graph.initializer}
    return names | {output for node in graph.node for output in node.output}


def _forget_values(graph: GraphProto, gone: set[str]) -> None:
    """Drop what is said about values that are no longer there."""
    for position in reversed(range(len(graph.value_info))):
        if graph.value_info[position].name in gone:
            del graph.value_info[position]
    for position in reversed(range(len(graph.quantization_annotation))):
        if graph.quantization_annotation[position].tensor_name in gone:
            del graph.quantization_annotation[position]
