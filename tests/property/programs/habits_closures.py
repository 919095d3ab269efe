"""What functions hold: modules and weights in closures, globals, default arguments, partials."""

from __future__ import annotations

import contextvars
import functools
import types
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from tests.property.programs.block import Block, Room, habit

held = habit("closures")


@held
def module_of_its_own(room: Room):
    norm = room.bn()
    return room.block(lambda self, x: norm(self.conv(x)), "conv", bn=norm)


@held
def convolution_of_its_own(room: Room):
    layer = room.conv()
    return room.block(lambda self, x: self.bn(layer(x)), "bn", conv=layer)


@held
def both_ways(room: Room):
    """The same BatchNorm once by the closure and once by the attribute."""
    norm = room.bn()
    return room.block(lambda self, x: norm(self.conv(x)) + self.bn(x), "conv", bn=norm)


@held
def module_outside(room: Room):
    norm = room.bn()
    return room.block(lambda self, x: norm(self.conv(x)), "conv")


@held
def convolution_outside(room: Room):
    layer = room.conv()
    return room.block(lambda self, x: self.bn(layer(self.bn2(x))), "bn", "bn2")


@held
def default_argument(room: Room):
    norm = room.bn()

    def run(self, x, norm=norm):
        return norm(self.conv(x))

    return room.block(run, "conv", bn=norm)


@held
def keyword_default(room: Room):
    layer = room.conv()

    def run(self, x, *, layer=layer):
        return layer(self.bn(x))

    return room.block(run, "bn", conv=layer)


@held
def partial_with_a_module(room: Room):
    def run(norm, self, x):
        return norm(self.conv(x))

    norm = room.bn()
    return room.block(functools.partial(run, norm), "conv", bn=norm)


@held
def partial_held(room: Room):
    """A partial is copied with the module, but not what is in it."""
    layer = room.conv(padding_mode="zeros")
    call = functools.partial(
        functional.conv2d, weight=layer.weight, padding=layer.padding, groups=layer.groups
    )
    return room.block(lambda self, x: self.bn(self.call(x)), "bn", conv=layer, call=call)


@held
def weight_in_a_closure(room: Room):
    norm = room.bn(affine=True)
    gamma = norm.weight
    return room.block(
        lambda self, x: self.bn(self.conv(x)) * gamma.view(1, -1, 1, 1), "conv", bn=norm
    )


@held
def statistic_in_a_closure(room: Room):
    norm = room.bn()
    mean = norm.running_mean
    return room.block(lambda self, x: self.bn(self.conv(x)) + mean[:, None, None], "conv", bn=norm)


def _by_name(self, x):
    return NORM(self.conv(x))  # noqa: F821


@held
def global_module(room: Room):
    norm = room.bn()
    run = types.FunctionType(_by_name.__code__, {"NORM": norm})
    return room.block(run, "conv", bn=norm)


@held
def global_module_outside(room: Room):
    run = types.FunctionType(_by_name.__code__, {"NORM": room.bn()})
    return room.block(run, "conv")


@held
def bound_method(room: Room):
    norm = room.bn()
    return room.block(
        lambda self, x: self.normed(self.conv(x)), "conv", bn=norm, normed=norm.forward
    )


@held
def bound_method_in_a_closure(room: Room):
    norm = room.bn()
    normed = norm.forward
    return room.block(lambda self, x: normed(self.conv(x)), "conv", bn=norm)


@held
def list_of_functions(room: Room):
    norm, layer = room.bn(), room.conv()
    steps = [lambda x: layer(x), lambda x: norm(x), torch.relu]

    def run(self, x):
        for step in self.steps:
            x = step(x)
        return x

    return room.block(run, steps=steps, conv=layer, bn=norm)


@held
def weak_reference(room: Room):
    norm = room.bn()
    found = weakref.ref(norm)
    return room.block(lambda self, x: found()(self.conv(x)), "conv", bn=norm)


@held
def attribute_of_the_class(room: Room):
    class Own(Block):
        norm = [room.bn()]

        def forward(self, x):
            return self.norm[0](self.conv(x))

    return Own(None, conv=room.conv())


@held
def plain_list(room: Room):
    norm = room.bn()
    return room.block(lambda self, x: self.norms[0](self.conv(x)), "conv", norms=[norm], bn=norm)


@held
def plain_tuple_outside(room: Room):
    return room.block(lambda self, x: self.norms[0](self.conv(x)), "conv", norms=(room.bn(),))


@held
def plain_dict(room: Room):
    norm = room.bn()
    by_name = {"norm": norm}
    return room.block(lambda self, x: by_name["norm"](self.conv(x)), "conv", bn=norm)


@dataclass
class Kit:
    norm: Any
    layer: Any

    def __call__(self, x):
        return self.norm(self.layer(x))


@held
def object_that_holds(room: Room):
    kit = Kit(room.bn(), room.conv())
    return room.block(lambda self, x: self.kit(x), kit=kit, bn=kit.norm)


@held
def object_in_a_closure(room: Room):
    kit = Kit(room.bn(), room.conv())
    return room.block(lambda self, x: kit(x), bn=kit.norm, conv=kit.layer)


@held
def context_variable(room: Room):
    norm = room.bn()
    current: contextvars.ContextVar[Any] = contextvars.ContextVar("current", default=norm)
    return room.block(lambda self, x: current.get()(self.conv(x)), "conv", bn=norm)


@held
def hidden_attribute(room: Room):
    block = room.block(lambda self, x: self.hidden(self.conv(x)), "conv", "bn")
    object.__setattr__(block, "hidden", block.bn)
    return block


@held
def wrapped_function(room: Room):
    norm = room.bn()

    def normed(function):
        @functools.wraps(function)
        def wrapper(self, x):
            return norm(function(self, x))

        return wrapper

    @normed
    def run(self, x):
        return self.conv(x)

    return room.block(run, "conv", bn=norm)


@held
def parent_in_a_list(room: Room):
    """A child that knows its parent and asks it for a layer."""
    child = Block(lambda self, x: self.parent[0].bn(x))
    block = room.block(lambda self, x: self.child(self.conv(x)), "conv", "bn", child=child)
    child.parent = [block]
    return block


@held
def forward_replaced(room: Room):
    """A module whose forward was replaced by a function that holds the old one."""
    norm = room.bn()
    old = norm.forward
    norm.forward = lambda x: old(x) + 1
    return room.block(lambda self, x: self.bn(self.conv(x)), "conv", bn=norm)
