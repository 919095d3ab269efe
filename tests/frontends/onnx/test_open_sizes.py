"""Numbers that are computed from open sizes: equal under two of them is not equal for all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto, helper

import bnfold
from tests.frontends.onnx.support import Sketch, assert_same

SIZES = ((1, 3, 7, 9), (2, 3, 8, 8), (3, 3, 9, 7), (1, 3, 33, 12), (5, 3, 40, 40), (2, 3, 12, 70))


class Net(Sketch):
    """A sketch with the numbers that exporters compute from x's shape."""

    def list(self, *numbers: int) -> str:
        return self.constant(f"list{len(self.initializers)}", np.array(numbers))

    def floats(self, *numbers: float) -> str:
        return self.constant(f"floats{len(self.initializers)}", np.array(numbers))

    def length(self, axis: int, of: str = "x") -> str:
        """The length of an axis, as a list of one."""
        return self.node("Gather", self.node("Shape", of), self.list(axis), axis=0)

    def norm(self, channels: int) -> list[str]:
        """Parameters with a shift that is never 0."""
        at = len(self.initializers)
        parts = {"g": 1.0, "b": 2.0, "m": -0.5, "v": 1.0}
        return [
            self.constant(f"n{at}{key}", value * self.rng.uniform(1.0, 2.0, channels))
            for key, value in parts.items()
        ]

    def float(self, name: str) -> str:
        return self.node("Cast", name, to=TensorProto.FLOAT)


def ratio(s: Net, y: str) -> None:
    """y * H / W: 1 for all squares."""
    s.node("Mul", y, s.node("Div", s.float(s.length(2)), s.float(s.length(3))))


def whole_ratio(s: Net, y: str) -> None:
    s.node("Mul", y, s.float(s.node("Div", s.length(2), s.length(3))))


def difference(s: Net, y: str) -> None:
    """y + (H - W): 0 for all squares."""
    s.node("Add", y, s.float(s.node("Sub", s.length(2), s.length(3))))


def capped_height(s: Net, y: str) -> None:
    """y * min(H, 20): 20 for all that are larger."""
    s.node("Mul", y, s.float(s.node("Min", s.length(2), s.list(20))))


def capped_batch(s: Net, y: str) -> None:
    s.node("Mul", y, s.float(s.node("Min", s.length(0), s.list(2))))


def condition(s: Net, y: str) -> None:
    """y, or half of it for small images."""
    large = s.node("Greater", s.length(2), s.list(20))
    s.node("Mul", y, s.node("Where", large, s.floats(1.0), s.floats(0.5)))


def is_square(s: Net, y: str) -> None:
    same = s.node("Equal", s.length(2), s.length(3))
    s.node("Add", y, s.node("Cast", same, to=TensorProto.FLOAT))


def bound(s: Net, y: str) -> None:
    """An upper bound that is 2 for large images."""
    top = s.node("Min", s.node("Mul", s.float(s.length(3)), s.floats(0.1)), s.floats(2.0))
    s.node("Clip", y, "", s.node("Squeeze", top, s.list(0)))


def power(s: Net, y: str) -> None:
    """A vector with one number per channel, of which one depends on the size."""
    first = s.node("Div", s.length(2), s.length(3))
    scale = s.float(s.node("Concat", first, s.list(2, 3, 4), axis=0))
    s.node("Mul", y, s.node("Reshape", scale, s.list(1, 4, 1, 1)))


def filled(s: Net, y: str) -> None:
    """A constant that is made of a shape."""
    count = s.node("Div", s.length(2), s.length(3))
    ones = s.node("Expand", s.floats(1.0), s.node("Add", count, s.list(1)))
    s.node("Mul", y, s.node("ReduceSum", ones, s.list(0), keepdims=0))


def picked(s: Net, y: str) -> None:
    """Channels that are turned by H // W - 1."""
    start = s.node("Sub", s.node("Div", s.length(2), s.length(3)), s.list(1))
    start = s.node("Clip", start, "", s.constant("most", np.array(3)))
    start = s.node("Max", start, s.list(0))
    front = s.node("Slice", y, start, s.list(9), s.list(1))
    back = s.node("Slice", y, s.list(0), start, s.list(1))
    s.node("Concat", front, back, axis=1)


def gathered(s: Net, y: str) -> None:
    """The channels in an order of which one number depends on the size."""
    first = s.node("Min", s.node("Div", s.length(2), s.list(20)), s.list(1))
    s.node("Gather", y, s.node("Concat", first, s.list(2, 3, 0), axis=0), axis=1)


