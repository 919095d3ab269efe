"""Operators that move values without changing them: run on labels, they say where each one went.

Every one is a function of label arrays, made for each choice of the open dimensions; targets,
indices and sizes have to be constants under that choice. Labels arrive broadcast to the full
shape; an axis along which they do not change has stride 0 and is not spread out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bnfold.core import graph as g
from bnfold.core import labels as lab
from bnfold.core.axes import blocks
from bnfold.core.forest import IntArray
from bnfold.core.labels import Apply
from bnfold.frontends.onnx.constant_views import slice_index, split_sizes
from bnfold.frontends.onnx.lift_constants import operands
from bnfold.frontends.onnx.lift_picks import pick
from bnfold.frontends.onnx.lifter import Handler, Lifter
from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.open_views import keeps_places
from bnfold.frontends.onnx.shapes import Shape


def _unary(
    make: Callable[[Lifter, Node, int], Apply | None], *, comes_again: bool = False
) -> Handler:
    """A handler for an operator of one activation; `make` gives its function, or None.

    `comes_again` says that what it lays along an open axis comes again, and that its function is
    for any length.
    """

    def handler(lifter: Lifter, node: Node) -> bool:
        source = node.inputs[0]
        outputs = [output for output in node.outputs if output]
        if not lifter.is_activation(source) or not all(lifter.is_float(o) for o in outputs):
            return False
        made = [make(lifter, node, choice) for choice in range(lifter.shapes.count)]
        ready = [function for function in made if function is not None]
        if len(ready) < len(made):
            return False
        one_entry = ready[0] if comes_again else None
        tensors = [lifter.tensor(source)]
        return lifter.emit_view(node, tensors, outputs, ready.__getitem__, one_entry=one_entry)

    return handler


def _on_labels(function: Callable[[IntArray], Any]) -> Apply:
    return lambda labels: [np.asarray(function(labels[0]))]


def _shape(lifter: Lifter, name: str, choice: int) -> Shape:
    shape = lifter.shapes.of(name, choice)
    assert shape is not None
    return shape


# -------------------------------------------------------------------- the same values, elsewhere


def _reshape(lifter: Lifter, node: Node, choice: int) -> Apply | None:
    """Reshape, Flatten, Squeeze, Unsqueeze: inference has found the new shape."""
    target = _shape(lifter, node.outputs[0], choice)
    if not keeps_places(lifter, node):
        return None
    if np.prod(target) != np.prod(_shape(lifter, node.inputs[0], choice)):
        return None
    return _on_labels(lambda labels: reshaped(labels, target))


def reshaped(labels: IntArray, target: Shape) -> IntArray:
    """The labels at another shape, spreading out only the axes that have to be."""
    lengths: list[int] = []
    index: list[slice] = []
    for old, new in blocks(labels.shape, target):
        is_flat = all(labels.strides[a] == 0 or labels.shape[a] == 1 for a in old)
        index += [slice(0, 1) if is_flat else slice(None)] * len(old)
        lengths += [1 if is_flat else target[a] for a in new]
    small = labels[tuple(index)]
    _check_size(small.size)
    return np.broadcast_to(small.reshape(lengths), target)


_LARGEST = 1 << 27
"""Elements (of 8 bytes) up to which labels are spread out: what is larger is not followed."""


def _check_size(count: int) -> None:
    """Raise ValueError, as views do that do not fit, for what would take gigabytes."""
    if count > _LARGEST:
        raise ValueError(f"{count} labels are too many to follow")


def _transpose(lifter: Lifter, node: Node, choice: int) -> Apply | None:
    perm = node.integers("perm") or None
    return _on_labels(lambda labels: np.transpose(labels, perm))


def same(lifter: Lifter, node: Node) -> bool:
    """Identity, Dropout, and casts from float to float; a Max or a Concat of one."""
    source, output = node.inputs[0], node.outputs[0]
    if not lifter.is_activation(source) or not lifter.is_float(output):
        return False
    same = _on_labels(lambda labels: labels)
    return lifter.emit_view(
        node, [lifter.tensor(source)], [output], lambda choice: same, keeps_all=True
    )


def _power(lifter: Lifter, node: Node) -> bool:
    """To the power of 1, which is the value."""
    exponents = lifter.constants.array(node.input(1)) if node.input(1) else None
    if exponents is None or not (exponents == 1).all():
        return False
    source, output = node.inputs[0], node.outputs[0]
    has_shape = lifter.shape(source) == lifter.shape(output)
    return has_shape and exponents.size == 1 and same(lifter, node)


def _dropout(lifter: Lifter, node: Node) -> bool:
    """Nothing at inference; its mask, if it has one, does not depend on the values."""
    if not is_idle_dropout(lifter, node):
        return False
    return same(lifter, node)


def is_idle_dropout(lifter: Lifter, node: Node) -> bool:
    """Whether a Dropout is known to drop nothing."""
    mode = node.input(2)
    training = lifter.constants.array(mode) if mode else np.array(False)
    if training is None or bool(training.any()):
        return False
    return lifter.network.opset >= 7 or bool(node.integer("is_test"))


# -------------------------------------------------------------------- parts


def _is_decided(lifter: Lifter, node: Node, position: int, axis: int | None) -> bool:
    """Whether an operand is the same for every size, or the labels do not vary along its axis."""
    name = node.input(position)
    if not name or not lifter.constants.may_differ(name):
        return True
    return axis is not None and axis not in lifter.axes_of(lifter.tensor(node.inputs[0]))


def _cuts_decided(lifter: Lifter, node: Node, axes: Sequence[int], rank: int) -> bool:
    """Whether a Slice cuts the same places out for every size along axes where labels vary."""
    if not (_is_decided(lifter, node, 3, None) and _is_decided(lifter, node, 4, None)):
        return False
    varying = lifter.axes_of(lifter.tensor(node.inputs[0]))
    for position in (1, 2):
        differing = lifter.constants.differing(node.input(position))
        if differing is None:
            return False
        for place, differs in enumerate(differing):
            if differs and (axes[place] if axes else place) % rank in varying:
                return False
    return True


def _slice(lifter: Lifter, node: Node, choice: int) -> Apply | None:
    shape = _shape(lifter, node.inputs[0], choice)
    if lifter.network.opset < 10:
        parts = [node.integers("starts"), node.integers("ends"), node.integers("axes"), ()]
    else:
        parts = []
        for position in (1, 2, 3, 4):
            name = node.input(position)
            numbers = lifter.constants.numbers(name, choice) if name else ()
            if numbers is None:
                return None
            parts.append(numbers)
    starts, ends, axes, steps = parts
    if len(starts) != len(ends):
        return None
    if lifter.network.opset >= 10 and not _cuts_decided(lifter, node, axes, len(shape)):
        return None
    index = slice_index(shape, starts, ends, axes, steps)
    return _on_labels(lambda labels: labels[index])


def _split(lifter: Lifter, node: Node, choice: int) -> Apply | None:
    shape = _shape(lifter, node.inputs[0], choice)
    axis = node.integer("axis") % len(shape)
    name = node.input(1)
    sizes = lifter.constants.numbers(name, choice) if name else node.integers("split")
    if sizes is None or not all(node.outputs) or not _is_decided(lifter, node, 1, axis):
        return None
    lengths = split_sizes(shape[axis], sizes, len(node.outputs))
    if sum(lengths) != shape[axis] or len(lengths) != len(node.outputs):
        return None
    places = np.cumsum(lengths)[:-1]
    return lambda labels: np.split(labels[0], places, axis=axis)


def _gather(lifter: Lifter, node: Node, choice: int) -> Apply | None:
    name = node.input(1)
    indices = lifter.constants.value(name, choice) if name else None
    axis = node.integer("axis")
    rank = len(_shape(lifter, node.inputs[0], choice))
    if indices is None or not _is_decided(lifter, node, 1, axis % rank):
        return None
    return _on_labels(lambda labels: _take(labels, indices, axis))


def _take(labels: IntArray, indices: Any, axis: int) -> Any:
    """np.take, without spreading out the other axes."""
    axis %= labels.ndim
    taken = np.take(lab.thin(labels, (axis,)), indices, axis=axis)
    shape = (*labels.shape[:axis], *np.shape(indices), *labels.shape[axis + 1 :])
    return np.broadcast_to(taken, shape)


# -------------------------------------------------------------------- larger


def _expand(lifter: Lifter, node: Node, choice: int) -> Apply | None:
    target = _shape(lifter, node.outputs[0], choice)
    return _on_labels(lambda labels: np.broadcast_to(labels, target))


def _tile(lifter: Lifter, node: Node, choice: int) -> Apply | None:
    repeats = lifter.constants.numbers(node.input(1), choice)
    if repeats is None or lifter.network.opset < 6:
        return None
    counts = repeats

    def apply(labels: IntArray) -> IntArray:
        _check_size(labels.size * math.prod(counts))
        return np.tile(labels, counts)

    return _on_labels(apply)


def _concat(lifter: Lifter, node: Node) -> bool:
    output = node.outputs[0]
    if not all(lifter.is_float(name) for name in node.inputs):
        return False
    if len(node.inputs) == 1:
        return same(lifter, node)
    rank = len(lifter.shape(output) or ())
    axis = node.integer("axis", 1) % rank
    tensors = operands(lifter, node, min(1, rank - 1))
    if tensors is None:
        return False
    for number in tensors:  # a constant is the same under both choices, an activation is known
        if len(lifter.graph.shapes[number]) != rank:
            return False

    def make(choice: int) -> Apply:
        full = _shape(lifter, output, choice)
        return lambda labels: [lab.expand(lab.concat(labels, axis, _LARGEST), full)]

    def one_entry(labels: Sequence[IntArray]) -> list[IntArray]:
        return [lab.concat(labels, axis, _LARGEST)]

    if axis in lifter.shapes.open_axes(output):
        return lifter.emit_view(node, tensors, [output], make, one_entry=one_entry)
    return lifter.emit_view(node, tensors, [output], make, concat=axis)


def _blocks(lifter: Lifter, node: Node, choice: int) -> tuple[int, Shape]:
    """The length of a block's sides, 0 for what is no image, and the input's shape."""
    shape = _shape(lifter, node.inputs[0], choice)
    return node.integer("blocksize") if len(shape) == 4 else 0, shape


def _depth_to_space(lifter: Lifter, node: Node, choice: int) -> Apply | None:
    """https://onnx.ai/onnx/operators/onnx__DepthToSpace.html"""
    size, shape = _blocks(lifter, node, choice)
    if size < 1 or shape[1] % size**2:
        return None

    def apply(labels: IntArray) -> IntArray:
        n, c, h, w = labels.shape
        channels = c // size**2
        _check_size(labels.size)
        if node.text("mode", "DCR") == "DCR":
            cut = labels.reshape(n, size, size, channels, h, w)
            moved = cut.transpose(0, 3, 4, 1, 5, 2)
        else:
            cut = labels.reshape(n, channels, size, size, h, w)
            moved = cut.transpose(0, 1, 4, 2, 5, 3)
        return moved.reshape(n, channels, h * size, w * size)

    return _on_labels(apply)


