"""Whether a node is what its operator says: inputs, outputs and the types of its attributes.

Files from strangers hold an Add of one tensor, or a Conv whose pads are a text. What reads a node
relies on its form, so a node that has another one is no node of that operator: it is opaque, as an
operator that nobody knows. https://onnx.ai/onnx/operators
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from onnx import NodeProto, defs


def is_well_formed(node: NodeProto, opset: int) -> bool:
    """Whether a node of ONNX's own domain has the form that its operator has at this opset."""
    schema = _schema(node.op_type, opset)
    if schema is None:
        return False
    inputs, outputs = _count(node.input), _count(node.output)
    if inputs > schema.max_input or outputs > schema.max_output or not outputs:
        return False
    if inputs < schema.min_input or any(not node.input[place] for place in schema.needed):
        return False
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) != len(names) or not schema.required.issubset(names):
        return False
    return all(
        attribute.name.startswith("__")  # a private one: no operator looks at it
        or schema.attributes.get(attribute.name) == attribute.type
        for attribute in node.attribute
    )


def is_like_first_input(op: str, opset: int) -> bool:
    """Whether an operator makes a tensor like its first input, and inference does not say so."""
    schema = _schema(op, opset) if op in _LIKE_FIRST_INPUT else None
    return schema is not None and not schema.has_inference


_LIKE_FIRST_INPUT = frozenset(
    (
        *("GroupNormalization", "InstanceNormalization", "MeanVarianceNormalization"),
        # As they were before inference came; what they broadcast is never the first input.
        *("Abs", "Add", "BatchNormalization", "Ceil", "Clip", "Div", "Dropout", "Elu", "Exp"),
        *("Floor", "HardSigmoid", "LeakyRelu", "Log", "Max", "Mean", "Min", "Mul", "Neg"),
        *("PRelu", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sqrt", "Sub", "Sum", "Tanh"),
    )
)


class _Schema:
    """What is looked at of a schema, in Python: asking onnx for each node takes longer."""

    def __init__(self, schema: defs.OpSchema) -> None:
        self.min_input, self.max_input = schema.min_input, schema.max_input
        # A Loop has two inputs at least, and both may be left out.
        optional = defs.OpSchema.FormalParameterOption.Optional
        self.needed = [
            place
            for place in range(schema.min_input)
            if schema.inputs[min(place, len(schema.inputs) - 1)].option != optional
        ]
        self.max_output = schema.max_output
        types: dict[str, Any] = {name: a.type for name, a in schema.attributes.items()}
        self.attributes = {name: int(kind.value) for name, kind in types.items()}
        self.required = {name for name, a in schema.attributes.items() if a.required}
        self.has_inference = schema.has_type_and_shape_inference_function


@cache
def _schema(op: str, opset: int) -> _Schema | None:
    try:
        return _Schema(defs.get_schema(op, max(1, min(opset, 1 << 30))))
    except defs.SchemaError:
        return None


def _count(names: Sequence[str]) -> int:
    """How many there are, without those that are left out at the end."""
    count = 0
    for position, name in enumerate(names):
        if name:
            count = position + 1
    return count
