"""The two calls: fold a model, or say what folding it would do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

from bnfold.errors import UnsupportedModelError, UsageError
from bnfold.report import FoldReport

ClipMode = Literal["auto", "always", "never"]


class FoldResult(NamedTuple):
    """The folded model and what was done."""

    model: Any
    """Of the kind that went in."""
    report: FoldReport


def fold(
    model: Any,
    inputs: Any = None,
    *,
    also: Sequence[Any] = (),
    inplace: bool = False,
    clip: ClipMode = "auto",
) -> FoldResult:
    """Remove every BatchNorm (and other constant per-channel affine step) that can go exactly.

    Args:
        model: A `torch.nn.Module` in eval mode, or a `torch.export.ExportedProgram`.
        inputs: Example inputs of a module: a tensor, a tuple of positional arguments, or a dict of
            keyword arguments. The module is run on them once; what that run does not reach is
            neither analysed nor changed. An exported program needs none.
        also: Further example inputs, for a module that takes another path through its code on
            them: the fold is then right on all paths that were taken.
        inplace: Change the given module instead of a copy.
        clip: Whether an activation may get bounds per channel (a ReLU becomes a Max or Min):
            "always", "never", or "auto" where that costs less than it saves.

    Returns:
        The folded model, of the same class, and the report.

    Raises:
        TrainingModeError: The module is in training mode.
        ExampleInputError: Inputs are missing, or the module raised on them.
        UnsupportedModelError: The model is of another kind, compiled, or scripted.
        UsageError: `clip` is not one of its three values.
    """
    _check_clip(clip)
    kind = _kind(model)
    from bnfold.frontends import torch as frontend

    if kind == "module":
        return FoldResult(
            *frontend.fold_module(model, inputs, also=also, inplace=inplace, clip=clip)
        )
    return FoldResult(*frontend.fold_program(model, clip=clip))


def inspect(
    model: Any, inputs: Any = None, *, also: Sequence[Any] = (), clip: ClipMode = "auto"
) -> FoldReport:
    """What `fold` would do, without touching anything. Arguments and errors are the same."""
    _check_clip(clip)
    kind = _kind(model)
    from bnfold.frontends import torch as frontend

    if kind == "module":
        return frontend.inspect_module(model, inputs, also=also, clip=clip)
    return frontend.inspect_program(model, clip=clip)


def _check_clip(clip: str) -> None:
    if clip not in get_args(ClipMode):
        raise UsageError(f"clip={clip!r} is not known", "use 'auto', 'always' or 'never'")


def _kind(model: Any) -> str:
    """'module' or 'program', told by the names of the classes: no framework is imported for it."""
    names = {f"{base.__module__}.{base.__qualname__}" for base in type(model).__mro__}
    if "torch.nn.modules.module.Module" in names:
        return "module"
    if "torch.export.exported_program.ExportedProgram" in names:
        return "program"
    raise UnsupportedModelError(
        f"{type(model).__module__}.{type(model).__qualname__} is not a model that bnfold knows",
        "pass a torch.nn.Module with example inputs, or a torch.export.ExportedProgram",
    )
