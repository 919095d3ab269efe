"""Layouts: strides, copies and views, and what is written through them."""

from __future__ import annotations

import torch
from torch.nn import functional

from tests.property.programs.block import Room, habit

layout = habit("layouts")


@layout
def contiguous_then_in_place(room: Room):
    def run(self, x):
        y = self.bn(x.contiguous())
        return self.conv(y.relu_()) + x.mean()

    return room.block(run, "conv", "bn")


@layout
def contiguous_written(room: Room):
    """For some layouts this writes to x."""
    return room.block(lambda self, x: self.conv(x.contiguous().mul_(2)) + x, "conv")


@layout
def to_channels_last(room: Room):
    def run(self, x):
        y = self.bn(x).to(memory_format=torch.channels_last)
        return self.conv(y.relu_())

    return room.block(run, "conv", "bn")


@layout
def channels_last_of_x(room: Room):
    def run(self, x):
        y = x.contiguous(memory_format=torch.channels_last)
        z = self.bn(y)
        functional.relu(z, inplace=True)
        return self.conv(z) + y

    return room.block(run, "conv", "bn")


@layout
def to_its_dtype(room: Room):
    def run(self, x):
        y = self.bn(x)
        z = y.to(torch.float64)
        z.clamp_(min=0)
        return self.conv(y)

    return room.block(run, "conv", "bn")


@layout
def to_with_a_copy(room: Room):
    def run(self, x):
        y = self.bn(x)
        y.to(torch.float64, copy=True).zero_()
        return self.conv(y)

    return room.block(run, "conv", "bn")


@layout
def double_of_double(room: Room):
    return room.block(lambda self, x: self.conv(self.bn(x.double()).relu_()) + x, "conv", "bn")


@layout
def reshaped_and_written(room: Room):
    """A view where the layout allows one, else a copy."""

    def run(self, x):
        y = self.bn(self.conv(x))
        y.reshape(y.shape[0], -1).clamp_(min=0)
        return y

    return room.block(run, "conv", "bn")


@layout
def viewed_and_written(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x)).contiguous()
        y.view(-1).tanh_()
        return y

    return room.block(run, "conv", "bn")


@layout
def flattened_and_written(room: Room):
    def run(self, x):
        y = self.bn(x.transpose(2, 3))
        y.flatten(2).relu_()
        return self.conv(y.transpose(2, 3))

    return room.block(run, "conv", "bn")


@layout
def transposed_norm(room: Room):
    def run(self, x):
        return self.conv(self.bn(x.transpose(2, 3)).relu_().transpose(2, 3))

    return room.block(run, "conv", "bn")


@layout
def permuted_and_back(room: Room):
    def run(self, x):
        y = self.bn(x).permute(0, 2, 3, 1).contiguous()
        y.clamp_(max=1)
        return self.conv(y.permute(0, 3, 1, 2))

    return room.block(run, "conv", "bn")


@layout
def padded_if_needed(room: Room):
    def run(self, x):
        y = self.bn(x)
        pad = y.shape[3] % 2
        z = functional.pad(y, (0, pad))
        z.relu_()
        return self.conv(z[..., : y.shape[3]] + y)

    return room.block(run, "conv", "bn")


@layout
def padded_by_condition(room: Room):
    def run(self, x):
        y = self.bn(x)
        if y.shape[2] % 4:
            y = functional.pad(y, (0, 0, 0, 4 - y.shape[2] % 4))
        return self.conv(y)[:, :, : x.shape[2]]

    return room.block(run, "conv", "bn")


@layout
def expanded(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x)).mean((2, 3), keepdim=True).expand_as(x)
        return x + y

    return room.block(run, "conv", "bn")


@layout
def part_written(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        y[:, :, ::2] = 0
        return y

    return room.block(run, "conv", "bn")


@layout
def channels_written(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        y[:, 0].mul_(2).add_(1)
        return y

    return room.block(run, "conv", "bn")


@layout
def old_value_kept(room: Room):
    """What is written in place was kept by somebody."""

    def run(self, x):
        y = self.conv(x)
        kept = y
        z = self.bn(y)
        z.relu_()
        return z + kept

    return room.block(run, "conv", "bn")


@layout
def norm_of_a_view(room: Room):
    def run(self, x):
        y = self.conv(x)
        rows = y[:, :, 1:]
        z = torch.relu_(self.bn(rows))
        return self.bn(y) + functional.pad(z, (0, 0, 1, 0)) + y.sum()

    return room.block(run, "conv", "bn")


@layout
def chunks_written(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        one, two = y.split([1, y.shape[1] - 1], 1)
        one.sigmoid_()
        return y + two.sum(1, keepdim=True)

    return room.block(run, "conv", "bn")


@layout
def input_written(room: Room):
    """The caller sees what is written to the input."""
    return room.block(lambda self, x: self.conv(self.bn(x.clamp_(min=-1))), "conv", "bn")


@layout
def accumulated(room: Room):
    def run(self, x):
        y = torch.zeros_like(x)
        y += self.bn(self.conv(x))
        y -= x
        y *= 0.5
        return self.bn2(y)

    return room.block(run, "conv", "bn", "bn2")


@layout
def written_into_empty(room: Room):
    def run(self, x):
        y = x.new_empty(x.shape)
        y[:, :1] = x[:, :1]
        y[:, 1:] = self.conv(x)[:, 1:]
        return self.bn(y)

    return room.block(run, "conv", "bn")


@layout
def out_argument(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        torch.tanh(y, out=y)
        return y

    return room.block(run, "conv", "bn")


@layout
def asks_for_the_stride(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        return torch.relu(y) if y.is_contiguous() else torch.tanh(y)

    return room.block(run, "conv", "bn")


@layout
def unfolded(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        return functional.fold(functional.unfold(y, 3, padding=1), y.shape[2:], 3, padding=1)

    return room.block(run, "conv", "bn")


@layout
def chunked_loop(room: Room):
    def run(self, x):
        y = self.bn(x)
        for part in y.unbind(0):
            part.mul_(0.5).sub_(0.1)
        return self.conv(y)

    return room.block(run, "conv", "bn")


@layout
def masked_fill(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        return y.masked_fill_(x[:, :1] > 1, 0.5)

    return room.block(run, "conv", "bn")
