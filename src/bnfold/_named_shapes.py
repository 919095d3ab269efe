"""The inputs of an ONNX model, as the user gives them: shapes by name, or arrays for `verify`."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np

from bnfold._text import shortened
from bnfold.errors import UsageError


def check_named(inputs: Any, *, arrays: bool = False) -> None:
    """Raise UsageError for what are no shapes by name; `arrays` by name may do as well."""
    if inputs is None:
        return
    wanted = "shapes or arrays" if arrays else "shapes"
    if not isinstance(inputs, Mapping):
        shape = _shape(inputs) or (1, 3, 224, 224)
        raise UsageError(
            f"inputs of an ONNX model are {wanted} by name, and {_said(inputs)} was given",
            f"pass a mapping like inputs={{'input': {shape}}}, or leave them out",
        )
    for name, value in inputs.items():
        if is_shape(value) or (arrays and isinstance(value, np.ndarray)):
            continue
        shape = _shape(value) or (1, 3, 224, 224)
        raise UsageError(
            f"inputs of an ONNX model are {wanted} by name, and {_said(value)} was given for"
            f" {name!r}",
            f"pass a shape: inputs={{{name!r}: {shape}}}",
        )


def is_shape(value: Any) -> bool:
    """Whether these are lengths of axes."""
    return isinstance(value, tuple | list) and all(isinstance(length, Integral) for length in value)


def _shape(value: Any) -> tuple[int, ...]:
    """The shape that is meant; () where none is to be seen."""
    axes = value if isinstance(value, tuple | list) else getattr(value, "shape", ())
    shape = tuple(map(int, axes)) if is_shape(tuple(axes)) else ()
    return shape if all(length > 0 for length in shape) else ()


def _said(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"a NumPy array of {'x'.join(map(str, value.shape))}"
    if hasattr(value, "shape") and not isinstance(value, type):
        return f"a {type(value).__name__} of {'x'.join(map(str, value.shape))}"
    if isinstance(value, str | int | float | tuple | list | None):
        return shortened(repr(value), 60)
    return f"an object of {type(value).__name__}"
