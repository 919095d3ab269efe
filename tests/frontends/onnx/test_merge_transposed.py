"""Branches between Transposes, as TensorFlow's exporters write them: what stays, what is left."""

from __future__ import annotations

import pytest

from tests.frontends.onnx.merging import X, added, folded, ops, two

LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
"""Channels go last, and come first."""


def moved(s, x, name, perm=LAST):
    return s.node("Transpose", x, name=name, perm=perm)


def between(s, x, name, node):
    """What is made of a tensor with its channels last, by a node that wants them first."""
    return moved(s, node(moved(s, x, f"{name}_in", FIRST)), f"{name}_out")


def branch(s, x, name, kernel=3, ins=4, outs=4, **options):
    """A convolution and its BatchNormalization, between Transposes each."""
    settings = {"kernel": kernel, "pad": kernel // 2, "bias": False} | options
    y = between(s, x, name, lambda t: s.conv(t, ins, outs, name=name, **settings))
    return between(s, y, f"{name}_bn", lambda t: s.bn(t, outs, name=f"{name}_bn"))


def image(s):
    return s.input("N", "H", "W", 4)


# -------------------------------------------------------------------- must stay


def rows_for_columns(s):
    """A branch that is transposed in space, and two that are not: in a smaller sum."""
    x = s.input(2, 4, 6, 6)
    a, b, c = two(s, x, names="abc")
    s.output(s.node("Sum", a, moved(s, b, "t", [0, 1, 3, 2]), c, name="sum"))


def rows_for_columns_in_front_of_one(s):
    x = s.input(2, 6, 6, 4)
    across = s.conv(moved(s, x, "one", [0, 3, 2, 1]), 4, 4, name="a", pad=1)
    along = s.conv(moved(s, x, "other", FIRST), 4, 4, name="b", pad=1)
    s.output(added(s, moved(s, across, "c"), moved(s, along, "d")))


def channels_for_rows(s):
    x = s.input(2, 4, 4, 4)
    back = s.conv(moved(s, x, "t", [0, 2, 1, 3]), 4, 4, name="b", kernel=1)
    s.output(added(s, s.conv(x, 4, 4, name="a", kernel=1), moved(s, back, "u", [0, 2, 1, 3])))


def a_bias_in_front_of_zeros(s):
    x = s.input(2, 6, 6, 4)
    inner = between(s, x, "a", lambda t: s.conv(t, 4, 16, name="a", kernel=1))
    s.output(between(s, inner, "b", lambda t: s.conv(t, 16, 4, name="b", pad=1)))


def what_lies_between_is_an_output(s):
    x = image(s)
    parts = [branch(s, x, name) for name in "ab"]
    s.output(added(s, *parts), parts[1])


def what_lies_between_is_read_with_its_own_axes(s):
    x = s.input(2, 6, 6, 4)
    inner = s.conv(moved(s, x, "t", FIRST), 4, 4, name="a", pad=1)
    wide = moved(s, inner, "u")
    s.output(
        added(s, wide, branch(s, x, "b")),
        s.node("Reshape", wide, s.integers("flat", 2, 144), name="flat"),
    )


KEPT = {
    rows_for_columns_in_front_of_one: 2,
    channels_for_rows: 2,
    a_bias_in_front_of_zeros: 2,
    what_lies_between_is_an_output: 2,
    what_lies_between_is_read_with_its_own_axes: 2,
}
"""How many convolutions stay."""


@pytest.mark.parametrize("draw", KEPT, ids=lambda draw: draw.__name__)
def test_not_merged(draw):
    made, report = folded(draw)
    assert ops(made).count("Conv") == KEPT[draw]
    assert not [merged for merged in report.merged if len(merged.parts) > 3]


# -------------------------------------------------------------------- one convolution


def repvgg(s):
    x = s.node("Relu", image(s), name="start")
    same = between(s, x, "same", lambda t: s.bn(t, 4, name="same"))
    both = added(s, branch(s, x, "dense"), branch(s, x, "point", 1))
    s.output(s.node("Relu", added(s, both, same, name="all"), name="act"))


def steps_behind(s):
    """BatchNormalizations that a tool made a Mul and an Add of, for channels that are last."""
    x = image(s)
    parts = []
    for name, kernel in (("a", 3), ("b", 1)):
        options = {"kernel": kernel, "pad": kernel // 2, "bias": False}
        y = between(s, x, name, lambda t, n=name, o=options: s.conv(t, 4, 6, name=n, **o))
        y = s.node("Mul", y, s.tensor(f"{name}_c", s.gammas(6)), name=f"{name}_mul")
        parts.append(s.node("Add", y, s.tensor(f"{name}_d", s.uniform(6)), name=f"{name}_add"))
    s.output(s.node("Relu", added(s, *parts), name="act"))


def halved(s):
    """SAME with a stride, twice, and what is no convolution."""
    x = image(s)
    settings = {"pad": 0, "strides": [2, 2], "auto_pad": "SAME_UPPER"}
    pool = {"kernel_shape": [1, 1], "strides": [2, 2]}
    rest = between(s, x, "pool", lambda t: s.node("MaxPool", t, name="pool", **pool))
    both = added(s, *(branch(s, x, name, **settings) for name in "ab"))
    s.output(s.node("Relu", added(s, rest, both, name="all"), name="act"))


def zeros_in_front(s):
    x = image(s)
    padded = s.node("Pad", x, s.integers("pads", 0, 1, 1, 0, 0, 1, 1, 0), name="pad")
    s.output(s.node("Relu", added(s, branch(s, padded, "a", pad=0), branch(s, x, "b", 1))))


def transposed_shared(s):
    """By both branches, and by somebody else."""
    t = moved(s, image(s), "t", FIRST)
    s.output(added(s, *(moved(s, y, f"{y}_out") for y in two(s, t))), s.node("Sigmoid", t))


def widened(s):
    """ConvTranspose, of other channels than there are rows."""
    x = s.input(2, 5, 6, 4)
    options = {"op": "ConvTranspose", "kernel": 2, "strides": [2, 2]}
    parts = [between(s, x, n, lambda t, n=n: s.conv(t, 4, 3, name=n, **options)) for n in "ab"]
    s.output(added(s, *parts))


def matrices_beside_and_behind(s):
    """A MatMul along the channels is a 1x1."""
    x = s.input(*X)
    wide = s.node("MatMul", moved(s, x, "t"), s.tensor("w", s.uniform(4, 4)), name="mm")
    both = added(s, s.conv(x, 4, 4, name="a", kernel=3, pad=1), moved(s, wide, "u", FIRST))
    s.output(s.node("MatMul", moved(s, both, "v"), s.tensor("w2", s.uniform(4, 4)), name="last"))


def what_nobody_looks_into_beside(s):
    """All behind one Transpose, and another input."""
    t = moved(s, s.input(2, 6, 6, 4), "t", FIRST)
    beside = [s.node("Sigmoid", t, name="act"), s.input(*X, name="y")]
    s.output(s.node("Sum", *two(s, t), *beside, name="sum"))


def siblings_beside_what_nobody_looks_into(s):
    t = moved(s, s.input(2, 6, 6, 4), "t", FIRST)
    beside = [s.node("Tanh", t, name="tanh"), s.input(*X, name="y")]
    acts = [s.node("Relu", y, name=f"{y}_act") for y in two(s, t)]
    s.output(s.node("Concat", *acts, *beside, name="cat", axis=1))


def two_in_rows_for_columns(s):
    s.output(added(s, *two(s, moved(s, s.input(*X), "t", [0, 1, 3, 2]))))


MERGED = {
    repvgg: "Relu Transpose Conv Transpose Relu",
    steps_behind: "Transpose Conv Transpose Relu",
    halved: "Transpose MaxPool Transpose Transpose Conv Transpose Add Relu",
    zeros_in_front: "Transpose Conv Transpose Relu",
    transposed_shared: "Transpose Conv Transpose Sigmoid",
    widened: "Transpose ConvTranspose Transpose",
    matrices_beside_and_behind: "Conv Transpose",
    two_in_rows_for_columns: "Transpose Conv",
    what_nobody_looks_into_beside: "Transpose Sigmoid Conv Sum",
    siblings_beside_what_nobody_looks_into: "Transpose Tanh Conv Relu Concat",
    rows_for_columns: "Conv Conv Transpose Sum",
}


@pytest.mark.parametrize("draw", MERGED, ids=lambda draw: draw.__name__)
def test_what_is_left(draw):
    made, report = folded(draw)
    assert " ".join(ops(made)) == MERGED[draw]
    assert report.kept == 0
