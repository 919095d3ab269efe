"""Why the recorded run of a model raised: its inputs, its copy, or what cannot be recorded.

A recorded run is one of a copy, with tensors that are watched. What raises there may run well
outside: a hook that collects into the model that it was made for leaves the copy's list empty, and
nested tensors do not say what shape they have. Then it is not the inputs that are to blame.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bnfold.errors import BnfoldError, ExampleInputError, UnsupportedModelError
from bnfold.frontends.torch.copies import Snapshot, same_randomness

Call = Callable[[nn.Module], Any]
"""Makes one call of a module."""


def error_to_raise(
    error: ExampleInputError, model: nn.Module, calls: Sequence[Call]
) -> BnfoldError:
    """What to raise for a recorded run that raised `error`.

    Args:
        error: What it raised.
        model: The original. It is left as it was.
        calls: The calls that were recorded.
    """
    asked = _HIGHER_ORDER.search(str(error.cause))
    if asked and isinstance(error.cause, NotImplementedError):
        return UnsupportedModelError(
            f"{type(model).__name__} calls {asked[1]}, which runs code that cannot be recorded",
            "fold the exported program (torch.export.export) instead, or the parts around it",
        )
    if not _runs(model, calls):
        return error
    name, cause = type(model).__name__, f"{type(error.cause).__name__}: {error.cause}"
    try:
        copied = copy.deepcopy(model)
    except Exception:
        copied = model
    if _runs(copied, calls):
        return UnsupportedModelError(
            f"{name} does what cannot be recorded, and raised {cause}",
            "fold the exported program (torch.export.export) instead, or the parts that can be",
        )
    return UnsupportedModelError(
        f"a copy of {name} (copy.deepcopy) raised {cause}, while {name} itself runs: a hook or a"
        " function that it holds refers to the model that was copied",
        "let hooks use the module that they are given, and functions their arguments",
    )


_HIGHER_ORDER = re.compile(r"HigherOrderOperator (\w+)")
"""What PyTorch names when a mode such as the recorder meets torch.cond and its like."""


def is_to_blame(error: ExampleInputError, model: nn.Module, calls: Sequence[Call]) -> bool:
    """Whether the model itself does not take the inputs of a run that raised `error`.

    It is not where it cannot be run on this machine, whatever its inputs.
    """
    cause = error.cause
    if isinstance(cause, NotImplementedError | MemoryError | torch.OutOfMemoryError):
        return False
    if any(text in str(cause) for text in _NOT_HERE):
        return False
    return not _runs(model, calls)


_NOT_HERE = ("not implemented for", "allocate memory", "not enough memory", "Could not run")
"""What PyTorch says of an op that a device does not have, or of memory that is not there."""


def _runs(model: nn.Module, calls: Sequence[Call]) -> bool:
    with (
        Snapshot(model.modules(), weights=True).restoring(),
        same_randomness(),
        torch.no_grad(),
    ):
        try:
            for call in calls:
                call(model)
        except Exception:
            return False
    return True
