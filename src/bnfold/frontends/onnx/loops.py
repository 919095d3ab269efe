"""The shapes of what a Loop or Scan returns, where it declares none.

A value that is carried has the shape of the first one in all rounds, if that is so by induction:
see `loop_declarations`. After the last round it still has, and so it has where there is no round.
"""

from __future__ import annotations

from onnx import GraphProto, TypeProto, helper

from bnfold.frontends.onnx.analysis import Analysis, Pins, Proven, analyse
from bnfold.frontends.onnx.bodies import as_model
from bnfold.frontends.onnx.loop_declarations import (
    carried,
    declarations_hold,
    first_shape,
    keeps_its_shape,
    without_shape,
)
from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.read import OnnxModel, inner_graphs

Types = dict[str, TypeProto]


def analyse_through_loops(model: OnnxModel, inputs: Pins) -> Analysis:
    """Look at the graph, and find the shapes of all values, also of those that loops return."""
    analysis = analyse(model, inputs)
    while found := _returned(model, analysis):
        known = analysis.shapes.proven or ({},) * len(found)
        proven: Proven = tuple({**before, **now} for before, now in zip(known, found, strict=True))
        again = analyse(model, inputs, proven)
        if again.shapes.count != len(proven):  # for the given shapes alone
            break
        analysis = again
    return analysis


def _returned(model: OnnxModel, analysis: Analysis) -> list[Types]:
    """Types that are not known yet, per choice; none if there are no such."""
    shapes = analysis.shapes
    found: list[Types] = [{} for _ in range(shapes.count)]
    for node in analysis.network.nodes:
        if node.op not in ("Loop", "Scan") or all(
            shapes.of(name) is not None for name in node.outputs if name
        ):
            continue
        for attribute in node.proto.attribute:
            for body in inner_graphs(attribute):
                for known, more in zip(found, _of_body(model, analysis, node, body), strict=True):
                    known.update(more)
    return found if any(found) else []


def _of_body(model: OnnxModel, analysis: Analysis, node: Node, body: GraphProto) -> list[Types]:
    outside, opset = analysis.shapes, analysis.network.opset
    found: list[Types] = [{} for _ in range(outside.count)]
    states = [
        (name, given)
        for name, given in carried(node, body, opset)
        if outside.of(name) is None
        and outside.of(given.first) is not None
        and given.first in outside.dtypes
        and not outside.seems_fixed(given.first)
    ]
    if not states:
        return found
    assumed = without_shape(node, body, opset)
    while True:
        inside = analyse_through_loops(as_model(model, analysis, body, assumed), None).shapes
        proven = [given for given in assumed if keeps_its_shape(given, outside, inside)]
        if len(proven) == len(assumed):
            break
        assumed = proven
    if not declarations_hold(node, body, outside, inside, opset):
        return found
    for name, given in states:
        if not keeps_its_shape(given, outside, inside) or inside.seems_fixed(given.again):
            continue
        for choice, types in enumerate(found):
            shape = first_shape(given, outside, choice)
            types[name] = helper.make_tensor_type_proto(outside.dtypes[given.first], shape)
    return found
