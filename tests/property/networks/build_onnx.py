"""A described network as an ONNX model: nodes under their names, weights as initializers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.property.networks.description import CLIPS, Network, Node, eps_of, weights_of


class Builder:
    """Collects nodes and initializers."""

    def __init__(self, network: Network, data_type: int) -> None:
        self.network = network
        self.shapes = network.shapes
        self.dtype = helper.tensor_dtype_to_np_dtype(data_type)
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.weights = weights_of(network)

    def emit(self, op: str, node: Node, *inputs: str, part: str = "", **attributes: Any) -> str:
        """Add a node; a `part` of a described node makes a value of its own."""
        names = [f"{node.name}/{part}"] if part else list(node.outputs)
        name = f"{node.name}/{part}" if part else node.name
        self.nodes.append(helper.make_node(op, inputs, names, name=name, **attributes))
        return names[0]

    def constant(self, name: str, values: Any) -> str:
        """An initializer: floats in the model's dtype, unless its name says `scales`."""
        array = np.asarray(values)
        if array.dtype.kind == "f":
            array = array.astype(np.float32 if name.endswith("scales") else self.dtype)
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, node: Node, name: str, *shape: int, transpose: bool = False) -> str:
        """One of a node's arrays, under its owner's name."""
        owner = self.network.owner(node)
        array = self.weights[owner][name]
        array = array.T.copy() if transpose else array
        return self.constant(f"{owner}.{name}", array.reshape(shape) if shape else array)


