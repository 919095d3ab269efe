"""Another opset: onnx's own converter, and around it what it would lose or trip over.

    local functions      it drops them: their nodes are put in the place of the calls before
    IR version below 4   there it knows no initializer that is no input: it is shown a 4
    IR version           raised to the least that goes with the opset
    large tensors        it sees the message without their content, and passes them on

It has no way back for many operators, and none at all for what the format cannot say; then nothing
is changed. What it computes is not its business: who folds compares both.
https://onnx.ai/onnx/api/version_converter.html
"""

from __future__ import annotations

import re

import onnx
from onnx import ModelProto, helper, inliner, version_converter

from bnfold.errors import UnsupportedModelError, UsageError
from bnfold.frontends.onnx.nodes import read_network
from bnfold.frontends.onnx.read import OnnxModel

LOWEST = 7
"""Before it, operators of two tensors broadcast otherwise."""


def convert(model: OnnxModel, opset: int) -> str:
    """Convert the model in place; says from what to what."""
    newest = onnx.defs.onnx_opset_version()
    if not LOWEST <= opset <= newest:
        raise UsageError(
            f"{model.name}: onnx {onnx.__version__} converts to opsets {LOWEST} to {newest}, and"
            f" {opset} was asked for",
            "choose one of these" if opset < newest else "choose one of these, or update onnx",
        )
    _check(model, opset)
    before = read_network(model.name, model.proto).opset
    if before == opset:
        return f"opset {opset}, as it was"
    source = ModelProto()
    source.CopyFrom(model.proto)
    inlined = len(source.functions)
    try:
        if inlined:
            source = inliner.inline_local_functions(source)
        made = version_converter.convert_version(_ready(source), opset)
    except Exception as error:  # the C++ side's, whatever it is
        raise UnsupportedModelError(
            f"{model.name}: opset {before} cannot become {opset}: {_reason(error)}",
            "try an opset nearer to its own, or export the model with that one",
        ) from error
    _check_whole(model, made, opset)
    least = helper.find_min_ir_version_for(made.opset_import, ignore_unknown=True)
    made.ir_version = max(model.proto.ir_version, least)
    made.graph.quantization_annotation.extend(model.proto.graph.quantization_annotation)
    model.proto.CopyFrom(made)
    calls = f", {inlined} local functions inlined" if inlined else ""
    return f"opset {before} became {opset}{calls}"


def _ready(proto: ModelProto) -> ModelProto:
    """With ONNX's own domain under its one name that the converter knows."""
    proto.ir_version = max(proto.ir_version, 4)
    for opset in proto.opset_import:
        if opset.domain == "ai.onnx":
            opset.domain = ""
    for node in proto.graph.node:
        if node.domain == "ai.onnx":
            node.domain = ""
    del proto.graph.quantization_annotation[:]
    return proto


def _check(model: OnnxModel, opset: int) -> None:
    graph = model.proto.graph
    held = "sparse initializers" if graph.sparse_initializer else ""
    held = "how to train it" if model.proto.training_info else held
    if held:
        raise UnsupportedModelError(
            f"{model.name} holds {held}, which onnx's converter would lose",
            f"export it with opset {opset}, for inference",
        )


def _check_whole(model: OnnxModel, made: ModelProto, opset: int) -> None:
    """Raise UnsupportedModelError where something that users know is gone."""
    old, new = model.proto.graph, made.graph
    for what, before, after in (
        ("input", old.input, new.input),
        ("output", old.output, new.output),
        ("initializer", old.initializer, new.initializer),
    ):
        gone = {item.name for item in before} - {item.name for item in after}
        if gone:
            raise UnsupportedModelError(
                f"{model.name}: onnx's converter to opset {opset} loses the {what} {min(gone)!r}",
                "export the model with that opset",
            )


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    match = re.search(r"No Adapter (?:To|From) Version \$(\d+) for (\w+)", text)
    if match:
        return f"onnx cannot convert {match[2]} at opset {match[1]}"
    return text.rpartition("failed: ")[2].rstrip(". ")
