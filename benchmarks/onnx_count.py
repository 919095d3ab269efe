"""Affine steps that an ONNX model still runs, counted in the file without asking any fold.

    1. BatchNormalization nodes of the standard domain;
    2. Mul, Div, Add and Sub of an activation and a constant that has one number, or one per
       channel: what is left of a BatchNorm after a tool took it apart, and what some exporters
       write from the start. An Add right behind a MatMul is that MatMul's bias and does not count.

Graphs inside nodes and local functions count too. A constant is whatever depends on initializers
and Constant nodes alone; integers are shapes and do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto

_ARITHMETIC = ("Mul", "Div", "Add", "Sub")
_RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli")
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True, slots=True)
class _Constant:
    """What is known about a value that does not depend on the inputs."""

    shape: tuple[int, ...] | None
    """None where it is computed."""
    is_float: bool

    @property
    def is_per_channel(self) -> bool:
        """One number, or one along a single axis. Computed ones come from a BatchNorm: they are."""
        return self.shape is None or sum(length > 1 for length in self.shape) <= 1


Constants = Mapping[str, _Constant]


def affine_steps(model: onnx.ModelProto) -> list[str]:
    """The op of each affine step, with the name of its node: "Mul node_12"."""
    found = [_label(node) for node in _in_graph(model.graph, {})]
    for function in model.functions:
        found += [_label(node) for node in function.node if _is_batch_norm(node)]
    return found


def _in_graph(graph: onnx.GraphProto, outer: Constants) -> Iterator[onnx.NodeProto]:
    given = {value.name for value in graph.input}
    constants = {**outer, **_initial(graph)}
    makers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if _is_constant(node, constants, given):
            constants.update(_made(node, constants))
        elif _is_batch_norm(node) or _is_step(node, constants, makers):
            yield node
        for inner in _graphs(node):
            yield from _in_graph(inner, constants)


def _initial(graph: onnx.GraphProto) -> dict[str, _Constant]:
    return {t.name: _Constant(tuple(t.dims), t.data_type in _FLOATS) for t in graph.initializer}


def _is_constant(node: onnx.NodeProto, constants: Constants, given: Iterable[str]) -> bool:
    if node.op_type in _RANDOM or next(iter(_graphs(node)), None) is not None:
        return False
    return all(not name or (name in constants and name not in given) for name in node.input)


def _made(node: onnx.NodeProto, constants: Constants) -> dict[str, _Constant]:
    if node.op_type != "Constant":
        is_float = any(constants[name].is_float for name in node.input if name)
        return dict.fromkeys(node.output, _Constant(None, is_float))
    (attribute,) = node.attribute
    made = {
        "value": _Constant(tuple(attribute.t.dims), attribute.t.data_type in _FLOATS),
        "value_float": _Constant((), True),
        "value_floats": _Constant((len(attribute.floats),), True),
    }
    return {node.output[0]: made.get(attribute.name, _Constant((), False))}


def _graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _is_batch_norm(node: onnx.NodeProto) -> bool:
    return node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx")


def _is_step(
    node: onnx.NodeProto, constants: Constants, makers: Mapping[str, onnx.NodeProto]
) -> bool:
    if node.op_type not in _ARITHMETIC or len(node.input) != 2:
        return False
    fixed = [constants[name] for name in node.input if name in constants]
    if len(fixed) != 1 or (node.op_type == "Div" and node.input[0] in constants):
        return False
    maker = makers.get(next(name for name in node.input if name not in constants))
    if node.op_type == "Add" and maker is not None and maker.op_type == "MatMul":
        return False
    return fixed[0].is_float and fixed[0].is_per_channel


def _label(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"
