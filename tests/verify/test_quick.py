"""The quick judge of `bnfold fold`: it says "equal" where the full one would, or nothing."""

from __future__ import annotations

import sys
from threading import Event, current_thread

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import bnfold
from bnfold.core.rescaling import Rescaling
from bnfold.frontends.onnx.fold import prepare
from bnfold.frontends.onnx.read import read_proto
from bnfold.frontends.onnx.runner import model_runner
from bnfold.verify.compare import gaps
from bnfold.verify.quick import _Worker, run_ahead
from bnfold.verify.result import VerifyResult
from bnfold.verify.verdict import median
from tests.frontends.onnx.support import Sketch


def network(*shape: int | str, data_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Convolutions in all their forms, with activations, a shortcut and a head."""
    s = Sketch(*(shape or (1, 3, 32, 32)), data_type=data_type)
    s.conv(3, 8, name="c1", pads=[1, 1, 1, 1], strides=[2, 2])
    s.bn(8, name="b1")
    first = s.node("Relu")
    s.conv(8, 8, name="c2", pads=[1, 1, 1, 1], group=4)
    s.bn(8, name="b2")
    s.node("Add", s.at, first)
    s.node("Relu")
    s.conv(8, 12, 1, name="c3")
    s.bn(12, name="b3")
    s.node("LeakyRelu", alpha=0.2)
    s.node("GlobalAveragePool")
    s.node("Flatten")
    s.node("Gemm", s.at, s.weight("head", 5, 12), transB=1)
    return s.model()


def judged(
    original: onnx.ModelProto, folded: onnx.ModelProto, clip: str = "always"
) -> VerifyResult | None:
    first = model_runner(original, None, "original")
    quick = run_ahead(first)
    if quick is None:
        return None
    folding = prepare(read_proto(original), None, clip=clip)
    guesses = [folding.rescalings]
    quick.look_inside(guesses)
    return quick.judge(model_runner(folded, None, "folded"), guesses)


def changed(model: onnx.ModelProto, node: str, at: int, change) -> onnx.ModelProto:
    """The weights that a node reads at an input, changed."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    (reader,) = [n for n in wrong.graph.node if n.name == node]
    (tensor,) = [t for t in wrong.graph.initializer if t.name == reader.input[at]]
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return wrong


# ------------------------------------------------------------------- one thread for both


def test_a_thread_goes_on_with_what_it_is_given():
    worker, goes_on, seen = _Worker(), Event(), []

    def first() -> int:
        goes_on.wait(60)
        seen.append(current_thread())
        return 1

    def second() -> int:
        seen.append(current_thread())
        raise ValueError

    one, two = worker.begin(first), worker.begin(second)
    goes_on.set()
    assert (one.get(), two.get()) == (1, None)
    assert seen[0] is seen[1] is not current_thread()
    seen[0].join(60)
    assert not seen[0].is_alive()
    assert worker.begin(lambda: 3).get() == 3


# ------------------------------------------------------------------- nothing is said


def relative(array):
    array.reshape(-1)[7] *= 1.001


def absolute(array):
    array.reshape(-1)[11] += 1e-3


def forgotten(array):
    array[np.flatnonzero(array)[0]] = 0.0


def dead(array):
    array[2] = 0.0


def swapped(array):
    array[[0, 1]] = array[[1, 0]]


def flipped(array):
    array[3] *= -1.0


@pytest.mark.parametrize("size", [(1, 3, 32, 32), (1, 3, 160, 128), ("N", 3, "H", "W")])
@pytest.mark.parametrize("node", ["c1", "c2", "c3"])
@pytest.mark.parametrize("fault", [relative, absolute, forgotten, dead, swapped, flipped])
def test_a_fault_is_left_to_the_full_judge(size, node, fault):
    original = network(*size)
    folded = bnfold.fold(original, clip="always").model
    wrong = changed(folded, node, 2 if fault is forgotten else 1, fault)
    assert judged(original, wrong) is None


def test_a_fault_that_never_reaches_the_output():
    original = network()
    folded = bnfold.fold(original, clip="always").model
    cut = changed(folded, "gemm12", 1, lambda array: array.__setitem__((slice(None), 4), 0.0))
    base = changed(original, "gemm12", 1, lambda array: array.__setitem__((slice(None), 4), 0.0))
    assert judged(base, cut) is not None
    wrong = changed(cut, "c3", 1, lambda array: array.__setitem__(4, 1.01 * array[4]))
    assert judged(base, wrong) is None


def test_what_is_true_of_one_size_only():
    original = network("N", 3, "S", "S")
    folded = bnfold.fold(original, clip="always").model
    side = model_runner(original, None, "original").specs[0].shape[2] // 2
    wrong = onnx.ModelProto()
    wrong.CopyFrom(folded)
    (pool,) = [node for node in wrong.graph.node if node.op_type == "GlobalAveragePool"]
    pool.op_type = "AveragePool"
    pool.attribute.append(onnx.helper.make_attribute("kernel_shape", [side, side]))
    assert judged(original, wrong) is None


def head(s: Sketch, channels: int) -> None:
    """The outputs do not move with channel 2."""
    weight = s.rng.normal(size=(5, channels))
    weight[:, 2] = 0.0
    s.node("GlobalAveragePool")
    s.node("Flatten")
    s.node("Gemm", s.at, s.constant("head", weight), transB=1)


def with_a_dilated_kernel(*shape: int | str) -> onnx.ModelProto:
    """On a quarter of 96 rows a dilation of 30 leaves the elements at the edge in the border."""
    s = Sketch(*shape)
    s.conv(3, 8, name="c1", pads=[1, 1, 1, 1], strides=[4, 4])
    s.conv(8, 6, name="last", pads=[30] * 4, dilations=[30, 30])
    s.bn(6)
    head(s, 6)
    return s.model()


def with_many_strides(*shape: int | str) -> onnx.ModelProto:
    """A 128th of 96 rows is one row."""
    s = Sketch(*shape)
    for at in range(7):
        s.conv(3, 3, 1, name=f"c{at}", strides=[2, 2])
    s.conv(3, 6, name="last", pads=[1, 1, 1, 1])
    s.bn(6)
    head(s, 6)
    return s.model()


def with_a_large_kernel(*shape: int | str) -> onnx.ModelProto:
    """A kernel of 25 rows, of which 16 reach into 8 rows or fewer."""
    s = Sketch(*shape)
    s.conv(3, 6, 1, name="c1", strides=[12, 12])
    s.conv(6, 6, 25, name="last", pads=[12] * 4, group=6)
    s.bn(6)
    head(s, 6)
    return s.model()


def with_a_pooling_of_all(*shape: int | str) -> onnx.ModelProto:
    """A pooling of 64 rows in steps of 64, of which 24 rows leave nothing; a branch beside it."""
    s = Sketch(*shape)
    s.conv(3, 6, 1, name="c1", strides=[4, 4])
    s.node("AveragePool", kernel_shape=[64, 64], strides=[64, 64])
    s.conv(6, 6, 1, name="last")
    s.bn(6)
    one = s.node("GlobalAveragePool")
    s.at = "c1_out"
    two = s.node("GlobalAveragePool")
    s.node("Concat", one, two, axis=1)
    head(s, 12)
    return s.model()


BEYOND = [with_a_dilated_kernel, with_many_strides, with_a_large_kernel, with_a_pooling_of_all]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [256, "S"])
@pytest.mark.parametrize("make", BEYOND)
def test_weights_that_a_smaller_image_does_not_reach(make, side):
    model = make("N" if side == "S" else 1, 3, side, side)
    folded = bnfold.fold(model, {"x": (1, 3, 256, 256)}, merge="never").model
    wrong = changed(folded, "last", 1, lambda array: array.__setitem__((2, 0, 0, 0), 1e-3))
    assert judged(model, wrong) is None
    assert not bnfold.verify(model, wrong, {"x": (1, 3, 256, 256)}, samples=1).equal


