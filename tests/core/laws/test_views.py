"""What moves elements: views, borders."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core.reasons import Reason
from tests.core.interpreter import Network
from tests.core.laws.networks import (
    POSITIVE,
    A,
    B,
    bn,
    conv,
    goes,
    image,
    random,
    scale_only,
    shift_only,
    stays,
)


class TestView:
    def test_a_concat_does_not_mix_its_parts(self):
        """One part goes into its convolution, the other has none."""
        net = Network()
        x = bn(net, net.concat(image(net, 2), net.input(2, 2, 5, 5), axis=1))
        stays(net, net.sigmoid(x), reason=Reason.NONLINEAR)

    def test_a_flattened_image_has_one_rescaling_per_pixel(self):
        net = Network()
        x = net.flatten(image(net, 1))
        x = net.affine(x, np.arange(1.0, 26), np.arange(25.0))
        stays(net, net.sigmoid(x), reason=Reason.NONLINEAR)

    def test_a_shuffle_before_groups_moves_the_channels(self):
        net = Network()
        x = net.shuffle(bn(net, net.input(2, 4, 3, 3)), 2)
        goes(net, conv(net, x, 4, groups=2))

    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_a_norm_after_concat_split_and_shuffle(self, groups):
        net = Network()
        left, right = image(net, 3), image(net, 1)
        parts = net.split(net.concat(left, right), 1)
        x = net.shuffle(net.concat(parts[1], parts[0]), 2)
        goes(net, conv(net, bn(net, x), 4, groups=groups))

    def test_norms_before_a_concat(self):
        net = Network()
        x = net.concat(bn(net, net.input(2, 1, 4, 4), "one"), bn(net, net.input(2, 3, 4, 4), "two"))
        goes(net, conv(net, x))

    def test_a_norm_before_a_flatten(self):
        net = Network()
        x = net.flatten(bn(net, net.input(2, 3, 2, 2)))
        goes(net, net.matrix(x, random(2, 12)))

    def test_a_norm_after_a_flatten(self):
        net = Network()
        x = net.affine(net.flatten(net.input(2, 3, 2, 2)), np.arange(1.0, 13), np.arange(12.0))
        goes(net, net.matrix(x, random(2, 12)))

    def test_a_slice_of_a_norm(self):
        net = Network()
        (x,) = net.view(lambda values: [values[0][:, 1::2]], bn(net, net.input(2, 4, 3, 3)))
        goes(net, conv(net, x))

    def test_tokens(self):
        """(N, C, H, W) to (N, H*W, C)."""
        net = Network()
        x = bn(net, net.input(2, 3, 2, 3))
        (x,) = net.view(lambda v: [np.swapaxes(v[0].reshape(*v[0].shape[:2], -1), 1, 2)], x)
        goes(net, net.matrix(x, random(2, 3)))


class TestPad:
    @pytest.mark.parametrize("value", [0.0, 1.5])
    def test_a_shift_does_not_pass_a_border(self, value):
        net = Network()
        x = bn(net, net.input(2, 3, 3, 3))
        x = net.pad(x, (0, 0, 1, 0), (0, 0, 0, 2), value, name="pad")
        stays(net, conv(net, x), reason=Reason.PADDING, blocker="pad")

    def test_a_scale_does_not_pass_a_border_of_another_value(self):
        net = Network()
        x = net.pad(scale_only(net, net.input(2, 3, 3, 3)), (0, 0, 1, 1), (0,) * 4, 1.5, name="pad")
        stays(net, conv(net, x), reason=Reason.PADDING, blocker="pad")

    def test_a_negative_scale_does_not_pass_a_border_of_minus_infinity(self):
        net = Network()
        x = net.pad(scale_only(net, net.input(2, 3, 3, 3)), (0, 0, 1, 1), (0,) * 4, -np.inf)
        x = net.max_pool(x)
        stays(net, conv(net, x), reason=Reason.PADDING)

    def test_a_norm_does_not_come_out_of_added_channels(self):
        net = Network()
        x = net.pad(image(net, 2), (0, 1, 0, 0), (0, 0, 0, 0), 0.0, name="pad")
        stays(net, net.sigmoid(bn(net, x)), reason=Reason.PADDING, blocker="pad")

    def test_a_scale_passes_a_border_of_zeros(self):
        net = Network()
        x = net.pad(scale_only(net, net.input(2, 3, 3, 3)), (0, 0, 1, 0), (0, 0, 0, 2))
        goes(net, conv(net, x))

    def test_a_shift_passes_a_border_of_minus_infinity(self):
        net = Network()
        x = net.affine(net.input(2, 3, 3, 3), POSITIVE[3], B[3])
        x = net.max_pool(net.pad(x, (0, 0, 1, 1), (0, 0, 1, 1), -np.inf))
        goes(net, conv(net, x))

    @pytest.mark.parametrize("value", [0.0, 1.5])
    def test_a_norm_passes_beside_added_channels(self, value):
        net = Network()
        x = bn(net, net.input(2, 2, 3, 3))
        x = net.pad(x, (0, 1, 0, 0), (0, 2, 0, 0), value)
        goes(net, conv(net, x))

    def test_a_scale_comes_out_of_added_zeros(self):
        """The shortcut of a narrow ResNet: zeros have any scale."""
        net = Network()
        x = net.pad(image(net, 2), (0, 0, 0, 0), (0, 1, 0, 0))
        goes(net, net.sigmoid(net.affine(x, A[3], [0.3, -1.1, 0.0])))

    def test_cropping_lets_all_pass(self):
        net = Network()
        x = net.pad(bn(net, net.input(2, 4, 4, 4)), (0, -1, -1, 0), (0, 0, 0, -2))
        goes(net, conv(net, x))

    @pytest.mark.parametrize(
        "sides",
        [((0, 0, 0, 0), (0, 0, 0, 2)), ((0, 0, 1, 0), (0, 0, 0, 0)), ((0,) * 4, (0, 0, 0, 1))],
    )
    def test_one_side_is_enough(self, sides):
        net = Network()
        x = net.pad(shift_only(net, net.input(2, 3, 3, 3)), *sides, name="pad")
        stays(net, conv(net, x), reason=Reason.PADDING, blocker="pad")

    def test_a_positive_norm_does_not_pass_a_border_of_another_value(self):
        net = Network()
        x = net.affine(net.input(2, 3, 3, 3), POSITIVE[3], B[3])
        x = net.pad(x, (0, 0, 1, 0), (0, 0, 0, 0), 1.5, name="pad")
        stays(net, conv(net, x), reason=Reason.PADDING, blocker="pad")

    def test_added_channels_of_another_value_are_not_rescaled(self):
        net = Network()
        x = net.pad(image(net, 2), (0, 0, 0, 0), (0, 1, 0, 0), 1.5)
        stays(net, net.sigmoid(scale_only(net, x)), reason=Reason.NONLINEAR)

    @pytest.mark.parametrize("value", [0.0, 1.5])
    def test_added_channels_between_cropped_ones(self, value):
        net = Network()
        x = net.pad(bn(net, net.input(2, 4, 3, 3)), (0, -1, 0, 0), (0, -1, 0, 0))
        goes(net, conv(net, net.pad(x, (0, 2, 0, 0), (0, 3, 0, 0), value)))

    def test_a_border_in_front_of_added_channels(self):
        """(N, H, W, C)"""
        net = Network()
        x = net.affine(net.input(2, 3, 3, 3), A[3], [0] * 3, axis=3)
        x = net.pad(x, (0, 1, 0, 0), (0, 0, 0, 2))
        goes(net, net.matrix(x, random(2, 5)))

    def test_channels_added_to_values_that_are_all_their_own(self):
        net = Network()
        x = net.affine(net.input(2, 12), np.arange(1.0, 13), np.arange(12.0))
        (x,) = net.view(lambda values: [values[0].reshape(2, 3, 4)], x)
        x = net.pad(x, (0, 0, 0), (0, 2, 0))
        (x,) = net.view(lambda values: [values[0].reshape(2, 20)], x)
        goes(net, net.matrix(x, random(2, 20)))
