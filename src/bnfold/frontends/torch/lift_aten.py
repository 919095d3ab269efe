"""Single ATen ops: which role each plays. What is not in the table is opaque."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bnfold.core import graph as g
from bnfold.core.forest import IntArray
from bnfold.frontends.torch.lift import ClipSite, Lifter, is_floating
from bnfold.frontends.torch.lift_linear import arguments
from bnfold.frontends.torch.lift_modules import old_name_is_read
from bnfold.frontends.torch.recording import OVERLAY, Const, Event, Geometry, Value


def emit(lifter: Lifter, event: Event) -> None:
    """Add the op of one event."""
    if event.target == OVERLAY:
        _overlay(lifter, event)
        return
    name = str(getattr(event.target, "_opname", ""))
    overload = str(getattr(event.target, "_overloadname", ""))
    if name in _COMPARISONS and _comparison(lifter, event):
        return
    handler = _TABLE.get(name) or _TABLE.get(name.removesuffix("_"))
    if handler is None or overload in _OTHER_FUNCTIONS:
        lifter.opaque(event)
        return
    if not _floats(event) or not handler(lifter, event):
        lifter.opaque(event)


_OTHER_FUNCTIONS = {"dtype", "out"}
"""Overloads that do something else than their op's name says."""


def is_known(name: str) -> bool:
    """Whether the table has an op of this name."""
    return name in _TABLE or name.removesuffix("_") in _TABLE or name in _COMPARISONS


def _floats(event: Event) -> bool:
    """Rescaling makes sense only where floating-point values stay floating-point values."""
    return all(value is None or is_floating(value) for value in event.outputs[:1]) and bool(
        event.outputs
    )


def _first(event: Event) -> Value | None:
    value = event.args[0] if event.args else None
    return value if isinstance(value, Value) and is_floating(value) else None


# -------------------------------------------------------------------- activations


def _clip(lower: float, upper: float) -> Callable[[Lifter, Event], bool]:
    def handler(lifter: Lifter, event: Event) -> bool:
        return _emit_clip(lifter, event, lower, upper)

    return handler


def _emit_clip(lifter: Lifter, event: Event, lower: float, upper: float) -> bool:
    source = _first(event)
    if source is None:
        return False
    node = event.call.node
    room = node is not None and not old_name_is_read(lifter.recording, event)
    number = lifter.emit(event, g.Clip(lower, upper, room=room), [lifter.tensor(source)])
    if room:
        lifter.sites[number] = ClipSite(None, source, event.number, source.device, node)
    return True


def _hardtanh(lifter: Lifter, event: Event) -> bool:
    a = arguments(event)
    return _emit_clip(lifter, event, float(a["min_val"]), float(a["max_val"]))


def _clamp(lifter: Lifter, event: Event) -> bool:
    a = arguments(event)
    low, high = a.get("min"), a.get("max")
    if isinstance(low, Value | Const) or isinstance(high, Value | Const):
        return False
    return _emit_clip(
        lifter,
        event,
        -np.inf if low is None else float(low),
        np.inf if high is None else float(high),
    )


def _threshold(lifter: Lifter, event: Event) -> bool:
    a = arguments(event)
    if float(a["threshold"]) != 0.0 or float(a["value"]) != 0.0:
        return False
    return _emit_clip(lifter, event, 0.0, np.inf)


def _homogeneous(lifter: Lifter, event: Event) -> bool:
    source = _first(event)
    if source is None or any(isinstance(argument, Value) for argument in event.args[1:]):
        return False
    lifter.emit(event, g.Homogeneous(), [lifter.tensor(source)])
    return True


def _sign(lifter: Lifter, event: Event) -> bool:
    source = _first(event)
    if source is None:
        return False
    lifter.emit(event, g.Sign(odd=True), [lifter.tensor(source)])
    return True


# -------------------------------------------------------------------- pooling


def _last_axes(value: Value, count: int) -> tuple[int, ...]:
    rank = len(value.shape)
    return tuple(range(rank - count, rank))


def _max_pool(rank: int) -> Callable[[Lifter, Event], bool]:
    def handler(lifter: Lifter, event: Event) -> bool:
        source = _first(event)
        if source is None:
            return False
        role = g.Max(_last_axes(source, rank))
        lifter.emit(event, role, [lifter.tensor(source)], outputs=event.outputs[:1])
        return True

    return handler


