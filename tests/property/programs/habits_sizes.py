"""Sizes: what depends on how large the input is, and how many there are."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.property.programs.block import Room, habit
from tests.property.programs.layers import any_batch_norm, any_linear

sizes = habit("sizes")


@sizes
def folded_by_height(room: Room):
    """Which channel is where depends on the size."""

    def run(self, x):
        y = self.bn(x).reshape(x.shape[0], -1, x.shape[3], 1)[:, : self.count]
        return x + self.last(y).mean((1, 2, 3), keepdim=True)

    count = 2 * room.channels
    last = nn.Conv2d(count, 3, 1, dtype=torch.float64)
    return room.block(run, "bn", last=last, count=count)


@sizes
def flat_slice(room: Room):
    def run(self, x):
        y = self.bn(x).flatten(1)[:, :24]
        return x + self.linear(y)[:, :, None, None]

    return room.block(run, "bn", linear=any_linear(room.random, 24, room.channels))


@sizes
def flat_slice_by_step(room: Room):
    def run(self, x):
        y = self.bn(x).reshape(x.shape[0], -1)[:, ::7][:, :8]
        return x * torch.sigmoid(self.linear(y))[:, :, None, None]

    return room.block(run, "bn", linear=any_linear(room.random, 8, room.channels))


@sizes
def norm_of_a_flat_slice(room: Room):
    def run(self, x):
        y = self.norm(self.conv(x).flatten(1)[:, :20])
        return x + self.linear(y)[:, :, None, None]

    return room.block(
        run,
        "conv",
        norm=any_batch_norm(room.random, 20, nn.BatchNorm1d),
        linear=any_linear(room.random, 20, room.channels),
    )


@sizes
def zeros_on_top(room: Room):
    def run(self, x):
        y = torch.cat([torch.zeros_like(x[:, :, :1]), self.conv(x)[:, :, 1:]], 2)
        return torch.relu(self.bn(y))

    return room.block(run, "conv", "bn")


@sizes
def rolled_with_zeros(room: Room):
    def run(self, x):
        y = torch.cat([torch.zeros_like(x[:, :, :1]), x.roll(1, 2)], 2)
        return self.conv(torch.relu(self.bn(y)))[:, :, 1:]

    return room.block(run, "conv", "bn")


@sizes
def two_along_the_height(room: Room):
    def run(self, x):
        y = torch.cat([self.conv(x), self.bn(x)], 2)
        return self.act(self.bn2(y))[:, :, : x.shape[2]]

    return room.block(run, "conv", "bn", "bn2", "act")


@sizes
def two_along_the_batch(room: Room):
    def run(self, x):
        y = torch.cat([self.body(x), x.flip(3)])
        one, two = self.bn(y).relu().chunk(2)
        return one + two

    return room.block(run, "body", "bn")


@sizes
def first_of_the_batch(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        return torch.relu(y - y[:1])

    return room.block(run, "conv", "bn")


@sizes
def halves_of_the_batch(room: Room):
    def run(self, x):
        count = x.shape[0] // 2
        y = torch.cat([self.conv(x[:count]), x[count:]])
        return self.bn(y).relu()

    return room.block(run, "conv", "bn")


@sizes
def factor_of_the_height(room: Room):
    return room.block(lambda self, x: self.bn(self.conv(x) * x.shape[2] / 8), "conv", "bn")


@sizes
def shift_of_the_width(room: Room):
    return room.block(lambda self, x: self.bn(self.conv(x)) + x.size(3), "conv", "bn")


@sizes
def scaled_by_the_number(room: Room):
    return room.block(lambda self, x: self.bn(self.conv(x) / x[0].numel() ** 0.5), "conv", "bn")


@sizes
def batch_decides(room: Room):
    def run(self, x):
        y = self.conv(x)
        return self.bn(y) if x.shape[0] > 1 else torch.tanh(y)

    return room.block(run, "conv", "bn")


@sizes
def size_decides(room: Room):
    def run(self, x):
        y = self.bn(self.conv(x))
        return functional.relu(y) if x.shape[-1] > 8 else y

    return room.block(run, "conv", "bn")


@sizes
def interpolated(room: Room):
    def run(self, x):
        y = self.bn(functional.avg_pool2d(self.conv(x), 2))
        return functional.interpolate(y, x.shape[2:], mode=self.mode)

    return room.block(
        run, "conv", "bn", mode=room.random.choice(("nearest", "bilinear", "bicubic"))
    )


@sizes
def pooled_to_a_grid(room: Room):
    def run(self, x):
        y = functional.adaptive_avg_pool2d(self.bn(self.conv(x)), (3, 2))
        return x + y.mean((2, 3), keepdim=True) + functional.adaptive_max_pool2d(y, 1)

    return room.block(run, "conv", "bn")


@sizes
def pixels_shuffled(room: Room):
    def run(self, x):
        y = functional.pixel_shuffle(self.norm(self.wide(x)), 2)
        return torch.relu(self.bn(y))[:, :, ::2, ::2] + x

    wide = nn.Conv2d(room.channels, 4 * room.channels, 1, dtype=torch.float64)
    return room.block(run, "bn", wide=wide, norm=any_batch_norm(room.random, 4 * room.channels))


@sizes
def pixels_gathered(room: Room):
    def run(self, x):
        y = functional.pixel_unshuffle(
            self.bn(x)[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2], 2
        )
        return x + self.back(torch.relu(self.norm(y))).mean((2, 3), keepdim=True)

    back = nn.Conv2d(4 * room.channels, room.channels, 1, dtype=torch.float64)
    return room.block(run, "bn", back=back, norm=any_batch_norm(room.random, 4 * room.channels))


@sizes
def windows(room: Room):
    """As in window attention."""

    def run(self, x):
        n, c, h, w = x.shape
        y = functional.pad(self.bn(x), (0, -w % 4, 0, -h % 4))
        y = y.view(n, c, y.shape[2] // 4, 4, y.shape[3] // 4, 4).amax((3, 5), keepdim=True)
        y = y.expand(-1, -1, -1, 4, -1, 4).reshape(n, c, h + -h % 4, w + -w % 4)
        return self.conv(y[:, :, :h, :w])

    return room.block(run, "conv", "bn")


@sizes
def positions_added(room: Room):
    def run(self, x):
        rows = torch.arange(x.shape[2], dtype=x.dtype)[:, None] / 10
        return self.bn(self.conv(x) + rows)

    return room.block(run, "conv", "bn")


@sizes
def position_table_cut(room: Room):
    def run(self, x):
        return self.bn(self.conv(x)) + self.table[:, :, : x.shape[2], : x.shape[3]]

    return room.block(run, "conv", "bn", table=room.values(1, room.channels, 12, 12))


@sizes
def channels_of_the_batch(room: Room):
    """Batch and channels are one axis for a while."""

    def run(self, x):
        y = self.bn(self.conv(x))
        z = y.reshape(1, -1, *y.shape[2:])
        return functional.instance_norm(z).reshape(y.shape) + y

    return room.block(run, "conv", "bn")


@sizes
def instance_norm_in_front(room: Room):
    norm = nn.InstanceNorm2d(
        room.channels, affine=True, track_running_stats=True, dtype=torch.float64
    )
    return room.block(
        lambda self, x: torch.relu(self.bn(self.norm(self.conv(x)))), "conv", "bn", norm=norm.eval()
    )


@sizes
def width_becomes_channels(room: Room):
    def run(self, x):
        y = self.bn(x).transpose(1, 3)[:, :4]
        return x + self.last(y).mean((1, 2, 3), keepdim=True)

    return room.block(run, "bn", last=nn.Conv2d(4, 3, 1, dtype=torch.float64))


@sizes
def groups_of_channels(room: Room):
    def run(self, x):
        n, c, h, w = x.shape
        y = self.bn(self.conv(x)).view(n, 1, c, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.conv2(y)

    return room.block(run, "conv", "bn", "conv2")


@sizes
def constant_blur(room: Room):
    def run(self, x):
        kernel = torch.full((x.shape[1], 1, 3, 3), 1 / 9, dtype=x.dtype)
        return self.conv(functional.conv2d(self.bn(x), kernel, padding=1, groups=x.shape[1]))

    return room.block(run, "conv", "bn")


@sizes
def einsum_with_a_weight(room: Room):
    def run(self, x):
        return torch.einsum("nchw,oc->nohw", self.bn(x), self.weight)

    weight = nn.Parameter(room.values(room.channels, room.channels))
    return room.block(run, "bn", weight=weight)


@sizes
def linear_with_a_vector(room: Room):
    def run(self, x):
        return (
            x
            + functional.linear(self.bn(self.conv(x)).mean((2, 3)), self.weight)[
                :, None, None, None
            ]
        )

    return room.block(run, "conv", "bn", weight=nn.Parameter(room.values(room.channels)))


@sizes
def attention(room: Room):
    def run(self, x):
        q, k = self.bn(self.conv(x)).flatten(2), self.bn2(x).flatten(2)
        weights = torch.softmax(q @ k.transpose(1, 2) / x.shape[2], -1)
        return (weights @ k).view(x.shape)

    return room.block(run, "conv", "bn", "bn2")


@sizes
def padded_if_odd(room: Room):
    def run(self, x):
        y, h, w = self.bn(torch.sigmoid(x)), x.shape[2] % 2, x.shape[3] % 2
        y = functional.pad(y, (0, w, 0, h)) if h or w else y
        return self.conv(y)[:, :, : x.shape[2], : x.shape[3]]

    return room.block(run, "conv", "bn")


@sizes
def same_padding(room: Room):
    """As in networks that come from TensorFlow."""

    def run(self, x):
        pads = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in x.shape[2:]]
        y = functional.pad(self.bn(torch.sigmoid(x)), [0, pads[1], 0, pads[0]])
        return x + self.conv(y).mean((2, 3), keepdim=True)

    return room.block(run, "conv", "bn")


@sizes
def down_and_up(room: Room):
    """A U-Net's skip, which has to fit."""

    def run(self, x):
        y = self.bn(self.conv(functional.max_pool2d(x, 2)))
        y = functional.interpolate(y, scale_factor=2.0)
        if y.shape != x.shape:
            y = functional.pad(y, [0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]])
        return self.conv2(y + x)

    return room.block(run, "conv", "bn", "conv2")


