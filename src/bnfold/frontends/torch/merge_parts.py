"""The linear ops of a recording as parts that may be merged; see `bnfold.core.merge`.

A part is an op whose weight and bias are the model's own and nobody else's, in the dtype that it
also computes in. Mean pooling that divides by the same number everywhere is one, too, and so is
padding with zeros: a convolution whose weight is a constant, and which cannot be given another.

A slice that cuts a border off is one, too, if it says how much, and not what is left.

In an exported program the weight may also be computed of such, and the bias may be read elsewhere:
what is merged does not need them. Such an op carries nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.expression import END, Part
from bnfold.core.weights import Layout, exchanged
from bnfold.core.window import Axes, Window, same_padding
from bnfold.frontends.torch.leaf_modules import TRANSPOSED
from bnfold.frontends.torch.lifter import Lifted, LinearSite, is_readable, to_numpy
from bnfold.frontends.torch.linear_ops import linear_spec
from bnfold.frontends.torch.ops import Arguments, UnfitError, node_of, op_name
from bnfold.frontends.torch.recording import Derivation, Event, Value, values

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What merged weights are rounded to."""


def parts_of(lifted: Lifted, *, lasting: bool = False) -> dict[int, Part]:
    """The parts, by the numbers of their ops; none that differs from run to run is among them.

    `lasting` says that what is computed of a program's weights is the same in every run.
    """
    parts = {}
    for number, event in lifted.events.items():
        try:
            part = _part(lifted, number, event)
            if part is None and lasting and event.call.node is not None:
                part = _computed(lifted, number, event)
        except UnfitError:
            continue
        if part is not None:
            parts[number] = part
    return parts


def keeps_dtype(event: Event) -> bool:
    """Whether it makes one tensor, of the dtype of all that it reads, constants aside."""
    made = [value for value in event.outputs if value is not None]
    read = {value.dtype for value in values(event.args, event.kwargs)}
    return bool(made) and read == {made[0].dtype} and made[0].dtype in DTYPES


def _part(lifted: Lifted, number: int, event: Event) -> Part | None:
    role, site = lifted.graph.ops[number].role, lifted.sites.get(number)
    read = list(values(event.args, event.kwargs))
    if len(read) != 1 or not keeps_dtype(event):
        return None
    if isinstance(role, g.Linear) and isinstance(site, LinearSite):
        return _linear(event, role, site, read[0])
    if isinstance(role, g.Pad):
        return Part.padding(role, read[0].shape, str(read[0].dtype))
    if isinstance(role, g.View):
        return _cut(event, read[0]) if op_name(event.target) == "slice" else None
    return _mean(event, read[0]) if isinstance(role, g.Mean) else None


def _cut(event: Event, source: Value) -> Part | None:
    a = Arguments(event)
    if a["step"] != 1:
        return None
    start, end = (a.get(name) for name in ("start", "end"))
    cut = a.whole("dim") % len(source.shape), start or 0, END if end is None else end
    return Part.cut([cut], source.shape, str(source.dtype))


# -------------------------------------------------------------------- weights and biases


def _linear(event: Event, role: g.Linear, site: LinearSite, source: Value) -> Part | None:
    # Where a bias cannot be edited, and none is told, the op has no place for one.
    has_own_bias = role.bias_editable or role.bias is None
    is_ours = role.weight is g.Weight.FREE and has_own_bias and role.tie is None
    is_ours &= op_name(event.target) != "bmm"  # the node's weight is repeated behind its parameter
    tensors = [site.weight, *([] if site.bias is None else [site.bias])]
    if not is_ours or role.in_axis != role.out_axis or site.layout is Layout.ROWS_OUT:
        return None
    if any(not _is_plain(tensor, source.dtype) for tensor in tensors):
        return None
    window = None
    if site.weight.ndim > 2:
        window = _window(event, tuple(site.weight.shape[2:]))
        if window is None:
            return None
    return Part.of(
        role,
        window,
        partial(_weight, site),
        None if site.bias is None else partial(to_numpy, site.bias),
        str(source.dtype),
    )


