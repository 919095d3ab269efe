"""A kept step says what stands in its way, and which op that is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core.blame import Obstacle
from bnfold.core.reasons import Reason
from tests.core.interpreter import Network, assert_fold_is_exact

RNG = np.random.default_rng(4)
K = RNG.standard_normal((4, 3, 3, 1, 1))
WIDE = RNG.standard_normal((3, 3, 3, 3))
A, B = [1.5, -0.6, 0.25], [0.3, -1.1, 0.8]
FIXED = {"removal": g.Removal.UNASKED, "factors": g.Parameter.FIXED, "summands": g.Parameter.FIXED}


def bn(net: Network, x: int, **options) -> int:
    return net.affine(x, A, B, name="bn", **options)


def padded(net, x):
    return net.conv(x, WIDE, padding=1, name="padded")


def leaky(net, x):
    return net.conv(net.leaky(x, name="leaky"), K[0])


def plain_relu(net, x):
    return net.conv(net.clip(x, room=False, name="relu"), K[0])


def sigmoid(net, x):
    return net.sigmoid(x, name="sigmoid")


def output(net, x):
    return x


def fixed(net, x):
    x = net.affine(x, A, B, name="fixed", **FIXED)
    return net.conv(x, WIDE, padding=1)


def fixed_conv(net, x):
    return net.conv(net.conv(x, K[0], weight=g.Weight.FIXED, name="fixed_conv"), K[1])


def branches(net, x):
    return net.conv(net.sum(x, net.sigmoid(net.input(2, 3, 5, 5)), name="sum"), K[0])


def counted(net, x):
    return net.conv(net.mean_pool(x, 3, padding=1, name="pool"), K[0])


def gate(net, x):
    return net.conv(net.gate(x, net.sigmoid(net.input(2, 3, 1, 1)), name="gate"), K[0])


def border(net, x):
    return net.conv(net.pad(x, (0, 0, 1, 1), (0, 0, 1, 1), name="pad"), K[0])


def sign(net, x):
    return net.conv(net.sign(x, odd=False, name="sign"), K[0])


def shared(net, x):
    y = net.conv(net.sigmoid(net.input(2, 3, 5, 5)), K[0], [1.0, 2.0, 3.0], tie="k", name="first")
    return net.sum(net.conv(x, K[0], [1.0, 2.0, 3.0], tie="k", name="second"), y)


@pytest.mark.parametrize(
    ("obstacle", "reason", "blocker"),
    [
        (padded, Reason.PADDING, "padded"),
        (counted, Reason.PADDING, "pool"),
        (border, Reason.PADDING, "pad"),
        (leaky, Reason.ACTIVATION, "leaky"),
        (plain_relu, Reason.ACTIVATION, "relu"),
        (sign, Reason.ACTIVATION, "sign"),
        (sigmoid, Reason.NONLINEAR, "sigmoid"),
        (gate, Reason.NONLINEAR, "gate"),
        (output, Reason.GRAPH_OUTPUT, "output0"),
        (fixed, Reason.FIXED_WEIGHT, "fixed"),
        (fixed_conv, Reason.FIXED_WEIGHT, "fixed_conv"),
        (branches, Reason.BRANCHES, "sum"),
        (shared, Reason.SHARED, "second"),
    ],
)
def test_every_obstacle_is_named(obstacle, reason, blocker):
    net = Network()
    x = bn(net, net.input(2, 3, 5, 5))
    net.output(obstacle(net, x))
    plan = assert_fold_is_exact(net)
    assert plan.kept == {0: Obstacle(reason, blocker)}


def test_the_most_telling_obstacle_is_named():
    """The value is returned before the norm and padded after it: the padding is the news."""
    net = Network()
    x = net.conv(net.input(2, 3, 5, 5), K[0])
    net.output(x, padded(net, bn(net, x)))
    plan = assert_fold_is_exact(net)
    assert plan.kept == {1: Obstacle(Reason.PADDING, "padded")}


def test_a_hook_is_named():
    net = Network()
    x = bn(net, net.input(2, 3, 5, 5))
    net.output(x, reason=Reason.HOOK)
    net.output(net.conv(x, K[0]))
    assert assert_fold_is_exact(net).kept == {0: Obstacle(Reason.HOOK, "output0")}


def test_a_clip_that_is_not_to_change_is_named():
    net = Network()
    x = net.clip(bn(net, net.input(2, 3, 5, 5)), name="relu")
    net.output(net.conv(x, K[0]))
    plan = assert_fold_is_exact(net, clip="never")
    assert plan.kept == {0: Obstacle(Reason.CLIP_COST, "relu")}


def test_a_step_never_blames_itself():
    net = Network()
    x = bn(net, net.input(2, 3, 5, 5), summands=g.Parameter.FIXED)
    net.output(net.leaky(x, name="leaky"))
    (obstacle,) = assert_fold_is_exact(net).kept.values()
    assert obstacle.blocker != "bn"


def test_nor_does_one_whose_staying_holds_from_the_start():
    """What was found before is what stands in its way, and not that it stays."""
    net = Network()
    x = net.affine(net.input(2, 3, 5, 5), A, [0, 0, 0], name="product", summands=g.Parameter.FIXED)
    fixed = {"factors": g.Parameter.FIXED, "summands": g.Parameter.FIXED}
    net.output(net.affine(x, A, B, name="fixed", **fixed))
    assert assert_fold_is_exact(net).kept == {
        0: Obstacle(Reason.FIXED_WEIGHT, "fixed"),
        1: Obstacle(Reason.GRAPH_OUTPUT, "output0"),
    }


def test_a_refused_step_names_nobody():
    net = Network()
    x = bn(net, net.conv(net.input(2, 3, 5, 5), K[0]), removal=g.Refusal(Reason.BAD_STATISTICS))
    plan = assert_fold_is_exact(net.output(x))
    assert plan.kept == {1: Obstacle(Reason.BAD_STATISTICS, None)}


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_a_sentence(reason):
    assert reason.sentence
    assert re.fullmatch(r"[a-z-]+", reason.value)
    assert set(re.findall(r"\{(\w+)\}", reason.sentence)) <= {"blocker"}


def test_every_reason_has_its_section_in_the_documentation():
    page = Path(__file__).parents[2] / "docs" / "reasons.md"
    if not page.exists():
        pytest.skip("no documentation beside this checkout")
    text = page.read_text(encoding="utf-8")
    assert [reason.value for reason in Reason if reason.value not in text] == []
