"""All laws at once."""

from __future__ import annotations

from bnfold.core import laws
from tests.core.interpreter import Network
from tests.core.laws.networks import bn, conv, goes


def test_an_empty_tensor_goes_through_every_op():
    """A crop to nothing, as some detection heads have it: no values, no constraints."""
    net = Network()
    x = bn(net, conv(net, net.input(1, 3, 4, 4)))
    (y,) = net.view(lambda values: [values[0][:, :, :0]], x)
    y = net.sum(net.sign(net.clip(y)), net.leaky(y))
    goes(net, y, conv(net, x))


def test_a_usual_network_gets_exactly_the_room_that_it_needs():
    """Arrays that grow on the way are held twice, and what they have too much stays."""
    net = Network()
    one = conv(net, net.input(2, 3, 4, 4), 1)
    x = conv(net, bn(net, one), 4)
    y = net.leaky(net.sum(one, x, bn(net, conv(net, x, 4))))
    y = net.sum(x, y)
    net.output(conv(net, net.concat(x, net.clip(y)), 2))
    system = laws.bind(net.graph).system
    for forest in (system.magnitude, system.sign, system.shift):
        assert len(forest.parent) == system.count
