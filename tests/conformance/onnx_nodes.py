"""What a model consists of, read from the file format and not from any report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import onnx

AFFINE = ("BatchNormalization", "Mul", "Add", "Sub", "Div", "Neg")
"""Ops of the standard that an affine step can be made of."""


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node: of the graph, of graphs in attributes, of local functions."""
    yield from _walk(model.graph.node)
    for function in model.functions:
        yield from _walk(function.node)


def _walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _walk(attribute.g.node)
            for graph in attribute.graphs:
                yield from _walk(graph.node)


def op_types(model: onnx.ModelProto) -> Counter[str]:
    """How often each op occurs; ops of other domains as "domain::op"."""
    return Counter(
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        for node in all_nodes(model)
    )


def interface(model: onnx.ModelProto) -> tuple[list[bytes], list[bytes]]:
    """Names, types and shapes of what goes in and comes out, in order.

    Up to IR 3 initializers are listed as inputs by form alone: those do not count.
    """
    forms = {t.name for t in model.graph.initializer} if model.ir_version < 4 else set()
    given = [value for value in model.graph.input if value.name not in forms]
    return (
        [value.SerializeToString(deterministic=True) for value in given],
        [value.SerializeToString(deterministic=True) for value in model.graph.output],
    )
