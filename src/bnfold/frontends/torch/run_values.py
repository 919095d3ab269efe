"""What goes into a run and comes out of it: arrays, tensors, and what rounding does to weights."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.frontends.torch.copies import same_randomness
from bnfold.verify.runner import Array, Output
from bnfold.verify.verdict import least_normal, unit


@contextmanager
def seeded() -> Iterator[None]:
    """The same randomness for every run, if there is any."""
    with torch.no_grad(), same_randomness():
        _seed(0)
        np.random.seed(0)
        random.seed(0)
        yield


def _seed(number: int) -> None:
    """What torch.manual_seed does, but it leaves CUDA no seed for when that is used first."""
    is_cuda = torch.backends.cuda.is_built()  # type: ignore[no-untyped-call]
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if in_use if is_cuda else torch.accelerator.is_available():
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)


def tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers in floating point; in a copy, the same in the same order."""
    return [
        tensor.detach()
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.is_floating_point()
    ]


def widened(tensor: Tensor) -> Tensor:
    """In float64, if it is one of floating point."""
    return tensor.detach().double() if tensor.is_floating_point() else tensor.detach()


def round_again(own: Tensor, wide: Tensor, generator: torch.Generator) -> None:
    """wide = own * (1 + d), |d| <= u; below the normal numbers, as much as the least of them."""
    if own.numel() < 1:
        return
    drawn = torch.rand(own.shape, generator=generator, dtype=torch.float32)
    moves = drawn.mul_(2.0).sub_(1.0).double().mul_(unit(dtype_name(own))).to(wide.device)
    least = least_normal(dtype_name(own))
    wide.copy_(own)
    if least:
        small = moves * least + wide
        wide.copy_(torch.where(wide.abs() < least, small, wide * (1.0 + moves)))
    else:
        wide.mul_(moves.add_(1.0))


def move(tensor: Tensor, generator: torch.Generator) -> None:
    """Half of the numbers become one of their neighbours; 0 stays, as rounding leaves it."""
    step = torch.randint(-1, 3, tensor.shape, generator=generator).to(tensor.device)
    moves = (step.abs() == 1) & (tensor != 0)  # down, stay, up, stay
    if tensor.dtype in (torch.float32, torch.float64):
        ends = torch.where(step == 1, torch.inf, -torch.inf).to(tensor.dtype)
        neighbours = torch.nextafter(tensor, ends)
    else:  # PyTorch has no nextafter: 1.2 u is 0.6 to 1.2 units in the last place
        neighbours = (tensor.double() * (1.0 + 1.2 * unit(dtype_name(tensor)) * step)).to(
            tensor.dtype
        )
    tensor.copy_(torch.where(moves, neighbours, tensor))


_OF_NUMPY = (torch.float16, torch.float32, torch.float64)


def to_array(tensor: Tensor) -> Array:
    """A copy of the content on the CPU; what NumPy has no dtype for, as bfloat16, as float32."""
    plain = tensor.detach().cpu()
    if plain.is_floating_point() and plain.dtype not in _OF_NUMPY:
        plain = plain.float()
    array: Array = (
        plain.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format).numpy()
    )
    return array


def to_tensor(array: Array, leaf: Tensor, like: torch.dtype | None) -> Tensor:
    """Where the leaf is, in its dtype or in the one given for floating point."""
    dtype = like if like is not None and leaf.is_floating_point() else leaf.dtype
    return torch.from_numpy(np.array(array)).to(device=leaf.device, dtype=dtype)


def is_same(a: Any, b: Any) -> bool:
    """Whether two tensors hold the very same."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.dtype != b.dtype:
        return False
    return torch.equal(a, b)


def dtype_name(tensor: Tensor) -> str:
    """float32, bfloat16, ..."""
    return str(tensor.dtype).removeprefix("torch.")


def to_outputs(result: Any) -> list[Output]:
    """Every tensor, number, text and None that a model returns, however they are nested."""
    return [
        Output(name or "output", *_content(leaf))
        for name, leaf in _leaves("", result)
        if isinstance(leaf, Tensor | np.ndarray | np.generic | bool | int | float | complex | str)
        or leaf is None
    ]


_KEYS = re.compile(r"[^\[\]'\".]+")
"""The parts of "['logits'][0]": how PyTorch writes the way to a leaf."""


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in pytree.tree_leaves_with_path(value):
        key = ".".join(_KEYS.findall(pytree.keystr(path)))
        key = f"{name}{'.' if name and key else ''}{key}"
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            for entry in dataclasses.fields(leaf):
                inner = f"{key}.{entry.name}" if key else entry.name
                yield from _leaves(inner, getattr(leaf, entry.name, None))
        else:
            yield (f"output {key}" if key.isdigit() else key), leaf


def _content(leaf: Any) -> tuple[Array, str]:
    """As an array, and the name of its dtype."""
    if isinstance(leaf, Tensor):
        plain = leaf.to_dense() if leaf.layout != torch.strided else leaf
        return to_array(plain), dtype_name(leaf)
    if leaf is None or isinstance(leaf, str):
        return np.asarray(leaf, dtype=object), type(leaf).__name__
    array = np.asarray(leaf)
    return array, "float32" if isinstance(leaf, float) else str(array.dtype)