@sizes
def early_exit(room: Room):
    def run(self, x):
        y = self.bn(torch.sigmoid(x))
        return self.conv(y) if x.shape[2] * x.shape[3] < 75 else self.conv2(y + 1)

    return room.block(run, "conv", "bn", "conv2")


@sizes
def row_by_row(room: Room):
    def run(self, x):
        y = self.bn(torch.sigmoid(x))
        return torch.stack([self.conv(y[:, :, row : row + 1]) for row in range(len(y[0, 0]))], 3)[
            :, :, 0
        ]

    return room.block(run, "conv", "bn")


@sizes
def wide_or_high(room: Room):
    def run(self, x):
        y = self.bn(torch.sigmoid(x))
        return self.conv(torch.tanh(y) if x.shape[3] > x.shape[2] else y)

    return room.block(run, "conv", "bn")


@sizes
def one_image_or_more(room: Room):
    def run(self, x):
        y = self.bn(torch.sigmoid(x))
        return self.conv(y if x.size(0) == 1 else torch.cat([y[:1] * 2, y[1:]]))

    return room.block(run, "conv", "bn")


@sizes
def branch_by_name(room: Room):
    def run(self, x):
        name = f"w{x.shape[3]}"
        return self.conv(self.acts.get(name, torch.sigmoid)(self.bn(x)))

    return room.block(run, "conv", "bn", acts={"w7": torch.relu, "w8": torch.tanh})


