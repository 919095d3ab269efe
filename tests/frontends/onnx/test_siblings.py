"""Linear nodes of one tensor whose outputs are concatenated: one node with all filters."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from tests.conformance.onnx_sketch import Sketch
from tests.frontends.onnx.merging import X, drawn, folded, ops


def conv(s: Sketch, x: str, outs: int, name: str, kernel: int = 3, **options) -> str:
    return s.conv(x, 4, outs, kernel, name=name, **{"pad": kernel // 2} | options)


def joined(s: Sketch, *parts: str, axis: int = 1, name: str = "cat", act: str = "Relu") -> None:
    s.output(s.node(act, s.node("Concat", *parts, axis=axis, name=name), name="act"))


# -------------------------------------------------------------------- what must not


def read_elsewhere(s):
    x = s.input(*X)
    a, b = conv(s, x, 3, "a"), conv(s, x, 2, "b")
    joined(s, a, b)
    s.output(s.node("Sigmoid", b))


def output_of_the_graph(s):
    x = s.input(*X)
    a, b = conv(s, x, 3, "a"), conv(s, x, 2, "b")
    joined(s, a, b)
    s.output(a)


def read_twice(s):
    x = s.input(*X)
    a, b = conv(s, x, 3, "a"), conv(s, x, 2, "b")
    joined(s, a, b, a)


def not_adjacent(s):
    x = s.input(*X)
    joined(s, conv(s, x, 3, "a"), s.node("Sigmoid", x), conv(s, x, 2, "b"))


def other_kernel(s):
    x = s.input(*X)
    joined(s, conv(s, x, 3, "a"), conv(s, x, 2, "b", 1))


def other_input(s):
    x = s.input(*X)
    joined(s, conv(s, x, 3, "a"), conv(s, s.node("Sigmoid", x), 2, "b"))


def other_padding(s):
    x = s.input(*X)
    a = conv(s, x, 3, "a", pad=0, pads=[2, 0, 0, 2])
    joined(s, a, conv(s, x, 2, "b", pad=0, pads=[0, 2, 2, 0]))


def other_axis(s):
    x = s.input(*X)
    joined(s, conv(s, x, 3, "a"), conv(s, x, 3, "b"), axis=2)


def grouped(s):
    x = s.input(*X)
    joined(s, conv(s, x, 4, "a", groups=2), conv(s, x, 4, "b", groups=2))


def other_same_with_a_stride(s):
    """Where one cell of padding is odd, it lies on either side."""
    x = s.input("N", 4, "H", "W")
    options = {"pad": 0, "strides": [2, 2]}
    upper = conv(s, x, 3, "a", auto_pad="SAME_UPPER", **options)
    joined(s, upper, conv(s, x, 2, "b", auto_pad="SAME_LOWER", **options))


def shared_weight(s):
    x = s.input(*X)
    a = conv(s, x, 3, "a")
    joined(s, a, s.node("Conv", x, "a_w", name="b", pads=[1] * 4))


def other_activations(s):
    x = s.input(*X)
    a, b = s.node("Relu", conv(s, x, 3, "a")), conv(s, x, 2, "b")
    joined(s, a, s.node("LeakyRelu", b, alpha=0.2))


def queries(s):
    """q, k and v go different ways."""
    x = s.input(2, 5, 4)
    for name in "qkv":
        weight = s.tensor(f"{name}_w", s.uniform(4, 4))
        s.output(s.node("Sigmoid", s.node("MatMul", x, weight, name=name)))


STAYS = (
    read_elsewhere,
    output_of_the_graph,
    read_twice,
    not_adjacent,
    other_kernel,
    other_input,
    other_padding,
    other_axis,
    grouped,
    other_same_with_a_stride,
    shared_weight,
    other_activations,
    queries,
)


@pytest.mark.parametrize("draw", STAYS, ids=lambda draw: draw.__name__)
def test_stays(draw) -> None:
    _, report = folded(draw)
    assert not report.merged


def test_float16_that_another_dtype_is_cast_to() -> None:
    def cast(s):
        x = s.input(*X)
        s.output(s.node("Relu", conv(s, x, 2, "a")))
        joined(s, conv(s, x, 3, "b"), conv(s, x, 2, "c", 1))

    _, report = folded(cast)
    assert not report.merged


# -------------------------------------------------------------------- what must


def plain(s):
    x = s.input(*X)
    joined(s, conv(s, x, 3, "a"), conv(s, x, 5, "b", bias=False))


def without_biases(s):
    x = s.input(*X)
    joined(s, *(conv(s, x, 2, name, bias=False) for name in "abc"))


def with_batch_norms(s):
    x = s.input("N", 4, "H", "W")
    a, b = conv(s, x, 3, "a", bias=False), conv(s, x, 2, "b")
    gamma = [1.5, 0.0, -0.7]
    joined(s, s.bn(a, 3, name="a_bn", gamma=gamma), s.bn(b, 2, name="b_bn"))


def behind_the_concat(s):
    x = s.input(*X)
    whole = s.node("Concat", conv(s, x, 3, "a"), conv(s, x, 2, "b"), axis=1, name="cat")
    s.output(s.node("Relu", s.bn(whole, 5), name="act"))


def as_an_output(s):
    x = s.input(*X)
    s.output(s.node("Concat", conv(s, x, 3, "a"), conv(s, x, 2, "b"), axis=-3, name="cat"))


def strided(s):
    x = s.input("N", 4, "H", "W")
    joined(s, *(conv(s, x, outs, f"c{outs}", strides=[2, 2]) for outs in (1, 2, 3)))


def same_padding(s):
    x = s.input("N", 4, "H", "W")
    a = conv(s, x, 3, "a", pad=0, auto_pad="SAME_UPPER")
    joined(s, a, conv(s, x, 2, "b"))


def transposed(s):
    x = s.input(*X)
    options = {"op": "ConvTranspose", "kernel": 2, "pad": 0, "strides": [2, 2]}
    joined(s, *(conv(s, x, outs, f"c{outs}", **options) for outs in (3, 2)))


def one_axis(s):
    x = s.input(2, 4, "L")
    joined(s, *(conv(s, x, outs, f"c{outs}", rank=1) for outs in (3, 2)))


def gemms(s):
    x = s.input(3, 4)
    joined(s, *(s.gemm(x, 4, outs, name=f"fc{outs}") for outs in (3, 2)))


def matrices(s):
    x = s.input(2, 5, 4)
    parts = [
        s.node("MatMul", x, s.tensor(f"w{outs}", s.uniform(4, outs)), name=f"fc{outs}")
        for outs in (3, 2)
    ]
    parts[1] = s.node("Add", parts[1], s.tensor("b", s.uniform(2)))
    joined(s, *parts, axis=2)


@pytest.mark.parametrize(
    ("draw", "left"),
    [
        (plain, ["Conv", "Relu"]),
        (without_biases, ["Conv", "Relu"]),
        (with_batch_norms, ["Conv", "Relu"]),
        (behind_the_concat, ["Conv", "Relu"]),
        (as_an_output, ["Conv"]),
        (strided, ["Conv", "Relu"]),
        (same_padding, ["Conv", "Relu"]),
        (transposed, ["ConvTranspose", "Relu"]),
        (one_axis, ["Conv", "Relu"]),
        (gemms, ["Gemm", "Relu"]),
        (matrices, ["MatMul", "Add", "Relu"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_one_node_is_left(draw, left) -> None:
    model, report = folded(draw)
    assert ops(model) == left
    assert "cat" in {part for merged in report.merged for part in merged.parts}
    assert not report.kept


def test_the_concat_keeps_others() -> None:
    def around(s):
        x = s.input(*X)
        other = s.node("Sigmoid", x)
        joined(s, other, conv(s, x, 3, "a"), conv(s, x, 2, "b"), s.node("Tanh", x))

    model, report = folded(around)
    assert ops(model) == ["Sigmoid", "Conv", "Tanh", "Concat", "Relu"]
    assert [(m.into, m.parts) for m in report.merged] == [("a", ("b",))]


def test_two_runs_of_one_concat() -> None:
    def runs(s):
        x = s.input(*X)
        joined(s, *(conv(s, x, 2, name) for name in "ab"), *(conv(s, x, 1, n, 1) for n in "cd"))

    model, _ = folded(runs)
    assert ops(model) == ["Conv", "Conv", "Concat", "Relu"]


@pytest.mark.parametrize(
    ("op", "more"), [("Relu", {}), ("LeakyRelu", {"alpha": 0.2}), ("Clip", {}), ("Abs", {})]
)
def test_with_an_activation_each(op, more) -> None:
    def activated(s):
        x = s.input("N", 4, "H", "W")
        parts = [s.bn(conv(s, x, outs, f"c{outs}"), outs, name=f"bn{outs}") for outs in (3, 2)]
        limits = {"low": 0.0, "high": 0.7} if op == "Clip" else {}
        bounds = [s.tensor(name, s.round(limit)) for name, limit in limits.items()]
        parts = [s.node(op, part, *bounds, name=f"{part}_act", **more) for part in parts]
        joined(s, *parts, act="Sigmoid")

    model, report = folded(activated)
    assert ops(model) == ["Conv", op, "Sigmoid"]
    assert not report.kept


def test_with_activations_in_a_concat_that_keeps_others() -> None:
    def activated(s):
        x = s.input(*X)
        parts = [s.node("Relu", conv(s, x, outs, f"c{outs}")) for outs in (3, 2)]
        joined(s, *parts, s.node("Tanh", x))

    model, _ = folded(activated)
    assert ops(model) == ["Conv", "Relu", "Tanh", "Concat", "Relu"]


def test_a_concat_in_a_concat() -> None:
    def nested(s):
        x = s.input(*X)
        inner = s.node("Concat", conv(s, x, 3, "a"), conv(s, x, 2, "b"), axis=1)
        joined(s, inner, conv(s, x, 1, "c"))

    assert ops(folded(nested)[0]) == ["Conv", "Relu"]


def test_behind_other_merges() -> None:
    """Branches that are added up first, and the pointwise convolution in front at last."""

    def branches(s):
        x = s.conv(s.input(*X), 4, 4, 1, name="front")
        total = s.node("Add", conv(s, x, 4, "a", 1), conv(s, x, 4, "b", 1), name="sum")
        joined(s, total, conv(s, x, 4, "c", 1))

    assert ops(folded(branches)[0]) == ["Conv", "Relu"]


def test_that_it_can_be_turned_off() -> None:
    model = drawn(plain)
    made, report = bnfold.fold(model, merge="never")
    assert (ops(made), report.merged) == (ops(model), ())


def test_numbers_that_do_not_fit() -> None:
    """Weights are stacked as they are; so all fit that did."""

    def large(s):
        x = s.input(*X)
        joined(s, conv(s, x, 3, "a"), conv(s, x, 2, "b"))
        for tensor in s.initializers:
            if tensor.name == "b_w":
                array = 1e30 * numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(array, "b_w"))

    model = drawn(large, np.float32)
    made, _ = bnfold.fold(model)
    assert ops(made) == ["Conv", "Relu"]
    onnx.checker.check_model(made, full_check=True)
