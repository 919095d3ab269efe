"""The two calls: fold a model, or say what folding it would do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar, overload

from bnfold._kinds import folded_beside, kind_of, opened
from bnfold._storage import Weights
from bnfold._text import printable
from bnfold.core.modes import ClipMode, MergeMode
from bnfold.frontend import Frontend, Request, check, frontend_of
from bnfold.report import FoldReport

if TYPE_CHECKING:
    import onnx
    import onnx_ir
    from torch import nn
    from torch.export import ExportedProgram

Pathlike = str | os.PathLike[str]
Model = TypeVar("Model", covariant=True)
Module = TypeVar("Module", bound="nn.Module")
Graph = TypeVar("Graph", bound="ExportedProgram | onnx.ModelProto | onnx_ir.Model")


class FoldResult(NamedTuple, Generic[Model]):
    """The folded model and what was done; to type checkers, a `FoldResult[ResNet]` of a ResNet."""

    model: Model
    """Of the kind that went in; for a path, the path that was written."""
    report: FoldReport

    def __str__(self) -> str:
        """The report: a model's own text can be pages long."""
        return str(self.report)

    def __repr__(self) -> str:
        """In a line, as a prompt echoes it."""
        model = self.model if isinstance(self.model, Path) else type(self.model).__name__
        verdict = self.report.verdict
        parts = [
            self.report.summary,
            self.report.merged_summary,
            verdict.summary if verdict else "",
        ]
        return printable(f"<FoldResult of {model}: {'; '.join(part for part in parts if part)}>")

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


