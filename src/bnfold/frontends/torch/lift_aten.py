"""Single ATen ops: which role each plays. What is not in the table is opaque."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, fx

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.frontends.torch.affine_arithmetic import has_plain_numbers
from bnfold.frontends.torch.attention import emit_attention, emit_product
from bnfold.frontends.torch.lift_modules import old_name_is_read
from bnfold.frontends.torch.lift_picks import ADD_UP, add_up
from bnfold.frontends.torch.lift_views import MIXING, OPEN_SIZES, VIEWS, may_pad, overlay, same
from bnfold.frontends.torch.lifter import (
    ClipSite,
    Lifter,
    first_value,
    is_floating,
    is_readable,
    to_numpy,
)
from bnfold.frontends.torch.limits import read_bounds
from bnfold.frontends.torch.ops import (
    Arguments,
    UnfitError,
    aten_name,
    functional,
    node_of,
    op_name,
)
from bnfold.frontends.torch.recording import OVERLAY, Const, Event, Value
from bnfold.frontends.torch.stacks import emit_sum, stack_of
from bnfold.frontends.torch.symbolic import is_part_of_open_size

Handler = Callable[[Lifter, Event], bool]
"""Adds an event's op, or answers False where it does not know the form."""


def emit(lifter: Lifter, event: Event) -> None:
    """Add the op of one event."""
    if event.target == OVERLAY:
        overlay(lifter, event)
        return
    if not _is_lifted(lifter, event):
        lifter.opaque(event)


def _is_lifted(lifter: Lifter, event: Event) -> bool:
    """Whether a handler was found for the op, and added it."""
    name = op_name(event.target)
    is_open = event.number in lifter.open
    handler: Handler | None = None if is_open else _COMPARISONS.get(name)
    if handler is None and _floats(event):
        known = not is_open or name in OPEN_SIZES | _OPEN_SIZES
        handler = _TABLE.get(functional(name)) if known else _OPEN.get(name)
    if functional(name) in MIXING and is_part_of_open_size(event):
        return False
    try:
        return handler is not None and handler(lifter, event)
    except UnfitError:
        return False


def is_known(name: str) -> bool:
    """Whether the table has an op of this name."""
    return functional(name) in _TABLE or name in _COMPARISONS


def _floats(event: Event) -> bool:
    """Rescaling makes sense only where floating-point values stay floating-point values."""
    return all(value is None or is_floating(value) for value in event.outputs[:1]) and bool(
        event.outputs
    )


# -------------------------------------------------------------------- activations


def _clip(lower: float, upper: float) -> Handler:
    def handler(lifter: Lifter, event: Event) -> bool:
        return _emit_clip(lifter, event, lower, upper)

    return handler


def _emit_clip(lifter: Lifter, event: Event, lower: float, upper: float) -> bool:
    source = first_value(event)
    if source is None or not lower <= upper:  # NaN, or bounds of which the upper one wins
        return False
    node = node_of(event)
    room = node is not None and not old_name_is_read(lifter.recording, event)
    role = g.Clip(*read_bounds(lower, upper, source.dtype), room=room)
    number = lifter.emit(event, role, [lifter.tensor(source)])
    if room:
        lifter.sites[number] = ClipSite(None, source, event.number, source.device, node)
    return True


def _hardtanh(lifter: Lifter, event: Event) -> bool:
    a = Arguments(event)
    return _emit_clip(lifter, event, a.number("min_val"), a.number("max_val"))


def _clamp(lifter: Lifter, event: Event) -> bool:
    a = Arguments(event)
    low, high = a.optional_number("min", -np.inf), a.optional_number("max", np.inf)
    return _emit_clip(lifter, event, low, high)


def _threshold(lifter: Lifter, event: Event) -> bool:
    a = Arguments(event)
    if a.number("threshold") != 0.0 or a.number("value") != 0.0:
        return False
    return _emit_clip(lifter, event, 0.0, np.inf)


