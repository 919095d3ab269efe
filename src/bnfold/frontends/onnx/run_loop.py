"""Loop in float64: the reference evaluator's, with two mistakes of onnx 1.23 put right.

    no condition     it runs no round; the condition is then always true
    scan outputs     it joins the rounds along the first axis of what they make, not along a new one

https://onnx.ai/onnx/operators/onnx__Loop.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx.reference.ops.op_loop import Loop as ReferenceLoop


class Loop(ReferenceLoop):
    """Named as the operator is, which is how the evaluator knows what it replaces."""

    _run_body: Callable[..., Sequence[Any]]
    """Runs the body once: each node has its own."""

    def __init__(self, node: Any, settings: Any) -> None:
        super().__init__(node, settings)  # type: ignore[no-untyped-call]
        self._once, self._run_body = self._run_body, self._round

    def _run(  # type: ignore[override]
        self, rounds: Any, condition: Any, *carried: Any, **context: Any
    ) -> tuple[Any, ...]:
        self._scanned: list[Sequence[Any]] = []
        condition = np.array(True) if condition is None else condition
        results = super()._run(rounds, condition, *carried, **context)  # type: ignore[no-untyped-call]
        stacked = [np.stack(made) for made in zip(*self._scanned, strict=True)]
        return (*results[: len(results) - len(stacked)], *stacked)

    def _round(self, *inputs: Any, **context: Any) -> Sequence[Any]:
        outputs = self._once(*inputs, **context)
        self._scanned.append(outputs[len(outputs) - self.K :])
        return outputs