@sizes
def view_or_else(room: Room):
    def run(self, x):
        y = self.bn(torch.sigmoid(x))
        try:
            z = y.view(y.shape[0], y.shape[1], 3, -1)
        except RuntimeError:
            return self.conv(torch.sigmoid(y))
        return self.conv(z).reshape(y.shape)

    return room.block(run, "conv", "bn")


NEUTRAL = (
    lambda y, x: y[..., : x.shape[2], : x.shape[3]],
    lambda y, x: y.to(x.dtype),
    lambda y, x: y.double(),
    lambda y, x: y.contiguous(),
    lambda y, x: y[: len(x)],
    lambda y, x: y.expand(x.shape[0], -1, -1, -1),
    lambda y, x: y.detach(),
)
"""What does nothing to a tensor that is one."""


@sizes
def branch_cropped_where_it_fits(room: Room):
    """Cut to size on some sizes, where there is nothing to cut."""

    def run(self, x):
        branch = self.bn(self.conv(x))
        if x.shape[2] > x.shape[3] + 1 or len(x) == 3:
            branch = neutral(branch, x)
        return self.conv2(x) + branch

    neutral = room.random.choice(NEUTRAL)
    return room.block(run, "conv", "conv2", "bn")


CONDITIONS = (
    lambda n, h, w: (h, w) in ((11, 7), (12, 8), (13, 7)),
    lambda n, h, w: n % 3 == 0,
    lambda n, h, w: h > 10 and w < 9,
    lambda n, h, w: h > 10 and (w < 8 and n == 2),
    lambda n, h, w: h * w in (77, 96, 91),
    lambda n, h, w: not (h + n) % 7,
    lambda n, h, w: divmod(w, 5) == (1, 4),
    lambda n, h, w: w - 2 > h // 2 + 2,
)
"""What holds on few sizes: of the batch, the height and the width."""