def _abs(lifter: Lifter, event: Event) -> bool:
    return _emit_homogeneous(lifter, event, np.array(-1.0))


def _leaky_relu(lifter: Lifter, event: Event) -> bool:
    slope = Arguments(event).number("negative_slope")
    return _emit_homogeneous(lifter, event, np.array(slope))


def _prelu(lifter: Lifter, event: Event) -> bool:
    source, weight = first_value(event), Arguments(event)["weight"]
    if source is None or not isinstance(weight, Const):
        return False
    slopes = None
    if lifter.is_known(weight) and is_readable(weight.tensor):
        slopes = to_numpy(weight.tensor)
        if slopes.ndim == 1:  # one per channel, or one for all
            slopes = slopes.reshape(-1, *(1,) * (len(source.shape) - 2))
    return _emit_homogeneous(lifter, event, slopes)


def _emit_homogeneous(lifter: Lifter, event: Event, slopes: FloatArray | None) -> bool:
    source = first_value(event)
    if source is None:
        return False
    lifter.emit(event, g.Homogeneous(slopes), [lifter.tensor(source)])
    return True


def _sign(lifter: Lifter, event: Event) -> bool:
    source = first_value(event)
    if source is None:
        return False
    lifter.emit(event, g.Sign(odd=True), [lifter.tensor(source)])
    return True


# -------------------------------------------------------------------- pooling


def _last_axes(value: Value, count: int) -> tuple[int, ...]:
    rank = len(value.shape)
    return tuple(range(rank - count, rank))


def _pool(rank: int, role: Callable[[Event, tuple[int, ...]], g.Role]) -> Handler:
    """Over the last axes; a further output, where the maxima were, is not followed."""

    def handler(lifter: Lifter, event: Event) -> bool:
        source = first_value(event)
        if source is None:
            return False
        axes = _last_axes(source, rank)
        lifter.emit(event, role(event, axes), [lifter.tensor(source)], outputs=event.outputs[:1])
        return True

    return handler


def _max_pool(rank: int) -> Handler:
    def handler(lifter: Lifter, event: Event) -> bool:
        a, tells = Arguments(event), _tells_places(lifter, event)
        steps: set[int] = set()
        if a.get("kernel_size") is not None:  # an adaptive one has none
            steps = {*a.wholes("kernel_size"), *a.wholes("stride")}
            steps |= {1 + n for n in a.wholes("padding")}
        if steps == {1} and not tells and event.number not in lifter.open:
            return same(lifter, event)
        return _pool(rank, lambda _, axes: g.Max(axes, tells_places=tells))(lifter, event)

    return handler


def _tells_places(lifter: Lifter, event: Event) -> bool:
    """Whether somebody reads where the maxima were."""
    return any(made is not None and lifter.is_read(made) for made in event.outputs[1:])


def _mean_pool(rank: int) -> Handler:
    """Adaptive pooling, resizing, reflecting: weights that sum to 1, borders left alone."""
    return _pool(rank, lambda event, axes: g.Mean(axes))


def _resize(rank: int) -> Handler:
    """The same, where a program says that no size changes, and no scale does."""

    def handler(lifter: Lifter, event: Event) -> bool:
        a, node = Arguments(event), node_of(event)
        scales = a.get("scale_factors") or [
            a.get(f"scales{axis}") for axis in ("", "_d", "_h", "_w")
        ]
        told = [part.meta.get("val") for part in (node, *node.all_input_nodes[:1])] if node else []
        sizes = [[*map(str, val.shape)] for val in told if isinstance(val, Tensor)]
        if {*scales} <= {None, 1.0} and len(sizes) == 2 and sizes[0] == sizes[1]:
            return same(lifter, event)
        return _mean_pool(rank)(lifter, event)

    return handler


def _avg_pool(rank: int) -> Handler:
    def role(event: Event, axes: tuple[int, ...]) -> g.Role:
        a = Arguments(event)
        padded = any(a.wholes("padding")) and bool(a["count_include_pad"])
        return g.Mean(axes, counts_zeros=padded or not _divides_by_its_window(a, rank))

    return _pool(rank, role)