def onnx_model(
    network: Network, data_type: int = TensorProto.DOUBLE, *, open_batch: bool = False
) -> onnx.ModelProto:
    """The model; its batch is called N if it is to be open."""
    builder = Builder(network, data_type)
    for node in network.nodes:
        _KINDS[node.kind](builder, node)
    tensor = helper.make_tensor_value_info

    def value(name: str) -> Any:
        shape = builder.shapes[name]
        return tensor(name, data_type, ("N", *shape[1:]) if open_batch else shape)

    inputs = [value(name) for name in network.inputs]
    results = [value(name) for name in network.results]
    graph = helper.make_graph(
        builder.nodes, "network", inputs, results, list(builder.initializers.values())
    )
    wraps = any(node.get("mode") == "circular" for node in network.nodes)
    opset = helper.make_opsetid("", 19 if wraps else 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


# ------------------------------------------------------------------- linear ops

_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap", "constant": "constant"}


def _conv(b: Builder, node: Node) -> None:
    (x,) = node.inputs
    pads = [*node.get("padding"), *node.get("padding")]
    if any(pads) and node.get("mode") != "zeros":
        half = len(pads) // 2
        amounts = b.constant(f"{node.name}.pads", [0, 0, *pads[:half], 0, 0, *pads[half:]])
        x = b.emit("Pad", node, x, amounts, part="pad", mode=_MODES[node.get("mode")])
        pads = [0] * len(pads)
    inputs = [x, b.weight(node, "weight")]
    if node.get("bias"):
        inputs.append(b.weight(node, "bias"))
    window = {
        "kernel_shape": node.get("kernel"),
        "strides": node.get("stride"),
        "dilations": node.get("dilation"),
    }
    b.emit("Conv", node, *inputs, pads=pads, group=node.get("groups"), **window)


def _deconv(b: Builder, node: Node) -> None:
    inputs = [*node.inputs, b.weight(node, "weight")]
    if node.get("bias"):
        inputs.append(b.weight(node, "bias"))
    options: dict[str, Any] = {
        "kernel_shape": node.get("kernel"),
        "strides": node.get("stride"),
        "dilations": node.get("dilation"),
        "pads": [*node.get("padding"), *node.get("padding")],
        "group": node.get("groups"),
    }
    if any(node.get("output_padding")):
        options["output_padding"] = node.get("output_padding")
    b.emit("ConvTranspose", node, *inputs, **options)


def _linear(b: Builder, node: Node) -> None:
    if len(node.shape) == 2:
        inputs = [*node.inputs, b.weight(node, "weight")]
        if node.get("bias"):
            inputs.append(b.weight(node, "bias"))
        b.emit("Gemm", node, *inputs, transB=1)
        return
    weight = b.weight(node, "weight", transpose=True)
    if not node.get("bias"):
        b.emit("MatMul", node, *node.inputs, weight)
        return
    product = b.emit("MatMul", node, *node.inputs, weight, part="product")
    b.emit("Add", node, product, b.weight(node, "bias"))


# ------------------------------------------------------------------- affine steps


def _batch_norm(b: Builder, node: Node) -> None:
    owner = b.network.owner(node)
    channels = len(b.weights[owner]["mean"])
    if node.get("gamma") is None:
        b.weights[owner] |= {"gamma": np.ones(channels), "beta": np.zeros(channels)}
    names = [b.weight(node, name) for name in ("gamma", "beta", "mean", "variance")]
    b.emit("BatchNormalization", node, *node.inputs, *names, epsilon=eps_of(node))


def _per_channel(op: str, name: str) -> Callable[[Builder, Node], None]:
    def make(b: Builder, node: Node) -> None:
        layout = (-1, *[1] * (len(node.shape) - 2))
        b.emit(op, node, *node.inputs, b.weight(node, name, *layout))

    return make


# ------------------------------------------------------------------- elementwise


def _plain(op: str, **attributes: Any) -> Callable[[Builder, Node], None]:
    def make(b: Builder, node: Node) -> None:
        b.emit(op, node, *node.inputs, **attributes)

    return make


def _clip(b: Builder, node: Node) -> None:
    lower, upper = CLIPS[node.kind]
    bounds = [
        b.constant(f"{node.kind}.{n}", np.array(v)) for n, v in (("lo", lower), ("hi", upper))
    ]
    b.emit("Clip", node, *node.inputs, *bounds)


# ------------------------------------------------------------------- pooling


def _pool(op: str) -> Callable[[Builder, Node], None]:
    def make(b: Builder, node: Node) -> None:
        rank = len(node.shape) - 2
        options: dict[str, Any] = {
            "kernel_shape": [node.get("kernel")] * rank,
            "strides": [node.get("stride")] * rank,
            "pads": [node.get("padding")] * 2 * rank,
            "ceil_mode": int(node.get("ceil")),
        }
        if node.kind == "avg":  # without padding there is nothing to count
            options["count_include_pad"] = int(node.get("counted") and node.get("padding") > 0)
        b.emit(op, node, *node.inputs, **options)

    return make


# ------------------------------------------------------------------- views


def _concat(b: Builder, node: Node) -> None:
    b.emit("Concat", node, *node.inputs, axis=node.get("axis"))


def _split(b: Builder, node: Node) -> None:
    sizes = b.constant(f"{node.name}.sizes", [shape[1] for shape in node.outputs.values()])
    b.emit("Split", node, *node.inputs, sizes, axis=1)


def _reshape(b: Builder, node: Node) -> None:
    target = b.constant(f"{node.name}.target", [0, *node.shape[1:]])
    b.emit("Reshape", node, *node.inputs, target)


def _swap(b: Builder, node: Node) -> None:
    rank = len(node.shape)
    b.emit("Transpose", node, *node.inputs, perm=[*range(rank - 2), rank - 1, rank - 2])


def _crop(b: Builder, node: Node) -> None:
    parts = [
        b.constant(f"{node.name}.{name}", [value])
        for name, value in (("start", 1), ("stop", 1 << 31), ("axis", 2))
    ]
    b.emit("Slice", node, *node.inputs, *parts)


def _shuffle(b: Builder, node: Node) -> None:
    _, c, *space = node.shape
    groups = node.get("groups")
    cut = b.constant(f"{node.name}.cut", [0, groups, c // groups, *space])
    x = b.emit("Reshape", node, *node.inputs, cut, part="cut")
    perm = [0, 2, 1, *range(3, 3 + len(space))]
    x = b.emit("Transpose", node, x, part="turned", perm=perm)
    b.emit("Reshape", node, x, b.constant(f"{node.name}.target", [0, c, *space]))


def _upsample(b: Builder, node: Node) -> None:
    scales = b.constant(f"{node.name}.scales", np.array([1.0, 1.0, 2.0, 2.0]))
    options = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    if node.get("mode") == "nearest":
        options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
        options["nearest_mode"] = "floor"
    b.emit("Resize", node, *node.inputs, "", scales, **options)


def _stacked(b: Builder, node: Node) -> None:
    axis = b.constant(f"{node.name}.axis", [0])
    x, y = (
        b.emit("Unsqueeze", node, name, axis, part=part)
        for name, part in zip(node.inputs, ("first", "second"), strict=True)
    )
    stack = b.emit("Concat", node, x, y, part="stack", axis=0)
    b.emit("ReduceSum", node, stack, axis, keepdims=0)


def _pad(b: Builder, node: Node) -> None:
    amounts = [0, 0, *node.get("before"), 0, 0, *node.get("after")]
    inputs = [*node.inputs, b.constant(f"{node.name}.pads", amounts)]
    if node.get("mode") == "constant":
        inputs.append(b.constant(f"{node.name}.value", np.array(node.get("value"))))
    b.emit("Pad", node, *inputs, mode=_MODES[node.get("mode")])


_KINDS: dict[str, Callable[[Builder, Node], None]] = {
    "conv": _conv,
    "deconv": _deconv,
    "linear": _linear,
    "bn": _batch_norm,
    "scale": _per_channel("Mul", "weight"),
    "shift": _per_channel("Add", "bias"),
    "relu": _plain("Relu"),
    "relu6": _clip,
    "clip": _clip,
    "leaky": _plain("LeakyRelu", alpha=0.125),
    "prelu": _per_channel("PRelu", "weight"),
    "abs": _plain("Abs"),
    "sign": _plain("Sign"),
    "sigmoid": _plain("Sigmoid"),
    "tanh": _plain("Tanh"),
    "softmax": _plain("Softmax", axis=1),
    "identity": _plain("Identity"),
    "dropout": _plain("Dropout"),
    "max": _pool("MaxPool"),
    "avg": _pool("AveragePool"),
    "gmax": _plain("GlobalMaxPool"),
    "gavg": _plain("GlobalAveragePool"),
    "add": _plain("Add"),
    "stacked": _stacked,
    "sub": _plain("Sub"),
    "mul": _plain("Mul"),
    "concat": _concat,
    "split": _split,
    "flatten": _plain("Flatten"),
    "reshape": _reshape,
    "swap": _swap,
    "crop": _crop,
    "shuffle": _shuffle,
    "pixel_shuffle": _plain("DepthToSpace", blocksize=2, mode="CRD"),
    "upsample": _upsample,
    "pad": _pad,
}
