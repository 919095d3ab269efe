"""Randomness: what differs from run to run, and is the same from the same seed."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tests.property.programs.block import Draw, Room, habit

by_chance = habit("random")


@by_chance
def permutes_channels(room: Room):
    def run(self, x):
        return self.conv(self.bn(x)[:, torch.randperm(x.shape[1])])

    return room.block(run, "conv", "bn")


@by_chance
def permutes_by_a_generator(room: Room):
    def run(self, x):
        order = torch.randperm(x.shape[1], generator=self.draw)
        return self.bn(self.conv(x)[:, order])

    return room.block(run, "conv", "bn", draw=Draw(3))


@by_chance
def noise_added(room: Room):
    def run(self, x):
        return self.bn(self.conv(x) + torch.rand(1, x.shape[1], 1, 1, dtype=x.dtype))

    return room.block(run, "conv", "bn")


@by_chance
def noise_of_its_shape(room: Room):
    return room.block(lambda self, x: self.body(x + 0.1 * torch.randn_like(x)), "body")


@by_chance
def noise_in_place(room: Room):
    def run(self, x):
        y = self.body(x)
        return y.add_(torch.empty_like(y).normal_(0, 0.1))

    return room.block(run, "body")


@by_chance
def factor_of_python(room: Room):
    return room.block(lambda self, x: self.bn(self.conv(x) * random.uniform(0.5, 2)), "conv", "bn")


@by_chance
def shift_of_numpy(room: Room):
    def run(self, x):
        shift = torch.from_numpy(np.random.randn(1, x.shape[1], 1, 1))
        return self.bn(self.conv(x) + shift)

    return room.block(run, "conv", "bn")


@by_chance
def factor_of_a_generator(room: Room):
    def run(self, x):
        gain = torch.rand(1, x.shape[1], 1, 1, generator=self.draw, dtype=x.dtype)
        return self.body(x * gain)

    return room.block(run, "body", draw=Draw(4))


@by_chance
def python_generator(room: Room):
    def run(self, x):
        return self.bn(self.conv(x)) + self.draw.random()

    return room.block(run, "conv", "bn", draw=random.Random(3))


@by_chance
def dropout_in_training(room: Room):
    drop = nn.Dropout2d(0.3)
    drop.stays = True
    return room.block(lambda self, x: self.body(self.drop(x)), "body", drop=drop.train())


@by_chance
def dropout_as_function(room: Room):
    return room.block(
        lambda self, x: functional.dropout(self.bn(self.conv(x)), 0.3, True), "conv", "bn"
    )


@by_chance
def channels_masked(room: Room):
    def run(self, x):
        mask = torch.bernoulli(torch.full((1, x.shape[1], 1, 1), 0.7, dtype=x.dtype))
        return self.bn(self.conv(x) * mask)

    return room.block(run, "conv", "bn")


@by_chance
def depth_by_chance(room: Room):
    def run(self, x):
        return x if random.random() < 0.4 else x + self.body(x)

    return room.block(run, "body")


@by_chance
def depth_by_tensor(room: Room):
    def run(self, x):
        return x + self.body(x) if torch.rand(()) < 0.6 else torch.sigmoid(x)

    return room.block(run, "body")


@by_chance
def rolled_by_chance(room: Room):
    def run(self, x):
        return self.bn(torch.roll(self.conv(x), int(torch.randint(3, ())), 1))

    return room.block(run, "conv", "bn")


@by_chance
def drawn_from_channels(room: Room):
    def run(self, x):
        chosen = torch.multinomial(torch.ones(x.shape[1]), x.shape[1])
        return self.conv(self.bn(x).index_select(1, chosen))

    return room.block(run, "conv", "bn")


@by_chance
def seeds_itself(room: Room):
    """The same numbers each time, and the caller's random state is lost."""

    def run(self, x):
        torch.manual_seed(7)
        return self.body(x * torch.rand(1, x.shape[1], 1, 1, dtype=x.dtype))

    return room.block(run, "body")


@by_chance
def seeds_in_a_fork(room: Room):
    def run(self, x):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.step)
            gain = torch.rand(1, x.shape[1], 1, 1, dtype=x.dtype)
        self.step += 1
        return self.bn(self.conv(x) * gain)

    return room.block(run, "conv", "bn", step=0)


@by_chance
def list_shuffled(room: Room):
    def run(self, x):
        order = list(range(x.shape[1]))
        random.shuffle(order)
        return self.conv(self.bn(x)[:, order])

    return room.block(run, "conv", "bn")


@by_chance
def leaky_by_chance(room: Room):
    return room.block(
        lambda self, x: functional.rrelu(self.bn(self.conv(x)), training=True), "conv", "bn"
    )
