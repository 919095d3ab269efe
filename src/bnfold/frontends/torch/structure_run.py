"""Run a network for its structure alone: what is heavy returns a tensor of the right shape.

What a network does with a value rarely depends on the value. So the first run computes nothing in
convolutions, matrix products, BatchNorms, activations, sums and concats, which takes a small part
of a forward pass's time and memory whatever the input's size. What it returns there is a
placeholder: it begins as zeros, but its content means nothing. As soon as the program looks at a
value (`.item()`, `if x.sum() > 0`, `nonzero`, `.numpy()`, an op of unknown making), or raises for
any reason, that run is thrown away and the network is run for real.
"""

from __future__ import annotations

import functools
import math
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from torch import Tensor, nn

from bnfold.frontends.torch.leaf_modules import BATCH_NORMS, CLIPS, CONVOLUTIONS
from bnfold.frontends.torch.sizes_asked import shape_of, strides_of


class NeedsValues(BaseException):
    """The program looks at a value: run it for real. Not to be caught by the program itself."""


_LOOKS = ("numpy", "tolist", "__array__", "__dlpack__", "__deepcopy__", "data_ptr", "resize_")
"""Methods of Tensor that hand out values without dispatching an op, or need memory of PyTorch's."""
_HANDED_OUT = [
    *((torch.Tensor, name) for name in (*_LOOKS, "untyped_storage")),
    (torch, "to_dlpack"),
    (torch.utils.dlpack, "to_dlpack"),
]


def looks_at_values(func: Any) -> bool:
    """Whether an op's result, beyond the content of its outputs, depends on values."""
    if not isinstance(func, torch._ops.OpOverload) or func.namespace not in ("aten", "prims"):
        return True
    tags = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return any(tag in func.tags for tag in tags)