@overload
def fold(
    model: Module,
    inputs: Any,
    *,
    also: Sequence[Any] = (),
    inplace: bool = False,
    clip: ClipMode = "auto",
    merge: MergeMode = "auto",
    verify: bool = True,
    keep: Sequence[str] = (),
    entry: Sequence[str] = (),
) -> FoldResult[Module]: ...
@overload
def fold(
    model: Graph,
    inputs: Mapping[str, Sequence[int]] | None = None,
    *,
    clip: ClipMode = "auto",
    merge: MergeMode = "auto",
    verify: bool = True,
    weights: Weights = "stored",
) -> FoldResult[Graph]: ...
@overload
def fold(
    model: Pathlike | tuple[Pathlike, Pathlike],
    inputs: Mapping[str, Sequence[int]] | None = None,
    *,
    clip: ClipMode = "auto",
    merge: MergeMode = "auto",
    verify: bool = True,
    output: Pathlike | None = None,
    force: bool = False,
    phase: Literal["test"] | None = None,
    weights: Weights = "stored",
) -> FoldResult[Path]: ...
def fold(
    model: Any,
    inputs: Any = None,
    *,
    also: Sequence[Any] = (),
    inplace: bool = False,
    clip: ClipMode = "auto",
    merge: MergeMode = "auto",
    verify: bool = True,
    keep: Sequence[str] = (),
    entry: Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    phase: Literal["test"] | None = None,
    weights: Weights = "stored",
) -> FoldResult[Any]:
    """Remove every BatchNorm (and other constant per-channel affine step) that can go exactly.

    Args:
        model: A `torch.nn.Module` in eval mode, a `torch.export.ExportedProgram`, an
            `onnx.ModelProto`, an `onnx_ir.Model`, or the path of an .onnx file; for Caffe the path
            of a .prototxt file (with the .caffemodel beside it), or the pair of both paths.
        inputs: For a module, example inputs: a tensor, a tuple of positional arguments, a dict of
            keyword arguments, or the pair of such a tuple and such a dict. The module is run on
            them once; what that run does not reach is
            neither analysed nor changed. For ONNX, a mapping of input names to shapes: they stand
            in for open dimensions while the model is analysed, and the output keeps those open;
            where no other shapes go through the network, a note says that only these are sure.
        also: Further example inputs, for a module that takes another path through its code on
            them: the fold is then right on all paths that were taken.
        inplace: Change the given module instead of a copy.
        clip: Whether an activation may get bounds per channel (a ReLU becomes a Max or Min):
            "always", "never", or "auto" where that costs less than it saves.
        merge: Whether linear ops that can be one become one: the branches of a RepVGG or MobileOne
            block, a convolution beside an identity, two convolutions in a row. "auto" where that
            costs no more multiplications and no larger weights, or "never".
        verify: For a module or program, whether to run original and folded model and compare them
            before returning: on the example inputs, then on other values of their shapes; a
            program with open sizes on a second size. Where they part, the steps to blame are found
            and kept. About four forward passes. Files are verified by the command, or with
            `bnfold.verify`.
        keep: For a module, names of submodules ("encoder", "layer1.0.bn2") that stay as they are
            and whose outputs keep their values, because somebody else calls or reads them.
        entry: For a module, other methods that are called on the folded one ("forward_features",
            "encoder.forward"): run on the same inputs, and their outputs keep their values, too.
        output: For a path, where the folded file goes; model.folded.onnx beside it by default.
        force: For a path, overwrite the output if it exists.
        phase: For Caffe, "test" folds what the TEST phase computes of a file that has layers for
            training, too; without it such a file is refused.
        weights: For ONNX and Caffe, how weights that change are stored whose storage is coarser
            than the network's arithmetic, as float16 is in a Caffe file: "stored" rounds them to
            that once more, and a note says so; "float32" stores them in float32. What does not
            change stays as it is.

    Returns:
        The folded model, of the same class, and the report. For a path, the path of the output.

    Raises:
        TrainingModeError: The module is in training mode.
        ExampleInputError: Inputs are missing, or the module raised on them.
        UnsupportedModelError: The model is of another kind, compiled, or scripted.
        ModelUnreadableError: The file is missing or damaged, or not what its name says.
        NotProvenError: The model differs from itself, so no fold of it can be proven.
        UsageError: `clip`, `merge` or `weights` is not one of its values, an option means nothing
            for this kind of model, or the output exists or cannot be written.
        MissingExtraError: A package that reads this kind of model is not installed.
    """
    request = Request(
        inputs=inputs,
        also=also,
        inplace=inplace,
        clip=clip,
        merge=merge,
        verify=verify,
        keep=_names(keep),
        entry=_names(entry),
        output=None if output is None else Path(output),
        force=force,
        phase=phase,
        weights=weights,
    )
    frontend, model, request = _asked(model, request)
    frontend.check(model, request)
    with closing(frontend.fold(model, request)) as folded:
        return FoldResult(folded.deliver(), folded.report)


def inspect(
    model: Any,
    inputs: Any = None,
    *,
    also: Sequence[Any] = (),
    clip: ClipMode = "auto",
    merge: MergeMode = "auto",
    keep: Sequence[str] = (),
    entry: Sequence[str] = (),
    phase: Literal["test"] | None = None,
    weights: Weights = "stored",
) -> FoldReport:
    """What `fold` would do, without touching anything. Arguments and errors are the same."""
    request = Request(
        inputs=inputs,
        also=also,
        clip=clip,
        merge=merge,
        keep=_names(keep),
        entry=_names(entry),
        phase=phase,
        weights=weights,
    )
    frontend, model, request = _asked(model, request)
    return frontend.inspect(model, request).report


def _names(given: Sequence[str] | None) -> tuple[str, ...]:
    """Several names; one is that name, not its letters."""
    return (given,) if isinstance(given, str) else tuple(given or ())


def _asked(model: Any, request: Request) -> tuple[Frontend, Any, Request]:
    """Who answers, the model as it is taken there, and where a file goes if nobody says."""
    kind = kind_of(model)
    check(kind, request)
    frontend = frontend_of(kind)
    given = opened(kind, model)
    if kind.is_file and request.output is None:
        named = given if isinstance(given, Path) else given[0]
        request = replace(request, output=folded_beside(named, kind.suffix))
    return frontend, given, request
