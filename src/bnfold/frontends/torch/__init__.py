"""PyTorch: modules with example inputs, and exported programs; others come in through `door`."""

from __future__ import annotations

from bnfold.errors import MissingExtraError

try:
    import torch  # noqa: F401  # only to say which extra is missing
except ImportError as error:
    raise MissingExtraError("torch", "PyTorch") from error
