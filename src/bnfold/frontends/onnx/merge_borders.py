"""Borders that a file writes: several nodes that are one op, for merging.

    z = Pad(y), then strips by ScatterND, between Transposes and Identities that cancel out

is y with something around it, as `core.expression.Border` has it, if the strips are as wide as what
was padded, and hold one constant per channel. Exporters make this of `z[:, :, :p] = b`. Which
places are written is known for every size where the indices are constants that no size decides, or

    Slice(Range(0, Gather(Shape(z), axis)), start, end)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.expression import Border, Part
from bnfold.frontends.onnx.lifter import as_float64
from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.sites import Lifted
from bnfold.frontends.onnx.tensors import numpy_dtype

_END = 1 << 31
_LAID = ("Expand", "Transpose", "Reshape", "Unsqueeze", "Identity")
_SAME = ("Cast", "Squeeze", "Reshape", "Unsqueeze", "Identity")

Strip = tuple[int, int, int]
"""The axis, and from where to where; from the end, numbers are negative."""


@dataclass(frozen=True, slots=True)
class Bordered:
    """What is written around a tensor."""

    pad: Node
    role: g.Pad
    nodes: tuple[Node, ...]
    inner: frozenset[str]
    """Values that nothing but this may read."""
    made: str
    order: tuple[int, ...]
    """Which axis of what was padded lies where."""
    strips: frozenset[Strip] = frozenset()
    values: tuple[float, ...] | None = None
    """One per channel."""

    def then(self, node: Node, **changes: object) -> Bordered:
        """With a node behind it."""
        inner, nodes = self.inner | {self.made}, (*self.nodes, node)
        return replace(self, nodes=nodes, inner=inner, made=node.outputs[0], **changes)  # type: ignore[arg-type]


def borders(lifted: Lifted) -> Iterator[tuple[Bordered, Part]]:
    """What is written around tensors, with the linear ops that this may be.

    The nodes are then all of it, with what looks at the shapes of what lies between.
    """
    roles = {op.outputs[0]: op.role for op in lifted.graph.ops if op.outputs}
    known: dict[str, Bordered] = {}
    for node in lifted.network.nodes:
        role = roles.get(lifted.tensors.get(node.outputs[0], -1)) if node.outputs else None
        if node.op == "Pad" and isinstance(role, g.Pad) and _pads(lifted, node, role):
            order = tuple(range(len(role.before)))
            known[node.outputs[0]] = Bordered(
                node, role, (node,), frozenset(), node.outputs[0], order
            )
        elif node.inputs and (old := known.get(node.inputs[0])) is not None:
            new = _behind(lifted, node, old, known)
            known |= {} if new is None else {new.made: new}
    taken: set[int] = set()
    for found in known.values():
        part = None if found.pad.index in taken else _part(lifted, found)
        others = None if part is None else _others(lifted, found)
        if part is not None and others is not None:
            taken.add(found.pad.index)
            yield replace(found, nodes=(*found.nodes, *others)), part


def _pads(lifted: Lifted, node: Node, role: g.Pad) -> bool:
    amounts = (*role.before, *role.after)
    is_known = not node.input(1) or not lifted.constants.may_differ(node.input(1))
    return is_known and len(role.before) > 2 and min(amounts) >= 0


def _behind(
    lifted: Lifted, node: Node, old: Bordered, known: dict[str, Bordered]
) -> Bordered | None:
    if node.op == "Identity":
        return old.then(node)
    if node.op == "Transpose":
        perm = node.integers("perm") or tuple(reversed(range(len(old.order))))
        return old.then(node, order=tuple(old.order[axis] for axis in perm))
    if node.op != "ScatterND" or node.text("reduction", "none") != "none":
        return None
    strip, values = _strip(lifted, node, old, known), _values(lifted, node, old)
    if strip is None or values is None or old.values not in (None, values):
        return None
    return old.then(node, strips=old.strips | {strip}, values=values)


def _strip(lifted: Lifted, node: Node, old: Bordered, known: dict[str, Bordered]) -> Strip | None:
    """What is written, in whole rows of one axis."""
    indices, shape = lifted.constants.array(node.inputs[1]), lifted.constants.shapes.of(old.made)
    if indices is None:
        return _from_range(lifted, node, old, known)
    if shape is None or not indices.size:
        return None
    opened = lifted.constants.shapes.open_axes(old.made)
    if indices.shape[-1] == 1:
        rows, axis = indices.reshape(-1), 0
    elif indices.shape[-1] == len(shape) and not opened:
        # Every place by itself, in order.
        place = tuple(int(low) for low in indices.reshape(-1, len(shape)).min(axis=0))
        sizes = indices.shape[:-1]
        grid = np.moveaxis(np.indices(sizes), 0, -1) + np.array(place)
        partly = [axis for axis, size in enumerate(sizes) if size != shape[axis]]
        if grid.shape != indices.shape or not np.array_equal(grid, indices) or len(partly) != 1:
            return None
        (axis,) = partly
        rows = np.arange(place[axis], place[axis] + sizes[axis])
    else:
        return None
    first, count, length = int(rows[0]), len(rows), shape[axis]
    if not np.array_equal(rows, np.arange(first, first + count)) or (axis in opened and first > 0):
        return None
    if first == 0:
        return old.order[axis], 0, count
    return (old.order[axis], -count, _END) if first + count in (0, length) else None


def _from_range(
    lifted: Lifted, node: Node, old: Bordered, known: dict[str, Bordered]
) -> Strip | None:
    """A slice of all rows, whatever their number."""
    makers, constants = lifted.constants.nodes, lifted.constants
    shape = constants.shape(node.inputs[1])
    cut = makers.get(node.inputs[1])
    if shape is None or shape[-1] != 1 or cut is None or cut.op != "Unsqueeze":
        return None
    cut = makers.get(cut.inputs[0])
    rows = None if cut is None or cut.op != "Slice" else makers.get(cut.inputs[0])
    if cut is None or rows is None or rows.op != "Range":
        return None
    numbers = [constants.array(name) for name in (*cut.inputs[1:], rows.inputs[0], rows.inputs[2])]
    if any(array is None or array.size != 1 for array in numbers) or len(numbers) != 6:
        return None
    start, end, _, step, first, by = (
        int(array.reshape(())) for array in numbers if array is not None
    )
    count = makers.get(rows.inputs[1])
    while count is not None and count.op in _SAME:
        count = makers.get(count.inputs[0])
    if (step, first, by) != (1, 0, 1) or count is None or count.op != "Gather":
        return None
    sizes, at = makers.get(count.inputs[0]), constants.array(count.inputs[1])
    if sizes is None or sizes.op != "Shape" or at is None or at.size != 1:
        return None
    seen = known.get(sizes.inputs[0])
    is_whole = not sizes.integer("start") and sizes.attribute("end") is None
    if seen is None or seen.pad is not old.pad or not is_whole:
        return None
    if seen.order[int(at.reshape(()))] != old.order[0]:
        return None
    return old.order[0], start, min(end, _END)


def _values(lifted: Lifted, node: Node, old: Bordered) -> tuple[float, ...] | None:
    """One per channel, if that is what is written everywhere."""
    constants, name = lifted.constants, node.inputs[2]
    axis, shape = old.order.index(1), lifted.constants.shapes.of(old.made)
    if shape is None or (axis == 0 and constants.shape(node.inputs[1]) != (shape[0], 1)):
        return None
    made = set()
    for choice in range(constants.shapes.count):
        array = constants.value(name, choice)
        if array is None or array.ndim != len(old.order) or array.shape[axis] != shape[axis]:
            return None
        first = array[tuple(slice(None) if at == axis else slice(1) for at in range(array.ndim))]
        if not (array == first).all():
            return None
        made.add(tuple(as_float64(first).reshape(-1).tolist()))
    while (maker := constants.nodes.get(name)) is not None and maker.op in _LAID:
        name = maker.inputs[0]
    # The sizes may be open, what it holds may not.
    base, whole = constants.array(name), constants.array(node.inputs[2])
    is_known = whole is not None or (base is not None and base.size == shape[axis])
    return made.pop() if is_known and len(made) == 1 else None


def _part(lifted: Lifted, found: Bordered) -> Part | None:
    """As a linear op, if the strips cover what was padded."""
    amounts = [*enumerate(zip(found.role.before, found.role.after, strict=True))]
    padded = {(axis, 0, before) for axis, (before, _) in amounts if before}
    padded |= {(axis, -after, _END) for axis, (_, after) in amounts if after}
    shape = lifted.constants.shapes.of(found.pad.inputs[0])
    dtype = lifted.constants.shapes.dtypes.get(found.made)
    if found.strips != padded or found.order != tuple(range(len(found.order))):
        return None
    if found.values is None or shape is None or dtype is None:
        return None
    numbers: FloatArray = np.array(found.values)
    kind = numpy_dtype(dtype)
    if kind.kind != "f" or kind.itemsize < 4:
        return None  # fewer bits would tell too little
    part = Part.padding(replace(found.role, value=0.0), shape, str(dtype))
    if part is None or part.axis != 1:
        return None
    # Of sums, products and a root, and of an epsilon, which a file holds in 32 bits.
    rounding = max(8 * float(np.finfo(kind).eps), 1e-11)
    return replace(part, border=Border(numbers, rounding))


def _others(lifted: Lifted, found: Bordered) -> list[Node] | None:
    """What else reads what lies between, if it is for these nodes alone."""
    own = {node.index for node in found.nodes}
    others: dict[int, Node] = {}
    pending = [*found.inner]
    while pending:
        name = pending.pop()
        if lifted.network.is_pinned(name):
            return None
        for node, _ in lifted.network.readers.get(name, ()):
            if node.index not in own and node.index not in others:
                others[node.index] = node
                pending += [output for output in node.outputs if output]
    tensors = {name for node in others.values() for name in node.outputs}
    # What is computed of the values themselves must not get into the result.
    is_shape = all(
        node.op in ("Shape", "Slice", "Identity") or name not in found.inner
        for node in others.values()
        for name in node.inputs
    )
    return [*others.values()] if is_shape and found.made not in tensors else None
