"""What is known, in every round, of the values that the body of a Loop or Scan is given.

No runtime holds a body to the shapes that it declares. They are true by induction: if the first
values have them, and if the body makes values of these shapes again from values that have them.
Axes that are declared open may have any length, and need no proof. Where no shape is declared, that
of the first value is assumed, and has to be proven alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import GraphProto, ValueInfoProto

from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.shapes import Shape, Shapes


@dataclass(frozen=True, slots=True)
class Given:
    """A value that the body is given."""

    info: ValueInfoProto
    """What the body declares."""
    first: str
    """The value outside."""
    axis: int | None
    """The axis of `first` along which it is cut into rounds."""
    again: str
    """What the body makes for the next round; "" where nothing is carried."""


def declarations_hold(
    node: Node, body: GraphProto, outside: Shapes, inside: Shapes, opset: int
) -> bool:
    """Whether the declared lengths are those of all rounds."""
    given = _given(node, body, opset)
    return given is not None and all(_holds(declaration, outside, inside) for declaration in given)


def without_shape(node: Node, body: GraphProto, opset: int) -> list[Given]:
    """What the body is given that it declares no shape of."""
    return [
        given
        for given in _given(node, body, opset) or []
        if given.info.type.WhichOneof("value") in (None, "tensor_type")
        and not given.info.type.tensor_type.HasField("shape")
    ]


def first_shape(given: Given, outside: Shapes, choice: int) -> Shape | None:
    """The shape that a value has in the first round."""
    shape = outside.of(given.first, min(choice, outside.count - 1))
    return shape if given.axis is None else _cut(shape, given.axis)


def keeps_its_shape(given: Given, outside: Shapes, inside: Shapes) -> bool:
    """Whether a value has the shape of the first round in all, if all that is assumed is so."""
    return not given.again or all(
        inside.of(given.again, choice) == first_shape(given, outside, choice)
        for choice in range(inside.count)
    )


def carried(node: Node, body: GraphProto, opset: int) -> list[tuple[str, Given]]:
    """What a Loop or Scan returns of the values that it carries, by name."""
    states = [given for given in _given(node, body, opset) or [] if given.again]
    return [(name, given) for name, given in zip(node.outputs, states, strict=False) if name]


def _given(node: Node, body: GraphProto, opset: int) -> list[Given] | None:
    """What the body is given, but for the numbers that count rounds; None if it makes no sense."""
    if node.op == "If":
        return [] if not body.input else None
    try:
        if node.op == "Loop":
            return list(_of_loop(node, body))
        return list(_of_scan(node, body)) if node.op == "Scan" and opset >= 9 else None
    except IndexError:
        return None


def _of_loop(node: Node, body: GraphProto) -> Iterator[Given]:
    """Inputs: round, go on, state...; outputs: go on, state..., what is gathered..."""
    for position in range(2, len(body.input)):
        yield Given(
            body.input[position], node.inputs[position], None, body.output[position - 1].name
        )


def _of_scan(node: Node, body: GraphProto) -> Iterator[Given]:
    """Inputs: state..., one slice of each sequence...; outputs: state..., what is gathered..."""
    states = len(node.inputs) - node.integer("num_scan_inputs")
    axes = node.integers("scan_input_axes") or (0,) * (len(body.input) - states)
    for position, info in enumerate(body.input):
        if position < states:
            yield Given(info, node.inputs[position], None, body.output[position].name)
        else:
            yield Given(info, node.inputs[position], axes[position - states], "")


def _holds(given: Given, outside: Shapes, inside: Shapes) -> bool:
    tensor = given.info.type.tensor_type
    if given.info.type.WhichOneof("value") != "tensor_type" or not tensor.HasField("shape"):
        return True  # nothing is declared: see `keeps_its_shape`
    declared = [dim.dim_value for dim in tensor.shape.dim]
    firsts = [first_shape(given, outside, choice) for choice in range(outside.count)]
    again = [inside.of(given.again, choice) for choice in range(inside.count)]
    shapes = firsts + (again if given.again else [])
    return all(shape is not None and _fits(declared, shape) for shape in shapes)


def _cut(shape: Shape | None, axis: int) -> Shape | None:
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


def _fits(declared: list[int], shape: Shape) -> bool:
    return len(declared) == len(shape) and all(
        length in (0, own) for length, own in zip(declared, shape, strict=True)
    )
