"""Linear layers that become one: what must not, what must, and how it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bnfold
from bnfold.core.window import Window, chained, joint
from bnfold.frontend import Request
from bnfold.frontends.caffe import door
from bnfold.frontends.caffe.caffemodel import read_caffemodel
from bnfold.frontends.caffe.prototxt import read_text
from bnfold.frontends.caffe.runner import files_runner, read_runner
from bnfold.report import FoldReport
from bnfold.verify.api import Comparison
from bnfold.verify.result import VerifyResult
from tests.frontends.caffe import build
from tests.frontends.caffe.branchy_nets import branchy_net
from tests.frontends.caffe.support import (
    Builder,
    Pair,
    assert_caffe_takes_it,
    assert_equal,
    check,
    fold,
    pair,
)

SUM = "eltwise_param { operation: SUM }"


def merged(report: FoldReport) -> dict[str, tuple[str, ...]]:
    """What went into what."""
    return {one.into: one.parts for one in report.merged}


def added(builder: Builder, *bottoms: str, options: str = SUM, top: str | None = None) -> str:
    """Their sum."""
    return builder.layer("Eltwise", options, bottom=bottoms, top=top)


def normalised(builder: Builder, x: str, *, top: str | None = "same") -> str:
    """BatchNorm and Scale."""
    x = builder.batch_norm(bottom=x, top=None if top == "same" and x == "data" else top)
    return builder.scale(bottom=x, top="same")


def assert_nothing_merges(builder: Builder) -> Pair:
    """Nothing does, and what is written is what `merge="never"` writes."""
    before = builder.pair()
    after, report = fold(before)
    assert report.merged == ()
    assert after == fold(before, merge="never")[0]
    assert_equal(before, after, builder.inputs())
    return after


def merges(builder: Builder) -> tuple[Pair, FoldReport]:
    """Something does; the numbers stay, Caffe takes it, and a second fold changes nothing."""
    before = builder.pair()
    assert_caffe_takes_it(before)
    after, report = check(builder)
    assert report.merged
    assert_caffe_takes_it(after)
    never, plain = fold(before, merge="never")
    assert plain.merged == ()
    assert report.kept <= plain.kept
    assert _wires(after) < _wires(never)
    assert set(after.stored()) <= set(after.names)
    return after, report


def _wires(model: Pair) -> int:
    """How many layers there are, and how many blobs they read."""
    return len(model.names) + model.text.count(b"bottom:") + model.text.count(b", ")


def two_branches(extra: str = "", *, options: str = "pad: 1") -> Builder:
    """A 3x3 and a 1x1 convolution of one blob, and their sum."""
    builder = Builder((2, 4, 8, 8))
    first = builder.conv(4, 3, options, bottom="data", name="a")
    second = builder.conv(4, 1, bottom="data", name="b", extra=extra)
    added(builder, first, second)
    return builder


# ------------------------------------------------------------------- must not


def test_a_branch_that_somebody_else_reads() -> None:
    builder = two_branches()
    builder.layer("Sigmoid", bottom="b")
    assert_nothing_merges(builder)


@pytest.mark.parametrize("reader", ["PriorBox", "Silence"])
def test_a_branch_whose_shape_somebody_reads(reader: str) -> None:
    """Others are merged, all the same."""
    builder = two_branches()
    if reader == "Silence":
        builder.layer(reader, bottom="b", top=[])
    else:
        options = "prior_box_param { min_size: 3 }"
        builder.layer(reader, options, bottom=["b", "data"], top="priors")
    builder.last = "eltwise3"
    builder.conv(4, 3, "pad: 1", name="c")
    added(builder, "c", "eltwise3")
    after, report = fold(builder.pair())
    assert merged(report) == {"c": ("eltwise6",)}
    assert after.types()[:3] == ["Convolution", "Convolution", "Eltwise"]


def test_a_branch_that_is_a_loss() -> None:
    assert_nothing_merges(two_branches("loss_weight: 1"))


def test_a_carrier_whose_output_is_a_loss() -> None:
    builder = Builder((2, 4, 8, 8))
    builder.conv(4, 1, name="a")
    builder.conv(4, 1, name="b", extra="loss_weight: 1")
    assert_nothing_merges(builder)


@pytest.mark.parametrize("phase", ["include { phase: TEST }", "exclude { phase: TRAIN }"])
def test_a_branch_of_one_phase(phase: str) -> None:
    builder = two_branches(phase)
    before = builder.pair()
    after, report = fold(before, phase="test")
    assert report.merged == ()
    assert after.types() == before.types()


def test_a_branch_that_the_other_phase_reads() -> None:
    builder = two_branches()
    builder.layer("SoftmaxWithLoss", "include { phase: TRAIN }", bottom="b", top="loss")
    after, report = fold(builder.pair(), phase="test")
    assert report.merged == ()
    assert after.names[:3] == builder.pair().names[:3]


def test_a_layer_that_the_other_phase_has_too() -> None:
    builder = two_branches()
    builder.layer("Convolution", "include { phase: TRAIN }", bottom="data", top="t", name="b")
    assert fold(builder.pair(), phase="test")[1].merged == ()


def test_shared_parameters() -> None:
    builder = Builder((2, 4, 8, 8))
    shared = 'param { name: "w" }'
    first = builder.conv(4, 1, bottom="data", name="a", extra=shared)
    second = builder.conv(4, 1, bottom="data", name="b", extra=shared)
    builder.arrays["b"] = builder.arrays["a"]
    added(builder, first, second)
    after = assert_nothing_merges(builder)
    assert after.types() == ["Convolution", "Convolution", "Eltwise"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((3, "pad: 1"), (3, "pad: 2 dilation: 2")),  # every offset from -2 to 2: 25 taps
        ((3, "pad: 3 dilation: 3"), (3, "pad: 2 dilation: 2")),
        ((8, ""), (8, "stride: 2")),  # one output each, and other sizes of the image part them
        ((5, "pad: 4 dilation: 2"), (3, "pad: 3 dilation: 3")),
    ],
)
def test_windows_without_a_common_grid_that_pays(
    one: tuple[int, str], other: tuple[int, str]
) -> None:
    builder = Builder((2, 4, 8, 8))
    first = builder.conv(4, *one, bottom="data")
    second = builder.conv(4, *other, bottom="data")
    added(builder, first, second)
    assert_nothing_merges(builder)


@pytest.mark.parametrize(
    "options",
    [
        "eltwise_param { operation: MAX }",
        "eltwise_param { operation: PROD }",
    ],
)
def test_other_sums(options: str) -> None:
    builder = Builder((2, 4, 8, 8))
    first = builder.conv(4, 3, "pad: 1", bottom="data")
    second = builder.conv(4, 1, bottom="data")
    added(builder, first, second, options=options)
    assert_nothing_merges(builder)


@pytest.mark.parametrize("coefficients", ["coeff: 1 coeff: 0", "coeff: [0, 1]"])
def test_an_operand_that_counts_for_nothing(coefficients: str) -> None:
    builder = Builder((2, 4, 8, 8))
    first = builder.conv(4, 3, "pad: 1", bottom="data")
    second = builder.conv(4, 1, bottom="data")
    added(builder, first, second, options=f"eltwise_param {{ operation: SUM {coefficients} }}")
    merges(builder)


def test_a_bias_in_front_of_padded_zeros() -> None:
    builder = Builder((2, 8, 8, 8))
    builder.conv(2, 1, bias=True)
    builder.conv(2, 3, "pad: 1")
    assert_nothing_merges(builder)


def test_padding_in_front_of_padding() -> None:
    builder = Builder((2, 2, 8, 8))
    builder.conv(2, 3, "pad: 1", group=2)
    builder.conv(2, 3, "pad: 1", group=2)
    assert_nothing_merges(builder)


def test_a_depthwise_branch_beside_a_dense_one() -> None:
    builder = Builder((2, 8, 8, 8))
    first = builder.conv(8, 3, "pad: 1", group=8, bottom="data")
    second = builder.conv(8, 1, bottom="data")
    added(builder, first, second)
    assert_nothing_merges(builder)


def test_depthwise_then_pointwise() -> None:
    builder = Builder((2, 8, 8, 8))
    builder.conv(8, 3, "pad: 1", group=8)
    builder.conv(8, 1)
    assert_nothing_merges(builder)


@pytest.mark.parametrize(
    "pool", ["kernel_size: 2 stride: 2", "kernel_size: 3 stride: 2", "kernel_size: 3 stride: 3"]
)
def test_a_mean_whose_last_window_is_cut(pool: str) -> None:
    """Caffe rounds up: of 9 - 2, 8 - 3 and 9 - 3 + 1 rows something is left over."""
    builder = Builder((2, 4, 7 if "3" in pool and "stride: 3" not in pool else 9, 9))
    if pool == "kernel_size: 3 stride: 3":
        builder = Builder((2, 4, 8, 8))
    if pool == "kernel_size: 3 stride: 2":
        builder = Builder((2, 4, 8, 8))
    builder.conv(4, 1, group=4)
    builder.layer("Pooling", f"pooling_param {{ pool: AVE {pool} }}")
    assert_nothing_merges(builder)


@pytest.mark.parametrize(
    "pool",
    [
        "pool: MAX kernel_size: 1",
        "kernel_size: 1",
        "pool: AVE global_pooling: true",
        "pool: AVE kernel_size: 1 some_fork: 3",
    ],
)
def test_other_poolings(pool: str) -> None:
    builder = Builder((2, 4, 8, 8))
    builder.conv(4, 1, group=4)
    builder.layer("Pooling", f"pooling_param {{ {pool} }}")
    assert fold(builder.pair())[1].merged == ()


def test_a_mean_of_very_many() -> None:
    builder = Builder((1, 2, 40, 40))
    builder.conv(2, 1, group=2)
    builder.layer("Pooling", "pooling_param { pool: AVE kernel_size: 40 }")
    assert_nothing_merges(builder)


def test_a_layer_in_place_between() -> None:
    """What the second convolution reads is called like what the first one reads."""
    builder = Builder((2, 4, 8, 8))
    x = builder.conv(4, 1, top="x", name="stem")
    x = builder.relu(bottom=x)
    first = builder.conv(4, 3, "pad: 1", bottom=x, name="a")
    first = builder.relu(bottom=first)
    second = builder.conv(4, 1, bottom=x, name="b")
    added(builder, first, second)
    assert_nothing_merges(builder)


def test_what_is_overwritten_while_others_read_it() -> None:
    builder = Builder((2, 4, 8, 8))
    x = builder.conv(4, 1, name="stem")
    x = builder.layer("Sigmoid", bottom=x)
    view = builder.layer("Split", bottom=x)
    first = builder.conv(4, 1, bottom=x, name="a")
    builder.relu(bottom=view)
    second = builder.conv(4, 1, bottom=x, name="b")
    added(builder, first, second)
    assert fold(builder.pair())[1].merged == ()


@pytest.mark.parametrize(
    "options", ["relu: true", "quantize { bits: 8 }", "pad: 0 pad_type: 1", "axis: 1 mask: 3"]
)
def test_options_of_a_fork(options: str) -> None:
    builder = Builder((2, 4, 8, 8))
    builder.conv(4, 1)
    builder.conv(4, 1, options)
    assert fold(builder.pair())[1].merged == ()


@pytest.mark.parametrize("where", ["forward_type: FLOAT16", "some_fork_param { a: 1 }"])
def test_fields_of_a_fork(where: str) -> None:
    builder = two_branches(where)
    assert fold(builder.pair())[1].merged == ()


def test_a_network_in_float16() -> None:
    before = two_branches().pair()
    half = Pair(b"default_forward_type: FLOAT16\n" + before.text, before.weights)
    assert fold(half)[1].merged == ()


def test_weights_in_16_bits() -> None:
    assert fold(two_branches().pair(form="half"))[1].merged == ()


def test_sums_of_weights_that_are_too_large() -> None:
    builder = two_branches()
    for name in "ab":
        builder.arrays[name] = [np.full_like(blob, 2e38) for blob in builder.arrays[name]]
    before = builder.pair(form="packed")
    after, report = fold(before)
    assert report.merged == ()
    assert after == before


def test_weights_that_are_not_finite() -> None:
    builder = two_branches()
    builder.arrays["b"][0][0, 0] = np.nan
    before = builder.pair()
    assert fold(before)[0] == before


def test_a_convolution_of_several_bottoms() -> None:
    builder = Builder((2, 4, 8, 8))
    x = builder.conv(4, 1, bottom=["data", "data"], top=["p", "q"])
    second = builder.conv(4, 1, bottom="data")
    added(builder, x, second)
    builder.layer("Sigmoid", bottom="q")
    assert fold(builder.pair())[1].merged == ()


def test_a_sum_that_says_something_for_each_bottom() -> None:
    builder = Builder((2, 4, 8, 8))
    first = builder.conv(4, 1, bottom="data")
    second = builder.conv(4, 1, bottom="data")
    says = "propagate_down: true propagate_down: false"
    added(builder, first, second, options=f"{says} {SUM}")
    assert fold(builder.pair())[1].merged == ()


def test_nobody_asks_for_it() -> None:
    before = two_branches().pair()
    assert fold(before, merge="never")[0] == before


# ------------------------------------------------------------------- must


def repvgg(blocks: int = 2) -> Builder:
    """3x3, 1x1 and identity, each with its BatchNorm."""
    builder = Builder((2, 4, 8, 8))
    x = builder.relu(bottom=builder.conv(4, 3, "pad: 1", name="stem"))
    for number in range(blocks):
        first = normalised(builder, builder.conv(4, 3, "pad: 1", bottom=x, name=f"{number}/3x3"))
        second = normalised(builder, builder.conv(4, 1, bottom=x, name=f"{number}/1x1"))
        third = normalised(builder, x, top=f"{number}/id")
        x = builder.relu(bottom=added(builder, first, second, third))
    return builder


def test_repvgg() -> None:
    after, report = merges(repvgg())
    assert after.types() == ["Convolution", "ReLU"] * 3
    assert after.names[2::2] == ["0/3x3", "1/3x3"]
    assert report.kept == 0
    assert report.total == 12
    assert [item.into for item in report.items] == [("0/3x3",)] * 6 + [("1/3x3",)] * 6


def test_mobileone() -> None:
    """Depthwise 3x3 and 1x1 and the identity; then dense 1x1 and the identity."""
    builder = Builder((2, 6, 8, 8))
    x = builder.relu(bottom=builder.conv(6, 1, name="stem"))
    ends = [normalised(builder, builder.conv(6, 3, "pad: 1", group=6, bottom=x)) for _ in range(4)]
    ends.append(normalised(builder, builder.conv(6, 1, group=6, bottom=x)))
    ends.append(normalised(builder, x, top="skip"))
    x = builder.relu(bottom=added(builder, *ends))
    ends = [normalised(builder, builder.conv(6, 1, bottom=x)) for _ in range(4)]
    ends.append(normalised(builder, x, top="skip2"))
    builder.relu(bottom=added(builder, *ends))
    after, report = merges(builder)
    assert after.types() == ["Convolution", "ReLU"] * 3
    assert report.kept == 0


@pytest.mark.parametrize("spelling", ["kernel_h: 1 kernel_w: 3 pad_h: 0 pad_w: 1"])
def test_acnet(spelling: str) -> None:
    builder = Builder((2, 4, 8, 8))
    ends = []
    wide = builder.rng.normal(size=(4, 4, 1, 3))
    for name, options, shape in (
        ("wide", spelling, wide.shape),
        ("high", "kernel_h: 3 kernel_w: 1 pad_h: 1 pad_w: 0", (4, 4, 3, 1)),
        ("square", "kernel_size: 3 pad: 1", (4, 4, 3, 3)),
    ):
        text = f"convolution_param {{ num_output: 4 {options} bias_term: false }}"
        blob = builder.rng.normal(size=shape)
        end = builder.layer("Convolution", text, name=name, bottom="data", blobs=[blob], channels=4)
        ends.append(normalised(builder, end))
    added(builder, *ends)
    after, report = merges(builder)
    assert after.types() == ["Convolution"]
    assert after.names == ["square"]
    assert report.kept == 0


def test_two_asymmetric_branches_without_a_square_one() -> None:
    """3x3 taps would be more multiplications than 3 and 3, so they stay."""
    builder = Builder((2, 4, 8, 8))
    ends = []
    for options, shape in (
        ("kernel_h: 1 kernel_w: 3 pad_w: 1", (4, 4, 1, 3)),
        ("kernel_h: 3 kernel_w: 1 pad_h: 1", (4, 4, 3, 1)),
    ):
        text = f"convolution_param {{ num_output: 4 {options} bias_term: false }}"
        blob = builder.rng.normal(size=shape)
        ends.append(builder.layer("Convolution", text, bottom="data", blobs=[blob], channels=4))
    added(builder, *ends)
    assert_nothing_merges(builder)


def test_a_diverse_branch_block() -> None:
    """kxk; 1x1; 1x1 then kxk; 1x1 then a mean: without biases in front of the padding."""
    builder = Builder((2, 4, 8, 8))
    first = normalised(builder, builder.conv(4, 3, "pad: 1", bottom="data"))
    second = normalised(builder, builder.conv(4, 1, bottom="data"))
    third = builder.conv(4, 1, bottom="data")
    third = normalised(builder, builder.conv(4, 3, "pad: 1", bottom=third))
    mean = builder.conv(4, 1, bottom="data")
    pooled = "pooling_param { pool: AVE kernel_size: 3 pad: 1 stride: 1 }"
    mean = normalised(builder, builder.layer("Pooling", pooled, bottom=mean))
    added(builder, first, second, third, mean)
    after, report = merges(builder)
    assert after.types() == ["Convolution"]
    assert report.kept == 0


@pytest.mark.parametrize("bottoms", [("a", "data"), ("data", "a")])
@pytest.mark.parametrize("kind", ["Convolution", "ConvolutionDepthwise"])
def test_a_convolution_and_its_input(bottoms: tuple[str, str], kind: str) -> None:
    builder = Builder((2, 4, 8, 8))
    builder.conv(4, 3, "pad: 1", group=4, name="a", kind=kind)
    added(builder, *bottoms)
    after, report = merges(builder)
    assert after.types() == [kind]
    assert merged(report) == {"a": ("eltwise2",)}


@pytest.mark.parametrize("coefficient", [1.0, -1.0, 0.25])
@pytest.mark.parametrize("place", [0, 1])
def test_a_tensor_and_its_batch_norm(coefficient: float, place: int) -> None:
    builder = Builder((2, 4, 8, 8))
    x = builder.layer("Sigmoid")
    y = normalised(builder, x, top="y")
    bottoms = [x, y] if place else [y, x]
    factors = [1.0, coefficient] if place else [coefficient, 1.0]
    options = "".join(f" coeff: {factor}" for factor in factors)
    added(builder, *bottoms, options=f"eltwise_param {{ operation: SUM {options} }}")
    builder.conv(4, 1)
    after, report = merges(builder)
    assert after.types() == ["Sigmoid", "Convolution"]
    assert report.kept == 0


def test_a_shortcut_with_a_relu_stays() -> None:
    builder = Builder((2, 4, 8, 8))
    first = normalised(builder, builder.conv(4, 3, "pad: 1", bottom="data", name="a"))
    shortcut = builder.relu(bottom="data", top="positive")
    second = normalised(builder, builder.conv(4, 1, bottom="data", name="b"))
    options = "eltwise_param { operation: SUM coeff: 0.5 coeff: -2 coeff: 3 }"
    added(builder, first, shortcut, second, options=options)
    after, report = merges(builder)
    assert after.types() == ["Convolution", "ReLU", "Eltwise"]
    assert report.kept == 0
    assert b"coeff: 0.5 coeff: -2 }" in after.text


@pytest.mark.parametrize("coefficients", ["[1, 2, 3]", "[ 1 , 2 , 3 ]", "[-1, 2, 1]"])
def test_coefficients_in_a_list(coefficients: str) -> None:
    builder = Builder((2, 4, 8, 8))
    first = builder.conv(4, 3, "pad: 1", bottom="data")
    shortcut = builder.relu(bottom="data", top="positive")
    options = f"eltwise_param {{ operation: SUM coeff: {coefficients} }}"
    added(builder, first, shortcut, "data", options=options)
    after, _ = merges(builder)
    assert after.types() == ["Convolution", "ReLU", "Eltwise"]


def test_bottoms_in_a_list() -> None:
    builder = Builder((2, 4, 8, 8))
    first = builder.conv(4, 3, "pad: 1", bottom="data")
    builder.relu(bottom="data", top="positive")
    builder.parts.append(
        'layer { name: "sum" type: "Eltwise"'
        f' bottom: ["{first}", "positive", "data"] top: "sum" }}\n'
    )
    after, _ = merges(builder)
    assert after.types() == ["Convolution", "ReLU", "Eltwise"]
    assert b'bottom: ["convolution1_merged", "positive"]' in after.text


def test_a_sum_in_place() -> None:
    builder = Builder((2, 4, 8, 8))
    x = builder.relu(bottom=builder.conv(4, 1, name="stem"))
    first = normalised(builder, builder.conv(4, 3, "pad: 1", bottom=x, name="a"))
    second = normalised(builder, builder.conv(4, 1, bottom=x, name="b"))
    x = added(builder, first, second, top=first)
    builder.relu(bottom=x)
    after, _ = merges(builder)
    assert after.types() == ["Convolution", "ReLU"] * 2
    assert after.text.count(b'top: "a"') == 2


def test_sums_of_sums() -> None:
    """Of (a + relu) + b the inner sum is its shortcut, and goes."""
    builder = Builder((2, 4, 8, 8))
    first = builder.conv(4, 3, "pad: 1", bottom="data", name="a")
    shortcut = builder.relu(bottom="data", top="positive")
    inner = added(builder, first, shortcut)
    second = builder.conv(4, 1, bottom="data", name="b")
    added(builder, inner, second)
    after, _ = merges(builder)
    assert after.types() == ["Convolution", "ReLU", "Eltwise"]


def test_a_sum_in_a_sum_that_somebody_reads() -> None:
    builder = Builder((2, 4, 8, 8))
    first = builder.conv(4, 3, "pad: 1", bottom="data", name="a")
    second = builder.conv(4, 1, bottom="data", name="b")
    inner = added(builder, first, second)
    builder.layer("Sigmoid", bottom=inner)
    added(builder, inner, builder.conv(4, 1, bottom="data", name="c"))
    after, _ = merges(builder)
    assert Counter(after.types()) == {"Convolution": 2, "Sigmoid": 1, "Eltwise": 1}


@pytest.mark.parametrize(
    "windows",
    [
        [(4, "pad: 1 stride: 2"), (4, "pad: 1 stride: 2")],
        [(4, "pad: 1 stride: 2"), (2, "stride: 2")],
        [(3, "pad: 1"), (1, "")],
        [(3, "pad: 1"), (3, "pad: 1"), (1, "")],
        [(5, "pad: 2"), (3, "pad: 1")],
    ],
)
@pytest.mark.parametrize("group", [1, 2])
def test_deconvolutions(windows: list[tuple[int, str]], group: int) -> None:
    builder = Builder((2, 4, 6, 6))
    ends = []
    for number, (kernel, options) in enumerate(windows):
        end = builder.conv(
            6,
            kernel,
            options,
            group=group,
            kind="Deconvolution",
            bottom="data",
            bias=number == 0,
        )
        ends.append(normalised(builder, end))
    added(builder, *ends)
    after, report = merges(builder)
    assert after.types() == ["Deconvolution"]
    assert report.kept == 0


def test_a_pointwise_convolution_and_a_deconvolution() -> None:
    """The deconvolution does the work, though it comes second."""
    builder = Builder((2, 2, 6, 6))
    builder.conv(8, 1)
    builder.conv(2, 2, "stride: 2", kind="Deconvolution", name="up")
    after, report = merges(builder)
    assert after.types() == ["Deconvolution"]
    assert after.names == ["up"]
    assert report.merged[0].kind == "Deconvolution"


@pytest.mark.parametrize("shape", [(3, 12), (3, 3, 2, 2), (3, 12, 1, 1)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_inner_products_in_a_row(shape: tuple[int, ...], transposed: bool, bias: bool) -> None:
    builder = Builder(shape)
    options = "transpose: true" if transposed else ""
    own = (12, 20) if transposed else None
    builder.inner_product(20, 12, bias=bias, options=options, shape=own)
    builder.inner_product(5, 20, bias=True)
    after, _ = merges(builder)
    assert after.types() == ["InnerProduct"]
    assert b"num_output: 5" in after.text


def test_inner_products_that_pay_stay_apart() -> None:
    builder = Builder((3, 12))
    builder.inner_product(2, 12)
    builder.inner_product(12, 2)
    assert_nothing_merges(builder)


def test_inner_products_side_by_side() -> None:
    builder = Builder((3, 6))
    first = normalised(builder, builder.inner_product(6, 6, bottom="data"))
    second = builder.inner_product(6, 6, bottom="data", bias=True)
    added(builder, first, second, "data")
    after, report = merges(builder)
    assert after.types() == ["InnerProduct"]
    assert report.kept == 0


@pytest.mark.parametrize("options", ["", "axis: 2", "axis: -2"])
def test_inner_products_of_an_image_side_by_side(options: str) -> None:
    """Each flattens what it reads by itself."""
    builder = Builder()
    elements = 64 if options else 192
    a = builder.inner_product(5, elements, bias=True, name="a", bottom="data", options=options)
    b = builder.inner_product(5, elements, name="b", bottom="data", options=options)
    builder.layer("Eltwise", name="sum", bottom=[a, b])
    after, report = check(builder)
    assert after.types() == ["InnerProduct"]
    assert [merged.into for merged in report.merged] == ["a"]


@pytest.mark.parametrize("top", ["same", None])
@pytest.mark.parametrize("where", ["branch", "front", "sum"])
def test_through_a_dropout(where: str, top: str | None) -> None:
    builder = Builder()
    source = builder.layer("Sigmoid", name="first")
    front = source
    if where == "front":
        front = builder.layer("Dropout", name="drop", bottom=source)
    a = builder.conv(4, 3, "pad: 1", name="a", bottom=front)
    if where == "branch":
        a = builder.layer("Dropout", name="drop", bottom=a, top=top)
    b = builder.conv(4, 1, name="b", bottom=source)
    total = builder.layer("Eltwise", name="sum", bottom=[a, b], channels=4)
    if where == "sum":
        builder.layer("Dropout", name="drop", bottom=total, top=top)
        c = builder.conv(4, 1, name="c", bottom=source)
        builder.layer("Eltwise", name="last", bottom=[total if top else "drop", c])
    after, report = check(builder)
    assert after.types() == ["Sigmoid", "Convolution"]
    assert len(report.merged) == 1


def test_not_through_a_dropout_that_somebody_reads() -> None:
    builder = Builder()
    a = builder.conv(4, 3, "pad: 1", name="a", bottom="data")
    drop = builder.layer("Dropout", name="drop", bottom=a)
    b = builder.conv(4, 1, name="b", bottom="data")
    builder.layer("Eltwise", name="sum", bottom=[drop, b])
    builder.layer("Sigmoid", bottom=drop)
    _, report = check(builder)
    assert not report.merged


def test_inner_products_of_an_image_that_are_concatenated() -> None:
    builder = Builder()
    a = builder.inner_product(5, 192, bias=True, name="a", bottom="data")
    b = builder.inner_product(4, 192, name="b", bottom="data")
    builder.layer("Concat", bottom=[a, b], channels=9)
    after, _ = check(builder)
    assert after.types() == ["InnerProduct"]


def test_inner_products_that_flatten_an_image_from_another_axis_on() -> None:
    builder = Builder((2, 1, 8, 8))
    a = builder.inner_product(8, 64, name="a", bottom="data", options="axis: 1")
    b = builder.inner_product(8, 8, name="b", bottom="data", options="axis: 3")
    builder.layer("Reshape", "reshape_param { shape { dim: 2 dim: 64 } }", name="r", bottom=b)
    builder.layer("InnerProduct", name="c", bottom="r", blobs=[builder.rng.normal(size=(8, 64))],
                  extra="inner_product_param { num_output: 8 bias_term: false }")  # fmt: skip
    builder.layer("Eltwise", name="sum", bottom=[a, "c"])
    after, report = check(builder)
    assert not report.merged
    assert "Eltwise" in after.types()


def test_a_chain_that_narrows_again() -> None:
    """The first one does the work, and makes as many channels as the last one."""
    builder = Builder((2, 4, 8, 8))
    builder.conv(16, 1, bias=True, name="wide")
    builder.conv(4, 3, "stride: 2", name="narrow")
    after, report = merges(builder)
    assert after.types() == ["Convolution"]
    assert report.merged[0].into == "narrow"


@pytest.mark.parametrize(
    "pool", ["kernel_size: 2 stride: 2", "kernel_h: 2 kernel_w: 4 stride_h: 2 stride_w: 4"]
)
def test_a_mean_with_whole_windows(pool: str) -> None:
    builder = Builder((2, 4, 8, 8))
    builder.conv(4, 1, group=4)
    builder.layer("Pooling", f"pooling_param {{ pool: AVE {pool} }}", name="pool")
    before = builder.pair()
    after, _ = check(builder)
    assert after.types() in (["Convolution"], ["Convolution", "Pooling"])
    assert before.types() == ["Convolution", "Pooling"]


def test_convolutions_of_a_volume() -> None:
    builder = Builder((1, 2, 5, 6, 4))
    ends = []
    for kernel, pad in (((3, 1, 3), (1, 0, 1)), ((1, 1, 1), (0, 0, 0)), ((3, 1, 1), (1, 0, 0))):
        text = "".join(f" kernel_size: {k} pad: {p}" for k, p in zip(kernel, pad, strict=True))
        blob = builder.rng.normal(size=(2, 2, *kernel))
        options = f"convolution_param {{ num_output: 2 {text} bias_term: false }}"
        ends.append(builder.layer("Convolution", options, bottom="data", blobs=[blob], channels=2))
    added(builder, *ends, "data")
    after, _ = merges(builder)
    assert after.types() == ["Convolution"]


def test_a_layer_that_was_depthwise() -> None:
    """A fork's layer for depthwise convolutions can do no other."""
    builder = Builder((2, 2, 8, 8))
    first = builder.conv(2, 3, "pad: 1", group=2, kind="DepthwiseConvolution", bottom="data")
    second = builder.conv(2, 1, bottom="data")
    third = builder.conv(2, 3, "pad: 1", bottom="data")
    added(builder, first, second, third)
    after, _ = merges(builder)
    assert after.types() == ["Convolution"]


