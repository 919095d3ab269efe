"""What habits are made of: blocks, the room they are made in, and state outside of the model.

A habit is a function from a room to a module. It is registered as KIND.NAME:

    @habit("state")
    def gain_grows(room):
        def run(self, x):
            y = self.bn(x * self.gain)
            self.gain.add_(0.5)
            return y
        return room.block(run, "bn", gain=room.tensor(1.0))

The files of habits are flat lists, one habit as good as the next: some are long for that reason.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.property.programs.layers import any_batch_norm, any_conv

DTYPE = torch.float64
HABITS: dict[str, Callable[[Room], nn.Module]] = {}


def habit(
    kind: str,
) -> Callable[[Callable[[Room], nn.Module]], Callable[[Room], nn.Module]]:
    """Register a habit of this kind."""

    def register(make: Callable[[Room], nn.Module]) -> Callable[[Room], nn.Module]:
        name = f"{kind}.{make.__name__.strip('_')}"
        assert name not in HABITS
        HABITS[name] = make
        return make

    return register


class Block(nn.Module):
    """Holds what it is given, and runs the function it is given."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **held: Any) -> None:
        super().__init__()
        self.run = run
        for name, value in held.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Draw(torch.Generator):
    """A generator that a copy of the module starts from the same place."""

    def __new__(cls, seed: int) -> Draw:
        draw = super().__new__(cls)
        draw.manual_seed(seed)
        return draw

    def __init__(self, seed: int) -> None:
        pass

    def __deepcopy__(self, memo: dict[int, Any]) -> Draw:
        other = Draw(0)
        other.set_state(self.get_state())
        return other


@dataclass
class Outside:
    """State that is no part of the model: in globals, closures, classes.

    Nobody can run a program without moving it, so each run that is judged begins from its start.
    """

    resets: list[Callable[[], object]] = field(default_factory=list)

    def reset(self) -> None:
        for each in self.resets:
            each()


@dataclass
class Room:
    """Where one piece is made."""

    channels: int
    """Of its input."""
    random: random.Random
    outside: Outside
    inside: nn.Module | None = None
    """The chain it holds; keeps channels and sizes."""
    is_used: bool = False
    """Whether a layer of the piece holds that chain."""
    out: int = 0
    """Channels of its output; 0: as many."""

    def conv(self, out: int = 0, **options: Any) -> nn.Conv2d:
        return any_conv(self.random, self.channels, out or self.channels, **options)

    def bn(self, channels: int = 0, **options: Any) -> nn.BatchNorm2d:
        return any_batch_norm(self.random, channels or self.channels, **options)

    def act(self) -> nn.Module:
        return self.random.choice((nn.ReLU, nn.ReLU, nn.Hardtanh, nn.SiLU, nn.Sigmoid))()

    def body(self) -> nn.Module:
        """Something with a BatchNorm in it: the chain inside, or a short one."""
        if self.inside is not None and not self.is_used:
            self.is_used = True
            return self.inside
        order = self.random.choice(
            (("conv", "bn"), ("bn", "conv"), ("conv", "bn", "act"), ("bn",), ("bn", "act", "conv"))
        )
        return nn.Sequential(*(getattr(self, name)() for name in order))

    def tensor(self, value: float) -> Tensor:
        """(1, C, 1, 1)"""
        return torch.full((1, self.channels, 1, 1), value, dtype=DTYPE)

    def values(self, *shape: int) -> Tensor:
        """Random; (1, C, 1, 1) unless another shape is given."""
        shape = shape or (1, self.channels, 1, 1)
        numbers = [self.random.uniform(-1.5, 1.5) for _ in range(torch.Size(shape).numel())]
        return torch.tensor(numbers, dtype=DTYPE).reshape(shape)

    def block(self, run: Callable[[Any, Tensor], Tensor], *names: str, **held: Any) -> Block:
        """A block with new layers of these names (conv, bn, act, body; bn2, conv2, ...)."""
        layers = {name: getattr(self, name.rstrip("0123456789"))() for name in names}
        return Block(run, **layers, **held)

    def beside(self, start: Any) -> Cell:
        """State that is no part of the model."""
        cell = Cell(copy.deepcopy(start))
        self.outside.resets.append(lambda: setattr(cell, "value", copy.deepcopy(start)))
        return cell


@dataclass(eq=False)
class Cell:
    """Something that a closure holds."""

    value: Any
