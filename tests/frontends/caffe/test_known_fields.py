"""A layer with a field that bnfold does not know may compute anything; DeepLab's hole is known."""

from __future__ import annotations

import pytest

from tests.frontends.caffe.support import Builder, check, fold, kept, run


@pytest.mark.parametrize(
    "field", ["relu: true", "pad_l: 1", "pad_type: 1", "quantize { bits: 8 }", "mask: 3"]
)
def test_nothing_passes_a_convolution_that_says_more(field: str) -> None:
    builder = Builder()
    builder.batch_norm(name="before")
    builder.conv(4, 3, field, name="strange")
    builder.batch_norm(name="behind")
    builder.layer("ReLU")
    before = builder.pair()
    after, report = fold(before)
    assert kept(report).keys() == {"before", "behind"}
    assert after == before
    assert any(
        "strange" in note and field.split(":")[0].split()[0] in note for note in report.notes
    )
    assert "strange" in run(before, builder.inputs()).left_out


@pytest.mark.parametrize("field", ["normalize: true", "relu: true"])
def test_nor_an_inner_product(field: str) -> None:
    builder = Builder()
    builder.batch_norm(name="before")
    builder.inner_product(5, 192, options=field, bias=True)
    _, report = fold(builder.pair())
    assert kept(report) == {"before": "nonlinear"}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Eltwise", "eltwise_param { operation: SUM coeff_blob: true }"),
        ("Concat", "concat_param { axis: 1 concat_input: true }"),
    ],
)
def test_nor_what_puts_several_together(kind: str, options: str) -> None:
    builder = Builder()
    builder.layer("Sigmoid", name="first", bottom="data")
    builder.layer("TanH", name="second", bottom="data")
    builder.layer(kind, options, name="both", bottom=["first", "second"], channels=6)
    builder.channels["both"] = 3 if kind == "Eltwise" else 6
    builder.batch_norm(name="behind")
    builder.layer("Sigmoid")
    _, report = fold(builder.pair())
    assert [*kept(report)] == ["behind"]


@pytest.mark.parametrize(
    "options", ["pool: AVE kernel_size: 2 pad_type: 1", "pool: MAX kernel_size: 2 argmax: true"]
)
def test_nor_a_pooling(options: str) -> None:
    builder = Builder()
    builder.layer("Sigmoid")
    builder.batch_norm(name="before")
    builder.layer("Pooling", f"pooling_param {{ {options} }}")
    builder.conv(3)
    _, report = fold(builder.pair())
    assert kept(report) == {"before": "nonlinear"}


def test_a_batch_norm_that_says_more_is_listed() -> None:
    builder = Builder()
    builder.conv(4)
    builder.batch_norm("relu: true", name="bn")
    _, report = fold(builder.pair())
    (item,) = report.items
    assert str(item.reason) == "module-does-more"
    assert "relu" in item.sentence


def test_the_size_behind_a_field_that_is_not_known_is_not_known() -> None:
    """The weight behind is for another number of elements than the known fields make."""
    builder = Builder()
    builder.conv(4, 3, "pad_l: 1")
    builder.batch_norm(name="bn")
    builder.layer("Sigmoid")
    builder.inner_product(5, 4 * 6 * 7)
    _, report = fold(builder.pair())
    assert [*kept(report)] == ["bn"]


@pytest.mark.parametrize(
    ("hole", "size"),
    [("hole: 2", 4), ("hole: 3", 2), ("hole_h: 2 hole_w: 2", 4), ("hole: 2 pad: 2", 8)],
)
def test_a_hole_is_a_dilation(hole: str, size: int) -> None:
    builder = Builder()
    builder.conv(4, 3, hole)
    builder.batch_norm()
    builder.scale()
    builder.relu()
    builder.inner_product(5, 4 * size**2)
    after, report = check(builder)
    assert after.types() == ["Convolution", "ReLU", "InnerProduct"]
    assert report.kept == 0


def test_holes_do_not_merge() -> None:
    builder = Builder()
    builder.conv(4, 3, "hole: 2 pad: 2", name="a", bottom="data")
    builder.conv(4, 1, name="b", bottom="data")
    builder.layer("Eltwise", bottom=["a", "b"])
    after, report = check(builder)
    assert not report.merged
    assert len(after.names) == 3


@pytest.mark.parametrize(
    "field", ["engine: CUDNN", 'weight_filler { type: "msra" }', "force_nd_im2col: true"]
)
def test_what_is_about_speed_or_training_is_no_matter(field: str) -> None:
    builder = Builder()
    builder.conv(4, 3, field)
    builder.batch_norm("moving_average_fraction: 0.9")
    builder.scale("filler { value: 1 }")
    after, _ = check(builder)
    assert after.types() == ["Convolution"]
