"""What a BatchNorm computes is read as Caffe computes it, or it stays."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.errors import ModelUnreadableError
from tests.frontends.caffe.support import Builder, Pair, check, fold, kept, pair

INPUT = 'input: "data" input_shape { dim: 2 dim: 4 dim: 5 dim: 5 }\n'
CONV = (
    'layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"'
    " convolution_param { num_output: 4 kernel_size: 1 } }\n"
)
RNG = np.random.default_rng(3)
WEIGHT = RNG.normal(size=(4, 4, 1, 1))
BIAS = RNG.normal(size=4)
MEAN = np.array([0.5, -1.0, 2.0, 0.1])
VAR = np.array([0.3, 1.0, 2.5, 0.04])
GAMMA = np.array([1.5, -0.7, 0.4, -2.0])
BETA = np.array([0.1, 0.2, -0.3, 1.0])


def network(kind: str, options: str, arrays: list, head: str = "") -> Pair:  # type: ignore[type-arg]
    bn = f'layer {{ name: "bn" type: "{kind}" bottom: "conv" top: "bn" {options} }}\n'
    return pair(head + INPUT + CONV + bn, {"conv": [WEIGHT, BIAS], "bn": arrays})


def folded(model: Pair) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """The (a, b) that the convolution took."""
    after, report = fold(model)
    assert kept(report) == {}
    assert after.names == ["conv"]
    weight, bias = after.stored()["conv"]
    scale = weight[:, :, 0, 0][np.arange(4), 0] / WEIGHT[:, 0, 0, 0]
    assert np.allclose(weight, WEIGHT * scale[:, None, None, None], rtol=1e-12)
    return scale, bias - scale * BIAS


def refused(model: Pair, head: str = "") -> str:
    after, report = fold(model)
    assert after.text == model.text
    assert after.weights == model.weights
    (item,) = report.items
    return f"{item.reason}: {item.sentence}"


# ------------------------------------------------------------------- must stay


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("batch_norm_param { use_global_stats: false }", "batch-statistics"),
        ("batch_norm_param { use_global_stats: true use_global_stats: 0 }", "batch-statistics"),
        ("phase: TRAIN", "batch-statistics"),
        ("phase: 0", "batch-statistics"),
        ("loss_weight: 1", "module-does-more"),
    ],
)
def test_what_is_not_constant_stays(options: str, reason: str) -> None:
    model = network("BatchNorm", options, [MEAN, VAR, np.ones(1)])
    assert refused(model).startswith(reason)


@pytest.mark.parametrize(
    ("mean", "var"),
    [
        (MEAN, [0.3, -1.0, 2.5, 0.04]),
        (MEAN, [0.3, np.nan, 2.5, 0.04]),
        ([0.5, np.inf, 2.0, 0.1], VAR),
        (MEAN, [0.3, -1e-5, 2.5, 0.04]),
    ],
)
def test_unusable_statistics_stay(mean: object, var: object) -> None:
    arrays = [np.asarray(mean), np.asarray(var), np.ones(1)]
    eps = "batch_norm_param { eps: 0.00001 }"
    assert refused(network("BatchNorm", eps, arrays)).startswith("bad-statistics")


@pytest.mark.parametrize(
    ("factor", "size"),
    [(1e-45, 1e-45), (1e-45, 1.0), (2e-39, 1.0), (1e-38, 10.0), (np.nan, 1.0)],
)
def test_sums_that_caffe_cannot_divide_in_float32_stay(factor: float, size: float) -> None:
    """1 / 1e-45 is infinite there, and so is what it makes of any sum."""
    arrays = [
        np.asarray(part * size, np.float32) for part in (MEAN, VAR, np.array([factor / size]))
    ]
    assert refused(network("BatchNorm", "", arrays)).startswith("bad-statistics")


@pytest.mark.parametrize("factor", [7e19, 1e-30, 1e30, -2.0, 1e-37])
def test_a_factor_of_any_size_is_divided_by(factor: float) -> None:
    arrays = [np.asarray(part, np.float32) for part in (MEAN * factor, VAR * factor, [factor])]
    scale, shift = folded(network("BatchNorm", "batch_norm_param { eps: 0.001 }", arrays))
    expected = 1 / np.sqrt(VAR + 0.001)
    assert np.allclose(scale, expected, rtol=1e-6)
    assert np.allclose(shift, -MEAN * expected, rtol=1e-6)


def test_a_factor_of_zero_makes_zeros_of_any_sums() -> None:
    arrays = [MEAN * 1e30, VAR * 1e30, np.zeros(1)]
    scale, shift = folded(network("BatchNorm", "batch_norm_param { eps: 0.25 }", arrays))
    assert np.allclose(scale, 2.0) and np.allclose(shift, 0.0)


@pytest.mark.parametrize(
    ("kind", "options", "arrays", "head"),
    [
        # Five arrays without a field that says whose they are: Intel's, or another order.
        ("BatchNorm", "", [MEAN, VAR, np.ones(1), GAMMA, BETA], ""),
        (
            "BatchNorm",
            "batch_norm_param { use_weight_bias: true }",
            [MEAN, VAR, np.ones(1), GAMMA, BETA],
            "",
        ),
        ("BatchNorm", "", [MEAN, VAR], ""),
        ("BatchNorm", "", [GAMMA, BETA, MEAN, VAR], ""),
        # Gamma and beta would be what the fillers say, or are there and not wanted.
        ("BatchNorm", "batch_norm_param { scale_bias: true }", [MEAN, VAR, np.ones(1)], ""),
        (
            "BatchNorm",
            "batch_norm_param { scale_filler { value: 2 } }",
            [MEAN, VAR, np.ones(1)],
            "",
        ),
        (
            "BatchNorm",
            "batch_norm_param { scale_bias: false }",
            [MEAN, VAR, np.ones(1), GAMMA, BETA],
            "",
        ),
        ("BN", "", [GAMMA, BETA], ""),
        ("BN", "bn_param { scale_filler { value: 1 } }", [GAMMA, BETA], ""),
        ("BN", "bn_param { bn_mode: LEARN }", [GAMMA, BETA], ""),
        ("BN", "bn_param { bn_mode: INFERENCE axis: 2 }", [GAMMA, BETA], ""),
        ("BN", "bn_param { bn_mode: INFERENCE }", [GAMMA, BETA, MEAN, VAR], ""),
        ("BN", "", [GAMMA, BETA, MEAN, VAR], ""),
        ("BN", "bn_param { var_eps: 1e-4 slope_filler { } }", [GAMMA, BETA, MEAN, VAR], ""),
        ("BN", "bn_param { moving_average: true frozen: true }", [GAMMA, BETA, MEAN, VAR], ""),
        ("BN", "bn_param { frozen: true eps: 1e-9 }", [GAMMA, BETA, MEAN, VAR], ""),
        ("BN", "bn_param { frozen: true }", [GAMMA, BETA, MEAN, VAR[:2]], ""),
    ],
)
def test_a_layer_of_no_known_kind_stays(
    kind: str,
    options: str,
    arrays: list[np.ndarray],
    head: str,  # type: ignore[type-arg]
) -> None:
    assert refused(network(kind, options, arrays, head)).startswith("module-does-more")


def test_a_slope_bn_in_the_train_phase_stays() -> None:
    arrays = [GAMMA, BETA, MEAN, VAR]
    model = network("BN", "phase: TRAIN bn_param { momentum: 0.9 }", arrays)
    assert refused(model).startswith("batch-statistics")


@pytest.mark.parametrize(
    "arrays",
    [
        [MEAN[:3], VAR, np.ones(1)],
        [MEAN, VAR[:3], np.ones(1)],
        [MEAN, VAR, np.ones(2)],
        [MEAN.reshape(2, 2), VAR, np.ones(1)],
        [MEAN.reshape(4, 1), VAR, np.ones(1)],
    ],
)
def test_statistics_of_another_shape_are_an_error(arrays: list[np.ndarray]) -> None:  # type: ignore[type-arg]
    with pytest.raises(ModelUnreadableError, match="the layer bn is"):
        fold(network("BatchNorm", "", arrays))


# ------------------------------------------------------------------- as in Caffe's source


@pytest.mark.parametrize("factor", [1.0, 999.98236, 0.25, -2.0])
def test_statistics_are_divided_by_the_factor(factor: float) -> None:
    scale, shift = folded(
        network("BatchNorm", "", [MEAN * factor, VAR * factor, np.full(1, factor)])
    )
    eps = float(np.float32(1e-5))
    assert np.allclose(scale, (VAR + eps) ** -0.5, rtol=1e-12)
    assert np.allclose(shift, -MEAN * (VAR + eps) ** -0.5, rtol=1e-12)


def test_factor_0_means_no_statistics_at_all() -> None:
    scale, shift = folded(network("BatchNorm", "", [MEAN, VAR, np.zeros(1)]))
    assert np.allclose(scale, float(np.float32(1e-5)) ** -0.5, rtol=1e-12)
    assert np.allclose(shift, 0.0)


def test_a_layer_that_the_weights_lack_has_zeros() -> None:
    model = network("BatchNorm", "", [])
    after, report = fold(pair(model.text.decode(), {"conv": [WEIGHT, BIAS]}))
    assert after.names == ["conv"]
    assert np.allclose(after.stored()["conv"][0], WEIGHT * float(np.float32(1e-5)) ** -0.5)
    assert any("bn has no weights" in note for note in report.notes)


@pytest.mark.parametrize(
    "text", ["1e-9", "1e-8", "9.99999974738e-06", "2e-5", "1e-4", "0.001", "1E-3f", "1.0", ".5"]
)
def test_eps_is_read_as_a_float32(text: str) -> None:
    options = f"batch_norm_param {{ eps: {text} }}"
    scale, _ = folded(network("BatchNorm", options, [MEAN, VAR, np.ones(1)]))
    assert np.allclose(scale, (VAR + float(np.float32(text.rstrip("f")))) ** -0.5, rtol=1e-13)


def test_options_that_are_given_twice_are_merged() -> None:
    options = "batch_norm_param { eps: 1 } batch_norm_param { eps: 0.5 } batch_norm_param { }"
    scale, _ = folded(network("BatchNorm", options, [MEAN, VAR, np.ones(1)]))
    assert np.allclose(scale, (VAR + 0.5) ** -0.5, rtol=1e-13)


@pytest.mark.parametrize("options", ["phase: TEST", "batch_norm_param { use_global_stats: true }"])
def test_global_statistics_are_constant(options: str) -> None:
    folded(network("BatchNorm", options, [MEAN, VAR, np.ones(1)]))


def test_global_statistics_in_the_train_phase_are_constant() -> None:
    options = "phase: TRAIN batch_norm_param { use_global_stats: true }"
    folded(network("BatchNorm", options, [MEAN, VAR, np.ones(1)]))


@pytest.mark.parametrize(
    "options",
    [
        "batch_norm_param { scale_bias: true eps: 1e-9 }",
        "batch_norm_param { eps: 1e-9 scale_filler { value: 1 } }",
        "batch_norm_param { bias_filler { value: 0 } }",
    ],
)
def test_nvidias_five_arrays(options: str) -> None:
    """No division by the factor, and eps is at least 1e-5."""
    arrays = [MEAN, VAR, np.full(1, 2.0), GAMMA, BETA]
    scale, shift = folded(network("BatchNorm", options, arrays))
    a = GAMMA * (VAR + float(np.float32(1e-5))) ** -0.5
    assert np.allclose(scale, a, rtol=1e-12)
    assert np.allclose(shift, BETA - a * MEAN, rtol=1e-12)


@pytest.mark.parametrize("laid", [(4,), (1, 4, 1, 1), (1, 1, 1, 4)])
@pytest.mark.parametrize("factor", [1.0, 2.0])
@pytest.mark.parametrize(
    "options", ["batch_norm_param { scale_bias: true }", "batch_norm_param { bias_filler { } }"]
)
def test_nvidias_five_arrays_in_the_older_order(
    options: str, factor: float, laid: tuple[int, ...]
) -> None:
    arrays = [one.reshape(laid) for one in (GAMMA, BETA, MEAN, VAR)]
    factors = np.full((1,) * len(laid), factor)
    scale, shift = folded(network("BatchNorm", options, [*arrays, factors]))
    a = GAMMA * (VAR + float(np.float32(1e-5))) ** -0.5
    assert np.allclose(scale, a, rtol=1e-12)
    assert np.allclose(shift, BETA - a * MEAN, rtol=1e-12)
    arrays = [arrays[2], arrays[3], factors, arrays[0], arrays[1]]
    again = folded(network("BatchNorm", options, arrays))
    assert np.array_equal(again, (scale, shift))


@pytest.mark.parametrize(
    ("options", "head"),
    [
        ("", "default_forward_math: FLOAT "),
        ("", "default_forward_type: FLOAT "),
        ("batch_norm_param { scale_bias: false }", ""),
        ("batch_norm_param { scale_bias: false eps: 1e-9 }", ""),
    ],
)
@pytest.mark.parametrize("factor", [1.0, 2.0, 0.0, 999.98])
@pytest.mark.parametrize("laid", [(4,), (1, 4, 1, 1)])
def test_nvidias_three_arrays_are_divided_by_their_factor(
    options: str, head: str, factor: float, laid: tuple[int, ...]
) -> None:
    arrays = [MEAN.reshape(laid), VAR.reshape(laid), np.full((1,) * len(laid), factor)]
    scale, shift = folded(network("BatchNorm", options, arrays, head))
    s = 1 / factor if factor else 0.0
    a = (s * VAR + float(np.float32(1e-5))) ** -0.5
    assert np.allclose(scale, a, rtol=1e-12)
    assert np.allclose(shift, -a * s * MEAN, rtol=1e-12)


def test_axes_of_one_are_nvidias_where_nothing_else_says_so() -> None:
    arrays = [MEAN.reshape(1, 4, 1, 1), VAR.reshape(1, 4, 1, 1), np.full((1, 1, 1, 1), 2.0)]
    scale, _ = folded(network("BatchNorm", "batch_norm_param { eps: 0.1 }", arrays))
    assert np.allclose(scale, (VAR / 2 + float(np.float32(0.1))) ** -0.5, rtol=1e-12)
    with pytest.raises(ModelUnreadableError, match="the layer bn is 1 x 4 x 1 x 1"):
        fold(network("BatchNorm", "batch_norm_param { eps: 1e-9 }", arrays))


def test_one_channel_does_not_tell_the_order_of_five_arrays() -> None:
    builder = Builder()
    builder.conv(1, name="conv")
    blobs = [np.array([v]) for v in (0.5, 2.0, 1.0, 1.5, -0.3)]
    options = "batch_norm_param { scale_bias: true }"
    builder.layer("BatchNorm", options, name="bn", blobs=blobs)
    before = builder.pair()
    after, report = fold(before)
    assert after == before
    assert "two orders" in report.items[0].sentence


def test_segnets_bn_in_inference_mode() -> None:
    options = "bn_param { scale_filler { value: 1 } shift_filler { value: 0 } bn_mode: INFERENCE }"
    arrays = [GAMMA.reshape(1, 4, 1, 1), BETA.reshape(1, 4, 1, 1)]
    scale, shift = folded(network("BN", options, arrays))
    assert np.allclose(scale, GAMMA)
    assert np.allclose(shift, BETA)


def test_bn_with_a_slope() -> None:
    options = "bn_param { frozen: true slope_filler { value: 1 } bias_filler { value: 0 } }"
    arrays = [one.reshape(1, 4, 1, 1) for one in (GAMMA, BETA, MEAN, VAR)]
    scale, shift = folded(network("BN", options, arrays))
    a = GAMMA * (VAR + float(np.float32(1e-5))) ** -0.5
    assert np.allclose(scale, a, rtol=1e-12)
    assert np.allclose(shift, BETA - a * MEAN, rtol=1e-12)


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 5), (2, 4, 3, 5), (2, 4, 2, 3, 2)])
def test_the_channels_are_axis_1_whatever_the_rank(shape: tuple[int, ...]) -> None:
    """Lengths of other axes may equal the number of channels."""
    builder = Builder(shape)
    builder.layer("ReLU", top="relu")
    builder.batch_norm()
    builder.scale()
    builder.layer("Sigmoid")
    after, report = check(builder)
    assert after.types() == ["ReLU", "Scale", "Sigmoid"]
    assert list(kept(report).values()) == ["nonlinear"]


def test_dead_channels_with_no_variance_fold() -> None:
    builder = Builder()
    builder.conv(4)
    builder.batch_norm(var=[0.0, 1e-40, 1.0, 5e-324], top="same")
    builder.scale(top="same")
    after, report = check(builder)
    assert after.types() == ["Convolution"]
    assert report.removed == 2
