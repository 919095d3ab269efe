"""Inputs of a program: the example, and others that follow it in turn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.property.programs.build import CHANNELS
from tests.property.programs.description import Program

DTYPE = torch.float64


def inputs_of(program: Program) -> list[Tensor]:
    """The example first; then other values, batches and sizes, and the example again."""
    draw = torch.Generator().manual_seed(program.seed)
    n, h, w = 2, 8 + program.seed % 3, 7 + program.seed % 2
    sizes = [(n, h, w), (n, h, w), (3, h, w), (1, h, w), (n, h + 3, w), (n, h, w + 2)]
    values = [torch.randn(n, CHANNELS, h, w, generator=draw, dtype=DTYPE) for n, h, w in sizes]
    values[1] *= 3
    arranged = [LAYOUTS[program.options.layout](x) for x in values]
    return [*arranged, again(arranged[0])]


def again(x: Tensor) -> Tensor:
    """The same values in the same layout, in memory of its own."""
    base = x if x._base is None else x._base
    memory = base.detach().clone(memory_format=torch.preserve_format)
    return memory if x._base is None else memory.as_strided(x.shape, x.stride(), x.storage_offset())


def _every_second_row(x: Tensor) -> Tensor:
    return torch.stack([x, -x], 3).flatten(2, 3)[:, :, ::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every_second_row": _every_second_row,
    "permuted": lambda x: x.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0),
}
"""What the caller's tensors look like in memory."""
