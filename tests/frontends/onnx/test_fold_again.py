"""Steps that go once others are gone: gammas of 0, and values far out of range.

A fold looks again where one stays for these reasons, so that a second fold changes nothing.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.frontends.onnx.fold import prepare
from bnfold.frontends.onnx.read import read_proto
from tests.conformance.onnx_run import error, feeds, run
from tests.conformance.onnx_sketch import Sketch
from tests.frontends.onnx.merging import ops
from tests.frontends.onnx.support import Sketch as PlainSketch
from tests.frontends.onnx.support import assert_same

TINY = 1e-7


def bn(s: Sketch, x: str, gamma: list[float], beta: list[float], name: str) -> str:
    """With statistics that do little."""
    count = len(gamma)
    constants = {"g": gamma, "b": beta, "m": [0.1] * count, "v": [0.9] * count}
    names = [s.tensor(f"{name}_{key}", s.round(values)) for key, values in constants.items()]
    return s.node("BatchNormalization", x, *names, name=name)


def behind_an_activation(s: Sketch, x: str, *activation: str) -> str:
    """The first makes -0.7 of 0, which the activation makes 0 of, and the second forgets that."""
    x = bn(s, s.conv(x, 3, 3, name="in"), [1.2, 0.0, 0.8], [0.3, -0.7, 0.4], "first")
    x = s.node(activation[0], x, *activation[1:], name="between")
    return bn(s, x, [1.5, 0.0, 0.7], [-0.2, 0.5, 0.3], "second")


def relu(s: Sketch, x: str) -> str:
    return behind_an_activation(s, x, "Relu")


def relu6(s: Sketch, x: str) -> str:
    return behind_an_activation(
        s, x, "Clip", s.tensor("low", s.round(0.0)), s.tensor("high", s.round(6.0))
    )


def clip_above_zero(s: Sketch, x: str) -> str:
    return behind_an_activation(s, x, "Clip", s.tensor("low", s.round(0.2)))


def relu_and_pool(s: Sketch, x: str) -> str:
    x = bn(s, s.conv(x, 3, 3, name="in"), [1.2, 0.0, 0.8], [0.3, -0.7, 0.4], "first")
    x = s.node("MaxPool", s.node("Relu", x), kernel_shape=[2, 2], strides=[2, 2])
    return bn(s, x, [1.5, 0.0, 0.7], [-0.2, 0.5, 0.3], "second")


def sum_of_branches(s: Sketch, x: str, *gammas: list[float]) -> str:
    """A channel of the sum is hardly there; what one of its operands adds to it, neither."""
    branches = [s.conv(x, 3, 3, 1, name="plain")]
    for place, gamma in enumerate(gammas):
        y = s.conv(s.input(2, 3, 6, 6, name=f"x{place}"), 3, 3, 1, name=f"c{place}")
        branches.append(bn(s, y, gamma, [0.3, -0.5, 0.2], f"branch{place}"))
    x = s.node("Sum", *branches, name="sum")
    return s.node("Relu", bn(s, x, [0.9, 1.2, TINY], [0.3, 0.1, 0.4], "behind"), name="relu")


def three_branches(s: Sketch, x: str) -> str:
    x = s.node("Relu", x, name="first")
    rows = [[TINY, 0.9, 1.2], [TINY, 1.2, TINY], [0.6, 1.2, 0.9]]
    return sum_of_branches(s, x, *rows)


def two_branches(s: Sketch, x: str) -> str:
    return sum_of_branches(s, s.node("Relu", x, name="first"), [0.7, 1.1, TINY], [0.6, 1.2, 0.9])


def a_mean_of_what_is_hardly_there(s: Sketch, x: str) -> str:
    x = bn(s, s.conv(x, 3, 3, name="in"), [TINY, 0.5, 0.7], [0.4, 0.3, -0.2], "first")
    x = s.node("Mean", x, s.node("GlobalAveragePool", s.node("Relu", x)))
    return bn(s, x, [0.4, 0.8, TINY], [0.5, -0.3, 0.6], "second")


AGAIN = [
    relu,
    relu6,
    relu_and_pool,
    three_branches,
    two_branches,
    a_mean_of_what_is_hardly_there,
]
FORMS = [*AGAIN, clip_above_zero]


def model_of(form) -> onnx.ModelProto:
    s = Sketch(np.float32, seed=5)
    x = form(s, s.input(2, 3, 6, 6))
    s.output(s.conv(s.node("LeakyRelu", x, alpha=0.1, name="leaky"), 3, 4, 3, name="out", pad=1))
    return s.model()


@pytest.mark.parametrize("merge", ["auto", "never"])
@pytest.mark.parametrize("clip", ["auto", "always", "never"])
@pytest.mark.parametrize("form", FORMS)
def test_a_second_fold_changes_nothing(form, clip, merge):
    model = model_of(form)
    folded, report = bnfold.fold(model, clip=clip, merge=merge)
    for feed in feeds(model):
        assert error(run(model, feed), run(folded, feed)) < 1e-5
    assert bnfold.fold(folded, clip=clip, merge=merge).model == folded
    assert len({item.name for item in report.items}) == len(report.items)
    assert report.removed == report.total - ops(folded).count("BatchNormalization")


@pytest.mark.parametrize("form", AGAIN)
def test_these_do_look_again(form):
    folding = prepare(read_proto(model_of(form)), None, clip="always")
    assert folding.earlier is not None
    assert folding.plan.removed


@pytest.mark.parametrize("size", [1e15, 1e20, 1e30])
@pytest.mark.parametrize("clip", ["auto", "always", "never"])
def test_what_overflows_the_second_time_ends_the_search(size, clip):
    """Two steps with a channel of 1e20: one stays for its range, the other for its new numbers."""
    s = PlainSketch(2, 1)
    for name, gamma, beta, mean, variance in (
        ("first", size, -0.25, -1.6, 46.0),
        ("second", size, -0.7, size, 0.6),
    ):
        parts = zip("gbmv", (gamma, beta, mean, variance), strict=True)
        names = [s.constant(f"{name}_{key}", [float(number)]) for key, number in parts]
        s.node("BatchNormalization", s.at, *names, name=name)
    report = bnfold.fold(s.model(), clip=clip).report
    assert report.kept and {item.reason for item in report.items if item.reason} <= {
        bnfold.Reason.SCALE_RANGE,
        bnfold.Reason.OVERFLOW,
        bnfold.Reason.GRAPH_OUTPUT,
    }


@pytest.mark.parametrize("gamma", [1e-4, 1e-8, 1e-12, 1e-13, 1e-20, 1e-30])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("shows", [True, False])
def test_a_dead_channel_of_one_reader_leaves_the_others_digits(gamma, adds, shows):
    """Two BatchNorms read a convolution, one through an Add; a gamma of one of them is tiny."""
    s = PlainSketch(1, 3, 4, 4)
    made = s.conv(3, 4, 1)
    source = s.node("Add", s.weight("shift", 1, 4, 1, 1), made) if adds else made
    s.at = source
    dead = s.bn(4, name="dead")
    stored = next(tensor for tensor in s.initializers if tensor.name == "dead_g")
    factors = onnx.numpy_helper.to_array(stored).copy()
    factors[1] = gamma
    stored.CopyFrom(onnx.numpy_helper.from_array(factors, stored.name))
    s.at = made
    live = s.bn(4, name="live")
    total = s.node("Add", live, dead)
    model = s.model(*((total, live) if shows else (total,)))
    folded = bnfold.fold(model).model
    assert_same(model, folded, (1, 3, 4, 4), tolerance=1e-4)
    assert bnfold.verify(model, folded).equal
    again = bnfold.fold(folded).model
    assert_same(model, again, (1, 3, 4, 4), tolerance=1e-4)


@pytest.mark.parametrize("size", [1.0, 1e5, 1e12, 1e14, 1e19])
@pytest.mark.parametrize("then", ["", "Relu"])
def test_a_constant_behind_a_factor_of_any_size(size, then):
    """What a dead channel becomes is computed through the step in front of it."""
    s = PlainSketch(1, 2, 2, 2)
    s.conv(2, 2, 1)
    for name, gamma, beta, mean in (
        ("one", [size, 1.0], 0.5, 0.25),
        ("two", [0.0, 1.0], 1.75, -0.5),
    ):
        parts = (gamma, [beta] * 2, [mean] * 2, [1.0] * 2)
        names = [s.constant(f"{name}_{k}", part) for k, part in zip("gbmv", parts, strict=True)]
        s.node("BatchNormalization", s.at, *names, name=name)
    if then:
        s.node(then)
    model = s.model()
    assert_same(model, bnfold.fold(model).model, (1, 2, 2, 2), tolerance=1e-5)


NUMBERS = {"g": "-0.9,0.6,1.4", "b": "-1.2,0.1,-1.1", "m": "-0.1,0.7,0.2", "v": "0.6,1.5,0.3"}
ONE = {"g": "-1.1", "b": "0.4", "m": "0.3", "v": "1.4"}


def text(words: str, *, channels: int) -> onnx.ModelProto:
    """A model with a BatchNorm's constants, some numbers, and `words`."""
    constants = NUMBERS if channels == 3 else ONE
    held = [f"float[{channels}] {name} = {{{values}}}" for name, values in constants.items()]
    held += [f"float[1,{channels}] d = {{{'0.5,-0.9,1.2' if channels == 3 else '-1.1'}}}"]
    held += ["float[1,1] e = {0.9}", "float[3,1] w = {0.4,0.1,-0.3}", "float[1,1] k = {-0.7}"]
    return onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        f"net (float[N,3] x) => (float[N,C] y)\n<{', '.join(held)}>\n{{ {words} }}"
    )


