"""The runner against numbers that a real Caffe computed, and what it must leave out.

tests/golden/caffe_layers.npz was written by `python -m benchmarks.caffe_layers --record`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.caffe_layers import SmallNet, small_nets
from bnfold.frontends.caffe.run_layers import Execution, execute
from tests.frontends.caffe.made_up import run_layers
from tests.frontends.caffe.plain_text import parse

NETS = {net.name: net for net in small_nets()}
GOLDEN = Path(__file__).parents[2] / "golden" / "caffe_layers.npz"
FLOAT32 = 1e-6
"""Caffe computes in float32, over sums of at most some hundred terms."""


def run(
    text: str,
    inputs: Mapping[str, np.ndarray],
    blobs: Mapping[str, list[np.ndarray]] | None = None,
) -> Execution:
    weights = {name: ("", arrays) for name, arrays in (blobs or {}).items()}
    given = {name: torch.tensor(x).double() for name, x in inputs.items()}
    return execute(run_layers(parse(text), weights, torch.float64), given)


def numbers(*shape: int) -> np.ndarray:
    """Different in every place."""
    return (np.arange(np.prod(shape)).reshape(shape) * 7 % 11 - 4.0).astype(np.float32)


class TestLeftOut:
    def test_an_unknown_type_is_left_out_and_what_it_reads_is_shown(self) -> None:
        done = run(
            """layer { name: "a" type: "Power" bottom: "x" top: "a" power_param { scale: 2 } }
            layer { name: "b" type: "Yolov3" bottom: "a" bottom: "x" top: "b" }
            layer { name: "c" type: "ReLU" bottom: "b" top: "c" }""",
            {"x": numbers(1, 2, 2, 2)},
        )
        assert not done.outputs
        assert list(done.read) == ["b.bottom[0]", "b.bottom[1]"]
        assert done.read["b.bottom[0]"].numpy() == pytest.approx(2 * numbers(1, 2, 2, 2))
        assert done.left_out == {"b": "no layer type Yolov3 is known"}

    def test_what_does_not_depend_on_it_still_runs(self) -> None:
        done = run(
            """layer { name: "b" type: "Yolov3" bottom: "x" top: "b" }
            layer { name: "c" type: "ReLU" bottom: "x" top: "c" }""",
            {"x": numbers(1, 2, 2, 2)},
        )
        assert list(done.outputs) == ["c"]

    def test_in_place_it_takes_the_name_along(self) -> None:
        done = run(
            """layer { name: "a" type: "ReLU" bottom: "x" top: "a" }
            layer { name: "b" type: "Strange" bottom: "a" top: "a" }
            layer { name: "c" type: "ReLU" bottom: "a" top: "c" }""",
            {"x": numbers(1, 2, 2, 2)},
        )
        assert not done.outputs
        assert done.read["b.bottom[0]"].min() == 0

    def test_two_of_one_name_are_told_apart(self) -> None:
        done = run(
            """layer { name: "b" type: "Strange" bottom: "x" top: "y" }
            layer { name: "b" type: "Strange" bottom: "x" top: "z" }""",
            {"x": numbers(1, 2)},
        )
        assert list(done.left_out) == ["b", "b (2)"]

    @pytest.mark.parametrize(
        "layer",
        [
            'type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 2 }',
            'type: "Eltwise" eltwise_param { coeff: 2 coeff: 3 }',
            'type: "Convolution" convolution_param { num_output: 2 kernel_size: 1 }',
            'type: "BN"',
            'type: "Dropout" dropout_param { scale_train: false }',
            'type: "Reshape" reshape_param { shape { dim: 0 dim: 0 dim: 0 dim: 0 dim: 0 } }',
            'type: "Slice" slice_param { slice_point: 1 }',
            'type: "Concat" concat_param { axis: 9 }',
            'type: "Interp" interp_param { height: 3 width: 3 pad_beg: 1 }',
        ],
    )
    def test_options_that_are_not_known_are_left_out(self, layer: str) -> None:
        done = run(
            f'layer {{ name: "y" bottom: "x" top: "y" {layer} }}', {"x": numbers(1, 2, 2, 2)}
        )
        assert list(done.left_out) == ["y"]

    def test_a_batch_norm_with_five_arrays_of_nobody_known_is_left_out(self) -> None:
        five = [np.ones(2), np.ones(2), np.ones(1), np.ones(2), np.ones(2)]
        done = run(
            'layer { name: "y" type: "BatchNorm" bottom: "x" top: "y" }',
            {"x": numbers(1, 2, 2, 2)},
            {"y": five},
        )
        assert list(done.left_out) == ["y"]

    def test_an_input_that_does_not_fit_is_an_error_with_the_layer(self) -> None:
        with pytest.raises(ValueError, match=r"layer y \(Concat\) on \(1, 2\), \(3, 2\)"):
            run(
                'layer { name: "y" type: "Concat" bottom: "a" bottom: "b" top: "y" }',
                {"a": numbers(1, 2), "b": numbers(3, 2)},
            )


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return {name: file[name] for name in file.files}


class TestAgainstCaffe:
    @pytest.mark.parametrize("net", NETS.values(), ids=list(NETS))
    def test_the_numbers_are_those_of_caffe(
        self, net: SmallNet, golden: dict[str, np.ndarray]
    ) -> None:
        def part(kind: str) -> dict[str, np.ndarray]:
            prefix = f"{net.name}/{kind}/"
            return {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}

        inputs = {key: x.astype(np.float32) for key, x in part("in").items()}
        weights = [blob.astype(np.float32) for blob in part("weight").values()]
        done = run(net.text, inputs, {"layer": weights})
        expected = part("out")
        assert done.left_out == {}
        assert set(done.outputs) == set(expected) != set()
        for name, wanted in expected.items():
            found = done.outputs[name].numpy()
            scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=0) or 1.0
            assert found.shape == wanted.shape
            assert np.allclose(found, wanted, rtol=0, atol=FLOAT32 * scale, equal_nan=True)


class TestForks:
    """Layers that the recorded Caffe does not have: by their formulas."""

    def test_shuffle_channel(self) -> None:
        done = run(
            """layer { name: "y" type: "ShuffleChannel" bottom: "x" top: "y"
            shuffle_channel_param { group: 2 } }""",
            {"x": numbers(1, 6, 1, 2)},
        )
        order = [0, 3, 1, 4, 2, 5]
        assert np.array_equal(done.outputs["y"].numpy(), numbers(1, 6, 1, 2)[:, order])

    def test_axpy(self) -> None:
        a, x, y = numbers(2, 3, 1, 1), numbers(2, 3, 2, 2), 2 * numbers(2, 3, 2, 2)
        done = run(
            'layer { name: "z" type: "Axpy" bottom: "a" bottom: "x" bottom: "y" top: "z" }',
            {"a": a, "x": x, "y": y},
        )
        assert done.outputs["z"].numpy() == pytest.approx(a * x + y)

    def test_interp_aligns_the_corners(self) -> None:
        done = run(
            """layer { name: "y" type: "Interp" bottom: "x" top: "y"
            interp_param { height: 1 width: 5 } }""",
            {"x": np.array([[[[0.0, 1.0, 4.0]]]])},
        )
        assert done.outputs["y"].numpy().reshape(-1) == pytest.approx([0, 0.5, 1, 2.5, 4])

    def test_interp_zooms_after_a_crop(self) -> None:
        done = run(
            """layer { name: "y" type: "Interp" bottom: "x" top: "y"
            interp_param { zoom_factor: 3 pad_beg: 0 pad_end: -1 } }""",
            {"x": numbers(1, 1, 3, 3)},
        )
        corner = numbers(1, 1, 3, 3)[0, 0, :2, :2]
        assert done.outputs["y"].shape == (1, 1, 4, 4)
        assert done.outputs["y"].numpy()[0, 0, ::3, ::3] == pytest.approx(corner)

    def test_segnet_bn_scales_and_shifts(self) -> None:
        done = run(
            'layer { name: "y" type: "BN" bottom: "x" top: "y" bn_param { bn_mode: INFERENCE } }',
            {"x": numbers(1, 2, 2, 2)},
            {"y": [np.array([2.0, -3.0]), np.array([1.0, 5.0])]},
        )
        by_hand = numbers(1, 2, 2, 2) * [[[[2.0]], [[-3.0]]]] + [[[[1.0]], [[5.0]]]]
        assert done.outputs["y"].numpy() == pytest.approx(by_hand)

    def test_pspnet_bn_normalises_first(self) -> None:
        done = run(
            """layer { name: "y" type: "BN" bottom: "x" top: "y"
            bn_param { eps: 0.5 frozen: true } }""",
            {"x": np.full((1, 1, 1, 1), 7.0)},
            {"y": [np.array([3.0]), np.array([0.25]), np.array([5.0]), np.array([3.5])]},
        )
        assert done.outputs["y"].item() == pytest.approx(3 * (7 - 5) / 2 + 0.25)

    def test_nvidias_batch_norm_does_not_divide_by_the_factor(self) -> None:
        done = run(
            """layer { name: "y" type: "BatchNorm" bottom: "x" top: "y"
            batch_norm_param { eps: 1e-7 scale_bias: true } }""",
            {"x": np.full((1, 1, 1, 1), 7.0)},
            {"y": [np.array([v]) for v in (5.0, 0.0, 10.0, 0.5, 3.0)]},
        )
        least = float(np.float32(1e-5)) ** 0.5
        assert done.outputs["y"].item() == pytest.approx(0.5 * 2 / least + 3, rel=1e-6)

    def test_intels_batch_norm_divides_by_it(self) -> None:
        done = run(
            """layer { name: "y" type: "BatchNorm" bottom: "x" top: "y"
            batch_norm_param { eps: 0.5 use_weight_bias: true } }""",
            {"x": np.full((1, 1, 1, 1), 7.0)},
            {"y": [np.array([v]) for v in (10.0, 7.0, 2.0, 3.0, 0.25)]},
        )
        assert done.outputs["y"].item() == pytest.approx(3 * (7 - 5) / 2 + 0.25)

    def test_segnet_upsample_puts_maxima_back(self) -> None:
        x = numbers(1, 2, 4, 4)
        done = run(
            """layer { name: "p" type: "Pooling" bottom: "x" top: "p" top: "mask"
            pooling_param { kernel_size: 2 stride: 2 } }
            layer { name: "u" type: "Upsample" bottom: "p" bottom: "mask" top: "u"
            upsample_param { scale: 2 } }""",
            {"x": x},
        )
        found = done.outputs["u"].numpy()
        assert np.count_nonzero(found) <= 8
        assert np.array_equal(found[found != 0], x[found != 0])

    def test_depthwise_without_group_takes_the_channels(self) -> None:
        done = run(
            """layer { name: "y" type: "ConvolutionDepthwise" bottom: "x" top: "y"
            convolution_param { num_output: 2 kernel_size: 1 bias_term: false } }""",
            {"x": numbers(1, 2, 2, 2)},
            {"y": [np.array([2.0, -3.0]).reshape(2, 1, 1, 1)]},
        )
        assert done.outputs["y"].numpy() == pytest.approx(
            numbers(1, 2, 2, 2) * [[[[2.0]], [[-3.0]]]]
        )


class TestFactor:
    """BatchNorm's third array."""

    @pytest.mark.parametrize(("factor", "inverse"), [(0.0, 0.0), (4.0, 0.25), (-2.0, -0.5)])
    def test_it_divides_the_statistics_and_0_takes_them_away(
        self, factor: float, inverse: float
    ) -> None:
        done = run(
            """layer { name: "y" type: "BatchNorm" bottom: "x" top: "y"
            batch_norm_param { eps: 8 } }""",
            {"x": np.full((1, 1, 1, 1), 7.0)},
            {"y": [np.array([12.0]), np.array([4.0]), np.array([factor])]},
        )
        by_hand = (7 - inverse * 12) / (inverse * 4 + 8) ** 0.5
        assert done.outputs["y"].item() == pytest.approx(by_hand, rel=1e-12)
