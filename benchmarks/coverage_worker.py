"""Folds one network with one tool and prints what came of it as one line of JSON.

`benchmarks.coverage` starts it in a process of its own, so that memory goes back to the system and
a crash costs one row:

    python -m benchmarks.coverage_worker timm:resnet50 resnet bnfold

The order: count the batch norms and remember the outputs in float64, fold, compare; then the same
in float32 on the same network. Two inputs are compared, one of them unknown to the fold.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage_record import Outcome, Record
from benchmarks.measure import count_batchnorms, outputs, relative_error
from benchmarks.peers import fold_with_torch_fx
from benchmarks.zoo import create

WRONG_FROM = 1e-6
"""Relative error in float64 that rounding cannot explain."""


@dataclass(frozen=True, slots=True)
class _Folded:
    model: nn.Module
    seconds: float
    kept: dict[str, int]


def main(arguments: list[str] | None = None) -> int:
    """Run one network; the exit code is 0 whatever came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("family")
    parser.add_argument("tool", choices=("bnfold", "torch_fx"))
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    # What libraries print must not mix with the answer.
    with contextlib.redirect_stdout(sys.stderr):
        record = measure(Record(options.name, options.family, options.tool, Outcome.FAILED))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(replace(record, peak_mebibytes=peak).to_line())
    return 0


def measure(record: Record) -> Record:
    """Fill in `record`; an exception on the way ends it with its outcome."""
    try:
        model, example = create(record.name, dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        other = torch.randn(example.shape, generator=generator, dtype=example.dtype)
        inputs = [example, other]
        record = replace(record, before=count_batchnorms(model, example))
        record, exact = _measure_float64(record, model, inputs)
        return _measure_float32(record, model, inputs, exact)
    except Exception as error:  # every way to fail is a result here
        return _ended_by(record, error)


def _measure_float64(
    record: Record, model: nn.Module, inputs: list[Tensor]
) -> tuple[Record, list[Tensor]]:
    expected = outputs(model, inputs)
    folded = _fold(record.tool, model, inputs[0])
    error = relative_error(expected, outputs(folded.model, inputs))
    record = replace(
        record,
        outcome=Outcome.FOLDED,
        after=count_batchnorms(folded.model, inputs[0]),
        error_float64=error,
        kept=folded.kept,
    )
    if relative_error(expected, outputs(model, inputs)) > 0:
        record = replace(record, outcome=Outcome.WRONG, detail="the original was changed")
    if error > WRONG_FROM:
        record = replace(record, outcome=Outcome.WRONG, detail=f"relative error {error:.1e}")
    return record, expected


def _measure_float32(
    record: Record, model: nn.Module, inputs: list[Tensor], exact: list[Tensor]
) -> Record:
    model = model.float()
    inputs = [value.float() for value in inputs]
    expected = outputs(model, inputs)
    folded = _fold(record.tool, model, inputs[0])
    return replace(
        record,
        error_float32=relative_error(expected, outputs(folded.model, inputs)),
        noise_float32=relative_error(exact, expected),
        seconds=folded.seconds,
    )


def _fold(tool: str, model: nn.Module, example: Tensor) -> _Folded:
    if tool == "torch_fx":
        start = time.perf_counter()
        result = fold_with_torch_fx(model, example)
        return _Folded(result, time.perf_counter() - start, {})
    import bnfold

    start = time.perf_counter()
    folded = bnfold.fold(model, example)
    seconds = time.perf_counter() - start
    return _Folded(folded.model, seconds, _kept_reasons(folded.report))


def _kept_reasons(report: Any) -> dict[str, int]:
    reasons = (getattr(item.reason, "value", item.reason) for item in report.items)
    return dict(Counter(str(reason) for reason in reasons if reason is not None))


def _ended_by(record: Record, error: Exception) -> Record:
    own = type(error).__module__.partition(".")[0] == "bnfold"
    first_line = (str(error).strip().splitlines() or [""])[0]
    return replace(
        record,
        outcome=Outcome.REFUSED if own else Outcome.FAILED,
        detail=f"{type(error).__name__}: {first_line}"[:200],
    )


if __name__ == "__main__":
    sys.exit(main())
