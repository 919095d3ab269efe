"""Scale, Bias and Power: which axes the constants cover, and what a layer that stays takes up."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.errors import ModelUnreadableError
from tests.frontends.caffe.support import Builder, check, fold, kept

# ------------------------------------------------------------------- must stay


def test_constants_along_the_image_stay() -> None:
    """Scale with axis 2 covers the 8 rows, which a convolution cannot take up."""
    builder = Builder((2, 8, 8, 8))  # the rows are as many as the channels
    builder.conv(8, 1)
    builder.scale("axis: 2", gamma=builder.rng.normal(size=8))
    builder.layer("Sigmoid")
    after, report = check(builder)
    assert after.types() == ["Convolution", "Scale", "Sigmoid"]
    assert len(kept(report)) == 1


@pytest.mark.parametrize("axis", ["axis: 0", "axis: -4"])
def test_constants_along_the_batch_stay(axis: str) -> None:
    builder = Builder((3, 3, 4, 4))
    builder.conv(3, 1)
    builder.scale(axis, gamma=builder.rng.normal(size=3))
    after, report = check(builder)
    assert after.types() == ["Convolution", "Scale"]
    assert len(kept(report)) == 1


def test_constants_for_each_value_stay() -> None:
    builder = Builder((2, 3, 4, 5))
    builder.conv(3, 1)
    builder.scale("num_axes: -1", gamma=builder.rng.normal(size=(3, 4, 5)))
    after, report = check(builder)
    assert after.types() == ["Convolution", "Scale"]
    assert len(kept(report)) == 1


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ("", [(4,)]),
        ("bias_term: true", [(3,), (4,)]),
        ("bias_term: true", [(3,)]),
        ("", [(3,), (3,)]),
        ("", [(3, 1)]),
        ("num_axes: 2", [(3,)]),
        ("num_axes: 0", [(1,)]),
        ("axis: 2", [(3,)]),
    ],
)
def test_arrays_that_caffe_would_refuse_are_an_error(
    options: str, shapes: list[tuple[int, ...]]
) -> None:
    builder = Builder((2, 3, 8, 8))
    builder.layer(
        "Scale",
        f"scale_param {{ {options} }}",
        name="scale",
        blobs=[np.ones(shape) for shape in shapes],
    )
    with pytest.raises(ModelUnreadableError, match="the layer scale "):
        fold(builder.pair())


def test_a_scale_with_two_bottoms_is_a_gate() -> None:
    """Squeeze and excitation: the factor differs per image, so the BatchNorm's shift stays out."""
    builder = Builder((2, 4, 6, 6))
    builder.conv(4, 3, "pad: 1", name="body")
    builder.layer("Pooling", "pooling_param { pool: AVE global_pooling: true }", name="squeeze")
    builder.conv(4, 1, name="excite")
    builder.layer("Sigmoid", name="sigmoid")
    builder.layer("Flatten", name="flat")
    builder.layer("Scale", "scale_param { axis: 0 }", name="gate", bottom=["body", "flat"])
    builder.batch_norm(name="bn")
    after, report = check(builder)
    assert after.types().count("BatchNorm") == 1
    assert "bn" in kept(report)


def test_power_other_than_1_lets_nothing_pass() -> None:
    builder = Builder()
    builder.conv(4)
    builder.layer("Power", "power_param { power: 2 }")
    builder.batch_norm(name="bn")
    _, report = check(builder)
    assert list(kept(report)) == ["bn"]


# ------------------------------------------------------------------- what folds


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("axis", ["", "axis: 1", "axis: -3", "axis: 1 num_axes: 1"])
def test_constants_per_channel(axis: str, *, bias: bool) -> None:
    builder = Builder()
    builder.conv(5, 3, "pad: 1")
    builder.scale(axis, bias=bias)
    after, _ = check(builder)
    assert after.types() == ["Convolution"]
    assert (b"bias_term: false" in after.text) == (not bias)


def test_one_constant_for_all() -> None:
    builder = Builder()
    builder.conv(5, 3, "pad: 1")
    builder.scale("num_axes: 0", gamma=np.array(-1.5))
    builder.layer("Power", "power_param { scale: -0.5 shift: 3 }")
    assert check(builder)[0].types() == ["Convolution"]


