"""Whether a module's code may take a path that no reading of it shows.

Other sizes, other layouts and a second run are read (`read_other_sizes`, `state`). Two things can
choose a path by what no few readings tell:

    values    `if x.sum() > 0`, `.item()`, `len(x[x > 0])`: each input may decide otherwise
    numbers   that a run leaves in a module for the next: a counter may turn at any count (`state`)

Another dtype of the inputs, which few modules take, is read where there is something to merge.

On such a path a merge is wrong: a carrier computes what the branches made together, and a branch
that was merged away makes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnfold.errors import BnfoldError
from bnfold.frontends.torch.entries import as_entry, with_inputs
from bnfold.frontends.torch.nothing import SUMS
from bnfold.frontends.torch.ops import aten_name
from bnfold.frontends.torch.read import read_module
from bnfold.frontends.torch.recording import Event, Recording
from bnfold.frontends.torch.restorable import Restorable


def parts_by_dtype(
    model: nn.Module,
    runs: Sequence[Any],
    recording: Recording,
    surroundings: Restorable | None = None,
) -> bool:
    """Whether the code calls other modules, or adds up others, for inputs of another dtype.

    Most modules take but one. The model is left as it was.
    """
    seen = _called(recording.events[: recording.given])
    for dtype in _DTYPES:
        given = [as_entry(run).inputs for run in runs]
        cast = pytree.tree_map_only(Tensor, partial(_cast, dtype=dtype), given)
        pairs = zip(pytree.tree_leaves(cast), pytree.tree_leaves(given), strict=True)
        if all(other is own for other, own in pairs):
            continue
        entries = [with_inputs(run, other) for run, other in zip(runs, cast, strict=True)]
        try:
            other = read_module(model, entries, like=recording, surroundings=surroundings)
        except BnfoldError:
            continue
        if _called(other.events) != seen:
            return True
    return False


_DTYPES = (torch.float64, torch.float32, torch.uint8)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _called(events: Sequence[Event]) -> list[Any]:
    """The modules that were called, and the sums between them."""
    return [
        event.target if isinstance(event.target, nn.Module) else aten_name(event.target)
        for event in events
        if isinstance(event.target, nn.Module) or aten_name(event.target) in SUMS
    ]
