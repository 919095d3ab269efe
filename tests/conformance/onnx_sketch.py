"""Small ONNX models, drawn by hand: every weight random, every statistic different per channel.

A sketch is drawn for one dtype. Its numbers are first rounded to the dtype `rounded`, so that the
same sketch in float64 has exactly the weights of the one in float32: what the reference evaluator
makes of the former is the truth about both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.shape_inference import infer_shapes

Array = NDArray[Any]

Shape = Sequence[int | str]


class Sketch:
    """A model in the making. Methods that add a node return the name of its (first) output."""

    def __init__(
        self, dtype: Any = np.float32, *, opset: int = 17, ir: int = 8, seed: int = 0
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.rounded: Any = np.float16 if self.dtype == np.float16 else np.float32
        self.opset, self.ir = opset, ir
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.domains: dict[str, int] = {}
        self.sparse: list[onnx.SparseTensorProto] = []
        self.values: list[onnx.ValueInfoProto] = []

    # ------------------------------------------------------------------ tensors

    @property
    def element_type(self) -> int:
        """The dtype as ONNX numbers it."""
        return int(helper.np_dtype_to_tensor_dtype(self.dtype))

    def round(self, values: ArrayLike) -> Array:
        """The numbers as this model holds them."""
        return np.asarray(values).astype(self.rounded).astype(self.dtype)

    def uniform(self, *shape: int, low: float = -0.5, high: float = 0.5) -> Array:
        return self.round(self.random.uniform(low, high, shape))

    def gammas(self, channels: int, *, positive: bool = False) -> Array:
        """0.5 .. 1.5; every second one negative unless asked otherwise."""
        gamma = self.random.uniform(0.5, 1.5, channels)
        if not positive:
            gamma[1::2] *= -1
        return self.round(gamma)

    def tensor(self, name: str, values: ArrayLike) -> str:
        """An initializer, of the dtype of the array."""
        array = np.asarray(values)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, name: str, *values: int) -> str:
        return self.tensor(name, np.array(values, dtype=np.int64))

    def input(self, *shape: int | str, name: str = "x", element_type: int | None = None) -> str:
        kind = self.element_type if element_type is None else element_type
        self.inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(
        self, *names: str, element_type: int | None = None, shape: Shape | None = None
    ) -> None:
        """Outputs; their shapes are inferred where none is given."""
        kind = self.element_type if element_type is None else element_type
        for name in names:
            self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    # ------------------------------------------------------------------ nodes

    def node(
        self,
        op: str,
        *inputs: str,
        name: str | None = None,
        outputs: Sequence[str] | None = None,
        **attributes: Any,
    ) -> str:
        name = name or f"{op.lower()}{len(self.nodes)}"
        made = list(outputs or [f"{name}_out"])
        self.nodes.append(helper.make_node(op, list(inputs), made, name=name, **attributes))
        return made[0]

    def conv(
        self,
        x: str,
        ins: int,
        outs: int,
        kernel: int = 3,
        *,
        name: str = "conv",
        pad: int = 0,
        groups: int = 1,
        bias: bool = True,
        rank: int = 2,
        op: str = "Conv",
        **attributes: Any,
    ) -> str:
        # Conv weight: (out, in/groups, *kernel); ConvTranspose weight: (in, out/groups, *kernel)
        lead = (outs, ins // groups) if op == "Conv" else (ins, outs // groups)
        weight = self.tensor(f"{name}_w", self.uniform(*lead, *(kernel,) * rank))
        extra = [self.tensor(f"{name}_b", self.uniform(outs))] if bias else []
        if pad:
            attributes["pads"] = [pad] * 2 * rank
        if groups != 1:
            attributes["group"] = groups
        return self.node(op, x, weight, *extra, name=name, **attributes)

    def bn(
        self,
        x: str,
        channels: int,
        *,
        name: str = "bn",
        positive: bool = False,
        gamma: ArrayLike | None = None,
        beta: ArrayLike | None = None,
        mean: ArrayLike | None = None,
        var: ArrayLike | None = None,
        outputs: Sequence[str] | None = None,
        **attributes: Any,
    ) -> str:
        drawn = {
            "gamma": self.gammas(channels, positive=positive),
            "beta": self.uniform(channels),
            "mean": self.uniform(channels),
            "var": self.uniform(channels, low=0.4, high=1.6),
        }
        given = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
        names = [
            self.tensor(
                f"{name}_{key}", drawn[key] if given[key] is None else self.round(given[key])
            )
            for key in drawn
        ]
        attributes.setdefault("epsilon", 1e-3)
        return self.node("BatchNormalization", x, *names, name=name, outputs=outputs, **attributes)

    def gemm(
        self, x: str, ins: int, outs: int, *, name: str = "gemm", bias: bool = True, **options: Any
    ) -> str:
        shape = (outs, ins) if options.get("transB") else (ins, outs)
        weight = self.tensor(f"{name}_w", self.uniform(*shape))
        extra = [self.tensor(f"{name}_b", self.uniform(outs))] if bias else []
        return self.node("Gemm", x, weight, *extra, name=name, **options)

    def channels(self, name: str, count: int, *, low: float = 0.5, high: float = 1.5) -> str:
        """A constant per channel of an image, (1, C, 1, 1); every second one negative."""
        values = self.random.uniform(low, high, count)
        values[1::2] *= -1
        return self.tensor(name, self.round(values).reshape(1, count, 1, 1))

    # ------------------------------------------------------------------ the model

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "sketch", self.inputs, self.outputs, self.initializers
        )
        graph.sparse_initializer.extend(self.sparse)
        graph.value_info.extend(self.values)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(domain, version) for domain, version in self.domains.items()]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=self.ir, functions=self.functions
        )
        _declare_shapes(model)
        return model


def _declare_shapes(model: onnx.ModelProto) -> None:
    """Give the outputs the shapes that follow from the inputs: the checker asks for them."""
    inferred = {value.name: value for value in infer_shapes(model).graph.output}
    for value in model.graph.output:
        kind = value.type.tensor_type
        if not kind.HasField("shape"):
            kind.shape.CopyFrom(inferred[value.name].type.tensor_type.shape)


def is_double(sketch: Sketch) -> bool:
    """Whether this is the float64 twin, on which the reference evaluator is exact."""
    return sketch.element_type == TensorProto.DOUBLE