# ------------------------------------------------------------------- how it is written


def test_layers_that_are_not_merged_stay_byte_for_byte() -> None:
    text = repvgg(1).pair().text.decode()
    lines = text.replace('name: "stem"', 'name:   "stem"  # where it begins')
    builder = repvgg(1)
    before = Pair(lines.encode(), builder.pair().weights)
    after, _ = fold(before)
    layers = [one + "}\n" for one in lines.split("}\nlayer")]
    for part in (layers[1], layers[2]):  # the stem and its ReLU
        assert part.split("\n", 1)[1][:-2] in after.text.decode()
    assert before.text.splitlines()[:2] == after.text.splitlines()[:2]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("kernel_size: 3 pad: 1", "kernel_size: 3 pad: 1"),
        ("kernel_h: 3 kernel_w: 3 pad: 1", "kernel_h: 3 kernel_w: 3 pad: 1"),
        ("pad: 1 kernel_size: 3 kernel_size: 3", "pad: 1 kernel_size: 3 kernel_size: 3"),
    ],
)
def test_a_window_that_does_not_change_stays_as_it_is_written(given: str, wanted: str) -> None:
    builder = Builder((2, 4, 8, 8))
    blob = builder.rng.normal(size=(4, 4, 3, 3))
    text = f"convolution_param {{ num_output: 4 {given} bias_term: false }}"
    first = builder.layer("Convolution", text, bottom="data", blobs=[blob], channels=4)
    added(builder, first, "data")
    after, _ = merges(builder)
    assert wanted.encode() in after.text


