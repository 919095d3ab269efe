"""Layers without weights: what passes them, and what does not."""

from __future__ import annotations

import numpy as np
import pytest

from tests.frontends.caffe.support import Builder, check, fold, kept

ONES = [1.0, 2.0, 0.5, 1.5]


def between(
    kind: str, options: str = "", *, gamma: object = None, bias: bool = True, **where: object
) -> Builder:
    """A sigmoid, a Scale, the layer, a convolution: the Scale has to pass the layer to go."""
    builder = Builder((2, 4, 6, 6))
    builder.layer("Sigmoid", name="start")
    builder.scale(name="scale", gamma=gamma, bias=bias)
    builder.layer(kind, options, name="layer", **where)  # type: ignore[arg-type]
    builder.conv(3, 1, name="conv")
    return builder


# ------------------------------------------------------------------- must stay


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ReLU", ""),
        ("ReLU6", ""),
        ("PReLU", ""),
        ("ReLU", "relu_param { negative_slope: 0.1 }"),
        ("AbsVal", ""),
        ("Pooling", "pooling_param { pool: MAX kernel_size: 2 }"),
        ("Clip", "clip_param { min: 0 max: 2 }"),
    ],
)
def test_a_negative_factor_does_not_pass(kind: str, options: str) -> None:
    builder = between(kind, options, gamma=[1.0, -2.0, 0.5, 1.5], bias=False)
    if kind == "PReLU":
        builder.arrays["layer"] = [np.array([0.1, 0.2, 0.3, 0.4])]
    assert list(kept(check(builder)[1])) == ["scale"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ReLU", ""),
        ("ReLU6", ""),
        ("AbsVal", ""),
        ("ReLU", "relu_param { negative_slope: 0.1 }"),
        ("Pooling", "pooling_param { pool: AVE kernel_size: 3 pad: 1 }"),
        ("Pooling", "pooling_param { pool: AVE kernel_h: 1 kernel_w: 3 pad_h: 0 pad_w: 1 }"),
        ("Clip", "clip_param { min: 0 max: 2 }"),
    ],
)
def test_a_shift_does_not_pass(kind: str, options: str) -> None:
    assert list(kept(check(between(kind, options, gamma=ONES))[1])) == ["scale"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Sigmoid", ""),
        ("TanH", ""),
        ("ELU", ""),
        ("BNLL", ""),
        ("Softmax", ""),
        ("LRN", ""),
        ("MVN", ""),
        ("Exp", ""),
        ("Power", "power_param { power: 3 }"),
        ("Threshold", ""),
        ("ReLU6", ""),
        ("Clip", "clip_param { min: -1 max: 1 }"),
        ("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 }"),
        ("Dropout", "dropout_param { scale_train: false }"),
        ("Dropout", "phase: TRAIN"),
        ("ReLU", "relu_param { negative_slope: 0 upper: 2 }"),
        ("Eltwise", "eltwise_param { operation: MAX } bottom: 'start'"),
        ("Reduction", "reduction_param { operation: SUM axis: 2 }"),
        ("Embed", ""),
        ("Python", "python_param { module: 'm' layer: 'L' }"),
        ("NobodyKnows", ""),
    ],
)
def test_no_factor_passes(kind: str, options: str) -> None:
    builder = between(kind, options, gamma=ONES, bias=False)
    before = builder.pair()
    after, report = fold(before)
    assert "scale" in kept(report)
    assert after == before


LOWEST = -3.4028234663852886e38


@pytest.mark.parametrize(
    ("lower", "upper", "gamma", "bias"),
    [
        (LOWEST, -LOWEST, [1.0, -2.0, 0.5, 1.5], True),
        (LOWEST, 0.0, ONES, False),
        (0.0, -LOWEST, ONES, False),
    ],
)
def test_a_bound_at_the_end_of_float32_is_none(
    lower: float, upper: float, gamma: list[float], *, bias: bool
) -> None:
    options = f"clip_param {{ min: {lower!r} max: {upper!r} }}"
    assert not kept(check(between("Clip", options, gamma=gamma, bias=bias))[1])


