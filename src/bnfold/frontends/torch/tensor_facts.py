"""What there is to know of a tensor object: where it lives, and the marks that a run puts on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from bnfold.frontends.torch.recording import Geometry
from bnfold.frontends.torch.sizes_asked import shape_of, strides_of

HANDLE = "_bnfold_handle"
"""The attribute that holds a tensor's `Handle`."""
MADE = "_bnfold_made"
"""The attribute of constants that ops of the run made: MADE itself, or AT_RANDOM."""
AT_RANDOM = "at random"

_untyped_storage = torch.Tensor.untyped_storage
"""PyTorch's own: a program's calls of it are watched, the recorder's are not."""


def storage_of(tensor: Tensor) -> torch.UntypedStorage:
    """Without a function mode that would take it for the program's own look."""
    with torch._C.DisableTorchFunction():  # type: ignore[attr-defined]
        return _untyped_storage(tensor)


def memory_of(tensor: Tensor) -> int | None:
    """A number for the memory a tensor lives in; None where that cannot be told (vmap, sparse)."""
    try:
        return int(storage_of(tensor)._cdata)
    except (NotImplementedError, RuntimeError):
        return None


def address_of(tensor: Tensor) -> int | None:
    """Where the memory begins that a tensor lives in; None where it has none."""
    try:
        return int(storage_of(tensor).data_ptr()) or None
    except (NotImplementedError, RuntimeError):
        return None


def content_address(tensor: Tensor) -> int | None:
    """Where its content begins; None for a tensor that has no memory of this kind."""
    try:
        return tensor.data_ptr()
    except (RuntimeError, NotImplementedError):
        return None


def array_over(tensor: Tensor) -> np.ndarray[Any, Any]:
    """An array over its memory, on the CPU, to be read at once.

    Over a tensor of our own: memory that `Tensor.numpy` has handed out is never resized again, and
    this may be the user's.
    """
    plain = tensor.detach()
    if is_ordinary(plain):  # of others NumPy says that it cannot read them, DLPack does not
        plain = torch.utils.dlpack.from_dlpack(plain)
    array: np.ndarray[Any, Any] = plain.numpy()
    return array


def geometry_of(tensor: Tensor) -> Geometry:
    """Which part of its memory it shows."""
    return int(tensor.storage_offset()), tuple(shape_of(tensor)), strides_of(tensor)


def version_of(tensor: Tensor) -> int | None:
    """How often somebody wrote to it; None where PyTorch does not count (inference mode)."""
    return None if tensor.is_inference() else tensor._version


def is_ordinary(tensor: Tensor) -> bool:
    """Whether NumPy could read it: not inside torch.func, no subclass, not sparse, no lazy one."""
    if is_lazy(tensor):
        return False
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) and not isinstance(tensor, nn.Buffer):
        return False
    return not (tensor.is_meta or tensor.is_nested) and tensor.layout is torch.strided


def shape_if_any(tensor: Tensor) -> torch.Size | None:
    """Its shape; None where it has none (nested tensors), or none yet."""
    try:
        return None if tensor.is_nested else tensor.shape
    except Exception:  # whatever a class of its own raises
        return None


def is_equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are known to hold the same: not where PyTorch cannot tell (vmap)."""
    if first is second:
        return True
    try:
        if first.is_nested or second.is_nested or first.is_meta:
            return False
        kinds = [(tensor.shape, tensor.dtype, tensor.layout) for tensor in (first, second)]
        return kinds[0] == kinds[1] and all(map(torch.equal, _parts(first), _parts(second)))
    except Exception:  # whatever a class of the user's raises
        return False


def holds_the_same(first: Tensor, second: Tensor) -> bool:
    """The same, where no number is as good as no number."""
    has_numbers = first.is_floating_point() and first.itemsize > 1  # float8 has no such op
    if has_numbers and is_ordinary(first) and is_ordinary(second):
        first, second = torch.nan_to_num(first), torch.nan_to_num(second)
    return is_equal(first, second)


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors that hold a sparse one's content; one that is not sparse is its own part."""
    layout = tensor.layout
    if layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor,)


def forget(tree: Any) -> None:
    """Remove the handles from the user's tensors."""
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor) and hasattr(leaf, HANDLE):
            delattr(leaf, HANDLE)
