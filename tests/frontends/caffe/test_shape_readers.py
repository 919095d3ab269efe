"""Layers that read the shape of a blob and not its values: what is behind them folds."""

from __future__ import annotations

import pytest

from tests.frontends.caffe.support import Builder, assert_caffe_takes_it, check, fold, kept


def detector(kind: str, options: str, *, size: str = "bn0", feature: str = "conv") -> Builder:
    """Steps on the image and on a feature, both of which a layer of prior boxes reads."""
    builder = Builder((2, 4, 9, 9))
    builder.batch_norm(name="bn0")
    builder.scale(name="scale0", top="same")
    builder.conv(6, name="conv")
    builder.batch_norm(name="bn", top="same")
    builder.relu(name="relu")
    builder.layer(kind, options, name="boxes", bottom=[feature, size], channels=2)
    builder.conv(6, name="head", bottom="conv")
    builder.batch_norm(name="bn2")
    return builder


BOXES = "prior_box_param { min_size: 4 aspect_ratio: 2 }"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PriorBox", BOXES),
        ("PriorBox", "prior_box_param { min_size: 4 max_size: 6 flip: false clip: true step: 2 }"),
        ("PriorBox", "prior_box_param { min_size: 4 img_size: 300 }"),
        ("PriorBoxClustered", "prior_box_param { width: 4 height: 5 }"),
    ],
)
@pytest.mark.parametrize("size", ["bn0", "data", "conv"])
def test_prior_boxes_read_shapes_of_both_bottoms(kind: str, options: str, size: str) -> None:
    after, report = check(detector(kind, options, size=size))
    assert kept(report) == {}
    assert after.types() == ["Convolution", "ReLU", kind, "Convolution"]
    assert_caffe_takes_it(after)


def test_the_shapes_of_values_on_either_side_of_a_step() -> None:
    """The boxes read the convolution's output, which becomes the BatchNorm's."""
    builder = Builder((2, 4, 9, 9))
    builder.conv(6, name="conv", top="x")
    builder.layer("PriorBox", BOXES, name="boxes", bottom=["x", "data"], channels=2)
    builder.batch_norm(name="bn", bottom="x", top="y")
    builder.layer("Silence", name="hush", bottom="y", top=[])
    builder.relu(name="relu", bottom="y", top="z")
    after, report = check(builder)
    assert kept(report) == {}
    assert after.names == ["conv", "boxes", "hush", "relu"]
    assert_caffe_takes_it(after)


def test_where_a_crop_is_not_known_its_second_bottom_is_still_a_shape() -> None:
    builder = Builder()
    builder.conv(4, 1, name="large", bottom="data")
    builder.conv(4, 5, name="small", bottom="data")
    builder.batch_norm(name="bn")
    builder.layer(
        "Crop", "crop_param { axis: 1 offset: 0 }", name="crop", bottom=["large", "small"]
    )
    builder.layer("Crop", "crop_param { offset: 1 }", name="crop2", bottom=["large", "bn"])
    after, report = check(builder)
    assert kept(report) == {}
    assert after.types() == ["Convolution", "Convolution", "Crop", "Crop"]


def test_detections_read_values_and_the_boxes_only_sizes() -> None:
    builder = detector("PriorBox", BOXES)
    builder.layer("Flatten", name="flat")
    options = "detection_output_param { num_classes: 2 }"
    builder.layer("DetectionOutput", options, name="out", bottom=["flat", "flat", "boxes"])
    _, report = check(builder)
    assert kept(report) == {}
    builder.layer("Sigmoid", name="sigmoid", bottom="conv")
    builder.batch_norm(name="late")
    builder.layer("DetectionOutput", options, name="again", bottom=["late", "flat", "boxes"])
    _, report = fold(builder.pair())
    assert kept(report) == {"late": "nonlinear"}