@pytest.mark.parametrize(("lower", "upper"), [(LOWEST, 6.0), (-1.0, -LOWEST), (-3e38, 3e38)])
def test_the_other_bound_of_such_a_clip_is_one(lower: float, upper: float) -> None:
    options = f"clip_param {{ min: {lower!r} max: {upper!r} }}"
    assert list(kept(check(between("Clip", options, gamma=ONES))[1])) == ["scale"]


@pytest.mark.parametrize(
    ("pool", "bias"), [("MAX", False), ("0", False), ("AVE", True), ("1", True)]
)
def test_pooling_with_windows_behind_the_image(pool: str, *, bias: bool) -> None:
    """Caffe rounds up: of 6 pixels in steps of 2 it takes the 7th. That is the smallest float, or
    0, whatever stands in the image.
    """
    options = f"pooling_param {{ pool: {pool} kernel_size: 1 stride: 2 }}"
    before = between("Pooling", options, gamma=ONES, bias=bias).pair()
    assert list(kept(fold(before)[1])) == ["scale"]


def test_branches_of_a_sum_with_different_factors() -> None:
    builder = Builder((2, 4, 6, 6))
    builder.layer("Sigmoid", name="start")
    builder.scale(name="scale", gamma=ONES, bias=False)
    text = "eltwise_param { coeff: 1 coeff: -1 }"
    builder.layer("Eltwise", text, name="sum", bottom=["start", "scale"])
    builder.conv(3, 1)
    assert list(kept(check(builder, merge="never")[1])) == ["scale"]


# ------------------------------------------------------------------- what folds


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ReLU", ""),
        ("ReLU", "relu_param { negative_slope: 0.1 }"),
        ("ReLU", "relu_param { engine: CAFFE }"),
        ("AbsVal", ""),
        ("Pooling", "pooling_param { pool: MAX kernel_size: 3 stride: 2 }"),
        ("Pooling", "pooling_param { pool: MAX kernel_size: 3 stride: 2 pad: 1 }"),
        ("Pooling", "pooling_param { pool: AVE kernel_size: 3 pad: 1 }"),
        ("Pooling", "pooling_param { kernel_size: 2 stride: 2 }"),
        ("Dropout", "dropout_param { dropout_ratio: 0.3 }"),
        ("Split", ""),
    ],
)
def test_a_positive_factor_passes(kind: str, options: str) -> None:
    assert kept(check(between(kind, options, gamma=ONES, bias=False))[1]) == {}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Pooling", "pooling_param { pool: AVE kernel_size: 3 stride: 2 }"),
        ("Pooling", "pooling_param { pool: AVE kernel_size: 4 stride: 3 }"),  # windows are cut off
        ("Pooling", "pooling_param { pool: AVE global_pooling: true }"),
        ("Dropout", ""),
        ("Split", ""),
        ("Slice", "slice_param { slice_point: 4 }"),
        ("Permute", "permute_param { order: 0 order: 1 order: 3 order: 2 }"),
        ("Reshape", "reshape_param { shape { dim: 0 dim: 0 dim: -1 dim: 4 } }"),
        ("Interp", "interp_param { height: 11 width: 11 }"),
        ("ShuffleChannel", "shuffle_channel_param { group: 2 }"),
    ],
)
def test_negative_factors_and_shifts_pass(kind: str, options: str) -> None:
    if kind == "Slice":
        options, where = "slice_param { axis: 2 slice_point: 4 }", {"top": ["layer", "rest"]}
        builder = between(kind, options, **where)
        builder.conv(2, 1, bottom="rest")
    else:
        builder = between(kind, options)
    assert kept(check(builder)[1]) == {}


def test_a_shift_passes_max_pooling_with_a_border() -> None:
    builder = between("Pooling", "pooling_param { kernel_size: 3 stride: 2 pad: 1 }", gamma=ONES)
    assert kept(check(builder)[1]) == {}


def test_shuffled_channels_are_followed() -> None:
    builder = Builder((2, 6, 5, 5))
    builder.conv(6, 1, group=3)
    builder.layer("ShuffleChannel", "shuffle_channel_param { group: 3 }")
    builder.batch_norm()
    builder.scale()
    builder.relu()
    builder.conv(6, 3, group=2)
    assert check(builder)[0].types() == ["Convolution", "ShuffleChannel", "ReLU", "Convolution"]


