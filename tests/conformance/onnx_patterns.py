"""Small ONNX models and what must become of them: the laws, one pattern for each case.

    pattern = PATTERNS["conv_bn"]
    pattern.build(numpy.float32)     an onnx.ModelProto; float64 gives its exact twin
    pattern.removed                  names of the nodes that must be gone
    pattern.kept                     node name -> the reason why it must stay

Every expectation follows from docs/laws.md, none from what the code does. The patterns themselves
are drawn in `onnx_patterns_*.py`, those that must stay first; each has a docstring that says why.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from tests.conformance.onnx_sketch import Sketch

Draw = Callable[[Sketch], None]

_MODULES = ("must_stay", "linear", "passing", "views", "forms", "nested", "bodies", "traps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """One small model and its expected outcome."""

    name: str
    draw: Draw
    """Adds nodes, inputs and outputs to a sketch."""
    removed: frozenset[str] = frozenset()
    """Nodes that must be gone."""
    kept: Mapping[str, str]
    """Nodes that must stay, each with the reason in the report."""
    untouched: frozenset[str] = frozenset()
    """Nodes that must stay and that the report need not mention."""
    clip: str = "always"
    """The clip mode to fold with."""
    opset: int = 17
    ir: int = 8
    dtype: Any = np.float32
    """Of the model that ONNX Runtime runs."""
    has_twin: bool = True
    """Whether the same model in float64 is valid, so that the numbers can be proved exactly."""
    runs: bool = True
    """Whether ONNX Runtime has kernels for it."""
    shapes: Mapping[str, int]
    """Sizes of the symbolic dimensions in the run."""

    @property
    def why(self) -> str:
        """The first line of the drawing's docstring."""
        return (self.draw.__doc__ or "").strip().splitlines()[0]

    def build(self, dtype: Any = None) -> onnx.ModelProto:
        """The model, in the given dtype or its own."""
        sketch = Sketch(self.dtype if dtype is None else dtype, opset=self.opset, ir=self.ir)
        self.draw(sketch)
        return sketch.model()


PATTERNS: dict[str, Pattern] = {}
"""All patterns by name, in the order of the table in the docs."""


def pattern(
    *removed: str,
    kept: Mapping[str, str] | None = None,
    untouched: tuple[str, ...] = (),
    shapes: Mapping[str, int] | None = None,
    **options: Any,
) -> Callable[[Draw], Draw]:
    """Register a drawing: the nodes that must go, and those that must stay with the reason."""

    def register(draw: Draw) -> Draw:
        name = draw.__name__
        assert name not in PATTERNS, f"two patterns are named {name}"
        PATTERNS[name] = Pattern(
            name=name,
            draw=draw,
            removed=frozenset(removed),
            kept=dict(kept or {}),
            untouched=frozenset(untouched),
            shapes=dict(shapes or {}),
            **options,
        )
        return draw

    return register


def load() -> dict[str, Pattern]:
    """All patterns, drawn in the modules beside this one."""
    for module in _MODULES:
        importlib.import_module(f"tests.conformance.onnx_patterns_{module}")
    return PATTERNS
