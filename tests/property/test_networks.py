"""Random networks, one description built as PyTorch module, ONNX model and Caffe files.

`make fuzz` runs as many as you like; what is checked is told in tests/property/networks/check.py.
Below are, too, the small networks that random ones were shrunk to when they showed a mistake.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bnfold.core.plan import make_plan
from bnfold.core.reasons import Reason
from bnfold.frontends.torch.lift import lift
from bnfold.frontends.torch.read import read_module
from tests.property.networks.build_torch import Model, torch_inputs
from tests.property.networks.check import check
from tests.property.networks.check_single import check_onnx_runtime, check_torch_in
from tests.property.networks.check_sizes import check_other_sizes
from tests.property.networks.description import Network, Node
from tests.property.networks.maximal import ElementEquations, is_modelled
from tests.property.networks.strategy import networks

MODES = st.sampled_from(("never", "always", "auto"))


def steady(examples: int) -> settings:
    return settings(
        derandomize=True,
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@steady(30)
@given(networks(), MODES)
def test_every_frontend_folds_a_random_network_alike(network, clip):
    check(network, clip)


@steady(30)
@given(networks(within="caffe"), MODES)
def test_so_does_caffe_with_what_it_can_express(network, clip):
    check(network, clip)


@steady(25)
@given(networks(), MODES, st.sampled_from((torch.float32, torch.float16)))
def test_in_smaller_dtypes_only_digits_are_lost(network, clip, dtype):
    check_torch_in(network, clip, dtype)


@steady(30)
@given(networks(), MODES)
def test_onnx_runtime_computes_the_same(network, clip):
    check_onnx_runtime(network, clip)


@steady(20)
@given(networks(), MODES)
def test_an_exported_program_is_right_for_other_sizes(network, clip):
    check_other_sizes(network, clip)


@steady(60)
@given(networks(most=5))
def test_nothing_that_could_go_was_kept(network):
    """By brute force; see tests/property/networks/maximal.py."""
    graph = lift(read_module(Model(network), [torch_inputs(network, torch.float64)])).graph
    plan = make_plan(graph, clip="always")
    if not is_modelled(graph) or len(graph.ops) > 12:
        return
    if plan.solution.shortcuts:  # of these, see test_maximal.py
        return
    removed = set(plan.removed)
    assert ElementEquations(graph, removed).solvable()
    groups = graph.affine_groups()
    for number, why in plan.kept.items():
        if why.reason is not Reason.SCALE_RANGE and graph.step(number).refusal is None:
            assert not ElementEquations(graph, removed | set(groups[number])).solvable()


# ------------------------------------------------------------------- what was found


IMAGE = (2, 4, 3, 3)
HALF = (2, 2, 3, 3)
TALL = (2, 4, 6, 3)


def conv(name: str, source: str, **options) -> Node:
    usual = {"stride": (1, 1), "dilation": (1, 1), "padding": (1, 1), "kernel": (3, 3)}
    usual |= {"groups": 1, "mode": "zeros", "bias": True, "out": 4}
    return Node(name, "conv", (source,), {name: IMAGE}, {**usual, **options})


def step(name: str, kind: str, *sources: str, **options) -> Node:
    return Node(name, kind, sources, {name: IMAGE}, options)


POINTS = {"kernel": (1, 1), "padding": (0, 0), "bias": False}
TINY = (1e-7, 1e-7, 1e-7, 1e-7)
FOUND = {
    "a shift of 1e7 on a stream that an activation reads too": (
        conv("n0", "x0"),
        step("n1", "bn", "n0", gamma=TINY, eps=1e-3),
        step("n2", "add", "n1", "x0"),
        step("n3", "sigmoid", "n2"),
        step("n4", "relu", "n0", how="module"),
        conv("n5", "n4", mode="replicate"),
    ),
    "a BatchNorm that stays behind an input that is stored much smaller": (
        conv("n0", "x0"),
        step("n1", "scale", "n0", gamma=TINY),
        conv("n2", "n1"),
        step("n3", "bn", "n0", gamma=(0.0, 1.0, 2.0, -1.0)),
    ),
    "a sum of what is stored in very different units": (
        conv("n0", "x0"),
        step("n1", "bn", "n0", gamma=(1e-7, 1.0, 1.0, 1.0)),
        conv("n2", "x0"),
        step("n3", "add", "n2", "n1"),
        step("n4", "bn", "n3", gamma=(1e-7, 1.0, 1.0, 1.0)),
        step("n5", "bn", "n1", gamma=(1.0, 1.0, 1.0, 1.0)),
    ),
    "a sum with a constant that stays": (
        step("n0", "bn", "x0", gamma=(2.4, 1.0, -0.4, 0.6)),
        step("n1", "shift", "n0"),
        conv("n2", "n0", kernel=(1, 1), padding=(0, 0)),
    ),
    "a product with a factor of 0 between an input and a BatchNorm": (
        step("n0", "scale", "x0", gamma=(1.0, -0.4, 0.0, 2.4)),
        step("n1", "bn", "n0", gamma=None),
    ),
    "products of an activation of the input": (
        step("n0", "relu", "x0", how="module"),
        step("n1", "scale", "n0", gamma=(1.0, 0.0, -1.3, 0.0)),
        step("n2", "scale", "n1", gamma=(-1.3, 2.4, 0.6, 2.4)),
        step("n3", "scale", "n2", gamma=(1.0, 1.0, 1.0, 2.4)),
    ),
    "factors that each meet two channels, one above the other": (
        step("n0", "shift", "x0"),
        Node("n1", "concat", ("n0", "x0"), {"n1": TALL}, {"axis": 2}),
        Node("n2", "scale", ("n1",), {"n2": TALL}, {"gamma": (0.3, -0.4, 1.0, 2.4)}),
        Node("n3", "prelu", ("n2",), {"n3": TALL}, {"how": "module"}),
        Node("n4", "bn", ("n3",), {"n4": TALL}, {"gamma": (0.3, -0.4, -2.5, 1.0)}),
    ),
    "a shift of 1e7 on what another call of the convolution makes": (
        conv("n0", "x0", **POINTS),
        step("n1", "bn", "n0", gamma=(1e-7, -0.4, 1.0, 2.4)),
        step("n2", "sigmoid", "n1"),
        Node("n3", "conv", ("n2",), {"n3": IMAGE}, conv("n0", "x0", **POINTS).options, "n0"),
        conv("n4", "n3", **POINTS),
        step("n5", "sigmoid", "n4"),
    ),
    "half of a BatchNorm's output is returned, as a view": (
        step("n0", "bn", "x0", gamma=(2.4, 1.0, -0.4, 0.6)),
        Node("n1", "split", ("n0",), {"n1": HALF, "n2": HALF}, {"at": 2}),
        Node("n3", "bn", ("n2",), {"n3": HALF}, {"gamma": (-1.0, 0.3)}),
    ),
}


@pytest.mark.parametrize("clip", ["never", "always", "auto"])
@pytest.mark.parametrize("name", list(FOUND))
def test_what_was_found_stays_fixed(name, clip):
    network = Network({"x0": IMAGE}, FOUND[name], (), 1)
    check(network, clip)
    assert check_torch_in(network, clip, torch.float32)
    assert check_onnx_runtime(network, clip)
