"""State: what one run leaves for the next."""

from __future__ import annotations

import types
from collections import deque

import torch
from torch import nn

from tests.property.programs.block import Block, Room, habit

state = habit("state")


def mean(y):
    return torch.tanh(y.mean((0, 2, 3), keepdim=True))


@state
def gain_grows(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x) * self.gain)
        self.gain.add_(0.5)
        return y

    return room.block(run, "conv", "bn", gain=room.tensor(1.0))


@state
def buffer_assigned(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x) + self.seen)
        self.seen = mean(y)
        return y

    return room.block(run, "conv", "bn", seen=room.tensor(0.0))


@state
def buffer_copied(room: Room):
    def run(self, x):
        y = self.body(x + self.seen)
        self.seen.copy_(mean(y))
        return y

    return room.block(run, "body", seen=room.tensor(0.0))


@state
def buffer_data(room: Room):
    def run(self, x):
        y = self.body(x) + self.seen
        self.seen.data = self.seen.data + 0.25
        return self.bn(y)

    return room.block(run, "body", "bn", seen=room.tensor(0.0))


@state
def buffer_numpy(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x) + self.seen)
        self.seen.numpy()[:] += 1
        return y

    return room.block(run, "conv", "bn", seen=room.tensor(0.0))


@state
def buffer_numpy_kept(room: Room):
    """An array that shares its memory with a buffer."""

    def run(self, x):
        y = self.body(x * self.gain)
        array = self.gain.numpy()
        array *= 1.25
        return self.bn(y)

    return room.block(run, "body", "bn", gain=room.tensor(1.0))


@state
def buffer_set(room: Room):
    def run(self, x):
        y = self.bn(x * self.gain)
        self.gain.set_(self.gain + 0.5)
        return self.conv(y)

    return room.block(run, "conv", "bn", gain=room.tensor(1.0))


@state
def buffer_out(room: Room):
    def run(self, x):
        y = self.body(x - self.seen)
        torch.add(self.seen, 0.5, out=self.seen)
        return y

    return room.block(run, "body", seen=room.tensor(0.0))


@state
def buffer_index(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x) * self.gain)
        self.gain[0, 0] = self.gain[0, 0] + 1
        return y

    return room.block(run, "conv", "bn", gain=room.tensor(1.0))


@state
def buffer_of_zeros_filled(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x)) + self.seen
        self.seen.fill_(float(self.steps))
        self.steps += 1
        return y

    return room.block(run, "conv", "bn", seen=room.tensor(0.0), steps=torch.tensor(1))


@state
def counter(room: Room):
    def run(self, x):
        y = self.conv(x) + self.step
        self.step += 1
        return self.bn(y)

    return room.block(run, "conv", "bn", step=0)


@state
def counter_as_factor(room: Room):
    def run(self, x):
        y = self.bn(x) * self.factor
        self.factor = self.factor * 2
        return self.conv(y)

    return room.block(run, "conv", "bn", factor=1.0)


@state
def counter_turns_off(room: Room):
    """The first run only takes the one path."""

    def run(self, x):
        self.step += 1
        return self.body(x) if self.step <= 1 else torch.sigmoid(self.body(x) + 1)

    return room.block(run, "body", step=0)


@state
def list_of_past(room: Room):
    def run(self, x):
        y = self.body(x + sum(self.past))
        self.past.append(float(mean(y).sum()))
        return y

    return room.block(run, "body", past=[])


@state
def window_of_past(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        self.past.append(mean(y))
        return y + torch.stack(list(self.past)).mean(0)

    return room.block(run, "conv", "bn", past=deque(maxlen=2))


@state
def dict_of_state(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x) + self.state["shift"])
        self.state["shift"] = self.state["shift"] + 0.5
        return y

    return room.block(run, "conv", "bn", state={"shift": 0.0})


@state
def class_attribute(room: Room):
    class Own(Block):
        step = 0

        def forward(self, x):
            y = self.bn(self.conv(x) + type(self).step)
            type(self).step += 1
            return y

    room.outside.resets.append(lambda: setattr(Own, "step", 0))
    return Own(None, conv=room.conv(), bn=room.bn())


