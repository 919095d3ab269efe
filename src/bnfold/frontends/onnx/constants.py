"""What is constant in a graph: initializers, Constant nodes, and what is computed from them.

Exporters compute constants from constants: a bias of zeros by ConstantOfShape, a scale by Sqrt and
Div, a target shape from the shape of an activation. A small table of operators is evaluated with
NumPy, in the dtype of the model, when somebody asks. The shape of an activation is a constant too,
where it is known; it may differ between the two choices that `shapes` makes for open dimensions,
and then it serves as a shape, but not as a number to compute with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.frontends.onnx.constant_operands import Unknown
from bnfold.frontends.onnx.constant_ops import TABLE
from bnfold.frontends.onnx.nodes import Network, Node
from bnfold.frontends.onnx.shapes import Shape, Shapes
from bnfold.frontends.onnx.size_values import Elements, is_open
from bnfold.frontends.onnx.tensor_data import TensorData
from bnfold.frontends.onnx.tensors import numpy_dtype, to_array

Array = NDArray[Any]

# What NumPy and onnx raise for operands that do not fit, and for dtypes that they do not know.
_NOT_COMPUTABLE = (ValueError, LookupError, TypeError, ArithmeticError, MemoryError)
_KEPT = 1 << 16
"""Bytes up to which a constant is kept once it is known."""
_MOST = 1 << 28
"""Bytes up to which constants are computed at all."""


@dataclass(slots=True)
class Constants:
    """The constants of a network."""

    network: Network
    tensor_data: dict[str, TensorData]
    shapes: Shapes
    nodes: dict[str, Node] = field(default_factory=dict)
    """What makes each computed constant."""
    open: set[str] = field(default_factory=set)
    """Constants that come from the shape of an activation."""
    quantized: set[str] = field(default_factory=set)
    """Constants that come out of a DequantizeLinear, in any shape: as weights they are no floats
    to be edited, as the integers behind them are what the user wants to keep."""
    elements: dict[str, Elements] = field(default_factory=dict)
    """What the elements of open constants depend on, see `open_sizes`; where a name is not there,
    all of them, or their number, may depend on open dimensions."""
    settled: frozenset[str] = frozenset()
    """Open constants that are the same for every input all the same, see `own_lengths`."""
    cache: dict[tuple[str, int], Array] = field(default_factory=dict)
    large: list[tuple[str, int]] = field(default_factory=list)
    """What is in the cache for the moment only."""

    def is_constant(self, name: str) -> bool:
        """Whether the value is the same in every run, or a shape that is known."""
        return name in self.network.initializers or name in self.nodes

    def array(self, name: str) -> Array | None:
        """The value, not to be written to; None if it is unknown or may depend on open sizes.

        Being equal under both choices is not enough: H / W is 1 for all squares.
        """
        if self.may_differ(name):
            return None
        return self.value(name, 0)

    def may_differ(self, name: str) -> bool:
        """Whether an element, or the shape, may depend on an open dimension."""
        if name not in self.open or self.shapes.count == 1 or name in self.settled:
            return False
        return is_open(self.elements.get(name))

    def differing(self, name: str) -> tuple[bool, ...] | None:
        """Which elements of a list may depend on an open dimension; None if its length may."""
        array = self.value(name, 0)
        if array is None or not self.may_differ(name):
            return None if array is None else (False,) * array.size
        elements = self.elements.get(name)
        return None if elements is None else tuple(size is not None for size in elements.flat)

    def value(self, name: str, choice: int) -> Array | None:
        """The value under one choice of the open dimensions."""
        if not self.is_constant(name):
            return None
        order = [name]
        while order:  # no recursion: chains of constants can be long
            current = order[-1]
            if self._known(current, choice) is not None:
                order.pop()
                continue
            if current in self.network.initializers:
                return None
            missing = [n for n in self._operands(current) if n and self._known(n, choice) is None]
            if missing:
                order += missing
                continue
            array = self._evaluate(current, choice)
            if array is None:
                return None
            self._keep((current, choice), array)
            order.pop()
        result = self._known(name, choice)
        self._forget_large()
        return result

    def numbers(self, name: str, choice: int = 0) -> tuple[int, ...] | None:
        """A list of integers under one choice; None if it is unknown."""
        array = self.value(name, choice) if name else None
        return None if array is None else tuple(int(value) for value in array.reshape(-1))

    def shape(self, name: str) -> Shape | None:
        """The shape of a constant, without looking at its content."""
        tensor = self.network.initializers.get(name)
        if tensor is not None:
            return tuple(tensor.dims)
        return self.shapes.of(name) if self.shapes.values else None

    def _known(self, name: str, choice: int) -> Array | None:
        tensor = self.network.initializers.get(name)
        if tensor is None:
            return self.cache.get((name, choice if name in self.open else 0))
        cached = self.cache.get((name, 0))
        if cached is None:
            try:
                cached = to_array(tensor, self.tensor_data.get(name))
            except _NOT_COMPUTABLE:  # of a dtype that is not known
                return None
            self._keep((name, 0), cached)
        return cached

    def _operands(self, name: str) -> tuple[str, ...]:
        node = self.nodes[name]
        if node.op in ("Shape", "Size"):
            return ()
        return node.inputs[:1] if node.op == "CastLike" else node.inputs

    def _evaluate(self, name: str, choice: int) -> Array | None:
        node = self.nodes[name]
        if node.op in ("Shape", "Size"):
            return self._shape_of(node, choice)
        if node.op == "CastLike":
            return self._cast_like(node, choice)
        operands = [self._known(n, choice) if n else None for n in node.inputs]
        if sum(o.nbytes for o in operands if o is not None) > _MOST:
            return None
        try:
            with np.errstate(all="ignore"):
                made = TABLE[node.op](node, self.network.opset, operands)
        except (Unknown, *_NOT_COMPUTABLE):
            return None
        for output, array in zip(node.outputs, made, strict=False):
            if output:
                self._keep((output, choice if output in self.open else 0), array)
        return self.cache.get((name, choice if name in self.open else 0))

    def _shape_of(self, node: Node, choice: int) -> Array | None:
        source = node.inputs[0]
        tensor = self.network.initializers.get(source)
        shape = tuple(tensor.dims) if tensor is not None else None
        if shape is None and self.shapes.values:
            shape = self.shapes.of(source, choice)
        if shape is None:
            return None
        if node.op == "Size":
            return np.array(int(np.prod(shape)), dtype=np.int64)
        start, end = node.integer("start", 0), node.attribute("end")
        return np.array(shape[start : len(shape) if end is None else end], dtype=np.int64)

    def _cast_like(self, node: Node, choice: int) -> Array | None:
        """A constant in the dtype of something that may be no constant."""
        data_type = self.shapes.dtypes.get(node.outputs[0])
        array = self._known(node.inputs[0], choice)
        if data_type is None or array is None or array.dtype.kind not in "fiub":
            return None
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return None
        try:
            return array.astype(numpy_dtype(data_type))
        except _NOT_COMPUTABLE:
            return None

    def _keep(self, key: tuple[str, int], array: Array) -> None:
        self.cache[key] = array
        if array.nbytes > _KEPT:
            self.large.append(key)

    def _forget_large(self) -> None:
        for key in self.large:
            self.cache.pop(key, None)
        self.large.clear()


def find_constants(
    network: Network, tensor_data: dict[str, TensorData], shapes: Shapes
) -> Constants:
    """Which values are constant; nothing is computed yet."""
    constants = Constants(network, tensor_data, shapes)
    for node in network.nodes:
        is_shape = node.op in ("Shape", "Size")
        if is_shape:
            source = node.input(0)
            is_fixed = constants.is_constant(source) and source not in constants.open
        elif node.op == "Constant":
            is_fixed = _is_plain_constant(node)
            if not is_fixed:
                continue
        elif node.op == "CastLike" and constants.is_constant(node.input(0)):
            is_fixed = node.input(0) not in constants.open
        elif node.op in TABLE and all(not n or constants.is_constant(n) for n in node.inputs):
            is_fixed = not any(n in constants.open for n in node.inputs)
        else:
            continue
        is_quantized = node.op == "DequantizeLinear" or any(
            name in constants.quantized for name in node.inputs
        )
        for output in node.outputs:
            if output:
                constants.nodes[output] = node
                if is_quantized:
                    constants.quantized.add(output)
                if not is_fixed:
                    constants.open.add(output)
    return constants


def _is_plain_constant(node: Node) -> bool:
    return any(
        a.name in ("value", "value_float", "value_floats", "value_int", "value_ints")
        for a in node.proto.attribute
    )