def padded(amounts: Callable[[Net], tuple[str, str]]) -> Callable[[Net, str], None]:
    def form(s: Net, y: str) -> None:
        rows, columns = amounts(s)
        s.node("BatchNormalization", y, *s.norm(4))
        made = s.at
        pads = s.node("Concat", s.list(0, 0, 0, 0, 0, 0), rows, columns, axis=0)
        s.node("Pad", made, pads)

    return form


def to_square(s: Net) -> tuple[str, str]:
    """max(H, W) - H and max(H, W) - W: none for squares."""
    longer = s.node("Max", s.length(2), s.length(3))
    return s.node("Sub", longer, s.length(2)), s.node("Sub", longer, s.length(3))


def to_multiple(s: Net) -> tuple[str, str]:
    """What is missing to a multiple of 8, by division."""
    made = []
    for axis in (2, 3):
        up = s.node("Div", s.node("Add", s.length(axis), s.list(7)), s.list(8))
        made.append(s.node("Sub", s.node("Mul", up, s.list(8)), s.length(axis)))
    return made[0], made[1]


def at_least(s: Net) -> tuple[str, str]:
    missing = [
        s.node("Max", s.node("Sub", s.list(16), s.length(axis)), s.list(0)) for axis in (2, 3)
    ]
    return missing[0], missing[1]


NUMBERS = (
    *(ratio, whole_ratio, difference, capped_height, capped_batch, condition, is_square, bound),
    *(power, filled, picked, gathered),
)
PADS = (to_square, to_multiple, at_least)


def network(form: Callable[[Net, str], None], shape: tuple[int | str | None, ...]):
    s = Net(*shape)
    form(s, s.conv(3, 4, 3, pads=[1] * 4))
    s.bn(4, name="bn2")
    s.node("Relu")
    s.conv(4, 2, 1, name="last")
    return s.model()


@pytest.mark.parametrize("shape", [("N", 3, "H", "W"), (None, 3, None, None)], ids=str)
@pytest.mark.parametrize("form", NUMBERS)
def test_numbers_that_the_size_decides(form, shape):
    model = network(form, shape)
    folded, report = bnfold.fold(model)
    assert not any(item.is_removed and item.kind == "Mul" for item in report.items)
    for size in SIZES:
        assert_same(model, folded, size)


@pytest.mark.parametrize("clip", ["auto", "always", "never"])
@pytest.mark.parametrize("pads", PADS)
def test_pads_that_the_size_decides(pads, clip):
    """A shift may not cross zeros that some inputs get."""
    model = network(padded(pads), ("N", 3, "H", "W"))
    folded = bnfold.fold(model, clip=clip).model
    for size in SIZES:
        assert_same(model, folded, size)


@pytest.mark.parametrize("pads", PADS)
def test_a_shift_stays_behind_such_pads(pads):
    s = Net("N", 3, "H", "W")
    s.node("Sigmoid")
    padded(pads)(s, s.conv(3, 4, 1))
    s.node("Sigmoid")
    model = s.model()
    assert bnfold.fold(model).report.removed == 1
    t = Net("N", 4, "H", "W")
    padded(pads)(t, t.node("Sigmoid"))
    t.conv(4, 2)
    model = t.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 0
    for size in SIZES:
        assert_same(model, folded, (size[0], 4, *size[2:]))


def first_two(s: Net, rows: str, name: str) -> str:
    """Two of the parts of 6 that the rows are cut into: of one channel, or of two."""
    s.node("Sigmoid", rows, name=f"{name}_sigmoid")
    s.bn(4, name=f"{name}_bn")
    s.node("Reshape", s.at, s.constant(f"{name}_cut", np.array([2, -1, 6])), name=f"{name}_parts")
    s.node("ReduceMean", name=f"{name}_mean", axes=[2], keepdims=0)
    ends = [s.constant(f"{name}_{n}", np.array([n])) for n in (0, 2, 1)]
    s.node("Slice", s.at, *ends, name=f"{name}_two")
    return s.node("Gemm", s.at, s.weight(f"{name}_w", 2, 3), name=f"{name}_gemm")


def first_rows(s: Net) -> str:
    """Rows 0 to min(H, 6) of a convolution."""
    made = s.conv(3, 4, 1)
    return s.node("Slice", made, s.list(0), s.node("Min", s.length(2), s.list(6)), s.list(2))