@pytest.mark.parametrize("axis", ["", "concat_param { axis: 1 }", "concat_param { concat_dim: 1 }"])
def test_a_batch_norm_behind_a_concat(axis: str) -> None:
    builder = Builder()
    builder.conv(2, 1, name="a", bottom="data")
    builder.conv(3, 3, "pad: 1", name="b", bottom="data")
    builder.layer("Concat", axis, name="join", bottom=["a", "b"], channels=5)
    builder.batch_norm()
    builder.scale()
    builder.relu()
    builder.conv(2, 3, "pad: 1")
    after, _ = check(builder)
    assert after.types() == ["Convolution"] * 2 + ["Concat", "ReLU", "Convolution"]


def test_a_concat_along_the_image() -> None:
    builder = Builder()
    builder.conv(4, 1, name="a", bottom="data")
    builder.conv(4, 1, name="b", bottom="data")
    builder.layer("Concat", "concat_param { axis: -1 }", name="join", bottom=["a", "b"])
    builder.batch_norm()
    assert check(builder)[0].types() == ["Convolution"] * 2 + ["Concat"]


@pytest.mark.parametrize("axis", ["slice_param { axis: 1 }", "slice_param { slice_dim: 1 }"])
def test_batch_norms_behind_a_slice(axis: str) -> None:
    builder = Builder()
    builder.conv(6, 1, name="conv")
    builder.layer("Slice", axis, name="cut", top=["x", "y"], channels=3)
    builder.batch_norm(bottom="x")
    builder.scale(bottom="y")
    assert check(builder)[0].types() == ["Convolution", "Slice"]


@pytest.mark.parametrize(
    "coeff", ["", "coeff: 1 coeff: -1", "coeff: 0.3 coeff: 2", "coeff: 0 coeff: 1"]
)
def test_sums_with_coefficients(coeff: str) -> None:
    builder = Builder()
    for name in ("a", "b"):
        builder.conv(4, 1, name=name, bottom="data")
        builder.batch_norm(name=f"bn_{name}", bottom=name)
    options = f"eltwise_param {{ operation: SUM {coeff} }}"
    builder.layer("Eltwise", options, name="sum", bottom=["bn_a", "bn_b"])
    builder.batch_norm(name="bn_sum")
    builder.conv(3, 1)
    assert "BatchNorm" not in check(builder)[0].types()


@pytest.mark.parametrize("depth", [1, 3])
def test_a_sum_of_three(depth: int) -> None:
    builder = Builder()
    names = []
    for name in ("a", "b", "c"):
        builder.conv(4, 1, name=name, bottom="data")
        builder.batch_norm(name=f"bn_{name}", bottom=name)
        names.append(f"bn_{name}")
    builder.layer("Eltwise", name="sum", bottom=names)
    for number in range(depth):
        builder.scale(name=f"scale{number}")
    assert check(builder, merge="never")[0].types() == ["Convolution"] * 3 + ["Eltwise"]


def test_prod_is_a_gate() -> None:
    builder = Builder()
    builder.conv(4, 1, name="a", bottom="data")
    builder.layer("Sigmoid", name="gate")
    builder.conv(4, 1, name="b", bottom="data")
    builder.layer("Eltwise", "eltwise_param { operation: PROD }", name="p", bottom=["b", "gate"])
    builder.scale(name="factor", bias=False)
    assert "factor" not in check(builder)[0].names


def test_axpy() -> None:
    """SENet: y = a * x + b with a factor per image and channel."""
    builder = Builder((2, 4, 6, 6))
    builder.conv(4, 1, name="x")
    builder.layer("Pooling", "pooling_param { pool: AVE global_pooling: true }", name="pool")
    builder.conv(4, 1, name="squeeze")
    builder.layer("Sigmoid", name="a")
    builder.conv(4, 1, name="y", bottom="data")
    builder.batch_norm(name="bn_y")
    builder.layer("Axpy", name="axpy", bottom=["a", "x", "bn_y"])
    builder.scale(name="scale", bias=False, gamma=ONES)
    after, _ = check(builder)
    assert "BatchNorm" not in after.types()
    assert "Scale" not in after.types()


