"""What a plan or a merge changes in a model: its nodes, and tensors computed when asked for.

Nothing is written to the model here; see `rewrite`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from bnfold.core.affine import FloatArray
from bnfold.core.fitting import Overflow
from bnfold.frontends.onnx.shapes import Shape
from bnfold.frontends.onnx.tensor_data import is_finite
from bnfold.frontends.onnx.tensors import numpy_dtype

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class NewTensor:
    """A tensor that will be computed."""

    op: int
    """Number of the op that asks for it."""
    data_type: int
    shape: Shape
    content: Callable[[], Array]
    """In any dtype."""
    old: Callable[[], Array] | None
    """What was there before: an overflow is no news if it was not finite."""
    source: str = ""
    """The initializer that the content is a multiple of, if it is one."""
    factor: FloatArray | None = None
    """By what, broadcastable to the shape."""

    @property
    def nbytes(self) -> int:
        """How large it will be."""
        return math.prod(self.shape) * numpy_dtype(self.data_type).itemsize

    def compute(self) -> Array:
        """The content, in its dtype. Raises Overflow."""
        dtype = numpy_dtype(self.data_type)
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.asarray(self.content()).reshape(self.shape).astype(dtype, copy=False)
        if not is_finite(array) and (self.old is None or is_finite(self.old())):
            raise Overflow(self.op)
        return array


@dataclass(slots=True)
class Edits:
    """Everything that changes."""

    replaced: dict[str, NewTensor] = field(default_factory=dict)
    """New content of initializers, by name."""
    born: dict[str, NewTensor] = field(default_factory=dict)
    """New initializers."""
    inputs: dict[tuple[int, int], str] = field(default_factory=dict)
    """New inputs of nodes, by (index of the node, position)."""
    nodes: dict[int, list[NodeProto]] = field(default_factory=dict)
    """What stands in a node's place."""
    behind: dict[int, tuple[str, NodeProto]] = field(default_factory=dict)
    """New name of a node's output, and the node behind it that makes the old one."""
    unit_factors: set[int] = field(default_factory=set)
    """Indices of Gemms whose beta becomes 1."""
    bypassed: dict[str, str] = field(default_factory=dict)
    """Outputs of removed nodes, and what is read instead."""
    removed: set[int] = field(default_factory=set)
    """Indices of the removed nodes."""
    retyped: set[str] = field(default_factory=set)
    """Values that have another dtype now."""
    rounded: dict[str, int] = field(default_factory=dict)
    """Constants whose new content is rounded to less than what it is computed with in."""

    def compute(self) -> None:
        """Compute every new tensor once, one at a time. Raises Overflow."""
        for new in (*self.replaced.values(), *self.born.values()):
            new.compute()