def _divides_by_its_window(a: Arguments, rank: int) -> bool:
    """Whether an average pooling takes means, where it is told what to divide by."""
    divisor = a.get("divisor_override")
    if divisor is None:
        return True
    kernel = a.wholes("kernel_size")
    is_whole = not (any(a.wholes("padding")) or a["ceil_mode"])  # no window is cut
    return is_whole and divisor == math.prod(kernel * rank if len(kernel) == 1 else kernel)


def _reduced(event: Event, rank: int) -> tuple[tuple[int, ...], bool]:
    a = Arguments(event)
    listed = [] if a.get("dim") is None else a.wholes("dim")
    axes = {axis % rank for axis in listed} if listed else range(rank)
    return tuple(sorted(axes)), bool(a.get("keepdim"))


def _reduce_mean(lifter: Lifter, event: Event) -> bool:
    if (stack := stack_of(lifter, event)) is not None:
        emit_sum(lifter, event, stack, 1.0 / len(stack.operands))
        return True
    return _reduce(lifter, event, lambda axes, keep: g.Mean(axes, keep))


def _reduce_sum(lifter: Lifter, event: Event) -> bool:
    """So many times the mean: a shift grows with the number of elements, if that is known."""
    source, made = first_value(event), event.outputs[0]
    if source is None or made is None or not source.shape:
        return False
    if (stack := stack_of(lifter, event)) is not None:
        emit_sum(lifter, event, stack, 1.0)
        return True
    axes, keep = _reduced(event, len(source.shape))
    count = _elements(event, axes)
    if count is None:
        return _reduce(lifter, event, lambda axes, keep: g.Mean(axes, keep, counts_zeros=True))
    inputs = [lifter.tensor(source)]
    means = lifter.graph.add(event.name, g.Mean(axes, keep), inputs, [made.shape])
    lifter.emit(event, g.Sum((float(count),)), means, outputs=event.outputs[:1])
    return True


def _elements(event: Event, axes: Sequence[int]) -> int | None:
    """How many elements a program adds up; None where that depends on the size of its inputs."""
    node = node_of(event)
    told = node.all_input_nodes[0].meta.get("val") if node is not None else None
    if not isinstance(told, Tensor):
        return None
    lengths = [told.shape[axis] for axis in axes]
    return math.prod(lengths) if all(type(length) is int for length in lengths) else None


def _reduce_max(lifter: Lifter, event: Event) -> bool:
    tells = _tells_places(lifter, event)
    return _reduce(lifter, event, lambda axes, keep: g.Max(axes, keep, tells))


def _reduce(lifter: Lifter, event: Event, role: Callable[[tuple[int, ...], bool], g.Role]) -> bool:
    source = first_value(event)
    if source is None or not source.shape:
        return False
    axes, keep = _reduced(event, len(source.shape))
    lifter.emit(event, role(axes, keep), [lifter.tensor(source)], outputs=event.outputs[:1])
    return True


# -------------------------------------------------------------------- open arguments


def _pad_of_open_size(lifter: Lifter, event: Event) -> bool:
    source, node = first_value(event), event.call.node
    fixed = () if node is None else (*node.args[2:], *node.kwargs.values())
    if source is None or any(isinstance(argument, fx.Node) for argument in fixed):
        return False
    if node is None and not lifter.open[event.number] <= {"pad"}:
        return False
    return may_pad(lifter, event, source)


def _cut_of_open_size(lifter: Lifter, event: Event) -> bool:
    """What is stored alike along the axis may be cut anywhere."""
    source = first_value(event)
    if source is None or not lifter.open[event.number] <= {"start", "end", "length"}:
        return False
    axis = Arguments(event).whole("dim") % len(source.shape)
    lifter.emit(event, g.Mean((axis,)), [lifter.tensor(source)])
    return True