def _computed(lifted: Lifted, number: int, event: Event) -> Part | None:
    """A convolution of a program that has a weight of its own, or one computed of such."""
    role, node, spec = lifted.graph.ops[number].role, node_of(event), linear_spec(event)
    if not isinstance(role, g.Linear) or spec is None or node is None or not keeps_dtype(event):
        return None
    is_computed = spec.weight.how is Derivation.OTHER
    source, tensors = spec.source, [c.tensor for c in (spec.weight, spec.bias) if c is not None]
    if role.tie is not None or not (is_computed or role.weight is g.Weight.FREE):
        return None
    if spec.layout is not Layout.OUT_IN or tensors[0].ndim < 3:
        return None
    if any(not _is_plain(tensor, source.dtype) for tensor in tensors):
        return None
    if not _is_made_in(node.all_input_nodes[1:], source.dtype):
        return None
    window = _window(event, tuple(tensors[0].shape[2:]))
    part = Part.of(
        role,
        window,
        partial(to_numpy, tensors[0]),
        partial(to_numpy, tensors[1]) if len(tensors) > 1 else None,
        str(source.dtype),
        carries=False,
    )
    return None if window is None else replace(part, is_stored=not is_computed)


def _is_made_in(nodes: Sequence[fx.Node], dtype: torch.dtype) -> bool:
    """Whether all that these are made of has this dtype: what is quantised has not."""
    pending = [*nodes]
    for node in pending:  # which grows
        told = node.meta.get("val")
        is_plain = isinstance(told, Tensor) and told.dtype == dtype
        if not is_plain or "quantize" in str(node.target):
            return False
        pending += [source for source in node.all_input_nodes if source not in pending]
    return True


def _is_plain(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether it is a tensor of PyTorch's own, that holds all its numbers."""
    own = type(tensor) in (Tensor, nn.Parameter)
    return own and is_readable(tensor) and tensor.dtype == dtype


def _weight(site: LinearSite) -> FloatArray:
    """(out_channels, in_channels / groups, *kernel)"""
    array = to_numpy(site.weight)
    return array if site.layout is Layout.OUT_IN else exchanged(array, site.groups)


# -------------------------------------------------------------------- windows


def _window(event: Event, kernel: Axes) -> Window | None:
    """That of a convolution."""
    if isinstance(event.target, nn.Module):
        return _window_of_module(event.target, kernel)
    a = Arguments(event)
    transposed = bool(a.get("transposed")) or op_name(event.target).startswith("conv_transpose")
    padding = a["padding"] if isinstance(a["padding"], str) else a.wholes("padding")
    extra = a.wholes("output_padding") if transposed else [0]
    stride, dilation = a.wholes("stride"), a.wholes("dilation")
    return _window_from(kernel, stride, padding, dilation, extra, transposed=transposed)


def _window_of_module(module: Any, kernel: Axes) -> Window | None:
    if module.padding_mode != "zeros":
        return None
    transposed = isinstance(module, TRANSPOSED)
    extra = module.output_padding if transposed else [0]
    return _window_from(
        kernel, module.stride, module.padding, module.dilation, extra, transposed=transposed
    )


def _window_from(
    kernel: Axes,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    output_padding: Sequence[int],
    *,
    transposed: bool,
) -> Window | None:
    rank = len(kernel)
    strides, dilations = _spread(stride, rank), _spread(dilation, rank)
    if padding == "same":
        if set(strides) != {1}:
            return None
        before, after = same_padding(kernel, dilations)
    else:
        before = _spread([0] if isinstance(padding, str) else padding, rank)
        extra = _spread(output_padding, rank)
        after = tuple(front - more for front, more in zip(before, extra, strict=True))
    return Window(kernel, strides, dilations, before, after, transposed)


def _spread(listed: Sequence[int], rank: int) -> Axes:
    """One number stands for all axes."""
    return tuple(listed) if len(listed) == rank else tuple(listed) * rank


# -------------------------------------------------------------------- mean pooling

_POOLS = {f"avg_pool{rank}d": rank for rank in (1, 2, 3)}


def _mean(event: Event, source: Value) -> Part | None:
    rank = _POOLS.get(op_name(event.target))
    if rank is None:
        return None
    a = Arguments(event)
    padding = _spread(a.wholes("padding"), rank)
    if a["ceil_mode"] or a.get("divisor_override") is not None:
        return None
    if any(padding) and not a["count_include_pad"]:
        return None
    kernel = _spread(a.wholes("kernel_size"), rank)
    stride = _spread(a.wholes("stride"), rank) if a.wholes("stride") else kernel
    window = Window(kernel, stride, (1,) * rank, padding, padding)
    axis = len(source.shape) - rank - 1
    return Part.pooling(window, source.shape[axis], axis, str(source.dtype))
