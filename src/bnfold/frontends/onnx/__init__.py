"""The ONNX frontend: read, lift, apply, write."""

from __future__ import annotations

from bnfold.errors import MissingExtraError

try:
    import onnx as _onnx  # noqa: F401
except ImportError as error:
    raise MissingExtraError("onnx", "onnx") from error

from bnfold.frontends.onnx.fold import fold_file, fold_model, inspect_model

__all__ = ["fold_file", "fold_model", "inspect_model"]
