"""Small ONNX models for tests, and running them without ONNX Runtime's own optimisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]


class Sketch:
    """Collects nodes and initializers; statistics are random per channel, some gammas negative."""

    def __init__(
        self, *shape: int | str, seed: int = 0, data_type: int = TensorProto.FLOAT
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.data_type = data_type
        self.dtype = helper.tensor_dtype_to_np_dtype(data_type)
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("x", data_type, shape)]
        self.at = "x"

    def constant(self, name: str, array: Any) -> str:
        """An initializer."""
        array = np.asarray(array)
        if array.dtype.kind == "f":
            array = array.astype(self.dtype)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        """An initializer of random numbers."""
        return self.constant(name, self.rng.normal(size=shape))

    def node(
        self, op: str, *inputs: str, name: str = "", output: str = "", **attributes: Any
    ) -> str:
        """A node that reads the last output, or what is given; its output is the last then."""
        name = name or f"{op.lower()}{len(self.nodes)}"
        output = output or f"{name}_out"
        given = list(inputs) if inputs else [self.at]
        self.nodes.append(helper.make_node(op, given, [output], name=name, **attributes))
        self.at = output
        return output

    def conv(
        self, ins: int, outs: int, kernel: int = 3, *, name: str = "conv", **options: Any
    ) -> str:
        """A convolution without bias."""
        groups = options.get("group", 1)
        weight = self.weight(f"{name}_w", outs, ins // groups, kernel, kernel)
        return self.node("Conv", self.at, weight, name=name, **options)

    def bn(self, channels: int, *, name: str = "bn", **options: Any) -> str:
        """A BatchNormalization."""
        gamma = self.rng.uniform(0.5, 2.0, channels) * (1 - 2 * (np.arange(channels) % 2))
        parts = (gamma, self.rng.normal(size=channels), self.rng.normal(size=channels))
        names = [self.constant(f"{name}_{k}", v) for k, v in zip("gbm", parts, strict=True)]
        names.append(self.constant(f"{name}_v", self.rng.uniform(0.5, 2.0, channels)))
        return self.node("BatchNormalization", self.at, *names, name=name, **options)

    def model(self, *outputs: str, opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
        """The model; it returns the last value if no outputs are named."""
        made = [
            helper.make_tensor_value_info(name, self.data_type, None)
            for name in outputs or (self.at,)
        ]
        graph = helper.make_graph(self.nodes, "sketch", self.inputs, made, self.initializers)
        opsets = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def run(model: onnx.ModelProto, *shapes: Sequence[int], seed: int = 1) -> list[Array]:
    """What a model computes from random inputs of these shapes."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(seed)
    dtypes = {"tensor(float)": np.float32, "tensor(double)": np.float64}
    feeds = {
        info.name: (
            rng.integers(0, 3, shape)
            if info.type == "tensor(int64)"
            else rng.normal(size=shape).astype(dtypes.get(info.type, np.float16))
        )
        for info, shape in zip(session.get_inputs(), shapes, strict=True)
    }
    return list(session.run(None, feeds))


def ops(model: onnx.ModelProto) -> list[str]:
    """The operators of a model, in order."""
    return [node.op_type for node in model.graph.node]


def assert_same(
    model: onnx.ModelProto, folded: onnx.ModelProto, *shapes: Sequence[int], tolerance: float = 2e-5
) -> None:
    """Both compute the same, up to a rounding relative to the largest value."""
    for expected, actual in zip(run(model, *shapes), run(folded, *shapes), strict=True):
        assert expected.shape == actual.shape and expected.dtype == actual.dtype
        scale = np.abs(expected.astype(np.float64)).max()
        assert np.abs(expected.astype(np.float64) - actual.astype(np.float64)).max() <= (
            tolerance * scale
        )
