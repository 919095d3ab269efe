"""Ops that move values without changing them: run on labels, they say where each one went."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bnfold.core import graph as g
from bnfold.core import labels as lab
from bnfold.core.forest import IntArray
from bnfold.frontends.torch.lift_picks import ADD_UP, add_up, pick
from bnfold.frontends.torch.lifter import Lifter, first_value, is_floating
from bnfold.frontends.torch.limits import narrowing
from bnfold.frontends.torch.ops import Arguments
from bnfold.frontends.torch.recording import Const, Event, Geometry, Value, lie_alike


def _view(lifter: Lifter, event: Event) -> bool:
    """Run the op itself on the labels."""
    numbers = (leaf for leaf in pytree.tree_leaves(event.args) if isinstance(leaf, Const))
    if any(not number.tensor.dtype.is_floating_point for number in numbers):
        return False  # values that cannot be rescaled get in between
    return _run_on_labels(lifter, event)


def _run_on_labels(lifter: Lifter, event: Event) -> bool:
    leaves, spec = pytree.tree_flatten((event.args, event.kwargs))
    values = [position for position, leaf in enumerate(leaves) if isinstance(leaf, Value)]
    if any(not is_floating(leaves[position]) for position in values):
        return False
    constants = [
        position
        for position, leaf in enumerate(leaves)
        if isinstance(leaf, Const) and leaf.tensor.dtype.is_floating_point
    ]
    moved = sorted(values + constants)

    def apply(labels: Sequence[IntArray]) -> list[IntArray]:
        filled = [leaf.tensor.cpu() if isinstance(leaf, Const) else leaf for leaf in leaves]
        for position, array in zip(moved, labels, strict=True):
            filled[position] = to_labels(array)
        args, kwargs = pytree.tree_unflatten(filled, spec)
        kwargs = {key: value for key, value in kwargs.items() if key not in _ABOUT_MEMORY}
        result = event.target(*args, **kwargs)
        return [leaf.numpy() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]

    inputs = [lifter.operand(leaves[position], event.name) for position in moved]
    lifter.emit(event, g.View(apply), inputs)
    return True


def _reshape(lifter: Lifter, event: Event) -> bool:
    """Labels can take the new shape even where their strides would not allow a view."""
    source, made = first_value(event), event.outputs[0]
    if source is None or made is None:
        return False

    def apply(labels: Sequence[IntArray]) -> list[IntArray]:
        return [to_labels(labels[0]).reshape(made.shape).numpy()]

    lifter.emit(event, g.View(apply), [lifter.tensor(source)])
    return True


def _cat(lifter: Lifter, event: Event) -> bool:
    """Concatenation, without spreading labels over axes along which none of them changes."""
    a = Arguments(event)
    parts = a.tensors("tensors")
    if any(not part_dtype(part).is_floating_point for part in parts):
        return False
    made = event.outputs[0]
    assert made is not None
    given = len(parts)
    parts = [part for part in parts if len(part_shape(part)) == len(made.shape)]
    axis = a.whole("dim") % len(made.shape)

    is_plain = len(parts) == given  # operands are told by their positions
    (only, *others), dtype = parts, made.dtype
    is_copy = (
        not others and isinstance(only, Value) and only.dtype == dtype and lie_alike(only, made)
    )
    view = g.View(lambda labels: [lab.concat(labels, axis)], axis if is_plain else None, is_copy)
    lifter.emit(event, view, [lifter.operand(part, event.name) for part in parts])
    return True


def part_dtype(part: Value | Const) -> torch.dtype:
    """The dtype of an operand."""
    return part.dtype if isinstance(part, Value) else part.tensor.dtype


def part_shape(part: Value | Const) -> tuple[int, ...]:
    """The shape of an operand."""
    return part.shape if isinstance(part, Value) else tuple(part.tensor.shape)


_ABOUT_MEMORY = {"memory_format", "dtype", "layout", "device", "pin_memory", "non_blocking"}


def to_labels(array: IntArray) -> Tensor:
    """Labels as a tensor; axes along which they do not change keep stride 0."""
    return torch.from_numpy(np.array(lab.thin(array))).expand(array.shape)


def same(lifter: Lifter, event: Event) -> bool:
    """Values that stay where they are; of several outputs the first."""
    source = first_value(event)
    if source is None:
        return False
    made = event.outputs[0]
    limits = {} if made is None else narrowing(source.dtype, made.dtype)
    is_copy = made is not None and made.dtype == source.dtype and lie_alike(source, made)
    view = g.View(list, None, is_copy, **limits)
    lifter.emit(event, view, [lifter.tensor(source)], outputs=event.outputs[:1])
    return True


def _dropout(lifter: Lifter, event: Event) -> bool:
    """Nothing at inference, random in training."""
    return Arguments(event)["train"] is False and same(lifter, event)


def _copy(lifter: Lifter, event: Event) -> bool:
    """dst.copy_(src): the values of src at the shape of dst."""
    source = Arguments(event)["src"]
    made = event.outputs[0]
    assert made is not None
    if isinstance(source, Value) and not is_floating(source):
        return False
    if not isinstance(source, Value | Const):
        return False

    def apply(labels: Sequence[IntArray]) -> list[IntArray]:
        return [np.broadcast_to(labels[0], made.shape)]

    lifter.emit(event, g.View(apply), [lifter.operand(source, event.name)])
    return True


def _index(lifter: Lifter, event: Event) -> bool:
    """Only constant indices are known to pick the same places in every run."""
    _, *rest = pytree.tree_leaves((event.args, event.kwargs))
    picks = any(isinstance(leaf, Value) for leaf in rest)
    return pick(lifter, event) if picks else _run_on_labels(lifter, event)


def _pad(lifter: Lifter, event: Event) -> bool:
    source = first_value(event)
    if source is None:
        return False
    if event.call.node is None and not any(Arguments(event).wholes("pad")):
        return may_pad(lifter, event, source)  # nobody writes that: it was computed from the size
    lifter.emit(event, _padding(event, source), [lifter.tensor(source)])
    return True


def may_pad(lifter: Lifter, event: Event, source: Value) -> bool:
    """Padding that other inputs may have where this one has none: no shift passes zeros."""
    role = _padding(event, source)
    if role.value != 0.0 and not np.isinf(role.value):
        return False
    unpadded = lifter.graph.add(
        event.name, g.Homogeneous(), [lifter.tensor(source)], [source.shape]
    )
    lifter.emit(event, role, unpadded)
    return True


def _padding(event: Event, source: Value) -> g.Pad:
    a = Arguments(event)
    rank = len(source.shape)
    before, after = [0] * rank, [0] * rank
    for place, amount in enumerate(a.wholes("pad")):
        axis = rank - 1 - place // 2
        (before if place % 2 == 0 else after)[axis] = amount
    return g.Pad(tuple(before), tuple(after), a.number("value"))


def _im2col(lifter: Lifter, event: Event) -> bool:
    if any(Arguments(event).wholes("padding")):
        return False
    source = first_value(event)
    if source is None:
        return False

    def apply(labels: Sequence[IntArray]) -> list[IntArray]:
        full = torch.from_numpy(np.ascontiguousarray(labels[0])).double()
        result = event.target(full, *event.args[1:], **event.kwargs)
        return [result.to(torch.int64).numpy()]

    lifter.emit(event, g.View(apply), [lifter.tensor(source)])
    return True


def overlay(lifter: Lifter, event: Event) -> None:
    """The old content, with the part that was written through another view."""
    old, new, geometry, part = event.args

    def apply(labels: Sequence[IntArray]) -> list[IntArray]:
        places, written = addresses(geometry).reshape(-1), addresses(part).reshape(-1)
        if not len(written):
            return [labels[0]]
        order = np.argsort(written, kind="stable")
        nearest = np.searchsorted(written[order], places)
        nearest = np.minimum(nearest, len(written) - 1)
        hit = written[order][nearest] == places
        mixed = labels[0].reshape(-1).copy()
        mixed[hit] = labels[1].reshape(-1)[order[nearest[hit]]]
        return [mixed.reshape(labels[0].shape)]

    inputs = [lifter.tensor(old), lifter.tensor(new)]
    lifter.emit(event, g.View(apply), inputs)


def addresses(geometry: Geometry) -> IntArray:
    """The storage position of each element."""
    offset, shape, strides = geometry
    total = np.full(shape, offset, dtype=np.int64)
    for axis, (length, stride) in enumerate(zip(shape, strides, strict=True)):
        steps = np.arange(length, dtype=np.int64) * stride
        total += steps.reshape((-1,) + (1,) * (len(shape) - axis - 1))
    return total


_VIEWS = frozenset(
    {
        "permute",
        "transpose",
        "t",
        "mT",
        "numpy_T",
        "adjoint",
        "swapaxes",
        "movedim",
        "squeeze",
        "unsqueeze",
        "expand",
        "expand_as",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "unsafe_split",
        "unsafe_split_with_sizes",
        "unsafe_chunk",
        "tensor_split",
        "hsplit",
        "vsplit",
        "chunk",
        "narrow",
        "unbind",
        "stack",
        "hstack",
        "vstack",
        "flip",
        "roll",
        "rot90",
        "repeat",
        "tile",
        "repeat_interleave",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "native_channel_shuffle",
        "unfold",
        "diagonal",
    }
)
"""Ops that move values and can be run on labels as they are."""

_RESHAPES = frozenset(
    {"view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "view_as"}
)
"""Ops that give the same values, in the same order, another shape."""

OPEN_SIZES = _RESHAPES | {"expand", "expand_as", "repeat"}
"""Ops whose sizes may be other ones in other runs: each size has the same meaning in all."""

MIXING = _RESHAPES | {
    *("cat", "concat", "concatenate", "hstack", "vstack", "im2col", "unfold"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"),
}
"""Ops after which channels may lie along another axis."""

_SAME = frozenset(
    {
        "clone",
        "contiguous",
        "detach",
        "alias",
        "_to_copy",
        "to",
        "lift_fresh",
        "lift_fresh_copy",
        "positive",
    }
)
"""Ops that keep every value in its place."""

VIEWS: dict[str, Callable[[Lifter, Event], bool]] = {
    **dict.fromkeys(_VIEWS, _view),
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(_SAME, same),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), _dropout),
    **dict.fromkeys(("index", "index_select", "gather"), _index),
    **dict.fromkeys(ADD_UP, add_up),
    "copy": _copy,
    "constant_pad_nd": _pad,
    "im2col": _im2col,
}
"""How each op that moves values is lifted, by the name of its functional form."""