def test_a_length_that_only_seems_to_be_fixed():
    """6 rows of 2 are two parts per channel, 3 rows are one."""
    s = Net(2, 3, "H", 2)
    first_two(s, first_rows(s), "main")
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.kept == 1
    for height in (3, 6, 12):
        assert_same(model, folded, (2, 3, height, 2))


def test_a_target_that_cuts_elsewhere_for_other_sizes():
    """(N, 4, 36) cut into min(2 N, 4) parts, which is 4 for all but one sample."""
    s = Net("N", 3, 6, 6)
    made = s.conv(3, 4, 1)
    parts = s.node("Min", s.node("Mul", s.length(0), s.list(2)), s.list(4))
    target = s.node("Concat", s.list(-1), parts, s.list(36), axis=0)
    s.node("Reshape", made, target)
    s.node("Mul", s.at, s.constant("c", np.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1)))
    model = s.model()
    folded, _ = bnfold.fold(model)
    for batch in (2, 3, 5):
        assert_same(model, folded, (batch, 3, 6, 6))


# -------------------------------------------------------------------- removed


def test_channels_are_no_open_size():
    """C / 2 and 2 C, from Shape, for a shuffle of the channels."""
    s = Net("N", 3, "H", "W")
    made = s.conv(3, 4, 1)
    half = s.node("Div", s.length(1, made), s.list(2))
    lengths = [s.length(axis, made) for axis in (0, 2, 3)]
    cut = s.node("Concat", lengths[0], s.list(2), half, *lengths[1:], axis=0)
    s.node("Reshape", made, cut)
    shuffled = s.node("Transpose", perm=[0, 2, 1, 3, 4])
    back = s.node("Concat", lengths[0], s.node("Mul", half, s.list(2)), *lengths[1:], axis=0)
    s.node("Reshape", shuffled, back)
    s.bn(4)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    for size in SIZES:
        assert_same(model, folded, size)


def test_a_factor_from_a_fixed_length():
    """y / sqrt(C): the same for every image."""
    s = Net("N", 3, "H", "W")
    made = s.conv(3, 4, 1)
    s.node("Div", made, s.node("Sqrt", s.float(s.length(1, made))))
    s.bn(4)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.kept == 0
    for size in SIZES:
        assert_same(model, folded, size)


def test_a_batch_that_cancels_out():
    """(N, 4, 1, 1) -> (N, 4): what is left is 4 for every N."""
    s = Net("N", 3, 3, 3)
    made = s.conv(3, 4)
    target = s.node("Concat", s.length(0, made), s.list(-1), axis=0)
    s.node("Reshape", made, target)
    s.bn(4)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    for batch in (1, 2, 5):
        assert_same(model, folded, (batch, 3, 3, 3))


def test_resized_to_the_size_of_another():
    s = Net("N", 3, "H", "W")
    skip = s.conv(3, 4, 1)
    s.conv(4, 4, 3, name="down", strides=[2, 2], pads=[1] * 4)
    small = s.bn(4)
    space = s.node("Slice", s.node("Shape", skip), s.list(2), s.list(4))
    whole = s.node("Slice", s.node("Shape", small), s.list(0), s.list(2))
    sizes = s.node("Concat", whole, space, axis=0)
    s.node("Resize", small, "", "", sizes, mode="nearest")
    s.node("Concat", s.at, skip, axis=1)
    s.bn(8, name="bn2")
    s.conv(8, 2, 1, name="last")
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 2
    for size in SIZES:
        assert_same(model, folded, size)


def test_tokens_and_back():
    """(N, C, H, W) -> (N, H W, C) -> (N, C, H, W), with lengths from Shape."""
    s = Net("N", 3, "H", "W")
    made = s.conv(3, 4, 1)
    batch, height, width = (s.length(axis, made) for axis in (0, 2, 3))
    s.node("Reshape", made, s.node("Concat", batch, s.list(4, -1), axis=0))
    s.node("Transpose", perm=[0, 2, 1])
    s.node("MatMul", s.at, s.weight("w", 4, 4))
    tokens = s.node("Transpose", perm=[0, 2, 1])
    s.node("Reshape", tokens, s.node("Concat", batch, s.list(4), height, width, axis=0))
    s.bn(4)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    for size in SIZES:
        assert_same(model, folded, size)


