"""New weights with one content, where the model shared weights: they are one again.

A fold, or a merge, may give each op that read a weight one of its own. Where all of them got the
same numbers, they share these.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator

from onnx import GraphProto, TensorProto, numpy_helper

from bnfold.frontends.onnx.nodes import nodes_inside
from bnfold.frontends.onnx.read import OnnxModel


def names_if_shared(graph: GraphProto) -> frozenset[str] | None:
    """The names of a graph's initializers, if several nodes read one weight; None else."""
    readings = Counter(name for node in graph.node for name in node.input)
    if not any(readings[tensor.name] > 1 for tensor in graph.initializer if len(tensor.dims) > 1):
        return None
    return frozenset(tensor.name for tensor in graph.initializer)


def join(model: OnnxModel, known: Collection[str]) -> None:
    """Let nodes share the weights that are not `known` and hold the same. Edits the model."""
    graph = model.proto.graph
    seen = {value.name for value in (*graph.input, *graph.output)}
    firsts: dict[tuple[object, ...], str] = {}
    renamed: dict[str, str] = {}
    for tensor in _alike_in_shape(graph, {*known, *seen}):
        content = _digest(model, tensor)
        first = firsts.setdefault((tensor.data_type, *tensor.dims, content), tensor.name)
        if first != tensor.name:
            renamed[tensor.name] = first
    for node in nodes_inside(graph) if renamed else ():
        for position, name in enumerate(node.input):
            if name in renamed:
                node.input[position] = renamed[name]
    model.drop_initializers(renamed)


def _alike_in_shape(graph: GraphProto, aside: Collection[str]) -> Iterator[TensorProto]:
    """The weights of which there are others of the same dtype and shape."""
    weights = [t for t in graph.initializer if len(t.dims) > 1 and t.name not in aside]
    count = Counter((tensor.data_type, *tensor.dims) for tensor in weights)
    yield from (tensor for tensor in weights if count[tensor.data_type, *tensor.dims] > 1)


def _digest(model: OnnxModel, tensor: TensorProto) -> bytes:
    data = model.tensor_data.get(tensor.name)
    content = numpy_helper.to_array(tensor).tobytes() if data is None else data.read().tobytes()
    return hashlib.sha256(content).digest()