def test_bias_layers() -> None:
    builder = Builder()
    builder.conv(5, 3, "pad: 1")
    builder.layer("Bias", name="b1", blobs=[builder.rng.normal(size=5)])
    builder.layer("Bias", "bias_param { num_axes: 0 }", name="b2", blobs=[np.array(2.5)])
    assert check(builder)[0].types() == ["Convolution"]


def test_a_batch_norm_goes_into_the_scale_that_stays() -> None:
    """BatchNorm cannot take anything, Scale can: one layer less, and a bias is born."""
    builder = Builder()
    builder.layer("Sigmoid", name="in")
    builder.batch_norm()
    builder.scale(bias=False, name="scale")
    builder.layer("Sigmoid", name="out")
    after, report = check(builder)
    assert after.types() == ["Sigmoid", "Scale", "Sigmoid"]
    assert kept(report) == {"scale": "nonlinear"}
    assert [one.shape for one in after.stored()["scale"]] == [(3,), (3,)]
    assert b"scale_param { bias_term: true" in after.text


@pytest.mark.parametrize(
    "options",
    [
        "",
        "scale_param { }",
        "scale_param { axis: 1 }",
        "scale_param { bias_term: false }",
        "scale_param { bias_term: true bias_term: false axis: 1 }",
        "scale_param < num_axes: 1 >",
    ],
)
def test_a_bias_is_switched_on_wherever_that_is_said(options: str) -> None:
    builder = Builder()
    builder.layer("Sigmoid", name="in")
    builder.batch_norm()
    builder.layer("Scale", options, name="scale", blobs=[np.array([2.0, -1.0, 0.5])])
    builder.layer("Sigmoid", name="out")
    after, _ = check(builder)
    assert after.types() == ["Sigmoid", "Scale", "Sigmoid"]
    assert len(after.stored()["scale"]) == 2


def test_a_bias_gets_a_param_where_they_are_listed() -> None:
    builder = Builder()
    builder.conv(4, extra="param { lr_mult: 0.5 decay_mult: 2 }", name="listed")
    builder.batch_norm()
    builder.conv(4, name="not_listed")
    builder.batch_norm()
    after, _ = check(builder)
    assert after.text.count(b"param { lr_mult: 0.5 decay_mult: 0 }") == 1
    assert after.text.count(b" param {") == 2


def test_gammas_of_0_are_constants() -> None:
    builder = Builder()
    builder.conv(4)
    builder.batch_norm()
    builder.scale(gamma=[0.0, 1.0, 0.0, -2.0])
    builder.relu()
    builder.conv(3)
    assert check(builder)[0].types() == ["Convolution", "ReLU", "Convolution"]


def test_a_gate_lets_the_scale_of_the_other_factor_pass() -> None:
    """A factor per channel behind the gate goes into the convolution before it."""
    builder = Builder((2, 4, 6, 6))
    builder.conv(4, 3, "pad: 1", name="body")
    builder.layer("Pooling", "pooling_param { pool: AVE global_pooling: true }", name="squeeze")
    builder.conv(4, 1, name="excite")
    builder.layer("Sigmoid", name="sigmoid")
    builder.layer("Flatten", name="flat")
    builder.layer("Scale", "scale_param { axis: 0 }", name="gate", bottom=["body", "flat"])
    builder.scale(bias=False, name="factor")
    after, _ = check(builder)
    assert "factor" not in after.names
    assert "gate" in after.names


@pytest.mark.parametrize("tiny", [1.4e-39, -1.4e-39, 1e-30])
def test_a_dead_channel_in_front_of_a_prelu_goes(tiny: float) -> None:
    """Nothing is stored between BatchNorm and Scale."""
    builder = Builder((2, 3, 8, 8))
    builder.conv(4)
    builder.batch_norm()
    builder.scale(gamma=[1.5, -0.7, tiny, 0.4])
    builder.layer("PReLU", blobs=[np.full(4, 0.25)])
    builder.conv(2)
    after, _ = check(builder)
    assert after.types() == ["Convolution", "PReLU", "Convolution"]
