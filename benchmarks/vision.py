"""Importing torchvision and timm, also beside a PyTorch that torchvision was not built for.

torchvision from PyPI is built for CUDA. Beside a CPU-only PyTorch its compiled operators cannot be
loaded, and its import fails where it registers shape functions for operators that do not exist.
No network here calls them, so declaring the missing ones without a kernel is enough.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

_NMS_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_DECLARED_BEFORE_IMPORT = ("nms", "qnms")


@dataclass(frozen=True, slots=True)
class Vision:
    """The two libraries, imported."""

    torchvision: ModuleType
    timm: ModuleType


@cache
def load_vision() -> Vision:
    """torchvision and timm; safe to call any number of times.

    Raises:
        ModuleNotFoundError: one of the two is not installed.
    """
    _load_compiled_operators()
    for name in _DECLARED_BEFORE_IMPORT:
        if not hasattr(torch.ops.torchvision, name):
            # Without a Library of its own, torch keeps the definition alive itself.
            torch.library.define(f"torchvision::{name}", _NMS_SCHEMA)
    return Vision(importlib.import_module("torchvision"), importlib.import_module("timm"))


def _load_compiled_operators() -> None:
    """Load them before torchvision does: whatever is missing after that has to be declared."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for library in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            continue  # built for another PyTorch: torchvision goes on without it, and so do we
