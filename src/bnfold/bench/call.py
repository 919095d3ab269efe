"""The call: which frontend runs these models, and what is folded on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from bnfold._kinds import ModelKind, kind_of
from bnfold.api import fold
from bnfold.bench.result import BenchResult
from bnfold.bench.rows import FOLDED, ORIGINAL
from bnfold.bench.run import Found, Progress, run
from bnfold.bench.settings import Wishes
from bnfold.bench.timing import Budget
from bnfold.core.modes import ClipMode
from bnfold.errors import UsageError
from bnfold.frontend import folder_of, frontend_of

TORCH_FX = "torch.fx"
_MOST_SECONDS, _MOST_ROUNDS = 86_400, 1_000_000
"""A day, in one runtime and setting; of the rounds all times are kept."""


def bench(
    model: Any,
    folded: Any = None,
    inputs: Any = None,
    *,
    others: Mapping[str, Any] | None = None,
    against: Sequence[Literal["torch.fx"]] = (),
    runtimes: Sequence[str] | None = None,
    device: str = "cpu",
    dtype: str | Sequence[str] | None = None,
    layout: str | Sequence[str] | None = None,
    batch: int | Sequence[int] | None = None,
    threads: int | Sequence[int] | None = None,
    seconds: float = 3.0,
    rounds: int | None = None,
    clip: ClipMode = "auto",
    progress: Progress | None = None,
    found: Found | None = None,
) -> BenchResult:
    """Measure how long a model takes before and after folding. No model is changed.

    All variants are called in turn, in one process, and compared round by round; every
    combination of dtype, layout, batch and threads is measured by itself.

    Args:
        model: What `fold` takes: a module in eval mode, an exported program, an ONNX model or the
            path of one. Caffe networks cannot be measured.
        folded: The folded model, of the same kind; without it `model` is folded first.
        inputs: For a module, example inputs as `fold` takes them; a program brings its own. For
            ONNX, a mapping of input names to shapes, for those that the model leaves open.
        others: More variants by name, of the same kind, to be measured beside the two.
        against: "torch.fx" folds a module with PyTorch's own tool as well.
        runtimes: Of PyTorch: "eager" (the default), "compile" (`torch.compile`) and "cuda graph".
            Of ONNX: "onnxruntime", without its own optimisations (the default), and
            "onnxruntime optimised".
        device: "cpu", "cuda", or "cuda:1".
        dtype: PyTorch only: "float32", "float16", "bfloat16" or "float64", one or several.
        layout: PyTorch only: "contiguous" or "channels_last", one or several.
        batch: Lengths of the inputs' first axis, one or several.
        threads: Numbers of processor threads up to 1024, one or several.
        seconds: How long to measure in each runtime and setting, at least nine rounds.
        rounds: Exactly so many rounds instead.
        clip: As for `fold`, where `model` is folded first.
        progress: Is called with the part of the work that is done.
        found: Is called with the result so far, after each runtime of each setting.

    Returns:
        Times and ratios, one row for each variant, runtime and setting.

    Raises:
        UsageError: An option means nothing for this kind of model, or the original or the folded
            model cannot be run in that way.
        BnfoldError: Whatever `fold` raises.
    """
    wishes = Wishes(device, _several(dtype), _several(layout), _several(batch), _several(threads))
    kind = kind_of(model)
    frontend = frontend_of(kind)
    if not frontend.IS_TIMED:
        frontend.subject({}, None, None, wishes)  # says where to measure instead
    _check(kind, model, {FOLDED: folded, **(others or {})}, against, seconds, rounds)
    budget = Budget(seconds=seconds, rounds=rounds)
    with ExitStack() as stack:
        if folded is None:
            folded = _folded(kind, model, inputs, clip, stack)
        models = {ORIGINAL: model, FOLDED: folded}
        if TORCH_FX in against:
            from bnfold.frontends.torch.runtimes import fold_with_torch_fx

            models[TORCH_FX] = fold_with_torch_fx(model)
        models.update(others or {})
        subject = frontend.subject(models, inputs, runtimes, wishes)
        return run(subject, budget, progress or (lambda part: None), found)


def _several(value: Any) -> Any:
    """One value is a list of one."""
    return value if value is None or not isinstance(value, str | int) else (value,)


def _check(
    kind: ModelKind,
    model: Any,
    others: Mapping[str, Any],
    against: Sequence[str],
    seconds: float,
    rounds: int | None,
) -> None:
    for name, variant in others.items():
        if variant is not None and folder_of(kind_of(variant)) != folder_of(kind):
            raise UsageError(
                f"the original is a {kind.value}, and {name} is not: they run in different"
                " runtimes, and that is what would be measured",
                "pass two models of one kind",
            )
    unknown = [name for name in against if name != TORCH_FX]
    if unknown or (against and kind is not ModelKind.MODULE):
        raise UsageError(
            f"against={list(against)} is not known for this kind of model ({kind.value})",
            "use ['torch.fx'] for a module, or pass models of your own as others={name: model}",
        )
    if not seconds > 0 or (rounds is not None and rounds < 1):
        raise UsageError(
            f"seconds={seconds} and rounds={rounds} leave nothing to measure",
            "use numbers above 0",
        )
    if seconds > _MOST_SECONDS or (rounds is not None and rounds > _MOST_ROUNDS):
        raise UsageError(
            f"seconds={seconds} and rounds={rounds} would not come to an end",
            f"use at most {_MOST_SECONDS} seconds and {_MOST_ROUNDS} rounds",
        )


def _folded(kind: ModelKind, model: Any, inputs: Any, clip: ClipMode, stack: ExitStack) -> Any:
    """The model, folded; a file goes where it vanishes with the measurement."""
    if kind is ModelKind.PROGRAM:
        return fold(model, clip=clip).model
    if kind is not ModelKind.ONNX_FILE:
        return fold(model, inputs, clip=clip).model
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    return fold(model, inputs, clip=clip, output=folder / "folded.onnx").model
