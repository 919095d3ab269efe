"""Plain parts of networks. Those in STEADY keep channels and sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from tests.property.programs.block import Room
from tests.property.programs.layers import any_batch_norm, any_linear

PARTS: dict[str, Callable[[Room], nn.Module]] = {}
STEADY: list[str] = []
HOLDING = ("residual", "dense", "gate", "affine_sum")
"""Parts that hold a chain."""
HEADS: list[str] = []


def part(make: Callable[[Room], nn.Module]) -> Callable[[Room], nn.Module]:
    PARTS[make.__name__] = make
    STEADY.append(make.__name__)
    return make


def resizing(make: Callable[[Room], nn.Module]) -> Callable[[Room], nn.Module]:
    PARTS[make.__name__] = make
    return make


def head(make: Callable[[Room], nn.Module]) -> Callable[[Room], nn.Module]:
    PARTS[make.__name__] = make
    HEADS.append(make.__name__)
    return make


@part
def conv(room: Room) -> nn.Module:
    return room.conv()


@part
def bn(room: Room) -> nn.Module:
    return room.bn()


@part
def relu(room: Room) -> nn.Module:
    kinds = (nn.ReLU, nn.ReLU, nn.ReLU6, nn.Hardtanh)
    return room.random.choice(kinds)(inplace=room.random.random() < 0.4)


@part
def relu_function(room: Room) -> nn.Module:
    function = room.random.choice(
        (torch.relu, functional.relu, functional.relu6, lambda x: x.clamp(min=0))
    )
    return room.block(lambda self, x: function(x))


@part
def leaky(room: Room) -> nn.Module:
    kinds = (lambda: nn.LeakyReLU(0.2), lambda: nn.PReLU(room.channels, dtype=torch.float64))
    return room.random.choice(kinds)()


@part
def smooth(room: Room) -> nn.Module:
    return room.random.choice((nn.Sigmoid, nn.SiLU, nn.GELU, nn.Tanh))()


@part
def pool_steady(room: Room) -> nn.Module:
    kinds = (nn.MaxPool2d, nn.AvgPool2d)
    return room.random.choice(kinds)(3, stride=1, padding=1)


@part
def residual(room: Room) -> nn.Module:
    return room.block(lambda self, x: x + self.body(x), "body")


@part
def dense(room: Room) -> nn.Module:
    def run(self, x):
        return self.back(torch.cat([x, self.body(x)], 1))

    back = nn.Conv2d(2 * room.channels, room.channels, 1, dtype=torch.float64)
    return room.block(run, "body", back=back)


@part
def gate(room: Room) -> nn.Module:
    def run(self, x):
        return x * torch.sigmoid(self.body(x).mean((2, 3), keepdim=True))

    return room.block(run, "body")


@part
def affine_sum(room: Room) -> nn.Module:
    return room.block(
        lambda self, x: self.body(x) * self.a + self.b, "body", a=room.values(), b=room.values()
    )


@part
def shuffle(room: Room) -> nn.Module:
    order = torch.tensor(room.random.sample(range(room.channels), room.channels))
    return room.block(lambda self, x: x[:, self.order], order=order)


@part
def as_sequence(room: Room) -> nn.Module:
    def run(self, x):
        return self.conv(self.bn(x.flatten(2))).reshape(x.shape)

    return room.block(
        run,
        bn=any_batch_norm(room.random, room.channels, nn.BatchNorm1d),
        conv=nn.Conv1d(room.channels, room.channels, 1, dtype=torch.float64),
    )


@part
def channels_last_linear(room: Room) -> nn.Module:
    def run(self, x):
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    return room.block(run, linear=any_linear(room.random, room.channels, room.channels))


@resizing
def conv_wider(room: Room) -> nn.Module:
    room.out = room.random.choice((4, 6))
    return room.conv(room.out, groups=1)


@resizing
def conv_stride(room: Room) -> nn.Module:
    return room.conv(stride=2)


@resizing
def pool(room: Room) -> nn.Module:
    return room.random.choice((nn.MaxPool2d, nn.AvgPool2d))(2)


@head
def head_conv(room: Room) -> nn.Module:
    return room.conv(5, groups=1)


@head
def head_mean(room: Room) -> nn.Module:
    def run(self, x):
        return self.linear(x.mean((2, 3)))

    return room.block(run, linear=any_linear(room.random, room.channels, 5))


@head
def head_flat(room: Room) -> nn.Module:
    def run(self, x):
        return self.linear(self.norm(torch.flatten(functional.adaptive_avg_pool2d(x, 2), 1)))

    return room.block(
        run,
        norm=any_batch_norm(room.random, 4 * room.channels, nn.BatchNorm1d),
        linear=any_linear(room.random, 4 * room.channels, 5),
    )


@head
def head_bn(room: Room) -> nn.Module:
    return nn.Sequential(room.conv(5, groups=1), any_batch_norm(room.random, 5))
