"""Hooks of modules, in all their ways."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules import module as module_api

from tests.property.programs.block import Room, habit

hooked = habit("hooks")


def through(self, x):
    return self.bn(self.conv(x))


@hooked
def after_the_norm(room: Room):
    block = room.block(through, "conv", "bn")
    block.bn.register_forward_hook(lambda module, args, output: output * 2 + 1)
    return block


@hooked
def before_the_norm(room: Room):
    block = room.block(through, "conv", "bn")
    block.bn.register_forward_pre_hook(lambda module, args: (torch.tanh(args[0]),))
    return block


@hooked
def after_the_convolution(room: Room):
    block = room.block(through, "conv", "bn")
    block.conv.register_forward_hook(lambda module, args, output: output + 1)
    return block


@hooked
def before_with_keywords(room: Room):
    block = room.block(through, "conv", "bn")
    block.conv.register_forward_pre_hook(
        lambda module, args, kwargs: ((args[0] + 1,), kwargs), with_kwargs=True
    )
    return block


@hooked
def registered_by_the_first_run(room: Room):
    def run(self, x):
        if not self.ready:
            self.conv.register_forward_hook(lambda module, args, output: output + 1)
            self.ready = True
        return self.bn(self.conv(x))

    return room.block(run, "conv", "bn", ready=False)


@hooked
def registered_on_the_norm(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        if not self.bn._forward_hooks:
            self.bn.register_forward_hook(lambda module, args, output: torch.tanh(output))
        return y

    return room.block(run, "conv", "bn")


@hooked
def removes_itself(room: Room):
    block = room.block(through, "conv", "bn")

    def once(module, args, output):
        for key in list(module._forward_hooks):
            del module._forward_hooks[key]
        return output + 1

    block.conv.register_forward_hook(once)
    return block


@hooked
def removed_by_its_handle(room: Room):
    block = room.block(through, "conv", "bn")

    def once(module, args):
        if module.handles:
            module.handles.pop().remove()
        return (args[0] * 2,)

    block.bn.handles = [block.bn.register_forward_pre_hook(once)]
    return block


@hooked
def of_all_modules(room: Room):
    def run(self, x):
        def act(module, args, output):
            return torch.tanh(output) if isinstance(module, nn.Conv2d) else None

        handle = module_api.register_module_forward_hook(act)
        try:
            return self.bn(self.conv(x))
        finally:
            handle.remove()

    return room.block(run, "conv", "bn")


@hooked
def of_all_norms(room: Room):
    def run(self, x):
        def act(module, args):
            return (args[0] + 1,) if isinstance(module, nn.BatchNorm2d) else None

        handle = module_api.register_module_forward_pre_hook(act)
        y = self.body(x)
        handle.remove()
        return y

    return room.block(run, "body")


@hooked
def hook_holds_a_module(room: Room):
    other = room.bn()
    block = room.block(through, "conv", "bn", other=other)
    block.conv.register_forward_hook(lambda module, args, output: other(output))
    return block


@hooked
def features_kept(room: Room):
    def run(self, x):
        return self.body(self.bn(self.conv(x))) + torch.sigmoid(self.features["conv"])

    block = room.block(run, "conv", "bn", "body", features={})

    def keep(module, args, output):
        block_of[0].features["conv"] = output

    block_of = [block]
    block.conv.register_forward_hook(keep)
    return block


@hooked
def features_kept_by_the_module(room: Room):
    def keep(module, args, output):
        module.seen = output

    block = room.block(
        lambda self, x: self.body(self.bn(x)) + torch.tanh(self.bn.seen), "bn", "body"
    )
    block.bn.register_forward_hook(keep)
    return block


@hooked
def weight_computed_before(room: Room):
    """As the old weight_norm: a pre-hook makes the weight anew each time."""

    def make(module, args):
        module.weight = module.gain * module.direction

    block = room.block(through, "conv", "bn")
    weight = block.conv.weight
    del block.conv.weight
    block.conv.direction = nn.Parameter(weight.data)
    block.conv.gain = nn.Parameter(torch.full((len(weight), 1, 1, 1), 0.7, dtype=weight.dtype))
    block.conv.weight = weight.data
    block.conv.register_forward_pre_hook(make)
    return block


@hooked
def statistics_written_before(room: Room):
    def adapt(module, args):
        module.running_mean.lerp_(args[0].mean((0, 2, 3)), 0.1)

    block = room.block(through, "conv", "bn")
    block.bn.register_forward_pre_hook(adapt)
    return block


@hooked
def counts_its_calls(room: Room):
    def count(module, args, output):
        module.calls += 1
        return output * module.calls

    block = room.block(through, "conv", "bn")
    block.conv.calls = 0
    block.conv.register_forward_hook(count)
    return block


@hooked
def only_looks(room: Room):
    block = room.block(through, "conv", "bn")
    block.bn.register_forward_hook(lambda module, args, output: None)
    return block


@hooked
def looks_at_numbers(room: Room):
    def look(module, args, output):
        module.largest = float(output.abs().max())

    block = room.block(lambda self, x: self.bn(self.conv(x)) / self.bn.largest, "conv", "bn")
    block.bn.register_forward_hook(look)
    return block


@hooked
def called_even_on_errors(room: Room):
    block = room.block(through, "conv", "bn")
    block.bn.register_forward_hook(lambda module, args, output: output.neg(), always_call=True)
    return block


@hooked
def on_the_block(room: Room):
    block = room.block(through, "conv", "bn")
    block.register_forward_hook(
        lambda module, args, output: output + module.bn.running_mean[:, None, None]
    )
    return block


@hooked
def writes_in_place(room: Room):
    block = room.block(through, "conv", "bn")
    block.conv.register_forward_hook(lambda module, args, output: output.mul_(2))
    return block


@hooked
def on_saved_tensors(room: Room):
    def run(self, x):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            return self.bn(self.conv(x))

    return room.block(run, "conv", "bn")
