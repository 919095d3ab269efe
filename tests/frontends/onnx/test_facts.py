"""What an ONNX file says of itself."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from bnfold.frontends.onnx.facts import facts


def info(name: str, kind: int, shape: list[int | str | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def test_every_form() -> None:
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [2]))
    untyped = onnx.ValueInfoProto(name="untyped")
    inputs = [
        info("image", TensorProto.FLOAT, ["batch", 3, None, 224]),
        info("ids", TensorProto.INT64, None),
        info("scalar", TensorProto.DOUBLE, []),
        info("given", TensorProto.FLOAT, [1]),
        helper.make_value_info("boxes", sequence),
    ]
    given = helper.make_tensor("given", TensorProto.FLOAT, [1], [1.0])
    graph = helper.make_graph([], "net", inputs, [untyped], [given])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    assert facts(helper.make_model(graph, opset_imports=opsets, ir_version=8)) == [
        "opset 17, com.microsoft 1; IR version 8",
        "input image: float32 batch x 3 x ? x 224",
        "input ids: int64",
        "input scalar: float64",
        "input boxes: sequence",
        "output untyped: of no type",
    ]
