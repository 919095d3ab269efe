"""No reason names a step that goes."""

from __future__ import annotations

import numpy as np

from bnfold.core import graph as g
from bnfold.core.blame import Obstacle
from bnfold.core.fitting import Fitting
from bnfold.core.plan import Plan, make_plan
from bnfold.core.reasons import Reason
from tests.core.interpreter import Network
from tests.core.laws.networks import bn, conv, image


def plan_of(net: Network) -> Plan:
    return Fitting(lambda bans: make_plan(net.graph, clip="always", banned=bans)).plan


def reasons(net: Network, plan: Plan) -> dict[str, Obstacle]:
    return {net.graph.ops[number].name: obstacle for number, obstacle in plan.kept.items()}


def test_a_reason_that_names_what_is_there_is_left_alone():
    net = Network()
    x = bn(net, net.sigmoid(image(net)), "first")
    x = conv(net, bn(net, x, "second"), taps=3, padding=1, name="padded")
    net.output(x)
    decided = make_plan(net.graph, clip="always")
    plan = Fitting(lambda bans: decided).plan
    assert plan.kept == decided.kept
    assert Reason.PADDING in {obstacle.reason for obstacle in plan.kept.values()}


def test_a_step_behind_that_goes_is_not_named():
    """Four channels become one: the step of that one goes into the step in front."""
    net = Network()
    x = net.sigmoid(net.conv(net.input(2, 3, 4, 4), np.ones((4, 3, 1, 1))))
    x = net.affine(x, [0.5, -1.5, 2.0, 1.2], [0.1, 0.2, -0.3, 0.4], name="first")
    (x,) = net.view(lambda values: [np.reshape(values[0], (8, 1, 4, 4))], x)
    x = net.affine(x, [0.7], [0.3], name="second")
    net.output(conv(net, x, name="last"))
    plan = plan_of(net)
    assert net.graph.names(plan.removed) == ("second",)
    assert reasons(net, plan) == {"first": Obstacle(Reason.BRANCHES, "last")}


def test_a_step_in_front_that_goes_is_not_named():
    """The two steps of a BatchNorm, beside what they read."""
    net = Network()
    start = net.clip(image(net), name="relu")
    x = bn(net, start, "first", factors=g.Parameter.FIXED, summands=g.Parameter.FIXED)
    x = bn(net, x, "second")
    mean = net.reduce(x, g.Mean, (2, 3), keeps_rank=True)
    x = net.gate(x, net.sigmoid(conv(net, mean)), name="gate")
    net.output(conv(net, net.sum(x, start, name="sum")))
    plan = plan_of(net)
    assert net.graph.names(plan.removed) == ("first",)
    assert reasons(net, plan) == {"second": Obstacle(Reason.BRANCHES, "sum")}
