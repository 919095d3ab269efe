"""PyTorch: modules with example inputs, and exported programs."""

from bnfold.frontends.torch.fold import fold_module, inspect_module

__all__ = ["fold_module", "inspect_module"]