def _mean_pool(rank: int) -> Callable[[Lifter, Event], bool]:
    """Adaptive pooling, resizing, reflecting: weights that sum to 1, borders left alone."""

    def handler(lifter: Lifter, event: Event) -> bool:
        source = _first(event)
        if source is None:
            return False
        lifter.emit(event, g.Mean(_last_axes(source, rank)), [lifter.tensor(source)])
        return True

    return handler


def _avg_pool(rank: int) -> Callable[[Lifter, Event], bool]:
    def handler(lifter: Lifter, event: Event) -> bool:
        source = _first(event)
        if source is None:
            return False
        a = arguments(event)
        padded = bool(np.any(np.asarray(a["padding"]) != 0)) and a["count_include_pad"]
        zeros = bool(padded) or a.get("divisor_override") is not None
        role = g.Mean(_last_axes(source, rank), counts_zeros=zeros)
        lifter.emit(event, role, [lifter.tensor(source)])
        return True

    return handler


def _reduced(event: Event, rank: int) -> tuple[tuple[int, ...], bool]:
    a = arguments(event)
    axes = a.get("dim")
    if axes is None or axes == []:
        listed = list(range(rank))
    else:
        listed = list(axes) if isinstance(axes, list | tuple) else [axes]
    return tuple(sorted(axis % rank for axis in listed)), bool(a.get("keepdim", False))


def _reduce_mean(lifter: Lifter, event: Event) -> bool:
    return _reduce(lifter, event, lambda axes, keep: g.Mean(axes, keep))


def _reduce_sum(lifter: Lifter, event: Event) -> bool:
    return _reduce(lifter, event, lambda axes, keep: g.Mean(axes, keep, counts_zeros=True))


def _reduce_max(lifter: Lifter, event: Event) -> bool:
    return _reduce(lifter, event, g.Max)


def _reduce(lifter: Lifter, event: Event, role: Callable[[tuple[int, ...], bool], g.Role]) -> bool:
    source = _first(event)
    if source is None or not source.shape or event.target._overloadname in ("other", "names_dim"):
        return False
    axes, keep = _reduced(event, len(source.shape))
    lifter.emit(event, role(axes, keep), [lifter.tensor(source)], outputs=event.outputs[:1])
    return True


# -------------------------------------------------------------------- arithmetic of activations


def _add(sign: float) -> Callable[[Lifter, Event], bool]:
    def handler(lifter: Lifter, event: Event) -> bool:
        x, y = event.args[:2]
        alpha = event.kwargs.get("alpha", event.args[2] if len(event.args) > 2 else 1)
        if not isinstance(x, Value | Const) or not isinstance(y, Value | Const):
            return False
        if any(isinstance(part, Value) and not is_floating(part) for part in (x, y)):
            return False
        inputs = [lifter.operand(x, event.name), lifter.operand(y, event.name)]
        lifter.emit(event, g.Sum((1.0, sign * float(alpha))), inputs)
        return True

    return handler


def _mul(lifter: Lifter, event: Event) -> bool:
    x, y = event.args[:2]
    if not (isinstance(x, Value) and isinstance(y, Value)):
        return False
    if not (is_floating(x) and is_floating(y)):
        return _masked(lifter, event, x, y)
    lifter.emit(event, g.Gate(), [lifter.tensor(x), lifter.tensor(y)])
    return True


def _masked(lifter: Lifter, event: Event, x: Value, y: Value) -> bool:
    """A float times an integer or mask: only the float can be rescaled, and the mask gates it."""
    if not (is_floating(x) or is_floating(y)):
        return False
    lifter.emit(event, g.Gate(), [lifter.tensor(x), lifter.tensor(y)])
    return True


def _div(lifter: Lifter, event: Event) -> bool:
    x, y = event.args[:2]
    if not (isinstance(x, Value) and isinstance(y, Value)) or event.kwargs.get("rounding_mode"):
        return False
    if not is_floating(x):
        return False
    lifter.graph.add(event.name, g.Opaque(), [lifter.tensor(y)], [])
    lifter.emit(event, g.Gate(), [lifter.tensor(x), lifter.tensor(y)])
    return True


# -------------------------------------------------------------------- views


