"""What an ONNX file says of itself: its versions, its inputs and outputs, a line each."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import ModelProto, TypeProto, ValueInfoProto


def facts(model: ModelProto) -> Sequence[str]:
    """The versions first; an input with a default is left out."""
    domains = [f"{opset.domain} {opset.version}".strip() for opset in model.opset_import]
    given = {tensor.name for tensor in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in given]
    return [
        f"opset {', '.join(domains)}; IR version {model.ir_version}",
        *(f"input {_said(info)}" for info in inputs),
        *(f"output {_said(info)}" for info in model.graph.output),
    ]


def _said(info: ValueInfoProto) -> str:
    return f"{info.name}: {_kind(info.type)}"


def _kind(kind: TypeProto) -> str:
    """float32 1x3x224x224; an open length by its name, or ? if it has none."""
    if not kind.HasField("tensor_type"):
        return (kind.WhichOneof("value") or "of no type").removesuffix("_type")
    tensor = kind.tensor_type
    named: str = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    dtype = {"float": "float32", "double": "float64"}.get(named, named)
    if not tensor.HasField("shape"):
        return dtype
    return f"{dtype} {sizes(kind)}".rstrip()


def sizes(kind: TypeProto) -> str:
    """1x3x224x224, or batch x 3 x ? x ?: names need room between them."""
    axes = [
        axis.dim_param or (str(axis.dim_value) if axis.HasField("dim_value") else "?")
        for axis in kind.tensor_type.shape.dim
    ]
    return (" x " if any(axis[0].isalpha() for axis in axes) else "x").join(axes)