def test_rows_cut_where_the_size_says():
    """A Slice along the height moves no channel, wherever it starts."""
    s = Net("N", 3, "H", "W")
    made = s.conv(3, 4, 1)
    start = s.node("Div", s.length(2), s.list(4))
    s.node("Slice", made, start, s.list(1 << 40), s.list(2))
    s.bn(4)
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 1
    for size in SIZES:
        assert_same(model, folded, size)


# -------------------------------------------------------------------- inside of a body


def test_a_body_sees_what_only_seems_to_be_fixed():
    """The same in the branches of an If."""
    s = Net(2, 3, "H", 2)
    rows = first_rows(s)
    branches = []
    for name in ("yes", "no"):
        b = Net()
        made = first_two(b, rows, name)
        output = helper.make_tensor_value_info(made, TensorProto.FLOAT, None)
        branches.append(helper.make_graph(b.nodes, name, [], [output], b.initializers))
    largest = s.node("ReduceMax", rows, keepdims=0)
    condition = s.node("Greater", largest, s.constant("zero", np.array(0.0)))
    s.node("If", condition, then_branch=branches[0], else_branch=branches[1])
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 0 and report.kept == 2
    for height in (3, 6, 12):
        assert_same(model, folded, (2, 3, height, 2))


# -------------------------------------------------------------------- what comes again


def shuffled(mode: str, size: int = 2) -> Callable[[Net], None]:
    def make(s: Net) -> None:
        s.conv(3, 4 * size**2, 3, pads=[1, 1, 1, 1], name="first")
        s.node("DepthToSpace", blocksize=size, mode=mode)

    return make


def joined(axis: int, *, beside: bool = False) -> Callable[[Net], None]:
    """Two of one, or of two convolutions, along the batch, the height or the width."""

    def make(s: Net) -> None:
        x = s.at
        first = s.conv(3, 4, 1, name="first")
        s.at = x
        second = s.conv(3, 4, 1, name="second") if beside else first
        s.node("Concat", first, second, first, axis=axis)

    return make


def wrapped(s: Net) -> None:
    """Circular padding, as exporters write it."""
    x = s.conv(3, 4, 1, name="first")
    ends = [s.list(number) for number in (-1, 2**31, 0, 1)]
    last = s.node("Slice", x, ends[0], ends[1], s.list(2))
    first = s.node("Slice", x, ends[2], ends[3], s.list(2))
    s.node("Concat", last, x, first, axis=2)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("shape", [("N", 3, "H", "W"), (2, 3, "H", "W"), ("N", 3, 8, 8)])
@pytest.mark.parametrize(
    "make",
    [
        *(shuffled("DCR"), shuffled("CRD"), shuffled("CRD", 3)),
        *(joined(0), joined(2), joined(3), joined(2, beside=True), joined(0, beside=True), wrapped),
    ],
)
def test_a_batch_norm_behind_it_goes_in_front(make, shape, padding):
    s = Net(*shape)
    make(s)
    s.node("BatchNormalization", s.at, *s.norm(4))
    s.node("Relu")
    s.conv(4, 2, 3, pads=[padding] * 4, name="last")
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == 1, str(report)
    for n, c, h, w in SIZES:
        size = [
            fixed if isinstance(fixed, int) else own
            for fixed, own in zip(shape, (n, c, h, w), strict=True)
        ]
        assert_same(model, folded, tuple(size))


@pytest.mark.parametrize("make", [shuffled("DCR"), shuffled("CRD"), joined(0), joined(2)])
@pytest.mark.parametrize("shape", [("N", 3, "H", "W"), (2, 3, 8, 8)])
def test_one_in_front_of_it_passes_where_it_has_one_factor(make, shape):
    """Each of the four channels that become one would need a factor of its own."""
    s = Net(*shape)
    make(s)
    blocks = s.nodes[-1].op_type == "DepthToSpace"
    s.nodes[-1:], last = [], s.nodes[-1]
    s.at = s.node("Sigmoid", s.nodes[-1].output[0])
    s.node("BatchNormalization", s.at, *s.norm(16 if blocks else 4))
    source = s.at
    for position, _ in enumerate(last.input):
        last.input[position] = source
    s.nodes.append(last)
    s.at = last.output[0]
    s.conv(4, 2, 3, name="last")
    model = s.model()
    folded, report = bnfold.fold(model)
    assert report.removed == (0 if blocks else 1), str(report)
    for size in ((2, 3, 8, 8),) if shape[0] == 2 else SIZES:
        assert_same(model, folded, size)