def _view(lifter: Lifter, event: Event) -> bool:
    """Run the op itself on the labels."""
    leaves, spec = pytree.tree_flatten((event.args, event.kwargs))
    places = [at for at, leaf in enumerate(leaves) if isinstance(leaf, Value)]
    if any(not is_floating(leaves[at]) for at in places):
        return False
    constants = [
        at
        for at, leaf in enumerate(leaves)
        if isinstance(leaf, Const) and leaf.tensor.dtype.is_floating_point
    ]
    moved = sorted(places + constants)

    def apply(labels: Sequence[IntArray]) -> list[IntArray]:
        filled = [leaf.tensor.cpu() if isinstance(leaf, Const) else leaf for leaf in leaves]
        for at, array in zip(moved, labels, strict=True):
            filled[at] = to_labels(array)
        args, kwargs = pytree.tree_unflatten(filled, spec)
        kwargs = {key: value for key, value in kwargs.items() if key not in _ABOUT_MEMORY}
        result = event.target(*args, **kwargs)
        return [leaf.numpy() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]

    inputs = [lifter.operand(leaves[at], event.name) for at in moved]
    lifter.emit(event, g.View(apply), inputs)
    return True


def _reshape(lifter: Lifter, event: Event) -> bool:
    """Labels can take the new shape even where their strides would not allow a view."""
    source, made = _first(event), event.outputs[0]
    if source is None or made is None:
        return False

    def apply(labels: Sequence[IntArray]) -> list[IntArray]:
        return [to_labels(labels[0]).reshape(made.shape).numpy()]

    lifter.emit(event, g.View(apply), [lifter.tensor(source)])
    return True


def _cat(lifter: Lifter, event: Event) -> bool:
    """Concatenation, without spreading labels over axes along which none of them changes."""
    a = arguments(event)
    parts = a["tensors"]
    if not all(isinstance(part, Value | Const) for part in parts):
        return False
    if any(not part_dtype(part).is_floating_point for part in parts):
        return False
    made = event.outputs[0]
    assert made is not None
    parts = [part for part in parts if len(part_shape(part)) == len(made.shape)]
    axis = int(a["dim"]) % len(made.shape)

    def apply(labels: Sequence[IntArray]) -> list[IntArray]:
        flat = [
            other
            for other in range(len(made.shape))
            if other != axis and all(array.strides[other] == 0 for array in labels)
        ]
        index = tuple(
            slice(0, 1) if other in flat else slice(None) for other in range(len(made.shape))
        )
        return [np.concatenate([array[index] for array in labels], axis=axis)]

    lifter.emit(event, g.View(apply), [lifter.operand(part, event.name) for part in parts])
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
    small = array[tuple(slice(0, 1) if s == 0 else slice(None) for s in array.strides)]
    return torch.from_numpy(np.array(small)).expand(array.shape)


def _same(lifter: Lifter, event: Event) -> bool:
    source = _first(event)
    if source is None:
        return False
    lifter.emit(event, g.View(list), [lifter.tensor(source)])
    return True


def _dropout(lifter: Lifter, event: Event) -> bool:
    """Nothing at inference, random in training."""
    return not arguments(event).get("train", True) and _same(lifter, event)


def _copy(lifter: Lifter, event: Event) -> bool:
    """dst.copy_(src): the values of src at the shape of dst."""
    source = event.args[1]
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
    """Only constant indices are known to pick the same channels in every run."""
    _, *rest = pytree.tree_leaves((event.args, event.kwargs))
    if any(isinstance(leaf, Value) for leaf in rest):
        return False
    return _view(lifter, event)


def _pad(lifter: Lifter, event: Event) -> bool:
    source = _first(event)
    if source is None:
        return False
    a = arguments(event)
    rank = len(source.shape)
    before, after = [0] * rank, [0] * rank
    for place, amount in enumerate(a["pad"]):
        axis = rank - 1 - place // 2
        (before if place % 2 == 0 else after)[axis] = int(amount)
    role = g.Pad(tuple(before), tuple(after), float(a["value"]))
    lifter.emit(event, role, [lifter.tensor(source)])
    return True


def _im2col(lifter: Lifter, event: Event) -> bool:
    a = arguments(event)
    if np.any(np.asarray(a["padding"]) != 0):
        return False
    source = _first(event)
    if source is None:
        return False

    def apply(labels: Sequence[IntArray]) -> list[IntArray]:
        full = torch.from_numpy(np.ascontiguousarray(labels[0])).double()
        result = event.target(full, *event.args[1:], **event.kwargs)
        return [result.to(torch.int64).numpy()]

    lifter.emit(event, g.View(apply), [lifter.tensor(source)])
    return True


