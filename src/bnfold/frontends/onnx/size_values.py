"""Which elements of a constant depend on an open dimension, and which are lengths themselves.

For each constant that comes from the shape of an activation there is an array of the same shape:
None where the element is the same number for every input, else a `Size`. What is done to lengths
is followed element by element; where nothing better is known, an element depends on the open
dimensions if anything does that it is computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.frontends.onnx.constant_operands import Operands, Unknown
from bnfold.frontends.onnx.constant_views import VIEWS
from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.sizes import Size, product, quotient, unknown

Elements = NDArray[Any]
"""Of `Size | None`."""
_UNFIT = (ValueError, LookupError, TypeError, ArithmeticError, MemoryError)
_LARGEST = 1 << 12
"""Elements up to which a constant is followed element by element."""


def fixed(shape: Sequence[int]) -> Elements:
    """Nothing depends on open dimensions."""
    return np.full(tuple(shape), None, dtype=object)


def of_sizes(sizes: Sequence[Size]) -> Elements:
    """A list of lengths, as Shape gives it."""
    made = fixed((len(sizes),))
    for place, size in enumerate(sizes):
        made[place] = None if size.is_fixed else size
    return made


def is_open(elements: Elements | None) -> bool:
    """Whether an element may depend on an open dimension; None is for all of them, or a length."""
    return elements is None or any(size is not None for size in elements.flat)


def size_at(elements: Elements | None, array: NDArray[Any], place: int) -> Size:
    """An element of a list as a length."""
    if elements is None:
        return unknown()
    size = elements.flat[place if elements.ndim else 0]
    if size is None:
        return Size(int(array.reshape(-1)[place]))
    assert isinstance(size, Size)
    return size


def follow(
    node: Node,
    opset: int,
    arrays: Sequence[NDArray[Any] | None],
    elements: Sequence[Elements | None],
    made: Sequence[NDArray[Any] | None],
) -> list[Elements | None]:
    """The elements of the outputs, from the values under the first choice; None: all depend.

    `elements` is None for an operand whose length, too, may depend on open dimensions.
    """
    nothing: list[Elements | None] = [None] * len(node.outputs)
    if any(array is None or array.size > _LARGEST for array in made):
        return nothing
    if not any(is_open(operand) for operand in elements):
        return [None if array is None else fixed(array.shape) for array in made]
    if any(operand is None for operand in elements):
        return nothing
    rule = _RULES.get(node.op)
    try:
        if node.op in VIEWS:  # the same operator, on the sizes: where to has to be a number
            data = len(elements) if node.op == "Concat" else 1
            if any(is_open(operand) for operand in elements[data:]):
                return nothing
            operands: Operands = [*elements[:data], *arrays[data:]]
            return list(VIEWS[node.op](node, opset, operands))
        if rule is not None:
            return [rule(node, arrays, [e for e in elements if e is not None])]
    except (Unknown, *_UNFIT):
        return nothing
    return nothing


def _identity(node: Node, arrays: Any, elements: Sequence[Elements]) -> Elements:
    return elements[0]


def _cast(node: Node, arrays: Any, elements: Sequence[Elements]) -> Elements:
    """Integers of 32 and 64 bits hold every length; of others it is known whether they depend."""
    if node.integer("to") in (6, 7) and arrays[0].dtype in (np.int32, np.int64):
        return elements[0]
    return _mixed(node, arrays, elements)


def _elementwise(combine: Callable[[Sequence[Any], Sequence[Size | None]], Size | None]) -> Any:
    """`combine` gets the numbers and the sizes of one element, some of which depend."""

    def rule(node: Node, arrays: Sequence[Any], elements: Sequence[Elements]) -> Elements:
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
        numbers = [np.broadcast_to(array, shape) for array in arrays]
        sizes = [np.broadcast_to(operand, shape) for operand in elements]
        made = fixed(shape)
        is_whole = all(array.dtype.kind in "iub" for array in arrays)
        for place in np.ndindex(*shape):
            here: list[Any] = [operand[place] for operand in sizes]
            if any(size is not None for size in here):
                given = [array[place] for array in numbers]
                made[place] = combine(given, here) if is_whole else unknown()
        return made

    return rule


def _length(number: Any, size: Size | None) -> Size:
    return Size(int(number)) if size is None else size


def _depends(numbers: Sequence[Any], sizes: Sequence[Size | None]) -> Size | None:
    return unknown()


def _times(numbers: Sequence[Any], sizes: Sequence[Size | None]) -> Size | None:
    made = product(_length(n, s) for n, s in zip(numbers, sizes, strict=True))
    return made if made.factor > 0 else unknown()


def _over(numbers: Sequence[Any], sizes: Sequence[Size | None]) -> Size | None:
    whole, part = (_length(n, s) for n, s in zip(numbers, sizes, strict=True))
    made = quotient(whole, part) if whole.factor > 0 and part.factor > 0 else None
    if made is None:
        return unknown()
    return None if made.is_fixed else made


def _equal(numbers: Sequence[Any], sizes: Sequence[Size | None]) -> Size | None:
    """A length is never less than 0, whatever it is: exporters ask whether it is -1.

    One that the user chooses is not 0 either.
    """
    lengths = [_length(n, s) for n, s in zip(numbers, sizes, strict=True)]
    least = 0 if all(length.is_fixed or length.is_chosen for length in lengths) else -1
    is_never = any(length.is_fixed and length.factor <= least for length in lengths) and all(
        length.is_fixed or length.is_length for length in lengths
    )
    return None if is_never else unknown()


_mixed: Callable[[Node, Any, Any], Elements] = _elementwise(_depends)


def _where(node: Node, arrays: Sequence[Any], elements: Sequence[Elements]) -> Elements:
    """Where the condition is the same for every input, so is the choice."""
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    condition = np.broadcast_to(arrays[0], shape)
    asked, yes, no = (np.broadcast_to(operand, shape) for operand in elements)
    made = fixed(shape)
    for place in np.ndindex(*shape):
        chosen = yes[place] if condition[place] else no[place]
        made[place] = chosen if asked[place] is None else unknown()
    return made


def _reduce_product(node: Node, arrays: Sequence[Any], elements: Sequence[Elements]) -> Elements:
    """Of a whole list."""
    if arrays[0].ndim != 1 or arrays[0].dtype.kind not in "iu":
        raise Unknown
    made = fixed((1,) if node.integer("keepdims", 1) else ())
    pairs = zip(arrays[0], elements[0], strict=True)
    made[...] = product(_length(n, s) for n, s in pairs)
    return made


_RULES: dict[str, Callable[[Node, Any, Any], Elements]] = {
    "Identity": _identity,
    "Cast": _cast,
    "CastLike": _mixed,
    "Mul": _elementwise(_times),
    "Div": _elementwise(_over),
    "Equal": _elementwise(_equal),
    "Where": _where,
    "ReduceProd": _reduce_product,
    **dict.fromkeys(
        (
            *("Add", "Sub", "Neg", "Abs", "Sqrt", "Reciprocal", "Pow", "Exp", "Floor", "Ceil"),
            *("Greater", "Less", "Not", "And", "Or", "Log", "Sign", "Relu", "Sum", "Mean"),
            *("Min", "Max"),
        ),
        _mixed,
    ),
}
"""Operators that are not here mix all elements."""