def _add_up_of_open_size(lifter: Lifter, event: Event) -> bool:
    """Zeros for as many places as there are."""
    node = node_of(event)
    base = node.args[0] if node is not None else None
    if not isinstance(base, fx.Node) or not lifter.open[event.number] <= {"self"}:
        return False
    name = aten_name(base.target)
    is_zeros = name in _ZEROS or (name in ("full", "full_like") and base.args[1] == 0)
    return bool(is_zeros) and add_up(lifter, event)


_ZEROS = ("zeros", "zeros_like", "new_zeros")


def _select_of_open_size(lifter: Lifter, event: Event) -> bool:
    source = first_value(event)
    if source is None or not lifter.open[event.number] <= {"index"}:
        return False
    axis = Arguments(event).whole("dim") % len(source.shape)
    lifter.emit(event, g.Mean((axis,), False), [lifter.tensor(source)])
    return True


def _roll_of_open_size(lifter: Lifter, event: Event) -> bool:
    source = first_value(event)
    if source is None or not lifter.open[event.number] <= {"shifts"}:
        return False
    axes = {axis % len(source.shape) for axis in Arguments(event).wholes("dims")}
    if not axes:  # all elements in one row
        return False
    lifter.emit(event, g.Mean(tuple(sorted(axes))), [lifter.tensor(source)])
    return True


def _avg_pool_of_open_size(rank: int) -> Handler:
    """As a window slides over what is stored alike, its size does not matter."""

    def handler(lifter: Lifter, event: Event) -> bool:
        is_told = Arguments(event).get("divisor_override") is not None
        known = set() if is_told else {"kernel_size", "stride"}
        return lifter.open[event.number] <= known and _avg_pool(rank)(lifter, event)

    return handler


_OPEN_SIZES = frozenset(
    f"{name}{rank}d"
    for name in (
        *("max_pool", "adaptive_max_pool", "adaptive_avg_pool", "_adaptive_avg_pool"),
        *("upsample_nearest", "_upsample_nearest_exact", "upsample_linear", "upsample_bilinear"),
        *("upsample_trilinear", "upsample_bicubic", "reflection_pad", "replication_pad"),
    )
    for rank in (1, 2, 3)
) | {"max_pool2d_with_indices", "max_pool3d_with_indices"}
"""Ops whose numbers say how an image is resized; which law holds does not depend on them."""

_OPEN: dict[str, Handler] = {
    "constant_pad_nd": _pad_of_open_size,
    "slice": _cut_of_open_size,
    "narrow": _cut_of_open_size,
    "select": _select_of_open_size,
    "roll": _roll_of_open_size,
    **dict.fromkeys(ADD_UP, _add_up_of_open_size),
    **{f"avg_pool{rank}d": _avg_pool_of_open_size(rank) for rank in (1, 2, 3)},
}
"""How ops with open arguments are lifted, see `symbolic`; all others are opaque."""


# -------------------------------------------------------------------- arithmetic of activations


def _add(sign: float) -> Handler:
    def handler(lifter: Lifter, event: Event) -> bool:
        a = Arguments(event)
        x, y, alpha = a["self"], a["other"], a.number("alpha")
        if not isinstance(x, Value | Const) or not isinstance(y, Value | Const):
            return False
        if any(isinstance(part, Value) and not is_floating(part) for part in (x, y)):
            return False
        inputs = [lifter.operand(x, event.name), lifter.operand(y, event.name)]
        lifter.emit(event, g.Sum((1.0, sign * alpha)), inputs)
        return True

    return handler


def _lerp(lifter: Lifter, event: Event) -> bool:
    """x + w * (y - x)"""
    a = Arguments(event)
    weight = _one_number(lifter, event, a["weight"])
    if weight is None:
        return False
    return _emit_sum(lifter, event, [a["self"], a["end"]], (1.0 - weight, weight))