@pytest.mark.parametrize("side", [1, 2, 31])
def test_a_size_at_which_the_model_itself_reaches_no_more(side):
    model = with_many_strides(1, 3, side, side)
    assert judged(model, bnfold.fold(model).model) is not None


def test_windows_that_take_too_much_memory():
    s = Sketch(1, 3, 96, 96)
    s.conv(3, 32, 1)
    s.conv(32, 32, 17, name="large", pads=[8, 8, 8, 8])
    s.bn(32)
    model = s.model()
    assert judged(model, bnfold.fold(model).model) is None


@pytest.mark.parametrize("what", ["float16", "an operator", "an attribute", "a fixed shape"])
def test_what_numpy_does_not_run(what):
    if what == "float16":
        model = network(data_type=TensorProto.FLOAT16)
    else:
        s = Sketch(1, 3, 128, 128)
        s.conv(3, 4, pads=[1, 1, 1, 1])
        s.bn(4)
        if what == "an operator":
            s.node("Softplus")
        elif what == "an attribute":
            s.node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
        else:
            s.node("Flatten")
            s.node("Gemm", s.at, s.weight("head", 4 * 128 * 128, 2))
        model = s.model()
    folded = bnfold.fold(model, clip="always").model
    assert judged(model, folded) is None
    shapes = {"x": tuple(model_runner(model, None, "it").specs[0].shape)}
    assert bnfold.verify(model, folded, shapes, samples=1).equal