def _space_to_depth(lifter: Lifter, node: Node, choice: int) -> Apply | None:
    """https://onnx.ai/onnx/operators/onnx__SpaceToDepth.html"""
    size, shape = _blocks(lifter, node, choice)
    if size < 1:
        return None
    n, c, h, w = shape

    def apply(labels: IntArray) -> IntArray:
        _check_size(labels.size)
        cut = labels.reshape(n, c, h // size, size, w // size, size)
        return cut.transpose(0, 3, 5, 1, 2, 4).reshape(n, c * size**2, h // size, w // size)

    return _on_labels(apply)


# -------------------------------------------------------------------- padding


def _pad(lifter: Lifter, node: Node) -> bool:
    source = node.inputs[0]
    pads = _pads(lifter, node)
    if pads is None or not lifter.is_activation(source):
        return False
    before, after = pads
    tensor = lifter.tensor(source)
    mode = node.text("mode", "constant")
    touched = tuple(a for a, pair in enumerate(zip(before, after, strict=True)) if any(pair))
    if mode != "constant":
        if any(pad < 0 for pad in (*before, *after)):
            return False
        axes = lifter.axes_of(tensor) - set(touched)
        return lifter.emit(node, g.Mean(touched), [tensor], axes) is not None
    value = _pad_value(lifter, node)
    if value is None or np.isnan(value):
        return False
    return (
        lifter.emit(node, g.Pad(before, after, value), [tensor], lifter.axes_of(tensor)) is not None
    )


def _pads(lifter: Lifter, node: Node) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Elements added in front and behind, per axis; None if they are not known.

    Pads that the size decides count as 1: some inputs are padded there. Where labels vary they are
    not known.
    """
    shape, name = lifter.shape(node.inputs[0]), node.input(1)
    if shape is None:
        return None
    rank = len(shape)
    if lifter.network.opset < 11:
        listed = node.integers("pads")
        differing = (False,) * len(listed)
    else:
        numbers = lifter.constants.numbers(name) if name else None
        decided = lifter.constants.differing(name) if name else None
        if numbers is None or decided is None:
            return None
        differing = decided
        listed = tuple(1 if d else pad for pad, d in zip(numbers, differing, strict=True))
    axes = list(range(rank))
    if node.input(3):
        array = lifter.constants.array(node.input(3))
        if array is None:
            return None
        axes = [int(axis) % rank for axis in array.reshape(-1)]
    if len(listed) != 2 * len(axes):
        return None
    varying = lifter.axes_of(lifter.tensor(node.inputs[0]))
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        if axis in varying and (differing[place] or differing[place + len(axes)]):
            return None
        before[axis], after[axis] = listed[place], listed[place + len(axes)]
    return tuple(before), tuple(after)


def _pad_value(lifter: Lifter, node: Node) -> float | None:
    if lifter.network.opset < 11:
        return node.number("value", 0.0)
    name = node.input(2)
    array = lifter.constants.array(name) if name else np.zeros(1)
    return None if array is None or array.size != 1 else float(array.reshape(()))


VIEWS: dict[str, Handler] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _unary(_reshape)),
    "Transpose": _unary(_transpose),
    **dict.fromkeys(("Identity", "Cast", "CastLike"), same),
    "Dropout": _dropout,
    "Pow": _power,
    "Slice": _unary(_slice),
    "Split": _unary(_split),
    "Gather": lambda lifter, node: _unary(_gather)(lifter, node) or pick(lifter, node),
    **dict.fromkeys(("GatherElements", "GatherND", "Compress"), pick),
    "Expand": _unary(_expand),
    "Tile": _unary(_tile),
    "Concat": _concat,
    "DepthToSpace": _unary(_depth_to_space, comes_again=True),
    "SpaceToDepth": _unary(_space_to_depth),
    "Pad": _pad,
}
