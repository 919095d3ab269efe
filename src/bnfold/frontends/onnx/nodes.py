"""The nodes of a graph, with what lifting asks: attributes, who makes and who reads each value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from bnfold.errors import ModelUnreadableError
from bnfold.frontends.onnx.read import inner_graphs
from bnfold.frontends.onnx.schemas import is_well_formed

_ANEW = "export the model again"
MALFORMED = "?"
"""The domain of nodes that have not the form of their operator: nothing is known about them."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One node of the main graph."""

    index: int
    """Its place in the file."""
    proto: NodeProto
    name: str
    """How reports call it."""
    op: str
    """The operator; with its domain in front unless that is ONNX's own."""
    inputs: tuple[str, ...]
    """Names; "" where an optional one is left out."""
    outputs: tuple[str, ...]

    def attribute(self, name: str) -> Any:
        """The value of an attribute; None where it is not set."""
        for attribute in self.proto.attribute:
            if attribute.name == name:
                if attribute.type == AttributeProto.TENSOR:
                    return attribute.t
                return helper.get_attribute_value(attribute)
        return None

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        value = self.attribute(name)
        return default if value is None else int(value)

    def number(self, name: str, default: float) -> float:
        """A float attribute; one that is not set is stored in float32 as well."""
        value = self.attribute(name)
        return float(np.float32(default) if value is None else value)

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        value = self.attribute(name)
        return default if value is None else value.decode() if isinstance(value, bytes) else value

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of integers; empty where it is not set."""
        return tuple(int(value) for value in self.attribute(name) or ())

    def input(self, position: int) -> str:
        """The name of an input; "" where there is none."""
        return self.inputs[position] if position < len(self.inputs) else ""


@dataclass(slots=True)
class Network:
    """The main graph."""

    proto: ModelProto
    nodes: list[Node]
    """In an order in which they can run."""
    opset: int
    """Of ONNX's own operators."""
    initializers: dict[str, TensorProto]
    """Those that are constant."""
    inputs: dict[str, Any]
    """What the user passes in: names and their types. Overridable initializers are among them."""
    overridable: frozenset[str] = frozenset()
    """Initializers that are inputs too: what the user passes in takes their place."""
    makers: dict[str, Node] = field(default_factory=dict)
    readers: dict[str, list[tuple[Node, int]]] = field(default_factory=dict)
    """Nodes and positions of the inputs where each value is read in the main graph."""
    captured: set[str] = field(default_factory=set)
    """Values that graphs inside or around it read, or that something else in the file speaks of."""
    sparse: set[str] = field(default_factory=set)
    """Names of what is stored sparsely, initializers and the outputs of Constant nodes: constant,
    but neither looked at nor edited."""
    outputs: tuple[str, ...] = ()
    taken: set[str] = field(default_factory=set)
    """Names that are given to something in a graph around this one."""

    def value_readers(self, name: str) -> list[tuple[Node, int]]:
        """Those of the readers that look at more than its shape or dtype."""
        return [
            (node, position)
            for node, position in self.readers.get(name, ())
            if node.op not in ("Shape", "Size") and (node.op != "CastLike" or position == 0)
        ]

    def is_pinned(self, name: str) -> bool:
        """Whether somebody outside the main graph reads the value."""
        return name in self.captured or name in self.outputs

    def is_read(self, name: str) -> bool:
        """Whether anybody looks at more of the value than its shape or dtype."""
        return self.is_pinned(name) or bool(self.value_readers(name))


def read_network(file: str, proto: ModelProto) -> Network:
    """Look at the main graph. Raises ModelUnreadableError where it makes no sense."""
    graph = proto.graph
    names = {info.name for info in graph.input}
    # Before IR 4 every initializer has to be an input too, and no runtime lets it be overridden.
    overridable = names if proto.ir_version >= 4 else set()
    network = Network(
        proto,
        [],
        next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1),
        {t.name: t for t in graph.initializer if t.name not in overridable},
        {},
        outputs=tuple(info.name for info in graph.output),
    )
    network.inputs = {
        info.name: info.type for info in graph.input if info.name not in network.initializers
    }
    network.overridable = frozenset(
        tensor.name for tensor in graph.initializer if tensor.name in overridable
    )
    nodes = _nodes(proto, network.opset)
    for node in nodes:
        for name in node.outputs:
            if name and (name in network.makers or name in network.initializers or name in names):
                raise ModelUnreadableError(file, f"two things are called {name!r}", _ANEW)
            network.makers[name] = node
        for position, name in enumerate(node.inputs):
            if name:
                network.readers.setdefault(name, []).append((node, position))
        for attribute in node.proto.attribute:
            for inner in inner_graphs(attribute):
                network.captured |= free_names(inner)
    network.makers.pop("", None)
    network.captured |= described(proto)
    network.sparse = {tensor.values.name for tensor in graph.sparse_initializer}
    known = {*network.initializers, *names, *network.sparse}
    network.sparse |= {
        name
        for node in nodes
        if node.op == "Constant" and node.attribute("sparse_value") is not None
        for name in node.outputs
    }
    network.nodes = _sorted(file, nodes, known, network)
    for name in network.outputs:
        if name not in network.makers and name not in known:
            raise ModelUnreadableError(file, f"nothing makes the output {name!r}", _ANEW)
    return network


def described(proto: ModelProto) -> set[str]:
    """Values that quantisation annotations and training speak of: they mean what they are."""
    names = {note.tensor_name for note in proto.graph.quantization_annotation}
    for note in proto.graph.quantization_annotation:
        names.update(entry.value for entry in note.quant_parameter_tensor_names)
    for training in proto.training_info:
        names |= free_names(training.algorithm) | free_names(training.initialization)
        for binding in (*training.initialization_binding, *training.update_binding):
            names |= {binding.key, binding.value}
    return names