GROWS = """input: "data"
input_shape { dim: 1 dim: 2 dim: 7 dim: 7 }
layer {
  name: "a"
  type: "Convolution"
  bottom: "data"  # the image
  top: "a"
  convolution_param {
    num_output: 2
    kernel_h: 3
    kernel_w: 1
    pad_h: 1  # above and below
    bias_term: false
  }
}
layer {
  name: "b"
  type: "Convolution"
  bottom: "data"
  top: "b"
  convolution_param {
    num_output: 2 kernel_h: 3 kernel_w: 1 pad_h: 2 dilation: 2 dilation: 1
  }
}
# They meet.
layer {
  name: "sum"
  type: "Eltwise"
  bottom: "a"
  bottom: "b"
  top: "sum"
}
"""


def test_a_window_that_grows() -> None:
    """Rows -1, 0, 1 and -2, 0, 2 are five rows, which are fewer than six."""
    rng = np.random.default_rng(0)
    arrays = {
        "a": [rng.normal(size=(2, 2, 3, 1))],
        "b": [rng.normal(size=(2, 2, 3, 1)), rng.normal(size=2)],
    }
    before = pair(GROWS, arrays)
    after, report = fold(before)
    assert_equal(before, after, {"data": rng.normal(size=(1, 2, 7, 7))})
    assert merged(report) == {"a": ("b", "sum")}
    wanted = GROWS[: GROWS.index('layer {\n  name: "b"')] + "# They meet.\n"
    wanted = wanted.replace('top: "a"', 'top: "sum"').replace("kernel_h: 3", "kernel_h: 5")
    wanted = wanted.replace("pad_h: 1", "pad_h: 2\n    pad_w: 0")
    assert after.text.decode() == wanted.replace("bias_term: false", "bias_term: true")


