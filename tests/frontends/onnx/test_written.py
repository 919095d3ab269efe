"""Every node that a fold writes has the form that its operator has, at every opset."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.shape_inference import infer_shapes

import bnfold
from tests.conformance.onnx_run import error, random_feed, run
from tests.conformance.onnx_sketch import Sketch
from tests.frontends.onnx.merging import exactly as in_float64
from tests.frontends.onnx.merging import ops

OPSETS = range(6, 24)
BROADCASTS = 7


def fc(s: Sketch, x: str, ins: int, outs: int, name: str, *, bias: str = "random") -> str:
    """A Gemm; the bias is what its opset asks for at least."""
    weight = s.tensor(f"{name}_w", s.uniform(ins, outs))
    values = {"random": s.uniform(outs), "zero": np.zeros(outs, s.dtype)}
    extra = [s.tensor(f"{name}_b", values[bias])] if bias in values else []
    options = {"broadcast": 1} if s.opset < BROADCASTS else {}
    return s.node("Gemm", x, weight, *extra, name=name, **options)


def bn(s: Sketch, x: str, channels: int, name: str = "bn") -> str:
    options = {"is_test": 1} if s.opset < BROADCASTS else {}
    return s.bn(x, channels, name=name, **options)


def product(s: Sketch, x: str, ins: int, outs: int, name: str) -> str:
    return s.node("MatMul", x, s.tensor(f"{name}_w", s.uniform(ins, outs)), name=name)


def gemms_in_a_row(s: Sketch) -> None:
    s.output(fc(s, fc(s, s.input(2, 6), 6, 5, "a"), 5, 3, "b"))


def gemms_around_a_batch_norm(s: Sketch) -> None:
    s.output(fc(s, bn(s, fc(s, s.input(2, 6), 6, 8, "a"), 8), 8, 3, "b"))


def gemms_in_a_row_with_biases_of_zero(s: Sketch) -> None:
    s.output(fc(s, fc(s, s.input(2, 6), 6, 5, "a", bias="zero"), 5, 3, "b", bias="zero"))


def gemms_in_a_concat(s: Sketch) -> None:
    x = s.input(2, 16)
    s.output(s.node("Concat", *(fc(s, x, 16, 4, name) for name in "ab"), name="cat", axis=1))


def gemms_of_zero_bias_in_a_concat(s: Sketch) -> None:
    x = s.input(2, 16)
    parts = [fc(s, x, 16, 4, name, bias="zero") for name in "ab"]
    s.output(s.node("Concat", *parts, name="cat", axis=1))


def gemms_in_a_sum(s: Sketch) -> None:
    x = s.input(2, 16)
    s.output(s.node("Add", *(fc(s, x, 16, 4, name) for name in "ab"), name="sum"))


def gemms_of_zero_bias_in_a_sum(s: Sketch) -> None:
    x = s.input(2, 16)
    s.output(s.node("Add", *(fc(s, x, 16, 4, name, bias="zero") for name in "ab"), name="sum"))


def gemms_without_bias_in_a_row(s: Sketch) -> None:
    s.output(fc(s, fc(s, s.input(2, 6), 6, 5, "a", bias=""), 5, 3, "b", bias=""))


def a_gemm_without_bias_and_a_batch_norm(s: Sketch) -> None:
    s.output(bn(s, fc(s, s.input(2, 6), 6, 5, "a", bias=""), 5))


def a_product_and_a_batch_norm(s: Sketch) -> None:
    s.output(bn(s, product(s, s.input(2, 6), 6, 5, "a"), 5))


def a_product_of_three_axes_and_a_batch_norm(s: Sketch) -> None:
    weight = s.tensor("w", s.uniform(5, 6))
    s.output(bn(s, s.node("MatMul", weight, s.input(2, 6, 4), name="a"), 5))


def products_around_a_batch_norm(s: Sketch) -> None:
    s.output(product(s, bn(s, product(s, s.input(2, 6), 6, 8, "a"), 8), 8, 3, "b"))


def products_of_three_axes_around_a_batch_norm(s: Sketch) -> None:
    x = s.node("MatMul", s.tensor("w", s.uniform(8, 6)), s.input(2, 6, 4), name="a")
    s.output(s.node("MatMul", s.tensor("v", s.uniform(3, 8)), bn(s, x, 8), name="b"))


def convolutions_in_a_row(s: Sketch) -> None:
    x = s.conv(s.input(2, 4, 7, 7), 4, 6, 1, name="a", kernel_shape=[1, 1])
    s.output(s.conv(bn(s, x, 6), 6, 4, 3, name="b", kernel_shape=[3, 3]))


def convolutions_in_a_concat(s: Sketch) -> None:
    x = s.input(2, 4, 7, 7)
    parts = [s.conv(x, 4, 3, 3, name=name, bias=False) for name in "ab"]
    s.output(s.node("Concat", *parts, name="cat", axis=1))


def transposed_convolutions(s: Sketch) -> None:
    x = s.input(2, 4, 5, 5)
    parts = [s.conv(x, 4, 3, 2, name=n, op="ConvTranspose", strides=[2, 2]) for n in "ab"]
    s.output(bn(s, s.node("Add", *parts, name="sum"), 3))


def batch_norms_in_a_sum(s: Sketch) -> None:
    x = s.node("Relu", s.input(2, 4, 5, 5), name="r0")
    parts = [bn(s, x, 4, name="b0"), bn(s, x, 4, name="b1")]
    s.output(s.node("Relu", s.node("Add", *parts, name="sum"), name="r1"))


def a_relu_with_bounds(s: Sketch) -> None:
    x = s.node("Relu", bn(s, s.input(2, 4, 6, 6), 4), name="act")
    s.output(s.conv(x, 4, 4, 3, kernel_shape=[3, 3]))


def a_clip_with_bounds(s: Sketch) -> None:
    x = bn(s, s.input(2, 4, 6, 6), 4)
    if s.opset < 11:
        x = s.node("Clip", x, name="act", min=-1.0, max=6.0)
    else:
        bounds = [s.tensor(f"bound{n}", s.round(np.array(n))) for n in (-1.0, 6.0)]
        x = s.node("Clip", x, *bounds, name="act")
    s.output(s.conv(x, 4, 4, 3, kernel_shape=[3, 3]))


def a_batch_norm_between_the_ends(s: Sketch) -> None:
    x = s.node("Relu", s.conv(s.input(2, 4, 6, 6), 4, 4, name="c"), name="r")
    s.node("Sigmoid", x, name="end", outputs=["out"])
    s.output(s.node("Sigmoid", bn(s, s.conv(x, 4, 4, name="d"), 4), name="end2"), "out")


SINCE_1 = (
    gemms_in_a_row, gemms_around_a_batch_norm, gemms_in_a_row_with_biases_of_zero,
    gemms_in_a_concat, gemms_of_zero_bias_in_a_concat, gemms_in_a_sum,
    gemms_of_zero_bias_in_a_sum, a_product_and_a_batch_norm,
    a_product_of_three_axes_and_a_batch_norm, products_around_a_batch_norm,
    products_of_three_axes_around_a_batch_norm, convolutions_in_a_row, convolutions_in_a_concat,
    transposed_convolutions, batch_norms_in_a_sum, a_relu_with_bounds, a_clip_with_bounds,
    a_batch_norm_between_the_ends,
)  # fmt: skip
SINCE_11 = (gemms_without_bias_in_a_row, a_gemm_without_bias_and_a_batch_norm)
TABLE = [
    *((draw, opset) for draw in SINCE_1 for opset in OPSETS),
    *((draw, opset) for draw in SINCE_11 for opset in OPSETS if opset >= 11),
]


def drawn(draw, opset: int, dtype=np.float32) -> onnx.ModelProto:
    """As old exporters write it: before IR version 4 initializers are inputs too."""
    s = Sketch(dtype, opset=opset, ir=3 if opset < 9 else 8)
    draw(s)
    if s.ir < 4:
        for tensor in s.initializers:
            s.input(*tensor.dims, name=tensor.name)
    return s.model()


@pytest.mark.parametrize(("draw", "opset"), TABLE)
def test_what_is_written_is_valid_and_the_same(draw, opset):
    for dtype in (np.float32, np.float64):
        model = drawn(draw, opset, dtype)
        onnx.checker.check_model(model, full_check=True)
        assert_broadcasts_on_request(model)
        folded = bnfold.fold(model, clip="always").model
        onnx.checker.check_model(folded, full_check=True)
        assert_broadcasts_on_request(folded)
        feed = random_feed(model)
        assert bnfold.fold(folded, clip="always").model == folded
        if dtype == np.float32 and opset >= BROADCASTS:  # older ones ONNX Runtime does not promise
            assert error(run(model, feed), run(folded, feed)) < 1e-5
        if dtype == np.float64:
            assert error(exactly(model, feed), exactly(folded, feed)) < 1e-11


def exactly(model: onnx.ModelProto, feed) -> list[np.ndarray]:
    """In float64; an old model as the newer one that its requests to broadcast say."""
    if model.opset_import[0].version >= BROADCASTS:
        return in_float64(model, feed)
    newer = onnx.ModelProto()
    newer.CopyFrom(model)
    newer.opset_import[0].version = BROADCASTS
    shapes = shapes_of(model)
    for node in newer.graph.node:
        requests = {a.name: a for a in node.attribute if a.name in ("broadcast", "is_test")}
        if node.op_type == "Add":
            requests |= {a.name: a for a in node.attribute if a.name == "axis"}
        if "axis" in requests:
            missing = len(shapes[node.input[0]]) - requests["axis"].i - len(shapes[node.input[1]])
            (tensor,) = (t for t in newer.graph.initializer if t.name == node.input[1])
            tensor.dims.extend([1] * missing)
        for request in requests.values():
            node.attribute.remove(request)
    return in_float64(newer, feed)


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int]]:
    graph = infer_shapes(model).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    return shapes | {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def assert_broadcasts_on_request(model: onnx.ModelProto) -> None:
    """Before opset 7: which the checker does not look at."""
    if model.opset_import[0].version >= BROADCASTS:
        return
    shapes = shapes_of(model)
    for node in model.graph.node:
        attributes = {a.name: a.i for a in node.attribute}
        if node.op_type == "Gemm" and len(shapes[node.input[2]]) < 2:
            assert attributes.get("broadcast") == 1
        if node.op_type == "Add" and shapes[node.input[0]] != shapes[node.input[1]]:
            assert attributes["broadcast"] == 1
            whole, part = (shapes[name] for name in node.input)
            axis = attributes.get("axis", len(whole) - len(part))
            assert whole[axis : axis + len(part)] == part


# -------------------------------------------------------------------- what is written, in words


@pytest.mark.parametrize("opset", [6, 7, 9, 10])
def test_a_merged_gemm_has_the_bias_that_its_opset_asks_for(opset):
    folded = bnfold.fold(drawn(gemms_of_zero_bias_in_a_concat, opset)).model
    assert ops(folded) == ["Gemm"]
    assert len(folded.graph.node[0].input) == 3


@pytest.mark.parametrize("opset", [11, 13, 23])
def test_a_merged_gemm_has_no_bias_of_zeros_where_it_may_do_without(opset):
    folded = bnfold.fold(drawn(gemms_of_zero_bias_in_a_sum, opset)).model
    assert ops(folded) == ["Gemm"]
    assert len(folded.graph.node[0].input) == 2


def test_an_old_matrix_product_gets_an_add_along_its_channels():
    folded = bnfold.fold(drawn(a_product_of_three_axes_and_a_batch_norm, 6)).model
    assert ops(folded) == ["MatMul", "Add"]
    added = folded.graph.node[1]
    assert {a.name: a.i for a in added.attribute} == {"broadcast": 1, "axis": 1}
    (bias,) = (t for t in folded.graph.initializer if t.name == added.input[1])
    assert (bias.data_type, [*bias.dims]) == (TensorProto.FLOAT, [5])


@pytest.mark.parametrize(
    ("op", "axis"), [("Add", 1), ("Sub", 1), ("Mul", 1), ("Div", -3), ("Add", 2)]
)
def test_an_old_operator_is_compared_along_its_axis(op, axis):
    s = Sketch(np.float32, opset=6)
    x = s.input(2, 5, 4, 3)
    constant = s.tensor("c", s.uniform(4 if axis == 2 else 5, low=0.5, high=1.5))
    x = s.node("Sigmoid", s.node(op, x, constant, name="old", axis=axis, broadcast=1))
    s.output(s.conv(bn(s, x, 5), 5, 3, 1, name="c1", kernel_shape=[1, 1]))
    model = s.model()
    folded = bnfold.fold(model).model
    assert "BatchNormalization" not in ops(folded)
    assert bnfold.verify(model, folded).equal
    other = onnx.ModelProto()
    other.CopyFrom(folded)
    (tensor,) = (t for t in other.graph.initializer if t.name == "c")
    tensor.CopyFrom(numpy_helper.from_array(1.01 * numpy_helper.to_array(tensor), "c"))
    assert not bnfold.verify(model, other).equal
