"""Edit a model before it is folded: a part of it, sizes that were open, another opset.

    cut      between tensors that become inputs and outputs      edit_cut
    fix      the sizes of inputs, and what follows from them     edit_sizes
    convert  to another version of ONNX's operators              edit_opset

In this order: names are those of the model as it is, and the converter wants to know sizes. All
work on the message without the content of large tensors, which stays where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bnfold.frontends.onnx.edit_cut import cut
from bnfold.frontends.onnx.edit_opset import convert
from bnfold.frontends.onnx.edit_sizes import fix_sizes
from bnfold.frontends.onnx.read import OnnxModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What is asked for."""

    inputs: Sequence[str] = ()
    """Tensors that become inputs: what makes them goes, where nothing else needs it."""
    outputs: Sequence[str] = ()
    """Tensors that become the outputs; none for those that there are."""
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """The sizes of inputs, by name; "" is the only input."""
    opset: int | None = None
    """The version of ONNX's operators."""

    def __bool__(self) -> bool:
        return bool(self.inputs or self.outputs or self.shapes or self.opset is not None)


def edit(model: OnnxModel, edits: Edits) -> list[str]:
    """Edit the model in place; what was done comes back, a line each.

    Raises UsageError for what the model has not, and UnsupportedModelError for what it cannot be.
    """
    done = []
    if edits.inputs or edits.outputs:
        done.append(cut(model, edits.inputs, edits.outputs))
    if edits.shapes:
        done += fix_sizes(model, edits.shapes)
    if edits.opset is not None:
        done.append(convert(model, edits.opset))
    return done