def test_without_onnx_runtime(monkeypatch):
    original = network()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert judged(original, bnfold.fold(original, clip="always").model) is None


@pytest.mark.parametrize("shift", [0.0, 2.0**17])
def test_a_fold_that_loses_digits(shift):
    """The folded model stores v + shift between two convolutions; in float64 that is the same."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 3, 3, 3)), rng.integers(-99, 99, (5, 4, 1, 1)) / 64
    models = []
    for by in (0.0, shift):
        s = Sketch(1, 3, 16, 16)
        b1, b2 = np.full(4, by), -by * second.sum((1, 2, 3))
        s.node("Conv", "x", s.constant("w1", first), s.constant("b1", b1), output="c1_out")
        s.node("Conv", s.at, s.constant("w2", second), s.constant("b2", b2), output="c2_out")
        models.append(s.model())
    original, folded = models
    quick = run_ahead(model_runner(original, None, "original"))
    one = np.ones((4, 1, 1))
    stored = {"c1_out": Rescaling(one, shift * one, one > 0)}
    assert quick is not None
    result = quick.judge(model_runner(folded, None, "folded"), [stored])
    assert (result is None) == (shift > 0.0)


# ------------------------------------------------------------------- equal


@pytest.mark.parametrize("size", [(1, 3, 32, 32), (2, 3, 160, 128), ("N", 3, "H", "W")])
@pytest.mark.parametrize("clip", ["always", "never", "auto"])
def test_a_right_fold_is_equal(size, clip):
    original = network(*size)
    result = judged(original, bnfold.fold(original, clip=clip).model, clip)
    assert result is not None and result.equal and result.truth == "float64"
    assert len(result.layers) >= 8 and all(layer.equal for layer in result.layers)
    (output,) = result.outputs
    assert output.error <= output.allowed and output.max_absolute > 0.0
    assert result.samples == (1 if isinstance(size[2], int) else 3)
    assert bool(result.scope) == (size != (1, 3, 32, 32)), result.scope
    assert VerifyResult.from_json(result.to_json()) == result


def test_it_says_what_it_ran():
    original = network(1, 3, 160, 128)
    result = judged(original, bnfold.fold(original, clip="always").model)
    assert result is not None
    assert result.scope == "every tensor in float64 at 1x3x96x96, outputs at 1x3x160x128"
    assert result.scope in " ".join(str(result).split())
    assert set(result.runtimes) == {"onnxruntime", "numpy"}


@pytest.mark.parametrize("at", ["c1", "c3"])
def test_nothing_is_said_where_float32_overflows_and_float64_does_not(at):
    original = network()
    folded = bnfold.fold(original, clip="always").model
    large = [
        changed(model, at, 1, lambda array: array.__imul__(np.float32(1e38)))
        for model in (original, folded)
    ]
    assert judged(*large) is None


@pytest.mark.parametrize("values", [[3.0], [2.0, 1.0], [5.0, 1.0, 2.0], [4.0, 1.0, 3.0, 2.0]])
def test_the_median(values):
    assert median(np.array(values)) == np.median(values)


def test_gaps_between_what_is_not_finite():
    inf, nan = np.inf, np.nan
    a = np.array([inf, -inf, nan, inf, nan, 1.0, inf, 2.0])
    b = np.array([inf, -inf, nan, -inf, 1.0, nan, 3.0, 2.5])
    found = gaps(a, b)
    assert found[[0, 1, 2]].tolist() == [0.0] * 3
    assert np.isinf(found[[3, 4, 5, 6]]).all()
    assert found[7] == 0.5