TURNS = {
    "a sum given up for a number behind": (
        3,
        "a = BatchNormalization(x,g,b,m,v) q = Div(a,d) s = Add(a,q) y = Add(s,e)",
    ),
    "numbers on one channel": (
        1,
        "z = MatMul(x,w) p = Mul(z,k) q = Add(p,e) n = BatchNormalization(q,g,b,m,v)"
        " o = Mul(n,d) y = Concat<axis=1>(p,o)",
    ),
    "a constant that was normalised": (
        1,
        "z = MatMul(x,w) t = Tanh(z) a = BatchNormalization(t,g,b,m,v)"
        " c = BatchNormalization(k,g,b,m,v) y = Add(a,c)",
    ),
}


@pytest.mark.parametrize("merge", ["auto", "never"])
@pytest.mark.parametrize("clip", ["auto", "always", "never"])
@pytest.mark.parametrize(("channels", "words"), TURNS.values(), ids=TURNS)
def test_steps_that_go_in_turn(channels, words, clip, merge):
    model = text(words, channels=channels)
    folded = bnfold.fold(model, clip=clip, merge=merge).model
    for batch in (1, 2, 5):
        assert_same(model, folded, (batch, 3))
    assert bnfold.fold(folded, clip=clip, merge=merge).model == folded


