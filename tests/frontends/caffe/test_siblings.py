"""Layers of one blob whose tops are concatenated: one layer with all filters."""

from __future__ import annotations

import pytest

from tests.frontends.caffe.support import Builder, check
from tests.frontends.caffe.test_merge import (
    added,
    assert_nothing_merges,
    merged,
    merges,
    normalised,
)


def joined(builder: Builder, *bottoms: str, options: str = "", name: str = "cat") -> None:
    channels = sum(builder.channels[one] for one in bottoms)
    builder.layer("Concat", options, bottom=bottoms, name=name, channels=channels)


def two(options: str = "pad: 1", *, kernel: int = 3, **more) -> Builder:
    """A 3x3 convolution of 3 channels, and another one of 2."""
    builder = Builder((2, 4, 8, 8))
    builder.conv(3, 3, "pad: 1", bottom="data", name="a", bias=True)
    builder.conv(2, kernel, options, bottom="data", name="b", **more)
    return builder


# ------------------------------------------------------------------- must not


@pytest.mark.parametrize(
    "builder",
    [
        lambda: two("", kernel=1),
        lambda: two("pad: 2 dilation: 2"),
        lambda: two(extra='param { name: "shared" }'),
        lambda: two(extra="loss_weight: 1"),
        lambda: two(extra="include { phase: TEST }"),
    ],
)
def test_another_geometry_or_more_than_a_weight(builder) -> None:
    built = builder()
    if b"shared" in built.parts[-1].encode():
        built.layer(
            "Convolution",
            'param { name: "shared" } convolution_param { num_output: 2 kernel_size: 3 pad: 1'
            " bias_term: false }",
            bottom="data",
            name="c",
            blobs=built.arrays["b"],
        )
    joined(built, "a", "b")
    assert_nothing_merges(built)


def test_a_branch_that_somebody_else_reads() -> None:
    builder = two()
    joined(builder, "a", "b")
    builder.layer("Sigmoid", bottom="b")
    assert_nothing_merges(builder)


def test_a_branch_that_is_read_twice() -> None:
    builder = two()
    joined(builder, "a", "b", "a")
    assert_nothing_merges(builder)


def test_along_another_axis() -> None:
    builder = Builder((2, 4, 8, 8))
    for name in "ab":
        builder.conv(3, 3, bottom="data", name=name)
    joined(builder, "a", "b", options="concat_param { axis: 2 }")
    assert_nothing_merges(builder)


def test_with_something_in_between() -> None:
    builder = two()
    builder.layer("Sigmoid", bottom="data", name="s")
    joined(builder, "a", "s", "b")
    assert_nothing_merges(builder)


def test_groups() -> None:
    builder = Builder((2, 4, 8, 8))
    for name in "ab":
        builder.conv(4, 3, "pad: 1", bottom="data", name=name, group=2)
    joined(builder, "a", "b")
    assert_nothing_merges(builder)


# ------------------------------------------------------------------- must


@pytest.mark.parametrize("field", ["", "axis: 1", "concat_dim: 1"])
def test_one_layer_is_left(field: str) -> None:
    builder = two()
    joined(builder, "a", "b", options=f"concat_param {{ {field} }}")
    builder.relu()
    after, report = merges(builder)
    assert after.types() == ["Convolution", "ReLU"]
    assert merged(report) == {"a": ("b", "cat")}


def test_batch_norms_of_the_branches() -> None:
    builder = two()
    for name in "ab":
        normalised(builder, name)
    joined(builder, "a", "b")
    after, report = merges(builder)
    assert after.types() == ["Convolution"]
    assert not report.kept


def test_a_batch_norm_behind_the_concat() -> None:
    builder = two()
    joined(builder, "a", "b")
    normalised(builder, "cat")
    after, report = merges(builder)
    assert after.types() == ["Convolution"]
    assert not report.kept


def test_the_concat_keeps_others() -> None:
    builder = two()
    builder.layer("Sigmoid", bottom="data", name="s")
    builder.conv(2, 1, bottom="data", name="c")
    builder.conv(1, 1, bottom="data", name="d")
    joined(builder, "s", "b", "a", "c", "d")
    after, report = merges(builder)
    assert after.types() == ["Convolution", "Sigmoid", "Convolution", "Concat"]
    assert merged(report) == {"a": ("b",), "c": ("d",)}


def test_inner_products() -> None:
    builder = Builder((2, 12))
    for name, outs in (("a", 3), ("b", 2)):
        builder.inner_product(outs, 12, bottom="data", name=name, bias=outs == 2)
    joined(builder, "a", "b")
    after, _ = merges(builder)
    assert after.types() == ["InnerProduct"]


def test_deconvolutions() -> None:
    builder = Builder((2, 4, 5, 5))
    for name, outs in (("a", 3), ("b", 2)):
        builder.conv(outs, 2, "stride: 2", bottom="data", name=name, kind="Deconvolution")
    joined(builder, "a", "b")
    after, _ = merges(builder)
    assert after.types() == ["Deconvolution"]


def test_a_concat_in_a_concat_and_a_sum() -> None:
    builder = two()
    joined(builder, "a", "b", name="inner")
    builder.conv(2, 3, "pad: 1", bottom="data", name="c")
    joined(builder, "inner", "c")
    builder.conv(7, 1, bottom="data", name="e")
    added(builder, "cat", "e")
    after, _ = merges(builder)
    assert after.types() == ["Convolution"]


def test_activations_of_the_branches_keep_them_apart() -> None:
    """In place, as Caffe's are: what a convolution makes and what comes out have one name."""
    builder = two()
    for name in "ab":
        builder.relu(bottom=name)
    joined(builder, "a", "b")
    after, report = check(builder)
    assert (report.merged, len(after.types())) == ((), 5)
