"""NumPy's operators compute what ONNX Runtime computes, in every form that they take."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from bnfold.frontends.onnx.read import read_proto
from bnfold.frontends.onnx.run_exact import ExactModel
from bnfold.frontends.onnx.run_numpy import NumpyModel
from bnfold.verify.runner import Lane, NotExactError
from tests.frontends.onnx.support import Sketch, run

SHAPE = (2, 6, 11, 9)


def sketched(op: str, *constants: tuple[int, ...] | float, **attributes) -> Sketch:
    s = Sketch(*SHAPE)
    names = [
        s.weight(f"k{at}", *shape) if isinstance(shape, tuple) else s.constant(f"k{at}", shape)
        for at, shape in enumerate(constants)
    ]
    s.node(op, s.at, *names, **attributes)
    return s


WINDOW = {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 2, 1]}
FORMS = {
    "Conv": [
        (((4, 6, 3, 3),), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
        (((4, 6, 3, 2), (4,)), {"dilations": [2, 3]}),
        (((4, 3, 1, 1), (4,)), {"group": 2}),
        (((4, 6, 1, 1),), {"strides": [2, 3], "pads": [1, 0, 0, 2]}),
        (((12, 1, 3, 3),), {"group": 6, "kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ],
    "MaxPool": [((), WINDOW), ((), {"kernel_shape": [2, 2], "dilations": [2, 3]})],
    "AveragePool": [((), WINDOW), ((), {**WINDOW, "count_include_pad": 1})],
    "GlobalAveragePool": [((), {})],
    "MatMul": [(((9, 4),), {})],
    "BatchNormalization": [(((6,), (6,), (6,), (6,)), {"epsilon": 0.5})],
    "Add": [(((6, 1, 1),), {})],
    "Sub": [(((9,),), {})],
    "Mul": [(((1, 6, 1, 1),), {})],
    "Div": [((3.0,), {})],
    "Sum": [(((6, 1, 1), (9,)), {})],
    "Max": [(((6, 1, 1), (9,)), {})],
    "Min": [(((6, 1, 1),), {})],
    "Clip": [((), {}), ((-0.5,), {}), ((-0.5, 0.75), {})],
    "Relu": [((), {})],
    "LeakyRelu": [((), {}), ((), {"alpha": 0.3})],
    "PRelu": [(((6, 1, 1),), {})],
    "Sigmoid": [((), {})],
    "HardSigmoid": [((), {}), ((), {"alpha": 0.4, "beta": 0.1})],
    "HardSwish": [((), {})],
    "Tanh": [((), {})],
    "Identity": [((), {})],
    "Concat": [(((2, 3, 11, 9),), {"axis": 1}), (((2, 6, 11, 2),), {"axis": -1})],
    "Flatten": [((), {}), ((), {"axis": 2}), ((), {"axis": -1}), ((), {"axis": 0})],
    "Transpose": [((), {}), ((), {"perm": [0, 2, 3, 1]})],
}
CASES = [(op, *form) for op, forms in FORMS.items() for form in forms]


@pytest.mark.parametrize(("op", "constants", "attributes"), CASES)
def test_each_operator(op, constants, attributes):
    s = sketched(op, *constants, **attributes)
    if op == "BatchNormalization":  # a variance is no negative number
        variance = np.abs(numpy_helper.to_array(s.initializers[-1])) + 0.1
        s.initializers[-1] = numpy_helper.from_array(variance, s.initializers[-1].name)
    model = s.model()
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    exact, own = NumpyModel(read_proto(model)).run([x], [Lane("float64"), Lane("float32")])
    (truth,) = ExactModel(read_proto(model)).run([x])
    (expected,) = run(model, SHAPE)
    assert exact[0].values.dtype == np.float64 and own[0].values.dtype == np.float32
    np.testing.assert_allclose(exact[0].values, truth.values, rtol=1e-12, atol=1e-13)
    for found in (exact, own):
        np.testing.assert_allclose(found[0].values, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("op", "constants", "attributes"),
    [
        ("MaxPool", (), {**WINDOW, "ceil_mode": 1}),
        ("MaxPool", (), {"kernel_shape": [3, 2], "auto_pad": "SAME_UPPER"}),
        ("AveragePool", (), {**WINDOW, "ceil_mode": 1}),
        ("AveragePool", (), {**WINDOW, "dilations": [2, 2]}),
        ("Softplus", (), {}),
        ("Conv", ((4, 5, 3, 3),), {}),
        ("Conv", ((4, 6, 3, 3),), {"pads": [-1, 0, 0, 0]}),
        ("MaxPool", (), {"kernel_shape": [2, 2], "pads": [0, -1, 0, 0]}),
        ("BatchNormalization", ((6,), (6,), (6,), (6,)), {"training_mode": 1}),
        ("Clip", (), {"min": 0.0}),
    ],
)
def test_what_is_not_run(op, constants, attributes):
    model = read_proto(sketched(op, *constants, **attributes).model())
    with pytest.raises(NotExactError):
        NumpyModel(model).run([np.ones(SHAPE, np.float32)], [Lane("float64")])


def test_an_old_opset_is_not_run():
    with pytest.raises(NotExactError, match="opset 11"):
        NumpyModel(read_proto(sketched("Relu").model(opset=11)))


def test_a_draw_is_the_same_in_both():
    s = Sketch(*SHAPE)
    s.conv(6, 4)
    s.bn(4)
    model = read_proto(s.model())
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    drawn, plain = NumpyModel(model).run([x], [Lane("float64", 3), Lane("float64")])
    (truth,) = ExactModel(model).run([x], draw=3)
    np.testing.assert_allclose(drawn[0].values, truth.values, rtol=1e-12)
    gap = np.abs(drawn[0].values - plain[0].values).max() / np.abs(plain[0].values).max()
    assert 2.0**-28 < gap < 2.0**-20


@pytest.mark.parametrize("times", [2.0**8, 2.0**10, 2.0**12])
def test_an_enlarged_draw_in_float32_moves_as_much_as_one_in_float64(times):
    s = Sketch(*SHAPE)
    for at, channels in enumerate((6, 16, 16)):
        s.conv(channels, 16, name=f"c{at}", pads=[1, 1, 1, 1])
        s.bn(16, name=f"b{at}")
        s.node("Relu")
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    lanes = [Lane("float64"), Lane("float64", 3), Lane("float32", 3, None, times)]
    plain, drawn, far = (one[0].values for one in NumpyModel(read_proto(s.model())).run([x], lanes))
    assert far.dtype == np.float32
    expected, found = drawn - plain, (far - plain) / times
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_memory_that_is_used_again_holds_no_value():
    """Two large weights go through Identity and are added; both are still there."""
    s = Sketch(1, 300, 300)
    weights = [s.weight(f"w{at}", 300, 300) for at in range(3)]
    first = s.node("MatMul", "x", weights[0])
    kept = s.node("Identity", weights[1])
    s.node("Add", s.node("MatMul", first, weights[2]), kept)
    model = s.model()
    x = np.random.default_rng(1).normal(size=(1, 300, 300)).astype(np.float32)
    exact, drawn = NumpyModel(read_proto(model)).run(
        [x], [Lane("float64"), Lane("float32", 0, None, 1.0)]
    )
    (truth,) = ExactModel(read_proto(model)).run([x])
    np.testing.assert_allclose(exact[0].values, truth.values, rtol=1e-11, atol=1e-9)
    assert np.abs(drawn[0].values - truth.values).max() < 1e-4 * np.abs(truth.values).max()
