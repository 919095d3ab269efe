"""Small networks with random weights and constants that differ per channel, some negative.

`stays` and `goes` fold one, compare the outputs, and say which steps were removed. There is a class
per law: what must not fold stands first, then what must, then its corners, found by breaking each
line of `laws.py` on purpose (`make mutation`).
"""

from __future__ import annotations

import numpy as np

from bnfold.core import graph as g
from bnfold.core.plan import Plan
from bnfold.core.reasons import Reason
from tests.core.interpreter import Network, assert_fold_is_exact

A = {1: [-0.7], 2: [1.5, -0.6], 3: [1.5, -0.6, 0.25], 4: [1.5, -0.6, 0.25, 2.0]}
B = {1: [0.4], 2: [0.3, -1.1], 3: [0.3, -1.1, 0.8], 4: [0.3, -1.1, 0.8, -0.2]}
POSITIVE = {2: [1.5, 0.6], 3: [1.5, 0.6, 0.25], 4: [1.5, 0.6, 0.25, 2.0]}


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape) + 31 * len(shape)).standard_normal(shape)


def bn(net: Network, x: int, name: str = "bn", *, axis: int = 1, **options) -> int:
    """A BatchNorm with both signs of gamma."""
    count = net.shape(x)[axis]
    return net.affine(x, A[count], B[count], axis=axis, name=name, **options)


def scale_only(net: Network, x: int, name: str = "bn", *, positive: bool = False) -> int:
    """An affine step without a shift."""
    count = net.shape(x)[1]
    return net.affine(x, (POSITIVE if positive else A)[count], np.zeros(count), name=name)


def conv(net: Network, x: int, outs: int = 3, taps: int = 1, name: str = "conv", **options) -> int:
    """A convolution with a bias."""
    ins = net.shape(x)[1] // options.get("groups", 1)
    kernel = random(outs, ins, *(taps,) * (len(net.shape(x)) - 2))
    return net.conv(x, kernel, random(outs), name=name, **options)


def image(net: Network, channels: int = 3) -> int:
    """The output of a convolution: anything may be stored here."""
    return conv(net, net.input(2, 2, 5, 5), channels, name="source")


def stays(net: Network, *outputs: int, reason: Reason, blocker: str | None = None, **how) -> Plan:
    """No step goes; the (only) reason and the op that is named."""
    plan = assert_fold_is_exact(net.output(*outputs), **how)
    assert not plan.removed
    assert {obstacle.reason for obstacle in plan.kept.values()} == {reason}
    if blocker is not None:
        assert {obstacle.blocker for obstacle in plan.kept.values()} == {blocker}
    return plan


def goes(net: Network, *outputs: int, **how) -> Plan:
    """Every step goes."""
    plan = assert_fold_is_exact(net.output(*outputs), **how)
    assert not plan.kept
    assert plan.removed
    return plan


def shift_only(net: Network, x: int, name: str = "bn", *, axis: int = 1) -> int:
    count = net.shape(x)[axis]
    return net.affine(x, np.ones(count), B[count], axis=axis, name=name)


def scaled(net: Network, x: int, scale, name: str = "bn") -> int:
    return net.affine(x, scale, np.zeros(len(scale)), name=name)


def step(net: Network, x: int, scale, shift, *, name: str = "step", **role) -> int:
    """An affine step that must stay."""
    return net.affine(x, scale, shift, name=name, removal=g.Removal.UNASKED, **role)


def numbers(net: Network, x: int, scale: float, shift: float, **role) -> int:
    """One that must stay, with the same two numbers for all channels."""
    four = (1, 1, 1, 1)
    law = g.AffineStep(
        np.full(four, scale), np.full(four, shift), removal=g.Removal.UNASKED, **role
    )
    return net.add(law, [x], [net.shape(x)], name="step")[0]


def image_like(net: Network) -> int:
    return conv(net, net.input(2, 2, 4, 4), 3, name="other")