def _overlay(lifter: Lifter, event: Event) -> None:
    """The old content, with the part that was written through another view."""
    old, new, here, there = event.args

    def apply(labels: Sequence[IntArray]) -> list[IntArray]:
        places, written = addresses(here).reshape(-1), addresses(there).reshape(-1)
        order = np.argsort(written, kind="stable")
        at = np.searchsorted(written[order], places)
        at = np.minimum(at, len(written) - 1)
        hit = written[order][at] == places
        mixed = labels[0].reshape(-1).copy()
        mixed[hit] = labels[1].reshape(-1)[order[at[hit]]]
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


def _comparison(lifter: Lifter, event: Event) -> bool:
    source = _first(event)
    if source is None or event.args[1] != 0:
        return False
    lifter.emit(event, g.Sign(odd=False), [lifter.tensor(source)])
    return True


_VIEWS = frozenset(
    {
        "permute",
        "transpose",
        "t",
        "T",
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

_TABLE: dict[str, Callable[[Lifter, Event], bool]] = {
    "relu": _clip(0.0, np.inf),
    "relu6": _clip(0.0, 6.0),
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "threshold": _threshold,
    "leaky_relu": _homogeneous,
    "prelu": _homogeneous,
    "_prelu_kernel": _homogeneous,
    "abs": _homogeneous,
    "sign": _sign,
    "max_pool1d": _max_pool(1),
    "max_pool2d": _max_pool(2),
    "max_pool3d": _max_pool(3),
    "max_pool2d_with_indices": _max_pool(2),
    "max_pool3d_with_indices": _max_pool(3),
    "adaptive_max_pool1d": _max_pool(1),
    "adaptive_max_pool2d": _max_pool(2),
    "adaptive_max_pool3d": _max_pool(3),
    "amax": _reduce_max,
    "max": _reduce_max,
    "adaptive_avg_pool1d": _mean_pool(1),
    "adaptive_avg_pool2d": _mean_pool(2),
    "_adaptive_avg_pool2d": _mean_pool(2),
    "adaptive_avg_pool3d": _mean_pool(3),
    "_adaptive_avg_pool3d": _mean_pool(3),
    "avg_pool1d": _avg_pool(1),
    "avg_pool2d": _avg_pool(2),
    "avg_pool3d": _avg_pool(3),
    "mean": _reduce_mean,
    "sum": _reduce_sum,
    "upsample_nearest1d": _mean_pool(1),
    "upsample_nearest2d": _mean_pool(2),
    "upsample_nearest3d": _mean_pool(3),
    "_upsample_nearest_exact1d": _mean_pool(1),
    "_upsample_nearest_exact2d": _mean_pool(2),
    "_upsample_nearest_exact3d": _mean_pool(3),
    "upsample_linear1d": _mean_pool(1),
    "upsample_bilinear2d": _mean_pool(2),
    "_upsample_bilinear2d_aa": _mean_pool(2),
    "upsample_trilinear3d": _mean_pool(3),
    "upsample_bicubic2d": _mean_pool(2),
    "_upsample_bicubic2d_aa": _mean_pool(2),
    "reflection_pad1d": _mean_pool(1),
    "reflection_pad2d": _mean_pool(2),
    "reflection_pad3d": _mean_pool(3),
    "replication_pad1d": _mean_pool(1),
    "replication_pad2d": _mean_pool(2),
    "replication_pad3d": _mean_pool(3),
    "add": _add(1.0),
    "sub": _add(-1.0),
    "subtract": _add(-1.0),
    "mul": _mul,
    "multiply": _mul,
    "div": _div,
    "divide": _div,
    "true_divide": _div,
    **dict.fromkeys(_RESHAPES, _reshape),
    "cat": _cat,
    "concat": _cat,
    "concatenate": _cat,
    "copy": _copy,
    "dropout": _dropout,
    "feature_dropout": _dropout,
    "alpha_dropout": _dropout,
    "index": _index,
    "index_select": _index,
    "gather": _index,
    "constant_pad_nd": _pad,
    "im2col": _im2col,
    **dict.fromkeys(_VIEWS, _view),
    **dict.fromkeys(_SAME, _same),
}
_COMPARISONS = {"ge", "gt", "le", "lt"}