def _where(lifter: Lifter, event: Event) -> bool:
    """One of two, the same one everywhere, as in what a lerp is decomposed to."""
    a = Arguments(event)
    taken = _one_number(lifter, event, a["condition"])
    if taken is None:
        return False
    return _emit_sum(lifter, event, [a["self"], a["other"]], (taken, 1.0 - taken))


def _one_number(lifter: Lifter, event: Event, argument: Any) -> float | None:
    """A number, or what a constant is everywhere, if that is the same in every run."""
    if not (lifter.is_program or (lifter.knows_numbers and has_plain_numbers(lifter, event))):
        return None
    if isinstance(argument, int | float):
        return float(argument)
    if not isinstance(argument, Const) or not is_readable(argument.tensor):
        return None
    numbers = {*to_numpy(argument.tensor).flat}
    return float(*numbers) if len(numbers) == 1 else None


def _emit_sum(
    lifter: Lifter, event: Event, operands: list[Any], coefficients: tuple[float, ...]
) -> bool:
    """Of activations of one dtype."""
    made = event.outputs[0]
    dtypes = {part.dtype if isinstance(part, Value) else None for part in (made, *operands)}
    if None in dtypes or len(dtypes) > 1:
        return False
    lifter.emit(event, g.Sum(coefficients), [lifter.tensor(part) for part in operands])
    return True


def _mul(lifter: Lifter, event: Event) -> bool:
    a = Arguments(event)
    x, y = a["self"], a["other"]
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
    a = Arguments(event)
    x, y = a["self"], a["other"]
    if not (isinstance(x, Value) and isinstance(y, Value)) or a.get("rounding_mode"):
        return False
    if not is_floating(x):
        return False
    lifter.graph.pin(event.name, [lifter.tensor(y)])
    lifter.emit(event, g.Gate(), [lifter.tensor(x), lifter.tensor(y)])
    return True


def _comparison(lifter: Lifter, event: Event) -> bool:
    source, limit = first_value(event), Arguments(event)["other"]
    if source is None or not isinstance(limit, int | float) or limit != 0:
        return False
    lifter.emit(event, g.Sign(odd=False), [lifter.tensor(source)])
    return True


_TABLE: dict[str, Handler] = {
    **VIEWS,
    "relu": _clip(0.0, np.inf),
    "relu6": _clip(0.0, 6.0),
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "threshold": _threshold,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "_prelu_kernel": _prelu,
    "abs": _abs,
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
    "upsample_nearest1d": _resize(1),
    "upsample_nearest2d": _resize(2),
    "upsample_nearest3d": _resize(3),
    "_upsample_nearest_exact1d": _resize(1),
    "_upsample_nearest_exact2d": _resize(2),
    "_upsample_nearest_exact3d": _resize(3),
    "upsample_linear1d": _resize(1),
    "upsample_bilinear2d": _resize(2),
    "_upsample_bilinear2d_aa": _resize(2),
    "upsample_trilinear3d": _resize(3),
    "upsample_bicubic2d": _resize(2),
    "_upsample_bicubic2d_aa": _resize(2),
    "reflection_pad1d": _mean_pool(1),
    "reflection_pad2d": _mean_pool(2),
    "reflection_pad3d": _mean_pool(3),
    "replication_pad1d": _mean_pool(1),
    "replication_pad2d": _mean_pool(2),
    "replication_pad3d": _mean_pool(3),
    "add": _add(1.0),
    "sub": _add(-1.0),
    "subtract": _add(-1.0),
    "lerp": _lerp,
    "where": _where,
    "mul": _mul,
    "multiply": _mul,
    "div": _div,
    "divide": _div,
    "true_divide": _div,
    "mm": emit_product,
    "bmm": emit_product,
    "matmul": emit_product,
    "scaled_dot_product_attention": emit_attention,
    "_scaled_dot_product_flash_attention_for_cpu": emit_attention,
}
_COMPARISONS: dict[str, Handler] = dict.fromkeys(("ge", "gt", "le", "lt"), _comparison)