def test_a_dilation_that_was_not_there() -> None:
    """Columns and rows -2, 2 and 0: three, two apart."""
    builder = Builder((2, 2, 8, 8))
    ends = []
    for name, options, taps in (
        ("a", "kernel_size: 1", (1, 1)),
        ("b", "kernel_h: 2 kernel_w: 1 dilation: 4 dilation: 1 pad_h: 2", (2, 1)),
    ):
        text = f"convolution_param {{ num_output: 2 {options} bias_term: false }}"
        blob = builder.rng.normal(size=(2, 2, *taps))
        ends.append(
            builder.layer("Convolution", text, name=name, bottom="data", blobs=[blob], channels=2)
        )
    added(builder, *ends)
    after, report = merges(builder)
    assert merged(report) == {"a": ("b", "eltwise3")}
    for wanted in (b"kernel_h: 3 kernel_w: 1", b"pad_h: 2 pad_w: 0", b"dilation: 2 dilation: 1"):
        assert wanted in after.text


@pytest.mark.parametrize("kinds", [("CONVOLUTION", "RELU", "ELTWISE"), ("4", "18", "25")])
def test_the_text_of_an_old_caffe(kinds: tuple[str, str, str]) -> None:
    """In which a type is a word of an enum, or its number."""
    builder = repvgg()
    before = builder.pair()
    text = before.text.decode().replace("layer {", "layers {")
    for new, old in zip(("Convolution", "ReLU", "Eltwise"), kinds, strict=True):
        text = text.replace(f'type: "{new}"', f"type: {old}")
    old_form = Pair(text.replace('type: "', "type: ").encode(), before.weights)
    old_form = Pair(old_form.text.replace(b'BatchNorm"', b"BatchNorm"), before.weights)
    old_form = Pair(old_form.text.replace(b'Scale"', b"Scale"), before.weights)
    after, report = fold(old_form)
    assert len(report.merged) == 2
    assert after.types() == [*kinds[:2]] * 3
    if not kinds[0].isdigit():  # the tests' own Caffe knows words alone
        assert_equal(old_form, after, builder.inputs())