@pytest.mark.parametrize("flatten", ["", "Flatten", "Reshape"])
def test_a_batch_norm_in_front_of_an_inner_product(flatten: str) -> None:
    """Each channel is 20 elements of the vector."""
    builder = Builder((2, 3, 4, 5))
    builder.batch_norm()
    builder.scale()
    if flatten:
        options = "reshape_param { shape { dim: 0 dim: -1 } }" if flatten == "Reshape" else ""
        builder.layer(flatten, options)
    builder.inner_product(7, 60)
    types = check(builder)[0].types()
    assert types == [*([flatten] if flatten else []), "InnerProduct"]


def test_a_batch_norm_behind_a_flatten_normalises_elements() -> None:
    builder = Builder((2, 3, 4, 5))
    builder.conv(3, 1)
    builder.layer("Flatten", channels=60)
    builder.batch_norm()
    after, report = check(builder)
    assert after.types() == ["Convolution", "Flatten", "BatchNorm"]
    assert len(kept(report)) == 1


def test_a_crop_to_another_blob() -> None:
    builder = Builder((2, 4, 8, 8))
    builder.conv(4, 1, name="large", bottom="data")
    builder.batch_norm(name="bn")
    builder.conv(4, 5, name="small", bottom="data")
    builder.layer("Crop", "crop_param { offset: 1 }", name="crop", bottom=["bn", "small"])
    builder.conv(2, 1)
    after, report = check(builder)
    assert kept(report) == {}
    assert "BatchNorm" not in after.types()


# ------------------------------------------------------------------- shapes that are not known


def unknown(builder: Builder, crop: str = "") -> Builder:
    """A data layer instead of a declared input."""
    builder.parts[0] = (
        f'layer {{ name: "d" type: "Data" top: "data" top: "label" {crop} }}\n'
        'layer { name: "hush" type: "Silence" bottom: "label" }\n'
    )
    return builder


@pytest.mark.parametrize("crop", ["", "transform_param { crop_size: 8 }"])
def test_a_network_that_reads_a_database(crop: str) -> None:
    builder = unknown(Builder((2, 3, 8, 8)), crop)
    builder.batch_norm()
    builder.scale()
    builder.conv(4, 3)
    builder.batch_norm()
    builder.scale(top="same")
    builder.relu()
    builder.conv(4, 3, name="side", bottom=builder.last)
    builder.conv(4, 3, name="other", bottom="batchnorm4")
    builder.layer("Eltwise", name="sum", bottom=["side", "other"])
    builder.layer("Concat", name="join", bottom=["side", "sum"], channels=8)
    builder.batch_norm()
    builder.layer("Pooling", "pooling_param { pool: AVE kernel_size: 2 stride: 2 }")
    builder.layer("Flatten")
    builder.layer("Dropout", top="same")
    builder.inner_product(5, 8 * 2 * 2)
    builder.batch_norm()
    after, report = check(builder, label=(2, 1))
    assert kept(report) == {}
    assert not {"BatchNorm", "Scale"} & set(after.types())


def test_an_inner_product_reads_images_of_unknown_size() -> None:
    builder = unknown(Builder((2, 3, 4, 5)))
    builder.batch_norm()
    builder.inner_product(5, 60)
    after, _ = check(builder, label=(2, 1))
    assert "BatchNorm" not in after.types()


def test_a_reshape_of_unknown_sizes_is_not_followed() -> None:
    builder = unknown(Builder((2, 4, 6, 6)))
    builder.layer("Sigmoid")
    builder.scale(name="scale")
    builder.layer("Reshape", "reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 6 } }")
    builder.conv(3, 1)
    builder.parts[-1] = builder.parts[-1].replace("convolution4", "c")
    builder.arrays = {
        "scale": builder.arrays["scale"],
        "c": [builder.rng.normal(size=(3, 2, 1, 1))],
    }
    after, report = fold(builder.pair())
    assert list(kept(report)) == ["scale"]
    assert after == builder.pair()


def test_constants_along_an_unknown_axis_stay() -> None:
    builder = unknown(Builder((2, 4, 6, 6)))
    builder.conv(4, 1)
    builder.scale("axis: 2", gamma=np.arange(1.0, 7.0), name="rows")
    builder.conv(3, 1)
    _, report = check(builder, label=(2, 1))
    assert list(kept(report)) == ["rows"]