@state
def cell_of_closure(room: Room):
    step = 0

    def start():
        nonlocal step
        step = 0

    def run(self, x):
        nonlocal step
        y = self.bn(self.conv(x) * (1 + step))
        step += 1
        return y

    room.outside.resets.append(start)
    return room.block(run, "conv", "bn")


def _counts(self, x):
    global _step
    y = self.bn(self.conv(x) + _step)
    _step += 1
    return y


@state
def global_counter(room: Room):
    names = {**globals(), "_step": 0}
    run = types.FunctionType(_counts.__code__, names)
    room.outside.resets.append(lambda: names.update(_step=0))
    return room.block(run, "conv", "bn")


@state
def moving_average(room: Room):
    def run(self, x):
        y = self.body(x)
        self.average.lerp_(mean(y), 0.1)
        return y - self.average

    return room.block(run, "body", average=room.tensor(0.0))


@state
def cache_by_size(room: Room):
    def run(self, x):
        size = tuple(x.shape[2:])
        if size not in self.cache:
            self.cache[size] = torch.linspace(-1, 1, x.shape[2], dtype=x.dtype)[:, None]
        return self.body(x + self.cache[size])

    return room.block(run, "body", cache={})


@state
def made_by_the_first_run(room: Room):
    """Data-dependent initialisation, as in ActNorm."""

    def run(self, x):
        if self.scale is None:
            self.scale = 1 / (x.std((0, 2, 3), keepdim=True) + 0.5)
        return self.bn(x * self.scale)

    return room.block(run, "bn", scale=None)


@state
def mask_kept(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        if self.mask is None:
            self.mask = (y.mean((0, 2, 3), keepdim=True) > 0).to(y)
        return y * self.mask

    return room.block(run, "conv", "bn", mask=None)


@state
def statistics_decay(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        self.bn.running_mean.mul_(0.9)
        return y

    return room.block(run, "conv", "bn")


@state
def statistics_adapt(room: Room):
    def run(self, x):
        y = self.conv(x)
        self.bn.running_mean.lerp_(y.mean((0, 2, 3)), 0.1)
        return self.bn(y)

    return room.block(run, "conv", "bn")


@state
def statistics_assigned(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        self.bn.running_var = self.bn.running_var * 1.1
        return y

    return room.block(run, "conv", "bn")


@state
def gamma_written(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        with torch.no_grad():
            self.bn.weight.mul_(1.25)
        return y

    return room.block(run, "conv", bn=room.bn(affine=True))


@state
def weight_written(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        self.conv.weight.data.mul_(0.75)
        return y

    return room.block(run, "conv", "bn")


@state
def bias_made(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        self.conv.bias = nn.Parameter(torch.ones(y.shape[1], dtype=y.dtype))
        return y

    return room.block(run, "bn", conv=room.conv(bias=False))


@state
def last_frame(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        last, self.last = self.last, y.detach()
        return y if last is None or last.shape != y.shape else y + torch.relu(last)

    return room.block(run, "conv", "bn", last=None)


@state
def membrane(room: Room):
    """A spiking neuron."""

    def run(self, x):
        charge = self.bn(self.conv(x)).mean((2, 3), keepdim=True) + 0.9 * self.membrane.mean()
        self.membrane = torch.where(charge > 1, charge - 1, charge).detach()
        return x + charge

    return room.block(run, "conv", "bn", membrane=torch.zeros((), dtype=torch.float64))


@state
def buffer_registered_late(room: Room):
    def run(self, x):
        if "late" in self._buffers:
            x = x + self.late
        else:
            self.register_buffer("late", room.tensor(0.5))
        return self.body(x)

    return room.block(run, "body")


@state
def batches_counted(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x) * (1 + self.bn.num_batches_tracked))
        self.bn.num_batches_tracked.add_(1)
        return y

    return room.block(run, "conv", "bn")


@state
def module_exchanged(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        self.bn, self.bn2 = self.bn2, self.bn
        return y

    return room.block(run, "conv", "bn", "bn2")


@state
def normalises_while_it_trains(room: Room):
    """A BatchNorm that was left in training mode."""
    norm = room.bn()
    return room.block(lambda self, x: self.bn(self.conv(x)), "conv", bn=norm.train())