@pytest.mark.parametrize("then", ["", "Relu", "LeakyRelu"])
@pytest.mark.parametrize(
    ("gamma", "beta", "removed"),
    [
        ([0.0, 0.0, 0.0], [0.3, 0.7, 0.5], 0),
        ([0.0, 0.0, 0.0], [0.4, 0.4, 0.4], 1),
        ([0.0, 1.5, 0.0], [0.3, 0.7, 0.5], 0),
        ([2.0, 2.0, 2.0], [0.4, 0.4, 0.4], 0),
    ],
)
def test_dead_channels_that_a_matrix_does_not_tell_apart(then, gamma, beta, removed):
    """Rows are normalised each by its own, and the matrix has one weight for all of a column."""
    s = PlainSketch("n", 3, 4)
    parts = zip("gbmv", (gamma, beta, [0.1, -0.2, 0.3], [0.9, 1.1, 1.4]), strict=True)
    names = [s.constant(key, part) for key, part in parts]
    s.node("BatchNormalization", s.at, *names, name="bn")
    if then:
        s.node(then)
    s.node("MatMul", s.at, s.weight("w", 4, 5))
    s.node("Add", s.at, s.weight("c", 5))
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == removed
    for batch in (1, 2, 5):
        assert_same(model, folded, (batch, 3, 4))
