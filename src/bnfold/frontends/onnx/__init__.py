"""The ONNX frontend: read, lift, apply, write; others come in through `door`."""

from __future__ import annotations

from bnfold.errors import MissingExtraError

try:
    import onnx as _onnx  # noqa: F401
except ImportError as error:
    raise MissingExtraError("onnx", "onnx") from error
