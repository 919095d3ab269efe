"""bnfold where ONNX models are optimised: a pass for the pipelines of onnx_ir, and edits.

    small = bnfold.onnx.edit(model, shapes={"image": (1, 3, 224, 224)}, outputs=["features"])

    fold = bnfold.onnx.FoldPass()
    onnx_ir.passes.Sequential(fold, RemoveUnusedNodesPass(), ...)(model)
    print(fold.reports[-1].summary)

`import bnfold` does not load this module.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from bnfold._storage import Weights
from bnfold.core.modes import ClipMode
from bnfold.errors import MissingExtraError, UsageError
from bnfold.formats import ModelKind
from bnfold.frontend import Request, check
from bnfold.report import FoldReport

try:
    import onnx
    import onnx_ir
    from onnx_ir.passes import InPlacePass, PassResult
except ImportError as error:
    raise MissingExtraError("onnx", "onnx") from error

__all__ = ["FoldPass", "FoldPassResult", "edit"]

Pathlike = str | os.PathLike[str]


@overload
def edit(
    model: Pathlike,
    *,
    output: Pathlike,
    shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    opset: int | None = None,
    force: bool = False,
) -> Path: ...
@overload
def edit(
    model: onnx.ModelProto,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    opset: int | None = None,
) -> onnx.ModelProto: ...
def edit(
    model: Any,
    *,
    output: Pathlike | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    opset: int | None = None,
    force: bool = False,
) -> Any:
    """Edit a model before it is folded, as the options of the command do.

    Args:
        model: A path, or an `onnx.ModelProto`, which is left as it was.
        output: For a path, where the edited file goes.
        shapes: The sizes that inputs have from now on, by name.
        inputs: Tensors that become inputs: what makes them goes, where nothing else needs it. Other
            inputs stay as long as an output depends on them.
        outputs: Tensors that become the outputs; the others go, and what only they need.
        opset: The version of ONNX's operators to convert to, by onnx's own converter. Compare the
            result with `bnfold.verify`.
        force: For a path, overwrite the output if it exists.

    Returns:
        The edited model; for a path, the path of the output.

    Raises:
        UsageError: The model has no such tensor or input, a size cannot be, or the output exists.
        UnsupportedModelError: The model cannot be converted to that opset, or not be cut.
        ModelUnreadableError: The file is missing or damaged.
    """
    from bnfold.frontends.onnx.edit_file import edit_in_memory, edit_to
    from bnfold.frontends.onnx.edit_model import Edits

    edits = Edits(inputs=inputs, outputs=outputs, shapes=shapes or {}, opset=opset)
    if isinstance(model, onnx.ModelProto):
        return edit_in_memory(model, edits)
    if not isinstance(model, str | os.PathLike):
        raise UsageError(
            f"a path or an onnx.ModelProto is edited, and {type(model).__name__} was given",
            "pass onnx_ir.to_proto(model), or the path of the file",
        )
    if output is None:
        raise UsageError("a file is edited into another one", "say where with output=")
    return edit_to(Path(model), Path(output), edits, force=force)


@dataclass
class FoldPassResult(PassResult):
    """What a `FoldPass` returns: the model, whether it was modified, and the report."""

    report: FoldReport
    """What was removed and what was kept, as `bnfold.fold` returns it."""


class FoldPass(InPlacePass):
    """A pass of onnx_ir that removes every BatchNormalization that can go exactly.

    It also removes any other constant affine step per channel, as `bnfold.fold` does. The model is
    changed in place: it gets a new graph, so values and nodes that were taken from the old one are
    no longer in it. Where there is nothing to remove, the model is left untouched and `modified` is
    False. `onnx_ir.passes.functionalize(FoldPass())` leaves the model alone and returns another.

    Large initializers are not loaded for it: those in files stay there, and those that change are
    computed when somebody asks for them.

    Args:
        inputs: A mapping of input names to shapes, for those that the model leaves open: see
            `bnfold.fold`.
        clip: Whether an activation may get bounds per channel (a ReLU becomes a Max or Min):
            "always", "never", or "auto" where that costs less than it saves.
        weights: How weights that change are stored where they were stored in fewer bits than the
            network computes in: "stored" or "float32"; see `bnfold.fold`.

    Raises:
        UsageError: `clip` or `weights` is not one of its values, or `inputs` no mapping.
    """

    def __init__(
        self,
        inputs: Mapping[str, Sequence[int]] | None = None,
        *,
        clip: ClipMode = "auto",
        weights: Weights = "stored",
    ) -> None:
        self.request = Request(inputs=inputs, clip=clip, weights=weights)
        check(ModelKind.ONNX_IR, self.request)
        self.reports: list[FoldReport] = []
        """One for each run, the last one last: a pipeline hands no result of its passes on."""

    def call(self, model: onnx_ir.Model) -> FoldPassResult:
        """Fold the model. Raises what `bnfold.fold` raises; a pipeline wraps it in a PassError."""
        from bnfold.frontends.onnx.fold import fold_in_place

        modified, report = fold_in_place(model, self.request)
        self.reports.append(report)
        return FoldPassResult(model, modified, report)
