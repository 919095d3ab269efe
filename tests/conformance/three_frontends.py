"""One small network as a PyTorch module, an ONNX model and a pair of Caffe files.

A network is a list of nodes; names, weights and shapes are the same in all three. A BatchNorm is
one module in PyTorch, one node in ONNX, and two layers in Caffe: BatchNorm and Scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from tests.frontends.caffe.wire import caffemodel

Array = NDArray[np.float32]
INPUT = "data"


@dataclass(frozen=True)
class Node:
    """One layer: its kind, what it reads, and its sizes."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)

    def size(self, name: str, default: int = 0) -> int:
        return self.sizes.get(name, default)


def node(name: str, kind: str, *inputs: str, **sizes: int) -> Node:
    """`node("conv1", "conv", "data", channels=4, out=8, kernel=3, pad=1)`"""
    return Node(name, kind, inputs, sizes)


def weights_of(nodes: Sequence[Node], seed: int = 0) -> dict[str, list[Array]]:
    """Random arrays, PyTorch's layout, different in each channel; gammas of both signs."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[Array]] = {}
    for one in nodes:
        shape = _weight_shape(one)
        if shape is not None:
            fan_in = max(1, int(np.prod(shape[1:])))
            arrays = [rng.normal(0, fan_in**-0.5, shape)]
            if one.size("bias", 1):
                arrays.append(rng.normal(0, 0.3, one.size("out")))
            found[one.name] = [array.astype(np.float32) for array in arrays]
        elif one.kind == "bn":
            channels = one.size("channels")
            gamma = rng.uniform(0.5, 1.5, channels)
            if one.size("negative", 1):
                gamma *= rng.permutation([-1.0] + [1.0] * (channels - 1))
            mean, beta = rng.normal(0, 0.5, (2, channels))
            arrays = [gamma, beta, mean, rng.uniform(0.5, 2.0, channels)]
            found[one.name] = [array.astype(np.float32) for array in arrays]
    return found


def _weight_shape(one: Node) -> tuple[int, ...] | None:
    channels, out, group = one.size("channels"), one.size("out"), one.size("group", 1)
    kernel = (one.size("kernel"),) * 2
    if one.kind == "conv":
        return (out, channels // group, *kernel)
    if one.kind == "deconv":
        return (channels, out // group, *kernel)
    return (out, channels) if one.kind == "linear" else None


# ------------------------------------------------------------------- PyTorch


class Network(nn.Module):
    """The nodes as modules of their names; sums and concatenations are functions."""

    def __init__(self, nodes: Sequence[Node], weights: Mapping[str, Sequence[Array]]) -> None:
        super().__init__()
        self.nodes = list(nodes)
        for one in nodes:
            module = _module(one)
            if module is None:
                continue
            names = ("weight", "bias", "running_mean", "running_var")
            for name, array in zip(names, weights.get(one.name, ()), strict=False):
                getattr(module, name).data.copy_(torch.tensor(array))
            self.add_module(one.name, module)
        self.eval()

    def forward(self, data: Tensor) -> tuple[Tensor, ...]:
        values = {INPUT: data}
        for one in self.nodes:
            given = [values[name] for name in one.inputs]
            if one.kind == "add":
                values[one.name] = given[0] + given[1]
            elif one.kind == "concat":
                values[one.name] = torch.cat(given, 1)
            else:
                values[one.name] = self.get_submodule(one.name)(*given)
        return tuple(values[name] for name in outputs_of(self.nodes))


def outputs_of(nodes: Sequence[Node]) -> list[str]:
    """What no node reads."""
    read = {name for one in nodes for name in one.inputs}
    return [one.name for one in nodes if one.name not in read]


def _module(one: Node) -> nn.Module | None:
    channels, out, group = one.size("channels"), one.size("out"), one.size("group", 1)
    kernel, stride, pad = one.size("kernel"), one.size("stride", 1), one.size("pad")
    has_bias = bool(one.size("bias", 1))
    match one.kind:
        case "conv":
            return nn.Conv2d(channels, out, kernel, stride, pad, groups=group, bias=has_bias)
        case "deconv":
            options: dict[str, Any] = {"groups": group, "bias": has_bias}
            return nn.ConvTranspose2d(channels, out, kernel, stride, pad, **options)
        case "linear":
            return nn.Linear(channels, out, bias=has_bias)
        case "bn":
            return nn.BatchNorm2d(channels) if one.size("image", 1) else nn.BatchNorm1d(channels)
        case "max":
            return nn.MaxPool2d(kernel, stride, pad)
        case "mean":
            return nn.AvgPool2d(kernel, stride, pad)
        case "global mean":
            return nn.AdaptiveAvgPool2d(1)
        case "flatten":
            return nn.Flatten()
        case "relu":
            return nn.ReLU()
        case "sigmoid":
            return nn.Sigmoid()
        case _:
            return None


# ------------------------------------------------------------------- ONNX


def onnx_model(
    nodes: Sequence[Node], weights: Mapping[str, Sequence[Array]], shape: tuple[int, ...]
) -> onnx.ModelProto:
    """The nodes under their names."""
    made, constants = [], []
    for one in nodes:
        names = [f"{one.name}.{number}" for number in range(len(weights.get(one.name, ())))]
        for name, array in zip(names, weights.get(one.name, ()), strict=True):
            constants.append(numpy_helper.from_array(array, name))
        kind, options = _onnx_kind(one)
        made.append(
            helper.make_node(kind, [*one.inputs, *names], [one.name], name=one.name, **options)
        )
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        made,
        "network",
        [tensor(INPUT, onnx.TensorProto.FLOAT, shape)],
        [tensor(name, onnx.TensorProto.FLOAT, None) for name in outputs_of(nodes)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def _onnx_kind(one: Node) -> tuple[str, dict[str, Any]]:
    window = {
        "kernel_shape": [one.size("kernel")] * 2,
        "strides": [one.size("stride", 1)] * 2,
        "pads": [one.size("pad")] * 4,
    }
    match one.kind:
        case "conv":
            return "Conv", {**window, "group": one.size("group", 1)}
        case "deconv":
            return "ConvTranspose", {**window, "group": one.size("group", 1)}
        case "linear":
            return "Gemm", {"transB": 1}
        case "bn":
            return "BatchNormalization", {"epsilon": 1e-5}
        case "max":
            return "MaxPool", window
        case "mean":
            return "AveragePool", {**window, "count_include_pad": 1}
        case "concat":
            return "Concat", {"axis": 1}
        case _:
            names = {"global mean": "GlobalAveragePool", "flatten": "Flatten", "relu": "Relu"}
            return names.get(one.kind, one.kind.capitalize()), {}


# ------------------------------------------------------------------- Caffe


def caffe_files(
    nodes: Sequence[Node],
    weights: Mapping[str, Sequence[Array]],
    shape: tuple[int, ...],
    folder: Path,
) -> tuple[Path, Path]:
    """Prototxt and caffemodel; a BatchNorm `bn` is followed by a Scale `bn/scale` in place."""
    dims = " ".join(f"dim: {size}" for size in shape)
    text = [f'input: "{INPUT}" input_shape {{ {dims} }}']
    stored: dict[str, tuple[str, list[Array]]] = {}
    for one in nodes:
        kind, options = _caffe_kind(one)
        wires = "".join(f' bottom: "{name}"' for name in one.inputs)
        text.append(
            f'layer {{ name: "{one.name}" type: "{kind}"{wires} top: "{one.name}" {options} }}'
        )
        arrays = list(weights.get(one.name, ()))
        if one.kind == "bn":
            text.append(
                f'layer {{ name: "{one.name}/scale" type: "Scale" bottom: "{one.name}"'
                f' top: "{one.name}" scale_param {{ bias_term: true }} }}'
            )
            gamma, beta, mean, variance = arrays
            stored[f"{one.name}/scale"] = ("Scale", [gamma, beta])
            factor = np.float32(4.0)  # Caffe stores sums: exact in float32
            arrays = [mean * factor, variance * factor, np.array([factor], np.float32)]
        if arrays:
            stored[one.name] = (kind, arrays)
    network = folder / "network.prototxt"
    network.write_text("\n".join(text) + "\n")
    network.with_suffix(".caffemodel").write_bytes(caffemodel(stored))
    return network, network.with_suffix(".caffemodel")


def _caffe_kind(one: Node) -> tuple[str, str]:
    window = (
        f"kernel_size: {one.size('kernel')} stride: {one.size('stride', 1)} pad: {one.size('pad')}"
    )
    linear = f"num_output: {one.size('out')}"
    if not one.size("bias", 1):
        linear += " bias_term: false"
    match one.kind:
        case "conv" | "deconv":
            kind = {"conv": "Convolution", "deconv": "Deconvolution"}[one.kind]
            group = f"group: {one.size('group', 1)}"
            return kind, f"convolution_param {{ {linear} {window} {group} }}"
        case "linear":
            return "InnerProduct", f"inner_product_param {{ {linear} }}"
        case "max" | "mean":
            pool = {"max": "MAX", "mean": "AVE"}[one.kind]
            return "Pooling", f"pooling_param {{ pool: {pool} {window} }}"
        case "global mean":
            return "Pooling", "pooling_param { pool: AVE global_pooling: true }"
        case _:
            names = {"bn": "BatchNorm", "add": "Eltwise", "relu": "ReLU"}
            return names.get(one.kind, one.kind.capitalize()), ""