@sizes
def few_sizes_alone(room: Room):
    def run(self, x):
        n, _, h, w = x.shape
        y = self.bn(torch.sigmoid(x))
        return self.conv(torch.relu(y) if condition(n, h, w) else y)

    condition = room.random.choice(CONDITIONS)
    return room.block(run, "conv", "bn")


@sizes
def rows_beyond(room: Room):
    """Nothing on the example, mostly."""

    def run(self, x):
        y = self.conv(x)
        parts = [self.bn(y[:, :, :limit]), y[:, :, limit:]]
        return self.conv2(torch.cat(parts[::order], 2))

    limit, order = room.random.choice((8, 9, 10)), room.random.choice((1, -1))
    return room.block(run, "conv", "conv2", "bn")


@sizes
def first_image_alone(room: Room):
    def run(self, x):
        y = self.conv(x)
        return self.conv2(torch.cat([self.bn(y[:first]), y[first:]]))

    first = room.random.choice((1, 2))
    return room.block(run, "conv", "conv2", "bn")


@sizes
def first_tile_alone(room: Room):
    def run(self, x):
        first, *rest = self.conv(x).split(length, 2)
        return self.conv2(torch.cat([self.bn(first), *(torch.tanh(tile) for tile in rest)], 2))

    length = room.random.choice((6, 9, 10))
    return room.block(run, "conv", "conv2", "bn")


@sizes
def written_in_part(room: Room):
    def run(self, x):
        y = torch.sigmoid(self.conv(x))
        write(y)
        return self.conv2(torch.relu(self.bn(y)))

    write = room.random.choice(
        (
            lambda y: y[:, :, 0].fill_(2),
            lambda y: y[:, 1:, ::2].mul_(3),
            lambda y: y[0].zero_(),
            lambda y: y[:, :, 9:].neg_(),
            lambda y: y[:, 1:, :-1].copy_(y[:, :-1, 1:].clone()),
        )
    )
    return room.block(run, "conv", "conv2", "bn")


@sizes
def table_that_may_not_fit(room: Room):
    def run(self, x):
        y = self.conv(x)
        try:
            return self.conv2(self.bn(y) + table)
        except RuntimeError:
            return self.conv2(torch.sigmoid(y))

    table = torch.randn(1, 1, room.random.choice((8, 9, 11)), 1, dtype=torch.float64)
    return room.block(run, "conv", "conv2", "bn")
