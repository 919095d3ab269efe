"""Axes of which nobody knows anything before the network runs: the data, or a stranger, decides.

Whatever their lengths are, no element may come to another channel: the folded model is run on
several inputs, for each of which the data decides otherwise.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import bnfold
from tests.frontends.onnx.support import Sketch, run

X = (2, 3, 9, 8)


class Net(Sketch):
    """A sketch with numbers that the data decides."""

    def list(self, *numbers: int) -> str:
        return self.constant(f"list{len(self.initializers)}", np.array(numbers))

    def number(self, count: int, least: int) -> str:
        """One of `count` numbers, by the place of x's largest element."""
        flat = self.node("Reshape", "x", self.list(-1))
        place = self.node("ArgMax", flat, axis=0)
        return self.node("Add", self.node("Mod", place, self.list(count)), self.list(least))

    def convolved(self, source: str, ins: int, outs: int, **options: int) -> str:
        """A convolution that keeps the size, and a BatchNormalization."""
        self.at = source
        name = f"c{len(self.nodes)}"
        self.conv(ins, outs, name=name, pads=[1, 1, 1, 1], **options)
        return self.bn(outs, name=f"{name}_bn")

    def bn_of(self, source: str, channels: int) -> str:
        self.at = source
        return self.bn(channels, name=f"bn{len(self.nodes)}")


# ---------------------------------------------------------------- what nobody knows beforehand


def rows(s: Net) -> str:
    return s.node("Slice", "x", s.list(0), s.number(3, 4), s.list(2))


def samples(s: Net) -> str:
    return s.node("Slice", "x", s.list(0), s.number(2, 1), s.list(0))


def some_samples(s: Net) -> str:
    mean = s.node("ReduceMean", "x", axes=[1, 2, 3], keepdims=0)
    return s.node("Compress", "x", s.node("Greater", mean, s.constant("low", -9.0)), axis=0)


def chosen_samples(s: Net) -> str:
    mean = s.node("ReduceMax", "x", axes=[1, 2, 3], keepdims=0)
    places = s.node("NonZero", s.node("Greater", mean, s.constant("low", 0.0)))
    return s.node("Gather", "x", s.node("Squeeze", places, s.list(0)), axis=0)


def hidden_rank(s: Net) -> str:
    """A Reshape to numbers of which not even the count is known."""
    zero = s.node("Cast", s.node("ReduceSum", s.node("Sub", "x", "x"), keepdims=0), to=7)
    shape = s.node("Add", s.node("Shape", "x"), zero)
    above = s.node("Greater", shape, s.list(-1))
    return s.node("Reshape", "x", s.node("Compress", shape, above, axis=0))


def out_of_a_sequence(s: Net) -> str:
    parts = s.node("SplitToSequence", "x", s.list(1, 1), axis=0)
    return s.node("ConcatFromSequence", parts, axis=0)


SOURCES = [rows, samples, some_samples, chosen_samples, hidden_rank, out_of_a_sequence]


# ---------------------------------------------------------------- where lengths could do harm


def scaled_by_a_length(s: Net, y: str) -> None:
    """Rows, as a factor: not a number."""
    length = s.node("Cast", s.node("Gather", s.node("Shape", y), s.list(2)), to=1)
    s.at = s.node("Mul", s.convolved(y, 3, 4), length)
    s.conv(4, 3, name="last")


def summed_over_rows(s: Net, y: str) -> None:
    """So many times a shift as there are rows."""
    y = s.node("Sigmoid", s.convolved(y, 3, 4))
    s.at = s.node("ReduceSum", s.bn_of(y, 4), s.list(2), keepdims=1)
    s.conv(4, 3, kernel=1, name="last")


def samples_become_channels(s: Net, y: str) -> None:
    """(N, 4, H, W) -> (4, N, H, W) without a Transpose."""
    y = s.convolved(y, 3, 4)
    shape = s.node("Shape", y)
    sizes = [s.node("Gather", shape, s.list(axis)) for axis in (0, 2, 3)]
    target = s.node("Concat", s.list(4), *sizes, axis=0)
    s.node("Mul", s.node("Reshape", y, target), s.weight("factors", 4, 1, 1, 1))


def first_channels(s: Net, y: str) -> None:
    """As many channels as there are samples."""
    y = s.convolved(y, 3, 4)
    end = s.node("Min", s.node("Gather", s.node("Shape", y), s.list(0)), s.list(3))
    s.node("ReduceSum", s.node("Slice", y, s.list(0), end, s.list(1)), s.list(1))


def a_channel_of_the_data(s: Net, y: str) -> None:
    s.node("Gather", s.convolved(y, 3, 4), s.number(4, 0), axis=1)


def padded_by_the_data(s: Net, y: str) -> None:
    y = s.bn_of(s.node("Sigmoid", s.convolved(y, 3, 4)), 4)
    wide = s.number(3, 0)
    none = s.list(0, 0)
    s.at = s.node("Pad", y, s.node("Concat", none, wide, wide, none, wide, wide, axis=0))
    s.conv(4, 3, name="last")


