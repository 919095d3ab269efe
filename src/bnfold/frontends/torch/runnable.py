"""What a model is run as: itself, or the module that torch.export makes of a program."""

from __future__ import annotations

from torch import nn
from torch.export import ExportedProgram

UNFLATTENED = "unflattened_module"
"""Where torch.export.unflatten leaves what it made, in the program it made it of: a module with
tensors without content, which cannot be copied."""


def runnable(model: nn.Module | ExportedProgram) -> nn.Module:
    """A module that computes what the model computes."""
    if isinstance(model, nn.Module):
        return model
    module = model.module()
    module.meta.pop(UNFLATTENED, None)
    return module