def _nodes(proto: ModelProto, opset: int) -> list[Node]:
    functions = {(_domain(f.domain), f.name) for f in proto.functions}
    nodes = []
    for index, node in enumerate(proto.graph.node):
        is_own = not _domain(node.domain)
        is_function = (_domain(node.domain), node.op_type) in functions
        op = node.op_type if is_own and not is_function else f"{node.domain}::{node.op_type}"
        if op == node.op_type and not is_well_formed(node, opset):
            op = f"{MALFORMED}::{op}"
        outputs = tuple(node.output)
        name = node.name or next((o for o in outputs if o), f"{node.op_type}_{index}")
        nodes.append(Node(index, node, name, op, tuple(node.input), outputs))
    return nodes


def _domain(domain: str) -> str:
    """ONNX's own domain has two names."""
    return "" if domain == "ai.onnx" else domain


def _sorted(file: str, nodes: list[Node], known: set[str], network: Network) -> list[Node]:
    """The nodes so that every one comes behind those whose values it reads."""
    made = set(known)
    for node in nodes:
        if not made.issuperset(needs_of(node)):
            break
        made.update(node.outputs)
    else:
        return nodes
    missing: dict[int, int] = {}
    ready = []
    for node in nodes:
        needs = {name for name in needs_of(node) if name not in known}
        for name in needs:
            if name not in network.makers:
                raise ModelUnreadableError(
                    file, f"node {node.name!r} reads {name!r}, which nothing makes", _ANEW
                )
        missing[node.index] = len(needs)
        if not needs:
            ready.append(node)
    return _in_order(file, nodes, missing, ready)


def _in_order(
    file: str, nodes: list[Node], missing: dict[int, int], ready: list[Node]
) -> list[Node]:
    followers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in set(needs_of(node)):
            followers.setdefault(name, []).append(node)
    order = []
    queue = list(reversed(ready))
    while queue:
        node = queue.pop()
        order.append(node)
        for name in node.outputs:
            for follower in followers.get(name, ()):
                missing[follower.index] -= 1
                if not missing[follower.index]:
                    queue.append(follower)
    if len(order) < len(nodes):
        stuck = next(node for node in nodes if missing[node.index])
        raise ModelUnreadableError(file, f"node {stuck.name!r} is part of a cycle", _ANEW)
    return order


def needs_of(node: Node) -> list[str]:
    """What a node reads, in subgraphs too."""
    needs = [name for name in node.inputs if name]
    for attribute in node.proto.attribute:
        for inner in inner_graphs(attribute):
            needs += free_names(inner)
    return needs


def free_names(graph: GraphProto) -> set[str]:
    """What a subgraph reads from outside, itself or in its own subgraphs."""
    own = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
    own.update(sparse.values.name for sparse in graph.sparse_initializer)
    read = {info.name for info in graph.output}
    for node in graph.node:
        own.update(node.output)
        read.update(node.input)
        for attribute in node.attribute:
            for inner in inner_graphs(attribute):
                read |= free_names(inner)  # no deeper than what protobuf parses
    return read - own - {""}


def nodes_inside(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of a graph and of its subgraphs."""
    queue = [graph]
    while queue:
        for node in queue.pop().node:
            yield node
            for attribute in node.attribute:
                queue += inner_graphs(attribute)


def expanded_nodes(proto: ModelProto) -> float:
    """How many nodes calls of local functions stand for; infinite if functions call each other."""
    bodies = {(f.domain, f.name): calls_of(f.node) for f in proto.functions}
    counts: dict[tuple[str, str], float] = {}
    stack = list(bodies)
    open_calls: set[tuple[str, str]] = set()
    while stack:
        function = stack[-1]
        missing = [call for call in bodies[function] if call in bodies and call not in counts]
        if function not in counts and missing:
            if not open_calls.isdisjoint(missing) or function in missing:
                return float("inf")
            open_calls.add(function)
            stack += dict.fromkeys(missing)
            continue
        stack.pop()
        open_calls.discard(function)
        counts[function] = sum(counts.get(call, 1) for call in bodies[function])
    return sum(counts.get(call, 0) for call in calls_of(proto.graph.node))


def calls_of(nodes: Iterable[NodeProto]) -> list[tuple[str, str]]:
    """Domain and operator of each node, of those in subgraphs too."""
    calls = []
    queue = [nodes]
    while queue:
        for node in queue.pop():
            calls.append((node.domain, node.op_type))
            for attribute in node.attribute:
                queue += [inner.node for inner in inner_graphs(attribute)]
    return calls


def named_values(graph: GraphProto) -> Iterator[str]:
    """All names that a graph uses, those of nodes included, its subgraphs too."""
    queue: list[GraphProto] = [graph]
    while queue:
        current = queue.pop()
        yield current.name
        for info in (*current.input, *current.output, *current.value_info):
            yield info.name
        for tensor in current.initializer:
            yield tensor.name
        for sparse in current.sparse_initializer:
            yield sparse.values.name
        for node in current.node:
            yield node.name
            yield from node.input
            yield from node.output
            for attribute in node.attribute:
                queue += inner_graphs(attribute)


def aligned(shape: Sequence[int], rank: int) -> tuple[int, ...]:
    """A shape with leading axes of length 1, up to a rank."""
    return (1,) * (rank - len(shape)) + tuple(shape)
