"""What depends on the open dimensions, followed through the graph in one pass.

Shapes and constants feed one another: a length is read by Shape, computed with, and becomes the
target of a Reshape. See `size_axes` for the axes of values, `size_values` for constants.
"""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from bnfold.frontends.onnx.constants import Constants
from bnfold.frontends.onnx.nodes import Network, Node
from bnfold.frontends.onnx.shapes import Shapes
from bnfold.frontends.onnx.size_axes import lengths
from bnfold.frontends.onnx.size_known import Known
from bnfold.frontends.onnx.size_values import Elements, fixed, follow, of_sizes
from bnfold.frontends.onnx.sizes import Size, product

_LARGEST = 1 << 12
"""Elements of the largest constant that is looked at as a shape."""
_FIXED = fixed(())


def follow_sizes(network: Network, constants: Constants, shapes: Shapes) -> None:
    """Fill in `shapes.lengths` and `constants.elements`, once the shapes are inferred."""
    if shapes.count == 1 or not shapes.values:
        return
    shapes.lengths.update(_input_lengths(network, shapes))
    for name in network.inputs:
        told = shapes.told.get(name, (None,))
        if None not in told:
            shapes.lengths[name] = tuple(size for size in told if size is not None)
    for name, tensor in network.initializers.items():
        shapes.lengths[name] = tuple(Size(length) for length in tensor.dims)
    for node in network.nodes:
        if any(name in constants.open for name in node.outputs):
            _follow_values(node, network.opset, constants, shapes)
        _follow_axes(node, network.opset, constants, shapes)


def _input_lengths(network: Network, shapes: Shapes) -> dict[str, tuple[Size, ...]]:
    """A symbol for each open dimension, one for all that have its name."""
    numbers: dict[str, tuple[int, ...]] = {}
    made = {}
    for name, shape in shapes.choices[0].items():
        kind = network.inputs.get(name)
        dims = [] if kind is None else list(kind.tensor_type.shape.dim)
        sizes = []
        for axis, length in enumerate(shape):
            tried = tuple(choice[name][axis] for choice in shapes.choices)
            symbol = dims[axis].dim_param if axis < len(dims) else ""
            if not symbol or numbers.setdefault(symbol, tried) != tried:
                symbol = f"{name} {axis}"
            sizes.append(Size(length) if len(set(tried)) == 1 else Size(1, (symbol,)))
        made[name] = tuple(sizes)
    return made


def _follow_values(node: Node, opset: int, constants: Constants, shapes: Shapes) -> None:
    """What the elements of constants depend on."""
    if node.op in ("Shape", "Size"):
        source = shapes.lengths.get(node.inputs[0])
        if source is not None:
            start, end = node.integer("start"), node.attribute("end")
            listed = source[start : len(source) if end is None else end]
            made = of_sizes(listed)
            if node.op == "Size":
                made = of_sizes([product(source)]).reshape(())
            constants.elements[node.outputs[0]] = made
        return
    read = node.inputs[:1] if node.op == "CastLike" else node.inputs
    arrays = [_value(constants, name) for name in read]
    elements = [_elements(constants, name, a) for name, a in zip(read, arrays, strict=True)]
    made_arrays = [_value(constants, name) for name in node.outputs]
    followed = follow(node, opset, arrays, elements, made_arrays)
    for name, found in zip(node.outputs, followed, strict=False):
        if name and found is not None:
            constants.elements[name] = found


def _elements(constants: Constants, name: str, array: NDArray[Any] | None) -> Elements | None:
    if name in constants.open:
        return constants.elements.get(name)
    return _FIXED if array is None else fixed(array.shape)


def _value(constants: Constants, name: str) -> NDArray[Any] | None:
    """A small constant, under the first choice."""
    shape = constants.shape(name) if name and constants.is_constant(name) else None
    if shape is None or math.prod(shape) > _LARGEST:
        return None
    return constants.value(name, 0)


def _follow_axes(node: Node, opset: int, constants: Constants, shapes: Shapes) -> None:
    """The lengths of what a node makes."""
    operands = [
        constants.elements.get(name) if name in constants.open else _FIXED for name in node.inputs
    ]
    known_shapes = [_per_choice(shapes, name) for name in node.inputs]
    for name in node.outputs:
        made = _per_choice(shapes, name)
        if made is None:
            continue
        inputs = [shapes.lengths.get(read) for read in node.inputs]
        known = Known(
            node, opset, made, known_shapes, inputs, lambda read: _value(constants, read), operands
        )
        told = shapes.told.get(name, ())
        if len(told) != len(made[0]):
            told = (None,) * len(made[0])
        found = lengths(known) if None in told else ()
        shapes.lengths[name] = tuple(
            found[axis] if size is None else size for axis, size in enumerate(told)
        )


def _per_choice(shapes: Shapes, name: str) -> list[tuple[int, ...]] | None:
    if not name or name not in shapes.values[0]:
        return None
    return [values[name] for values in shapes.values]
