"""Run a network for its structure alone: heavy modules return zeros of the right shape.

What a network does with a value rarely depends on the value. So the first run computes nothing in
convolutions, matrix products, BatchNorms and activations, which takes a small part of a forward
pass's time whatever the input's size. As soon as the program looks at a value (`.item()`,
`if x.sum() > 0`, `nonzero`, `.numpy()`, an op of unknown making), or raises for any reason, that
run is thrown away and the network is run for real.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bnfold.frontends.torch.leaves import BATCH_NORMS, CLIPS, CONVOLUTIONS


class NeedsValues(BaseException):
    """The program looks at a value: run it for real. Not to be caught by the program itself."""


_LOOKS = ("numpy", "tolist", "__array__", "__dlpack__", "__deepcopy__", "data_ptr")
"""Methods of Tensor that hand out values without dispatching an op."""


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

    own = {name: torch.Tensor.__dict__.get(name) for name in _LOOKS}
    for name in _LOOKS:
        setattr(torch.Tensor, name, guarded(getattr(torch.Tensor, name)))
    try:
        yield
    finally:
        for name, method in own.items():
            if method is None:
                delattr(torch.Tensor, name)
            else:
                setattr(torch.Tensor, name, method)


def hollow_output(module: nn.Module, tensor: Tensor) -> Tensor | None:
    """What a leaf module would return, with zeros in it; None where it has to run."""
    kind = tensor.device.type
    if kind != "cpu" or not tensor.is_contiguous() or torch.is_autocast_enabled(kind):
        return None
    if isinstance(module, CLIPS):
        return tensor if module.inplace else torch.zeros_like(tensor)
    if isinstance(module, BATCH_NORMS):
        fits = tensor.ndim > 1 and tensor.shape[1] == module.num_features
        ready = not module.training and module.running_mean is not None
        known = module.running_mean is not None and module.running_mean.dtype == tensor.dtype
        return torch.zeros_like(tensor) if fits and ready and known else None
    weight = getattr(module, "weight", None)
    if weight is None or weight.dtype != tensor.dtype or not weight.is_contiguous():
        return None
    if isinstance(module, nn.Linear):
        if tensor.ndim < 1 or tensor.shape[-1] != module.in_features:
            return None
        return tensor.new_zeros((*tensor.shape[:-1], module.out_features))
    if isinstance(module, CONVOLUTIONS):
        return _convolution_output(module, tensor)
    return None


def _convolution_output(module: Any, tensor: Tensor) -> Tensor | None:
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
    return tensor.new_zeros(shape)
