"""An exported program with open sizes, folded on inputs of one size and run on others."""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree

import bnfold
from bnfold.core.modes import ClipMode
from tests.property.networks.build_torch import Model, torch_inputs
from tests.property.networks.description import Network
from tests.tolerances import EXACT

_LONGER = ((0, 0, 0, 0), (1, 0, 1, 1), (3, 0, 2, 3), (0, 0, 4, 2), (1, 0, 5, 4))
"""By how much each axis grows; there are as many channels as before."""

_NEXT_TO_NOTHING = 1e-6
"""What is left where two that are equal are subtracted is rounding alone."""


def check_other_sizes(network: Network, clip: ClipMode) -> int:
    """Returns on how many sizes the folded program was compared; no proof takes anything back."""
    inputs = torch_inputs(network, torch.float64)
    open_axes = tuple(
        {axis: torch.export.Dim.AUTO for axis in range(x.ndim) if axis != 1} for x in inputs
    )
    program = torch.export.export(Model(network), inputs, dynamic_shapes=open_axes)
    folded, report = bnfold.fold(program, clip=clip, verify=False)
    before, after = program.module(), folded.module()
    compared = 0
    for more in _LONGER:
        longer = [
            torch.randn([n + m for n, m in zip(x.shape, (*more, 0), strict=False)], dtype=x.dtype)
            for x in inputs
        ]
        with torch.no_grad():
            try:
                wanted = pytree.tree_leaves(before(*longer))
            except (RuntimeError, AssertionError):  # a size that the program does not take
                continue
            made = pytree.tree_leaves(after(*longer))
        compared += 1
        for a, b in zip(wanted, made, strict=True):
            if a.numel() and a.isfinite().all():
                size = max(float(a.abs().max()), _NEXT_TO_NOTHING)
                assert float((a - b).abs().max()) <= EXACT * size, report
    return compared
