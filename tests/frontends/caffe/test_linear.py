"""Convolution, Deconvolution and InnerProduct: what may go into them, and along which axis."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.errors import ModelUnreadableError
from tests.frontends.caffe.support import Builder, check, fold, kept

# ------------------------------------------------------------------- must stay


@pytest.mark.parametrize("pad", ["pad: 1", "pad_h: 0 pad_w: 1", "pad: 0 pad: 1", "pad: 2"])
def test_a_shift_does_not_cross_zero_padding(pad: str) -> None:
    builder = Builder()
    builder.batch_norm()
    builder.scale()
    builder.conv(4, 3, pad)
    after, report = check(builder)
    assert after.types() == ["Scale", "Convolution"]
    assert list(kept(report).values()) == ["padding"]


@pytest.mark.parametrize(
    "options", ["stride: 2", "stride: 1", "pad: 1", "stride_h: 1 stride_w: 2", "stride: 3"]
)
def test_a_shift_does_not_cross_a_deconvolution_with_missing_taps(options: str) -> None:
    builder = Builder()
    builder.batch_norm()
    builder.conv(4, 3, options, kind="Deconvolution")
    after, report = check(builder)
    assert after.types() == ["BatchNorm", "Deconvolution"]
    assert list(kept(report).values()) == ["padding"]


def test_stride_and_kernel_of_2_still_differ_between_outputs() -> None:
    builder = Builder()
    builder.batch_norm()
    builder.conv(4, 2, "stride: 2", kind="Deconvolution")
    assert list(kept(check(builder)[1]).values()) == ["padding"]


@pytest.mark.parametrize("group", [0, -1, 3])
@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
def test_a_group_that_is_none(kind: str, group: int) -> None:
    builder = Builder((2, 4, 8, 8))
    builder.conv(4, 1, f"group: {group}", kind=kind)
    builder.batch_norm()
    with pytest.raises(ModelUnreadableError, match=r"line \d+, .* 4 input and 4 output .*conv"):
        fold(builder.pair())


def test_an_inner_product_over_another_axis_than_the_channels() -> None:
    """(2, 3, 8, 8) with axis 2: each row of 64 is one vector; the 3 channels stay apart."""
    builder = Builder()
    builder.inner_product(5, 64, options="axis: 2")
    builder.channels[builder.last] = 3
    builder.batch_norm()
    after, report = check(builder)
    assert after.types() == ["InnerProduct", "BatchNorm"]
    assert len(kept(report)) == 1


@pytest.mark.parametrize(
    ("out", "options", "blobs"),
    [
        (4, "", [(4, 3, 3, 3)]),  # bias_term is true by default
        (4, "bias_term: false", [(4, 3, 3, 3), (4,)]),
        (4, "", [(4, 3, 3, 3), (4,), (4,)]),
        (4, "", [(4, 3, 3, 3), (3,)]),
        (4, "", [(4, 3, 3, 3), (4, 1)]),
        (4, "", [(4, 3, 5, 5), (4,)]),
        (4, "", [(3, 4, 3, 3), (4,)]),
        (4, "", [(4, 3, 3), (4,)]),
        (4, "", [(4, 27), (4,)]),
        (6, "group: 3", [(6, 3, 3, 3), (6,)]),
    ],
)
def test_arrays_that_caffe_would_refuse_are_an_error(
    out: int, options: str, blobs: list[tuple[int, ...]]
) -> None:
    builder = Builder()
    builder.layer(
        "Convolution",
        f"convolution_param {{ num_output: {out} kernel_size: 3 {options} }}",
        name="conv",
        blobs=[np.ones(shape) for shape in blobs],
        channels=out,
    )
    with pytest.raises(ModelUnreadableError, match="the layer conv ") as caught:
        fold(builder.pair())
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("elements", "options"), [(191, ""), (3, ""), (192, "axis: 2"), (64, "axis: 1")]
)
def test_an_inner_product_for_another_number_of_elements_is_an_error(
    elements: int, options: str
) -> None:
    builder = Builder()
    builder.inner_product(5, elements, options=options, name="fc")
    with pytest.raises(ModelUnreadableError, match="fc reads"):
        fold(builder.pair())


def test_a_convolution_without_weights_is_unknown() -> None:
    builder = Builder()
    builder.conv(4, name="one")
    builder.conv(4, name="two")
    del builder.arrays["two"]
    builder.batch_norm(name="bn")
    before = builder.pair()
    after, report = fold(before)
    assert after == before
    assert list(kept(report)) == ["bn"]
    assert any("two has no weights" in note for note in report.notes)


# ------------------------------------------------------------------- what folds


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Convolution", "pad: 1"),
        ("Convolution", "stride: 2 pad_h: 1 pad_w: 0"),
        ("Convolution", "dilation: 2"),
        ("Convolution", "axis: 1 engine: CAFFE"),
        ("Convolution", "axis: -3"),
        ("Deconvolution", "stride: 2"),
        ("Deconvolution", "pad: 1"),
        ("Deconvolution", "stride: 2 dilation: 2"),
    ],
)
def test_a_batch_norm_behind(kind: str, options: str, group: int, *, bias: bool) -> None:
    """9 output channels in 3 groups of 2 inputs: every wrong axis shows."""
    builder = Builder((2, 6, 9, 8))
    builder.conv(9, 3, options, kind=kind, group=group, bias=bias)
    builder.batch_norm(top="same")
    builder.scale(top="same")
    after, report = check(builder)
    assert after.types() == [kind]
    assert report.removed == 2
    assert b"bias_term: false" not in after.text


@pytest.mark.parametrize("group", [1, 2])
def test_a_batch_norm_in_front_of_a_convolution_without_padding(group: int) -> None:
    builder = Builder((2, 4, 9, 8))
    builder.batch_norm()
    builder.scale()
    builder.conv(6, 3, "stride: 2", group=group)
    after, _ = check(builder)
    assert after.types() == ["Convolution"]
    assert len(after.stored()["convolution3"]) == 2


def test_a_batch_norm_in_front_of_a_deconvolution_of_kernel_1() -> None:
    builder = Builder((2, 4, 5, 4))
    builder.batch_norm()
    builder.conv(6, 1, kind="Deconvolution", group=2)
    assert check(builder)[0].types() == ["Deconvolution"]


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 60)])
def test_inner_product(shape: tuple[int, ...], *, bias: bool, transpose: bool) -> None:
    builder = Builder(shape)
    builder.batch_norm()
    builder.scale()
    options = "transpose: true" if transpose else ""
    builder.inner_product(7, 60, options=options, bias=bias, shape=(60, 7) if transpose else None)
    builder.batch_norm()
    builder.scale()
    assert check(builder)[0].types() == ["InnerProduct"]


def test_inner_product_over_the_last_axis_is_one_vector_per_channel() -> None:
    """A BatchNorm over axis 1 in front of weights over axis 2 scales whole vectors: it stays."""
    builder = Builder((2, 3, 3))
    builder.batch_norm()
    builder.inner_product(4, 3, options="axis: 2")
    after, report = check(builder)
    assert after.types() == ["BatchNorm", "InnerProduct"]
    assert len(kept(report)) == 1


def test_weights_in_the_form_of_old_files() -> None:
    """num, channels, height and width instead of a shape: 1 x 1 x N x K for an InnerProduct."""
    from bnfold.frontends.caffe.caffemodel import read_caffemodel
    from tests.frontends.caffe import build
    from tests.frontends.caffe.support import Pair, assert_equal

    builder = Builder((2, 3, 4, 5))
    builder.conv(4, 3)
    builder.batch_norm()
    builder.scale()
    builder.inner_product(7, 4 * 2 * 3)
    builder.batch_norm()
    model = builder.pair()
    layers = [
        build.layer(name, "T", *(build.blob(b, shape="legacy", data="double") for b in blobs))
        for name, blobs in builder.arrays.items()
    ]
    old = Pair(model.text, build.net(*layers))
    after, _ = fold(old)
    assert after.types() == ["Convolution", "InnerProduct"]
    assert_equal(model, after, builder.inputs())
    stored = read_caffemodel(after.weights, "x").layers
    assert [[blob.shape for blob in layer.blobs] for layer in stored] == [
        [(4, 3, 3, 3), (1, 1, 1, 4)],
        [(1, 1, 7, 24), (1, 1, 1, 7)],
    ]
    assert all(blob.is_legacy for layer in stored for blob in layer.blobs)


@pytest.mark.parametrize("kind", ["ConvolutionDepthwise", "DepthwiseConvolution"])
@pytest.mark.parametrize("group", ["", "group: 4"])
def test_depthwise_layers_of_forks(kind: str, group: str) -> None:
    builder = Builder((2, 4, 7, 6))
    builder.conv(4, 3, f"pad: 1 {group}", kind=kind, group=4)
    builder.parts[-1] = builder.parts[-1].replace(" group: 4", f" {group}", 1)
    builder.batch_norm(top="same")
    builder.scale(top="same")
    builder.relu()
    builder.conv(5, 1)
    builder.batch_norm()
    assert check(builder)[0].types() == [kind, "ReLU", "Convolution"]


@pytest.mark.parametrize("shape", [(2, 3, 9), (2, 3, 5, 6, 7)])
def test_other_numbers_of_axes(shape: tuple[int, ...]) -> None:
    rank = len(shape) - 2
    builder = Builder(shape)
    weight = builder.rng.normal(size=(4, 3, *[3] * rank))
    builder.layer(
        "Convolution",
        "convolution_param { num_output: 4 kernel_size: 3 pad: 1 bias_term: false }",
        blobs=[weight],
        channels=4,
    )
    builder.batch_norm()
    builder.scale()
    assert check(builder)[0].types() == ["Convolution"]


def test_a_convolution_along_later_axes() -> None:
    """axis 2: the channels of the convolution are axis 2, those of the BatchNorm axis 1."""
    builder = Builder((2, 3, 4, 6, 7))
    text = "convolution_param { num_output: 5 kernel_size: 3 axis: 2 bias_term: false }"
    builder.layer("Convolution", text, blobs=[builder.rng.normal(size=(5, 4, 3, 3))], channels=3)
    builder.scale("axis: 2", gamma=builder.rng.normal(size=5))
    builder.batch_norm()
    after, report = check(builder)
    assert after.types() == ["Convolution", "BatchNorm"]
    assert len(kept(report)) == 1


def test_several_bottoms_share_the_weight() -> None:
    """One BatchNorm of the two cannot go alone; the same one behind both could."""
    builder = Builder()
    builder.conv(4, name="a", bottom="data")
    builder.layer("Sigmoid", name="b")
    text = "convolution_param { num_output: 2 kernel_size: 1 bias_term: false }"
    builder.layer(
        "Convolution",
        text,
        name="both",
        bottom=["a", "b"],
        top=["x", "y"],
        blobs=[builder.rng.normal(size=(2, 4, 1, 1))],
        channels=2,
    )
    builder.batch_norm(name="bn", bottom="x")
    after, report = check(builder)
    assert list(kept(report)) == ["bn"]
    assert after == builder.pair()


def test_the_same_statistics_behind_both_bottoms_fold() -> None:
    builder = Builder()
    builder.conv(4, name="a", bottom="data")
    builder.conv(4, name="b", bottom="data")
    text = "convolution_param { num_output: 2 kernel_size: 1 bias_term: false }"
    builder.layer(
        "Convolution",
        text,
        name="both",
        bottom=["a", "b"],
        top=["x", "y"],
        blobs=[builder.rng.normal(size=(2, 4, 1, 1))],
        channels=2,
    )
    builder.batch_norm(name="bn1", bottom="x", top="x1")
    builder.layer("BatchNorm", name="bn2", bottom="y", top="y1", blobs=builder.arrays["bn1"])
    after, report = check(builder)
    assert kept(report) == {}
    assert after.types() == ["Convolution"] * 3