def added_to_what_is_spread_out(s: Net, y: str) -> None:
    """Of (1, 4, 1, 1) and any rank: what it meets has its own size."""
    mean = s.node("ReduceMean", s.convolved(y, 3, 4), axes=[0, 2, 3])
    s.at = s.node("Add", s.convolved("x", 3, 4), mean)
    s.conv(4, 3, name="last")


def meets_itself(s: Net, y: str) -> None:
    y = s.node("Relu", s.convolved(y, 3, 4))
    y = s.node("Add", s.convolved(y, 4, 4), y)
    s.convolved(s.node("Relu", y), 4, 5)


def side_by_side(s: Net, y: str) -> None:
    parts = [s.convolved(y, 3, 4), s.node("Relu", s.convolved(y, 3, 2))]
    s.at = s.node("Concat", *parts, axis=1)
    s.conv(6, 3, name="last")


def flattened(s: Net, y: str) -> None:
    y = s.node("Flatten", s.node("GlobalAveragePool", s.convolved(y, 3, 4)))
    y = s.node("Gemm", y, s.weight("matrix", 4, 5))
    s.bn_of(y, 5)


def shuffled(s: Net, y: str) -> None:
    y = s.convolved(y, 3, 4)
    shape = s.node("Shape", y)
    size = [s.node("Slice", shape, s.list(a), s.list(b)) for a, b in ((0, 1), (2, 4))]
    y = s.node("Reshape", y, s.node("Concat", size[0], s.list(2, 2), size[1], axis=0))
    y = s.node("Reshape", s.node("Transpose", y, perm=[0, 2, 1, 3, 4]), shape)
    s.at = s.node("Mul", y, s.weight("factors", 4, 1, 1))
    s.conv(4, 3, name="last")


def cut_once_more(s: Net, y: str) -> None:
    y = s.node("Relu", s.convolved(y, 3, 4))
    s.convolved(s.node("Slice", y, s.list(0), s.number(2, 3), s.list(2)), 4, 5)


HARM = {
    scaled_by_a_length: 0,
    summed_over_rows: 1,
    samples_become_channels: 0,
    first_channels: 0,
    a_channel_of_the_data: 0,
    padded_by_the_data: 1,
    added_to_what_is_spread_out: 0,
    meets_itself: 0,
    side_by_side: 0,
    flattened: 0,
    shuffled: 0,
    cut_once_more: 0,
}
"""What each is, with the BatchNormalizations that have to stay."""


def drawn(source, tail, shape=X):
    s = Net(*shape)
    tail(s, source(s))
    return s.model()


@pytest.mark.parametrize("tail", HARM)
@pytest.mark.parametrize("source", SOURCES)
def test_whatever_the_data_decides(source, tail):
    for shape in (X, ("N", 3, "H", "W")):
        model = drawn(source, tail, shape)
        folded, report = bnfold.fold(model, clip="always", verify=False)
        kept = [item for item in report.items if item.kind == "BatchNormalization"]
        kept = [item for item in kept if not item.is_removed]
        assert len(kept) <= HARM[tail] + (source is hidden_rank)
        shapes = set()
        for seed in range(4):
            (expected,), (actual,) = (run(m, X, seed=seed) for m in (model, folded))
            assert expected.shape == actual.shape
            np.testing.assert_allclose(actual, expected, atol=3e-5 * np.abs(expected).max())
            shapes.add(expected.shape)
        assert bnfold.fold(folded, clip="always", verify=False).model == folded


def test_what_a_fold_behind_it_does_is_verified_on_the_model_itself():
    model = drawn(out_of_a_sequence, meets_itself)
    folded, report = bnfold.fold(model)
    assert report.kept == 0
    assert bnfold.verify(model, folded).equal


# ---------------------------------------------------------------- nothing but the weight says it


def strange(model, *, first: str = "x", **options):
    """An operator of another domain in front, of which nothing is known."""
    made = helper.make_node("Plugin", [first], ["made"], name="plugin", domain="my", **options)
    for node in model.graph.node:
        node.input[:] = ["made" if name == "x" else name for name in node.input]
    model.graph.node.insert(0, made)
    model.opset_import.append(helper.make_opsetid("my", 1))
    return model


def behind_a_stranger(draw):
    s = Net(*X)
    draw(s)
    return strange(s.model())


@pytest.mark.parametrize(
    "draw",
    [
        lambda s: s.convolved("x", 3, 4),
        lambda s: s.convolved("x", 3, 3, group=3),
        lambda s: (s.bn(3), s.conv(3, 4)),
        lambda s: (s.node("Relu"), s.conv(3, 4), s.bn(4)),
        lambda s: (s.conv(3, 4), s.node("Mul", s.at, s.weight("factors", 4, 1, 1))),
        lambda s: (s.node("Gemm", "x", s.weight("matrix", 3, 4)), s.bn(4)),
        lambda s: (s.node("ConvTranspose", "x", s.weight("matrix", 3, 4, 2, 2)), s.bn(4)),
    ],
)
def test_a_weight_tells_rank_and_channels(draw):
    _, report = bnfold.fold(behind_a_stranger(draw), verify=False)
    assert (report.removed, report.kept) == (1, 0)


