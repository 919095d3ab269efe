"""What a run returns, as a verification compares it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bnfold.verify.runner import Output


def to_outputs(name: str, result: Any) -> list[Output]:
    """A tensor is one output; of a sequence or a map, each of its parts is."""
    if isinstance(result, list | tuple):
        parts = [(f"{name}[{index}]", part) for index, part in enumerate(result)]
    elif isinstance(result, Mapping):
        parts = [(f"{name}[{key!r}]", result[key]) for key in sorted(result, key=repr)]
    else:
        array = np.asarray(result)
        return [Output(name, array, "string" if array.dtype.kind in "OSU" else str(array.dtype))]
    count = Output(f"{name} (number of parts)", np.asarray(len(parts)), "int64")
    return [count, *(output for key, part in parts for output in to_outputs(key, part))]
