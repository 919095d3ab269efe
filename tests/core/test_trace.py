"""The ops that a removed step names are those whose new weights its constants move: no other.

The proof moves them. Each step's constants are changed a little, the network is planned again, and
the ops whose edit is another one now are what the report has to name.
"""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, assume, given, settings

from bnfold.core import graph as g
from bnfold.core.plan import Plan, make_plan
from tests.core.interpreter import Network, assert_fold_is_exact
from tests.core.moving import changed
from tests.property.strategies import networks

RNG = np.random.default_rng(40)
K = RNG.standard_normal((6, 3, 3, 1, 1))
WIDE = RNG.standard_normal((6, 3, 3, 3, 3))
STEPS = RNG.uniform(0.5, 1.5, (12, 3)), RNG.standard_normal((12, 3))
CLIP = "always"
STEADY = settings(
    derandomize=True,
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def assert_names_are_true(net: Network) -> Plan:
    plan = assert_fold_is_exact(net, clip=CLIP)
    for number, names in plan.removed.items():
        assert changed(net.graph, plan, number, CLIP) == set(names), net.graph.ops[number].name
    return plan


def bn(net: Network, x: int, number: int, **options) -> int:
    return net.affine(x, STEPS[0][number], STEPS[1][number], name=f"bn{number}", **options)


def into(net: Network) -> dict[str, tuple[str, ...]]:
    plan = assert_names_are_true(net)
    return {net.graph.ops[number].name: names for number, names in plan.removed.items()}


class TestSteps:
    """conv, step, step, relu, conv, step"""

    def test_two_in_a_row_go_where_the_first_goes(self):
        net = Network()
        x = net.conv(net.input(1, 3, 4, 4), K[0], name="one")
        x = net.clip(bn(net, bn(net, x, 0), 1))
        x = bn(net, net.conv(x, K[1], name="two"), 2)
        net.output(net.sigmoid(x))
        assert into(net) == {"bn0": ("one",), "bn1": ("one",), "bn2": ("two",)}

    def test_three_in_a_row(self):
        net = Network()
        x = net.conv(net.input(1, 3, 4, 4), K[0], name="one")
        x = net.leaky(bn(net, bn(net, bn(net, x, 0), 1), 2))
        net.output(bn(net, net.conv(x, WIDE[1], padding=1, name="two"), 3))
        assert set(into(net).values()) == {("one",), ("two",)}

    def test_two_behind_the_input(self):
        net = Network()
        x = bn(net, bn(net, net.input(1, 3, 4, 4), 0), 1)
        x = bn(net, net.conv(net.clip(x), K[0], name="one"), 2)
        net.output(net.conv(net.leaky(x), K[1], name="two"))
        assert into(net) == {"bn0": ("one",), "bn1": ("one",), "bn2": ("one",)}

    def test_on_both_sides_of_a_clip(self):
        net = Network()
        x = bn(net, net.conv(net.input(1, 3, 4, 4), K[0], name="one"), 0)
        x = bn(net, net.clip(x), 1)
        net.output(net.conv(net.clip(x), WIDE[1], padding=1, name="two"))
        assert into(net)["bn0"] == ("one",)

    def test_a_step_with_two_readers(self):
        net = Network()
        x = net.conv(net.input(1, 3, 4, 4), K[0], name="one")
        x = net.clip(bn(net, bn(net, x, 0), 1))
        y, z = net.conv(x, K[1], name="two"), net.conv(x, K[2], name="three")
        net.output(bn(net, y, 2), bn(net, z, 3))
        names = into(net)
        assert names == {"bn0": ("one",), "bn1": ("one",), "bn2": ("two",), "bn3": ("three",)}

    def test_a_step_that_stays_takes_one_in(self):
        net = Network()
        x = bn(net, net.input(1, 3, 4, 4), 0)
        net.output(net.affine(bn(net, x, 1), *STEPS[0][:2], name="kept", removal=g.Removal.UNASKED))
        assert into(net) == {"bn0": ("kept",), "bn1": ("kept",)}

    def test_a_product_and_a_sum(self):
        net = Network()
        x = net.conv(net.input(1, 3, 4, 4), K[0], name="one")
        x = net.affine(x, STEPS[0][0], [0, 0, 0], name="mul")
        x = net.affine(x, [1, 1, 1], STEPS[1][0], name="add")
        net.output(bn(net, net.conv(net.clip(x), K[1], name="two"), 1))
        assert into(net) == {"mul": ("one",), "add": ("one",), "bn1": ("two",)}


class TestBranches:
    def test_a_residual_stream(self):
        net = Network()
        x = net.clip(bn(net, net.conv(net.input(1, 3, 4, 4), K[0], name="stem"), 0))
        for block in (1, 2):
            y = net.conv(x, WIDE[block], padding=1, name=f"conv{block}")
            x = net.clip(net.sum(bn(net, y, block), x))
        net.output(net.conv(x, K[4], name="head"))
        assert into(net) == {"bn0": ("stem",), "bn1": ("conv1",), "bn2": ("conv2",)}

    def test_a_pre_activation_stream(self):
        net = Network()
        x = net.sigmoid(net.conv(net.input(1, 3, 4, 4), K[0], name="stem"))
        for block in (1, 2, 3):
            y = net.clip(bn(net, bn(net, x, 2 * block), 2 * block + 1))
            x = net.sum(x, net.conv(y, K[block], name=f"conv{block}"))
        net.output(net.sigmoid(x))
        names = into(net)  # what the first convolution adds to the stream may come shifted
        assert names["bn2"] == names["bn3"] == ("conv1",)
        assert names["bn4"] == names["bn5"] == ("conv1", "conv2")

    def test_identity_branches(self):
        net = Network()
        x = net.clip(bn(net, net.conv(net.input(1, 3, 4, 4), K[0], name="stem"), 0))
        for block in (1, 2, 3):
            y = net.conv(x, WIDE[block], padding=1, name=f"conv{block}")
            x = net.clip(net.sum(bn(net, y, 2 * block), bn(net, x, 2 * block - 1)))
        net.output(net.conv(x, K[5], name="head"))
        assert_names_are_true(net)

    def test_a_dense_block(self):
        net = Network()
        x = net.sigmoid(net.input(1, 3, 4, 4))
        y = net.conv(net.clip(bn(net, x, 0)), K[1], name="one")
        x = net.concat(x, y)
        a, b = np.concatenate(STEPS[0][1:3]), np.concatenate(STEPS[1][1:3])
        z = net.clip(net.affine(x, a, b, name="wide"))
        kernel = RNG.standard_normal((3, 6, 1, 1))
        net.output(net.conv(z, kernel, name="two"))
        assert into(net) == {"bn0": ("one",), "wide": ("one", "two")}

    def test_a_sum_of_three(self):
        net = Network()
        i = net.input(1, 3, 4, 4)
        parts = [bn(net, net.conv(i, K[n], name=f"conv{n}"), n) for n in (0, 1, 2)]
        x = bn(net, net.sum(*parts), 3)
        net.output(net.conv(net.clip(x), K[3], name="head"))
        assert_names_are_true(net)

    def test_one_layer_called_twice(self):
        net = Network()
        x, y = (net.conv(net.input(1, 3, 4, 4), K[0], name=f"c{n}", tie="c") for n in (0, 1))
        x, y = (bn(net, v, 0, tie="bn") for v in (x, y))
        net.output(net.conv(net.clip(x), K[1], name="one"), net.conv(y, K[2], name="two"))
        assert_names_are_true(net)


class TestConstants:
    def test_a_zero_that_its_maker_writes(self):
        net = Network()
        x = net.conv(net.input(1, 3, 4, 4), K[0], name="one")
        x = net.affine(bn(net, x, 0), [0.0, 0.5, -2.0], [0.3, 0.1, 0.2], name="zero")
        net.output(net.conv(net.clip(x), K[1], name="two"))
        assert into(net) == {"bn0": ("one",), "zero": ("one",)}

    def test_a_zero_that_its_readers_hold(self):
        net = Network()
        x = net.affine(net.input(1, 3, 4, 4), [0.0, 0.5, 2.0], [0.3, 0.1, 0.2], name="zero")
        net.output(net.conv(net.clip(x), K[1], name="one"), net.conv(x, K[2], name="two"))
        assert into(net) == {"zero": ("one", "two")}


@STEADY
@given(networks())
def test_random_networks(net):
    # Sums of one tensor's own steps go as a whole, and two calls of one layer can cancel: there an
    # op may be missing, or named too much.
    roles = [op.role for op in net.graph.ops]
    assume(not any(isinstance(role, g.Sum) or getattr(role, "tie", None) for role in roles))
    plan = make_plan(net.graph, clip=CLIP)
    for number, names in plan.removed.items():
        found = changed(net.graph, plan, number, CLIP)
        if found is not None:
            assert set(names) <= found or found <= set(names), net.graph.ops[number].name