@pytest.mark.parametrize(
    "draw",
    [
        lambda s: (s.bn(3), s.node("Sigmoid")),
        lambda s: (s.node("MatMul", "x", s.weight("matrix", 3, 4)), s.bn(4)),
    ],
)
def test_where_nothing_tells_the_rank_it_stays_and_no_advice_is_given(draw):
    """Not even shapes of the inputs would tell: what is not known is made inside."""
    s = Net("N", 3, "H", "W")
    draw(s)
    _, report = bnfold.fold(strange(s.model()), verify=False)
    (item,) = report.items
    assert "no known shape" in item.sentence and "--input" not in item.sentence


def test_advice_is_given_where_an_input_has_no_shape():
    s = Net()
    s.inputs[0].type.tensor_type.ClearField("shape")
    s.node("Sigmoid", s.bn(3))
    model = s.model()
    (item,) = bnfold.inspect(model).items
    assert "give the model's with --input" in item.sentence
    (item,) = bnfold.inspect(model, {"x": X}).items
    assert "no known shape" not in item.sentence


def test_an_input_without_a_shape_has_that_of_the_weight():
    s = Net()
    s.inputs[0].type.tensor_type.ClearField("shape")
    s.convolved("x", 3, 4)
    model = s.model()
    folded, report = bnfold.fold(model, verify=False)
    assert report.removed == 1
    for shape in (X, (1, 3, 4, 5)):
        (expected,), (actual,) = run(model, shape), run(folded, shape)
        np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_a_step_behind_an_open_channel_axis_that_a_batch_norm_reads():
    s = Net("N", "C")
    s.bn(5)
    s.node("Gemm", s.at, s.weight("matrix", 5, 3))
    _, report = bnfold.fold(s.model())
    assert report.removed == 1


def test_a_count_of_axes_is_no_length():
    """As many axes as the data says: whatever is known of one rank is not used."""
    s = Net(*X)
    count = s.node("Reshape", s.number(2, 1), s.list(1))
    ones = s.node("Expand", s.list(1), count)
    s.bn_of(s.node("Reshape", "x", s.node("Concat", s.list(2, 3, -1), ones, axis=0)), 3)
    s.node("Sigmoid")
    model = s.model()
    folded, report = bnfold.fold(model, verify=False)
    assert report.removed == 0 and folded == model


def test_a_stored_type_says_nothing_of_own_lengths():
    """Numbers that were tried are written nowhere."""
    folded, _ = bnfold.fold(drawn(rows, meets_itself), verify=False)
    for info in (*folded.graph.value_info, *folded.graph.output):
        assert all(dim.dim_value < 200 for dim in info.type.tensor_type.shape.dim)


def test_what_was_known_before_stays_known():
    """A sum that inference sees through, whatever is added: its reader folds as before."""
    s = Net(*X)
    vector = s.node("Plugin", "x", domain="my")
    y = s.node("Add", s.convolved("x", 3, 4), vector)
    s.at = s.node("Sigmoid", s.convolved(y, 4, 5))
    s.convolved(vector, 3, 4)
    model = s.model(*(node.output[0] for node in s.nodes if node.op_type == "BatchNormalization"))
    model.opset_import.append(helper.make_opsetid("my", 1))
    del model.graph.output[:1]
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    _, report = bnfold.fold(model, verify=False)
    assert {item.is_removed for item in report.items} == {True}


@pytest.mark.parametrize("shape", [("N", 3, "H", "W"), X])
def test_a_weight_alone_tells_the_channels(shape):
    """Nothing was made up, so that what inference knew of the values behind holds as before."""
    s = Net(*shape)
    parts = s.node("SplitToSequence", s.convolved("x", 3, 4), s.list(2, 2), axis=1)
    s.bn_of(s.node("ConcatFromSequence", parts, axis=1), 4)
    s.convolved(s.node("Sigmoid"), 4, 5)
    s.convolved(s.node("Relu"), 5, 2)
    model = s.model()
    folded, report = bnfold.fold(model, verify=False)
    kept = {item.name: item.blocker for item in report.items if not item.is_removed}
    assert kept == {"bn4": "sigmoid5"}
    for size in (X, (1, 3, 4, 5))[: 1 if shape == X else 2]:
        (expected,), (actual,) = run(model, size), run(folded, size)
        np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_channels_of_samples_behind_channels_that_a_weight_tells():
    """(N, 4, H, W) -> (4, N, H, W): what a constant there is for depends on N."""
    s = Net("N", 3, "H", "W")
    parts = s.node("SequenceConstruct", "x", "x")
    s.convolved(s.node("ConcatFromSequence", parts, axis=1), 6, 3)
    samples_become_channels(s, s.at)
    model = s.model()
    folded, _ = bnfold.fold(model, verify=False)
    for size in ((4, 3, 4, 4), (2, 3, 6, 5)):
        (expected,), (actual,) = run(model, size), run(folded, size)
        np.testing.assert_allclose(actual, expected, atol=1e-4)
