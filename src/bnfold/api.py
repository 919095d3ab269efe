"""The two calls: fold a model, or say what folding it would do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar, get_args, overload

from bnfold._kinds import ModelKind, caffe_files, folded_beside, kind_of
from bnfold.errors import UsageError
from bnfold.report import FoldReport

if TYPE_CHECKING:
    import onnx
    import onnx_ir
    from torch import nn
    from torch.export import ExportedProgram

ClipMode = Literal["auto", "always", "never"]

Pathlike = str | os.PathLike[str]
Model = TypeVar("Model", covariant=True)
Module = TypeVar("Module", bound="nn.Module")
Graph = TypeVar("Graph", bound="ExportedProgram | onnx.ModelProto | onnx_ir.Model")


class FoldResult(NamedTuple, Generic[Model]):
    """The folded model and what was done; to type checkers, a `FoldResult[ResNet]` of a ResNet."""

    model: Model
    """Of the kind that went in; for a path, the path that was written."""
    report: FoldReport

    def _repr_html_(self) -> str:
        """In a notebook: the report; a model's own text can be pages long."""
        return self.report._repr_html_()


@overload
def fold(
    model: Module,
    inputs: Any,
    *,
    also: Sequence[Any] = (),
    inplace: bool = False,
    clip: ClipMode = "auto",
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
    verify: bool = True,
) -> FoldResult[Graph]: ...
@overload
def fold(
    model: Pathlike | tuple[Pathlike, Pathlike],
    inputs: Mapping[str, Sequence[int]] | None = None,
    *,
    clip: ClipMode = "auto",
    verify: bool = True,
    output: Pathlike | None = None,
    force: bool = False,
    phase: Literal["test"] | None = None,
) -> FoldResult[Path]: ...
def fold(
    model: Any,
    inputs: Any = None,
    *,
    also: Sequence[Any] = (),
    inplace: bool = False,
    clip: ClipMode = "auto",
    verify: bool = True,
    keep: Sequence[str] = (),
    entry: Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    phase: Literal["test"] | None = None,
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

    Returns:
        The folded model, of the same class, and the report. For a path, the path of the output.

    Raises:
        TrainingModeError: The module is in training mode.
        ExampleInputError: Inputs are missing, or the module raised on them.
        UnsupportedModelError: The model is of another kind, compiled, or scripted.
        ModelUnreadableError: The file is missing or damaged, or not what its name says.
        NotProvenError: The model differs from itself, so no fold of it can be proven.
        UsageError: `clip` is not one of its three values, an option means nothing for this kind
            of model, or the output exists or cannot be written.
        MissingExtraError: A package that reads this kind of model is not installed.
    """
    check_clip(clip)
    kind = kind_of(model)
    _check_options(
        kind,
        inputs,
        also=also,
        keep=keep,
        entry=entry,
        inplace=inplace,
        output=output,
        force=force,
        phase=phase,
    )
    if kind is ModelKind.CAFFE_FILES:
        return _fold_caffe(model, clip, output, force=force, phase=phase)
    if kind in _ONNX:
        return _fold_onnx(kind, model, inputs, clip, output, force=force)
    from bnfold.frontends import torch as frontend

    if kind is ModelKind.MODULE:
        return FoldResult(
            *frontend.fold_module(
                model,
                inputs,
                also=also,
                inplace=inplace,
                clip=clip,
                verify=verify,
                keep=keep,
                entry=entry,
            )
        )
    return FoldResult(*frontend.fold_program(model, clip=clip, verify=verify))


def inspect(
    model: Any,
    inputs: Any = None,
    *,
    also: Sequence[Any] = (),
    clip: ClipMode = "auto",
    keep: Sequence[str] = (),
    entry: Sequence[str] = (),
    phase: Literal["test"] | None = None,
) -> FoldReport:
    """What `fold` would do, without touching anything. Arguments and errors are the same."""
    check_clip(clip)
    kind = kind_of(model)
    _check_options(kind, inputs, also=also, keep=keep, entry=entry, phase=phase)
    if kind is ModelKind.CAFFE_FILES:
        from bnfold.frontends import caffe

        return caffe.inspect_files(*caffe_files(model), clip=clip, phase=phase)
    if kind in _ONNX:
        from bnfold.frontends import onnx

        return onnx.inspect_model(model, inputs, clip=clip)
    from bnfold.frontends import torch as frontend

    if kind is ModelKind.MODULE:
        return frontend.inspect_module(model, inputs, also=also, clip=clip, keep=keep, entry=entry)
    return frontend.inspect_program(model, clip=clip)


_ONNX = (ModelKind.ONNX_PROTO, ModelKind.ONNX_IR, ModelKind.ONNX_FILE)


def _fold_onnx(
    kind: ModelKind,
    model: Any,
    inputs: Mapping[str, Sequence[int]] | None,
    clip: ClipMode,
    output: str | os.PathLike[str] | None,
    *,
    force: bool,
) -> FoldResult[Any]:
    from bnfold.frontends import onnx

    if kind is ModelKind.ONNX_FILE:
        path = Path(model)
        target = folded_beside(path, ".onnx") if output is None else Path(output)
        report = onnx.fold_file(path, target, inputs, clip=clip, force=force)
        return FoldResult(target, report)
    return FoldResult(*onnx.fold_model(model, inputs, clip=clip))


def _fold_caffe(
    model: Any,
    clip: ClipMode,
    output: str | os.PathLike[str] | None,
    *,
    force: bool,
    phase: Literal["test"] | None,
) -> FoldResult[Any]:
    from bnfold.frontends import caffe

    network, weights = caffe_files(model)
    target = folded_beside(network, ".prototxt") if output is None else Path(output)
    return FoldResult(
        *caffe.fold_files(network, weights, target, clip=clip, force=force, phase=phase)
    )


def check_clip(clip: str) -> None:
    """Raise UsageError for what is no `ClipMode`."""
    if clip not in get_args(ClipMode):
        raise UsageError(f"clip={clip!r} is not known", "use 'auto', 'always' or 'never'")


def _check_options(
    kind: ModelKind,
    inputs: Any,
    *,
    also: Sequence[Any],
    keep: Sequence[str] = (),
    entry: Sequence[str] = (),
    inplace: bool = False,
    output: object = None,
    force: bool = False,
    phase: str | None = None,
) -> None:
    """Raise UsageError for options that mean nothing for this kind of model."""
    is_module = kind is ModelKind.MODULE
    meaningless = {
        "also": not is_module and len(also) > 0,
        "entry": bool(entry) and not is_module,
        "keep": bool(keep) and not is_module,
        "inplace": inplace and not is_module,
        "output": output is not None and not kind.is_file,
        "force": force and not kind.is_file,
        "inputs": inputs is not None and kind is ModelKind.CAFFE_FILES,
        "phase": phase is not None and kind is not ModelKind.CAFFE_FILES,
    }
    for option, is_given in meaningless.items():
        if is_given:
            raise UsageError(
                f"{option} means nothing for this kind of model ({kind.value})", "leave it out"
            )
    if inputs is not None and kind in _ONNX and not isinstance(inputs, Mapping):
        raise UsageError(
            "inputs of an ONNX model are shapes by name",
            "pass a mapping like {'input': (1, 3, 224, 224)}, or leave them out",
        )
