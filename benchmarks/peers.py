"""The tools that bnfold is measured against, and the floor that nothing can beat."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn

from benchmarks.randomize import batchnorm_modules

Folder = Callable[[nn.Module, Tensor], nn.Module]
"""Takes a model in eval mode and an example input, gives a new model; the first is untouched."""


def fold_with_bnfold(model: nn.Module, example: Tensor) -> nn.Module:
    """What this project does."""
    import bnfold

    return bnfold.fold(model, example).model


def fold_with_torch_fx(model: nn.Module, _example: Tensor) -> nn.Module:
    """PyTorch's own: symbolic tracing, then Conv -> BatchNorm and Linear -> BatchNorm pairs."""
    from torch.fx.experimental.optimization import fuse

    return fuse(model)


FOLDERS: dict[str, Folder] = {"bnfold": fold_with_bnfold, "torch_fx": fold_with_torch_fx}


def without_batchnorms(model: nn.Module) -> nn.Module:
    """A copy with every BatchNorm deleted: another function, but the least work there can be.

    What a module does besides normalising stays: timm's BatchNormAct2d becomes its activation.
    """
    model = copy.deepcopy(model)
    for name, module in list(batchnorm_modules(model)):
        parent_name, _, attribute = name.rpartition(".")
        remainder = [
            part
            for part in (getattr(module, "drop", None), getattr(module, "act", None))
            if isinstance(part, nn.Module) and not isinstance(part, nn.Identity)
        ]
        setattr(model.get_submodule(parent_name), attribute, _chain(remainder))
    return model


def _chain(modules: list[nn.Module]) -> nn.Module:
    if not modules:
        return nn.Identity()
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)
