"""What a plan says about how tensors are stored is what the folded network holds."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bnfold.core.plan import make_plan
from bnfold.core.rescaling import PlanRescalings
from tests.core.interpreter import Network, apply_plan, run_all
from tests.property.strategies import networks

RNG = np.random.default_rng(5)


def check(network: Network, clip: str = "auto") -> tuple[int, int]:
    """Every tensor of the folded network; how many elements are known, and how many are not."""
    plan = make_plan(network.graph, clip=clip)
    rescalings = PlanRescalings(plan)
    shapes = [network.shape(tensor) for tensor, _ in network.graph.inputs]
    inputs = [RNG.standard_normal(shape) for shape in shapes]
    before, after = run_all(network, inputs), run_all(apply_plan(network, plan), inputs)
    known = hidden = 0
    for tensor, value in before.items():
        stored = rescalings.of(tensor)
        size = np.abs(value).max(initial=0.0) + np.abs(stored.shift).max(initial=1e-9)
        off = np.abs(after[tensor] / stored.scale - stored.shift - value)
        is_known = np.broadcast_to(stored.known, value.shape)
        assert (off[is_known] <= 1e-9 * size).all(), f"tensor {tensor}"
        known += int(is_known.sum())
        hidden += int((~is_known).sum())
    return known, hidden


def conv_and_norm(gammas: list[float], *, clip: bool) -> Network:
    net = Network()
    x = net.conv(net.input(2, 3, 4, 4), RNG.standard_normal((3, 3, 1, 1)))
    y = net.affine(x, gammas, [0.3, -1.0, 2.0])
    return net.output(net.conv(net.clip(y) if clip else y, RNG.standard_normal((2, 3, 1, 1))))


def test_where_a_gamma_is_0_nothing_is_known_of_the_producer():
    known, hidden = check(conv_and_norm([1.5, 0.0, -0.4], clip=True))
    assert hidden == 2 * 4 * 4
    assert known > hidden


def test_elsewhere_everything_is_known():
    assert check(conv_and_norm([1.5, 0.7, -0.4], clip=True))[1] == 0


@settings(
    derandomize=True,
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(networks(), st.sampled_from(("auto", "always", "never")))
def test_random_networks(network, mode):
    check(network, mode)