@contextmanager
def values_guarded(look: Callable[[Tensor], None]) -> Iterator[None]:
    """While this is open, `look` is told of every tensor that values are taken out of."""
    thread = threading.get_ident()  # the patch is global; other threads go on as before
    looking = False

    def guarded(original: Any) -> Any:
        @functools.wraps(original)
        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal looking
            if threading.get_ident() == thread and not looking:
                looking = True
                try:
                    look(tensor)
                finally:
                    looking = False
            return original(tensor, *args, **kwargs)

        return method

    own = [(owner, name, vars(owner).get(name)) for owner, name in _HANDED_OUT]
    for owner, name in _HANDED_OUT:
        setattr(owner, name, guarded(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, function in own:
            if function is None:
                delattr(owner, name)
            else:
                setattr(owner, name, function)


class Placeholders:
    """Makes contiguous tensors whose content nobody looks at.

    A large one is memory that the system lends, zeros until somebody writes there: it takes neither
    room nor much time, whatever the network's activations take.
    """

    def make(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A placeholder on the CPU."""
        size = math.prod(shape) * dtype.itemsize
        if size < _SMALL:
            return torch.zeros(tuple(shape), dtype=dtype)
        memory = np.frombuffer(mmap.mmap(-1, size, access=mmap.ACCESS_COPY), dtype=np.uint8)
        return torch.from_numpy(memory).view(dtype).view(tuple(shape))


_SMALL = 1 << 14
"""Bytes up to which a tensor is filled rather than mapped."""


def module_placeholder(
    module: nn.Module, tensor: Tensor, placeholders: Placeholders
) -> Tensor | None:
    """A placeholder for what a leaf module would return; None where it has to run."""
    if not _is_replaceable(tensor) or torch.is_autocast_enabled("cpu") or torch.is_grad_enabled():
        return None
    if isinstance(module, CLIPS):
        return tensor if module.inplace else placeholders.make(tensor.shape, tensor.dtype)
    shape = _module_output_shape(module, tensor)
    return None if shape is None else placeholders.make(shape, tensor.dtype)


def _is_replaceable(argument: Any) -> bool:
    """Integers are left out: they may be indices, which have to be in range."""
    return (
        isinstance(argument, Tensor)
        and argument.device.type == "cpu"
        and argument.is_floating_point()
        and argument.layout is torch.strided
        and _has_usual_strides(argument)
    )


def _has_usual_strides(tensor: Tensor) -> bool:
    """Contiguous also along axes of length 1, which alone can make a layout channels_last."""
    return _are_usual(shape_of(tensor), strides_of(tensor))


@functools.lru_cache(maxsize=1024)
def _are_usual(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if stride != step:
            return False
        step *= max(size, 1)
    return True


def _module_output_shape(module: nn.Module, tensor: Tensor) -> Sequence[int] | None:
    """The shape of what a BatchNorm, Linear or convolution makes of it, if that is certain."""
    if isinstance(module, BATCH_NORMS):
        fits = tensor.ndim > 1 and tensor.shape[1] == module.num_features
        ready = not module.training and module.running_mean is not None
        known = module.running_mean is not None and module.running_mean.dtype == tensor.dtype
        return tensor.shape if fits and ready and known else None
    weight = getattr(module, "weight", None)
    if weight is None or weight.dtype != tensor.dtype or not _has_usual_strides(weight):
        return None
    if isinstance(module, nn.Linear):
        if tensor.ndim < 1 or tensor.shape[-1] != module.in_features:
            return None
        return (*tensor.shape[:-1], module.out_features)
    if isinstance(module, CONVOLUTIONS):
        return _convolution_shape(module, tensor)
    return None


def _convolution_shape(module: Any, tensor: Tensor) -> Sequence[int] | None:
    rank = len(module.kernel_size)
    batched = tensor.ndim == rank + 2
    if not batched or tensor.shape[1] != module.in_channels or isinstance(module.padding, str):
        return None
    if module.padding_mode != "zeros":
        return None
    shape = [tensor.shape[0], module.out_channels]
    for axis in range(rank):
        span = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
        room = tensor.shape[2 + axis] + 2 * module.padding[axis] - span
        if room < 0:
            return None
        shape.append(room // module.stride[axis] + 1)
    return shape


def op_placeholders(func: Any, args: tuple[Any, ...], kwargs: Any, make: Placeholders) -> Any:
    """Placeholders for what a sum, activation, concat or the like returns; None: it has to run."""
    name = str(getattr(func, "_opname", "")) if not kwargs else ""
    if name == "cat":
        return _concat_placeholder(args, make)
    if name == "native_batch_norm":
        return _batch_norm_placeholders(args, make)
    in_place = name.endswith("_")
    if name.removesuffix("_") not in _POINTWISE or len(args) > 2:
        return None
    first = args[0]
    if not all(
        _is_replaceable(x) and (x.shape, x.dtype) == (first.shape, first.dtype) for x in args
    ):
        return None
    return first if in_place else make.make(first.shape, first.dtype)


_POINTWISE = {"add", "sub", "mul", "relu", "silu", "sigmoid", "hardswish", "hardsigmoid", "mish"}


def _batch_norm_placeholders(
    args: tuple[Any, ...], make: Placeholders
) -> tuple[Tensor, ...] | None:
    first, *parameters, training, _, _ = args
    mean = parameters[2]
    if training or mean is None or not _is_replaceable(first) or first.ndim < 2:
        return None
    fits = (first.shape[1:2], first.dtype)
    if not all((part.shape, part.dtype) == fits for part in parameters if part is not None):
        return None
    empty = first.new_empty(0)
    return make.make(first.shape, first.dtype), empty, empty.clone()


def _concat_placeholder(args: tuple[Any, ...], make: Placeholders) -> Tensor | None:
    tensors, axis = args[0], args[1] if len(args) > 1 else 0
    first = tensors[0]
    if not all(
        _is_replaceable(x) and x.dtype == first.dtype and x.ndim == first.ndim for x in tensors
    ):
        return None
    axis = axis % first.ndim if first.ndim else 0
    rests = {(*x.shape[:axis], *x.shape[axis + 1 :]) for x in tensors}
    # Memory layouts cannot be told apart where the other axes have length 1.
    if len(rests) > 1 or not first.numel() or first.ndim < 2 or 1 in first.shape[2:]:
        return None
    shape = list(first.shape)
    shape[axis] = sum(x.shape[axis] for x in tensors)
    return make.make(shape, first.dtype)
