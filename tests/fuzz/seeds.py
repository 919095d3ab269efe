"""Make the binary seeds of the corpora: `python -m tests.fuzz.seeds`.

The prototxt seeds are text and are kept as they are; their layers have weights of these names and
sizes. Two channels everywhere, so that a network that is wired up differently still fits.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from bnfold.frontends.caffe.wire import length_field, varint_field
from tests.frontends.caffe.build import blob, layer
from tests.frontends.onnx.support import Sketch
from tests.fuzz.targets import CORPUS, SEPARATOR

C = 2


def caffemodel(**form: str) -> bytes:
    """Weights for every layer of the prototxts that has any, in one of the forms of `build`."""
    rng = np.random.default_rng(7)

    def arrays(*shapes: tuple[int, ...]) -> list[bytes]:
        return [blob(rng.normal(size=shape).astype(np.float32), **form) for shape in shapes]

    def statistics() -> list[bytes]:
        parts = (rng.normal(size=C), rng.uniform(0.3, 2, C), np.array([1.5]))
        return [blob(part.astype(np.float32), **form) for part in parts]

    return b"".join(
        [
            length_field(1, b"net"),
            layer("conv", "Convolution", *arrays((C, C, 3, 3))),
            layer("bn", "BatchNorm", *statistics()),
            layer("scale", "Scale", *arrays((C,), (C,))),
            layer("conv2", "Convolution", *arrays((C, C, 3, 3), (C,))),
            layer("bn2", "BatchNorm", *statistics()),
            layer("conv3", "Convolution", *arrays((C, C, 3, 3))),
            layer("up", "Deconvolution", *arrays((C, C // 2, 2, 2), (C,))),
            layer("dw", "ConvolutionDepthwise", *arrays((C, 1, 3, 3), (C,))),
            layer("bias", "Bias", *arrays((C,))),
            layer("prelu", "PReLU", *arrays((1,))),
            layer("fc", "InnerProduct", *arrays((C, C), (C,))),
        ]
    )


def v1() -> bytes:
    """A file of the older form, with a group in it, a blob in halves and one of a fork."""
    rng = np.random.default_rng(8)
    weight = blob(rng.normal(size=(C, C, 3, 3)), shape="legacy", data="split")
    parts = [rng.uniform(0.5, 2, C) for _ in range(4)]
    bn = [blob(part, shape="unpacked", data="unpacked") for part in parts]
    half = blob(rng.normal(size=(C, C, 3, 3)), data="half", extra=b"\x7b\x08\x01\x7c")
    layers = [
        length_field(4, b"conv") + varint_field(5, 4) + length_field(6, weight),
        length_field(4, b"bn") + b"".join(length_field(6, one) for one in bn),
        length_field(4, b"conv2") + length_field(6, half) + length_field(6, blob(np.ones(C))),
        length_field(
            1,
            length_field(1, b"fc") + length_field(50, blob(np.ones((1, 1, C, 32)), data="double")),
        ),
    ]
    return b"".join(length_field(2, one) for one in layers)


def onnx_models() -> dict[str, ModelProto]:
    """One network for each part of the frontend."""
    return {
        "images": _images(),
        "views": _views(),
        "tokens": _tokens(),
        "open": _open(),
        "quantized": _quantized(),
        "nested": _nested(),
    }


def _images() -> ModelProto:
    s = Sketch(1, C, 6, 6)
    first = s.conv(C, C, name="conv1", pads=[1, 1, 1, 1])
    s.bn(C, name="bn1")
    s.node("Relu")
    s.conv(C, C, name="conv2", pads=[1, 1, 1, 1])
    s.bn(C, name="bn2")
    second = s.node("Add", s.at, first)
    s.node("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    s.node("ConvTranspose", s.at, s.weight("up_w", C, C // 2, 2, 2), strides=[2, 2], group=2)
    s.bn(C, name="bn3")
    s.node("Concat", s.at, second, axis=1)
    s.node("Clip", s.at, s.constant("lo", 0.0), s.constant("hi", 6.0))
    s.node("GlobalAveragePool")
    s.node("Flatten")
    s.node("Gemm", s.at, s.weight("fc", C, 2 * C), s.weight("fc_b", C), transB=1, alpha=0.5)
    s.node("Softmax")
    return s.model()


def _views() -> ModelProto:
    s = Sketch(2, 2 * C, 4, 4)
    s.bn(2 * C, name="bn0")
    s.node("Reshape", s.at, s.constant("t1", np.array([0, 2, C, 4, -1])))
    s.node("Transpose", perm=[0, 2, 1, 3, 4])
    s.node("Reshape", s.at, s.constant("t2", np.array([2, 2 * C, 4, 4])))
    s.nodes.append(
        helper.make_node("Split", [s.at, s.constant("sizes", np.array([C, C]))], ["a", "b"], axis=1)
    )
    s.at = "a"
    s.node(
        "Slice",
        "a",
        *(
            s.constant(n, np.array([v]))
            for n, v in (("from", 0), ("to", C), ("axes", 1), ("step", 1))
        ),
    )
    s.node("Sub", s.at, "b")
    s.node("Pad", s.at, s.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1])))
    s.conv(C, C, name="conv", group=2)
    s.node("Mul", s.at, s.weight("scale", C, 1, 1))
    s.node("Div", s.at, s.weight("by", 1, C, 1, 1))
    s.node("LeakyRelu", alpha=0.1)
    s.node("Gather", s.at, s.constant("pick", np.array([1, 0, 1, 0])), axis=1)
    s.node("DepthToSpace", blocksize=2)
    s.node("Unsqueeze", s.at, s.constant("ax", np.array([0])))
    s.node("Squeeze", s.at, "ax")
    s.node("Tile", s.at, s.constant("reps", np.array([1, 2, 1, 1])))
    s.node("Expand", s.at, s.constant("to_shape", np.array([2, 2, 8, 8])))
    s.node("ReduceMean", s.at, axes=[2, 3], keepdims=0)
    return s.model()


def _tokens() -> ModelProto:
    s = Sketch(2, 5, C)
    s.node("MatMul", s.at, s.weight("m1", C, C))
    s.node("Add", s.at, s.weight("b1", C))
    s.node("Transpose", perm=[0, 2, 1])
    s.bn(C, name="bn")
    s.node("Transpose", perm=[0, 2, 1])
    s.node("Sign")
    s.node("MatMul", s.at, s.weight("m2", C, C))
    s.node("Identity")
    s.node("Dropout")
    s.node("Cast", to=TensorProto.DOUBLE)
    return s.model()


def _open() -> ModelProto:
    s = Sketch("batch", C, "height", "width")
    s.conv(C, C)
    s.bn(C)
    image = s.at
    s.node("Shape")
    s.node("Gather", s.at, s.constant("zero", np.array([0])))
    s.node("Concat", s.at, s.constant("rest", np.array([-1])), axis=0)
    s.node("Reshape", image, s.at)
    s.node(
        "ConstantOfShape",
        s.constant("four", np.array([C])),
        output="filled",
        value=numpy_helper.from_array(np.array([2.0], np.float32)),
    )
    s.node("Sqrt", "filled")
    s.node("Mul", image, s.node("Unsqueeze", s.at, s.constant("sides", np.array([1, 2]))))
    s.node("Resize", s.at, "", s.constant("scales", np.array([1.0, 1.0, 2.0, 2.0])), mode="nearest")
    return s.model()


def _quantized() -> ModelProto:
    s = Sketch(1, C, 6, 6)
    s.initializers.append(
        numpy_helper.from_array(s.rng.integers(-9, 9, (C, C, 3, 3)).astype(np.int8), "q")
    )
    s.node("DequantizeLinear", "q", s.constant("qs", s.rng.uniform(0.5, 1, C)), axis=0, output="w")
    s.node("Conv", "x", "w", output="c")
    s.bn(C)
    s.node("PRelu", s.at, s.weight("slope", C, 1, 1))
    return s.model()


def _nested() -> ModelProto:
    """Subgraphs, a function, sparse weights."""
    s = Sketch(1, C, 6, 6)
    s.conv(C, C)
    conv = s.bn(C)
    s.constant("yes", np.array(True))
    branches = []
    for name in ("then", "else"):
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        node = helper.make_node("Relu" if name == "then" else "Neg", [conv], [f"{name}_out"])
        branches.append(helper.make_graph([node], name, [], [out]))
    s.node("If", "yes", then_branch=branches[0], else_branch=branches[1])
    s.nodes.append(helper.make_node("Twice", [s.at], ["twice"], domain="own"))
    s.at = "twice"
    model = s.model()
    function = helper.make_function(
        "own",
        "Twice",
        ["v"],
        ["r"],
        [helper.make_node("Add", ["v", "v"], ["r"])],
        [helper.make_opsetid("", 17)],
    )
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0, 3])))
    sparse.dims.append(C)
    return model


def _without_docs(model: ModelProto) -> bytes:
    model.ClearField("producer_name")
    graph: GraphProto = model.graph
    graph.ClearField("doc_string")
    return model.SerializeToString(deterministic=True)


def main() -> None:
    """Write the files."""
    stored = {
        "packed": caffemodel(),
        "double": caffemodel(data="double", shape="unpacked"),
        "v1": v1(),
    }
    for name, content in stored.items():
        (CORPUS / "caffemodel" / f"{name}.caffemodel").write_bytes(content)
    for text, weights in (("plain", "packed"), ("branches", "double"), ("v1", "v1")):
        network = (CORPUS / "prototxt" / f"{text}.prototxt").read_bytes()
        both = network + SEPARATOR + stored[weights]
        (CORPUS / "caffe" / f"{text}-{weights}.bin").write_bytes(both)
    for name, model in onnx_models().items():
        (CORPUS / "onnx" / f"{name}.onnx").write_bytes(_without_docs(model))


if __name__ == "__main__":
    main()
