"""What is known about a graph before it is lifted: its nodes, the shapes, the constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import TypeProto

from bnfold.frontends.onnx.constants import Constants, find_constants
from bnfold.frontends.onnx.nodes import Network, read_network
from bnfold.frontends.onnx.open_sizes import follow_sizes
from bnfold.frontends.onnx.read import OnnxModel
from bnfold.frontends.onnx.shapes import Shapes, choose_inputs, infer

Pins = Mapping[str, Sequence[int]] | None
Proven = tuple[Mapping[str, TypeProto], ...]
"""Types of values that inference does not see through, per choice of the open dimensions."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """See the head of this file."""

    network: Network
    shapes: Shapes
    constants: Constants


def analyse(model: OnnxModel, inputs: Pins, proven: Proven = ()) -> Analysis:
    """Look at the graph, and find the shapes of all values."""
    network = read_network(model.name, model.proto)
    shapes = choose_inputs(network, inputs)
    if model.outside is not None:
        network.captured |= model.outside.pinned
        network.taken = model.outside.taken
        shapes = shapes.seen_from_inside(model.outside.shapes)
    shapes.proven = proven if len(proven) == shapes.count else ()
    constants = find_constants(network, model.tensor_data, shapes)
    infer(network, shapes, constants.value)
    if inputs and shapes.count > 1:
        given = shapes.given_alone()
        given.proven = proven[:1]
        constants_given = find_constants(network, model.tensor_data, given)
        infer(network, given, constants_given.value)
        if len(given.values[0]) > len(shapes.values[0]):  # no other shapes go through the network
            return Analysis(network, given, constants_given)
    follow_sizes(network, constants, shapes)
    return Analysis(network, shapes, constants)