def test_shapes_of_an_old_caffe(tmp_path: Path) -> None:
    builder = repvgg()
    layers = [
        build.layer(name, "T", *(build.blob(blob, data="double", shape="legacy") for blob in blobs))
        for name, blobs in builder.arrays.items()
    ]
    before = Pair(builder.pair().text, build.net(*layers))
    after, report = fold(before)
    assert len(report.merged) == 2
    assert all(blob.ndim == 4 for blobs in after.stored().values() for blob in blobs)
    assert_equal(before, after, builder.inputs())


def test_pads_are_the_same_on_both_sides() -> None:
    """As they are in Caffe: windows with such pads have sums and chains with such pads."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(4000):
        kernels, strides, dilations, pads = (rng.integers(low, 5, (2, 2)) for low in (1, 1, 1, 0))
        one, other = (
            Window((int(k),), (int(s),), (int(d),), (int(p),), (int(p),), is_transposed=False)
            for k, s, d, p in zip(kernels[0], strides[0], dilations[0], pads[0], strict=True)
        )
        for made in (joint([one, other]), chained(one, other, inner_shifts=bool(found % 2))):
            if made is not None:
                found += 1
                assert made.before == made.after
    assert found > 100


@pytest.mark.parametrize("form", ["packed", "double"])
def test_in_the_storage_that_it_had(form: str) -> None:
    builder = repvgg()
    before = builder.pair(form=form)
    after, report = fold(before)
    assert report.kept == 0
    blobs = [blob for blobs in after.stored().values() for blob in blobs]
    assert {blob.dtype.itemsize for blob in blobs} == {4 if form == "packed" else 8}
    assert_equal(before, after, builder.inputs(), tolerance=1e-5 if form == "packed" else 1e-9)


def test_the_report_says_it() -> None:
    report = merges(repvgg(1))[1]
    (one,) = report.merged
    assert one.into == "0/3x3"
    assert one.kind == "Convolution"
    assert set(one.parts) >= {"0/1x1"}
    assert FoldReport.from_json(report.to_json()).merged == report.merged
    assert report.notes[0] == "layers: 12 -> 4"


def test_a_look_counts_the_layers_that_are_there(tmp_path: Path) -> None:
    network = _written(repvgg(1).pair(), tmp_path)
    look = door.inspect((network, network.with_suffix(".caffemodel")), Request())
    assert look.counts[0] == Counter(
        {"Convolution": 3, "BatchNorm": 3, "Scale": 3, "ReLU": 2, "Eltwise": 1}
    )


# ------------------------------------------------------------------- compared


def test_without_merging_if_merged_does_not_compare(tmp_path: Path) -> None:
    network = _written(repvgg(1).pair(), tmp_path)
    folded = door.fold((network, network.with_suffix(".caffemodel")), Request())
    wrong = VerifyResult(False)
    plain, found = folded.proven(wrong, lambda made: VerifyResult(not made.report.merged))
    assert isinstance(found, VerifyResult) and found.equal
    assert folded.report.merged
    assert plain.report.merged == ()
    assert plain.proven(wrong, lambda made: "") == (plain, wrong)


def _written(model: Pair, folder: Path) -> Path:
    network = folder / "net.prototxt"
    network.write_bytes(model.text)
    network.with_suffix(".caffemodel").write_bytes(model.weights)
    return network


@pytest.mark.parametrize("make", [repvgg, two_branches])
def test_the_comparison_looks_inside(make: Callable[[], Builder], tmp_path: Path) -> None:
    network = _written(make().pair(form="packed"), tmp_path)
    out = tmp_path / "folded.prototxt"
    bnfold.fold(network, output=out)
    found = Comparison(samples=1).of(
        files_runner(network, network.with_suffix(".caffemodel")),
        files_runner(out, out.with_suffix(".caffemodel")),
    )
    assert found.equal
    names = [layer.name for layer in found.layers]
    assert not set(names) & {"0/3x3", "a"}  # these make something else now
    assert make is two_branches or "stem" in names


def test_a_wrong_merge_is_seen(tmp_path: Path) -> None:
    builder = repvgg()
    before = builder.pair(form="packed")
    after, _ = fold(before)
    arrays = after.stored()
    wrong = bytearray(after.weights)
    needle = arrays["0/3x3"][0].tobytes()
    at = after.weights.index(needle)
    wrong[at : at + len(needle)] = (arrays["0/3x3"][0] * np.float32(1.01)).tobytes()
    runners = [
        read_runner(read_text(one.text, "net"), read_caffemodel(one.weights, "net"))
        for one in (before, Pair(after.text, bytes(wrong)))
    ]
    found = Comparison(samples=1).of(*runners)
    assert not found.equal


@pytest.mark.parametrize("seed", range(6))
def test_random_nets_are_equal_inside(seed: int) -> None:
    before = branchy_net(seed).pair(form="packed")
    after, _ = fold(before)
    original, made = (
        read_runner(read_text(one.text, "net"), read_caffemodel(one.weights, "net"))
        for one in (before, after)
    )
    found = Comparison(samples=1).of(original, made)
    assert found.equal, found.summary


@pytest.mark.parametrize("seed", range(100, 125))
def test_random_nets(seed: int) -> None:
    builder = branchy_net(seed)
    before = builder.pair()
    assert_caffe_takes_it(before)
    after, report = check(builder)
    assert_caffe_takes_it(after)
    assert report.kept <= fold(before, merge="never")[1].kept


def test_steps_that_went_into_one_that_is_folded_are_in_what_took_that_in():
    builder = Builder((2, 4, 5, 8))
    options = "pad: 1 dilation: 2"
    x = builder.conv(4, 2, options, group=4, bias=True, bottom="data", name="conv")
    branches = [normalised(builder, "data", top=f"branch{place}") for place in range(2)]
    added(builder, x, *branches, top="sum")
    builder.inner_product(3, 160, name="out", bias=True)
    after, report = merges(builder)
    assert report.merged[0].kind == "Scale"
    assert {name for item in report.items for name in item.outcome.into} == {"conv", "out"}
    assert after.types() == ["Convolution", "Eltwise", "InnerProduct"]
