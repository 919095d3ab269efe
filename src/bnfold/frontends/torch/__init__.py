"""PyTorch: modules with example inputs, and exported programs."""

from __future__ import annotations

from bnfold.errors import MissingExtraError

try:
    import torch  # noqa: F401  # only to say which extra is missing
except ImportError as error:
    raise MissingExtraError("torch", "PyTorch") from error

from bnfold.frontends.torch.fold import fold_module, inspect_module
from bnfold.frontends.torch.program import fold_program, inspect_program

__all__ = ["fold_module", "fold_program", "inspect_module", "inspect_program"]
